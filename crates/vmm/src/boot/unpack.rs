//! The kernel inside a bzImage: an ELF file, packed with LZ4 by Debian and others.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;

/// Start of LZ4's legacy frame, which the kernel's build uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Each block of it unpacks to at most this.
const LZ4_BLOCK: usize = 8 << 20;
/// More than any kernel is.
const MAX_UNPACKED: usize = 512 << 20;

/// Unpacks the kernel; `None` if it is packed in another way, or damaged.
pub fn kernel(file: &File, header: &setup_header) -> Option<Vec<u8>> {
    let code = (u64::from(header.setup_sects.max(1)) + 1) * 512;
    let length = file.metadata().ok()?.len();
    let start = code.checked_add(u64::from(header.payload_offset))?;
    let end = start.checked_add(u64::from(header.payload_length)).filter(|end| *end <= length)?;
    let mut payload = vec![0; usize::try_from(end - start).ok()?];
    file.read_exact_at(&mut payload, start).ok()?;
    // The last four bytes are the unpacked size, for the kernel's own use.
    let packed = payload.strip_prefix(&LZ4_LEGACY)?;
    let (packed, size) = packed.split_last_chunk::<4>()?;
    unpack(packed, u32::from_le_bytes(*size) as usize)
}

fn unpack(mut packed: &[u8], size: usize) -> Option<Vec<u8>> {
    if size > MAX_UNPACKED {
        return None;
    }
    let mut out = vec![0; size];
    let mut at = 0;
    while let Some((length, rest)) = packed.split_first_chunk::<4>() {
        let block = rest.get(..u32::from_le_bytes(*length) as usize)?;
        let room = out.len().min(at + LZ4_BLOCK);
        at += lz4_flex::block::decompress_into(block, &mut out[at..room]).ok()?;
        packed = &rest[block.len()..];
    }
    (at == size).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(content: &[u8]) -> Vec<u8> {
        // One block of literals only: a token, the rest of the length in bytes of 255, the literals.
        let mut block = vec![0xf0];
        let mut rest = content.len() - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
        block.extend(content);
        [&(block.len() as u32).to_le_bytes()[..], &block].concat()
    }

    #[test]
    fn what_is_packed_is_unpacked_and_damage_is_noticed() {
        let content: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
        let packed = pack(&content);
        assert_eq!(unpack(&packed, content.len()), Some(content.clone()));
        assert_eq!(unpack(&packed, content.len() + 1), None);
        assert_eq!(unpack(&packed, content.len() - 1), None);
        for cut in 4..packed.len() {
            assert_eq!(unpack(&packed[..cut], content.len()), None, "cut at {cut}");
        }
        assert_eq!(unpack(&packed, usize::MAX), None);
    }
}
