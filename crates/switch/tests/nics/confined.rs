//! The program, confined, with the kernel's ports.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use confine::inspect::unconfined_threads;
use serde_json::Value;
use switch::control::{Backend, Client, DEFAULT_SWITCH, PortConfig, Request, Status};
use switch::links::Missing;
use switch::policy::PortPolicy;
use switch::team::config::{Datapath, TeamConfig};

use super::echo;
use super::space::{PATIENCE, Peer, in_namespace, in_roots_namespace, ip, until};

/// `maru-switch`.
struct Program {
    process: Child,
    client: Client,
}

impl Program {
    fn start(directory: &Path) -> Program {
        let control = directory.join("control");
        let mut command = Command::new(env!("CARGO_BIN_EXE_maru-switch"));
        command.arg("--control").arg(&control).arg("--state").arg(directory.join("state"));
        let mut process = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match Client::connect(&control) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline && process.try_wait().unwrap().is_none(), "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        Program { process, client }
    }

    fn add(&mut self, name: &str, backend: Backend) {
        let port = PortConfig { name: name.into(), switch: DEFAULT_SWITCH.into(), backend, policy: PortPolicy::default() };
        self.client.call::<Value>(&Request::AddPort { port, missing: Missing::Refused }).unwrap();
    }

    fn is_connected(&mut self, name: &str) -> bool {
        let status: Status = self.client.call(&Request::Status).unwrap();
        status.confined && status.ports.iter().any(|port| port.name == name && port.connected)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// `10.9.0.2` is at the other end of `v0`.
fn cable(peer: &Peer) {
    peer.cable("v0", "w0");
    peer.whole_frames("w0");
    peer.ip("addr add 10.9.0.2/24 dev w0");
}

/// A confined switch with a TAP and this uplink, which goes and comes back, and the switch does.
fn passes_frames_whatever_ends(wire: &Backend) {
    let directory = tempfile::tempdir().unwrap();
    let peer = Peer::start();
    cable(&peer);
    let mut program = Program::start(directory.path());
    program.add("host", Backend::Tap("sw0".into()));
    ip("addr add 10.9.0.1/24 dev sw0");
    ip("link set sw0 up");
    program.add("wire", wire.clone());
    let exchange = |peer: &Peer| echo(1 << 20, peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap()));
    exchange(&peer);
    // The thread that hears of links opens it again.
    ip("link del v0");
    until("the NIC is missed", || !program.is_connected("wire"));
    cable(&peer);
    until("the NIC is back", || program.is_connected("wire"));
    ip("neigh flush dev sw0");
    exchange(&peer);
    assert_eq!(unconfined_threads(program.process.id()).unwrap(), Vec::<String>::new());
    // Killed, and started again with what it had.
    drop(program);
    let mut program = Program::start(directory.path());
    until("the NIC is used", || program.is_connected("wire"));
    exchange(&peer);
}

#[test]
fn a_confined_switch_has_its_tap_and_its_nics_also_those_that_come_back() {
    in_namespace("confined::a_confined_switch_has_its_tap_and_its_nics_also_those_that_come_back", || {
        passes_frames_whatever_ends(&Backend::Uplink("v0".into()));
    });
}

#[test]
fn a_confined_switch_has_its_nics_by_af_xdp_also_those_that_come_back() {
    in_roots_namespace("confined::a_confined_switch_has_its_nics_by_af_xdp_also_those_that_come_back", || {
        let team = TeamConfig { datapath: Datapath::AfXdp, ..TeamConfig::single("v0") };
        passes_frames_whatever_ends(&Backend::Team(team));
    });
}
