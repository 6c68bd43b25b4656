//! What survives: pauses, saved states, failures of the storage.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::IoError;
use prost::Message;

use super::*;
use crate::virtio::RestoreError;

/// A device that holds what fails, with the failures it told of.
fn pausing(options: Options) -> (Machine, Arc<Mutex<Vec<IoFailure>>>) {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let noted = failures.clone();
    let machine = Machine::with(options, |config| {
        config.on_error = ErrorPolicy::Pause;
        config.listener = Some(Arc::new(move |failure| noted.lock().unwrap().push(failure)));
    });
    (machine, failures)
}

fn wait_for(failures: &Mutex<Vec<IoFailure>>, count: usize) -> Vec<IoFailure> {
    let start = Instant::now();
    while failures.lock().unwrap().len() < count {
        assert!(start.elapsed() < Duration::from_secs(20), "the listener heard nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    failures.lock().unwrap().clone()
}

fn cut_file(machine: &Machine, bytes: u64) {
    let path = machine.directory.path().join("disk.raw");
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn requests_in_flight_during_a_pause_are_answered_exactly_once() {
    let mut machine = Machine::new(Options::default());
    for round in 0..50u64 {
        for slot in 0..40 {
            let chain =
                [machine.header(slot, READ, (round + slot) % 2000), writable(DATA + slot * 512, 512), machine.status(slot)];
            machine.harness.queues[0].push(&chain);
        }
        machine.harness.queues[0].kick();
        machine.harness.pause_and_resume();
        for _ in 0..40 {
            machine.harness.wait_used(0);
        }
        assert_eq!(machine.harness.queues[0].pop_used(), None);
        for slot in 0..40 {
            let mut data = [0; 512];
            machine.harness.memory.read_slice(&mut data, GuestAddress(DATA + slot * 512)).unwrap();
            let from = (round + slot) % 2000 * 512;
            assert!(machine.status_of(slot) == OK && data.iter().zip(from..).all(|(byte, offset)| *byte == pattern(offset)));
        }
    }
}

#[test]
fn a_pause_does_not_wait_for_limits() {
    let mut machine = Machine::new(Options::default());
    // A byte in each second: the first request is free, the next ones have to wait for minutes.
    let rate = disk::limits::Rate::steady(std::num::NonZeroU64::MIN);
    let limits = disk::limits::Limits { operations: None, bandwidth: Some(rate) };
    machine.harness.device.disk().set_limits(limits);
    for slot in 0..3 {
        let chain = [machine.header(slot, READ, slot), writable(DATA + slot * 512, 512), machine.status(slot)];
        machine.harness.queues[0].push(&chain);
    }
    machine.harness.queues[0].kick();
    machine.harness.wait_used(0);
    let begin = Instant::now();
    let queues = machine.harness.device.quiesce();
    assert!(begin.elapsed() < Duration::from_secs(100), "{:?}", begin.elapsed());
    // What waited is part of the device's state, and goes on with it.
    let held = BlockState::decode(&machine.harness.device.save()[..]).unwrap().held;
    assert_eq!(held.iter().map(|held| held.heads.len()).sum::<usize>(), 2);
    machine.harness.device.disk().set_limits(disk::limits::Limits::default());
    machine.harness.activate_with(VERSION_1 | FLUSH, queues).unwrap();
    machine.harness.wait_used(0);
    machine.harness.wait_used(0);
    assert_eq!([0, 1, 2].map(|slot| machine.status_of(slot)), [OK; 3]);
}

#[test]
fn what_arrives_while_paused_is_served_without_a_kick() {
    let mut machine = Machine::new(Options::default());
    let queues = machine.harness.device.quiesce();
    let chain = [machine.header(0, READ, 1), writable(DATA, 512), machine.status(0)];
    machine.harness.queues[0].push(&chain);
    machine.harness.activate_with(VERSION_1 | FLUSH, queues).unwrap();
    machine.harness.wait_used(0);
    assert_eq!(machine.status_of(0), OK);
}

#[test]
fn a_request_that_failed_is_held_and_tried_again_on_resume() {
    let (mut machine, failures) = pausing(Options::default());
    cut_file(&machine, 4096);
    let chain = [machine.header(0, READ, 100), writable(DATA, 512), machine.status(0)];
    let head = machine.harness.queues[0].push(&chain);
    machine.harness.queues[0].kick();
    let failure = IoFailure { queue: 0, error: IoError::UnexpectedEnd, policy: ErrorPolicy::Pause };
    assert_eq!(wait_for(&failures, 1), [failure]);
    // Others go on meanwhile.
    let chain = [machine.header(1, READ, 1), writable(DATA + 512, 512), machine.status(1)];
    let other = machine.harness.queues[0].push(&chain);
    machine.harness.queues[0].kick();
    assert_eq!(machine.harness.wait_used(0).head, u32::from(other));

    // Still broken: held again. Repaired: answered.
    machine.harness.pause_and_resume();
    wait_for(&failures, 2);
    assert_eq!(machine.status_of(0), 0xEE);
    cut_file(&machine, 1 << 20);
    machine.harness.pause_and_resume();
    assert_eq!(machine.harness.wait_used(0).head, u32::from(head));
    assert_eq!(machine.status_of(0), OK);
    assert_eq!(machine.harness.device.counters().read().held, 2);
}

#[test]
fn held_requests_move_with_the_saved_state() {
    let (mut machine, failures) = pausing(Options::default());
    cut_file(&machine, 4096);
    let chain = [machine.header(0, READ, 100), writable(DATA, 512), machine.status(0)];
    let head = machine.harness.queues[0].push(&chain);
    machine.harness.queues[0].kick();
    wait_for(&failures, 1);
    let queues = machine.harness.device.quiesce();
    let state = machine.harness.device.save();
    let held = BlockState::decode(&state[..]).unwrap().held;
    assert_eq!(held, [HeldRequests { queue: 0, heads: vec![u32::from(head)] }]);
    cut_file(&machine, 1 << 20);

    // The receiving side: another device on the same disk, once the lock is given up.
    machine.harness.device.disk().release_lock();
    let disk = Disk::open(machine.directory.path().join("disk.raw"), OpenOptions::default()).unwrap();
    machine.harness.device = Block::new(BlockConfig::new(disk, "other")).unwrap();
    machine.harness.device.restore(&state).unwrap();
    machine.harness.activate_with(VERSION_1 | FLUSH, queues).unwrap();
    assert_eq!(machine.harness.wait_used(0).head, u32::from(head));
    assert_eq!(machine.status_of(0), OK);
}

#[test]
fn a_reset_forgets_held_requests() {
    let (mut machine, failures) = pausing(Options::default());
    cut_file(&machine, 4096);
    let chain = [machine.header(0, READ, 100), writable(DATA, 512), machine.status(0)];
    machine.harness.queues[0].push(&chain);
    machine.harness.queues[0].kick();
    wait_for(&failures, 1);
    machine.harness.device.quiesce();
    machine.harness.device.reset();
    assert!(BlockState::decode(&machine.harness.device.save()[..]).unwrap().held.is_empty());
}

#[test]
fn errors_are_reported_where_nobody_listens() {
    let mut machine = Machine::with(Options::default(), |config| config.on_error = ErrorPolicy::Pause);
    cut_file(&machine, 4096);
    assert_eq!(machine.request(READ, 100, &[writable(DATA, 512)]), IOERR);
    assert_eq!(machine.harness.device.counters().read().errors, 1);
}

/// Runs `test` with a directory on a file system of `kib` KiB, and a function that gives it another size. Where mounting is not
/// allowed there is no such file system to be had, and nothing is tested.
fn with_small_file_system(kib: u32, test: impl FnOnce(&std::path::Path, &dyn Fn(u32)) + Send) {
    let run = move || {
        // SAFETY: only this thread gets a mount namespace of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            eprintln!("skipped: no right to mount");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let target = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        let mount = |target: &std::ffi::CStr, flags, options: &str| {
            let options = std::ffi::CString::new(options).unwrap();
            // SAFETY: all are valid strings.
            let result =
                unsafe { libc::mount(c"none".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), flags, options.as_ptr().cast()) };
            assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
        };
        mount(c"/", libc::MS_REC | libc::MS_PRIVATE, "");
        mount(&target, 0, &format!("size={kib}k"));
        test(directory.path(), &|kib| mount(&target, libc::MS_REMOUNT, &format!("size={kib}k")));
        // SAFETY: a valid string.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

#[test]
fn a_full_file_system_holds_the_write_until_there_is_room() {
    with_small_file_system(64, |directory, resize| {
        let path = directory.join("disk.raw");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let failures = Arc::new(Mutex::new(Vec::new()));
        let noted = failures.clone();
        let mut config = BlockConfig::new(Disk::open(&path, OpenOptions::default()).unwrap(), "full");
        config.listener = Some(Arc::new(move |failure| noted.lock().unwrap().push(failure)));
        let mut harness = Harness::new(Block::new(config).unwrap());
        harness.activate(VERSION_1 | FLUSH).unwrap();
        let mut machine = Machine { directory: tempfile::tempdir().unwrap(), harness };

        let data = vec![0x5A; 256 << 10];
        machine.harness.memory.write_slice(&data, GuestAddress(DATA)).unwrap();
        let chain = [machine.header(0, WRITE, 0), readable(DATA, data.len() as u32), machine.status(0)];
        machine.harness.queues[0].push(&chain);
        machine.harness.queues[0].kick();
        assert_eq!(wait_for(&failures, 1)[0].error, IoError::NoSpace);
        resize(2048);
        machine.harness.pause_and_resume();
        machine.harness.wait_used(0);
        assert_eq!(machine.status_of(0), OK);
        assert_eq!(std::fs::read(&path).unwrap()[..data.len()], data);
    });
}

#[test]
fn an_image_on_a_full_file_system_holds_the_write_and_the_flush_until_there_is_room() {
    // Room for the tables that are written first, but not for the data.
    with_small_file_system(1280, |directory, resize| {
        let path = directory.join("disk.vhdx");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        vhdx::vhdx::create(&file, &vhdx::vhdx::CreateOptions::new(64 << 20)).unwrap();
        drop(file);
        let failures = Arc::new(Mutex::new(Vec::new()));
        let noted = failures.clone();
        let open = OpenOptions { format: disk::Format::Vhdx, ..OpenOptions::default() };
        let mut config = BlockConfig::new(Disk::open(&path, open).unwrap(), "full");
        config.listener = Some(Arc::new(move |failure| noted.lock().unwrap().push(failure)));
        let mut harness = Harness::new(Block::new(config).unwrap());
        harness.activate(VERSION_1 | FLUSH).unwrap();
        let mut machine = Machine { directory: tempfile::tempdir().unwrap(), harness };

        let data = vec![0x5A; 2 << 20];
        machine.harness.memory.write_slice(&data, GuestAddress(DATA)).unwrap();
        let chain = [machine.header(0, WRITE, 0), readable(DATA, data.len() as u32), machine.status(0)];
        machine.harness.queues[0].push(&chain);
        machine.harness.queues[0].kick();
        assert_eq!(wait_for(&failures, 1)[0].error, IoError::NoSpace);
        resize(16 << 10);
        machine.harness.pause_and_resume();
        machine.harness.wait_used(0);
        assert_eq!(machine.status_of(0), OK);
        assert_eq!(machine.read(4095, 512), [0x5A; 512]);
    });
}

#[test]
fn the_write_cache_follows_the_driver() {
    let mut machine = Machine::new(Options { features: VERSION_1 | FLUSH | CONFIG_WCE, ..Options::default() });
    assert_eq!(machine.config(32), [1]);
    machine.harness.device.write_config(32, &[0]);
    assert_eq!(machine.config(32), [0]);
    assert_eq!(machine.write(0, &[1; 512]), OK);
    assert_eq!(machine.range(WRITE_ZEROES, 8, 8, 1), OK);
    assert_eq!(machine.range(DISCARD, 16, 8, 0), OK);
    let state = machine.harness.device.save();
    machine.harness.device.quiesce();
    machine.harness.device.reset();
    assert_eq!(machine.config(32), [1]);
    machine.harness.device.restore(&state).unwrap();
    assert_eq!(machine.config(32), [0]);
    // Nothing else can be written.
    machine.harness.device.write_config(0, &[0; 8]);
    machine.harness.device.write_config(32, &[1, 1]);
    assert_eq!((machine.config(32), u64::from_le_bytes(machine.config(0))), ([0], 2048));
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    let mut machine = Machine::new(Options { features: VERSION_1, ..Options::default() });
    assert_eq!(machine.write(7, &[3; 512]), OK);
    assert_eq!(machine.range(WRITE_ZEROES, 8, 8, 0), OK);
    assert_eq!(machine.range(DISCARD, 16, 8, 0), OK);
    assert_eq!(machine.read(7, 512), [3; 512]);
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let mut machine = Machine::new(Options::default());
    let fits = BlockState { capacity_bytes: 1 << 20, sector_bytes: 512, writeback: true, held: Vec::new() };
    assert_eq!(machine.harness.device.save(), fits.encode_to_vec());
    machine.harness.device.quiesce();
    machine.harness.device.restore(&fits.encode_to_vec()).unwrap();
    let larger = BlockState { capacity_bytes: 2 << 20, ..fits.clone() };
    let sectors = BlockState { sector_bytes: 4096, ..fits.clone() };
    let queue = BlockState { held: vec![HeldRequests { queue: 1, heads: vec![0] }], ..fits.clone() };
    for state in [larger, sectors, queue] {
        let error = machine.harness.device.restore(&state.encode_to_vec()).unwrap_err();
        assert!(matches!(error, RestoreError::Mismatch { .. }), "{error}");
    }
    let head = BlockState { held: vec![HeldRequests { queue: 0, heads: vec![70000] }], ..fits };
    for bytes in [head.encode_to_vec(), vec![0xFF; 9]] {
        let error = machine.harness.device.restore(&bytes).unwrap_err();
        assert!(matches!(error, RestoreError::Malformed { .. }), "{error}");
    }
}

#[test]
fn the_saved_state_reads_as_it_was_first_released() {
    let state = BlockState {
        capacity_bytes: 1 << 30,
        sector_bytes: 4096,
        writeback: true,
        held: vec![HeldRequests { queue: 2, heads: vec![5, 300] }],
    };
    let golden =
        [0x08, 0x80, 0x80, 0x80, 0x80, 0x04, 0x10, 0x80, 0x20, 0x18, 0x01, 0x22, 0x07, 0x08, 0x02, 0x12, 0x03, 0x05, 0xAC, 0x02];
    assert_eq!(state.encode_to_vec(), golden);
    assert_eq!(BlockState::decode(&golden[..]).unwrap(), state);
}
