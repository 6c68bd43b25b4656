//! A disk that is a chain of ten children, in a virtual host: a guest boots from it, power fails, it is plugged into a VM that may
//! open no file.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{Vm, shell, vm_lab};
use lab::Lab;
use lab::appliance::busybox;
use lab::host::Host;
use serde_json::Value;

/// Children on the base.
const CHILDREN: usize = 10;

/// A host with a file system on its disk, at `/mnt`, that holds the content of a directory of this machine.
fn host_with_files(content: &Path, mib: u64) -> Lab {
    let lab = vm_lab().disk_mib(mib).prepare(&mut |_| {}).unwrap();
    make_ext4(&lab.host(0).spec().state_dir.join("disk0.raw"), content);
    lab.host(0).switch_on().unwrap();
    mount(lab.host(0));
    lab
}

fn mount(host: &Host) {
    host.wait_ready().unwrap();
    host.load_module("ext4", "").unwrap();
    shell(host, "mount -t ext4 /dev/vda /mnt");
}

/// Makes an ext4 file system in a file that has its size already.
fn make_ext4(file: &Path, content: &Path) {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).args([content, file]).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let made = mke2fs.output().expect("mke2fs, of e2fsprogs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn disk(number: usize) -> String {
    format!("/mnt/d{number}.vhdx")
}

/// Makes disk `number`, a child of the one before.
fn make_child(host: &Host, number: usize) {
    shell(host, &format!("maru disk create {} --parent {}", disk(number), disk(number - 1)));
}

/// What `maru disk info` tells of the chain, to people and to programs, has all files in their order.
fn assert_info_shows_the_chain(host: &Host, top: usize) {
    let expected: Vec<String> = (0..=top).rev().map(disk).collect();
    let text = shell(host, &format!("maru disk info {}", disk(top)));
    let places: Vec<_> = expected.iter().map(|path| text.find(path.as_str()).expect(&text)).collect();
    assert!(places.is_sorted(), "{text}");
    let json: Value = serde_json::from_str(&shell(host, &format!("maru disk info -o json {}", disk(top)))).unwrap();
    let paths: Vec<&str> = json.as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(paths, expected);
}

/// In how many of its files a disk's data is.
fn files_with_data(host: &Host, path: &str) -> usize {
    let map: Value = serde_json::from_str(&shell(host, &format!("maru disk map -o json {path}"))).unwrap();
    let files = map.as_array().unwrap().iter().filter_map(|part| part["file"].as_str());
    files.collect::<BTreeSet<_>>().len()
}

/// The first program of a root file system: checks all files that those before it have written, and writes another one.
const INIT: &str = "#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
busybox mount | busybox grep ' / '
cd /files
for word in $(busybox cat /proc/cmdline); do
    case $word in file=*) name=${word#file=} ;; esac
done
busybox md5sum -c sums || echo 'root: FAIL'
busybox dd if=/dev/urandom of=$name bs=64k count=16 2>/dev/null
busybox md5sum $name >> sums
busybox sync
echo root: $(busybox wc -l < sums) files
read -p 'root: may I end? ' line
busybox poweroff -f
";

/// A root file system whose `/init` is [`INIT`], in a raw disk.
fn make_root(file: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let at = |path: &str| tree.path().join(path);
    for directory in ["bin", "proc", "dev", "files"] {
        fs::create_dir(at(directory)).unwrap();
    }
    fs::copy(busybox().unwrap(), at("bin/busybox")).unwrap();
    fs::write(at("init"), INIT).unwrap();
    fs::write(at("files/first"), "the first file\n").unwrap();
    // Of that file, by md5sum.
    fs::write(at("files/sums"), "5ef78b85ebdfee8ae3417695909877d7  first\n").unwrap();
    for program in ["init", "bin/busybox"] {
        fs::set_permissions(at(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::File::create(file).unwrap().set_len(32 << 20).unwrap();
    make_ext4(file, tree.path());
}

/// Boots from disk `number` and has the guest write one more file; it must find all that were there.
fn boot_from(host: &Host, number: usize, files: usize) {
    let words = format!("maru.modules=ext4 maru.root=vda file=vm{number}");
    let mut vm = Vm::start(host, "root", &words, &["--memory", "128M", "--disk", &disk(number)]);
    vm.wait_for("the end of its work", |output| output.contains("may I end?"));
    let status = vm.status();
    assert_eq!((&status["confined"], &status["devices"][0]["files"][number]), (&true.into(), &disk(0).into()), "{status}");
    assert!(vm.control(&["status"]).contains(&format!("{} (+{number})", disk(number))));
    vm.type_line("");
    let (status, output) = vm.wait();
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("/dev/vda on / type ext4") && output.contains("first: OK"), "{output}");
    assert!(output.contains(&format!("root: {files} files")) && !output.contains("FAIL"), "{output}");
}

#[test]
fn a_guest_boots_from_a_root_that_is_spread_over_a_chain_of_ten() {
    let content = tempfile::tempdir().unwrap();
    make_root(&content.path().join("root.raw"));
    let lab = host_with_files(content.path(), 384);
    let host = lab.host(0);
    host.load_module("loop", "").unwrap();
    shell(host, &format!("maru disk convert /mnt/root.raw {} --block-size 1M", disk(0)));
    let mut files = 1;
    for number in 1..=CHILDREN {
        make_child(host, number);
        match number {
            // By a guest.
            2 | 5 | CHILDREN => {
                files += 1;
                boot_from(host, number, files);
            }
            // By the tools: a disk that holds something else becomes a child that holds the difference.
            3 | 8 => {
                files += 1;
                let (now, before) = (disk(number), disk(number - 1));
                shell(
                    host,
                    &format!(
                        "rm {now}; maru disk convert {before} /mnt/flat.raw
                     mkdir -p /tmp/flat; mount -o loop /mnt/flat.raw /tmp/flat; cd /tmp/flat/files
                     dd if=/dev/urandom of=tool{number} bs=64k count=16 2>/dev/null; md5sum tool{number} >> sums
                     cd /; umount /tmp/flat
                     maru disk convert /mnt/flat.raw /mnt/flat.vhdx --block-size 1M
                     maru disk create {now} --parent /mnt/flat.vhdx
                     maru disk rebase {now} --parent {before}
                     maru disk compare {now} /mnt/flat.raw
                     rm /mnt/flat.raw /mnt/flat.vhdx"
                    ),
                );
            }
            _ => {}
        }
    }
    assert_info_shows_the_chain(host, CHILDREN);
    assert_eq!(files_with_data(host, &disk(CHILDREN)), files);
    shell(
        host,
        &format!("for disk in /mnt/d*.vhdx; do maru disk check $disk; done; test $(ls /mnt/d*.vhdx | wc -l) = {}", CHILDREN + 1),
    );
}

/// What the guest has flushed.
fn flushed(output: &str) -> u64 {
    common::flushed(output).unwrap_or(0)
}

/// Has a guest write to a disk and read it back, until it has flushed this much.
fn load<'h>(host: &'h Host, disk: &str, until: u64) -> Vm<'h> {
    let words = "maru.test=load maru.disk=vda maru.disk_mib=16 maru.mem=0 maru.pace_us=0";
    let mut vm = Vm::start(host, "load", words, &["--memory", "128M", "--disk", disk]);
    vm.wait_for("flushed writes", |output| output.contains("FAIL") || flushed(output) > until);
    assert!(!vm.output.contains("FAIL"), "{}", vm.output);
    vm
}

#[test]
fn what_was_flushed_into_a_chain_outlives_the_hosts_power_and_a_running_vm_takes_the_chain_over() {
    let lab = host_with_files(tempfile::tempdir().unwrap().path(), 512);
    let host = lab.host(0);
    shell(host, &format!("maru disk create {} --size 16M --block-size 1M", disk(0)));
    let mut written = 0;
    for number in 0..=CHILDREN {
        if number > 0 {
            make_child(host, number);
        }
        if [0, 6].contains(&number) {
            let mut vm = load(host, &disk(number), written + 64);
            vm.control(&["stop"]);
            let (status, output) = vm.wait();
            assert_eq!(status, 0, "{output}");
            written = flushed(&output);
        }
    }
    let vm = load(host, &disk(CHILDREN), written + 64);
    let check = shell(host, &format!("maru disk check {}", disk(CHILDREN)));
    assert!(check.contains("(maru-vmm), which goes on") && check.contains("nothing is wrong"), "{check}");
    host.power_cut();
    let written = flushed(&vm.output);
    drop(vm);
    host.switch_on().unwrap();
    mount(host);
    assert_info_shows_the_chain(host, CHILDREN);
    assert!(files_with_data(host, &disk(CHILDREN)) >= 3);
    shell(host, "for disk in /mnt/d*.vhdx; do maru disk check $disk; done");
    let words = format!("maru.test=disk-verify maru.disk=vda maru.disk_mib=16 maru.flushed={written}");
    let (_, output) = Vm::start(host, "verify", &words, &["--memory", "128M", "--disk", &disk(CHILDREN)]).wait();
    assert!(output.contains("disk-verify ok"), "{output}");
    a_confined_vm_is_given_the_chain(host);
}

/// The monitor may open no file: all of the chain are handed to it.
fn a_confined_vm_is_given_the_chain(host: &Host) {
    let top = disk(CHILDREN);
    let expected = shell(host, &format!("maru disk convert {top} /tmp/flat.raw; md5sum < /tmp/flat.raw"));
    let expected = expected.split_whitespace().next().unwrap();
    let mut vm = Vm::start(host, "hot", "maru.test=shell", &["--memory", "128M"]);
    vm.wait_for("the shell", |output| output.contains("# "));
    vm.control(&["add-disk", &format!("{top},id=chain")]);
    let status = vm.status();
    let device = status["devices"].as_array().unwrap().iter().find(|device| device["id"] == "chain").unwrap();
    assert_eq!((&status["confined"], device["files"].as_array().unwrap().len()), (&true.into(), CHILDREN + 1));
    vm.type_line("until [ -e /dev/vda ]; do sleep 0.1; done; md5sum /dev/vda");
    vm.wait_for("what the chain holds", |output| output.contains("  /dev/vda"));
    assert!(vm.output.contains(expected), "{expected}\n{}", vm.output);
    vm.type_line("yes written | dd of=/dev/vda bs=64k seek=3 count=4 iflag=fullblock conv=fsync && echo it is $((40 + 2))");
    vm.wait_for("what was written", |output| output.contains("it is 42"));
    // Neither it nor its parents can be had by another.
    let refused = host.exec(["maru", "disk", "resize", &disk(3), "32M"]).unwrap();
    assert!(refused.error_text().contains("in use by"), "{}", refused.error_text());
    vm.control(&["stop"]);
    assert_eq!(vm.wait().0, 0);
    shell(host, &format!("maru disk convert {top} /tmp/now.raw; maru disk check {top}"));
    let lines = shell(host, "dd if=/tmp/now.raw bs=64k skip=3 count=4 2>/dev/null | grep -cx written");
    assert_eq!(lines.trim(), (4 * 65536 / "written\n".len()).to_string());
}
