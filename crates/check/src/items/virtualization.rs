//! Hardware virtualization and KVM.

use std::collections::BTreeMap;

use super::Cpu;
use crate::probe::{Answers, KVM_CLOCK_REALTIME, KvmDevice};
use crate::report::{Group, Item, Status};
use crate::root::Root;
use crate::trial::{KvmOutcome, KvmTrial, SLOW_RATIO};

/// Capabilities without which our monitor does not start a VM.
const NEEDED: [&str; 17] = [
    "IRQCHIP",
    "USER_MEMORY",
    "SET_TSS_ADDR",
    "EXT_CPUID",
    "IRQ_ROUTING",
    "IRQFD",
    "IOEVENTFD",
    "SIGNAL_MSI",
    "IMMEDIATE_EXIT",
    "MP_STATE",
    "VCPU_EVENTS",
    "DEBUGREGS",
    "XSAVE",
    "XCRS",
    "ADJUST_CLOCK",
    "GET_TSC_KHZ",
    "SYNC_MMU",
];
/// The only version of the KVM API that there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

const NO_VM: &str = "VMs do not run on this machine itself";

/// What keeps KVM from working here, and the way out.
pub(crate) struct Obstacle {
    pub(crate) why: String,
    pub(crate) fix: Option<String>,
}

fn item(id: &'static str, title: &'static str, status: Status, found: impl Into<String>) -> Item {
    Item::new(Group::Virtualization, id, title, status, found.into())
}

/// Where the facts about this machine's KVM stand together.
struct Machine<'a> {
    root: &'a Root,
    cpu: &'a Cpu,
    answers: &'a Answers,
    /// KVM comes from `kvm_pvm`, which needs no hardware virtualization and runs unprepared kernels in an emulator.
    pvm: bool,
}

pub(super) fn items(root: &Root, cpu: &Cpu, answers: &Answers) -> (Vec<Item>, Option<Obstacle>) {
    let pvm = root.exists("/sys/module/kvm_pvm") && !cpu.virtualizes();
    let machine = Machine { root, cpu, answers, pvm };
    let mut items = vec![machine.hardware(), machine.nested_paging(), machine.device()];
    if let KvmDevice::Open { api_version, capabilities } = &answers.kvm {
        items.push(api(*api_version, capabilities));
        items.push(machine.trial());
        items.push(speed(&answers.trial));
        items.push(dirty_tracking(capabilities));
        items.push(clock(capabilities, &answers.trial));
        items.push(limits(capabilities));
        items.push(machine.nested());
    }
    let obstacle = (!answers.trial.works()).then(|| machine.obstacle());
    (items, obstacle)
}

impl Machine<'_> {
    /// How hardware virtualization is switched on here.
    fn switch_on(&self) -> String {
        if self.cpu.is_guest() {
            "this machine is itself a VM: turn on nested virtualization for it in its hypervisor or cloud, or take bare metal"
                .into()
        } else {
            let name = if self.cpu.is_intel() { "Intel VT-x (VMX)" } else { "AMD-V (SVM)" };
            format!("turn on {name} in the firmware setup (BIOS)")
        }
    }

    fn module(&self) -> &'static str {
        if self.cpu.has("vmx") || self.cpu.is_intel() { "kvm_intel" } else { "kvm_amd" }
    }

    fn hardware(&self) -> Item {
        let title = "Hardware virtualization";
        let id = "cpu.virtualization";
        if self.cpu.has("svm") {
            return item(id, title, Status::Ok, "AMD-V");
        }
        if self.cpu.has("vmx") {
            return item(id, title, Status::Ok, "Intel VT-x");
        }
        let found =
            if self.cpu.is_guest() { "no svm or vmx CPU flag; this machine is itself a VM" } else { "no svm or vmx CPU flag" };
        item(id, title, Status::Missing, found).cost(NO_VM).fix(self.switch_on())
    }

    fn nested_paging(&self) -> Item {
        let (id, title) = ("cpu.nested_paging", "Nested paging");
        let (name, flag, parameter) = if self.module() == "kvm_intel" {
            ("EPT", self.cpu.has_vmx("ept"), "/sys/module/kvm_intel/parameters/ept")
        } else {
            ("NPT", self.cpu.has("npt"), "/sys/module/kvm_amd/parameters/npt")
        };
        if !self.cpu.virtualizes() {
            return item(id, title, Status::Info, "no hardware virtualization");
        }
        let module = self.module();
        let parameter = self.root.switch(parameter);
        // The module's parameter reads as off, too, when the processor lacks it.
        let found = match (flag, parameter) {
            (true, Some(false)) => format!("{name} present, but switched off in {module}"),
            (true, _) => return item(id, title, Status::Ok, name),
            (false, Some(true)) => return item(id, title, Status::Ok, format!("{name}, by {module}")),
            (false, _) => format!("no {name}"),
        };
        let fix = if flag {
            format!("load {module} with {}=1 (/etc/modprobe.d)", name.to_lowercase())
        } else if self.cpu.is_guest() {
            "have the outer hypervisor pass nested paging on".into()
        } else {
            "a processor with nested paging (Intel since 2008, AMD since 2007)".into()
        };
        item(id, title, Status::Missing, found)
            .cost("each change of a guest's page tables leaves the guest: memory-heavy VMs run many times slower")
            .fix(fix)
    }

    fn device(&self) -> Item {
        let (id, title) = ("kvm.device", "/dev/kvm");
        match &self.answers.kvm {
            KvmDevice::Open { .. } => {
                let module = ["kvm_amd", "kvm_intel", "kvm_pvm"]
                    .into_iter()
                    .find(|name| self.root.exists(&format!("/sys/module/{name}")))
                    .map_or(String::new(), |name| format!(" ({name})"));
                item(id, title, Status::Ok, format!("open to this user{module}"))
            }
            KvmDevice::Absent => {
                let item = item(id, title, Status::Missing, "there is none").cost(NO_VM);
                if self.cpu.virtualizes() { item.fix(self.load_module()) } else { item }
            }
            KvmDevice::Denied => item(id, title, Status::Missing, "this user may not open it").cost(NO_VM).fix(PERMIT),
            KvmDevice::Unusable(why) => {
                item(id, title, Status::Missing, format!("cannot be used: {why}")).cost(NO_VM).fix(self.load_module())
            }
        }
    }

    fn load_module(&self) -> String {
        format!("`modprobe {}`; if that fails, `dmesg | grep -i kvm` says why (most often: {})", self.module(), self.switch_on())
    }

    fn trial(&self) -> Item {
        let (id, title) = ("kvm.trial", "KVM runs a kernel");
        let trial = &self.answers.trial;
        let item = |status, found: String| item(id, title, status, found);
        match trial.outcome {
            KvmOutcome::Works => item(Status::Ok, format!("{} kernel-mode checks right", trial.steps.len())),
            KvmOutcome::SlowlyEmulated => item(Status::Missing, trial.reason.clone())
                .cost("VMs would run hundreds of times slower than they should")
                .fix(self.way_out()),
            KvmOutcome::Fails => item(Status::Missing, trial.reason.clone())
                .cost("a stock kernel stops with an error while it boots")
                .fix(self.way_out()),
            KvmOutcome::Unavailable => item(Status::Missing, trial.reason.clone()).cost(NO_VM).fix(self.way_out()),
        }
    }

    fn way_out(&self) -> String {
        if !self.cpu.virtualizes() {
            return "hardware virtualization, see above".into();
        }
        "`dmesg | grep -i kvm` may say why; update kernel and microcode, or the outer hypervisor".into()
    }

    fn nested(&self) -> Item {
        let (id, title) = ("kvm.nested", "VMs inside VMs");
        let module = self.module();
        match self.root.switch(&format!("/sys/module/{module}/parameters/nested")) {
            Some(true) => item(id, title, Status::Info, format!("{module} nested=1")),
            Some(false) => item(id, title, Status::Info, format!("{module} nested=0"))
                .cost("no VM on this host can be a host itself")
                .fix(format!("load {module} with nested=1 (/etc/modprobe.d)")),
            None => item(id, title, Status::Info, "not told"),
        }
    }

    /// The one reason to name first.
    fn obstacle(&self) -> Obstacle {
        let trial = &self.answers.trial;
        let (why, fix) = match &self.answers.kvm {
            _ if self.pvm => (self.pvm_reason(), None),
            KvmDevice::Denied => ("this user may not open /dev/kvm".into(), Some(PERMIT.into())),
            KvmDevice::Absent if self.cpu.virtualizes() => {
                ("the processor can, but there is no /dev/kvm".into(), Some(self.load_module()))
            }
            KvmDevice::Absent if self.cpu.is_guest() => {
                ("it is itself a VM, without nested virtualization, and has no /dev/kvm".into(), None)
            }
            KvmDevice::Absent => ("there is no /dev/kvm and the processor shows no AMD-V or VT-x".into(), Some(self.switch_on())),
            KvmDevice::Unusable(why) => (format!("/dev/kvm cannot be used: {why}"), Some(self.load_module())),
            KvmDevice::Open { .. } if !self.cpu.virtualizes() => (trial.reason.clone(), Some(self.switch_on())),
            KvmDevice::Open { .. } => (trial.reason.clone(), Some(self.way_out())),
        };
        Obstacle { why, fix }
    }

    fn pvm_reason(&self) -> String {
        let trial = &self.answers.trial;
        let mut reason = "its /dev/kvm comes from kvm_pvm, without svm or vmx: VMs can be created, but ".to_owned();
        reason += &match trial.loop_slowdown {
            Some(ratio) if ratio > SLOW_RATIO => {
                format!("their kernel code is emulated {ratio:.0} times slower than native")
            }
            _ => "their kernel code is emulated".into(),
        };
        if trial.outcome == KvmOutcome::Fails {
            reason += " and breaks off where a stock kernel would";
        }
        reason
    }
}

const PERMIT: &str = "`sudo usermod -aG kvm $USER`, then log in again";

fn api(version: i32, capabilities: &BTreeMap<&'static str, i32>) -> Item {
    let (id, title) = ("kvm.api", "KVM interface");
    if version != API_VERSION {
        return item(id, title, Status::Missing, format!("API version {version}"))
            .cost("Maru speaks version 12, which every kernel since 2007 has")
            .fix("a mainline kernel's KVM");
    }
    let lacking: Vec<&str> = NEEDED.into_iter().filter(|name| capabilities.get(name).copied().unwrap_or(0) <= 0).collect();
    if lacking.is_empty() {
        return item(id, title, Status::Ok, format!("API {version}, all {} needed capabilities", NEEDED.len()));
    }
    item(id, title, Status::Missing, format!("API {version}, without {}", lacking.join(", ")))
        .cost("maru-vmm does not start a VM without them")
        .fix("Linux 5.16 or newer")
}

fn speed(trial: &KvmTrial) -> Item {
    let time = |ns: Option<u64>| ns.map_or("?".into(), |ns| format!("{:.1} µs", ns as f64 / 1000.0));
    let found = format!(
        "port {}, device register {}, CPUID {}; a loop takes {} its native time",
        time(trial.port_exit_ns),
        time(trial.mmio_exit_ns),
        time(trial.cpuid_exit_ns),
        trial.loop_slowdown.map_or("?".into(), |ratio| if ratio < 10.0 {
            format!("{ratio:.2} ×")
        } else {
            format!("{ratio:.0} ×")
        })
    );
    item("kvm.speed", "Speed of a guest", Status::Info, found)
}

fn dirty_tracking(capabilities: &BTreeMap<&'static str, i32>) -> Item {
    let has = |name| capabilities.get(name).copied().unwrap_or(0) > 0;
    let (id, title) = ("kvm.dirty_ring", "Dirty page tracking");
    match (has("DIRTY_LOG_RING") || has("DIRTY_LOG_RING_ACQ_REL"), has("MANUAL_DIRTY_LOG_PROTECT2")) {
        (true, _) => item(id, title, Status::Ok, "dirty ring and bitmap"),
        (false, true) => item(id, title, Status::Ok, "bitmap with manual protect, no dirty ring"),
        (false, false) => item(id, title, Status::Warn, "plain bitmap")
            .cost("moves of VMs with much memory pause their vCPUs longer")
            .fix("Linux 5.11 or newer"),
    }
}

fn clock(capabilities: &BTreeMap<&'static str, i32>, trial: &KvmTrial) -> Item {
    let (id, title) = ("kvm.clock", "Guest clock over a move");
    let realtime = capabilities.get("ADJUST_CLOCK").copied().unwrap_or(0) & KVM_CLOCK_REALTIME != 0;
    let name = |has, name| if has { format!("{name}: yes") } else { format!("{name}: no") };
    let offset = trial.tsc_offset.unwrap_or(false);
    let found = format!("{}, {}", name(realtime, "KVM_CLOCK_REALTIME"), name(offset, "KVM_VCPU_TSC_OFFSET"));
    if realtime && offset {
        return item(id, title, Status::Ok, found);
    }
    item(id, title, Status::Warn, found)
        .cost("a moved guest's clock lags by the time of the pause until its NTP client corrects it")
        .fix("Linux 5.16 or newer")
}

fn limits(capabilities: &BTreeMap<&'static str, i32>) -> Item {
    let number = |name| capabilities.get(name).copied().unwrap_or(0);
    let found = format!(
        "{} vCPUs for one VM ({} recommended), {} memory slots",
        number("MAX_VCPUS"),
        number("NR_VCPUS"),
        number("NR_MEMSLOTS")
    );
    item("kvm.limits", "KVM limits", Status::Info, found)
}
