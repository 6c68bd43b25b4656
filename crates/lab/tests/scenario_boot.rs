//! A VM's life in a virtual host: boot, what the guest sees, every way to end, and what is refused.

mod common;

use common::{Vm, make_taps, shell, vm_lab};
use lab::appliance::{Initramfs, kernel, program};

#[test]
fn a_stock_kernel_sees_what_it_was_given_and_powers_off() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0", "t1"]);
    shell(host, "truncate -s 32M /tmp/d0; truncate -s 16M /tmp/d1");
    let vm = Vm::start(
        host,
        "vm",
        "maru.test=poweroff maru.disk=vda maru.disk=vdb",
        &[
            "--cpus",
            "4",
            "--memory",
            "192M",
            "--disk",
            "/tmp/d0,serial=first",
            "--disk",
            "/tmp/d1,ro",
            "--net",
            "tap=t0,mac=52:54:00:00:00:01",
            "--net",
            "tap=t1,mac=52:54:00:00:00:02,name=storage network",
        ],
    );
    let (status, output) = vm.wait();
    assert_eq!(status, 0, "{output}");
    let facts = common::facts(&output).expect(&output);
    assert_eq!(facts["cpus"], 4);
    let mib = facts["mem_total_kib"].as_u64().unwrap() / 1024;
    assert!((140..192).contains(&mib), "{mib} MiB");
    assert_eq!(facts["disks"][0]["serial"], "first");
    assert_eq!(facts["disks"][0]["size_bytes"], 32 << 20);
    assert_eq!(facts["disks"][1]["read_only"], true);
    assert_eq!(facts["nics"][1]["mac"], "52:54:00:00:00:02");
    let named = |nic: usize| (facts["nics"][nic]["label"].as_str().unwrap(), facts["nics"][nic]["acpi_index"].as_u64().unwrap());
    assert_eq!([named(0), named(1)], [("", 0), ("storage network", 2)], "names by which udev knows cards");
}

#[test]
fn sixty_four_mib_are_enough_for_a_stock_kernel() {
    // Debian's kernel takes 45 MiB of them. What the usual test guest carries besides its init does not fit beside it, and 8 MiB for
    // the kernel's trace points do not either.
    let init = program("maru-guest").unwrap();
    let modules = ["virtio_pci", "virtio_blk"];
    let small = Initramfs::new("small").program(init, "/init").boot_modules(&modules).build(&kernel().unwrap()).unwrap();
    let lab = vm_lab().file(small, "/guest/small").start().unwrap();
    let command_line = "console=ttyS0 quiet panic=-1 mitigations=off initcall_blacklist=tracer_init_tracefs maru.test=poweroff";
    let arguments = ["--kernel", "/guest/vmlinuz", "--initrd", "/guest/small", "--cmdline", command_line, "--memory", "64M"];
    let (status, output) = Vm::start_raw(lab.host(0), "small", &arguments).wait();
    assert_eq!(status, 0, "{output}");
    assert!(common::facts(&output).expect(&output)["mem_total_kib"].as_u64().unwrap() < 64 * 1024);
    let refused = lab.host(0).exec(["maru", "vm", "run", "--kernel", "/guest/vmlinuz", "--memory", "62M"]).unwrap();
    assert!(refused.error_text().contains("at least 64M"), "{}", refused.error_text());
}

#[test]
fn every_way_to_end_has_its_exit_status() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    let small = ["--memory", "128M"];

    let (status, output) = Vm::start(host, "exit", "maru.test=reboot", &[&small[..], &["--on-reset", "exit"]].concat()).wait();
    assert_eq!(status, 3, "{output}");
    let (status, output) =
        Vm::start(host, "keyboard", "maru.test=reboot reboot=k", &[&small[..], &["--on-reset", "exit"]].concat()).wait();
    assert_eq!(status, 3, "{output}");
    // With reboot=t the kernel resets by a triple fault.
    let (status, output) = Vm::start(host, "triple", "maru.test=reboot reboot=t", &small).wait();
    assert_eq!(status, 4, "{output}");
    assert!(output.contains("triple fault"), "{output}");

    // A crash is seen even if it is said on the serial port and the console is another one.
    let virtio = ["--on-reset", "exit", "--console", "virtio"];
    let (status, output) = Vm::start(host, "panic", "maru.test=panic", &[&small[..], &virtio].concat()).wait();
    assert_eq!(status, 3, "{output}");
    assert!(output.contains("serial port printed at last") && output.contains("Kernel panic"), "{output}");

    let mut again = Vm::start(host, "again", "maru.test=reboot", &small);
    again.wait_for("a second boot", |output| output.matches("maru-guest: init").count() == 2);
    again.control(&["stop"]);
    assert_eq!(again.wait().0, 0);

    let mut idle = Vm::start(host, "idle", "maru.test=idle", &small);
    idle.wait_for("the guest", |output| output.contains("maru-guest: facts"));
    idle.control(&["power-button"]);
    let (status, output) = idle.wait();
    assert_eq!(status, 0, "{output}");
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    shell(host, "truncate -s 16M /tmp/disk; head -c 1000000 /guest/vmlinuz > /tmp/cut; mkdir /tmp/dir");
    let refuse = |arguments: &[&str], reason: &str| {
        let command = [&["maru", "vm", "run"], arguments].concat();
        let output = host.exec(command).unwrap();
        assert_eq!(output.status, lab::agent::ExitStatus::Code(1), "{arguments:?}\n{}", output.error_text());
        assert!(output.error_text().contains(reason), "{arguments:?}\n{}", output.error_text());
    };
    let kernel = ["--kernel", "/guest/vmlinuz"];
    let with = |rest: &[&'static str]| [&kernel[..], rest].concat();
    refuse(&["--kernel", "/none"], "/none");
    refuse(&["--kernel", "/tmp/cut"], "truncated");
    refuse(&["--kernel", "/bin/busybox"], "no PVH entry");
    refuse(&["--kernel", "/tmp/dir"], "not a regular file");
    refuse(&with(&["--initrd", "/none"]), "/none");
    refuse(&with(&["--disk", "/none"]), "/none");
    refuse(&with(&["--memory", "1T"]), "this host has only");
    refuse(&with(&["--memory", "256M,hugepages"]), "nr_hugepages");
    refuse(&with(&["--net", "tap=none"]), "none");

    let mut first = Vm::start(host, "first", "maru.test=idle", &["--memory", "128M", "--disk", "/tmp/disk"]);
    first.wait_for("the guest", |output| output.contains("maru-guest: facts"));
    let holder = first.status()["pid"].to_string();
    refuse(&with(&["--disk", "/tmp/disk"]), &holder);
}

#[test]
fn every_thread_of_the_monitor_is_confined() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    shell(host, "truncate -s 16M /tmp/disk");
    let arguments = [
        "--memory",
        "128M,hotplug=128M",
        "--disk",
        "/tmp/disk",
        "--net",
        "tap=t0",
        "--balloon",
        "--vsock",
        "cid=3,path=/tmp/vsock",
    ];
    let mut vm = Vm::start(host, "vm", "maru.test=idle", &arguments);
    vm.wait_for("the guest", |output| output.contains("maru-guest: facts"));
    let status = vm.status();
    assert_eq!(status["confined"], true);
    let threads = shell(host, &format!("cat /proc/{}/task/*/status", status["pid"]));
    let values = |field: &str| -> Vec<String> {
        threads.lines().filter_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_string()).collect()
    };
    assert!(values("Name:").len() >= 6, "{threads}");
    assert!(values("Seccomp:").iter().all(|mode| mode == "2"), "{threads}");
    assert!(values("NoNewPrivs:").iter().all(|bit| bit == "1"), "{threads}");
    assert!(values("Uid:").iter().all(|ids| !ids.starts_with("0\t")), "{threads}");
    assert!(values("CapEff:").iter().all(|caps| caps == "0000000000000000"), "{threads}");
}
