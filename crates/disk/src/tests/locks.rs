//! Two users of one disk.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

const PATH: &str = "MARU_TEST_LOCK_PATH";

/// Not a test of its own: the other process of the tests below. It holds the lock until its standard input closes.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn another_process_holds_a_disk() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let disk = Disk::open(path, OpenOptions::default()).unwrap();
    // A ring outlives its process by a moment; see `a_killed_holder_frees_the_disk`.
    let engine = Engine::new(&disk, 4).unwrap();
    println!("\nlocked");
    let _ = std::io::stdin().read_line(&mut String::new());
    drop((engine, disk));
}

fn spawn_holder(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::locks::another_process_holds_a_disk", "--ignored", "--nocapture"])
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "locked"), "the holder did not lock");
    child
}

#[test]
fn a_refused_lock_names_its_holder() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    let mut holder = spawn_holder(&path);
    for options in [OpenOptions::default(), read_only()] {
        let error = Disk::open(&path, options).unwrap_err();
        let OpenError::Locked(LockError::Held { holder: Holder::Process { pid, name }, .. }) = &error else { panic!("{error}") };
        assert_eq!(*pid, holder.id());
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name, comm.trim_end());
    }
    drop(holder.stdin.take());
    holder.wait().unwrap();
    Disk::open(&path, OpenOptions::default()).unwrap();
}

#[test]
fn a_killed_holder_frees_the_disk() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    for _ in 0..5 {
        let mut holder = spawn_holder(&path);
        holder.kill().unwrap();
        holder.wait().unwrap();
        Disk::open(&path, OpenOptions::default()).unwrap();
    }
}

#[test]
fn readers_share_and_writers_do_not() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    let reader = Disk::open(&path, read_only()).unwrap();
    let another = Disk::open(&path, read_only()).unwrap();
    assert!(matches!(Disk::open(&path, OpenOptions::default()), Err(OpenError::Locked(_))));
    drop((reader, another));
    let writer = Disk::open(&path, OpenOptions::default()).unwrap();
    assert!(matches!(Disk::open(&path, read_only()), Err(OpenError::Locked(_))));
    drop(writer);
    Disk::open(&path, read_only()).unwrap();
}

#[test]
fn a_move_hands_the_lock_over() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    let source = Disk::open(&path, OpenOptions::default()).unwrap();
    let later = OpenOptions { locking: Locking::Later, ..OpenOptions::default() };
    let target = Disk::open(&path, later).unwrap();
    assert!(target.take_lock().is_err());
    source.release_lock();
    target.take_lock().unwrap();
    assert!(source.take_lock().is_err());
    // And back, when the move failed.
    target.release_lock();
    source.take_lock().unwrap();
    source.take_lock().unwrap();
}

#[test]
fn a_disk_is_free_as_soon_as_it_is_dropped() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    for _ in 0..50 {
        let disk = Disk::open(&path, OpenOptions::default()).unwrap();
        let mut engine = Engine::new(&disk, 4).unwrap();
        engine.flush(0);
        engine.drain(|_, result| result.unwrap());
    }
}
