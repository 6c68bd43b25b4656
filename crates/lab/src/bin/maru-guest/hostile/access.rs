//! Accesses that reach devices: I/O ports, and physical memory through `/dev/mem`.

use std::arch::asm;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Allows this process, and threads that it starts later, all ports.
pub fn allow_ports() -> io::Result<()> {
    // SAFETY: changes what the process may do, no memory.
    if unsafe { libc::iopl(3) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads `width` bytes (1, 2 or 4) from a port.
pub fn read_port(port: u16, width: usize) -> u32 {
    // SAFETY: ports of the virtual machine's devices, none of which has anything to do with memory of this process.
    unsafe {
        match width {
            1 => {
                let value: u8;
                asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack));
                u32::from(value)
            }
            2 => {
                let value: u16;
                asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack));
                u32::from(value)
            }
            _ => {
                let value: u32;
                asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack));
                value
            }
        }
    }
}

/// Writes `width` bytes (1, 2 or 4) to a port.
pub fn write_port(port: u16, width: usize, value: u32) {
    // SAFETY: as in `read_port`.
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8, options(nomem, nostack)),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nomem, nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)),
        }
    }
}

/// Fills `buffer` with one string instruction (`rep ins`).
pub fn read_string(port: u16, width: usize, buffer: &mut [u8]) {
    let (pointer, count) = (buffer.as_mut_ptr(), buffer.len() / width);
    // SAFETY: writes `count * width` bytes at most, which is not more than the buffer has.
    unsafe {
        match width {
            1 => asm!("rep insb", in("dx") port, inout("rdi") pointer => _, inout("rcx") count => _, options(nostack)),
            2 => asm!("rep insw", in("dx") port, inout("rdi") pointer => _, inout("rcx") count => _, options(nostack)),
            _ => asm!("rep insd", in("dx") port, inout("rdi") pointer => _, inout("rcx") count => _, options(nostack)),
        }
    }
}

/// Writes `buffer` with one string instruction (`rep outs`).
pub fn write_string(port: u16, width: usize, buffer: &[u8]) {
    let (pointer, count) = (buffer.as_ptr(), buffer.len() / width);
    // SAFETY: reads `count * width` bytes at most, which is not more than the buffer has.
    unsafe {
        match width {
            1 => asm!("rep outsb", in("dx") port, inout("rsi") pointer => _, inout("rcx") count => _, options(nostack)),
            2 => asm!("rep outsw", in("dx") port, inout("rsi") pointer => _, inout("rcx") count => _, options(nostack)),
            _ => asm!("rep outsd", in("dx") port, inout("rsi") pointer => _, inout("rcx") count => _, options(nostack)),
        }
    }
}

/// Physical memory, or registers, of this machine. Clones are the same; mapped until the machine ends.
#[derive(Clone, Copy)]
pub struct Physical {
    base: *mut u8,
    start: u64,
    length: u64,
}

// SAFETY: the mapping is never undone, no reference to it is ever made, and all accesses are single instructions.
unsafe impl Send for Physical {}
// SAFETY: as above.
unsafe impl Sync for Physical {}

impl Physical {
    /// Maps it. The kernel has to be told `iomem=relaxed`.
    pub fn map(start: u64, length: u64) -> io::Result<Physical> {
        let file = File::options().read(true).write(true).open("/dev/mem")?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                start as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Physical { base: base.cast(), start, length })
    }

    /// A part of it.
    pub fn part(&self, offset: u64, length: u64) -> Physical {
        assert!(offset + length <= self.length, "{offset:#x} + {length:#x} of {:#x}", self.length);
        // SAFETY: within the mapping, as just checked.
        Physical { base: unsafe { self.base.add(offset as usize) }, start: self.start + offset, length }
    }

    /// Its physical address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// One load of `width` bytes (1, 2, 4 or 8), aligned or not.
    pub fn read(&self, offset: u64, width: usize) -> u64 {
        assert!(offset + width as u64 <= self.length, "{offset:#x}");
        let value: u64;
        // SAFETY: within the mapping, as just checked; assembly, because Rust's volatile accesses must be aligned and these need not be.
        unsafe {
            let pointer = self.base.add(offset as usize);
            match width {
                1 => asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) pointer, options(nostack)),
                2 => asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) pointer, options(nostack)),
                4 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) pointer, options(nostack)),
                _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) pointer, options(nostack)),
            }
        }
        value
    }

    /// One store of `width` bytes (1, 2, 4 or 8), aligned or not.
    pub fn write(&self, offset: u64, width: usize, value: u64) {
        assert!(offset + width as u64 <= self.length, "{offset:#x}");
        // SAFETY: as in `read`; nothing of Rust lives in this memory.
        unsafe {
            let pointer = self.base.add(offset as usize);
            match width {
                1 => asm!("mov byte ptr [{0}], {1}", in(reg) pointer, in(reg_byte) value as u8, options(nostack)),
                2 => asm!("mov word ptr [{0}], {1:x}", in(reg) pointer, in(reg) value, options(nostack)),
                4 => asm!("mov dword ptr [{0}], {1:e}", in(reg) pointer, in(reg) value, options(nostack)),
                _ => asm!("mov qword ptr [{0}], {1}", in(reg) pointer, in(reg) value, options(nostack)),
            }
        }
    }

    /// Stores the same 8 bytes everywhere.
    pub fn fill(&self, value: u64) {
        (0..self.length / 8).for_each(|word| self.write(word * 8, 8, value));
    }

    /// Stores bytes.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        bytes.iter().zip(offset..).for_each(|(byte, at)| self.write(at, 1, u64::from(*byte)));
    }

    /// Loads bytes.
    pub fn read_bytes(&self, offset: u64, count: u64) -> Vec<u8> {
        (offset..offset + count).map(|at| self.read(at, 1) as u8).collect()
    }
}
