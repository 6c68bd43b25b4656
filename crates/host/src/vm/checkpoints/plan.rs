//! What is to be done next with the files of checkpoints: decided from what is stored, and nothing else.

use std::collections::BTreeSet;

use crate::records::{CheckpointRecord, DiskRecord, FileRef, LayerRecord, MergeRecord, TreeRecord, VmRecord};
use uuid::Uuid;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove a file that nothing needs.
    Remove(FileRef),
    /// Let go of a file that nothing needs.
    Drop(FileRef),
    /// Merge a file into the one below it.
    Merge(MergeRecord),
}

/// The next step, if there is one. Files in `later` are not merged now.
pub fn next(vm: &VmRecord, tree: &TreeRecord, later: &BTreeSet<String>) -> Option<Step> {
    if let Some(file) = tree.garbage.first() {
        return Some(Step::Remove(file.clone()));
    }
    if let Some(merge) = &tree.merging {
        return (!later.contains(&merge.upper.to_string())).then(|| Step::Merge(merge.clone()));
    }
    let unused = tree.layers.iter().filter(|layer| layer.frozen && !tree.is_used(&layer.file) && !is_leaf(vm, &layer.file));
    for layer in unused {
        let mut children = tree.children(&layer.file);
        match (children.next(), children.next()) {
            (None, _) => return Some(Step::Drop(layer.file.clone())),
            (Some(upper), None) if !later.contains(&upper.file.to_string()) => {
                let (disk, upper, lower) = (layer.disk.clone(), upper.file.clone(), layer.file.clone());
                return Some(Step::Merge(MergeRecord { disk, upper, lower }));
            }
            _ => {}
        }
    }
    None
}

/// Whether the VM writes this file.
pub fn is_leaf(vm: &VmRecord, file: &FileRef) -> bool {
    vm.disks.iter().any(|disk| disk.file == *file)
}

/// The disks that get a new child when the VM goes on from here.
pub fn written(vm: &VmRecord) -> impl Iterator<Item = &DiskRecord> {
    vm.disks.iter().filter(|disk| !disk.read_only)
}

/// Lets the VM go on in new children of its files. Those are frozen.
pub fn branch(vm: &mut VmRecord, tree: &mut TreeRecord, children: &[(String, FileRef)]) {
    for disk in &mut vm.disks {
        let Some((_, child)) = children.iter().find(|(id, _)| *id == disk.id) else { continue };
        let frozen = std::mem::replace(&mut disk.file, child.clone());
        match tree.layers.iter_mut().find(|layer| layer.file == frozen) {
            Some(layer) => layer.frozen = true,
            None => tree.layers.push(LayerRecord { disk: disk.id.clone(), file: frozen.clone(), parent: None, frozen: true }),
        }
        let layer = LayerRecord { disk: disk.id.clone(), file: child.clone(), parent: Some(frozen), frozen: false };
        tree.layers.push(layer);
    }
}

/// A checkpoint of the VM, which goes on in new children.
pub fn add(vm: &mut VmRecord, tree: &mut TreeRecord, checkpoint: CheckpointRecord, children: &[(String, FileRef)]) {
    branch(vm, tree, children);
    tree.current = Some(checkpoint.id);
    tree.checkpoints.push(checkpoint);
}

/// Makes the VM what it was, in new children of a checkpoint's files. What it was until now is let go of.
pub fn apply(vm: &mut VmRecord, tree: &mut TreeRecord, checkpoint: &CheckpointRecord, children: &[(String, FileRef)]) {
    // A file that was never frozen and hangs on one that was is the state that is given up.
    let given_up: Vec<FileRef> = vm.disks.iter().map(|disk| disk.file.clone()).collect();
    tree.layers.retain(|layer| {
        let gone = !layer.frozen && layer.parent.is_some() && given_up.contains(&layer.file);
        if gone {
            tree.garbage.push(layer.file.clone());
        }
        !gone
    });
    let own = vm.clone();
    *vm = VmRecord {
        id: own.id,
        name: own.name,
        power: own.power,
        created_at: own.created_at,
        started_at: own.started_at,
        last_end: own.last_end,
        host: own.host,
        owned_at: own.owned_at,
        saved: None,
        ..checkpoint.vm.clone()
    };
    branch(vm, tree, children);
    tree.current = Some(checkpoint.id);
}

/// Takes checkpoints out of the tree. Those that were made on them hang on what is left below.
pub fn delete(tree: &mut TreeRecord, ids: &[Uuid]) {
    for id in ids {
        let Some(index) = tree.checkpoints.iter().position(|it| it.id == *id) else { continue };
        let gone = tree.checkpoints.remove(index);
        tree.garbage.extend(gone.memory.map(|memory| memory.file));
        for other in tree.checkpoints.iter_mut().filter(|it| it.parent == Some(*id)) {
            other.parent = gone.parent;
        }
        if tree.current == Some(*id) {
            tree.current = gone.parent;
        }
    }
}

/// The merge is done: the lower file is what the upper one was.
pub fn merged(vm: &mut VmRecord, tree: &mut TreeRecord, merge: &MergeRecord) {
    let MergeRecord { upper, lower, .. } = merge;
    let replace = |file: &mut FileRef| {
        if file == upper {
            *file = lower.clone();
        }
    };
    let frozen = tree.layers.iter().any(|layer| layer.file == *upper && layer.frozen);
    tree.layers.retain(|layer| layer.file != *upper);
    for layer in &mut tree.layers {
        layer.parent.iter_mut().for_each(replace);
        if layer.file == *lower {
            layer.frozen = frozen;
        }
    }
    for vm in tree.checkpoints.iter_mut().map(|it| &mut it.vm).chain([vm]) {
        vm.disks.iter_mut().for_each(|disk| replace(&mut disk.file));
    }
    tree.garbage.push(upper.clone());
    tree.merging = None;
    // A file on nothing and under nothing that is frozen is a disk like any other.
    let alone = |layer: &LayerRecord| !layer.frozen && layer.parent.is_none() && tree_has_no_child(&tree.layers, &layer.file);
    let alone: Vec<FileRef> = tree.layers.iter().filter(|layer| alone(layer)).map(|layer| layer.file.clone()).collect();
    tree.layers.retain(|layer| !alone.contains(&layer.file));
}

fn tree_has_no_child(layers: &[LayerRecord], file: &FileRef) -> bool {
    !layers.iter().any(|layer| layer.parent.as_ref() == Some(file))
}
