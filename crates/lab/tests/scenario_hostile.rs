//! Guests that do whatever they can think of to their monitor. A monitor may end such a VM and say why; it never panics, hangs, or lets
//! the guest reach anything outside it.
//!
//! `MARU_HOSTILE_SECONDS` (3) is how long each guest rages, `MARU_HOSTILE_SEED` where the seeds start (1).

mod common;

use common::{Vm, make_taps, shell, vm_lab};
use lab::host::Host;

/// The guest gets memory to let the devices loose on, and the devices without drivers.
const WORDS: &str = "maru.test=hostile maru.no_modules memmap=17M$128M iomem=relaxed nokaslr";
/// Files of the host that are none of the guests' business: nobody may change them.
const CANARIES: &str = "/guest/vmlinuz /guest/initramfs /bin/maru-vmm /tmp/read-only";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Everything there is, so that there is something to attack.
const EVERYTHING: [&str; 13] = [
    "--cpus",
    "2",
    "--memory",
    "256M,hotplug=128M",
    "--disk",
    "/tmp/victim,serial=hostile-rw",
    "--disk",
    "/tmp/read-only,ro,serial=hostile-ro",
    "--net",
    "tap=t0",
    "--balloon",
    "--vsock",
    "cid=3,path=/tmp/vsock",
];

/// A hostile guest at work.
fn rage<'h>(host: &'h Host, name: &str, seed: u64, words: &str, arguments: &[&str]) -> Vm<'h> {
    let words = format!("{WORDS} maru.seed={seed} maru.seconds={} {words}", number("MARU_HOSTILE_SECONDS", 3));
    shell(host, "rm -f /tmp/vsock*; truncate -s 4M /tmp/victim");
    Vm::start(host, name, &words, &[&EVERYTHING[..], arguments].concat())
}

/// Waits for the end of a hostile VM. Either its guest found nothing and switched itself off, or its kernel crashed, with a panic or a
/// triple fault. Returns whether it found nothing.
///
/// Emulated hosts now and then lose a guest to a crash that has nothing to do with what it did: about one VM in forty on
/// busy processors with QEMU 7.2, one in some hundreds with QEMU 10, some while their kernels start. A monitor that harmed its guests
/// would lose most of them.
fn ends_well(mut vm: Vm) -> bool {
    // However long it rages, it has to say something now and then.
    loop {
        let seen = vm.output.len();
        if vm.wait_for_or_end("a sign of life", |output| output.len() > seen).is_some() {
            break;
        }
    }
    let (status, output) = vm.wait();
    for bad in ["panicked", "a bug in the monitor", "forbidden system call", "FAIL"] {
        assert!(!output.contains(bad), "{bad}:\n{output}");
    }
    match status {
        0 => assert!(output.contains("maru-guest: hostile done"), "{output}"),
        3 => assert!(output.contains("Kernel panic") && output.contains("maru-vmm: the guest reset the machine"), "{output}"),
        4 => assert!(output.contains("maru-vmm: the guest caused a triple fault"), "{output}"),
        status => panic!("exit status {status}:\n{output}"),
    }
    let of_interest = |line: &&str| {
        ["hostile", "maru-vmm:", "Kernel panic"].iter().any(|word| line.contains(word)) && !line.contains("rounds=")
    };
    println!("{}", output.lines().filter(of_interest).collect::<Vec<_>>().join("\n"));
    status == 0
}

#[test]
fn a_hostile_guest_harms_neither_its_monitor_nor_anyone_else() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    shell(
        host,
        "ip addr add 10.9.0.1/24 dev t0; dd if=/dev/urandom of=/tmp/read-only bs=1M count=4 2>/dev/null; truncate -s 16M /tmp/disk",
    );
    let checksums = || shell(host, &format!("md5sum {CANARIES}"));
    let before = checksums();
    // The network has something to say to the guest, too.
    let _noise =
        host.spawn(lab::agent::Exec::new(["sh", "-c", "while sleep 0.05; do arping -c 1 -w 1 -I t0 10.9.0.2; done"])).unwrap();
    let load = "maru.test=load maru.disk=vda maru.disk_mib=16 maru.mem=4 maru.pace_us=20000";
    let mut bystander = Vm::start(host, "bystander", load, &["--memory", "128M", "--disk", "/tmp/disk"]);
    bystander.wait_for("the bystander's load", |output| output.contains("maru-guest: ok"));
    let seed = number("MARU_HOSTILE_SEED", 1);

    let begins = |output: &str| output.contains("hostile begins");
    let mut unharmed = 0;

    // Asked, paused and resumed all the time. In the end it has given back all devices that can be.
    let ends = ["--on-reset", "exit"];
    let mut vm = rage(host, "asked", seed, "maru.then=eject", &ends);
    if vm.wait_for_or_end("the rage", begins).is_none() {
        let rounds =
            (0..).take_while(|_| ["status", "pause", "resume"].iter().all(|command| vm.try_control(&[command]).success()));
        println!("paused and resumed {} times", rounds.count());
    }
    unharmed += u32::from(ends_well(vm));

    // Reset by the guest with all of its devices at work and none in its place; it is only done when it came back.
    unharmed += u32::from(ends_well(rage(host, "reset", seed + 1, "maru.then=reset", &[])));

    // Saved in the midst of it, and restored. Without ports: in an emulated host, a restored guest's programs lose their right to
    // them, because QEMU takes a task state segment that KVM marks as busy, as processors do, for none.
    let mut vm = rage(host, "saved", seed + 2, "maru.no_ports", &ends);
    if vm.wait_for_or_end("the rage", begins).is_none() {
        vm.control(&["save", "/tmp/saved"]);
        vm.control(&["stop"]);
        assert_eq!(vm.wait().0, 0);
        shell(host, "rm -f /tmp/vsock*");
        unharmed += u32::from(ends_well(Vm::restore(host, "restored", "/tmp/saved", &[])));
    } else {
        unharmed += u32::from(ends_well(vm));
    }

    // With a virtio console, which is then what the host hears.
    unharmed += u32::from(ends_well(rage(host, "console", seed + 3, "", &[&ends[..], &["--console", "virtio"]].concat())));
    assert!(unharmed >= 2, "hostile guests do not get far");

    let seen = bystander.output.len();
    bystander.wait_for("more of the bystander's load", |output| output[seen..].matches("maru-guest: ok").count() > 2);
    assert!(!bystander.output.contains("FAIL"), "{}", bystander.output);
    assert_eq!(checksums(), before);
    let log = std::fs::read_to_string(host.serial_log()).unwrap();
    assert!(!["Oops", "BUG:", "general protection", "Call Trace"].iter().any(|bad| log.contains(bad)), "{log}");
}
