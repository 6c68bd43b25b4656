//! What is decided about files, without any.

use time::macros::datetime;

use super::plan::{self, Step};
use super::*;
use crate::records::{
    BootRecord, CheckpointKind, CheckpointRecord, ConsoleRecord, DiskRecord, FileRef, FormatRecord, MergeRecord, Power,
};

fn file(name: &str) -> FileRef {
    FileRef { volume: "local".into(), path: name.into() }
}

pub(crate) fn vm(leaf: &str) -> VmRecord {
    VmRecord {
        id: Uuid::from_u128(1),
        name: "web".into(),
        cpus: 1,
        max_cpus: 1,
        memory_bytes: 64 << 20,
        max_memory_bytes: None,
        balloon_bytes: 0,
        boot: BootRecord { kernel: file("vmlinuz"), initrd: None, command_line: String::new() },
        disks: vec![DiskRecord {
            id: "d".into(),
            file: file(leaf),
            format: Some(FormatRecord::Vhdx),
            read_only: false,
            direct: false,
            parents: Vec::new(),
        }],
        nets: Vec::new(),
        console: ConsoleRecord::Serial,
        balloon: false,
        guest_agent: false,
        cloud_init: None,
        auto_start: Default::default(),
        own_files: Vec::new(),
        made_by: None,
        power: Power::Off,
        created_at: datetime!(2026-11-27 08:00 UTC),
        started_at: None,
        last_end: None,
        saved: None,
        resources: Default::default(),
        host: None,
        owned_at: None,
        cpu_features: None,
    }
}

/// A VM that goes on in `child` after a checkpoint with this number.
fn checkpoint(vm: &mut VmRecord, tree: &mut TreeRecord, number: u128, child: &str) {
    let checkpoint = CheckpointRecord {
        id: Uuid::from_u128(number),
        name: format!("c{number}"),
        created_at: vm.created_at,
        parent: tree.current,
        kind: CheckpointKind::Off,
        vm: vm.clone(),
        memory: None,
        pause_ms: None,
    };
    plan::add(vm, tree, checkpoint, &[("d".into(), file(child))]);
}

fn apply(vm: &mut VmRecord, tree: &mut TreeRecord, number: u128, child: &str) {
    let checkpoint = tree.checkpoint(Uuid::from_u128(number)).unwrap().clone();
    plan::apply(vm, tree, &checkpoint, &[("d".into(), file(child))]);
}

/// Does everything that is to be done; gives the merges, upper into lower.
fn settle(vm: &mut VmRecord, tree: &mut TreeRecord) -> Vec<String> {
    let mut merges = Vec::new();
    while let Some(step) = plan::next(vm, tree, &Default::default()) {
        match step {
            Step::Remove(gone) => tree.garbage.retain(|other| *other != gone),
            Step::Drop(gone) => {
                tree.layers.retain(|layer| layer.file != gone);
                tree.garbage.push(gone);
            }
            Step::Merge(MergeRecord { disk, upper, lower }) => {
                merges.push(format!("{}>{}", upper.path, lower.path));
                plan::merged(vm, tree, &MergeRecord { disk, upper, lower });
            }
        }
    }
    merges
}

#[test]
fn a_deleted_checkpoint_is_merged_when_one_child_is_left_and_the_last_leaves_the_disk_that_it_was() {
    let (mut vm, mut tree) = (vm("base"), TreeRecord::default());
    checkpoint(&mut vm, &mut tree, 1, "a");
    checkpoint(&mut vm, &mut tree, 2, "b");
    apply(&mut vm, &mut tree, 1, "c");
    assert_eq!(tree.garbage, [file("b")], "what the VM was is given up");
    assert_eq!(settle(&mut vm, &mut tree), [""; 0]);
    assert_eq!(vm.disks[0].file, file("c"));

    // base has two children: a, which is a checkpoint's, and c, which the VM writes.
    plan::delete(&mut tree, &[Uuid::from_u128(1)]);
    assert_eq!((tree.checkpoints[0].parent, tree.current), (None, None));
    assert_eq!(settle(&mut vm, &mut tree), [""; 0]);

    plan::delete(&mut tree, &[Uuid::from_u128(2)]);
    assert_eq!(settle(&mut vm, &mut tree), ["c>base"]);
    assert_eq!((vm.disks[0].file.path.as_str(), tree.is_empty()), ("base", true), "{tree:?}");
}

#[test]
fn a_checkpoint_in_the_middle_gives_its_place_to_what_was_made_on_it() {
    let (mut vm, mut tree) = (vm("base"), TreeRecord::default());
    for (number, child) in [(1, "a"), (2, "b"), (3, "c")] {
        checkpoint(&mut vm, &mut tree, number, child);
    }
    plan::delete(&mut tree, &[Uuid::from_u128(2)]);
    assert_eq!(settle(&mut vm, &mut tree), ["b>a"]);
    let third = tree.checkpoint(Uuid::from_u128(3)).unwrap();
    assert_eq!((third.parent, &third.vm.disks[0].file), (Some(Uuid::from_u128(1)), &file("a")));
    assert!(tree.children(&file("a")).any(|layer| layer.file == file("c")));
}

#[test]
fn a_subtree_goes_as_a_whole_and_a_disk_that_was_taken_out_stays() {
    let (mut vm, mut tree) = (vm("base"), TreeRecord::default());
    checkpoint(&mut vm, &mut tree, 1, "a");
    checkpoint(&mut vm, &mut tree, 2, "b");
    checkpoint(&mut vm, &mut tree, 3, "c");
    apply(&mut vm, &mut tree, 1, "d");
    let ids = tree.subtree(Uuid::from_u128(2));
    assert_eq!(ids.len(), 2);
    plan::delete(&mut tree, &ids);
    settle(&mut vm, &mut tree);
    let layers: Vec<&str> = tree.layers.iter().map(|layer| layer.file.path.as_str()).collect();
    assert_eq!(layers, ["base", "d"]);

    // Someone takes the disk out of the VM: its newest file is not removed.
    vm.disks.clear();
    plan::delete(&mut tree, &[Uuid::from_u128(1)]);
    assert!(settle(&mut vm, &mut tree).len() <= 1);
    assert!(tree.garbage.is_empty());
}
