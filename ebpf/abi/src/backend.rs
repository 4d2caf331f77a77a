//! Where a chosen packet goes, and how.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// Forwarding mode of a backend, as a byte of [`Backend`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Replace the destination's MAC address.
    L2 = 1,
    /// Put an IPv4 or IPv6 header in front (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 2,
    /// Rewrite the destination, then send the packet through a Geneve tunnel (RFC 8926) with an
    /// option that carries the frontend, to the instance on the backend's node.
    Geneve = 3,
    /// Rewrite the destination and hand the packet to this host's own stack.
    Local = 4,
    /// Rewrite both addresses; answers come back through this host.
    Snat = 5,
}

impl Mode {
    /// The mode with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::L2),
            2 => Some(Self::Ipip),
            3 => Some(Self::Geneve),
            4 => Some(Self::Local),
            5 => Some(Self::Snat),
            _ => None,
        }
    }
}

/// The next hop: the neighbour's MAC address and the index of the device it is behind, 8 bytes.
///
/// One word, so that a change is one store and no packet sees the address of one neighbour with the
/// device of another. Device 0 means that the next hop is not known.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Hop(u64);
const _: () = assert!(size_of::<Hop>() == 8);

impl Hop {
    /// No next hop is known.
    pub const UNKNOWN: Self = Self(0);

    /// The neighbour `mac` behind device `device` of `DEVICES`.
    #[inline(always)]
    pub const fn new(mac: [u8; 6], device: u16) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h] = device.to_ne_bytes();
        Self(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The neighbour's MAC address.
    #[inline(always)]
    pub const fn mac(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// The same as a number, the first byte the highest of its 48 bits.
    #[inline(always)]
    pub const fn mac_number(&self) -> u64 {
        u64::from_be(self.0) >> 16
    }

    /// Index into `DEVICES`; 0 where the next hop is not known.
    #[inline(always)]
    pub const fn device(&self) -> u16 {
        let [.., g, h] = self.0.to_ne_bytes();
        u16::from_ne_bytes([g, h])
    }

    /// The hop with this word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word that one store writes.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.0
    }
}

/// One backend in one forwarding mode, 72 bytes.
///
/// `hop` changes in place, by one store; `mtu`, `source` and `source_bits` change with the routes
/// and are each safe to mix with their older values. All else is constant until the id is free.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    hop: Hop,
    address: [u64; 2],
    tunnel: [u64; 2],
    source: [u64; 2],
    generation: u32,
    port: u16,
    mtu: u16,
    mode: u8,
    flags: u8,
    source_bits: u8,
    protocol: u8,
    reserved: [u8; 4],
}
const _: () = assert!(size_of::<Backend>() == 72);

impl Backend {
    const V6: u8 = 1;
    const TUNNEL_V6: u8 = 2;
    const SERVING: u8 = 4;

    /// Offset of the next hop, in bytes.
    pub const HOP_OFFSET: usize = 0;

    /// A backend that serves, with no next hop yet.
    ///
    /// `port` in host order. The tunnel ends at `address` unless [`Backend::with_tunnel`] says more.
    /// `generation` tells it from earlier owners of the same id.
    pub const fn new(
        address: Address,
        port: u16,
        protocol: u8,
        mode: Mode,
        generation: u32,
    ) -> Self {
        let flags = if address.is_v6() { Self::V6 | Self::TUNNEL_V6 } else { 0 };
        Self {
            hop: Hop::UNKNOWN,
            address: address.words(),
            tunnel: address.words(),
            source: [0; 2],
            generation,
            port,
            mtu: 0,
            mode: mode as u8,
            flags: flags | Self::SERVING,
            source_bits: 0,
            protocol,
            reserved: [0; 4],
        }
    }

    /// The same backend behind a tunnel that ends at another address.
    pub const fn with_tunnel(mut self, end: Address) -> Self {
        self.tunnel = end.words();
        self.flags =
            if end.is_v6() { self.flags | Self::TUNNEL_V6 } else { self.flags & !Self::TUNNEL_V6 };
        self
    }

    /// The same backend reached over `hop`, with the path's MTU in bytes of layer 3 (0: unknown) and
    /// the outer source address, whose lowest `source_bits` bits (at most 32) are taken from the
    /// flow's hash.
    pub const fn with_path(mut self, hop: Hop, mtu: u16, source: Address, source_bits: u8) -> Self {
        self.hop = hop;
        self.mtu = mtu;
        self.source = source.words();
        self.source_bits = source_bits;
        self
    }

    /// The same backend, serving or not.
    pub const fn with_serving(mut self, serving: bool) -> Self {
        self.flags = if serving { self.flags | Self::SERVING } else { self.flags & !Self::SERVING };
        self
    }

    /// The next hop.
    #[inline(always)]
    pub const fn hop(&self) -> Hop {
        self.hop
    }

    /// The address that serves.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_words(self.address, self.flags & Self::V6 != 0)
    }

    /// Where the tunnel to the backend ends.
    #[inline(always)]
    pub const fn tunnel(&self) -> Address {
        Address::from_words(self.tunnel, self.flags & Self::TUNNEL_V6 != 0)
    }

    /// Whether the tunnel's outer header is IPv6.
    #[inline(always)]
    pub const fn tunnel_is_v6(&self) -> bool {
        self.flags & Self::TUNNEL_V6 != 0
    }

    /// Source of the outer header, in mode `snat` of the packet itself; of the same family as
    /// [`Backend::tunnel`].
    #[inline(always)]
    pub const fn source(&self) -> Address {
        Address::from_words(self.source, self.tunnel_is_v6())
    }

    /// How many of the source's lowest bits the flow's hash replaces, at most 32.
    #[inline(always)]
    pub const fn source_bits(&self) -> u8 {
        self.source_bits
    }

    /// Tells it from earlier owners of the same id.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The port that serves, in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Largest packet (layer 3, in bytes) on the way to the backend; 0 where it is not known.
    #[inline(always)]
    pub const fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The forwarding mode, or nothing where the byte is none that this version knows.
    #[inline(always)]
    pub const fn mode(&self) -> Option<Mode> {
        Mode::from_number(self.mode)
    }

    /// Whether it takes packets of flows that it already has.
    #[inline(always)]
    pub const fn serving(&self) -> bool {
        self.flags & Self::SERVING != 0
    }
}
