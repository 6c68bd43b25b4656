//! The steps of a request: what to ask of the kernel, and what its answer leads to.

use std::sync::atomic::AtomicBool;

use io_uring::{opcode, squeue, types};

use super::*;
use crate::geometry;
use crate::layer::Kind;

/// How often a request is tried again when the kernel says `EAGAIN` or `EINTR` in a row.
const MAX_RETRIES: u8 = 100;

/// What an answer leads to.
enum Next {
    /// Ask again (for what is left).
    Again,
    /// Another kind of step.
    Step(Phase),
    /// All of it is done, but for making it durable.
    Finish,
    /// It failed.
    Fail(IoError),
}

impl Engine {
    /// Queues the next step of a request.
    pub(super) fn issue(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        // A step that the storage is known not to have is not asked for.
        if let Phase::Punch { fallback: Fallback::Zero } = slot.phase
            && !self.disk.own().can_punch.load(Ordering::Relaxed)
        {
            slot.phase = Phase::ZeroRange;
        }
        if slot.phase == Phase::ZeroRange && !self.disk.own().can_zero.load(Ordering::Relaxed) {
            slot.phase = Phase::WriteZeros;
        }
        if matches!(slot.phase, Phase::Read | Phase::Write) && slot.route == Route::Bounce && slot.bounce.is_none() {
            if self.bounces_in_use == MAX_BOUNCES {
                self.waiting.push_back(number);
                return;
            }
            self.bounces_in_use += 1;
            let spare = self.spare_bounce.take();
            slot.bounce = Some(spare.unwrap_or_else(|| AlignedBuffer::new(BOUNCE_BYTES)));
        }
        let file = self.files[usize::from(slot.layer)];
        let entry = match slot.phase {
            Phase::Read | Phase::Write => transfer_entry(slot, file),
            Phase::Punch { .. } => fallocate_entry(slot, file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Phase::ZeroRange => fallocate_entry(slot, file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
            Phase::WriteZeros => {
                let zeros = self.zeros.get_or_insert_with(|| AlignedBuffer::new(ZEROS_BYTES));
                zeros_entry(slot, file, zeros, file.direct.map_or(1, |alignment| alignment.offset))
            }
            Phase::Sync => opcode::Fsync::new(file.plain).flags(types::FsyncFlags::DATASYNC).build(),
            Phase::Idle => unreachable!("an idle slot has no step"),
        };
        // SAFETY: the entry points to the caller's memory, valid until the request is reported by the caller's promise, or to
        // vectors and buffers that the slot (or the engine, for zeros) keeps until then; a dropped engine waits for both.
        unsafe { self.ring.push(&entry.user_data(u64::from(number))) };
        self.outstanding += 1;
    }

    /// Takes the kernel's answer; an event if a request has ended.
    pub(super) fn completed(&mut self, reaped: Reaped) -> Option<Event> {
        self.outstanding -= 1;
        let number = reaped.user_data as u32;
        let next = self.judge(number, reaped.result);
        let slot = &mut self.slots[number as usize];
        let result = match next {
            Next::Again => {
                self.issue(number);
                return None;
            }
            Next::Step(phase) => {
                slot.phase = phase;
                self.issue(number);
                return None;
            }
            // Data written durably came with RWF_DSYNC and needs no step of its own.
            Next::Finish if slot.durable && !matches!(slot.phase, Phase::Write | Phase::Sync) => {
                slot.phase = Phase::Sync;
                self.issue(number);
                return None;
            }
            Next::Finish => Ok(()),
            Next::Fail(error) => Err(error),
        };
        if let Some(bounce) = slot.bounce.take() {
            self.bounces_in_use -= 1;
            self.spare_bounce = Some(bounce);
            if let Some(next) = self.waiting.pop_front() {
                self.issue(next);
            } else if self.bounces_in_use == 0 {
                self.spare_bounce = None;
            }
        }
        if self.image.is_some() { self.image_slot_ended(number, result) } else { Some(self.end(number as u16, result)) }
    }

    fn judge(&mut self, number: u32, result: i32) -> Next {
        let slot = &mut self.slots[number as usize];
        let alignment = self.files[usize::from(slot.layer)].direct.map_or(1, |alignment| u64::from(alignment.offset));
        if matches!(-result, libc::EAGAIN | libc::EINTR) && slot.retries < MAX_RETRIES {
            slot.retries += 1;
            return Next::Again;
        }
        match slot.phase {
            Phase::Read | Phase::Write | Phase::WriteZeros if result < 0 => Next::Fail(IoError::from_errno(-result)),
            Phase::Read | Phase::Write | Phase::WriteZeros => {
                // Direct I/O can only go on at a sector boundary: what came after the last one is transferred again.
                let mut count = (result as u64).min(slot.asked);
                if count < slot.left && slot.route != Route::Cached {
                    count -= count % alignment;
                }
                if count == 0 && slot.left > 0 {
                    return Next::Fail(if slot.phase == Phase::Read { IoError::UnexpectedEnd } else { IoError::Os(libc::EIO) });
                }
                slot.retries = 0;
                if slot.route == Route::Bounce && slot.phase == Phase::Read {
                    // SAFETY: the caller promised that the segments are writable until the request is reported.
                    unsafe { slot.scatter(count as usize) };
                }
                slot.advance(count as usize);
                slot.offset += count;
                slot.left -= count;
                if slot.left > 0 { Next::Again } else { Next::Finish }
            }
            Phase::Punch { .. } | Phase::ZeroRange if result >= 0 => Next::Finish,
            Phase::Punch { fallback } if unsupported(-result) => {
                note_missing(&self.disk.own().can_punch, -result);
                match fallback {
                    Fallback::Zero => Next::Step(Phase::ZeroRange),
                    Fallback::Nothing => {
                        // A device that cannot promise zeros may still discard. This waits, in this rare case.
                        if self.disk.own().kind == Kind::BlockDevice {
                            let _ = geometry::device_discard(&self.disk.own().file, slot.offset, slot.left);
                        }
                        Next::Finish
                    }
                }
            }
            Phase::ZeroRange if unsupported(-result) => {
                note_missing(&self.disk.own().can_zero, -result);
                Next::Step(Phase::WriteZeros)
            }
            Phase::Sync if result >= 0 => Next::Finish,
            Phase::Punch { .. } | Phase::ZeroRange | Phase::Sync => Next::Fail(IoError::from_errno(-result)),
            Phase::Idle => unreachable!("the kernel answers what it was asked"),
        }
    }
}

/// Errors that say "not here" (or, `EINVAL`, "not this range": block devices want whole sectors).
fn unsupported(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
}

fn note_missing(flag: &AtomicBool, errno: i32) {
    if errno != libc::EINVAL {
        flag.store(false, Ordering::Relaxed);
    }
}

fn fallocate_entry(slot: &Slot, files: FilePair, mode: i32) -> squeue::Entry {
    opcode::Fallocate::new(files.plain, slot.left).offset(slot.offset).mode(mode).build()
}

fn transfer_entry(slot: &mut Slot, files: FilePair) -> squeue::Entry {
    let file = if slot.route == Route::Cached { files.cached } else { files.plain };
    let flags = if slot.durable { libc::RWF_DSYNC } else { 0 };
    let (pointer, length) = match (&slot.bounce, &slot.segments[slot.first..]) {
        (Some(bounce), _) => {
            let length = slot.left.min(bounce.len() as u64);
            if slot.phase == Phase::Write {
                // SAFETY: the caller promised that the segments are readable until the request is reported.
                unsafe { slot.gather(length as usize) };
            }
            (bounce.as_ptr(), length)
        }
        (None, []) => (std::ptr::null_mut(), 0),
        (None, [segment]) => (segment.iov_base.cast(), (segment.iov_len as u64).min(MAX_TRANSFER)),
        (None, segments) => {
            let vectors = segments.as_ptr();
            let count = segments.len().min(MAX_VECTORS) as u32;
            slot.asked = slot.left;
            return match slot.phase {
                Phase::Read => opcode::Readv::new(file, vectors, count).offset(slot.offset).build(),
                _ => opcode::Writev::new(file, vectors, count).offset(slot.offset).rw_flags(flags).build(),
            };
        }
    };
    slot.asked = length;
    match slot.phase {
        Phase::Read => opcode::Read::new(file, pointer, length as u32).offset(slot.offset).build(),
        _ => opcode::Write::new(file, pointer, length as u32).offset(slot.offset).rw_flags(flags).build(),
    }
}

fn zeros_entry(slot: &mut Slot, files: FilePair, zeros: &AlignedBuffer, alignment: u32) -> squeue::Entry {
    let mask = u64::from(alignment) - 1;
    let length = slot.left.min(zeros.len() as u64);
    // Pieces below direct I/O's own unit go through the cache, all of them, so that the two never meet in one block.
    if (slot.offset | slot.left) & mask != 0 {
        slot.route = Route::Cached;
    }
    let file = if slot.route == Route::Cached { files.cached } else { files.plain };
    slot.asked = length;
    opcode::Write::new(file, zeros.as_ptr(), length as u32).offset(slot.offset).build()
}
