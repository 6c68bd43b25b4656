//! Calls that fail instead of ending the process.
//!
//! The C library and Rust's make them by themselves on occasion, and go on without: `malloc` looks into `/proc` before it gives memory
//! back, a panic looks for its source files, a disk that is locked has its holder looked for. They fail with `EACCES`.
//! `clone3` takes its flags from memory, where a filter cannot see them; `ENOSYS` makes the C library use `clone`.
//!
//! A second program beside the list of allowed calls, which has only one way to say no. Of several verdicts the kernel takes the
//! stricter, an error here before a permission there.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};
use seccompiler::{BpfProgram, sock_filter};

/// These fail. All filters have to let them pass.
pub const REFUSED: [libc::c_long; 11] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_unlink,
];

/// These fail unless they ask for the attributes of an open descriptor (`AT_EMPTY_PATH`). All filters have to let them pass.
pub const REFUSED_BY_PATH: [libc::c_long; 2] = [libc::SYS_statx, libc::SYS_newfstatat];

/// Offsets in `struct seccomp_data`, and `AUDIT_ARCH_X86_64`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}
const X86_64: u32 = 0xc000_003e;

/// The program.
pub fn program() -> BpfProgram {
    let refused = REFUSED.len() as u8;
    let mut program = vec![
        load(ARCHITECTURE),
        // Other architectures' calls are the other program's business.
        jump(BPF_JEQ, X86_64, 1, 0),
        verdict(SECCOMP_RET_ALLOW),
        load(NUMBER),
        jump(BPF_JEQ, libc::SYS_clone3 as u32, refused + 9, 0),
    ];
    for (index, call) in (1u8..).zip(REFUSED) {
        program.push(jump(BPF_JEQ, call as u32, refused - index + 8, 0));
    }
    program.extend([
        jump(BPF_JEQ, libc::SYS_statx as u32, 2, 0),
        jump(BPF_JEQ, libc::SYS_newfstatat as u32, 3, 0),
        verdict(SECCOMP_RET_ALLOW),
        load(argument(2)),
        jump(BPF_JSET, libc::AT_EMPTY_PATH as u32, 2, 3),
        load(argument(3)),
        jump(BPF_JSET, libc::AT_EMPTY_PATH as u32, 0, 1),
        verdict(SECCOMP_RET_ALLOW),
        verdict(SECCOMP_RET_ERRNO | libc::EACCES as u32),
        verdict(SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]);
    program
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn jump(comparison: u32, value: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | comparison | BPF_K) as u16, jt, jf, k: value }
}

fn verdict(action: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: action }
}
