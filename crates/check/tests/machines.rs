//! Made-up machines: what each of them is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use check::{Answers, Color, KvmDevice, KvmOutcome, KvmStep, KvmTrial, Options, Report, Status, Verdict};
use tempfile::TempDir;

const AMD_FLAGS: &str = "fpu svm npt x2apic constant_tsc nonstop_tsc";

/// A directory that looks like a machine's `/`, and what its kernel says.
struct Machine {
    root: TempDir,
    answers: Answers,
}

impl Machine {
    /// Linux 6.1 where everything is there, on the given processor.
    fn new(vendor: &str, flags: &str) -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap(), answers: good_answers() };
        let cpu = format!("vendor_id\t: {vendor}\nmodel name\t: Test CPU\nflags\t\t: {flags}\n\n");
        machine
            .file("proc/cpuinfo", &format!("processor\t: 0\n{cpu}processor\t: 1\n{cpu}"))
            .file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
            .file("proc/sys/kernel/osrelease", "6.1.0-56-amd64\n")
            .file("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
            .file("proc/interrupts", " 24: 1 IR-PCI-MSI-0000:00:01.0 0-edge eth0\n")
            .file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
            .file("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
            .file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
            .file("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never deny force\n")
            .file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n")
            .file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n")
            .file("sys/kernel/iommu_groups/0/type", "DMA\n")
            .file("sys/class/watchdog/watchdog0/identity", "Software Watchdog\n")
            .file("sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs", "64\n")
            .file("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "4\n")
    }

    fn amd() -> Self {
        Self::new("AuthenticAMD", AMD_FLAGS).file("sys/module/kvm_amd/parameters/nested", "1\n")
    }

    fn file(self, path: &str, content: &str) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn without(self, path: &str) -> Self {
        let path = self.root.path().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    fn kernel(mut self, change: impl FnOnce(&mut Answers)) -> Self {
        change(&mut self.answers);
        self
    }

    fn check(self) -> Report {
        check::run(&Options { root: self.root.path().to_owned(), answers: Some(self.answers.clone()) })
    }
}

fn good_answers() -> Answers {
    let names = [
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
        "GET_TSC_KHZ",
        "SYNC_MMU",
        "DIRTY_LOG_RING",
    ];
    let mut capabilities: BTreeMap<&'static str, i32> = names.into_iter().map(|name| (name, 1)).collect();
    capabilities.insert("ADJUST_CLOCK", 2 | 4 | 8);
    Answers {
        kvm: KvmDevice::Open { api_version: 12, capabilities },
        trial: trial(KvmOutcome::Works, 1.01),
        io_uring: Ok(0),
        userfaultfd: Ok(0),
        userfaultfd_user_mode: Ok(0),
        memfd: Ok(0),
        landlock: Ok(2),
        seccomp: Ok(0),
        ofd_locks: Ok(0),
    }
}

fn trial(outcome: KvmOutcome, slowdown: f64) -> KvmTrial {
    let mut trial = KvmTrial::unavailable("made up");
    trial.outcome = outcome;
    trial.steps = vec![KvmStep { title: "a loop".into(), error: None }];
    trial.loop_slowdown = Some(slowdown);
    trial.tsc_offset = Some(true);
    trial
}

fn status(report: &Report, id: &str) -> Status {
    report.item(id).unwrap_or_else(|| panic!("no item {id}")).status
}

/// What must hold for every report about any machine.
fn assert_consistent(report: &Report) {
    assert_eq!(report.verdict == Verdict::LabOnly, !report.kvm.works());
    assert_eq!(report.exit_code(), i32::from(report.verdict == Verdict::LabOnly));
    assert_eq!(report.verdict == Verdict::Ready, report.next.is_none());
    if report.verdict == Verdict::LabOnly {
        assert!(report.next.as_deref().unwrap().contains("maru lab up"));
    }
    let mut ids: Vec<&str> = report.items.iter().map(|item| item.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), report.items.len(), "an id occurs twice");
    assert!(report.items.windows(2).all(|pair| pair[0].group <= pair[1].group), "a group is shown twice");
    for item in &report.items {
        assert!(!item.found.is_empty(), "{item:?}");
        if matches!(item.status, Status::Warn | Status::Missing) {
            assert!(item.cost.is_some(), "a miss without its cost: {item:?}");
        }
        if report.verdict == Verdict::Ready {
            assert_ne!(item.status, Status::Missing, "{item:?}");
        }
    }
    for width in [60, 80, 120] {
        let text = report.render_text(Color::Never, width);
        assert!(text.lines().all(|line| line.trim_end() == line && !line.contains('\x1b')));
        let painted = report.render_text(Color::Always, width);
        assert!(painted.contains('\x1b') && painted.len() > text.len());
    }
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["items"].as_array().unwrap().len(), report.items.len());
}

#[test]
fn an_amd_server_is_ready() {
    let report = Machine::amd().check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::Ready, "{report:#?}");
    assert!(report.items.iter().all(|item| item.status != Status::Warn), "{report:#?}");
    assert_eq!(report.item("cpu.nested_paging").unwrap().found, "NPT");
    assert_eq!(report.item("devices.sriov").unwrap().found, "0000:01:00.0 (4 of 64 in use)");
    assert_eq!(report.item("memory.huge_2m").unwrap().found, "512 configured, 256 free (0.5 GiB)");
}

#[test]
fn an_intel_server_tells_ept_in_the_line_of_vmx_flags() {
    let machine = Machine::new("GenuineIntel", "vmx x2apic");
    let text = fs::read_to_string(machine.root.path().join("proc/cpuinfo")).unwrap() + "vmx flags\t: vnmi ept vpid\n";
    let report = machine.file("proc/cpuinfo", &text).check();
    assert_consistent(&report);
    assert_eq!(report.item("cpu.nested_paging").unwrap().found, "EPT");
}

#[test]
fn intel_without_nested_paging_is_degraded_and_says_what_it_costs() {
    let report = Machine::new("GenuineIntel", "vmx x2apic constant_tsc nonstop_tsc").check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::Degraded);
    assert!(report.summary.contains("Nested paging"));
    assert!(report.item("cpu.nested_paging").unwrap().cost.as_deref().unwrap().contains("page tables"));
}

#[test]
fn nested_paging_that_the_module_switched_off_is_fixed_in_the_module() {
    let report = Machine::amd().file("sys/module/kvm_amd/parameters/npt", "N\n").check();
    assert_consistent(&report);
    assert_eq!(status(&report, "cpu.nested_paging"), Status::Missing);
    assert!(report.item("cpu.nested_paging").unwrap().fix.as_deref().unwrap().contains("npt=1"));
}

#[test]
fn a_cloud_machine_with_kvm_pvm_is_for_the_lab_only_and_says_why() {
    for outcome in [KvmOutcome::Fails, KvmOutcome::SlowlyEmulated] {
        let report = Machine::new("AuthenticAMD", "fpu hypervisor x2apic")
            .file("sys/module/kvm_pvm/parameters/force", "N\n")
            .kernel(|answers| answers.trial = trial(outcome, 3000.0))
            .check();
        assert_consistent(&report);
        assert_eq!(report.verdict, Verdict::LabOnly);
        assert!(report.summary.contains("kvm_pvm") && report.summary.contains("3000 times"), "{}", report.summary);
        assert_eq!(status(&report, "kvm.trial"), Status::Missing);
        assert_eq!(status(&report, "kvm.device"), Status::Ok);
    }
}

#[test]
fn a_vm_without_kvm_is_for_the_lab_only() {
    let report = Machine::new("GenuineIntel", "fpu hypervisor")
        .kernel(|answers| {
            answers.kvm = KvmDevice::Absent;
            answers.trial = KvmTrial::unavailable("no device");
        })
        .check();
    assert_consistent(&report);
    assert!(report.summary.contains("itself a VM"), "{}", report.summary);
    assert!(report.item("kvm.trial").is_none());
}

#[test]
fn a_server_whose_firmware_hides_virtualization_is_sent_to_the_firmware() {
    let report = Machine::new("GenuineIntel", "fpu")
        .kernel(|answers| {
            answers.kvm = KvmDevice::Absent;
            answers.trial = KvmTrial::unavailable("no device");
        })
        .check();
    assert_consistent(&report);
    assert!(report.next.as_deref().unwrap().contains("VT-x") && report.next.as_deref().unwrap().contains("BIOS"));
}

#[test]
fn a_missing_module_is_named() {
    let report = Machine::amd()
        .kernel(|answers| {
            answers.kvm = KvmDevice::Absent;
            answers.trial = KvmTrial::unavailable("no device");
        })
        .check();
    assert_consistent(&report);
    assert!(report.next.as_deref().unwrap().contains("modprobe kvm_amd"));
}

#[test]
fn a_user_who_may_not_open_kvm_is_told_the_group() {
    let report = Machine::amd()
        .kernel(|answers| {
            answers.kvm = KvmDevice::Denied;
            answers.trial = KvmTrial::unavailable("denied");
        })
        .check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::LabOnly);
    assert!(report.summary.contains("may not open /dev/kvm"));
    assert!(report.next.as_deref().unwrap().contains("usermod -aG kvm"));
}

#[test]
fn a_kvm_without_a_needed_capability_is_degraded_and_names_it() {
    let report = Machine::amd()
        .kernel(|answers| {
            if let KvmDevice::Open { capabilities, .. } = &mut answers.kvm {
                capabilities.insert("IRQFD", 0);
            }
        })
        .check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::Degraded);
    assert!(report.item("kvm.api").unwrap().found.contains("IRQFD"));
}

#[test]
fn io_uring_that_a_sysctl_forbids_is_fixed_by_that_sysctl() {
    let report = Machine::amd()
        .file("proc/sys/kernel/io_uring_disabled", "2\n")
        .kernel(|answers| answers.io_uring = Err(libc::EPERM))
        .check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::Degraded);
    assert!(report.item("kernel.io_uring").unwrap().fix.as_deref().unwrap().contains("io_uring_disabled=0"));
}

#[test]
fn a_userfaultfd_for_user_mode_only_is_a_warning_not_a_miss() {
    let report = Machine::amd().kernel(|answers| answers.userfaultfd = Err(libc::EPERM)).check();
    assert_consistent(&report);
    assert_eq!(report.verdict, Verdict::Ready);
    assert_eq!(status(&report, "kernel.userfaultfd"), Status::Warn);
}

#[test]
fn an_old_kernel_and_a_clock_without_realtime_are_named() {
    let report = Machine::amd()
        .file("proc/sys/kernel/osrelease", "5.10.0-30-amd64\n")
        .kernel(|answers| answers.trial.tsc_offset = Some(false))
        .check();
    assert_consistent(&report);
    assert_eq!(status(&report, "kernel.version"), Status::Missing);
    assert_eq!(status(&report, "kvm.clock"), Status::Warn);
}

#[test]
fn controllers_that_cgroup_v1_holds_are_named() {
    let report = Machine::amd()
        .file("proc/mounts", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /unified cgroup2 rw 0 0\n")
        .file("unified/cgroup.controllers", "pids\n")
        .check();
    assert_consistent(&report);
    assert_eq!(report.item("kernel.cgroup2").unwrap().found, "/unified, without cpu, memory, io");
}

#[test]
fn a_machine_without_iommu_watchdog_or_remapping_says_so() {
    let bare = Machine::amd().without("sys/kernel/iommu_groups").without("sys/class/watchdog").check();
    assert_consistent(&bare);
    assert_eq!(status(&bare, "devices.iommu"), Status::Info);
    assert_eq!(status(&bare, "devices.watchdog"), Status::Warn);
    assert!(bare.item("devices.interrupt_remapping").is_none());
    let unmapped = Machine::amd().file("proc/interrupts", "24: 1 PCI-MSI eth0\n").check();
    assert_eq!(status(&unmapped, "devices.interrupt_remapping"), Status::Warn);
}

#[test]
fn two_numa_nodes_are_listed_with_cpus_and_memory() {
    let report = Machine::amd()
        .file("sys/devices/system/node/node0/cpulist", "0-7\n")
        .file("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1048576 kB\n")
        .file("sys/devices/system/node/node1/cpulist", "8-15\n")
        .file("sys/devices/system/node/online", "0-1\n")
        .check();
    assert_consistent(&report);
    assert_eq!(report.item("memory.numa").unwrap().found, "node0 (CPUs 0-7, 1.0 GiB), node1 (CPUs 8-15, ?)");
}

#[test]
fn an_empty_machine_is_reported_without_a_panic() {
    let root = tempfile::tempdir().unwrap();
    let mut answers = good_answers();
    answers.kvm = KvmDevice::Unusable("odd".into());
    answers.trial = KvmTrial::unavailable("odd");
    let report = check::run(&Options { root: root.path().to_owned(), answers: Some(answers) });
    assert_consistent(&report);
}

#[test]
fn this_very_machine_is_reported_without_contradiction() {
    let began = std::time::Instant::now();
    let report = check::run(&Options::default());
    assert!(began.elapsed() < check::trial::TIME_LIMIT + std::time::Duration::from_secs(5));
    assert_consistent(&report);
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualizes = flags.split_whitespace().any(|word| word == "svm" || word == "vmx");
    if !virtualizes {
        assert_ne!(report.verdict, Verdict::Ready);
        assert_eq!(status(&report, "cpu.virtualization"), Status::Missing);
    }
    if !Path::new("/dev/kvm").exists() {
        assert_eq!(report.verdict, Verdict::LabOnly);
    }
    if !virtualizes && Path::new("/sys/module/kvm_pvm").exists() && Path::new("/dev/kvm").exists() {
        assert!(report.kvm.works() || report.summary.contains("kvm_pvm"), "{}", report.summary);
    }
}
