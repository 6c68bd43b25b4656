//! `maru disk` beside qemu-img.

#![allow(missing_docs)]

mod room;
mod vhd;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use room::{Room, child_of, usage, write_raw};

#[test]
fn qemu_understands_what_create_makes() {
    let room = Room::new();
    for (index, options) in ["", "--type fixed", "--block-size 1M", "--block-size 256M"].iter().enumerate() {
        room.ok(&format!("create {index}.vhdx --size 300M {options}"));
        room.qemu(&format!("check -f vhdx {index}.vhdx"));
        assert!(room.qemu(&format!("info -f vhdx {index}.vhdx")).contains("314572800 bytes"));
        room.ok(&format!("check {index}.vhdx"));
    }
}

#[test]
fn create_refuses_what_exists_and_leaves_nothing_when_it_fails() {
    let room = Room::new();
    room.ok("create a.vhdx --size 1G");
    let before = fs::read(room.path("a.vhdx")).unwrap();
    assert!(room.fail(1, "create a.vhdx --size 2G").contains("it exists already"));
    assert_eq!(fs::read(room.path("a.vhdx")).unwrap(), before);
    assert!(room.fail(1, "create b.vhdx").contains("--size"));
    assert!(room.fail(1, "create b.vhdx --size 1G --block-size 3M").contains("power of two"));
    assert!(room.fail(1, "create b.vhdx --size 1G --type differencing").contains("--parent"));
    assert!(room.fail(1, "create b.qcow2 --size 1G").contains("qemu-img"));
    assert_eq!(room.names(), ["a.vhdx"]);
}

#[test]
fn disks_come_over_from_every_format_and_go_back() {
    let room = Room::new();
    room.pattern("a.raw", 100 << 20);
    room.qemu("convert -f raw -O qcow2 a.raw a.qcow2");
    room.qemu("convert -f raw -O vmdk -o subformat=monolithicFlat a.raw a.vmdk");
    for block in [1, 2, 16, 256] {
        room.qemu(&format!("convert -f raw -O vhdx -o block_size={block}M a.raw b{block}.vhdx"));
    }
    let sources = ["a.raw", "a.qcow2", "a.vmdk", "b1.vhdx", "b2.vhdx", "b16.vhdx", "b256.vhdx"];
    for (index, source) in sources.iter().enumerate() {
        for kind in ["dynamic", "fixed"] {
            let target = format!("{index}-{kind}.vhdx");
            room.ok(&format!("convert {source} {target} --type {kind} --block-size 1M"));
            room.ok(&format!("check {target}"));
            room.qemu(&format!("check -f vhdx {target}"));
            room.qemu(&format!("compare -f raw -F vhdx a.raw {target}"));
            room.ok(&format!("compare a.raw {target}"));
        }
        room.ok(&format!("convert {source} {index}.raw"));
        assert!(fs::read(room.path(&format!("{index}.raw"))).unwrap() == fs::read(room.path("a.raw")).unwrap(), "{source}");
    }
}

#[test]
fn zeros_take_no_space_in_the_new_disk() {
    let room = Room::new();
    room.pattern("a.raw", 64 << 20);
    // Written, not holes.
    fs::write(room.path("dense.raw"), fs::read(room.path("a.raw")).unwrap()).unwrap();
    room.ok("convert dense.raw b.vhdx --block-size 1M");
    room.ok("convert b.vhdx c.raw");
    assert!(usage(&room.path("dense.raw")) >= 64 << 20);
    assert!(usage(&room.path("c.raw")) < 8 << 20, "{}", usage(&room.path("c.raw")));
    room.ok("compare dense.raw c.raw");
}

#[test]
fn convert_replaces_only_when_it_is_told_to_and_nobody_uses_the_disk() {
    let room = Room::new();
    room.pattern("a.raw", 5 << 20);
    room.ok("create b.vhdx --size 1M");
    assert!(room.fail(1, "convert a.raw b.vhdx").contains("it exists already"));
    room.ok("convert a.raw b.vhdx --overwrite");
    room.ok("compare a.raw b.vhdx");
    assert!(room.fail(1, "convert a.raw c.qcow2").contains("qemu-img"));
    assert_eq!(room.names(), ["a.raw", "b.vhdx"]);
}

#[test]
fn the_first_difference_is_found_and_trailing_zeros_are_none() {
    let room = Room::new();
    room.pattern("a.raw", 30 << 20);
    room.ok("convert a.raw b.raw");
    File::options().write(true).open(room.path("b.raw")).unwrap().set_len(40 << 20).unwrap();
    room.ok("compare a.raw b.raw");
    let file = File::options().write(true).open(room.path("b.raw")).unwrap();
    file.write_all_at(b"x", 35_000_001).unwrap();
    let output = room.maru("compare a.raw b.raw");
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap().contains("35000001")), (Some(1), true));
    file.write_all_at(b"x", 20_000_000).unwrap();
    let output = room.maru("compare b.raw a.raw");
    assert!(String::from_utf8(output.stdout).unwrap().contains("20000000"));
    room.fail(2, "compare a.raw nothing.raw");
}

#[test]
fn resize_grows_and_cuts_only_when_told() {
    let room = Room::new();
    room.pattern("a.raw", 20 << 20);
    room.ok("convert a.raw b.vhdx");
    for name in ["a.raw", "b.vhdx"] {
        room.ok(&format!("resize {name} 50M"));
        assert!(room.fail(1, &format!("resize {name} 10M")).contains("--shrink"));
    }
    room.ok("compare a.raw b.vhdx");
    for name in ["a.raw", "b.vhdx"] {
        room.ok(&format!("resize {name} 10M --shrink"));
    }
    room.qemu("compare -f raw -F vhdx a.raw b.vhdx");
    room.ok("check b.vhdx");
}

#[test]
fn a_rebased_child_reads_as_before_and_merges_into_its_new_parent() {
    let room = Room::new();
    room.pattern("base.raw", 20 << 20);
    room.ok("convert base.raw base.vhdx");
    fs::copy(room.path("base.raw"), room.path("new.raw")).unwrap();
    write_raw(&room, "new.raw", 7, 4096, 8192);
    write_raw(&room, "new.raw", 0, 3 << 20, 3 << 20);
    write_raw(&room, "new.raw", 9, (13 << 20) + 512, 700);
    child_of(&room, "vhdx", "new.raw");
    let map = room.ok("map child.vhdx -o json");
    let depths: Vec<_> = serde_json::from_str::<Vec<serde_json::Value>>(&map).unwrap();
    assert!(depths.iter().any(|it| it["depth"] == 0) && depths.iter().any(|it| it["depth"] == 1));
    assert!(depths.iter().map(|it| it["length"].as_u64().unwrap()).sum::<u64>() == 20 << 20);

    assert!(room.fail(1, "rebase base.vhdx --parent child.vhdx").contains("ancestor"));
    room.ok("compact child.vhdx");
    room.ok("check child.vhdx");
    room.ok("compare new.raw child.vhdx");
    room.ok("merge child.vhdx --into base.vhdx --keep");
    room.ok("compare new.raw child.vhdx");
    room.ok("compare new.raw base.vhdx");
    room.ok("merge child.vhdx");
    assert!(!room.path("child.vhdx").exists());
    room.qemu("compare -f raw -F vhdx new.raw base.vhdx");
    room.ok("check base.vhdx");
}

#[test]
fn a_child_of_a_changed_parent_is_reported() {
    let room = Room::new();
    room.ok("create base.vhdx --size 10M");
    room.ok("create child.vhdx --parent base.vhdx");
    room.ok("check child.vhdx");
    room.ok("resize base.vhdx 11M");
    let output = room.maru("check child.vhdx");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("chain of parents"));
    assert!(room.ok("info child.vhdx").contains("changed since"));
    room.ok("rebase child.vhdx --parent base.vhdx --unsafe");
    room.ok("check child.vhdx");
}

#[test]
fn a_copy_is_the_same_file_and_keeps_its_holes() {
    let room = Room::new();
    room.pattern("a.raw", 64 << 20);
    room.ok("copy a.raw b.raw");
    assert!(fs::read(room.path("a.raw")).unwrap() == fs::read(room.path("b.raw")).unwrap());
    assert!(usage(&room.path("b.raw")) < 8 << 20);
    assert!(room.fail(1, "copy a.raw b.raw").contains("exists"));
}

#[test]
fn a_damaged_image_is_reported_with_structure_and_offset_and_repaired() {
    let room = Room::new();
    room.pattern("a.raw", 5 << 20);
    room.ok("convert a.raw a.vhdx");
    let file = File::options().write(true).open(room.path("a.vhdx")).unwrap();
    file.write_all_at(&[0xff; 100], 192 << 10).unwrap();
    let output = room.maru("check a.vhdx");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("at offset 196608"));
    room.ok("check a.vhdx --repair");
    room.ok("check a.vhdx");
    room.ok("compare a.raw a.vhdx");
    room.fail(2, "check a.raw");
}

/// We are the other process.
#[test]
fn a_disk_in_use_is_named_with_its_holder_and_only_looked_at() {
    let room = Room::new();
    room.ok("create a.vhdx --size 10M");
    let file = File::options().read(true).write(true).open(room.path("a.vhdx")).unwrap();
    lock(&file);
    let holder = format!("process {}", std::process::id());
    assert!(room.ok("info a.vhdx").contains(&holder));
    assert!(room.ok("check a.vhdx").contains(&holder));
    for command in ["check a.vhdx --repair", "resize a.vhdx 20M", "convert a.vhdx b.raw", "copy a.vhdx b.vhdx"] {
        let output = room.maru(command);
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(&holder), "{command}: {output:?}");
    }
    assert_eq!(room.names(), ["a.vhdx"]);
}

fn lock(file: &File) {
    use std::os::fd::AsRawFd;
    let lock = libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: F_OFD_SETLK reads one flock.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }, 0);
}

#[test]
fn an_interrupted_convert_leaves_the_old_state() {
    let room = Room::new();
    File::create_new(room.path("a.raw")).unwrap().set_len(8 << 30).unwrap();
    // Enough data that it is still at work when the signal comes.
    let file = File::options().write(true).open(room.path("a.raw")).unwrap();
    (0..128u64).for_each(|at| file.write_all_at(&vec![at as u8 | 1; 1 << 20], at << 26).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
    command.args(["disk", "convert", "a.raw", "b.vhdx"]).current_dir(room.0.path()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // SAFETY: no pointers; the child was not waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let mut line = String::new();
    let _ = BufReader::new(child.stderr.take().unwrap()).read_line(&mut line);
    let status = child.wait().unwrap();
    if status.success() {
        room.ok("compare a.raw b.vhdx");
    } else {
        assert_eq!(room.names(), ["a.raw"], "{line}");
    }
}

#[test]
fn a_merge_that_is_killed_again_and_again_loses_nothing_and_finishes() {
    let room = Room::new();
    room.pattern("base.raw", 40 << 20);
    room.ok("convert base.raw base.vhdx --block-size 1M");
    fs::copy(room.path("base.raw"), room.path("new.raw")).unwrap();
    for at in 0..20u64 {
        write_raw(&room, "new.raw", at as u8, (at << 21) + 4096, 600_000);
    }
    child_of(&room, "vhdx", "new.raw");
    let mut kills = 0;
    for round in 0..40 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
        command.args(["disk", "merge", "child.vhdx", "--keep"]).current_dir(room.0.path()).stderr(Stdio::null());
        let mut merge = command.spawn().unwrap();
        // Any moment will do: each round takes a later one.
        std::thread::sleep(Duration::from_micros(round * 500));
        merge.kill().unwrap();
        kills += u32::from(!merge.wait().unwrap().success());
        room.ok("compare new.raw child.vhdx");
    }
    assert!(kills > 0);
    room.ok("merge child.vhdx");
    assert!(!room.path("child.vhdx").exists());
    room.ok("compare new.raw base.vhdx");
    room.ok("check base.vhdx");
}

#[test]
fn a_compacted_disk_holds_the_same_in_a_shorter_file_even_if_it_was_killed() {
    let room = Room::new();
    room.pattern("a.raw", 100 << 20);
    // Every block is in the file; most are to hold zeros.
    fs::write(room.path("full.raw"), vec![1; 100 << 20]).unwrap();
    room.ok("convert full.raw parent.vhdx --block-size 1M");
    room.qemu("convert -n -f raw -O vhdx a.raw parent.vhdx");
    room.ok("create child.vhdx --parent parent.vhdx");
    let length = || fs::metadata(room.path("parent.vhdx")).unwrap().len();
    let before = length();
    for round in 0..20 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
        command.args(["disk", "compact", "parent.vhdx"]).current_dir(room.0.path()).stdout(Stdio::null());
        let mut compact = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 3));
        compact.kill().unwrap();
        compact.wait().unwrap();
        room.ok("compare a.raw parent.vhdx");
        room.ok("check parent.vhdx");
    }
    room.ok("compact parent.vhdx");
    assert!(length() < before / 2, "{} of {before}", length());
    room.qemu("compare -f raw -F vhdx a.raw parent.vhdx");
    room.ok("check child.vhdx");
    room.ok("compare a.raw child.vhdx");
}
