//! One virtual host.

use std::time::{Duration, Instant};

use lab::Lab;
use lab::agent::{Event, Exec, ExitStatus};
use lab::appliance::program;
use lab::host::{DiskFault, HostError, PowerState};

const LIMIT: Duration = Duration::from_secs(10);

/// Processor time that a process has used.
fn processor_time(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime are the 14th and 15th of all fields, in ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_host_is_ready_after_ten_seconds_of_work_and_its_kvm_runs_a_machine() {
    let start = Instant::now();
    let lab = Lab::new().binary(program("maru-guest").unwrap(), "/bin/maru-guest").start().unwrap();
    // Processor time, because the clock on the wall also counts what else this machine does.
    let work = processor_time(lab.host(0).process_id().unwrap());
    println!("one host ready after {:?}, {work:?} of work", start.elapsed());
    assert!(work < LIMIT, "{work:?}");
    let output = lab.host(0).exec(["maru-guest", "kvm-check"]).unwrap();
    assert_eq!(output.text(), "a virtual machine ran and ended with 5\n", "{}", output.error_text());
    let log = std::fs::read_to_string(lab.host(0).serial_log()).unwrap();
    assert!(log.contains("maru: ready"), "{log}");
    assert!(!log.contains("maru: cannot"), "{log}");
}

#[test]
fn programs_run_side_by_side_with_separate_streams_input_environment_and_status() {
    let lab = Lab::new().start().unwrap();
    let host = lab.host(0);
    let output = host.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap();
    assert_eq!((output.text().as_str(), output.error_text().as_str()), ("out\n", "err\n"));
    assert_eq!(output.status, ExitStatus::Code(3));

    let mut waiting =
        host.spawn(Exec::new(["sh", "-c", "read line; echo $line $VALUE $PWD"]).env("VALUE", "v").cwd("/tmp")).unwrap();
    assert!(host.exec(["true"]).unwrap().success());
    assert_eq!(waiting.next_event(Some(Instant::now())).unwrap(), None);
    waiting.write_stdin(b"hello\n").unwrap();
    assert_eq!(waiting.wait_with_output().unwrap().text(), "hello v /tmp\n");

    let killed = host.spawn(Exec::new(["sleep", "1000"])).unwrap();
    killed.kill().unwrap();
    assert_eq!(killed.wait_with_output().unwrap().status, ExitStatus::Signal(9));

    let missing = host.exec(["no-such-program"]).unwrap();
    assert!(matches!(&missing.status, ExitStatus::Failed(why) if why.contains("no-such-program")), "{missing:?}");
    host.load_module("softdog", "soft_margin=60").unwrap();
    assert!(host.load_module("no_such_module", "").is_err());
}

#[test]
fn a_program_ends_with_its_handle_and_a_stream_that_nobody_reads_stops_alone() {
    let lab = Lab::new().start().unwrap();
    let host = lab.host(0);
    let flood = host.spawn(Exec::new(["sh", "-c", "exec dd if=/dev/zero bs=64k"])).unwrap();
    let mut other = host.spawn(Exec::new(["sh", "-c", "echo up; exec sleep 1000"])).unwrap();
    assert_eq!(other.next_event(Some(Instant::now() + LIMIT)).unwrap(), Some(Event::Stdout(b"up\n".to_vec())));
    let running = || host.exec(["sh", "-c", "ps | grep -cE '[s]leep 1000|[d]d if=/dev/zero'"]).unwrap().text();
    assert_eq!(running(), "2\n");
    drop((flood, other));
    let deadline = Instant::now() + LIMIT;
    while running() != "0\n" {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn files_are_carried_both_ways_unchanged_and_replace_running_programs() {
    let lab = Lab::new().start().unwrap();
    let host = lab.host(0);
    let dir = tempfile::tempdir().unwrap();
    let (sent, back) = (dir.path().join("sent"), dir.path().join("back"));
    let mut content: Vec<u8> = (0..25_000_000u32).flat_map(u32::to_le_bytes).collect();
    content.truncate(99_999_999);
    std::fs::write(&sent, &content).unwrap();
    let start = Instant::now();
    host.push(&sent, "/tmp/file").unwrap();
    let pushed = start.elapsed();
    host.pull("/tmp/file", &back).unwrap();
    println!("100 MB pushed in {pushed:?}, pulled in {:?}", start.elapsed() - pushed);
    assert!(std::fs::read(&back).unwrap() == content);
    let busybox = lab::appliance::busybox().unwrap();
    host.push(&busybox, "/tmp/sleep").unwrap();
    let running = host.spawn(Exec::new(["/tmp/sleep", "1000"])).unwrap();
    host.push(&busybox, "/tmp/sleep").unwrap();
    drop(running);
    assert!(host.push(&busybox, "/no/such/dir").is_err());
    assert!(host.pull("/no/such/file", &back).is_err());
}

#[test]
fn power_can_be_cut_reset_frozen_and_shut_down() {
    let lab = Lab::new().disk_mib(64).start().unwrap();
    let host = lab.host(0);
    let write = "echo kept | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null; echo lost > /tmp/file";
    assert!(host.exec(["sh", "-c", write]).unwrap().success());
    let running = host.spawn(Exec::new(["sleep", "1000"])).unwrap();
    host.power_cut();
    assert_eq!(host.power_state(), PowerState::Off);
    assert!(running.wait_with_output().is_err());
    assert!(matches!(host.exec(["true"]), Err(HostError::State { .. })));
    println!("ready {:?} after power-on", host.power_on().unwrap());
    assert_eq!(host.exec(["sh", "-c", "head -c 5 /dev/vda; cat /tmp/file"]).unwrap().text(), "kept\n");

    let boot = || host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).unwrap().text();
    let before = boot();
    host.reset().unwrap();
    host.wait_ready().unwrap();
    assert_ne!(before, boot());

    let before = boot();
    // The host restarts by itself: the session ends and the next call makes a new one.
    let restarting = host.spawn(Exec::new(["sh", "-c", "maru-init reboot; sleep 1000"])).unwrap();
    assert!(restarting.wait_with_output().is_err() || boot() != before);
    host.wait_ready().unwrap();
    assert_ne!(before, boot());

    let mut ticking = host.spawn(Exec::new(["sh", "-c", "while sleep 0.05; do echo tick; done"])).unwrap();
    ticking.wait_for("a tick", LIMIT, |text| text.contains("tick")).unwrap();
    host.freeze().unwrap();
    assert_eq!(host.power_state(), PowerState::Frozen);
    while ticking.next_event(Some(Instant::now() + Duration::from_millis(300))).unwrap().is_some() {}
    host.thaw().unwrap();
    ticking.wait_for("a tick after the thaw", LIMIT, |text| text.contains("tick")).unwrap();
    host.shut_down(Duration::from_secs(30)).unwrap();
    assert_eq!(host.power_state(), PowerState::Off);
}

#[test]
fn an_address_can_be_leased() {
    let lab = Lab::new().start().unwrap();
    let host = lab.host(0);
    assert!(host.exec(["sh", "-c", "ip addr flush dev mgmt; ip link set mgmt up; ! ip route | grep default"]).unwrap().success());
    let mut lease = host.spawn(Exec::new(["maru-init", "dhcp", "mgmt"])).unwrap();
    lease.wait_for("a lease", LIMIT, |text| text.contains("mgmt has 10.0.2.15/24")).unwrap();
    assert!(host.exec(["sh", "-c", "ip route | grep 'default via 10.0.2.2'"]).unwrap().success());
}

#[test]
fn a_port_of_the_host_can_be_reached_from_here() {
    let lab = Lab::new().binary(program("maru-guest").unwrap(), "/bin/maru-guest").start().unwrap();
    let mut echo = lab.host(0).spawn(Exec::new(["maru-guest", "echo", "--listen", "0.0.0.0:7"])).unwrap();
    echo.wait_for("the echo server", LIMIT, |text| text.contains("listening")).unwrap();
    let address = lab.host(0).forward(7).unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut answer = [0; 4];
    std::io::Write::write_all(&mut stream, b"ping").unwrap();
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn a_disk_can_fail_crawl_and_heal() {
    let lab = Lab::new().disk_mib(64).start().unwrap();
    let host = lab.host(0);
    let write = || host.exec(["dd", "if=/dev/zero", "of=/dev/vda", "bs=64k", "count=16", "oflag=direct"]).unwrap();
    let read = || host.exec(["dd", "if=/dev/vda", "of=/dev/null", "bs=64k", "count=16", "iflag=direct"]).unwrap();
    assert!(write().success() && read().success());
    host.fail_disk(0, DiskFault::Writes).unwrap();
    assert!(write().error_text().contains("Input/output error"), "{:?}", write());
    assert!(read().success());
    host.fail_disk(0, DiskFault::All).unwrap();
    assert!(!read().success());
    host.heal_disk(0).unwrap();
    assert!(write().success() && read().success());
    host.fail_disk(0, DiskFault::NextFlush).unwrap();
    let flush = || host.exec(["dd", "if=/dev/zero", "of=/dev/vda", "bs=64k", "count=1", "conv=fsync"]).unwrap();
    assert!(!flush().success() && flush().success());
    host.fail_disk(0, DiskFault::NextFlush).unwrap();
    host.heal_disk(0).unwrap();
    assert!(flush().success());
    host.limit_disk(0, Some(1 << 19)).unwrap();
    let start = Instant::now();
    assert!(write().success() && write().success());
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
    host.limit_disk(0, None).unwrap();
    assert!(host.fail_disk(7, DiskFault::All).is_err());
}
