//! What the benchmark's own programs share with user space. None of it is ever pinned, and the data
//! path knows nothing of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The frame that is written anew before each run, and how its flow varies; 224 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Template {
    /// The frame's first bytes
    pub bytes: [u8; Self::BYTES],
    /// Length of the frame
    pub length: u32,
    /// Offset of the four bytes that tell the flow, big-endian
    pub flow_at: u32,
    /// Their value for flow 0
    pub flow_base: u32,
    /// Number of flows less one; it is a power of two
    pub flow_mask: u32,
    /// Offset of the checksum that covers the flow's bytes; 0 where none has to follow them
    pub checksum_at: u32,
    /// What [`Self::checksum`] begins with: see [`Self::covered_by`]
    pub checksum_sum: u32,
    /// Packets so far: written by the program
    pub counter: u32,
    /// Whether the floor is measured instead
    pub idle: u32,
}
const _: () = assert!(size_of::<Template>() == 224);

impl Template {
    /// How much of a frame is written anew, at most: all headers.
    pub const BYTES: usize = 192;
    /// It is written in blocks of this size; frames have at least one.
    pub const BLOCK: usize = 64;
    /// Odd, so that its multiples meet each flow once before any comes again (Knuth, volume 3, 6.4).
    pub const STRIDE: u32 = 0x9e37_79b1;

    /// The flow of the packet with this number.
    #[inline(always)]
    pub const fn flow(&self, packet: u32) -> u32 {
        self.flow_base.wrapping_add(packet.wrapping_mul(Self::STRIDE) & self.flow_mask)
    }

    /// The checksum at this offset, right in the template for flow 0, will follow the flow.
    #[must_use]
    pub const fn covered_by(mut self, checksum_at: usize) -> Self {
        let checksum = u16::from_be_bytes([self.bytes[checksum_at], self.bytes[checksum_at + 1]]);
        self.checksum_at = checksum_at as u32;
        // RFC 1624, equation 3, as far as it is the same for each flow: ~HC + ~m.
        self.checksum_sum = !checksum as u32
            + !((self.flow_base >> 16) as u16) as u32
            + !(self.flow_base as u16) as u32;
        self
    }

    /// The checksum of a frame of this flow (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn checksum(&self, flow: u32) -> u16 {
        let sum = self.checksum_sum + (flow >> 16) + (flow & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        !(((sum >> 16) + (sum & 0xffff)) as u16)
    }
}

/// Names of programs and maps.
pub mod names {
    /// Writes the frame anew and goes on in [`TARGET`].
    pub const XDP: &str = "bench_xdp";
    /// The same on the way out, with [`TARGET_OUT`].
    pub const OUT: &str = "bench_out";
    /// One [`super::Template`].
    pub const TEMPLATE: &str = "TEMPLATE";
    /// Program array: what is measured.
    pub const TARGET: &str = "TARGET";
    /// Program array: the floor.
    pub const IDLE: &str = "IDLE";
    /// Program array: the floor on the way out.
    pub const IDLE_OUT: &str = "IDLE_OUT";
    /// Program array: what is measured on the way out.
    pub const TARGET_OUT: &str = "TARGET_OUT";
    /// Sends each packet back.
    pub const TX: &str = "floor_tx";
    /// The same with swapped MAC addresses.
    pub const SWAP: &str = "floor_swap";
    /// The same in an IPv4 header that needs no look-up.
    pub const ENCAP: &str = "floor_encap";
    /// The same after one look-up in a hash map.
    pub const HASH: &str = "floor_hash";
    /// The same after one look-up in an LRU hash map, and one update.
    pub const LRU: &str = "floor_lru";
    /// Lets each packet out.
    pub const OUT_FLOOR: &str = "floor_out";
    /// Counts and drops.
    pub const SINK: &str = "bench_sink";
    /// Per-CPU array of one [`crate::Traffic`]: what came to [`SINK`].
    pub const SUNK: &str = "SUNK";
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: Template = Template {
        bytes: [0; Template::BYTES],
        length: 64,
        flow_at: 26,
        flow_base: 0x0a80_0000,
        flow_mask: 0xffff,
        checksum_at: 0,
        checksum_sum: 0,
        counter: 0,
        idle: 0,
    };

    #[test]
    fn each_flow_comes_once_before_any_comes_again() {
        let template = TEMPLATE;
        let mut seen = std::collections::BTreeSet::new();
        assert!((7..7 + 0x1_0000).all(|packet| seen.insert(template.flow(packet))));
        assert_eq!((seen.first(), seen.last()), (Some(&0x0a80_0000), Some(&0x0a80_ffff)));
    }

    #[test]
    fn the_checksum_follows_the_flow() {
        let header = |source: u32| -> [u8; 20] {
            let mut bytes = [0; 20];
            bytes[..10].copy_from_slice(&[0x45, 0, 0, 50, 0x12, 0x34, 0x40, 0, 64, 17]);
            bytes[12..16].copy_from_slice(&source.to_be_bytes());
            bytes[16..].copy_from_slice(&[10, 1, 0, 2]);
            bytes
        };
        let sum = |bytes: &[u8; 20]| {
            let words = bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
            let sum: u32 = words.sum();
            (sum & 0xffff) + (sum >> 16)
        };
        let first = header(TEMPLATE.flow_base);
        let mut template = TEMPLATE;
        template.bytes[14..34].copy_from_slice(&first);
        let checksum = !(sum(&first) as u16);
        template.bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        let template = template.covered_by(24);
        for packet in 0..0x1_0000 {
            let flow = template.flow(packet);
            let mut bytes = header(flow);
            bytes[10..12].copy_from_slice(&template.checksum(flow).to_be_bytes());
            assert_eq!(sum(&bytes), 0xffff, "{flow:#x}");
        }
    }
}
