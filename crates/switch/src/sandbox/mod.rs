//! What the switch denies itself, so that a VM that breaks into it gets next to nothing.
//!
//! ```text
//!  main ── begin() ──▶ confine_thread(Control) ── serves requests
//!                        ├── workerN ──▶ confine_thread(Worker)     first thing on the thread
//!                        ├── port-N  ──▶ confine_thread(FrontDoor)
//!                        ├── links   ──▶ confine_thread(Links)
//!                        └── clients ──▶ confine_thread(Clients) ── client ──▶ confine_thread(Client)
//! ```
//!
//! Each thread confines itself, for good: capabilities that its kind does not need go, then `no_new_privs`, Landlock and a list of
//! system calls ([`filters`], [`confine`]). The threads that VMs talk to (workers, front doors) have no capability, no file, and no
//! call that makes a descriptor of anything but what a front end sends. What is left to the control thread are sockets in some
//! directories, the state file, TAPs and NICs.

pub mod filters;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use confine::landlock::{AccessFs, BitFlags, RulesetCreated};
use confine::seccompiler::BpfProgram;
use confine::{ConfineError, Voice, step};

use crate::identity::{NETWORK, keep_capabilities};

/// Open files that a switch may have: 1024 ports with some queues need about 20,000.
const MAX_FILES: u64 = 65_536;
/// What TAPs are opened with.
const TUN: &str = "/dev/net/tun";

/// The kinds of threads of a switch; each has a system-call filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// The main thread: does what clients ask for.
    Control,
    /// It hears of links of NICs, and opens NICs that come back.
    Links,
    /// It waits for clients.
    Clients,
    /// It talks with one.
    Client,
    /// It talks with a VM's front end.
    FrontDoor,
    /// It moves frames.
    Worker,
}

impl ThreadKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [ThreadKind; 6] = [
        ThreadKind::Control,
        ThreadKind::Links,
        ThreadKind::Clients,
        ThreadKind::Client,
        ThreadKind::FrontDoor,
        ThreadKind::Worker,
    ];

    /// The capabilities that it needs: making TAPs and opening NICs.
    fn capabilities(self) -> u64 {
        match self {
            ThreadKind::Control | ThreadKind::Links => NETWORK,
            ThreadKind::Clients | ThreadKind::Client | ThreadKind::FrontDoor | ThreadKind::Worker => 0,
        }
    }
}

/// The files that stay in reach.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Directories in or below which ports have their sockets.
    pub sockets: Vec<PathBuf>,
    /// The state file.
    pub state: Option<PathBuf>,
}

/// What the process was confined with; not set when it is not.
static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();

struct Confinement {
    /// For the control thread.
    places: RulesetCreated,
    /// For all others.
    nothing: RulesetCreated,
    /// By kind, each compiled when the first thread of the kind starts.
    filters: [OnceLock<BpfProgram>; ThreadKind::ALL.len()],
}

/// Decides that this process is confined. Every [`confine_thread`] from now on takes effect, so it comes before the first thread is started.
pub fn begin(places: &Places) -> Result<(), ConfineError> {
    confine::begin(VOICE, MAX_FILES)?;
    let confinement =
        Confinement { places: confine::files(&allowed(places))?, nothing: confine::files(&[])?, filters: Default::default() };
    // A second call changes nothing.
    let _ = CONFINEMENT.set(confinement);
    Ok(())
}

fn allowed(places: &Places) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let sockets = places.sockets.iter().map(|path| (path.clone(), AccessFs::MakeSock | AccessFs::RemoveFile));
    // A new file takes the old one's place.
    let state = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let state = places.state.iter().map(|path| (directory_of(path), state));
    let tun = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let tun = Path::new(TUN).exists().then(|| (TUN.into(), tun));
    sockets.chain(state).chain(tun).collect()
}

/// The directory that a file is in.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(directory) if directory != Path::new("") => directory.into(),
        _ => ".".into(),
    }
}

/// Confines the calling thread for good. Does nothing when the switch runs unconfined. A thread that should be confined but cannot be
/// ends the process, with the reason.
pub fn confine_thread(kind: ThreadKind) {
    let Some(confinement) = CONFINEMENT.get() else { return };
    if let Err(error) = confinement.enforce(kind) {
        eprintln!("maru-switch: a thread could not be confined: {}", crate::error_chain(&error));
        // SAFETY: ends the process at once; no other thread may go on with one of them unconfined.
        unsafe { libc::_exit(1) };
    }
}

/// Whether the calling thread is confined by [`confine_thread`].
pub fn is_confined() -> bool {
    CONFINEMENT.get().is_some() && confine::has_filter()
}

impl Confinement {
    fn enforce(&self, kind: ThreadKind) -> Result<(), ConfineError> {
        keep_capabilities(kind.capabilities()).map_err(step("giving up capabilities"))?;
        let files = match kind {
            ThreadKind::Control => &self.places,
            _ => &self.nothing,
        };
        if kind == ThreadKind::Control {
            confine::close_to_debuggers()?;
        }
        let has_landlock = confine::enter(files, self.filters[kind as usize].get_or_init(|| filters::policy(kind).compile()))?;
        if kind == ThreadKind::Control && !has_landlock {
            eprintln!("maru-switch: this kernel has no Landlock: only the lists of system calls keep the switch from files");
        }
        Ok(())
    }
}

const VOICE: Voice = Voice {
    program: "maru-switch",
    consequence: "the switch ends. Either somebody has attacked it, or this is a bug of the switch",
};
