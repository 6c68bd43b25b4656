//! Starts processes that must not outlive this one, whatever ends it.
//!
//! `PR_SET_PDEATHSIG` is bound to the *thread* that forked: a process started by a test's thread would be killed as soon
//! as that thread ends. So one thread, which lives as long as the process, starts them all.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

struct Order {
    command: Command,
    inherited: Vec<OwnedFd>,
    reply: Sender<io::Result<Child>>,
}

/// Starts `command` with the `inherited` descriptors open under the same numbers. The kernel kills it when this process
/// ends, by a crash or `SIGKILL` too.
pub fn spawn(command: Command, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    static KEEPER: OnceLock<Sender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || inbox.iter().for_each(carry_out));
        orders
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = channel();
    keeper.send(Order { command, inherited, reply }).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

fn carry_out(Order { mut command, inherited, reply }: Order) {
    let parent = std::process::id();
    let numbers: Vec<i32> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec only async-signal-safe system calls are made; `numbers` was allocated before.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the request took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for &number in &numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    // Whoever asked may be gone; then the process is killed.
    if let Err(unwanted) = reply.send(command.spawn())
        && let Ok(mut child) = unwanted.0
    {
        let _ = child.kill();
        let _ = child.wait();
    }
}
