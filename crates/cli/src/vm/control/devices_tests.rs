//! What is handed to the monitor.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::*;
use crate::vm::control::testing::{Monitor, ok, ok_with, refused};

fn config() -> VmConfig {
    let json = r#"{"name":"web","cpus":{"count":1},"memory":{"size":67108864},"boot":{"kernel":"/k"},
        "disks":[{"id":"disk0","path":"/a"},{"id":"disk2","path":"/b"}]}"#;
    VmConfig::from_json(json.as_bytes()).unwrap()
}

/// A monitor that answers `config`, then checks the next request.
fn monitor(check: impl FnOnce(Request, Vec<OwnedFd>) + Send + 'static) -> Monitor {
    Monitor::start(|service| {
        assert_eq!(service.request().0, Request::Config);
        service.send(&ok_with(&config()));
        let (request, fds) = service.request();
        check(request, fds);
        service.send(&ok());
    })
}

fn flags(fd: &impl AsRawFd) -> libc::c_int {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    assert!(flags >= 0, "{}", io::Error::last_os_error());
    flags
}

#[test]
fn a_disk_is_opened_as_it_will_be_used_and_gets_a_free_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    for (suffix, access) in [("", libc::O_RDWR), (",ro", libc::O_RDONLY)] {
        let wanted = path.clone();
        let monitor = monitor(move |request, fds| {
            let Request::AddDisk { disk } = request else { panic!("{request:?}") };
            assert_eq!((disk.id.as_str(), &disk.path, disk.read_only), ("disk1", &wanted, access == libc::O_RDONLY));
            assert_eq!((fds.len(), flags(&fds[0]) & libc::O_ACCMODE), (1, access));
        });
        let option = format!("{}{suffix}", path.display()).parse().unwrap();
        add_disk(&mut monitor.client(), option).unwrap();
    }
}

#[test]
fn what_is_no_disk_never_reaches_the_monitor() {
    let only_config = || {
        Monitor::start(|service| {
            service.request();
            service.send(&ok_with(&config()));
        })
    };
    let refusal = |path: &str| {
        let error = add_disk(&mut only_config().client(), path.parse().unwrap()).unwrap_err();
        vmm::error_chain(&error)
    };
    assert_eq!(refusal("/dev/null"), "/dev/null is no disk: neither a file nor a block device");
    assert!(refusal("/nowhere/disk").starts_with("cannot open the disk /nowhere/disk: No such file"));
}

#[test]
fn a_refusal_is_told_as_it_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let monitor = Monitor::start(|service| {
        service.request();
        service.send(&ok_with(&config()));
        service.request();
        service.send(&refused("no free slot"));
    });
    let option = file.path().to_str().unwrap().parse().unwrap();
    assert_eq!(add_disk(&mut monitor.client(), option).unwrap_err().to_string(), "no free slot");
}

#[test]
fn a_switch_is_connected_to_and_the_connection_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("switch");
    let listener = UnixListener::bind(&path).unwrap();
    let monitor = monitor(|request, fds| {
        let Request::AddNet { net } = request else { panic!("{request:?}") };
        assert_eq!((net.id.as_str(), net.mac), ("net0", default_mac("web", 0)));
        assert_eq!(fds.len(), 1);
    });
    let text = format!("vhost-user={}", path.display());
    add_net(&mut monitor.client(), text.parse().unwrap()).unwrap();
    listener.accept().unwrap();

    drop(listener);
    let unanswered = Monitor::start(|service| {
        service.request();
        service.send(&ok_with(&config()));
    });
    let error = add_net(&mut unanswered.client(), text.parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("does it run and listen there?"));
}
