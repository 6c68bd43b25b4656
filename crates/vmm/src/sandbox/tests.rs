//! Each test confines a child process, because a process stays confined. Children report with their exit status.

use std::io::Read;
use std::os::fd::FromRawFd;

use confine::testing::{End, NEVER, assert_program_is_the_list, call, child};

use super::*;

/// Runs `work` in a child that is confined as a thread of this kind.
fn confined(kind: ThreadKind, work: impl FnOnce() -> i32) -> End {
    child(|| {
        begin(None).unwrap();
        confine_thread(kind);
        work()
    })
    .without_landlock()
}

#[test]
fn programs_say_what_the_lists_say_for_every_call() {
    for kind in ThreadKind::ALL {
        assert_program_is_the_list(&filters::policy(kind));
    }
}

#[test]
fn every_kind_can_allocate_lock_sleep_and_end() {
    for kind in ThreadKind::ALL {
        let end = confined(kind, || {
            let mut large = vec![1u8; 32 << 20];
            large.shrink_to(1);
            drop(large);
            std::thread::sleep(std::time::Duration::from_millis(1));
            let _ = std::collections::HashMap::<u8, u8>::new();
            let _ = std::thread::available_parallelism();
            i32::from(std::time::SystemTime::now() < std::time::UNIX_EPOCH)
        });
        assert_eq!(end, End::fine(), "{kind:?}");
    }
}

#[test]
fn what_no_monitor_needs_ends_it_in_every_kind() {
    let more = [(libc::SYS_tgkill, [1, 1, libc::SIGABRT as usize, 0]), (libc::SYS_userfaultfd, [0; 4])];
    for kind in ThreadKind::ALL {
        for (number, arguments) in NEVER.into_iter().chain(more) {
            let end = confined(kind, || i32::from(call(number, arguments) != 0) + 10);
            assert!(end.was_forbidden(number), "{kind:?}, {number}: {end:?}");
        }
    }
}

#[test]
fn kinds_differ_in_what_they_may() {
    use ThreadKind::*;
    let run = [0, 0xae80, 0, 0];
    let tap = [0, libc::TUNSETOFFLOAD as usize, 0, 0];
    let cases: [(libc::c_long, [usize; 4], &[ThreadKind]); 8] = [
        (libc::SYS_ioctl, run, &[Control, Vcpu]),
        (libc::SYS_ioctl, tap, &[Control, Spawner, Tap]),
        (libc::SYS_io_uring_setup, [0; 4], &[Spawner]),
        (libc::SYS_io_uring_enter, [usize::MAX, 0, 0, 0], &[Spawner, Block]),
        (libc::SYS_socket, [libc::AF_UNIX as usize, 99, 0, 0], &[Control, Spawner, VhostUser, Vsock]),
        (libc::SYS_accept4, [usize::MAX, 0, 0, 0], &[Control, Spawner, Vsock]),
        (libc::SYS_fallocate, [usize::MAX, 3, 0, 0], &[Control, Spawner, Block, Misc]),
        (libc::SYS_ftruncate, [usize::MAX, 0, 0, 0], &[Control, Spawner, Block]),
    ];
    for kind in ThreadKind::ALL {
        for (number, arguments, may) in cases {
            let end = confined(kind, || if call(number, arguments) < 0 { 0 } else { 10 });
            match may.contains(&kind) {
                true => assert_eq!(end, End::fine(), "{kind:?}, {number}"),
                false => assert!(end.was_forbidden(number), "{kind:?}, {number}: {end:?}"),
            }
        }
    }
}

#[test]
fn files_cannot_be_opened_but_trying_is_no_crime() {
    for kind in ThreadKind::ALL {
        let end = confined(kind, || {
            let denied = |result: std::io::Result<()>| result.is_err_and(|e| e.raw_os_error() == Some(libc::EACCES));
            let all = denied(std::fs::File::open("/dev/null").map(drop))
                && denied(std::fs::metadata("/").map(drop))
                && denied(std::fs::read_dir("/proc").map(drop))
                && denied(std::fs::remove_file("/nowhere"))
                && denied(std::env::current_dir().map(drop))
                && call(libc::SYS_newfstatat, [usize::MAX, c"/".as_ptr() as usize, 0, 0]) == -1;
            i32::from(!all)
        });
        assert_eq!(end, End::fine(), "{kind:?}");
    }
}

#[test]
fn an_open_descriptor_still_has_attributes() {
    let end = confined(ThreadKind::Control, || {
        // SAFETY: standard input is open for the life of the process.
        let file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(0) });
        i32::from(file.metadata().is_err())
    });
    assert_eq!(end, End::fine());
}

#[test]
fn threads_start_threads_that_are_confined_as_well() {
    for (parent, kind) in [
        (ThreadKind::Control, ThreadKind::Vcpu),
        (ThreadKind::Control, ThreadKind::Misc),
        (ThreadKind::Spawner, ThreadKind::Block),
        (ThreadKind::Spawner, ThreadKind::Tap),
        (ThreadKind::Spawner, ThreadKind::VhostUser),
        (ThreadKind::Spawner, ThreadKind::Vsock),
        (ThreadKind::Spawner, ThreadKind::Misc),
    ] {
        let worker = move |confine: bool| {
            confined(parent, move || {
                let thread = std::thread::Builder::new().name("worker".into()).spawn(move || {
                    if confine {
                        confine_thread(kind);
                    }
                    call(libc::SYS_epoll_create1, [0; 4]) >= 0
                });
                i32::from(!thread.unwrap().join().unwrap())
            })
        };
        assert_eq!(worker(false), End::fine(), "{parent:?}");
        let end = worker(true);
        assert!(end.was_forbidden(libc::SYS_epoll_create1) && end.said.contains("thread 'worker'"), "{kind:?}: {end:?}");
    }
}

#[test]
fn a_panic_is_reported_and_not_a_violation() {
    let end = confined(ThreadKind::Misc, || i32::from(std::panic::catch_unwind(|| panic!("on purpose")).is_ok()));
    assert_eq!(end.status, Ok(0));
    assert!(end.said.contains("on purpose"), "{end:?}");
    let end = confined(ThreadKind::Vcpu, || std::process::abort());
    assert_eq!(end.status, Err(libc::SIGABRT));
}

#[test]
fn root_becomes_the_vms_own_user_on_the_confined_thread_only() {
    let here = identity::Circumstances::here();
    if here.own_uid != 0 {
        // There is nothing to give up: that nobody else can be asked for is all there is to see.
        assert_eq!(Identity::choose(Some(5), None, &here), Err(IdentityError::NotRoot(here.own_uid)));
        return;
    }
    let identity = Identity::choose(None, None, &here).unwrap();
    let end = child(|| {
        begin(identity).unwrap();
        let status = std::thread::spawn(|| {
            let mut status = std::fs::File::open("/proc/thread-self/status").unwrap();
            confine_thread(ThreadKind::Vcpu);
            let mut text = vec![0; 4096];
            let length = status.read(&mut text).unwrap();
            String::from_utf8(text[..length].to_vec()).unwrap()
        });
        let status = status.join().unwrap();
        let Identity { uid, gid } = identity.unwrap();
        let lines = [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"),
            format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}\n"),
            "Groups:\t \n".into(),
            "CapPrm:\t0000000000000000\n".into(),
            "CapEff:\t0000000000000000\n".into(),
            "CapBnd:\t0000000000000000\n".into(),
            "CapAmb:\t0000000000000000\n".into(),
            "NoNewPrivs:\t1\n".into(),
            "Seccomp:\t2\n".into(),
        ];
        let missing = lines.iter().find(|line| !status.contains(*line));
        missing.iter().for_each(|line| eprint!("{line}{status}"));
        // SAFETY: asks a number.
        i32::from(missing.is_some() || unsafe { libc::geteuid() } != 0)
    });
    assert_eq!(end, End::fine());
}

#[test]
fn programs_are_small_and_confining_takes_little_time() {
    let end = child(|| {
        let start = std::time::Instant::now();
        begin(None).unwrap();
        let begun = start.elapsed();
        let mut text = format!("begin {begun:?}");
        for kind in ThreadKind::ALL {
            let start = std::time::Instant::now();
            let length = CONFINEMENT.get().unwrap().filter(kind).len();
            let compiled = start.elapsed();
            assert!(length < 1000, "{kind:?}: {length} instructions");
            // On a thread of its own: each kind once.
            let confined = std::thread::spawn(move || {
                let start = std::time::Instant::now();
                confine_thread(kind);
                start.elapsed()
            });
            text += &format!(
                "\n{kind:?}: {length} instructions, compiled in {compiled:?}, confined in {:?}",
                confined.join().unwrap()
            );
        }
        eprintln!("{text}");
        i32::from(start.elapsed() > std::time::Duration::from_millis(200))
    });
    println!("{}", end.said);
    assert_eq!(end.status, Ok(0), "{}", end.said);
}
