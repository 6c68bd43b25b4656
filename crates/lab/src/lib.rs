//! Virtual hosts: a data centre on one machine.
//!
//! A hypervisor needs KVM, which most laptops, build machines and CI runners do not have to lend. The lab starts whole
//! hosts as QEMU machines that boot the same appliance as a bare server would, with KVM that works inside them, their own
//! disks, NICs and power switch. It needs QEMU, no rights beyond a user's.
//!
//! ```text
//!   Lab ──┬── Host h1 ── QEMU ── appliance: kernel, maru-init, Maru's programs, exec agent
//!         ├── Host h2 ── QEMU ──     "
//!         ├── Cable 0, 1: a switch thread each, between the hosts' NICs
//!         └── directories: sockets (private), disks, console logs (kept)
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = lab::Lab::new().hosts(3).disk_mib(1024).binary("target/release/maru-vmm", "/bin/maru-vmm").start()?;
//! let output = lab.host(0).exec(["uname", "-r"])?;
//! println!("{}", output.text());
//! lab.cable(0).cut(1);
//! lab.cable(1).delay(2, Duration::from_millis(20));
//! lab.host(2).power_cut();
//! lab.host(2).power_on()?;
//! # Ok(())
//! # }
//! ```
//!
//! **Life cycle.** [`Lab::new`] describes, [`LabSpec::start`] builds what is missing ([`appliance`]), powers all hosts on
//! side by side and waits until their agents answer. Dropping the [`Lab`] ends everything; so does the end of the process,
//! by `SIGKILL` too, because the kernel kills the QEMUs with it.
//!
//! **I/O.** Plain threads and blocking calls. One thread per cable, one per session with a host's agent, one that starts
//! processes. Nothing waits without a limit except for programs that the caller waits for.
//!
//! **Errors.** Those about a host carry the end of its console log. A program that fails in a host is not an error.

pub mod agent;
pub mod appliance;
pub mod cable;
pub mod cli;
pub mod dirs;
mod forming;
pub mod host;
mod lab;
pub mod pid1;

pub use lab::{CABLES, Lab, LabError, LabSpec, MAX_HOSTS, Progress};
