//! What users are told.

use std::fmt;
use std::time::Duration;

use crate::{HostId, Network, VmId};

/// Something that users should know. Its text says what happened, and where something waits, for what and how to get out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A record that cannot be read.
    Unreadable(String),
    /// This host has a lease.
    LeaseTaken,
    /// This host could not take a lease.
    LeaseRefused(String),
    /// This host could not prove its lease in time, and kills its VMs.
    LeaseLost {
        /// How many VMs.
        vms: usize,
    },
    /// A host is not heard of on one network.
    NetworkSilent(HostId, Network),
    /// It is heard of again.
    NetworkHeard(HostId, Network),
    /// A host is not heard of on any network; its lease still lives.
    Suspected(HostId, Duration),
    /// A host's lease has ended.
    HostLost {
        /// The host.
        host: HostId,
        /// How many VMs it had that others can have, too.
        vms: usize,
        /// How many that are bound to it.
        bound: usize,
        /// Whether they can be started elsewhere without further ado.
        fenced: bool,
    },
    /// A host has a lease again, or for the first time.
    HostBack(HostId),
    /// This host gives VMs to hosts now.
    Coordinates,
    /// Most hosts are missing: those that come back get their own VMs.
    Gathering {
        /// How many are there.
        present: usize,
        /// Of so many.
        hosts: usize,
    },
    /// A VM gets a host.
    Placed {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// The host that it had before, which failed.
        from: Option<HostId>,
    },
    /// No host suits a VM.
    Waits {
        /// The VM.
        vm: VmId,
        /// Why, and how to get out.
        reason: String,
    },
    /// A VM is to go to another host.
    Moves {
        /// The VM.
        vm: VmId,
        /// Where to.
        to: HostId,
        /// Why.
        why: &'static str,
    },
    /// A VM cannot leave a host that is drained.
    Stays {
        /// The VM.
        vm: VmId,
        /// Why, and how to get out.
        reason: String,
    },
    /// A VM failed.
    Failed {
        /// The VM.
        vm: VmId,
        /// How.
        reason: String,
    },
    /// A VM is not started again.
    GaveUp {
        /// The VM.
        vm: VmId,
        /// Why, and how to get out.
        reason: String,
    },
    /// A host has no VMs any more.
    Drained(HostId),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Unreadable(error) => write!(f, "{error}"),
            Notice::LeaseTaken => f.write_str("this host has a lease and may run VMs"),
            Notice::LeaseRefused(reason) => write!(f, "no lease yet: {reason}; it is asked for again"),
            Notice::LeaseLost { vms } => {
                write!(f, "the lease could not be proven in time: {vms} VM(s) are killed here and may start elsewhere")
            }
            Notice::NetworkSilent(host, network) => {
                write!(f, "{host} is silent on {network}, and heard on the other: check its cable")
            }
            Notice::NetworkHeard(host, network) => write!(f, "{host} is heard on {network} again"),
            Notice::Suspected(host, time) => {
                write!(f, "{host} is silent on all networks for {} ms; its VMs wait for the end of its lease", time.as_millis())
            }
            Notice::HostLost { host, vms, bound, fenced } => {
                match fenced {
                    true => write!(f, "{host}'s lease has ended: {vms} VM(s) are started elsewhere")?,
                    false => write!(
                        f,
                        "{host}'s lease has ended, and it has no watchdog: {vms} VM(s) wait for its return, or for `maru host confirm-dead \
                         {host}` when it is certain that it runs nothing"
                    )?,
                }
                match bound {
                    0 => Ok(()),
                    _ => write!(f, "; {bound} with files of its own stay there"),
                }
            }
            Notice::HostBack(host) => write!(f, "{host} has a lease"),
            Notice::Coordinates => f.write_str("this host is the coordinator"),
            Notice::Gathering { present, hosts } => {
                write!(f, "{present} of {hosts} hosts are back: VMs wait a moment for the others")
            }
            Notice::Placed { vm, host, from: None } => write!(f, "{vm} goes to {host}"),
            Notice::Placed { vm, host, from: Some(from) } if host == from => {
                write!(f, "{vm} goes to {host} again, which is back")
            }
            Notice::Placed { vm, host, from: Some(from) } => write!(f, "{vm} goes to {host}, {from} has failed"),
            Notice::Waits { vm, reason } => write!(f, "{vm} waits for a host: {reason}"),
            Notice::Moves { vm, to, why } => write!(f, "{vm} is to go to {to}: {why}"),
            Notice::Stays { vm, reason } => {
                write!(
                    f,
                    "{vm} cannot leave its host: {reason}; stop it, make room, or call the drain off with `maru host resume`"
                )
            }
            Notice::Failed { vm, reason } => write!(f, "{vm} failed: {reason}"),
            Notice::GaveUp { vm, reason } => write!(f, "{vm} is not started again: {reason}; `maru vm start {vm}` tries anew"),
            Notice::Drained(host) => write!(f, "{host} is drained"),
        }
    }
}
