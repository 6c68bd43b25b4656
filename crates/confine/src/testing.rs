//! What tests of confined programs are made of.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::policy::run;
use crate::{EXIT_STATUS, Policy};

/// How a child ended, and what it wrote to standard error.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// Its exit status, or the signal that ended it.
    pub status: Result<i32, i32>,
    /// Standard error.
    pub said: String,
}

impl End {
    /// As it should be.
    pub fn fine() -> End {
        End { status: Ok(0), said: String::new() }
    }

    /// Whether it made this forbidden call.
    pub fn was_forbidden(&self, call: libc::c_long) -> bool {
        self.status == Ok(EXIT_STATUS) && self.said.contains(&format!("forbidden system call {call} "))
    }

    /// Kernels without Landlock say so, which is not what is tested.
    pub fn without_landlock(mut self) -> End {
        self.said = self.said.lines().filter(|line| !line.contains("no Landlock")).map(|line| format!("{line}\n")).collect();
        self
    }
}

/// Runs `work` in a child process, because a process stays confined; what it returns is the exit status.
pub fn child(work: impl FnOnce() -> i32) -> End {
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: both are new.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(pipe[0]), OwnedFd::from_raw_fd(pipe[1])) };
    // SAFETY: the child uses nothing that another thread of the parent could have locked but the allocator, which the C library keeps
    // usable over a fork.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: valid descriptors.
            unsafe { libc::dup2(write.as_raw_fd(), libc::STDERR_FILENO) };
            drop((read, write));
            let status = work();
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(status) }
        }
        pid => {
            drop(write);
            let mut said = String::new();
            std::fs::File::from(read).read_to_string(&mut said).unwrap();
            let mut status = 0;
            // SAFETY: room for a status.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            let status = if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) };
            End { status, said }
        }
    }
}

/// Makes a system call; with pointers that are valid, or that the kernel refuses.
pub fn call(number: libc::c_long, arguments: [usize; 4]) -> i64 {
    let [a, b, c, d] = arguments;
    // SAFETY: the tests pass numbers, or pointers that the kernel refuses or that are valid.
    unsafe { libc::syscall(number, a, b, c, d) }
}

/// Calls, with arguments, that no thread of any program of ours needs.
pub const NEVER: [(libc::c_long, [usize; 4]); 16] = {
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as usize;
    [
        (libc::SYS_execve, [0; 4]),
        (libc::SYS_fork, [0; 4]),
        (libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0]),
        (libc::SYS_ptrace, [0; 4]),
        (libc::SYS_kill, [1, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0, 0]),
        (libc::SYS_mmap, [0, 4096, executable, libc::MAP_PRIVATE as usize]),
        (libc::SYS_mprotect, [0, 4096, executable, 0]),
        (libc::SYS_setresuid, [0; 4]),
        // Attaching a program to whatever there is.
        (libc::SYS_bpf, [8, 0, 0, 0]),
        (libc::SYS_mount, [0; 4]),
        (libc::SYS_process_vm_readv, [1, 0, 0, 0]),
        (libc::SYS_ioctl, [0, 0x5412, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0]),
        (libc::SYS_unlinkat, [0; 4]),
        (libc::SYS_prlimit64, [0; 4]),
    ]
};

/// Checks a compiled list against what it says, for every call.
pub fn assert_program_is_the_list(policy: &Policy) {
    let program = policy.compile();
    assert!(program.len() < 1000, "{} instructions", program.len());
    // Past the last: those of the x32 interface, and no number at all.
    for call in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
        for arguments in [[0; 6], [u64::MAX; 6], [1, 3, 4, 0x1000, 0x1000, 1]] {
            assert_eq!(run(&program, call, arguments), policy.verdict(call, arguments), "{call}, {arguments:?}");
        }
    }
}
