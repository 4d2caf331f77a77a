//! Packets of a capture file: pcap or pcapng, as tcpdump and Wireshark write them.

use std::{
    fs::File,
    io::{BufReader, Read, Seek as _},
    path::{Path, PathBuf},
};

use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

use super::packet::SENDER;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file system refuses.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file
        path: PathBuf,
        /// What the system says
        source: std::io::Error,
    },
    /// It is no capture.
    #[error("{path} is neither pcap nor pcapng, or cut off at packet {packet}: {source}")]
    Format {
        /// The file
        path: PathBuf,
        /// Number of the packet that cannot be read
        packet: u64,
        /// What the parser says
        source: PcapError,
    },
}

/// A packet of a capture.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Its number, from 1 on, as Wireshark counts
    pub number: u64,
    /// The frame; where the capture has only a part of it, zeros stand for the rest. What is of a
    /// link without Ethernet headers gets one.
    pub frame: Result<Vec<u8>, String>,
    /// Bytes that the capture lacks
    pub missing: usize,
}

/// What pcapng files begin with.
const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Reads a capture up to a number of packets, or all of it; `wanted` says which ones are kept.
///
/// # Errors
///
/// Where the file cannot be read, or is no capture.
pub fn read(
    path: &Path,
    wanted: impl Fn(u64) -> bool,
    last: u64,
) -> Result<Vec<Packet>, CaptureError> {
    let io = |source| CaptureError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    let mut packets = Vec::new();
    let mut number = 0;
    let mut take = |link: DataLink, original: u32, data: &[u8]| {
        number += 1;
        if wanted(number) {
            packets.push(packet(number, link, original, data));
        }
        number
    };
    let file = BufReader::new(file);
    let result = if magic == SECTION_HEADER {
        read_ng(file, last, &mut take)
    } else {
        read_old(file, last, &mut take)
    };
    result.map_err(|source| CaptureError::Format {
        path: path.to_owned(),
        packet: number + 1,
        source,
    })?;
    Ok(packets)
}

type Take<'a> = &'a mut dyn FnMut(DataLink, u32, &[u8]) -> u64;

fn read_old(file: BufReader<File>, last: u64, take: Take<'_>) -> Result<(), PcapError> {
    let mut reader = PcapReader::new(file)?;
    let link = reader.header().datalink;
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        if take(link, packet.orig_len, &packet.data) >= last {
            break;
        }
    }
    Ok(())
}

fn read_ng(file: BufReader<File>, last: u64, take: Take<'_>) -> Result<(), PcapError> {
    let mut reader = PcapNgReader::new(file)?;
    let mut links: Vec<DataLink> = Vec::new();
    while let Some(block) = reader.next_block() {
        let number = match block? {
            Block::SectionHeader(_) => {
                links.clear();
                continue;
            }
            Block::InterfaceDescription(interface) => {
                links.push(interface.linktype);
                continue;
            }
            Block::EnhancedPacket(packet) => {
                let link = links.get(packet.interface_id as usize).copied();
                take(link.unwrap_or(DataLink::NULL), packet.original_len, &packet.data)
            }
            Block::SimplePacket(packet) => {
                let link = links.first().copied().unwrap_or(DataLink::NULL);
                take(link, packet.original_len, &packet.data)
            }
            Block::Packet(packet) => {
                let link = links.get(usize::from(packet.interface_id)).copied();
                take(link.unwrap_or(DataLink::NULL), packet.original_len, &packet.data)
            }
            Block::NameResolution(_)
            | Block::InterfaceStatistics(_)
            | Block::SystemdJournalExport(_)
            | Block::Unknown(_) => continue,
        };
        if number >= last {
            break;
        }
    }
    Ok(())
}

fn packet(number: u64, link: DataLink, original: u32, data: &[u8]) -> Packet {
    let missing = (original as usize).saturating_sub(data.len());
    let frame = ethernet(link, data).map(|mut frame| {
        frame.resize(frame.len() + missing, 0);
        frame
    });
    Packet { number, frame, missing }
}

/// The frame of a packet: with an Ethernet header of its own where the capture has another link header.
fn ethernet(link: DataLink, data: &[u8]) -> Result<Vec<u8>, String> {
    /// Linux's cooked captures, of `tcpdump -i any`: the protocol's place and the header's length.
    const COOKED: (usize, usize) = (14, 16);
    const COOKED_2: (usize, usize) = (0, 20);
    let cooked = |(at, length): (usize, usize)| {
        let kind = data.get(at..at + 2)?.try_into().ok()?;
        Some((u16::from_be_bytes(kind), data.get(length..)?))
    };
    let inner = if link == DataLink::ETHERNET {
        return Ok(data.to_vec());
    } else if matches!(link, DataLink::RAW | DataLink::IPV4 | DataLink::IPV6) {
        let v6 = data.first().is_some_and(|byte| byte >> 4 == 6);
        Some((if v6 { 0x86dd } else { 0x0800 }, data))
    } else if link == DataLink::LINUX_SLL {
        cooked(COOKED)
    } else if link == DataLink::LINUX_SLL2 {
        cooked(COOKED_2)
    } else {
        return Err(format!("link type {link:?} is none that Ethernet carries"));
    };
    let (kind, packet) = inner.ok_or("it ends inside its link header")?;
    let macs = [[0x02, 0, 0, 0, 0, 0x02], SENDER].concat();
    Ok([&macs, kind.to_be_bytes().as_slice(), packet].concat())
}
