//! The program at a NIC: each frame goes to the socket of the queue that it came in at.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::XdpError;

// Commands of bpf(2), types and flags: linux/bpf.h, linux/if_link.h.
const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const HELPER_REDIRECT_MAP: i32 = 51;
const PSEUDO_MAP_FD: u8 = 1;
const XDP_DROP: i32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Of `struct xdp_md`.
const RX_QUEUE_INDEX: i16 = 16;

/// The commands of `bpf` that are used here.
pub const COMMANDS: [u32; 4] = [MAP_CREATE, MAP_UPDATE_ELEM, PROG_LOAD, LINK_CREATE];

const NEEDS: &str = ": the switch needs CAP_BPF and CAP_NET_ADMIN, and a kernel from 5.9 on with CONFIG_XDP_SOCKETS";

/// An instruction of BPF (RFC 9669 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The target in the low half, the source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Hands a frame to the map's socket for its queue. One of a queue that has none is dropped: the NIC is the switch's alone.
fn instructions(map: i32) -> [Instruction; 6] {
    let step = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    [
        // r2 = context.rx_queue_index
        step(0x61, 0x12, RX_QUEUE_INDEX, 0),
        // r1 = map, in two
        step(0x18, PSEUDO_MAP_FD << 4 | 1, 0, map),
        step(0, 0, 0, 0),
        // r3 = what to do if the map has none
        step(0xb7, 0x03, 0, XDP_DROP),
        // r0 = bpf_redirect_map(r1, r2, r3)
        step(0x85, 0, 0, HELPER_REDIRECT_MAP),
        // return r0
        step(0x95, 0, 0, 0),
    ]
}

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct UpdateElement {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    _log: [u32; 5],
    flags: u32,
    name: [u8; 16],
    _device: u32,
    attach_type: u32,
}

#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
/// `T` is what the command takes, without bytes that are not set, and what it points to is there.
unsafe fn bpf<T>(command: u32, argument: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as are given, and what the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(argument), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn step(what: &'static str, hint: &'static str) -> impl FnOnce(io::Error) -> XdpError {
    move |source| XdpError::Program { what, hint, source }
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The driver, before anything else is done for a frame.
    Native,
    /// The kernel, when the frame has all that its own frames have.
    Generic,
}

/// A program that is loaded, and its map of sockets.
#[derive(Debug)]
pub(super) struct Program {
    map: OwnedFd,
    program: OwnedFd,
}

impl Program {
    /// Loads it for a NIC with so many queues.
    pub fn load(queues: u32) -> Result<Program, XdpError> {
        let map = CreateMap { kind: MAP_TYPE_XSKMAP, key_bytes: 4, value_bytes: 4, entries: queues };
        // SAFETY: plain numbers.
        let map = unsafe { bpf(MAP_CREATE, &map) }.map_err(step("make a map of sockets", NEEDS))?;
        // SAFETY: the descriptor is new and nobody else's; the kernel closes it when a program is run.
        let map = unsafe { OwnedFd::from_raw_fd(map) };
        let instructions = instructions(map.as_raw_fd());
        let load = LoadProgram {
            kind: PROG_TYPE_XDP,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            // It calls nothing that is for the GPL alone.
            license: c"Apache-2.0 or MIT".as_ptr() as u64,
            _log: [0; 5],
            flags: 0,
            name: *b"maru_switch\0\0\0\0\0",
            _device: 0,
            attach_type: ATTACH_XDP,
        };
        // SAFETY: instructions and text live through the call.
        let program = unsafe { bpf(PROG_LOAD, &load) }.map_err(step("load an XDP program", NEEDS))?;
        // SAFETY: as above.
        Ok(Program { map, program: unsafe { OwnedFd::from_raw_fd(program) } })
    }

    /// Attaches it to a NIC, for as long as what is returned is there.
    pub fn attach(&self, interface: u32, mode: Mode) -> Result<OwnedFd, XdpError> {
        let flags = match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let link = CreateLink { program: self.program.as_raw_fd() as u32, interface, attach_type: ATTACH_XDP, flags };
        // SAFETY: plain numbers.
        match unsafe { bpf(LINK_CREATE, &link) } {
            // SAFETY: as above.
            Ok(link) => Ok(unsafe { OwnedFd::from_raw_fd(link) }),
            Err(source) => Err(match (source.raw_os_error(), mode) {
                (Some(libc::EBUSY | libc::EEXIST), _) => XdpError::Occupied,
                (Some(libc::EPERM), _) => step("attach an XDP program", NEEDS)(source),
                (_, Mode::Native) => XdpError::Native(source),
                (_, Mode::Generic) => XdpError::Generic(source),
            }),
        }
    }

    /// Gives a queue's frames to a socket.
    pub fn give(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), XdpError> {
        let value = socket.as_raw_fd() as u32;
        let update = UpdateElement {
            map: self.map.as_raw_fd() as u32,
            _padding: 0,
            key: &raw const queue as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: key and value are as long as the map's, and live through the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &update) }.map(drop).map_err(step("put a socket into the program's map", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_an_assembler_makes_of_it() {
        // llvm-mc's bytes for: r2 = *(u32 *)(r1 + 16); r1 = 7 ll (with the map's mark); r3 = 1; call 51; exit
        let expected = [
            [0x61, 0x12, 0x10, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 7, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x03, 0, 0, 1, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        let bytes = instructions(7).map(|Instruction { code, registers, offset, immediate }| {
            let [a, b] = offset.to_le_bytes();
            let [c, d, e, f] = immediate.to_le_bytes();
            [code, registers, a, b, c, d, e, f]
        });
        assert_eq!(bytes, expected);
    }

    #[test]
    fn arguments_have_the_kernels_layout() {
        // `union bpf_attr` of linux/bpf.h.
        assert_eq!((size_of::<Instruction>(), size_of::<CreateMap>(), size_of::<CreateLink>()), (8, 16, 16));
        assert_eq!((size_of::<UpdateElement>(), std::mem::offset_of!(UpdateElement, key)), (32, 8));
        assert_eq!(std::mem::offset_of!(LoadProgram, flags), 48 - 4);
        assert_eq!((std::mem::offset_of!(LoadProgram, name), std::mem::offset_of!(LoadProgram, attach_type)), (48, 68));
        assert_eq!(size_of::<LoadProgram>(), 72);
    }
}
