//! What programs that strangers talk to deny themselves: files, with Landlock, and system calls, with seccomp.
//!
//! ```text
//!  main ── begin() ── opens what it needs ──▶ enter() ── serves
//!                       └── thread ──▶ enter()   first thing on the thread
//! ```
//!
//! Both walls are per thread in Linux and inherited: a thread that is started later begins with what its parent has left, and takes
//! away more. A program has a list ([`Policy`]) for each kind of its threads, made of what every thread needs ([`threads`]) and what its
//! kind does. A call that is not on the list ends the process with status [`EXIT_STATUS`] and a message that names it.
//!
//! Users and capabilities are each program's own matter.

pub mod inspect;
mod policy;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod threads;
mod violation;

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use seccompiler::BpfProgram;

pub use landlock;
pub use policy::{Check, Policy, Verdict};
pub use seccompiler;
pub use violation::{EXIT_STATUS, Voice};

/// Why a program, or one of its threads, could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel has none.
    #[error("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER); use another, or --unconfined")]
    NoSeccomp,
    /// The kernel refused a step.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something that shall stay in reach is not there.
    #[error("keeping access to {path}")]
    Path {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be had.
        #[source]
        source: landlock::PathFdError,
    },
    /// Landlock, where the kernel has it.
    #[error("giving up access to files")]
    Landlock(#[from] RulesetError),
    /// The kernel did not take the list.
    #[error("giving up system calls")]
    Filter(#[from] seccompiler::Error),
}

/// An error of a step, with its name.
pub fn step(what: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    move |source| ConfineError::Step { what, source }
}

/// Does what concerns the process as a whole, before it starts its first thread: no core dumps, at most `most_files` open files, and a
/// message in this voice for a forbidden call.
pub fn begin(voice: Voice, most_files: u64) -> Result<(), ConfineError> {
    // SAFETY: without a filter to install, the kernel only looks for the operation, and reports the missing pointer.
    let probe = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0, 0, 0) };
    if probe != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) {
        return Err(ConfineError::NoSeccomp);
    }
    limit(libc::RLIMIT_CORE, 0).map_err(step("switching core dumps off"))?;
    limit(libc::RLIMIT_NOFILE, most_files).map_err(step("limiting open files"))?;
    violation::install_handler(voice).map_err(step("handling forbidden system calls"))
}

/// Nobody of the same user may look into the process's memory or trace it any more.
pub fn close_to_debuggers() -> Result<(), ConfineError> {
    // SAFETY: sets a flag of the process.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(step("closing the process to debuggers")(io::Error::last_os_error())),
    }
}

/// Everything that Landlock can deny, denied, as far as this kernel knows it, but for what is `allowed` at or below some paths, which must
/// be there. Signals are not: each thread is a domain of its own, and kernels before 6.15 then deny signals to other threads of the
/// process.
pub fn files(allowed: &[(PathBuf, BitFlags<AccessFs>)]) -> Result<RulesetCreated, ConfineError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    allowed.iter().try_fold(ruleset, |ruleset, (path, access)| {
        let at = PathFd::new(path).map_err(|source| ConfineError::Path { path: path.clone(), source })?;
        Ok(ruleset.add_rule(PathBeneath::new(at, *access))?)
    })
}

/// Puts both walls around the calling thread, for good; sets `no_new_privs`, too. Tells whether the kernel has Landlock.
pub fn enter(files: &RulesetCreated, calls: &BpfProgram) -> Result<bool, ConfineError> {
    let ruleset = files.try_clone().map_err(step("copying the Landlock ruleset"))?;
    let status = ruleset.restrict_self()?;
    seccompiler::apply_filter(calls)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Whether the calling thread has a system-call filter.
pub fn has_filter() -> bool {
    // SAFETY: asks a number, no pointers.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == libc::SECCOMP_MODE_FILTER as i32 }
}

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
