//! The command line of `marud`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
marud: the daemon of a host

usage: marud [options]

  --state DIR        what must not be lost: store, certificate authority, audit log (/var/lib/maru)
  --run DIR          what belongs to running VMs (/run/maru)
  --listen ADDR:PORT where the API is ([::]:8420)
  --name NAME        another name or address that clients know this host by, for its certificate; may be given several times
  --volume NAME=DIR  a directory with files of VMs; may be given several times (local=DIR-OF-STATE/volumes/local)
  --cgroup DIR       the control group that those of the VMs are made in (/sys/fs/cgroup/maru)
  --memory-overcommit PERCENT
                     how much of the host's memory running VMs may have together; more than 100 gives out more than there is (100)
  --boot-id FILE     what changes with each start of the host, after which VMs are started (/proc/sys/kernel/random/boot_id)
  --monitor FILE     the program that is a VM, instead of the maru-vmm beside marud or on PATH
  --switch FILE      the program that is the virtual switches, instead of the maru-switch beside marud or on PATH
  --etcd DIR         a directory with etcd's programs, which clusters need, beside the PATH and the usual places
  --etcd-ports N,N   where etcd listens for clients and for other members (2379,2380)
  --unconfined       do not confine monitors and the virtual switch: for finding errors only
  --version          print the version
  --help             print this

The first start makes a token for an administrator; its secret is in admin.token in the state's directory. Clients trust tls/ca.pem there.

marud may be ended and killed at any time: VMs go on, and the next marud finds them.
";

/// What `marud` is told.
#[derive(Debug)]
pub struct Options {
    /// `--state`.
    pub state: PathBuf,
    /// `--run`.
    pub run: PathBuf,
    /// `--listen`: addresses to try, the first that the kernel has.
    pub listen: Vec<SocketAddr>,
    /// `--name`.
    pub names: Vec<String>,
    /// `--volume`.
    pub volumes: Vec<String>,
    /// `--cgroup`.
    pub cgroup: PathBuf,
    /// `--memory-overcommit`, in per cent.
    pub memory_overcommit: u32,
    /// `--boot-id`.
    pub boot_id: PathBuf,
    /// `--monitor`.
    pub monitor: Option<PathBuf>,
    /// `--switch`.
    pub switch: Option<PathBuf>,
    /// `--etcd`.
    pub etcd: Option<PathBuf>,
    /// `--etcd-ports`.
    pub etcd_ports: (u16, u16),
    /// `--unconfined`.
    pub unconfined: bool,
}

/// What to do.
#[derive(Debug)]
pub enum Wanted {
    /// Run.
    Run(Box<Options>),
    /// Print this.
    Print(String),
}

/// Reads the command line.
pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Wanted, lexopt::Error> {
    let mut options = Options {
        state: "/var/lib/maru".into(),
        run: "/run/maru".into(),
        // A kernel may have been told to do without IPv6.
        listen: [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()]
            .map(|any| SocketAddr::new(any, api::DEFAULT_PORT))
            .into(),
        names: Vec::new(),
        volumes: Vec::new(),
        cgroup: "/sys/fs/cgroup/maru".into(),
        memory_overcommit: 100,
        boot_id: "/proc/sys/kernel/random/boot_id".into(),
        monitor: None,
        switch: None,
        etcd: None,
        etcd_ports: (2379, 2380),
        unconfined: false,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("state") => options.state = parser.value()?.into(),
            Long("run") => options.run = parser.value()?.into(),
            Long("listen") => options.listen = vec![parser.value()?.parse()?],
            Long("name") => options.names.push(parser.value()?.string()?),
            Long("volume") => options.volumes.push(parser.value()?.string()?),
            Long("cgroup") => options.cgroup = parser.value()?.into(),
            Long("memory-overcommit") => options.memory_overcommit = parser.value()?.parse()?,
            Long("boot-id") => options.boot_id = parser.value()?.into(),
            Long("monitor") => options.monitor = Some(parser.value()?.into()),
            Long("switch") => options.switch = Some(parser.value()?.into()),
            Long("etcd") => options.etcd = Some(parser.value()?.into()),
            Long("etcd-ports") => {
                options.etcd_ports = parser.value()?.parse_with(|text| {
                    let ports = text.split_once(',').and_then(|(client, peer)| Some((client.parse().ok()?, peer.parse().ok()?)));
                    ports.ok_or("two ports with a comma between them")
                })?;
            }
            Long("unconfined") => options.unconfined = true,
            Long("version") => return Ok(Wanted::Print(format!("marud {}\n", env!("CARGO_PKG_VERSION")))),
            Long("help") | Short('h') => return Ok(Wanted::Print(HELP.into())),
            other => return Err(other.unexpected()),
        }
    }
    if options.volumes.is_empty() {
        options.volumes.push(format!("local={}", options.state.join("volumes/local").display()));
    }
    Ok(Wanted::Run(options.into()))
}
