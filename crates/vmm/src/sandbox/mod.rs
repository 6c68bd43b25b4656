//! What the monitor denies itself, so that a guest that breaks out of its VM gets next to nothing.
//!
//! ```text
//!  main ── begin() ── Machine::new opens everything ──▶ confine_thread(Control) ── serves, runs the VM
//!            │            ├── vcpuN   ──▶ confine_thread(Vcpu)      first thing on the thread
//!            │            └── spawner ──▶ confine_thread(Spawner)      └── workers ──▶ confine_thread(Block, Tap, ...)
//!            └── what is the process's: limits, the handler of forbidden calls
//! ```
//!
//! Each thread confines itself, once and for good, in this order: its user and groups become the VM's own and all capabilities go
//! ([`identity`], only when started as root), `no_new_privs`, Landlock (no file can be opened, made or removed and no TCP
//! socket used; existing descriptors are not affected), and a list of the system calls that threads of its kind make
//! ([`filters`]). All of it is per thread in Linux and is inherited: threads that are started later begin with what their parent
//! has left, and take away more. A call that is not on the list ends the process with a message that names it ([`confine`]);
//! file system calls that libraries make on occasion fail instead.
//!
//! One process has one memory: a thread that is taken over can in time make others do their part, so what the whole
//! monitor can do is the sum of its filters. The filters of single threads make that a second break-in.
//!
//! Not done here: namespaces and cgroups. The host's daemon starts monitors in their own; one started by hand has those of its user.

pub mod filters;
pub mod identity;
mod ioctls;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use confine::landlock::RulesetCreated;
use confine::seccompiler::BpfProgram;
use confine::{ConfineError, Voice};

pub use identity::{Identity, IdentityError};

/// The kinds of threads of a monitor; each has a system-call filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// The main thread: control socket, events, life cycle.
    Control,
    /// A vCPU.
    Vcpu,
    /// The thread that starts and stops devices.
    Spawner,
    /// A queue of a block device.
    Block,
    /// A network device on a TAP.
    Tap,
    /// A network device whose back end is another process.
    VhostUser,
    /// The socket device.
    Vsock,
    /// Console, entropy, balloon, memory.
    Misc,
}

impl ThreadKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [ThreadKind; 8] = [
        ThreadKind::Control,
        ThreadKind::Vcpu,
        ThreadKind::Spawner,
        ThreadKind::Block,
        ThreadKind::Tap,
        ThreadKind::VhostUser,
        ThreadKind::Vsock,
        ThreadKind::Misc,
    ];
}

/// Why the monitor, or one of its threads, could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The user to run as.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The kernel.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// What the process was confined with; not set when it is not.
static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();

struct Confinement {
    identity: Option<Identity>,
    ruleset: RulesetCreated,
    /// By kind, each compiled when the first thread of the kind starts.
    filters: [OnceLock<BpfProgram>; ThreadKind::ALL.len()],
}

/// Decides that this process is confined, and does what concerns it as a whole. Every [`confine_thread`] from now on takes effect, so it
/// comes before the first thread is started. `identity` is the user to become, where there is one.
pub fn begin(identity: Option<Identity>) -> Result<(), SandboxError> {
    confine::begin(VOICE, MAX_FILES)?;
    let confinement = Confinement { identity, ruleset: confine::files(&[])?, filters: Default::default() };
    // A second call changes nothing.
    let _ = CONFINEMENT.set(confinement);
    Ok(())
}

/// Confines the calling thread for good. Does nothing when the monitor runs unconfined. A thread that should be confined but cannot
/// be ends the process, with the reason.
pub fn confine_thread(kind: ThreadKind) {
    let Some(confinement) = CONFINEMENT.get() else { return };
    if let Err(error) = confinement.enforce(kind) {
        eprintln!("maru-vmm: a thread could not be confined: {}", crate::error_chain(&error));
        // SAFETY: ends the process at once; no other thread may go on with one of them unconfined.
        unsafe { libc::_exit(1) };
    }
}

/// Whether the calling thread is confined by [`confine_thread`].
pub fn is_confined() -> bool {
    CONFINEMENT.get().is_some() && confine::has_filter()
}

impl Confinement {
    fn enforce(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        identity::drop_privileges(self.identity.as_ref())?;
        if kind == ThreadKind::Control {
            confine::close_to_debuggers()?;
        }
        let has_landlock = confine::enter(&self.ruleset, self.filter(kind))?;
        if kind == ThreadKind::Control && !has_landlock {
            eprintln!("maru-vmm: this kernel has no Landlock: only the list of system calls keeps the monitor from files");
        }
        Ok(())
    }

    fn filter(&self, kind: ThreadKind) -> &BpfProgram {
        self.filters[kind as usize].get_or_init(|| filters::policy(kind).compile())
    }
}

/// Open files that a monitor may have: with 254 vCPUs and 26 devices of many queues it needs about 2000.
const MAX_FILES: u64 = 8192;

const VOICE: Voice = Voice {
    program: "maru-vmm",
    consequence: "the VM is stopped. Either its guest has attacked the monitor, or this is a bug of the monitor",
};
