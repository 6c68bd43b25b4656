//! Network namespaces with veth pairs between them, for any user who may make user namespaces.

use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use switch::control::{Backend, DEFAULT_SWITCH, PortConfig, PortStatus, Request, Status};
use switch::host::Host;
use switch::links::Missing;
use switch::mac::MacAddress;
use switch::policy::PortPolicy;
use switch::ports::fd::FdPort;
use switch::ports::packet::Packet;
use switch::ports::vnet::Vnet;
use switch::ring::split::Segment;
use switch::team::config::{Datapath, TeamConfig};
use switch::team::nic::NicStatus;
use switch::worker::Pool;

pub const PATIENCE: Duration = Duration::from_secs(20);
const INSIDE: &str = "MARU_TEST_NAMESPACE";

/// Runs a test once more, in user and network namespaces of its own, where it may do `work`.
pub fn in_namespace(test: &str, work: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return work();
    }
    again(test, &["--map-root-user", "--net"]);
}

fn again(test: &str, namespaces: &[&str]) {
    let mut again = Command::new("unshare");
    again.args(namespaces).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let status = again.env(INSIDE, "1").status().expect("unshare, of util-linux");
    assert!(status.success(), "{status}: if no namespace could be made, allow users to make them (user.max_user_namespaces)");
}

/// Runs a test once more, in a network namespace of its own that is root's: programs for NICs are for root of the machine alone. Who is
/// not root finds out that it is so.
pub fn in_roots_namespace(test: &str, work: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return if is_root() { work() } else { drop(assert_refused()) };
    }
    again(test, if is_root() { &["--net"] } else { &["--map-root-user", "--net"] });
}

/// Whether this is the machine's root, and not one that a user namespace has made.
pub fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 && map.split_whitespace().eq(["0", "0", "4294967295"]) }
}

/// Without the right to load programs, AF_XDP is refused, with the reason. There is a NIC `v0` as long as the peer is.
pub fn assert_refused() -> Peer {
    let peer = Peer::start();
    peer.cable("v0", "w0");
    let team = TeamConfig { datapath: Datapath::AfXdp, ..TeamConfig::single("v0") };
    let refused = Station::start().refusal(Backend::Team(team));
    assert!(refused.contains("v0 cannot be used by AF_XDP") && refused.contains("CAP_BPF"), "{refused}");
    peer
}

/// `ip ARGUMENTS`.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip, of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Asks an interface's driver, with words of `linux/ethtool.h`.
pub fn ethtool<const N: usize>(name: &str, mut request: [u32; N]) -> [u32; N] {
    // SAFETY: all zeroes are a valid ifreq.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: the request is as long as its command says, and lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, &raw mut interface) };
    assert_eq!(result, 0, "{name} {}: {}", request[0], io::Error::last_os_error());
    request
}

/// The packets that came in at an interface of this thread's namespace, and their bytes.
pub fn received(name: &str) -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (numbers[1], numbers[0])
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread in another network namespace: the other end of the cables.
pub struct Peer {
    work: Sender<Work>,
    thread: libc::pid_t,
}

impl Peer {
    pub fn start() -> Peer {
        let (work, inbox) = channel::<Work>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            // SAFETY: numbers only; it is for this thread.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            // SAFETY: no arguments.
            tell.send(unsafe { libc::gettid() }).unwrap();
            inbox.into_iter().for_each(|work| work());
        });
        Peer { work, thread: told.recv().unwrap() }
    }

    /// Has it do something.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (tell, told) = channel();
        self.work.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().expect("the peer has failed")
    }

    /// A pair of interfaces: `ours` here, `theirs` there. Both are up. Ours is for a switch: the kernel must not answer there for addresses
    /// that it has elsewhere.
    pub fn cable(&self, ours: &str, theirs: &str) {
        ip(&format!("link add {ours} type veth peer name {theirs} netns {}", self.thread));
        ip(&format!("link set {ours} arp off up"));
        let theirs = theirs.to_string();
        self.run(move || ip(&format!("link set {theirs} up")));
    }

    /// Has an interface there hand over frames as they would be on a wire: with their checksums, and with their tags in them.
    pub fn whole_frames(&self, name: &'static str) {
        // ETHTOOL_STXCSUM; ETHTOOL_GFLAGS, ETHTOOL_SFLAGS and ETH_FLAG_TXVLAN.
        self.run(move || {
            ethtool(name, [0x17, 0]);
            let [_, flags] = ethtool(name, [0x25, 0]);
            ethtool(name, [0x26, flags & !(1 << 7)]);
        });
    }

    /// Its thread, which is the name of its network namespace.
    pub fn thread(&self) -> libc::pid_t {
        self.thread
    }

    /// `ip ARGUMENTS` there.
    pub fn ip(&self, arguments: &str) {
        let arguments = arguments.to_string();
        self.run(move || ip(&arguments));
    }

    /// Listens at an interface there.
    pub fn wire(&self, name: &'static str) -> Wire {
        self.run(move || Wire::open(name))
    }
}

/// A switch in this thread's namespace.
pub struct Station(Host);

impl Station {
    pub fn start() -> Station {
        Station(Host::new(Pool::new(1, Duration::ZERO), None).unwrap())
    }

    fn ask(&mut self, request: Request) -> Result<Value, String> {
        self.0.execute(request).map(|answer| answer.value).map_err(|error| switch::error_chain(&error))
    }

    pub fn add(&mut self, name: &str, backend: Backend, policy: PortPolicy) {
        let port = PortConfig { name: name.into(), switch: DEFAULT_SWITCH.into(), backend, policy };
        self.ask(Request::AddPort { port, missing: Missing::Refused }).unwrap();
    }

    /// A TAP with an address.
    pub fn add_tap(&mut self, policy: PortPolicy, address: &str) {
        self.add("host", Backend::Tap("sw0".into()), policy);
        ip(&format!("addr add {address}/24 dev sw0"));
        ip("link set sw0 up");
    }

    pub fn add_team(&mut self, config: TeamConfig) {
        self.add("wire", Backend::Team(config), PortPolicy::default());
    }

    pub fn port(&mut self, name: &str) -> PortStatus {
        let status: Status = serde_json::from_value(self.ask(Request::Status).unwrap()).unwrap();
        status.ports.into_iter().find(|port| port.name == name).unwrap()
    }

    pub fn set_team(&mut self, config: TeamConfig) {
        self.ask(Request::SetTeam { name: "wire".into(), team: config }).unwrap();
    }

    pub fn nics(&mut self) -> Vec<NicStatus> {
        self.port("wire").team.unwrap().nics
    }

    pub fn refusal(&mut self, backend: Backend) -> String {
        let port = PortConfig { name: "refused".into(), switch: DEFAULT_SWITCH.into(), backend, policy: PortPolicy::default() };
        self.ask(Request::AddPort { port, missing: Missing::Refused }).unwrap_err()
    }
}

/// A socket that sends and hears frames at an interface.
pub struct Wire {
    port: FdPort,
    packet: Packet,
}

impl Wire {
    pub fn open(name: &str) -> Wire {
        let link = switch::links::netlink::list().unwrap().into_iter().find(|link| link.name == name).unwrap();
        Wire { port: FdPort::nic(name, link.index).unwrap(), packet: Packet::default() }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.port.write(&Vnet::default(), &[Segment::of(frame)]).unwrap();
    }

    /// As many times as the kernel takes it of `count`.
    pub fn flood(&mut self, frame: &[u8], count: usize) {
        (0..count).for_each(|_| _ = self.port.write(&Vnet::default(), &[Segment::of(frame)]));
    }

    /// The beginnings of all frames of this type that have come, behind a tag or not.
    pub fn take(&mut self, ether_type: u16) -> Vec<Vec<u8>> {
        self.take_with(ether_type, |packet| packet.head().to_vec())
    }

    /// The lengths of the same.
    pub fn take_lengths(&mut self, ether_type: u16) -> Vec<usize> {
        self.take_with(ether_type, |packet| packet.length)
    }

    fn take_with<R>(&mut self, ether_type: u16, what: impl Fn(&Packet) -> R) -> Vec<R> {
        let mut frames = Vec::new();
        while let Some(taken) = self.port.read(&mut self.packet) {
            taken.unwrap();
            let head = self.packet.head();
            let kind = if head[12..14] == [0x81, 0] { &head[16..18] } else { &head[12..14] };
            if kind == ether_type.to_be_bytes() {
                frames.push(what(&self.packet));
            }
        }
        frames
    }

    /// The next ones, waiting for the first.
    pub fn next(&mut self, ether_type: u16) -> Vec<Vec<u8>> {
        loop {
            let frames = self.take(ether_type);
            if !frames.is_empty() {
                return frames;
            }
            let mut poll = libc::pollfd { fd: self.port.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
            assert_eq!(ready, 1, "nothing of type {ether_type:#x} came");
        }
    }

    /// Asks for `10.9.0.1` in a VLAN, as a station would that has `10.9.0.2`; 0 is no VLAN.
    pub fn ask(&mut self, vlan: u16) {
        let mut frame = [[0xff; 6], STATION.0].concat();
        if vlan != 0 {
            frame.extend([[0x81, 0], vlan.to_be_bytes()].concat());
        }
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([&STATION.0[..], &[10, 9, 0, 2], &[0; 6], &[10, 9, 0, 1]].concat());
        frame.resize(60, 0);
        self.send(&frame);
    }
}

/// The address of whom [`Wire`] speaks for.
pub const STATION: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const RARP: u16 = 0x8035;
