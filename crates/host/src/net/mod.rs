//! The host's virtual switches: one process for all of them, which is kept as the store says.
//!
//! ```text
//!   store: switches, VMs that run ─┐
//!   what is being done to VMs ─────┴─▶ wanted ──plan──▶ Keeper, one thread ──control socket──▶ maru-switch, one process
//!   (Network::hold)                                       └─ starts it, finds it again, starts it anew when it has ended
//! ```
//!
//! The process belongs to nobody, as monitors do: it goes on when `marud` ends, and the next one finds it by the lock that it holds. What it
//! has is compared with what is wanted, and the difference is asked for: ports that nobody wants any more go, whoever was killed when.
//!
//! # Rights
//! A `marud` that is root gives the process a user of its own, and of root's rights only `CAP_NET_ADMIN` (to make TAPs), `CAP_NET_RAW`
//! (to hear NICs), `CAP_BPF` and `CAP_IPC_LOCK` (to do so by AF_XDP); those of its children, too, if it had any. The sockets of a VM's ports are in a directory in which the switch may write and
//! the VM's monitor, by its group, may find what it knows: nobody else gets there. It [confines itself](switch::sandbox) to these directories.

mod host_side;
mod keeper;
pub mod policy;
mod process;
pub mod team;
mod wanted;
pub mod watching;

pub use host_side::parse_address;
pub use keeper::{Held, Network};
pub use wanted::{port_name, port_of_switch};

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::records::{Cause, NetRecord, SwitchRecord, VmRecord};
use crate::state::{State, StateError};

/// The kernel's limit for names of network interfaces, without the zero at the end.
pub const INTERFACE_NAME: usize = 15;
/// The longest id of a network card on a switch: with the VM's, it is the port's name and part of its socket's path, which have limits.
pub const MAX_NET_ID: usize = 24;

/// Where the sockets of a VM's ports are, below the directory of what runs.
pub fn socket_directory(run_directory: &Path, vm: Uuid) -> PathBuf {
    run_directory.join("switch/ports").join(vm.to_string())
}

/// Whether an interface can have this name.
pub fn is_interface(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_graphic() && c != '/';
    !name.is_empty() && name.len() <= INTERFACE_NAME && name.chars().all(fine) && !matches!(name, "." | "..")
}

/// Refuses network cards on switches that there are not.
pub fn check(state: &State, vm: &VmRecord) -> Result<Result<(), Cause>, StateError> {
    let switches = state.all::<SwitchRecord>()?;
    let is_there = |name: &str| switches.iter().any(|switch| switch.record.name == name);
    let missing = vm.nets.iter().filter_map(NetRecord::switch).find(|(switch, _)| !is_there(switch));
    Ok(missing.map_or(Ok(()), |(switch, _)| Err(no_switch(switch, switches.iter().map(|it| it.record.name.as_str())))))
}

fn no_switch<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Cause {
    let known: Vec<&str> = known.collect();
    let message = match known.is_empty() {
        true => format!("there is no switch '{name}', and no other"),
        false => format!("there is no switch '{name}'; there are: {}", known.join(", ")),
    };
    Cause::new("no-switch", message, "name one of them, or make one (maru switch create)")
}
