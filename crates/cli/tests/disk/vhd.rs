//! What `maru disk` does with VHDs, beside qemu-img.

use super::*;

/// No whole number of blocks, of cylinders, or of pages.
const SIZE: u64 = (37 << 20) + 512 * 3;

#[test]
fn qemu_understands_the_vhds_that_create_makes() {
    let room = Room::new();
    for (name, options) in [("dynamic", ""), ("fixed", "--type fixed"), ("small", "--block-size 512K")] {
        room.ok(&format!("create {name}.vhd --size 300M {options}"));
        assert!(room.qemu(&format!("info -f vpc {name}.vhd")).contains("314572800 bytes"));
        room.ok(&format!("check {name}.vhd"));
        let kind = if name == "fixed" { "VHD, fixed" } else { "VHD, dynamic" };
        assert!(room.ok(&format!("info {name}.vhd")).contains(kind));
    }
    assert!(usage(&room.path("fixed.vhd")) >= 300 << 20);
    assert!(usage(&room.path("dynamic.vhd")) < 1 << 20);
    room.ok("create child.vhd --parent dynamic.vhd");
    room.ok("check child.vhd");
    let chain: serde_json::Value = serde_json::from_str(&room.ok("info child.vhd -o json")).unwrap();
    assert_eq!((&chain[0]["type"], &chain[1]["type"]), (&"differencing".into(), &"dynamic".into()));
    let image = &chain[0]["image"];
    assert_eq!((&image["parent"]["fits"], &image["parent"]["data_id"]), (&true.into(), &chain[1]["image"]["disk_id"]));
    assert_eq!((&image["data_id"], &image["log_size"]), (&serde_json::Value::Null, &serde_json::Value::Null));
}

#[test]
fn what_a_vhd_cannot_be_is_refused_with_the_way_out() {
    let room = Room::new();
    room.ok("create a.vhd --size 10M");
    room.ok("create a.vhdx --size 10M");
    room.ok("create fixed.vhd --size 10M --type fixed");
    let before = room.names();
    let cases = [
        ("create b.vhd --size 3T", "the VHDX format"),
        ("create b.vhd --size 10M --sector-size 4096", "make a VHDX image"),
        ("create b.vhd --size 10M --type fixed --block-size 2M", "no blocks"),
        ("create b.vhd --size 10M --block-size 3M", "2 MiB (usual)"),
        ("create b.vhd --parent a.vhd --size 20M", "leave --size out"),
        ("create b.vhd --parent a.vhdx", "convert it first"),
        ("create b.vhdx --parent a.vhd", "convert it first"),
        ("convert a.vhdx b.vhd --sector-size 4096", "make a VHDX image"),
        ("compact fixed.vhd", "convert it to a dynamic one"),
        ("merge a.vhd", "no parent"),
        ("rebase a.vhd --parent fixed.vhd", "no parent"),
        ("resize a.vhd 3T", "the VHDX format"),
    ];
    for (words, expected) in cases {
        let error = room.fail(1, words);
        assert!(error.contains(expected), "{words}: {error}");
    }
    assert_eq!(room.names(), before);
    room.ok("create child.vhd --parent a.vhd");
    assert!(room.fail(1, "resize child.vhd 20M").contains("merge it into its parent"));
}

#[test]
fn disks_become_vhds_and_come_back() {
    let room = Room::new();
    room.pattern("a.raw", SIZE);
    room.ok("convert a.raw a.vhdx");
    room.qemu("convert -f raw -O qcow2 a.raw a.qcow2");
    for subformat in ["dynamic", "fixed"] {
        room.qemu(&format!("convert -f raw -O vpc -o subformat={subformat},force_size=on a.raw q-{subformat}.vhd"));
    }
    for (index, source) in ["a.raw", "a.vhdx", "a.qcow2", "q-dynamic.vhd", "q-fixed.vhd"].into_iter().enumerate() {
        for options in ["--type dynamic", "--type fixed", "--block-size 512K"] {
            let target = format!("{index}.vhd");
            room.ok(&format!("convert {source} {target} --overwrite {options}"));
            assert!(room.qemu(&format!("info -f vpc {target}")).contains(&format!("{SIZE} bytes")), "{source} {options}");
            room.qemu(&format!("compare -f raw -F vpc a.raw {target}"));
            room.ok(&format!("check {target}"));
            room.ok(&format!("compare a.raw {target}"));
        }
        room.ok(&format!("convert {index}.vhd {index}.raw"));
        assert!(fs::read(room.path(&format!("{index}.raw"))).unwrap() == fs::read(room.path("a.raw")).unwrap(), "{source}");
        room.ok(&format!("convert {index}.vhd {index}.vhdx"));
        room.qemu(&format!("compare -f raw -F vhdx a.raw {index}.vhdx"));
    }
    // What qemu-img rounds up to whole cylinders has zeros behind.
    room.qemu("convert -f raw -O vpc a.raw rounded.vhd");
    room.ok("compare a.raw rounded.vhd");
    room.ok("copy rounded.vhd copy.vhd");
    room.qemu("compare -f vpc -F vpc rounded.vhd copy.vhd");
}

#[test]
fn a_vhd_grows_and_is_cut_only_when_told() {
    let room = Room::new();
    room.pattern("a.raw", SIZE);
    for kind in ["dynamic", "fixed"] {
        fs::copy(room.path("a.raw"), room.path("b.raw")).unwrap();
        room.ok(&format!("convert a.raw {kind}.vhd --type {kind}"));
        // The larger table does not fit where the old one is.
        for (size, options) in [("700M", ""), ("10M", "--shrink"), ("20M", "")] {
            if !options.is_empty() {
                assert!(room.fail(1, &format!("resize {kind}.vhd {size}")).contains("--shrink"));
            }
            for name in ["b.raw", &format!("{kind}.vhd")] {
                room.ok(&format!("resize {name} {size} {options}"));
            }
            room.qemu(&format!("compare -f raw -F vpc b.raw {kind}.vhd"));
            room.ok(&format!("check {kind}.vhd"));
        }
    }
}

#[test]
fn a_vhd_child_is_rebased_compacted_and_merged() {
    let room = Room::new();
    room.pattern("base.raw", SIZE);
    room.ok("convert base.raw base.vhd");
    fs::copy(room.path("base.raw"), room.path("new.raw")).unwrap();
    write_raw(&room, "new.raw", 7, 4096 + 512, 8192);
    write_raw(&room, "new.raw", 0, 3 << 20, 3 << 20);
    write_raw(&room, "new.raw", 9, (13 << 20) + 512, 700);
    child_of(&room, "vhd", "new.raw");
    let map: Vec<serde_json::Value> = serde_json::from_str(&room.ok("map child.vhd -o json")).unwrap();
    assert!(map.iter().any(|it| it["depth"] == 0) && map.iter().any(|it| it["depth"] == 1));
    assert_eq!(map.iter().map(|it| it["length"].as_u64().unwrap()).sum::<u64>(), SIZE);
    assert!(room.fail(1, "rebase base.vhd --parent child.vhd").contains("ancestor"));
    room.ok("compact child.vhd");
    for command in ["check child.vhd", "compare new.raw child.vhd", "convert child.vhd whole.vhdx", "compare new.raw whole.vhdx"]
    {
        room.ok(command);
    }
    fs::create_dir(room.path("moved")).unwrap();
    fs::rename(room.path("base.vhd"), room.path("moved/base.vhd")).unwrap();
    assert!(room.fail(2, "compare new.raw child.vhd").contains("parent is not there"));
    room.ok("rebase child.vhd --parent moved/base.vhd --unsafe");
    room.ok("merge child.vhd --into moved/base.vhd --keep");
    room.ok("compare new.raw child.vhd");
    room.ok("merge child.vhd");
    assert!(!room.path("child.vhd").exists());
    room.qemu("compare -f raw -F vpc new.raw moved/base.vhd");
    room.ok("check moved/base.vhd");
}

#[test]
fn a_compacted_vhd_holds_the_same_in_a_shorter_file() {
    let room = Room::new();
    room.pattern("a.raw", SIZE);
    fs::write(room.path("full.raw"), vec![1; SIZE as usize]).unwrap();
    room.ok("convert full.raw a.vhd --block-size 512K");
    room.qemu("convert -n -f raw -O vpc a.raw a.vhd");
    let length = || fs::metadata(room.path("a.vhd")).unwrap().len();
    let before = length();
    room.ok("compact a.vhd");
    assert!(length() < before / 2, "{} of {before}", length());
    room.qemu("compare -f raw -F vpc a.raw a.vhd");
    room.ok("check a.vhd");
}

#[test]
fn a_damaged_vhd_is_reported_with_structure_and_offset_and_repaired() {
    let room = Room::new();
    room.pattern("a.raw", SIZE);
    room.ok("convert a.raw a.vhd");
    let end = fs::metadata(room.path("a.vhd")).unwrap().len() - 512;
    write_raw(&room, "a.vhd", 0xff, end, 100);
    let output = room.maru("check a.vhd");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("footer at offset {end}")) && text.contains("--repair mends it"), "{text}");
    room.ok("check a.vhd --repair");
    room.ok("check a.vhd");
    room.ok("compare a.raw a.vhd");
    // The header is there once.
    write_raw(&room, "a.vhd", 0xff, 512, 100);
    let output = room.maru("check a.vhd");
    assert!(!String::from_utf8(output.stdout).unwrap().contains("--repair mends it"));
    assert!(room.fail(2, "check a.vhd --repair").contains("header at offset 512"));
}
