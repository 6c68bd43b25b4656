//! A VM is saved on one host and goes on, on another, as if nothing had happened.

mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Vm, shell, vm_lab};
use lab::agent::Exec;
use lab::host::Host;

/// How often the VM changes its host: `MARU_SAVE_ROUNDS`. A hundred take a quarter of an hour.
fn rounds() -> usize {
    std::env::var("MARU_SAVE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// Bridges both cables with a TAP each.
fn set_up_network(host: &Host) {
    for module in ["tun", "bridge"] {
        host.load_module(module, "").unwrap();
    }
    for cable in 0..2 {
        let address = host.address(cable);
        shell(
            host,
            &format!(
                "brctl addbr br{cable}; ip link set br{cable} up; ip addr flush dev cable{cable}; brctl addif br{cable} cable{cable};
                 ip link set cable{cable} up; ip addr add {address}/24 dev br{cable};
                 tunctl -t t{cable} >/dev/null; brctl addif br{cable} t{cable}; ip link set t{cable} up"
            ),
        );
    }
}

/// Keeps a host's clock near this machine's, as NTP does elsewhere: clocks of emulated hosts run up to some percent apart.
fn keep_clock(host: &Host) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    if now.abs_diff(clock(host)) >= 2 {
        shell(host, &format!("date -s @{now} >/dev/null"));
    }
}

/// A host's clock, in seconds since 1970.
fn clock(host: &Host) -> u64 {
    shell(host, "date +%s").trim().parse().expect("a number")
}

/// How far the guest's clock is ahead of its host's, in seconds, by its next line of progress: between the first and the second number,
/// for the host's clock is looked at before and after the guest's, however long that takes.
fn clock_lead(vm: &mut Vm, host: &Host) -> (i64, i64) {
    let seen = vm.output.len();
    let before = clock(host) as i64;
    vm.wait_for("a look at the guest's clock", |output| progress(&output[seen..], "t").is_some());
    let guest = progress(&vm.output, "t").expect("just seen") as i64;
    (guest - clock(host) as i64, guest - before)
}

/// A number from the guest's newest line of progress.
fn progress(output: &str, field: &str) -> Option<u64> {
    let complete = &output[..output.rfind('\n')?];
    let line = complete.lines().rev().find(|line| line.contains("maru-guest: ok "))?;
    line.split(&format!(" {field}=")).nth(1)?.split([' ', ',', '.']).next()?.parse().ok()
}

#[test]
fn a_busy_vm_is_saved_and_restored_on_the_other_host_again_and_again_without_a_lost_byte() {
    // Shared as on a SAN: the VM's two disks, and one that carries the saved VM over.
    let lab = vm_lab().hosts(2).shared_disk(64).shared_disk(64).shared_disk(256).start().unwrap();
    lab.hosts().iter().for_each(set_up_network);
    let echo: Vec<_> = (0..2)
        .map(|index| {
            let address = format!("{}:7000", lab.host(index).address(index));
            let mut echo = lab.host(index).spawn(Exec::new(["maru-guest", "echo", "--listen", &address])).unwrap();
            echo.wait_for("the echo server", Duration::from_secs(20), |text| text.contains("listening")).unwrap();
            (address, echo)
        })
        .collect();
    let words = format!(
        "maru.test=load maru.disk=vda maru.disk=vdb maru.disk_mib=48 maru.mem=8 maru.ip=0,10.10.0.100/24 maru.ip=1,10.10.1.100/24 \
     maru.echo={} maru.echo={} maru.pace_us=3000",
        echo[0].0, echo[1].0
    );
    let arguments = [
        "--cpus",
        "4",
        "--memory",
        "160M",
        "--balloon",
        "--disk",
        "/dev/vda,direct,id=d0",
        "--disk",
        "/dev/vdb,direct,id=d1",
        "--net",
        "tap=t0,mac=52:54:00:00:00:0a,id=n0",
        "--net",
        "tap=t1,mac=52:54:00:00:00:0b,id=n1",
    ];
    let mut vm = Vm::start(lab.host(0), "vm0", &words, &arguments);
    vm.wait_for("the load", |output| progress(output, "net").is_some_and(|bytes| bytes > 0));
    let mut counts = (0, 0);
    let mut worst_jump = 0;
    let started = Instant::now();
    for round in 1..=rounds() {
        let (here, there) = (lab.host((round + 1) % 2), lab.host(round % 2));
        lab.hosts().iter().for_each(keep_clock);
        let lead = clock_lead(&mut vm, here);
        let mut times = vec![("begin", Instant::now())];
        vm.control(&["save", "--force", "/tmp/vm.saved"]);
        times.push(("saved", Instant::now()));
        assert!(!vm.output.contains("FAIL"), "round {round}:\n{}", vm.output);
        vm.control(&["stop"]);
        let (status, output) = vm.wait();
        assert_eq!(status, 0, "{output}");
        times.push(("stopped", Instant::now()));
        shell(
            here,
            "dd if=/tmp/vm.saved of=/dev/vdc bs=1M oflag=direct conv=sync 2>/dev/null; stat -c %s /tmp/vm.saved > /tmp/size",
        );
        let mib = shell(here, "cat /tmp/size").trim().parse::<u64>().unwrap().div_ceil(1 << 20);
        shell(there, &format!("dd if=/dev/vdc of=/tmp/vm.saved bs=1M count={mib} iflag=direct 2>/dev/null"));
        times.push(("copied", Instant::now()));

        vm = Vm::restore(there, &format!("vm{}", round % 2), "/tmp/vm.saved", &[]);
        // It goes on: both disks, both streams.
        let mut seen = None;
        vm.wait_for("progress after the restore", |output| {
            assert!(!output.contains("FAIL"), "round {round}:\n{output}");
            let now = progress(output, "disk").zip(progress(output, "net"));
            seen = now.filter(|(disk, net)| *disk > counts.0 && *net > counts.1);
            seen.is_some()
        });
        counts = seen.unwrap();
        times.push(("going on", Instant::now()));
        let lead_now = clock_lead(&mut vm, there);
        let jump = (lead_now.0 - lead.1).max(lead.0 - lead_now.1).max(0);
        // The lines of progress are up to half a second old, and the hosts' clocks up to two seconds apart.
        assert!(jump <= 5, "round {round}: the guest's clock jumped by {jump} s");
        worst_jump = worst_jump.max(jump);
        let phases: Vec<String> =
            times.windows(2).map(|pair| format!("{} {} ms", pair[1].0, (pair[1].1 - pair[0].1).as_millis())).collect();
        println!("round {round}: {} ({} blocks, {} bytes, {:?})", phases.join(", "), counts.0, counts.1, started.elapsed());
    }
    println!("the guest's clock jumped by at most {worst_jump} s");
    vm.control(&["stop"]);
    let (_, output) = vm.wait();
    assert!(!output.contains("FAIL"), "{output}");
}
