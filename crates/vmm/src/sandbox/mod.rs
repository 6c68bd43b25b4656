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
//! has left, and take away more. A call that is not on the list ends the process with a message that names it ([`violation`]);
//! file system calls that libraries make on occasion fail instead.
//!
//! One process has one memory: a thread that is taken over can in time make others do their part, so what the whole
//! monitor can do is the sum of its filters. The filters of single threads make that a second break-in.
//!
//! Not done here: namespaces and cgroups. The host's daemon starts monitors in their own; one started by hand has those of its user.

pub mod filters;
pub mod identity;
pub mod inspect;
mod ioctls;
mod policy;
#[cfg(test)]
mod tests;
mod violation;

use std::io;
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetError, RulesetStatus,
    Scope,
};
use seccompiler::BpfProgram;

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
    /// The kernel has none.
    #[error("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER); use another, or --unconfined")]
    NoSeccomp,
    /// The user to run as.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The kernel refused a step.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Landlock, where the kernel has it.
    #[error("giving up access to files")]
    Landlock(#[from] RulesetError),
    /// The kernel did not take the list.
    #[error("giving up system calls")]
    Filter(#[from] seccompiler::Error),
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
    // SAFETY: without a filter to install, the kernel only looks for the operation, and reports the missing pointer.
    let probe = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0, 0, 0) };
    if probe != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) {
        return Err(SandboxError::NoSeccomp);
    }
    limit(libc::RLIMIT_CORE, 0).map_err(step("switching core dumps off"))?;
    limit(libc::RLIMIT_NOFILE, MAX_FILES).map_err(step("limiting open files"))?;
    violation::install_handler().map_err(step("handling forbidden system calls"))?;
    let confinement = Confinement { identity, ruleset: no_files()?, filters: Default::default() };
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
    // SAFETY: asks a number, no pointers.
    CONFINEMENT.get().is_some() && unsafe { libc::prctl(libc::PR_GET_SECCOMP) } == libc::SECCOMP_MODE_FILTER as i32
}

impl Confinement {
    fn enforce(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        identity::drop_privileges(self.identity.as_ref())?;
        // Nobody of the same user may look into our memory or trace us.
        // SAFETY: sets a flag of the process.
        if kind == ThreadKind::Control && unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } != 0 {
            return Err(step("closing the process to debuggers")(io::Error::last_os_error()));
        }
        // This sets no_new_privs, too.
        let ruleset = self.ruleset.try_clone().map_err(step("copying the Landlock ruleset"))?;
        let status = ruleset.restrict_self()?;
        if kind == ThreadKind::Control && status.ruleset == RulesetStatus::NotEnforced {
            eprintln!("maru-vmm: this kernel has no Landlock: only the list of system calls keeps the monitor from files");
        }
        Ok(seccompiler::apply_filter(self.filter(kind))?)
    }

    fn filter(&self, kind: ThreadKind) -> &BpfProgram {
        self.filters[kind as usize].get_or_init(|| filters::policy(kind).compile())
    }
}

/// Everything that Landlock can deny, denied, as far as this kernel knows it. Signals are not: each thread is a domain of its own, and
/// kernels before 6.15 then deny signals to other threads of the process (vCPUs are stopped with them); the filters limit signals.
fn no_files() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::AbstractUnixSocket)?
        .create()
}

/// Open files that a monitor may have: with 254 vCPUs and 26 devices of many queues it needs about 2000.
const MAX_FILES: u64 = 8192;

/// Sets both limits, as far as the hard one allows.
fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and has room for the answer.
    if unsafe { libc::getrlimit(resource, &mut limits) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let most = most.min(limits.rlim_max);
    let limits = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: reads the structure.
    if unsafe { libc::setrlimit(resource, &limits) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Step { what, source }
}
