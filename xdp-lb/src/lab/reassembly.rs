//! Fragments of a capture put together, so that the checksums can be judged that cover whole packets.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Captured, Recording, describe,
    layers::{self, Fragment, Frame, Ip},
    verify::{self, Fault},
};

/// What was found in a recording without a fault.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Verified {
    /// Frames
    pub frames: usize,
    /// Checksums that are right, those of packets that came in fragments included
    pub right: usize,
    /// Packets that were put together from fragments
    pub reassembled: usize,
    /// Packets of which not all fragments passed
    pub incomplete: usize,
}

/// A fault, and where it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{fault}: frame {index}, {frame}")]
pub struct Faulty {
    /// Number of the frame in the recording, from 0
    pub index: usize,
    /// Its description; where the fault is in a packet that came in fragments, that of the last
    pub frame: String,
    /// What is wrong
    pub fault: Fault,
}

/// Checks all lengths and checksums of a recording: each frame as [`verify::checksums`] does, and
/// what fragments carry as a whole.
pub fn verify(recording: &Recording) -> Result<Verified, Faulty> {
    let mut parts = Reassembly::default();
    let mut verified = Verified { frames: recording.frames.len(), ..Verified::default() };
    for (index, captured) in recording.frames.iter().enumerate() {
        let faulty = |fault| Faulty { index, frame: describe(&captured.bytes), fault };
        verified.right += verify::checksums(&captured.bytes).map_err(faulty)?.right;
        let frame = layers::frame(&captured.bytes).map_err(|m| faulty(m.into()))?;
        if let Some(whole) = parts.add(captured, &frame)
            && let Some(ip) = frame.headers.last()
        {
            let ip = Ip { protocol: whole.protocol, ..ip.clone() };
            verified.right += verify::reassembled(&ip, &whole.payload).map_err(faulty)?.right;
            verified.reassembled += 1;
        }
    }
    verified.incomplete = parts.packets.len();
    Ok(verified)
}

/// Packets of which some fragments have passed.
#[derive(Debug, Default)]
struct Reassembly {
    packets: BTreeMap<Key, Packet>,
}

/// What the fragments of a packet have in common, at one point of its way.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    /// The same packet may pass a device twice, with other MAC addresses or another direction
    sent: bool,
    macs: [[u8; 6]; 2],
    /// Source and destination of all headers, the outermost first
    ends: Vec<[IpAddr; 2]>,
    id: u32,
    /// Identifications are unique for each protocol in IPv4 (RFC 791), and for all in IPv6
    protocol: Option<u8>,
}

/// A packet's fragments so far.
#[derive(Debug, Default)]
struct Packet {
    /// Payloads by their offset
    parts: BTreeMap<usize, Vec<u8>>,
    /// Where the payload begins, and its protocol, once the first fragment is there
    begin: Option<(usize, u8)>,
    /// Where it ends, once the last one is there
    end: Option<usize>,
}

/// A packet's payload, put together.
#[derive(Debug, Eq, PartialEq)]
struct Whole {
    protocol: u8,
    payload: Vec<u8>,
}

impl Reassembly {
    /// Takes in a frame; returns the payload of a packet that it completes.
    fn add(&mut self, captured: &Captured, frame: &Frame<'_>) -> Option<Whole> {
        let ip = frame.headers.last()?;
        let fragment = ip.fragment?;
        let key = Key {
            sent: captured.sent,
            macs: [frame.source, frame.destination],
            ends: frame.headers.iter().map(|ip| [ip.source, ip.destination]).collect(),
            id: fragment.id,
            protocol: ip.source.is_ipv4().then_some(ip.protocol),
        };
        let packet = self.packets.entry(key.clone()).or_default();
        packet.add(fragment, ip);
        let whole = packet.whole()?;
        self.packets.remove(&key);
        Some(whole)
    }
}

impl Packet {
    fn add(&mut self, fragment: Fragment, ip: &Ip<'_>) {
        let start = usize::from(fragment.offset) + usize::from(fragment.skipped);
        if fragment.offset == 0 {
            self.begin = Some((start, ip.protocol));
        }
        if !fragment.more {
            self.end = Some(start + ip.payload.len());
        }
        self.parts.insert(start, ip.payload.to_vec());
    }

    /// The parts in a row, once they leave no gap; overlapping ones never become whole (RFC 5722).
    fn whole(&self) -> Option<Whole> {
        let ((begin, protocol), end) = (self.begin?, self.end?);
        let mut payload = Vec::with_capacity(end);
        for (start, part) in &self.parts {
            if *start != begin + payload.len() {
                return None;
            }
            payload.extend(part);
        }
        (begin + payload.len() == end).then_some(Whole { protocol, payload })
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::lab::{
        forge::{self, Datagram},
        verify::Fault,
    };

    fn recording(frames: impl IntoIterator<Item = Vec<u8>>) -> Recording {
        let captured = |bytes| Captured { at: UNIX_EPOCH, sent: false, bytes };
        Recording { frames: frames.into_iter().map(captured).collect(), dropped: 0 }
    }

    /// A datagram of 3000 bytes in three fragments, over IPv4 and IPv6.
    fn fragments() -> [Vec<Vec<u8>>; 2] {
        ["10.0.0.1:1000 10.0.0.2:53", "[fd00::1]:1000 [fd00::2]:53"].map(|ends| {
            let (from, to) = ends.split_once(' ').unwrap();
            let payload: Vec<u8> = (0..3000).map(crate::lab::pattern).collect();
            let datagram = Datagram::new(from.parse().unwrap(), to.parse().unwrap(), &payload);
            let packets = datagram.fragments(7, 1232);
            packets.into_iter().map(|ip| forge::ethernet([2; 6], [4; 6], &ip)).collect()
        })
    }

    #[test]
    fn fragments_are_judged_as_a_whole_in_any_order() {
        for (frames, headers) in fragments().into_iter().zip([3, 0]) {
            assert_eq!(frames.len(), 3);
            for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
                let verified = verify(&recording(order.map(|at| frames[at].clone()))).unwrap();
                let expected =
                    Verified { frames: 3, right: headers + 1, reassembled: 1, incomplete: 0 };
                assert_eq!(verified, expected);
            }
        }
    }

    #[test]
    fn a_bad_byte_is_found_in_any_fragment_and_a_missing_one_is_told() {
        for frames in fragments() {
            for at in 0..3 {
                let mut bad = frames.clone();
                *bad[at].last_mut().unwrap() ^= 1;
                let fault = verify(&recording(bad)).unwrap_err();
                assert!(matches!(fault.fault, Fault::Checksum { what: "UDP", .. }), "{fault}");
                assert_eq!(fault.index, 2);
                let mut some = frames.clone();
                some.remove(at);
                let verified = verify(&recording(some)).unwrap();
                assert_eq!((verified.reassembled, verified.incomplete), (0, 1));
            }
        }
    }

    #[test]
    fn fragments_of_two_packets_or_two_places_are_not_mixed() {
        for frames in fragments() {
            let mut other = frames[2].clone();
            other[0] = 8;
            let mixed = [frames[0].clone(), frames[1].clone(), other];
            let verified = verify(&recording(mixed)).unwrap();
            assert_eq!((verified.reassembled, verified.incomplete), (0, 2));
        }
    }
}
