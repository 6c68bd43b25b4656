//! What is handed to the monitor.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use disk::{Format, tool};

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

/// The smallest disk.
fn sector() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    file
}

#[test]
fn a_disk_is_opened_as_it_will_be_used_and_gets_a_free_name() {
    let file = sector();
    let path = file.path().to_owned();
    for (suffix, access) in [("", libc::O_RDWR), (",ro", libc::O_RDONLY)] {
        let wanted = path.clone();
        let monitor = monitor(move |request, fds| {
            let Request::AddDisk { disk, parents } = request else { panic!("{request:?}") };
            assert_eq!((disk.id.as_str(), &disk.path, disk.read_only), ("disk1", &wanted, access == libc::O_RDONLY));
            assert!(parents.is_empty());
            assert_eq!((fds.len(), flags(&fds[0]) & libc::O_ACCMODE), (1, access));
        });
        let option = format!("{}{suffix}", path.display()).parse().unwrap();
        add_disk(&mut monitor.client(), option).unwrap();
    }
}

#[test]
fn the_parents_of_a_disk_come_along_to_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let paths = ["base.vhdx", "child.vhdx", "top.vhdx"].map(|name| directory.path().join(name));
    let disk = |parent: Option<&PathBuf>| tool::NewDisk {
        format: Format::Vhdx,
        size: parent.is_none().then_some(1 << 20),
        parent: parent.map(|it| (it.clone(), Format::Vhdx)),
        ..tool::NewDisk::default()
    };
    tool::create(&paths[0], &disk(None)).unwrap();
    tool::create(&paths[1], &disk(Some(&paths[0]))).unwrap();
    tool::create(&paths[2], &disk(Some(&paths[1]))).unwrap();
    let [base, child, top] = paths;
    let option = top.to_str().unwrap().parse().unwrap();
    let monitor = monitor(move |request, fds| {
        let Request::AddDisk { disk, parents } = request else { panic!("{request:?}") };
        assert_eq!((disk.path, parents), (top, vec![child, base]));
        let access: Vec<_> = fds.iter().map(|fd| flags(fd) & libc::O_ACCMODE).collect();
        assert_eq!(access, [libc::O_RDWR, libc::O_RDONLY, libc::O_RDONLY]);
    });
    add_disk(&mut monitor.client(), option).unwrap();
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
    assert!(refusal("/dev/null").contains("/dev/null: this is a character device"));
    assert!(refusal("/nowhere/disk").contains("/nowhere/disk: there is no such file"));
}

#[test]
fn a_refusal_is_told_as_it_is() {
    let file = sector();
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
