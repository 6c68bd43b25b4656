//! The items, one file for each group. Each function looks at a root and the kernel's answers and decides; none asks the
//! kernel anything itself, so that made-up machines can be judged.

mod devices;
mod kernel;
mod memory;
mod processor;
mod virtualization;

use crate::probe::Answers;
use crate::report::Item;
use crate::root::Root;

pub(crate) use virtualization::Obstacle;

/// The processor, from `/proc/cpuinfo`.
pub(crate) struct Cpu {
    /// `model name`.
    pub(crate) model: String,
    /// Logical processors online.
    pub(crate) count: usize,
    /// `vendor_id`.
    pub(crate) vendor: String,
    flags: Vec<String>,
    vmx_flags: Vec<String>,
}

impl Cpu {
    fn read(root: &Root) -> Self {
        let text = root.text("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect();
        Self {
            model: field("model name"),
            count: text.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor")).count(),
            vendor: field("vendor_id"),
            flags: words("flags"),
            vmx_flags: words("vmx flags"),
        }
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|have| have == flag)
    }

    /// Since Linux 5.9 `ept` and others stand in a line of their own.
    pub(crate) fn has_vmx(&self, flag: &str) -> bool {
        self.has(flag) || self.vmx_flags.iter().any(|have| have == flag)
    }

    /// `svm` or `vmx`.
    pub(crate) fn virtualizes(&self) -> bool {
        self.has("svm") || self.has("vmx")
    }

    pub(crate) fn is_intel(&self) -> bool {
        self.vendor == "GenuineIntel"
    }

    /// This machine is itself a virtual machine.
    pub(crate) fn is_guest(&self) -> bool {
        self.has("hypervisor")
    }
}

/// Looks at everything. The items in the order they are shown, and what keeps KVM from working, if something does.
pub(crate) fn all(root: &Root, answers: &Answers) -> (Vec<Item>, Option<Obstacle>) {
    let cpu = Cpu::read(root);
    let (mut items, obstacle) = virtualization::items(root, &cpu, answers);
    items.extend(processor::items(root, &cpu));
    items.extend(memory::items(root));
    items.extend(devices::items(root));
    items.extend(kernel::items(root, answers));
    (items, obstacle)
}
