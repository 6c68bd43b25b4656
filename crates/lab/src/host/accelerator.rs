//! How QEMU runs a host's instructions.

use std::fs::{self, File};
use std::path::Path;

/// What executes a host's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's KVM, which must offer nested virtualization.
    Kvm,
    /// QEMU's translator. Its emulated AMD processor has SVM with nested paging, so KVM works inside.
    Tcg,
}

impl Accelerator {
    /// Picks KVM where nested KVM can be expected to work. `MARU_LAB_ACCEL` (`kvm` or `tcg`) overrides.
    ///
    /// A `/dev/kvm` that opens is not enough: through `kvm_pvm` a VM can be created, but a stock kernel dies in it, and such
    /// machines show no `svm` or `vmx`.
    pub fn detect() -> Self {
        match std::env::var("MARU_LAB_ACCEL").as_deref() {
            Ok("kvm") => return Accelerator::Kvm,
            Ok("tcg") => return Accelerator::Tcg,
            _ => {}
        }
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has_virtualization = flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"));
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        let through_pvm = Path::new("/sys/module/kvm_pvm").exists();
        let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if has_virtualization && nested && !through_pvm && opens { Accelerator::Kvm } else { Accelerator::Tcg }
    }

    /// QEMU's arguments for it.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// How many processors QEMU gives to a host that has `usable` for programs and VMs.
    ///
    /// The translator keeps one more, the first, for the host's kernel (`maru.boot_processor`): whatever processor restores an x87
    /// state clears a flag of the *first* one without a lock (`cpu_clear_ignne` in QEMU's `fpu_helper.c`, 7.2 to 10.0 at least). If the
    /// first is just entering or leaving a guest, that brings back its flags of a moment before, and it goes on without
    /// nested paging in the guest, or with it, or without interrupts, in the host. A processor alone has no such neighbour.
    pub(super) fn processors(self, usable: u32) -> u32 {
        match self {
            Accelerator::Tcg if usable > 1 => usable + 1,
            _ => usable,
        }
    }

    /// Words for the kernel of a host with `usable` processors, and for its PID 1.
    pub(super) fn kernel_words(self, usable: u32) -> &'static str {
        match self {
            Accelerator::Kvm => "",
            // The translator's time-stamp counter is steady, but does not say so; its emulation of the mitigations
            // costs time and protects nothing. Its processors, each a thread, may use a map of the devices that another one is
            // just replacing, and QEMU then ends (`iotlb_to_section` in its physmem.c): so there is one until devices are in
            // their places; init starts the others.
            Accelerator::Tcg if self.processors(usable) == usable => "tsc=reliable mitigations=off maxcpus=1",
            Accelerator::Tcg => "tsc=reliable mitigations=off maxcpus=1 maru.boot_processor=kernel",
        }
    }
}
