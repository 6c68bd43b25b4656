//! VMs with real guests that are made from an image: a disk of QEMU's own format, which is uploaded and shared.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::managed::{Console, json, managed_lab, start_marud, vm};
use common::shell;

/// What is at the end of the image's disk, so that a guest which reads it all has read what was converted last.
const WORDS: &str = "from the image";

/// Makes a disk in QEMU's format, with a file system and a file in it; both programs are the real ones.
fn make_image(directory: &Path) -> std::path::PathBuf {
    let content = directory.join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("words"), format!("{WORDS}\n")).unwrap();
    // More than one block of the image, and nothing that compresses to nothing.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(6 << 20)
    .collect();
    fs::write(content.join("noise"), noise).unwrap();
    let (raw, image) = (directory.join("disk.raw"), directory.join("disk.qcow2"));
    fs::File::create(&raw).unwrap().set_len(24 << 20).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&content).arg(&raw).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    assert!(mke2fs.status().expect("mke2fs, of e2fsprogs").success());
    let made = Command::new("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(&raw).arg(&image).status();
    assert!(made.expect("qemu-img, of qemu-utils").success());
    image
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn guests_that_share_an_uploaded_image_read_all_of_it_and_nothing_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let image = make_image(directory.path());
    let noise = sha256(&directory.path().join("content/noise"));
    let lab = managed_lab().memory_mib(1536).file(image.clone(), "/root/disk.qcow2").start().unwrap();
    let host = lab.host(0);
    start_marud(host, &["local=/srv", "guest=/guest"]);
    let wrong = host.exec(["maru", "image", "upload", "data", "/root/disk.qcow2", "--sha256", &noise]).unwrap();
    assert!(!wrong.success(), "another checksum: {}", wrong.text());
    shell(
        host,
        &format!(
            "maru image upload data /root/disk.qcow2 --sha256 {} --volume local --kernel guest:vmlinuz --initrd guest:initramfs \
             --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.modules=ext4 maru.test=shell'",
            sha256(&image)
        ),
    );
    for name in ["a", "b"] {
        shell(host, &format!("maru vm create {name} --image data --memory 128M; maru vm start {name}"));
    }
    let read = "mkdir /data; mount -t ext4 /dev/vda /data; cat /data/words; sha256sum /data/noise; ls /data";
    let mut a = Console::open(host, "a", &[]);
    a.wait("maru-guest: facts");
    let said = a.run(read);
    assert!(said.contains(WORDS) && said.contains(&noise), "{said}");
    a.run("echo mine > /data/mine; echo changed > /data/words; sync");
    let mut b = Console::open(host, "b", &[]);
    b.wait("maru-guest: facts");
    let said = b.run(read);
    assert!(said.contains(WORDS) && said.contains(&noise) && !said.contains("mine"), "{said}");

    // What is in use stays.
    assert!(!host.exec(["maru", "image", "delete", "data"]).unwrap().success());
    let chain = vm(host, "a")["chains"][0]["files"].as_array().unwrap().len();
    assert_eq!(chain, 2, "the VM's own file, and the image");
    // The first VM's own words are there after a restart, the image is as it was.
    shell(host, "maru vm stop a --force; maru vm stop b --force; maru vm start a");
    a.wait("maru-guest: facts");
    let said = a.run("mkdir /data; mount -t ext4 /dev/vda /data; cat /data/words /data/mine");
    assert!(said.contains("changed") && said.contains("mine"), "{said}");
    shell(
        host,
        "maru vm stop a --force; maru vm delete a --disks delete; maru vm delete b --disks delete; maru image delete data",
    );
    assert_eq!(json(host, "maru image list").as_array().unwrap().len(), 0);
}
