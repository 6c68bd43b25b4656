//! What would happen if hosts failed.

use super::inventory::{Closed, Inventory, Needs, Slot};
use super::judge::{History, Way};
use crate::{HostId, VmId};

/// What becomes of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is started on this host.
    Goes(HostId),
    /// It fits nowhere, for this reason.
    Waits(String),
}

/// What becomes of the VMs of hosts that fail, in the order in which they are started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Each VM with its fate.
    pub fates: Vec<(VmId, Fate)>,
}

impl Outlook {
    /// The VMs that would not run, with the reasons.
    pub fn left_out(&self) -> impl Iterator<Item = (&VmId, &str)> {
        self.fates.iter().filter_map(|(vm, fate)| match fate {
            Fate::Waits(reason) => Some((vm, reason.as_str())),
            Fate::Goes(_) => None,
        })
    }
}

impl Inventory {
    /// Plays through that hosts fail, with the VMs that they have.
    pub fn what_if(&self, down: &[Slot], mut vms: Vec<(VmId, Needs, Slot)>) -> Outlook {
        let mut then = self.clone();
        vms.sort_by(|(a, a_needs, _), (b, b_needs, _)| (b_needs.priority, a).cmp(&(a_needs.priority, b)));
        for (_, needs, slot) in &vms {
            then.take(needs, *slot);
        }
        for slot in down {
            then.hosts[slot.0].closed = Some(Closed::Dead);
        }
        let history = History::default();
        let mut outlook = Outlook::default();
        for (vm, needs, _) in vms {
            let fate = match then.best(&needs, &history, Way::Start) {
                Some(slot) => {
                    then.put(&needs, slot);
                    Fate::Goes(then.host(slot).clone())
                }
                None => Fate::Waits(then.refusal(&needs, &history, Way::Start)),
            };
            outlook.fates.push((vm, fate));
        }
        outlook
    }
}
