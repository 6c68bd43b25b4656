//! Files of captured frames: PCAP Next Generation (draft-ietf-opsawg-pcapng), one section with one interface.

use std::io::{self, Write};

use crate::acl::Direction;
use crate::control::CapturedFrame;
use crate::hex::from_hex;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const SHB_USERAPPL: u16 = 4;

/// Which way a frame went, as the file says it: seen from whom the interface belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the interface.
    In = 1,
    /// From it.
    Out = 2,
}

/// A file in the making.
#[derive(Debug)]
pub struct Writer<W>(W);

impl<W: Write> Writer<W> {
    /// Begins the file of an interface of which at most so much of each frame is kept.
    pub fn new(out: W, interface: &str, snap_bytes: u32) -> io::Result<Writer<W>> {
        let mut writer = Writer(out);
        let program = option(SHB_USERAPPL, concat!("maru ", env!("CARGO_PKG_VERSION")).as_bytes());
        // Version 1.0; the length of the section is not known.
        let head = [&BYTE_ORDER.to_le_bytes()[..], &1u32.to_le_bytes(), &u64::MAX.to_le_bytes(), &end(program)].concat();
        writer.block(SECTION, &head)?;
        // Times are in 10^-9 seconds.
        let options = end([option(IF_NAME, interface.as_bytes()), option(IF_TSRESOL, &[9])].concat());
        writer.block(INTERFACE, &[&ETHERNET.to_le_bytes()[..], &snap_bytes.to_le_bytes(), &options].concat())?;
        Ok(writer)
    }

    /// Adds a frame of `length` bytes that begins with `bytes`.
    pub fn packet(&mut self, at_ns: u64, way: Way, bytes: &[u8], length: u32) -> io::Result<()> {
        let words = [0, (at_ns >> 32) as u32, at_ns as u32, bytes.len() as u32, length];
        let flags = end(option(EPB_FLAGS, &(way as u32).to_le_bytes()));
        self.block(PACKET, &[words.map(u32::to_le_bytes).concat(), padded(bytes), flags].concat())
    }

    /// Adds a frame that a switch has caught. `None` if that is none.
    pub fn captured(&mut self, frame: &CapturedFrame) -> io::Result<Option<()>> {
        let way = if frame.direction == Direction::Inbound { Way::In } else { Way::Out };
        let Some(bytes) = from_hex(&frame.bytes) else { return Ok(None) };
        self.packet(frame.at_ns, way, &bytes, frame.length as u32).map(Some)
    }

    /// Ends the file: how many frames there are, and how many are missing.
    pub fn finish(mut self, at_ns: u64, received: u64, missed: u64) -> io::Result<()> {
        let words = [0, (at_ns >> 32) as u32, at_ns as u32].map(u32::to_le_bytes).concat();
        let counts = [option(ISB_IFRECV, &received.to_le_bytes()), option(ISB_IFDROP, &missed.to_le_bytes())].concat();
        self.block(STATISTICS, &[words, end(counts)].concat())?;
        self.flush()
    }

    /// Lets readers of the file see what is in it so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let total = (body.len() as u32 + 12).to_le_bytes();
        self.0.write_all(&[&kind.to_le_bytes()[..], &total, body, &total].concat())
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [&code.to_le_bytes()[..], &(value.len() as u16).to_le_bytes(), &padded(value)].concat()
}

fn end(options: Vec<u8>) -> Vec<u8> {
    [options, vec![0; 4]].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::DataLink;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn another_program_reads_what_was_written() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "web", 1500).unwrap();
        let at = 1_700_000_000_123_456_789;
        let frames = [(Way::In, vec![1; 61], 61), (Way::Out, vec![2; 1500], 60_000)];
        for (way, bytes, length) in &frames {
            writer.packet(at, *way, bytes, *length).unwrap();
        }
        writer.finish(at + 1, 2, 7).unwrap();

        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        let mut found = Vec::new();
        let mut missed = None;
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::EnhancedPacket(packet) => {
                    assert_eq!(packet.timestamp, Duration::from_nanos(at));
                    let way = match packet.options[..] {
                        [EnhancedPacketOption::Flags(1)] => Way::In,
                        [EnhancedPacketOption::Flags(2)] => Way::Out,
                        ref other => panic!("{other:?}"),
                    };
                    found.push((way, packet.data.into_owned(), packet.original_len));
                }
                Block::InterfaceStatistics(statistics) => {
                    missed = statistics.options.iter().find_map(|option| match option {
                        InterfaceStatisticsOption::IsbIfDrop(count) => Some(*count),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        assert_eq!(found, frames);
        assert_eq!(missed, Some(7));
        let interface = &reader.interfaces()[0];
        assert_eq!((interface.linktype, interface.snaplen), (DataLink::ETHERNET, 1500));
    }
}
