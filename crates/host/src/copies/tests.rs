//! Whose files are, without any.

use std::sync::Arc;

use cluster::records::{MoveReason, MoveRecord, PlacementRecord};
use store::{MemoryStore, Outcome, Transaction};

use super::files::Use;
use super::*;
use crate::records::{CheckpointKind, CheckpointRecord, CopiedFile, DiskRecord, LayerRecord, MemoryRecord, ParentRecord};
use crate::vm::checkpoints::tests::vm;

fn file(path: &str) -> FileRef {
    FileRef { volume: "local".into(), path: path.into() }
}

/// A VM with a disk on a base that another one shares, a disk that it only reads, and a checkpoint.
fn with_checkpoint() -> (VmRecord, TreeRecord) {
    let mut before = vm("web/root.vhdx");
    before.disks[0].parents = vec![ParentRecord { file: file("base.vhdx"), inherited: true }];
    before.disks.push(DiskRecord { id: "cd".into(), file: file("tools.iso"), read_only: true, ..before.disks[0].clone() });
    before.disks[1].parents.clear();
    let mut now = before.clone();
    now.disks[0].file = file("vms/1/root.avhdx");
    now.disks[0].parents.insert(0, ParentRecord { file: file("web/root.vhdx"), inherited: false });
    now.own_files = vec![file("web/kernel")];
    let checkpoint = CheckpointRecord {
        id: Uuid::from_u128(7),
        name: "first".into(),
        created_at: now.created_at,
        parent: None,
        kind: CheckpointKind::Standard,
        vm: before,
        memory: Some(MemoryRecord { file: file("vms/1/7.memory"), bytes: 1 }),
        pause_ms: None,
    };
    let layer = |path: &str, parent: Option<&str>, frozen| LayerRecord {
        disk: "d".into(),
        file: file(path),
        parent: parent.map(file),
        frozen,
    };
    let layers = vec![layer("web/root.vhdx", None, true), layer("vms/1/root.avhdx", Some("web/root.vhdx"), false)];
    (now, TreeRecord { checkpoints: vec![checkpoint], layers, ..TreeRecord::default() })
}

#[test]
fn all_files_of_a_vm_are_known_with_what_they_are_to_it() {
    let (vm, tree) = with_checkpoint();
    let found: Vec<(String, Use)> = files::all(&vm, &tree).into_iter().map(|(file, how)| (file.path, how)).collect();
    let expected = [
        ("base.vhdx", Use::Shares),
        ("tools.iso", Use::Reads),
        ("vmlinuz", Use::Reads),
        ("vms/1/7.memory", Use::Owns),
        ("vms/1/root.avhdx", Use::Owns),
        ("web/kernel", Use::Shares),
        ("web/root.vhdx", Use::Owns),
    ];
    assert_eq!(found, expected.map(|(path, how)| (path.to_owned(), how)));
    assert!(files::local(&vm, &tree, &["local".to_owned()].into()).is_empty(), "all hosts see that one");
}

/// A copy of all files of a VM from h1 to h2, to a volume of another name. Those that are there already are of others.
fn copy_of(vm: &VmRecord, tree: &TreeRecord, there: &[&str]) -> CopyRecord {
    let copied = |(from, how): (FileRef, Use)| CopiedFile {
        to: FileRef { volume: "fast".into(), path: from.path.clone() },
        bytes: 1,
        allocated: 1,
        mode: 0o600,
        there: there.contains(&from.path.as_str()),
        owned: !there.contains(&from.path.as_str()),
        goes: how != Use::Reads,
        from,
    };
    let files = files::all(vm, tree).into_iter().map(copied).collect();
    CopyRecord { id: Uuid::from_u128(9), vm: vm.id, from: "h1".into(), to: "h2".into(), files, phase: CopyPhase::Whole }
}

#[test]
fn a_vm_names_its_files_where_they_are_and_takes_along_what_came_with_it() {
    let (mut vm, mut tree) = with_checkpoint();
    let copy = copy_of(&vm, &tree, &["base.vhdx", "web/kernel"]);
    files::give(&copy, &mut vm, &mut tree);
    assert_eq!(vm.host.as_deref(), Some("h2"));
    assert!(files::all(&vm, &tree).keys().all(|file| file.volume == "fast"));
    // Nothing but that it was the VM's own speaks of its old kernel, and there it is another's.
    assert_eq!(files::all(&vm, &tree).len(), copy.files.len() - 1);
    assert_eq!(tree.layers[1].parent, Some(FileRef { volume: "fast".into(), path: "web/root.vhdx".into() }));
    // What was there is others', and what came with it is deleted with it.
    let parents: Vec<(&str, bool)> = vm.disks[0].parents.iter().map(|it| (it.file.path.as_str(), it.inherited)).collect();
    assert_eq!(parents, [("web/root.vhdx", false), ("base.vhdx", false)]);
    let mut own: Vec<&str> = vm.own_files.iter().map(|file| file.path.as_str()).collect();
    own.sort_unstable();
    assert_eq!(own, ["tools.iso", "vmlinuz"]);
}

/// A VM of h1 that is to go to h2, with a task that has copied its files.
fn copied() -> (State, State, VmRecord) {
    let store = Arc::new(MemoryStore::new());
    let (one, other) = (State::of_cluster(store.clone(), "h1"), State::of_cluster(store, "h2"));
    let vm = vm("web/root.vhdx");
    one.commit(&Transaction::new().create(&vm)).unwrap();
    let moving = MoveRecord { to: "h2".into(), reason: MoveReason::Drain, volume: None };
    let operation = OperationRecord::Copy(CopyOperation { to: "h2".into(), volume: None });
    let mut task = TaskRecord::new(vm.id, vm.name.clone(), operation, "(cluster)".into());
    task.state = TaskStateRecord::Running;
    let copy = copy_of(&vm, &TreeRecord::default(), &[]);
    let transaction = Transaction::new().write(&vm.id.to_string(), &moving).write(&task.id.to_string(), &task);
    one.commit(&transaction.write(&copy.id.to_string(), &copy)).unwrap();
    (one, other, vm)
}

fn whole(state: &State, vm: Uuid) -> Transaction {
    match standing(state, vm, &CopyOperation { to: "h2".into(), volume: None }).unwrap() {
        Standing::Whole(transaction) => *transaction,
        _ => panic!("it is not whole"),
    }
}

#[test]
fn files_are_given_away_or_called_off_and_never_both() {
    let (one, other, vm) = copied();
    let arriving = super::arriving(&other).unwrap();
    assert!(
        arriving.iter().all(|file| file.volume == "fast") && arriving.len() == 2 && super::arriving(&one).unwrap().is_empty()
    );
    let given = whole(&one, vm.id);
    assert!(matches!(one.commit(&given).unwrap(), Outcome::Committed(_)));
    let id = vm.id.to_string();
    let now = other.read::<VmRecord>(&id).unwrap().unwrap().record;
    assert_eq!((now.host.as_deref(), now.disks[0].file.volume.as_str()), (Some("h2"), "fast"));
    let local = other.read::<PlacementRecord>(&id).unwrap().unwrap().record.local.unwrap();
    assert_eq!((local.host.as_str(), local.volumes.contains_key("fast")), ("h2", true));
    let task = one.all::<TaskRecord>().unwrap().pop().unwrap().record;
    assert_eq!((task.state, one.unfinished_tasks(vm.id).unwrap().len()), (TaskStateRecord::Done, 0));
    // It is too late to call it off.
    let copy = one.all::<CopyRecord>().unwrap().pop().unwrap().record;
    call_off(&one, copy.id).unwrap();
    assert_eq!(one.all::<CopyRecord>().unwrap().len(), 1);
    assert!(open(&one, vm.id).unwrap().is_none() && super::arriving(&other).unwrap().is_empty());

    let (one, _, vm) = copied();
    let given = whole(&one, vm.id);
    assert_eq!(end(&one, vm.id).unwrap().len(), 1);
    assert!(matches!(one.commit(&given).unwrap(), Outcome::Conflict { .. }));
    assert!(one.all::<CopyRecord>().unwrap().is_empty());
    assert_eq!(one.read::<VmRecord>(&vm.id.to_string()).unwrap().unwrap().record.host.as_deref(), Some("h1"));
}

#[test]
fn a_vm_that_is_changed_meanwhile_is_not_given_away_as_it_was() {
    let (one, _, vm) = copied();
    let given = whole(&one, vm.id);
    one.change(vm.id, None, |vm, _| {
        vm.cpus = 2;
        None
    })
    .unwrap();
    assert!(matches!(one.commit(&given).unwrap(), Outcome::Conflict { .. }));
    assert!(matches!(one.commit(&whole(&one, vm.id)).unwrap(), Outcome::Committed(_)));
    assert_eq!(one.read::<VmRecord>(&vm.id.to_string()).unwrap().unwrap().record.cpus, 2);
}
