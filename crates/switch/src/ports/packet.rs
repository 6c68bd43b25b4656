//! A frame on its way: a private copy of its beginning, and where the rest is.

use super::vnet::{SHORT, Vnet};
use crate::counters::DropReason;
use crate::frame::{HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, TYPE_VLAN};
use crate::pipeline::TagEdit;
use crate::ring::split::Segment;

/// The addresses, in front of a tag.
const ADDRESSES: usize = 12;

/// A frame. What is decided by is `head`, which its sender cannot change any more, and `head` is what goes on.
#[derive(Debug)]
pub struct Packet {
    /// What is left to be done to it.
    pub vnet: Vnet,
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// All of it, without the header of virtio.
    pub length: usize,
    /// What follows `head`.
    rest: Vec<Segment>,
}

impl Default for Packet {
    fn default() -> Packet {
        Packet { vnet: Vnet::default(), head: [0; HEADER_BYTES], head_bytes: 0, length: 0, rest: Vec::new() }
    }
}

impl Packet {
    /// Takes a frame from buffers that begin with a header of `vnet_bytes`.
    ///
    /// # Safety
    /// The buffers are still there, and stay until the packet's last use.
    pub unsafe fn take(&mut self, buffers: &[Segment], vnet_bytes: usize) -> Result<(), DropReason> {
        let total: usize = buffers.iter().map(Segment::len).sum();
        let length = total.checked_sub(vnet_bytes).ok_or(DropReason::Buffer)?;
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length) {
            return Err(DropReason::Length);
        }
        self.rest.clear();
        self.length = length;
        self.head_bytes = length.min(HEADER_BYTES);
        let mut vnet = [0; super::vnet::LONG];
        if let [buffer] = buffers {
            let mut buffer = *buffer;
            // SAFETY: by what the caller promises.
            buffer.skip(unsafe { buffer.read(&mut vnet[..vnet_bytes]) });
            // SAFETY: as above.
            buffer.skip(unsafe { buffer.read(&mut self.head[..self.head_bytes]) });
            if !buffer.is_empty() {
                self.rest.push(buffer);
            }
        } else {
            self.rest.extend_from_slice(buffers);
            // SAFETY: as above.
            unsafe { self.move_out(&mut vnet[..vnet_bytes]) };
            let mut head = [0; HEADER_BYTES];
            // SAFETY: as above.
            unsafe { self.move_out(&mut head[..self.head_bytes]) };
            self.head = head;
        }
        let mut fixed = [0; SHORT];
        fixed.copy_from_slice(&vnet[..SHORT]);
        self.vnet = Vnet::parse(&fixed, length).ok_or(DropReason::Buffer)?;
        Ok(())
    }

    /// Copies the beginning of `rest` out and leaves the rest of it.
    ///
    /// # Safety
    /// The segments are still there.
    unsafe fn move_out(&mut self, target: &mut [u8]) {
        let mut done = 0;
        let mut used_up = 0;
        for segment in &mut self.rest {
            if done == target.len() {
                break;
            }
            // SAFETY: by what the caller promises.
            let count = unsafe { segment.read(&mut target[done..]) };
            segment.skip(count);
            done += count;
            used_up += usize::from(segment.is_empty());
        }
        self.rest.drain(..used_up);
    }

    /// Its beginning.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }

    /// Puts a tag into it that the kernel had taken out.
    pub fn restore_tag(&mut self, kind: u16, control: u16, spill: &mut [u8; 4]) {
        let end = self.head_bytes;
        let kept = (end + 4).min(HEADER_BYTES);
        // The last bytes of the head go in front of the rest.
        let moved = end + 4 - kept;
        spill[..moved].copy_from_slice(&self.head[end - moved..end]);
        self.head.copy_within(ADDRESSES..end - moved, ADDRESSES + 4);
        self.head[12..14].copy_from_slice(&kind.to_be_bytes());
        self.head[14..16].copy_from_slice(&control.to_be_bytes());
        self.head_bytes = kept;
        self.length += 4;
        if moved > 0 {
            self.rest.insert(0, Segment::of(&spill[..moved]));
        }
        self.vnet = self.vnet.edited(TagEdit::Push(0));
    }

    /// The pieces of its copy with another tag, and how long that is. `tag` holds the new tag.
    pub fn pieces(&self, edit: TagEdit, tag: &mut [u8; 4], pieces: &mut Vec<Segment>) -> usize {
        let head = self.head();
        let (behind, has_tag) = match edit {
            TagEdit::Keep => {
                pieces.push(Segment::of(head));
                pieces.extend_from_slice(&self.rest);
                return self.length;
            }
            TagEdit::Pop => (ADDRESSES + 4, false),
            TagEdit::Push(_) => (ADDRESSES, true),
            TagEdit::Replace(_) => (ADDRESSES + 4, true),
        };
        // The pipeline edits tags that it has seen, so the head reaches beyond them.
        pieces.push(Segment::of(&head[..ADDRESSES]));
        if let TagEdit::Push(vlan) | TagEdit::Replace(vlan) = edit {
            let (kind, priority) = match edit {
                TagEdit::Replace(_) => (u16::from_be_bytes([head[12], head[13]]), u16::from(head[14] & 0xf0) << 8),
                _ => (TYPE_VLAN, 0),
            };
            tag[..2].copy_from_slice(&kind.to_be_bytes());
            tag[2..].copy_from_slice(&(priority | vlan).to_be_bytes());
            pieces.push(Segment::of(&tag[..]));
        }
        pieces.push(Segment::of(&head[behind..]));
        pieces.extend_from_slice(&self.rest);
        self.length - (behind - ADDRESSES) + if has_tag { 4 } else { 0 }
    }
}
