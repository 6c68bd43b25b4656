use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use confine::inspect::unconfined_threads;
use confine::testing::{End, NEVER, assert_program_is_the_list, call, child};
use packet::Listener;
use serde_json::Value;

use super::*;
use crate::acl::Direction;
use crate::control::{
    Backend, Client, ClientError, ConnectionState, FlowStatus, Imported, PortConfig, PortState, Request, StationStatus, Status,
    Streamed, SwitchKind, serve,
};
use crate::frame::build::{ethernet, mac};
use crate::host::Host;
use crate::links::Missing;
use crate::policy::PortPolicy;
use crate::ports::tests::Vm;
use crate::ring::bus_error;
use crate::worker::Pool;

/// Runs `work` in a child that is confined as a thread of this kind, with nothing in reach.
fn confined(kind: ThreadKind, work: impl FnOnce() -> i32) -> End {
    child(|| {
        begin(&Places::default()).unwrap();
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
fn what_no_switch_needs_ends_it_in_every_kind() {
    let more = [
        (libc::SYS_socket, [libc::AF_NETLINK as usize, (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize, 0, 0]),
        (libc::SYS_setns, [0; 4]),
        (libc::SYS_unshare, [0; 4]),
        (libc::SYS_io_uring_setup, [0; 4]),
    ];
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
    let unix = [libc::AF_UNIX as usize, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as usize, 99, 0];
    let packet = [libc::AF_PACKET as usize, (libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize, 0, 0];
    let losses = [usize::MAX, libc::SOL_PACKET as usize, libc::PACKET_STATISTICS as usize, 0];
    let xdp = [libc::AF_XDP as usize, (libc::SOCK_RAW | libc::SOCK_CLOEXEC) as usize, 99, 0];
    let xdp_losses = [usize::MAX, libc::SOL_XDP as usize, libc::XDP_STATISTICS as usize, 0];
    let tap = [usize::MAX, libc::TUNSETIFF as usize, 0, 0];
    // A ring is told of by sending or receiving nothing; bytes are for those who talk.
    let (nothing, bytes) = ([usize::MAX, 0, 0, 0], [usize::MAX, 0, 1, 0]);
    let cases: [(libc::c_long, [usize; 4], &[ThreadKind]); 18] = [
        (libc::SYS_socket, unix, &[Control]),
        (libc::SYS_socket, packet, &[Control, Links]),
        (libc::SYS_socket, xdp, &[Control, Links]),
        (libc::SYS_bpf, [crate::xdp::COMMANDS[0] as usize, 0, 0, 0], &[Control, Links]),
        // Looking at what others have.
        (libc::SYS_bpf, [13, 0, 0, 0], &[]),
        (libc::SYS_getsockopt, xdp_losses, &[Control, Links, Worker]),
        (libc::SYS_sendto, nothing, &[Control, Links, FrontDoor, Worker]),
        (libc::SYS_recvfrom, nothing, &[Control, Links, FrontDoor, Worker]),
        (libc::SYS_sendto, bytes, &[Control, Links, FrontDoor]),
        (libc::SYS_recvfrom, bytes, &[Control, Links, FrontDoor]),
        (libc::SYS_ioctl, tap, &[Control]),
        (libc::SYS_rename, [0; 4], &[Control]),
        (libc::SYS_getsockopt, losses, &[Control, Worker]),
        (libc::SYS_epoll_ctl, [usize::MAX, 0, 0, 0], &[Control, Worker]),
        (libc::SYS_recvmsg, [usize::MAX, 0, 0, 0], &[Control, Clients, Client, FrontDoor, Worker]),
        (libc::SYS_sendmsg, [usize::MAX, 0, 0, 0], &[Control, Clients, Client, FrontDoor]),
        (libc::SYS_accept4, [usize::MAX, 0, 0, 0], &[Control, Clients, FrontDoor]),
        (libc::SYS_memfd_create, [0; 4], &[Control, Clients, Client]),
    ];
    for kind in ThreadKind::ALL {
        for (number, arguments, may) in cases {
            // Without the right to have a packet socket, nobody gets one: that it may be asked for is what is seen.
            let end = confined(kind, || {
                call(number, arguments);
                0
            });
            match may.contains(&kind) {
                true => assert_eq!(end, End::fine(), "{kind:?}, {number}"),
                false => assert!(end.was_forbidden(number), "{kind:?}, {number}: {end:?}"),
            }
        }
    }
}

#[test]
fn threads_start_threads_that_are_confined_as_well() {
    use ThreadKind::*;
    for (parent, kind) in [(Control, Worker), (Control, FrontDoor), (Control, Links), (Control, Clients), (Clients, Client)] {
        let start = move |confine: bool| {
            confined(parent, move || {
                let thread = std::thread::Builder::new().name("second".into()).spawn(move || {
                    if confine {
                        confine_thread(kind);
                    }
                    call(libc::SYS_timerfd_create, [0; 4]) >= 0
                });
                i32::from(!thread.unwrap().join().unwrap())
            })
        };
        assert_eq!(start(false), End::fine(), "{parent:?}");
        let end = start(true);
        let is_starter = kind == Clients;
        let said = end.said.contains("maru-switch: thread 'second'") && end.said.contains("the switch ends");
        assert!(is_starter || end.was_forbidden(libc::SYS_timerfd_create) && said, "{kind:?}: {end:?}");
    }
}

#[test]
fn only_the_control_thread_has_files_and_only_those_that_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
    [&inside, &outside].into_iter().for_each(|path| fs::create_dir_all(path.join("deep")).unwrap());
    fs::write(outside.join("secret"), "x").unwrap();
    let state = directory.path().join("state/file");
    fs::create_dir(directory.path().join("state")).unwrap();
    let places = Places { sockets: vec![inside.clone()], state: Some(state.clone()) };
    for kind in ThreadKind::ALL {
        let end = child(|| {
            begin(&places).unwrap();
            confine_thread(kind);
            let is_control = kind == ThreadKind::Control;
            let is_refused = |result: std::io::Result<()>| result.is_err_and(|e| e.raw_os_error() == Some(libc::EACCES));
            let mut wrong = vec![];
            let mut expect = |what, is_so: bool| {
                if !is_so {
                    wrong.push(what);
                }
            };
            expect("reading", is_refused(File::open(outside.join("secret")).map(drop)));
            expect("a device", is_refused(File::open("/dev/null").map(drop)));
            if is_control {
                expect("a socket elsewhere", is_refused(UnixListener::bind(outside.join("socket")).map(drop)));
                expect("removing elsewhere", is_refused(fs::remove_file(outside.join("secret"))));
                expect("a socket below", UnixListener::bind(inside.join("deep/socket")).is_ok());
                expect("removing it", fs::remove_file(inside.join("deep/socket")).is_ok());
                expect("a file there", is_refused(File::create(inside.join("file")).map(drop)));
                let next = state.with_extension("next");
                expect("state", fs::write(&next, "1").and_then(|()| fs::rename(&next, &state)).is_ok());
                expect("state again", fs::write(&next, "2").and_then(|()| fs::rename(&next, &state)).is_ok());
                expect("reading it", fs::read(&state).is_ok_and(|bytes| bytes == b"2"));
            }
            wrong.iter().for_each(|what| eprintln!("{what}"));
            i32::from(!wrong.is_empty())
        });
        assert_eq!(end.without_landlock(), End::fine(), "{kind:?}");
    }
}

const INSIDE: &str = "MARU_TEST_CONFINED";

/// What is to be found in `/proc` of a thread, by its name.
fn capabilities_of(pid: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let all = tasks.flatten().filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        Some((field("Name:")?, u64::from_str_radix(&field("CapEff:")?, 16).ok()?))
    });
    all.collect()
}

/// A switch in another process, which is this test once more.
struct Other {
    process: Child,
    client: Client,
}

impl Other {
    fn start(test: &str, directory: &Path) -> Other {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", test, "--nocapture"]).env(INSIDE, directory);
        let mut process = again.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let client = loop {
            match Client::connect(&directory.join("control")) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline && process.try_wait().unwrap().is_none(), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Other { process, client }
    }

    fn ask(&mut self, request: Request) -> Value {
        self.client.call(&request).unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn serve_confined(directory: &Path) {
    let listener = Listener::bind(&directory.join("control")).unwrap();
    bus_error::install().unwrap();
    let state = directory.join("state");
    begin(&Places { sockets: vec![directory.into()], state: Some(state.clone()) }).unwrap();
    // The main thread is the tests' own.
    confine_thread(ThreadKind::Control);
    let host = Host::new(Pool::new(2, Duration::ZERO), Some(state)).unwrap();
    serve(listener, host).unwrap();
}

#[test]
fn a_confined_switch_does_all_that_it_does() {
    if let Some(directory) = std::env::var_os(INSIDE) {
        return serve_confined(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let start = || Other::start("sandbox::tests::a_confined_switch_does_all_that_it_does", directory.path());
    let mut other = start();
    other.ask(Request::AddSwitch { name: "inner".into(), kind: SwitchKind::Private });
    let port = |directory: &Path, name: &str, switch: &str| PortConfig {
        name: name.into(),
        switch: switch.into(),
        backend: Backend::VhostUser { socket: directory.join(name), mode: 0o600, queues: 2 },
        policy: PortPolicy::default(),
    };
    for (name, switch) in [("a", "inner"), ("b", "inner"), ("c", "default")] {
        other.ask(Request::AddPort { port: port(directory.path(), name, switch), missing: Missing::Refused });
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let refused =
        other.client.call::<Value>(&Request::AddPort { port: port(elsewhere.path(), "d", "inner"), missing: Missing::Refused });
    let Err(ClientError::Refused(failure)) = refused else { panic!("{refused:?}") };
    // A kernel without Landlock lets it.
    assert!(failure.message.contains("--allow"), "{}", failure.message);

    let mut vms = ["a", "b"].map(|name| {
        let mut vm = Vm::new(0);
        vm.connect(&directory.path().join(name));
        (0..64).for_each(|_| vm.receive.offer_room(2048));
        vm
    });
    let frame = ethernet(mac(1), mac(2)).other(0x9000);
    let pass = |vms: &mut [Vm; 2]| {
        vms[0].send([0; 12], &frame);
        while !vms[1].receive().iter().any(|(_, got)| *got == frame) {}
    };
    pass(&mut vms);
    // Another client, whose answer goes on.
    let mut looking = Client::connect(&directory.path().join("control")).unwrap();
    let capture = Request::Capture { name: "a".into(), direction: Some(Direction::Outbound), count: Some(1), snap_bytes: 64 };
    looking.call::<Value>(&capture).unwrap();
    pass(&mut vms);
    assert!(matches!(looking.receive().unwrap(), Streamed::Frames { .. }));
    assert_eq!(looking.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 });
    // What goes in memory files.
    let mut state: PortState = other.client.call(&Request::ExportPort { name: "c".into() }).unwrap();
    let rule = r#"{"effect": {"allow-stateful": {"idle-timeout-s": 60}}, "direction": "outbound", "weight": 1}"#;
    state.policy.extended_acl = vec![serde_json::from_str(rule).unwrap()];
    let connection = |number: u16| ConnectionState {
        local: "10.0.0.1".parse().unwrap(),
        remote: "10.0.0.2".parse().unwrap(),
        protocol: 6,
        local_port: number,
        remote_port: 80,
        opened: Direction::Outbound,
        idle_ms: 0,
        idle_timeout_ms: 60_000,
    };
    state.connections = (0..5000).map(connection).collect();
    let import = Request::ImportPort { name: "c".into(), state: Box::new(state) };
    assert_eq!(other.client.call::<Imported>(&import).unwrap().connections, 5000);
    let again: PortState = other.client.call(&Request::ExportPort { name: "c".into() }).unwrap();
    assert_eq!(again.connections.len(), 5000);

    let status: Status = other.client.call(&Request::Status).unwrap();
    assert!(status.confined && status.connections == 5000 && status.ports.iter().filter(|port| port.connected).count() == 2);
    let stations: Vec<StationStatus> = other.client.call(&Request::Stations).unwrap();
    assert!(stations.iter().any(|station| station.mac == mac(1) && station.port == "a"));
    let flows: Vec<FlowStatus> = other.client.call(&Request::Flows { name: None, most: 10 }).unwrap();
    assert!(flows.iter().any(|flow| flow.port == "a" && flow.packets == 2), "{flows:?}");

    let pid = other.process.id();
    let threads = capabilities_of(pid);
    let names: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["worker-0", "worker-1", "port-0", "port-1", "clients", "client"] {
        assert!(names.contains(&name), "{names:?}");
        assert!(threads.iter().filter(|(other, _)| other == name).all(|(_, effective)| *effective == 0), "{threads:?}");
    }
    let outside = unconfined_threads(pid).unwrap();
    // The test program's own main thread waits for the test to end.
    assert!(outside.iter().all(|name| name.starts_with("switch-")), "{outside:?}");

    // Killed and started again, with what it had.
    drop(other);
    let mut other = start();
    let kept: Vec<PortConfig> = other.client.call(&Request::Config).unwrap();
    assert_eq!(kept.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    for (vm, name) in vms.iter_mut().zip(["a", "b"]) {
        vm.connect(&directory.path().join(name));
    }
    pass(&mut vms);
    for name in ["a", "b", "c"] {
        other.ask(Request::RemovePort { name: name.into() });
        assert!(!directory.path().join(name).exists());
    }
    other.ask(Request::RemoveSwitch { name: "inner".into() });
}

#[test]
fn threads_keep_the_capabilities_that_their_kind_needs() {
    // SAFETY: asks a number.
    if unsafe { libc::geteuid() } != 0 {
        // There is nothing to give up, and nothing is won.
        keep_capabilities(u64::MAX).unwrap();
        assert!(capabilities_of(std::process::id()).iter().all(|(_, effective)| *effective == 0));
        return;
    }
    for kind in ThreadKind::ALL {
        let end = child(|| {
            begin(&Places::default()).unwrap();
            let mut status = File::open("/proc/thread-self/status").unwrap();
            confine_thread(kind);
            let mut text = vec![0; 4096];
            let length = status.read(&mut text).unwrap();
            let text = String::from_utf8(text[..length].to_vec()).unwrap();
            let kept = kind.capabilities();
            let lines = [format!("CapEff:\t{kept:016x}\n"), format!("CapPrm:\t{kept:016x}\n"), "NoNewPrivs:\t1\n".into()];
            let missing = lines.iter().find(|line| !text.contains(*line));
            missing.iter().for_each(|line| eprint!("{line}{text}"));
            i32::from(missing.is_some())
        });
        assert_eq!(end.without_landlock(), End::fine(), "{kind:?}");
    }
}
