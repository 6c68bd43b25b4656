//! Two VMs and their host on one virtual switch.

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, Vm, shell, start_switch, switch_program, vm_lab};
use lab::LabSpec;
use lab::appliance::{QEMU, QEMU_ROMS, with_qemu};
use lab::host::Host;
use serde_json::{Value, json};

fn switch_lab() -> LabSpec {
    vm_lab().binary(switch_program(), "/bin/maru-switch")
}

/// The bytes that came back to the guest, by its last whole line.
fn progress(output: &str) -> u64 {
    let line = output.rfind('\n').and_then(|end| output[..end].lines().rev().find(|line| line.contains("maru-guest: ok")));
    let value = line.and_then(|line| line.split(" net=").nth(1)?.split(' ').next()?.parse().ok());
    value.unwrap_or(0)
}

/// Waits until a thousand words more came back on the one connection that the guest has.
fn goes_on(vm: &mut Vm<'_>, what: &str) {
    let before = progress(&vm.output);
    vm.wait_for(what, |output| progress(output) > before + 8000);
    assert!(!vm.output.contains("FAIL"), "{}", vm.output);
}

fn port_status(host: &Host, name: &str) -> Value {
    let status: Value = serde_json::from_str(&shell(host, "maru switch status -o json")).unwrap();
    status["ports"].as_array().unwrap().iter().find(|port| port["name"] == name).unwrap().clone()
}

fn set_vlan(host: &Host, port: &str, vlan: &Value) {
    shell(host, &format!("echo '{}' > /tmp/policy; maru port set {port} --policy /tmp/policy", json!({ "vlan": vlan })));
}

#[test]
fn vms_talk_as_their_vlans_allow_and_through_a_restart_of_the_switch() {
    let lab = switch_lab().start().unwrap();
    let host = lab.host(0);
    host.load_module("tun", "").expect("the module tun");
    let switch = start_switch(host);
    // A confined monitor connects to a switch that came back as the user that it has by then.
    shell(
        host,
        "for port in a b; do maru port add $port --vhost-user /run/$port.port --mode 666; done
         maru port add host --tap sw0; ip addr add 10.9.0.254/24 dev sw0; ip link set sw0 up",
    );
    let words = "maru.test=idle maru.ip=0,10.9.0.2/24 maru.listen=10.9.0.2:7";
    let mut server = Vm::start(host, "b", words, &["--memory", "128M", "--net", "vhost-user=/run/b.port"]);
    server.wait_for_facts("the server", |_| true);
    let words = "maru.test=load maru.ip=0,10.9.0.1/24 maru.echo=10.9.0.2:7 maru.mem=1 maru.pace_us=5000";
    let mut client = Vm::start(host, "a", words, &["--memory", "128M", "--net", "vhost-user=/run/a.port"]);
    goes_on(&mut client, "the VMs' first words");

    vlans_decide_who_reaches_whom(host);
    goes_on(&mut client, "words in the same VLAN again");

    // Killed in the middle of the stream, and started anew with the ports that it had.
    let begin = Instant::now();
    switch.kill().unwrap();
    // Until then its sockets are its own.
    switch.wait_within(PATIENCE).unwrap();
    let _switch = start_switch(host);
    while port_status(host, "b")["counters"]["tx-packets"] == 0 {
        assert!(begin.elapsed() < PATIENCE, "no frames after the restart: {}", port_status(host, "b"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let frames_flow = begin.elapsed();
    goes_on(&mut client, "words after the restart");
    println!(
        "killed and started anew: frames flow after {} ms, the stream has moved on after {} ms (the guest tells twice a second)",
        frames_flow.as_millis(),
        begin.elapsed().as_millis()
    );
    server.wait_for("its client", |output| output.contains(" connected"));
    assert!(server.ended().is_none());
    assert_eq!(server.output.matches(" connected").count(), 1, "the stream is the same connection: {}", server.output);
}

/// QEMU, which emulates its processor and knows nothing of us, connects to a port like our own monitor.
#[test]
fn qemu_is_a_front_end_like_our_own_monitor() {
    let lab = with_qemu(switch_lab().memory_mib(2048)).expect("QEMU").start().unwrap();
    let host = lab.host(0);
    let _switch = start_switch(host);
    shell(host, "for port in a b; do maru port add $port --vhost-user /run/$port.port --mode 666; done");
    let mut command = vec![QEMU, "-L", QEMU_ROMS, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
    command.extend(["-serial", "stdio", "-M", "q35,usb=off,smbus=off,sata=off,vmport=off,graphics=off,memory-backend=memory"]);
    command.extend([
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "128M",
        "-object",
        "memory-backend-memfd,id=memory,size=128M,share=on",
    ]);
    command.extend(["-kernel", "/guest/vmlinuz", "-initrd", "/guest/initramfs", "-append"]);
    command.push("console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle maru.ip=0,10.9.0.2/24 maru.listen=10.9.0.2:7");
    command.extend(["-chardev", "socket,id=port,path=/run/b.port", "-netdev", "vhost-user,id=net,chardev=port"]);
    command.extend(["-device", "virtio-net-pci,netdev=net,mac=52:54:00:00:00:0b"]);
    let mut server = Vm::start_with(host, "b", command.into_iter().map(String::from).collect());
    // An emulator in an emulator.
    server.patience = Duration::from_secs(600);
    server.wait_for_facts("QEMU's guest", |_| true);
    let words = "maru.test=load maru.ip=0,10.9.0.1/24 maru.echo=10.9.0.2:7 maru.mem=1 maru.pace_us=5000";
    let mut client = Vm::start(host, "a", words, &["--memory", "128M", "--net", "vhost-user=/run/a.port"]);
    goes_on(&mut client, "words between our monitor and QEMU");
    let bytes = |name: &str| port_status(host, name)["counters"]["rx-bytes"].as_u64().unwrap();
    assert!(bytes("a") > 8000 && bytes("b") > 8000, "both speak through the switch");
    assert!(server.ended().is_none() && client.ended().is_none());
}

/// Frames of the host and of a guest, with each kind of VLAN on both sides.
fn vlans_decide_who_reaches_whom(host: &Host) {
    let access = |vlan: u16| json!({ "mode": "access", "vlan": vlan });
    let private = |mode: &str, secondary: u16| json!({ "mode": mode, "primary": 100, "secondary": secondary });
    let promiscuous = || json!({ "mode": "promiscuous", "primary": 100, "secondaries": [101, 102, 103] });
    let untagged = || json!({ "mode": "untagged" });
    let table = [
        (access(10), untagged(), false),
        (access(10), access(10), true),
        (access(10), access(20), false),
        (private("isolated", 101), private("isolated", 101), false),
        (private("isolated", 101), private("community", 102), false),
        (private("isolated", 101), promiscuous(), true),
        (private("community", 102), private("community", 102), true),
        (private("community", 102), private("community", 103), false),
        (promiscuous(), private("community", 103), true),
        (promiscuous(), private("isolated", 101), true),
        (untagged(), untagged(), true),
    ];
    for (ours, theirs, expected) in table {
        set_vlan(host, "host", &ours);
        set_vlan(host, "b", &theirs);
        shell(host, "ip neigh flush dev sw0");
        // An emulated guest may take its time; who is not to answer gets less of it.
        let limit = if expected { 20 } else { 3 };
        let ping = host.exec(["ping", "-c", "1", "-W", &limit.to_string(), "10.9.0.2"]).unwrap();
        assert_eq!(ping.success(), expected, "the host in {ours}, the VM in {theirs}: {}", ping.text());
    }
}
