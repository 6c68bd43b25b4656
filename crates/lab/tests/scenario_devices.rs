//! What a guest does with each device of a VM.

mod common;

use std::time::Duration;

use common::{Vm, make_taps, shell, vm_lab};
use lab::agent::Exec;

#[test]
fn an_unpacked_kernel_boots_through_its_pvh_entry() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("vmlinux");
    let packed = std::fs::read(lab::appliance::guest_image().unwrap().kernel).unwrap();
    std::fs::write(&elf, unpack(&packed)).unwrap();
    host.push(&elf, "/tmp/vmlinux").unwrap();
    let command_line = "console=ttyS0 quiet panic=-1 maru.test=poweroff";
    let arguments = [
        "--kernel",
        "/tmp/vmlinux",
        "--initrd",
        "/guest/initramfs",
        "--cmdline",
        command_line,
        "--cpus",
        "2",
        "--memory",
        "192M",
    ];
    let output = host.exec([&["maru", "vm", "run"], &arguments[..]].concat()).unwrap();
    let text = output.text() + &output.error_text();
    assert!(output.success(), "{text}");
    assert_eq!(common::facts(&text).expect(&text)["cpus"], 2);
}

/// The ELF kernel inside a Debian bzImage: LZ4 in its legacy frame, by the `lz4` program where there is one, else by hand.
fn unpack(bzimage: &[u8]) -> Vec<u8> {
    let field = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().unwrap()) as usize;
    let code = (usize::from(bzimage[0x1f1]) + 1) * 512;
    let start = code + field(0x248);
    let payload = &bzimage[start..start + field(0x24c)];
    assert_eq!(payload[..4], [0x02, 0x21, 0x4c, 0x18], "not LZ4: the kernel is packed in another way");
    let mut out = Vec::new();
    // The last four bytes are the unpacked size.
    let mut rest = &payload[4..payload.len() - 4];
    while !rest.is_empty() {
        let size = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        unpack_block(&rest[4..4 + size], &mut out);
        rest = &rest[4 + size..];
    }
    out
}

/// One LZ4 block (the format is a page long): literals, then a match further back, until the input ends.
fn unpack_block(block: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    let extend = |at: &mut usize, start: usize| {
        let mut length = start;
        if start == 15 {
            loop {
                let more = block[*at];
                *at += 1;
                length += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        length
    };
    while at < block.len() {
        let token = block[at];
        at += 1;
        let literals = extend(&mut at, usize::from(token >> 4));
        out.extend_from_slice(&block[at..at + literals]);
        at += literals;
        if at == block.len() {
            break;
        }
        let offset = usize::from(block[at]) | (usize::from(block[at + 1]) << 8);
        at += 2;
        let length = extend(&mut at, usize::from(token & 15)) + 4;
        let from = out.len() - offset;
        for index in from..from + length {
            out.push(out[index]);
        }
    }
}

#[test]
fn console_balloon_and_huge_pages_work() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    shell(host, "echo 80 > /proc/sys/vm/nr_hugepages; grep HugePages_Total /proc/meminfo");
    let command_line = "console=ttyS0 console=hvc0 quiet panic=-1 maru.test=idle";
    let mut vm = Vm::start_raw(
        host,
        "vm",
        &[
            "--kernel",
            "/guest/vmlinuz",
            "--initrd",
            "/guest/initramfs",
            "--cmdline",
            command_line,
            "--console",
            "virtio",
            "--memory",
            "128M,hugepages",
            "--balloon",
        ],
    );
    vm.wait_for_facts("the guest", |_| true);
    // The guest may take pages back when it is short of memory, so its total does not shrink; what the balloon holds is what counts.
    let balloon_reaches = |vm: &mut Vm, what: &str, fits: fn(u64) -> bool| {
        let deadline = std::time::Instant::now() + common::PATIENCE;
        while !fits(vm.status()["balloon"].as_u64().unwrap()) {
            assert!(std::time::Instant::now() < deadline, "the balloon did not {what}: {}", vm.status());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    vm.control(&["set-balloon", "32M"]);
    balloon_reaches(&mut vm, "fill", |bytes| bytes >= 32 << 20);
    vm.control(&["set-balloon", "0"]);
    balloon_reaches(&mut vm, "empty", |bytes| bytes == 0);
    let free: u64 = shell(host, "awk '/HugePages_Free/ { print $2 }' /proc/meminfo").trim().parse().unwrap();
    assert!(free < 80 - 30, "{free} huge pages are free: guest memory is not on them");
}

#[test]
fn a_nic_on_a_tap_reaches_its_host_and_the_monitor_counts() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    shell(host, "ip addr add 10.9.0.1/24 dev t0");
    let mut echo = host.spawn(Exec::new(["maru-guest", "echo", "--listen", "10.9.0.1:7"])).unwrap();
    echo.wait_for("the echo server", Duration::from_secs(20), |text| text.contains("listening")).unwrap();
    let words = "maru.test=load maru.ip=0,10.9.0.2/24 maru.echo=10.9.0.1:7 maru.mem=1";
    let mut vm = Vm::start(host, "vm", words, &["--memory", "128M", "--net", "tap=t0,id=n0"]);
    vm.wait_for("traffic", |output| output.contains("maru-guest: ok"));
    vm.control(&["set-link", "n0", "down"]);
    vm.control(&["set-link", "n0", "up"]);
    let counters = vm.status()["devices"].as_array().unwrap().iter().find(|d| d["id"] == "n0").unwrap()["counters"].clone();
    assert!(counters["tx-packets"].as_u64().unwrap() > 0 && counters["rx-bytes"].as_u64().unwrap() > 0, "{counters}");
    let before = vm.output.matches("maru-guest: ok").count();
    vm.wait_for("traffic after the link came back", |output| output.matches("maru-guest: ok").count() > before + 3);
    // Not the guest's own power-off: Linux 6.1 breaks its queues on the way down and may spin on one with traffic.
    vm.control(&["stop"]);
    let (status, output) = vm.wait();
    assert!(status == 0 && !output.contains("FAIL"), "{output}");
}

#[test]
fn a_full_volume_pauses_the_vm_and_space_lets_it_go_on() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    shell(
        host,
        "mkdir /small; mount -t tmpfs -o size=24M none /small; truncate -s 64M /small/disk; dd if=/dev/zero of=/small/filler bs=1M count=8 2>/dev/null",
    );
    let words = "maru.test=load maru.disk=vda maru.disk_mib=64 maru.mem=1 maru.pace_us=100";
    let mut vm = Vm::start(host, "vm", words, &["--memory", "128M", "--disk", "/small/disk,id=d0"]);
    vm.wait_for("the load", |output| output.contains("maru-guest: ok"));
    let paused = |vm: &mut Vm| vm.status()["state"] == "paused";
    let deadline = std::time::Instant::now() + common::PATIENCE;
    while !paused(&mut vm) {
        assert!(std::time::Instant::now() < deadline, "the volume did not fill up: {}", vm.status());
        std::thread::sleep(Duration::from_millis(200));
    }
    shell(host, "rm /small/filler; mount -o remount,size=96M /small");
    let before = vm.output.matches("maru-guest: ok").count();
    vm.control(&["resume"]);
    vm.wait_for("the load to go on", |output| output.matches("maru-guest: ok").count() > before + 3);
    assert!(!vm.output.contains("FAIL"), "{}", vm.output);
}

#[test]
fn the_dirty_log_knows_what_the_guest_changed() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    let words = "maru.test=load maru.mem=8 maru.pace_us=100";
    let mut vm = Vm::start(host, "vm", words, &["--memory", "128M"]);
    vm.wait_for("the load", |output| output.contains("maru-guest: ok"));
    // 8 MiB are rewritten all the time.
    let text = vm.control(&["dirty-rate", "--for-ms", "3000"]);
    let pages: u64 = text.split(' ').next().unwrap().parse().expect(&text);
    assert!((1024..16_384).contains(&pages), "{pages} pages");
}

#[test]
fn the_socket_device_carries_a_stream_and_the_entropy_device_is_in_use() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    shell(host, "mkdir -m 777 /run/vsock");
    let mut echo = host.spawn(Exec::new(["maru-guest", "unix-echo", "/run/vsock/socket_5000"])).unwrap();
    echo.wait_for("the echo server", Duration::from_secs(20), |text| text.contains("listening")).unwrap();
    let words = "maru.test=poweroff maru.vsock=5000";
    let vm = Vm::start(host, "vm", words, &["--memory", "128M", "--vsock", "cid=3,path=/run/vsock/socket"]);
    let (status, output) = vm.wait();
    assert!(status == 0 && output.contains("maru-guest: vsock ok 1048576"), "{output}");
    let facts = common::facts(&output).unwrap();
    assert!(facts["rng"].as_str().unwrap().starts_with("virtio_rng"), "{facts}");
}

#[test]
fn a_crashing_guest_is_noticed() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    // Without panic=-1 the guest stays where it crashed.
    let command_line = "console=ttyS0 quiet maru.test=panic";
    let arguments = ["--kernel", "/guest/vmlinuz", "--initrd", "/guest/initramfs", "--cmdline", command_line, "--memory", "128M"];
    let mut vm = Vm::start_raw(host, "vm", &arguments);
    let deadline = std::time::Instant::now() + common::PATIENCE;
    // The socket is there as soon as the monitor has started, long before the guest can crash.
    let mut events = loop {
        let mut process = host.spawn(Exec::new(["maru", "vm", "control", "--socket", "/run/vm.control", "events"])).unwrap();
        match process.wait_for("the crash", common::PATIENCE, |text| text.contains("panicked")) {
            Ok(text) => break text,
            Err(error) => {
                let end = vm.ended();
                assert!(end.is_none(), "the VM ended ({end:?}):\n{}", vm.output);
                assert!(std::time::Instant::now() < deadline, "{error}");
            }
        }
    };
    events.truncate(200);
    assert!(events.contains("the guest's system panicked"), "{events}");
    vm.control(&["stop"]);
    assert_eq!(vm.wait().0, 0);
}
