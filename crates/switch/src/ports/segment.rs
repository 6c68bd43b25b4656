//! The work that a receiver cannot do itself, in software: checksums, and cutting TCP segments.

use super::vnet::Vnet;
use crate::counters::DropReason;

/// The sum of RFC 1071, not yet folded.
fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    // 65,557 bytes are less than 2^16 words below 2^16: nothing is lost.
    let mut total = words.fold(u64::from(start), |total, word| total + u64::from(word));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u32
}

fn get(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

fn put(frame: &mut [u8], at: usize, value: u16) -> Option<()> {
    frame.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// Completes a frame's checksum: its field holds the sum of the pseudo header.
pub fn complete_checksum(frame: &mut [u8], vnet: &Vnet) -> Option<()> {
    let start = usize::from(vnet.checksum_start);
    let total = !(sum(frame.get(start..)?, 0) as u16);
    // Zero would say that there is none (RFC 768); for TCP it is the same number.
    put(frame, start + usize::from(vnet.checksum_offset), if total == 0 { 0xffff } else { total })
}

/// Cuts a TCP segment and passes on the parts, complete with checksums.
pub fn cut(frame: &[u8], vnet: &Vnet, mut pass: impl FnMut(&mut [u8]) -> Result<(), DropReason>) -> Result<(), DropReason> {
    cut_checked(frame, vnet, &mut pass).unwrap_or(Err(DropReason::Buffer))
}

/// `None` if the headers are not where they should be.
fn cut_checked(
    frame: &[u8],
    vnet: &Vnet,
    pass: &mut impl FnMut(&mut [u8]) -> Result<(), DropReason>,
) -> Option<Result<(), DropReason>> {
    let tcp = usize::from(vnet.checksum_start);
    let header = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
    let (headers, payload) = (frame.get(..header)?, frame.get(header..)?);
    // Behind the types of up to two tags.
    let mut ip = 14;
    while matches!(get(frame, ip - 2)?, 0x8100 | 0x88a8) {
        ip += 4;
    }
    let is_v4 = get(frame, ip - 2)? == 0x0800;
    if tcp < ip + if is_v4 { 20 } else { 40 } || header < tcp + 20 {
        return None;
    }
    let sequence = u32::from_be_bytes(headers.get(tcp + 4..tcp + 8)?.try_into().ok()?);
    let id = get(frame, ip + 4)?;
    let addresses = if is_v4 { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
    let mut part = Vec::with_capacity(header + usize::from(vnet.segment_bytes));
    let chunks = payload.chunks(usize::from(vnet.segment_bytes));
    let last = chunks.len().saturating_sub(1);
    for (number, chunk) in chunks.enumerate() {
        part.clear();
        part.extend_from_slice(headers);
        part.extend_from_slice(chunk);
        let offset = number * usize::from(vnet.segment_bytes);
        part[tcp + 4..tcp + 8].copy_from_slice(&sequence.wrapping_add(offset as u32).to_be_bytes());
        // FIN and PSH belong to the last one, CWR to the first (RFC 3168).
        let flags = part[tcp + 13];
        part[tcp + 13] = flags & if number == last { 0xff } else { !0x09 } & if number == 0 { 0xff } else { !0x80 };
        let length = (part.len() - tcp) as u32;
        if is_v4 {
            let total = (part.len() - ip) as u16;
            put(&mut part, ip + 2, total)?;
            put(&mut part, ip + 4, id.wrapping_add(number as u16))?;
            put(&mut part, ip + 10, 0)?;
            let check = !(sum(part.get(ip..tcp)?, 0) as u16);
            put(&mut part, ip + 10, check)?;
        } else {
            let payload = (part.len() - ip - 40) as u16;
            put(&mut part, ip + 4, payload)?;
        }
        let pseudo = sum(part.get(addresses.clone())?, u32::from(crate::frame::TCP) + length);
        put(&mut part, tcp + 16, pseudo as u16)?;
        complete_checksum(&mut part, vnet)?;
        if let Err(reason) = pass(&mut part) {
            return Some(Err(reason));
        }
    }
    Some(Ok(()))
}
