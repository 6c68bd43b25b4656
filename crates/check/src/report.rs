//! What comes out: items with a verdict.

use serde::Serialize;

use crate::items::Obstacle;
use crate::trial::KvmTrial;

/// What the machine is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// VMs run here and everything that Maru needs is there.
    Ready,
    /// VMs run here, but something that Maru needs is missing: what it costs stands with the item.
    Degraded,
    /// VMs do not run here; they run in virtual hosts (`maru lab up`).
    LabOnly,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but less well than it could.
    Warn,
    /// Not there, and Maru needs it: a part of it will not work.
    Missing,
    /// A fact, or an option that nobody has to have.
    Info,
}

/// Items are shown under these headings, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Hardware virtualization and KVM.
    Virtualization,
    /// CPUs, interrupts and time.
    Processor,
    /// Memory, large pages, NUMA.
    Memory,
    /// Passthrough, network and watchdog devices.
    Devices,
    /// The kernel and its interfaces.
    Kernel,
}

impl Group {
    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Virtualization => "Virtualization",
            Group::Processor => "Processor",
            Group::Memory => "Memory",
            Group::Devices => "Devices",
            Group::Kernel => "Kernel",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Stable name for programs, `group.thing`.
    pub id: &'static str,
    /// Where it is shown.
    pub group: Group,
    /// Name for people.
    pub title: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What its lack costs; absent when nothing lacks.
    pub cost: Option<String>,
    /// How to get it; absent when there is nothing to do.
    pub fix: Option<String>,
}

impl Item {
    pub(crate) fn new(group: Group, id: &'static str, title: &'static str, status: Status, found: String) -> Self {
        Self { id, group, title, status, found, cost: None, fix: None }
    }

    pub(crate) fn cost(mut self, cost: impl Into<String>) -> Self {
        self.cost = Some(cost.into());
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// The whole answer of `maru host check`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What the machine is good for.
    pub verdict: Verdict,
    /// The verdict and its reason in a sentence.
    pub summary: String,
    /// What to do next; absent when there is nothing to do.
    pub next: Option<String>,
    /// Everything that was looked at, grouped.
    pub items: Vec<Item>,
    /// What KVM did with a guest.
    pub kvm: KvmTrial,
}

impl Report {
    pub(crate) fn new(items: Vec<Item>, obstacle: Option<Obstacle>, kvm: KvmTrial) -> Self {
        let missing: Vec<&Item> = items.iter().filter(|item| item.status == Status::Missing).collect();
        let (verdict, summary, next) = match obstacle {
            Some(Obstacle { why, fix }) => {
                let lab = "`maru lab up` starts virtual hosts that run VMs, on this machine as it is";
                let next = fix.map_or(lab.to_owned(), |fix| format!("{fix}. Until then {lab}"));
                (Verdict::LabOnly, format!("This machine cannot run VMs itself: {why}."), Some(next))
            }
            None if missing.is_empty() => (Verdict::Ready, "This machine is ready to run VMs.".into(), None),
            None => {
                let titles: Vec<&str> = missing.iter().map(|item| item.title).collect();
                (
                    Verdict::Degraded,
                    format!("This machine runs VMs, but not all of Maru works on it: {}.", titles.join(", ")),
                    Some("see the fixes below, then run `maru host check` again".into()),
                )
            }
        };
        Self { verdict, summary, next, items, kvm }
    }

    /// Exit code of `maru host check`: 0 when VMs run here (ready or degraded), 1 when only the lab does.
    pub fn exit_code(&self) -> i32 {
        match self.verdict {
            Verdict::Ready | Verdict::Degraded => 0,
            Verdict::LabOnly => 1,
        }
    }

    /// The item with this id.
    pub fn item(&self, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }
}
