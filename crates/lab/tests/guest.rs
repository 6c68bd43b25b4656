//! The test guest, booted by QEMU on this machine.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lab::appliance::guest_image;

/// QEMU with a test guest; killed when dropped.
struct Guest(Child);

impl Guest {
    fn start(words: &str, arguments: &[&str]) -> Self {
        let image = guest_image().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max", "-m", "256M"]);
        command.args(["-machine", "q35", "-serial", "stdio", "-no-reboot"]).args(arguments);
        command.arg("-kernel").arg(image.kernel).arg("-initrd").arg(image.initramfs);
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off {words}")]);
        Guest(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Everything up to the line that `last` accepts, or to the end.
    fn read_until(&mut self, last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        for line in BufReader::new(self.0.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            println!("{line}");
            let done = last(&line);
            lines.push(line);
            if done {
                break;
            }
        }
        lines
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drive(path: &Path) -> String {
    format!("if=none,id=d,format=raw,file={}", path.display())
}

fn disk(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    path
}

#[test]
fn the_guest_tells_what_it_sees_and_powers_off() {
    let dir = tempfile::tempdir().unwrap();
    let drive = drive(&disk(&dir));
    let devices = [
        "-smp",
        "2",
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=d,serial=abc",
        "-device",
        "virtio-net-pci,mac=52:54:00:00:00:09",
    ];
    let mut guest = Guest::start("maru.test=poweroff maru.disk=vda", &devices);
    let lines = guest.read_until(|_| false);
    let facts = lines.iter().find_map(|line| line.split_once("maru-guest: facts ")).unwrap().1;
    let facts: serde_json::Value = serde_json::from_str(facts).unwrap();
    assert_eq!(facts["cpus"], 2);
    assert_eq!(facts["disks"][0]["serial"], "abc");
    assert_eq!(facts["disks"][0]["size_bytes"], 16 << 20);
    assert_eq!(facts["nics"][0]["mac"], "52:54:00:00:00:09");
    assert!(guest.0.wait().unwrap().success());
}

#[test]
fn the_load_runs_and_its_disk_verifies_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let drive = drive(&disk(&dir));
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut stream = echo.accept().unwrap().0;
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)
    });
    let devices = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d", "-nic", "user,model=virtio-net-pci"];
    let words = format!("maru.test=load maru.disk=vda maru.disk_mib=16 maru.ip=0,10.0.2.15/24 maru.echo=10.0.2.2:{port}");
    let mut guest = Guest::start(&words, &devices);
    let number = |line: &str, key: &str| -> u64 {
        let value = line.split(&format!(" {key}=")).nth(1).and_then(|rest| rest.split(' ').next());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let lines = guest.read_until(|line| {
        line.contains("FAIL") || (number(line, "flushed") > 200 && number(line, "net") > 500_000 && number(line, "mem") > 4096)
    });
    let last = lines.last().unwrap();
    assert!(last.contains("maru-guest: ok"), "{last}");
    let flushed = number(last, "flushed");
    drop(guest);
    let words = format!("maru.test=disk-verify maru.disk=vda maru.disk_mib=16 maru.flushed={flushed}");
    let lines = Guest::start(&words, &devices[..4]).read_until(|line| line.contains("maru-guest: done"));
    assert!(lines.iter().any(|line| line.contains("disk-verify ok")), "{lines:?}");
}
