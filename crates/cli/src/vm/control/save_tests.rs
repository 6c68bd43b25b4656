//! Saving with a monitor that fails, succeeds, or disappears.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::vm::control::testing::{Monitor, Service, ok_with, progress, refused};

fn write_saved(service: &mut Service) {
    let (request, mut fds) = service.request();
    assert_eq!((request, fds.len()), (Request::Save, 1));
    File::from(fds.remove(0)).write_all(b"the whole VM").unwrap();
}

fn saving_monitor() -> Monitor {
    Monitor::start(|service| {
        write_saved(service);
        service.send(&progress(1, 2));
        service.send(&ok_with(&SavedReport { bytes: 12, took_ms: 5 }));
    })
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_saved_vm_appears_under_its_name_only_for_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    save(&mut saving_monitor().client(), &target, false).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"the whole VM");
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(directory.path()), ["vm.saved"]);
}

#[test]
fn a_failure_leaves_nothing_behind_and_an_older_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    let failing = || {
        Monitor::start(|service| {
            write_saved(service);
            service.send(&refused("no space left"));
        })
    };
    let error = save(&mut failing().client(), &target, false).unwrap_err();
    assert_eq!(error.to_string(), "no space left");
    assert!(names(directory.path()).is_empty());

    fs::write(&target, "older").unwrap();
    save(&mut failing().client(), &target, true).unwrap_err();
    let gone = Monitor::start(write_saved);
    assert!(save(&mut gone.client(), &target, true).unwrap_err().to_string().contains("has ended"));
    assert_eq!(names(directory.path()), ["vm.saved"]);
    assert_eq!(fs::read(&target).unwrap(), b"older");
}

#[test]
fn a_file_is_replaced_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    fs::write(&target, "older").unwrap();
    let unused = Monitor::start(|_| ());
    let error = save(&mut unused.client(), &target, false).unwrap_err();
    assert!(error.to_string().contains("--force"));
    assert_eq!(fs::read(&target).unwrap(), b"older");
    save(&mut saving_monitor().client(), &target, true).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"the whole VM");
}

#[test]
fn a_file_that_came_while_saving_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    let part = PartFile::create(&target, false).unwrap();
    fs::write(&target, "other").unwrap();
    assert!(matches!(part.publish(false), Err(ControlError::Exists(_))));
    assert_eq!(fs::read(&target).unwrap(), b"other");
    assert_eq!(names(directory.path()), ["vm.saved"]);
}

#[test]
fn two_saves_to_one_file_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    let first = PartFile::create(&target, false).unwrap();
    assert!(matches!(PartFile::create(&target, false), Err(ControlError::Busy(_))));
    first.publish(false).unwrap();
    assert_eq!(names(directory.path()), ["vm.saved"]);
}

#[test]
fn what_a_killed_save_left_behind_is_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("vm.saved");
    fs::write(directory.path().join("vm.saved.part"), "a long rest of something older").unwrap();
    save(&mut saving_monitor().client(), &target, false).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"the whole VM");
}

#[test]
fn places_that_cannot_be_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let text = |path: &Path| vmm::error_chain(&PartFile::create(path, true).err().unwrap());
    assert!(text(directory.path()).contains("not the name of a file"));
    assert!(text(Path::new("/nowhere/vm.saved")).contains("cannot create /nowhere/vm.saved.part: No such file"));
}
