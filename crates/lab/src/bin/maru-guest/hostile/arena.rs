//! The memory that devices are let loose on: reserved on the kernel's command line, so that nothing of the guest's own lives there.
//!
//! A device does what a driver says, and a driver that says random things would have it write all over the guest. So what devices
//! may write lies in `data`, or where no memory is; what steers them, in parts that they never write.
//!
//! ```text
//! 0x000000 rings, 64 KiB a queue    0x100000 indirect tables     0x200000 page numbers    0x220000 request headers
//! 0x400000 data                     0xf00000 rings and data of proofs                     0x1000000 a pattern that must stay
//! ```

use lab::pid1::CommandLine;

use super::access::Physical;

/// Queues that have a place for their rings.
pub const PLACES: u64 = 16;
/// What each has.
pub const PLACE_BYTES: u64 = 0x1_0000;
/// Indirect tables of 4 KiB.
pub const INDIRECT_TABLES: u64 = 256;
/// Request headers.
pub const HEADERS: u64 = 64;
/// Room for each.
pub const HEADER_BYTES: u64 = 2048;

const LENGTH: u64 = 0x102_0000;
const PATTERN: u64 = 0x5a5a_a5a5_0ff0_1234;

/// The reserved memory, by what it is for.
#[derive(Clone, Copy)]
pub struct Arena {
    pub rings: Physical,
    pub indirect: Physical,
    pub page_numbers: Physical,
    pub headers: Physical,
    pub data: Physical,
    pub proof: Physical,
    canary: Physical,
}

impl Arena {
    /// Maps what `memmap=17M$START` reserved.
    pub fn reserved(line: &CommandLine) -> Result<Arena, String> {
        let word = line.get("memmap").and_then(|word| word.split_once('$')).ok_or("memmap=17M$START is missing")?;
        let mebibytes =
            |text: &str| text.strip_suffix('M').and_then(|number| number.parse::<u64>().ok()).map(|number| number << 20);
        let (Some(length), Some(start)) = (mebibytes(word.0), mebibytes(word.1)) else {
            return Err("memmap= is not of the form 17M$STARTM".into());
        };
        if length < LENGTH {
            return Err(format!("memmap= reserves {length:#x} bytes, {LENGTH:#x} are needed"));
        }
        let all = Physical::map(start, LENGTH).map_err(|error| format!("/dev/mem at {start:#x}: {error}"))?;
        let arena = Arena {
            rings: all.part(0, PLACES * PLACE_BYTES),
            indirect: all.part(0x10_0000, INDIRECT_TABLES * 4096),
            page_numbers: all.part(0x20_0000, 0x2_0000),
            headers: all.part(0x22_0000, HEADERS * HEADER_BYTES),
            data: all.part(0x40_0000, 0xb0_0000),
            proof: all.part(0xf0_0000, 0x10_0000),
            canary: all.part(0x100_0000, 0x2_0000),
        };
        arena.canary.fill(PATTERN);
        Ok(arena)
    }

    /// Memory that devices may read.
    pub fn canary(&self) -> &Physical {
        &self.canary
    }

    /// Whether no device wrote where it was only let read.
    pub fn check(&self) -> Result<(), String> {
        match (0..self.canary.length() / 8).find(|word| self.canary.read(word * 8, 8) != PATTERN) {
            None => Ok(()),
            Some(word) => Err(format!("a device wrote to {:#x}, which it may only read", self.canary.start() + word * 8)),
        }
    }
}
