//! A disk as a block device of a virtual host.

mod common;

use std::time::{Duration, Instant};

use common::shell;
use lab::Lab;
use lab::appliance::program;
use lab::host::Host;

/// A host with two devices to attach disks to.
fn host_with_nbd() -> Lab {
    let lab = Lab::new().binary(program("maru").expect("maru"), "/bin/maru").start().unwrap();
    let host = lab.host(0);
    assert!(refused(host, "maru disk create /tmp/none.raw --size 1M; maru disk attach /tmp/none.raw").contains("modprobe nbd"));
    host.load_module("nbd", "nbds_max=2").unwrap();
    host.load_module("ext4", "").unwrap();
    shell(host, "mkdir -p /mnt/disk");
    lab
}

/// The error of a command line that must fail.
fn refused(host: &Host, script: &str) -> String {
    let output = host.exec(["sh", "-ec", script]).unwrap();
    assert!(!output.success(), "{script}\n{}", output.text());
    output.error_text()
}

/// How many blocks of its file a disk that nobody uses has, of a check that finds nothing.
fn blocks_of_sound_disk(host: &Host, path: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(&shell(host, &format!("maru disk check -o json {path}"))).unwrap();
    assert_eq!((&report["sound"], &report["in_use_by"], &report["log_in_use"]), (&true.into(), &().into(), &false.into()));
    report["allocated_blocks"].as_u64().unwrap()
}

#[test]
fn a_disk_is_mounted_and_detached_and_has_the_same_bytes_when_it_comes_back() {
    let lab = host_with_nbd();
    let host = lab.host(0);
    shell(host, "maru disk create /tmp/a.vhdx --size 64M --block-size 1M");
    assert_eq!(shell(host, "maru disk attach /tmp/a.vhdx"), "/dev/nbd0\n");
    assert!(refused(host, "maru disk attach /tmp/a.vhdx").contains("in use by process"));
    shell(
        host,
        "mke2fs /dev/nbd0 >/dev/null; mount -t ext4 -o discard /dev/nbd0 /mnt/disk; cd /mnt/disk
     for n in 1 2 3 4 5 6; do dd if=/dev/urandom of=file$n bs=1M count=4 2>/dev/null; done
     md5sum file1 file3 > sums; sync",
    );
    let check = shell(host, "maru disk check /tmp/a.vhdx");
    assert!(check.contains("in use by process") && check.contains("(maru)"), "{check}");
    assert!(refused(host, "maru disk detach /dev/nbd0").contains("unmount it"));
    shell(host, "umount /mnt/disk; maru disk detach /dev/nbd0");
    let full = blocks_of_sound_disk(host, "/tmp/a.vhdx");
    assert!(full >= 24, "{full} blocks");
    let sum = shell(host, "maru disk convert /tmp/a.vhdx /tmp/a.raw; md5sum < /tmp/a.raw; rm /tmp/a.raw");

    // Read, by a device that does not take a write.
    assert_eq!(shell(host, "maru disk attach --read-only /tmp/a.vhdx"), "/dev/nbd0\n");
    assert_eq!(shell(host, "md5sum < /dev/nbd0"), sum);
    shell(host, "mount -t ext4 -o ro /dev/nbd0 /mnt/disk; cd /mnt/disk; md5sum -c sums; cd /; umount /mnt/disk");
    refused(host, "dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 conv=fsync");
    shell(host, "maru disk detach /dev/nbd0");

    // What is trimmed takes no space any more.
    shell(
        host,
        "maru disk attach /tmp/a.vhdx; mount -t ext4 /dev/nbd0 /mnt/disk; cd /mnt/disk; md5sum -c sums; rm file2 file4 file5 file6",
    );
    shell(host, "sync; fstrim /mnt/disk; umount /mnt/disk; maru disk detach /dev/nbd0");
    let trimmed = blocks_of_sound_disk(host, "/tmp/a.vhdx");
    assert!(trimmed + 8 <= full, "{trimmed} of {full} blocks");
    assert!(refused(host, "maru disk detach /dev/nbd0").contains("nothing is attached"));
    assert!(refused(host, "maru disk detach /tmp/a.vhdx").contains("no network block device"));

    // Children and raw disks, at once; then there is no device left.
    shell(host, "maru disk create /tmp/b.vhdx --parent /tmp/a.vhdx; maru disk create /tmp/c.raw --size 8M");
    assert_eq!(shell(host, "maru disk attach /tmp/b.vhdx; maru disk attach /tmp/c.raw"), "/dev/nbd0\n/dev/nbd1\n");
    assert!(refused(host, "maru disk attach /tmp/none.raw").contains("all 2 network block devices are in use"));
    shell(host, "mount -t ext4 /dev/nbd0 /mnt/disk; cd /mnt/disk; md5sum -c sums; cd /; umount /mnt/disk");
    shell(host, "dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null; dd if=/tmp/r of=/dev/nbd1 bs=1M 2>/dev/null");
    shell(host, "maru disk detach /dev/nbd1; cmp /tmp/r /tmp/c.raw; maru disk detach /dev/nbd0");
    shell(host, "echo nobody:x:65534:65534::/:/bin/sh > /etc/passwd");
    let error = refused(host, "su nobody -c '/bin/maru disk attach --read-only /tmp/r'");
    assert!(error.contains("needs root"), "{error}");
}

#[test]
fn a_device_whose_server_was_killed_is_free_again_and_lost_nothing_that_was_flushed() {
    let lab = host_with_nbd();
    let host = lab.host(0);
    shell(host, "maru disk create /tmp/a.vhdx --size 64M --block-size 1M");
    shell(
        host,
        "maru disk attach /tmp/a.vhdx; mke2fs /dev/nbd0 >/dev/null; mount -t ext4 /dev/nbd0 /mnt/disk; cd /mnt/disk
     dd if=/dev/urandom of=kept bs=1M count=4 2>/dev/null; md5sum kept > sums; sync
     dd if=/dev/zero of=lost bs=1M count=16 2>/dev/null",
    );
    // Mounted and busy: what is not flushed is lost, the mount fails, nothing hangs.
    shell(host, "kill -9 $(cat /sys/block/nbd0/pid)");
    refused(host, "cd /mnt/disk; dd if=/dev/zero of=more bs=1M count=4 conv=fsync");
    shell(host, "umount /mnt/disk");
    let start = Instant::now();
    while !host.exec(["sh", "-c", "test ! -e /sys/block/nbd0/pid && test $(cat /sys/block/nbd0/size) = 0"]).unwrap().success() {
        assert!(start.elapsed() < Duration::from_secs(20), "the device is stuck");
    }
    let check = shell(host, "maru disk check /tmp/a.vhdx");
    assert!(check.contains("nothing is wrong"), "{check}");
    assert_eq!(shell(host, "maru disk attach /tmp/a.vhdx"), "/dev/nbd0\n");
    shell(host, "mount -t ext4 /dev/nbd0 /mnt/disk; cd /mnt/disk; md5sum -c sums; cd /; umount /mnt/disk");
    // By a signal, it goes in order.
    shell(host, "pid=$(cat /sys/block/nbd0/pid); kill $pid; while [ -e /proc/$pid ]; do usleep 10000; done");
    blocks_of_sound_disk(host, "/tmp/a.vhdx");
    // In the foreground, Ctrl-C does that.
    let script = "maru disk attach --foreground /tmp/a.vhdx > /tmp/device & until [ -s /tmp/device ]; do usleep 10000; done
    kill -INT $!; wait $!; cat /tmp/device";
    assert_eq!(shell(host, script), "/dev/nbd0\n");
}
