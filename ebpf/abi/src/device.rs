//! Network devices as the packet path sees them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A device that packets leave by, 24 bytes.
///
/// A VLAN device is its lowest parent together with the tags that lead to it.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Device {
    ifindex: u32,
    mtu: u32,
    /// The MAC address' six bytes, how many tags, and a zero: one word, so that it is read at once.
    mac_and_tags: u64,
    outer: [u8; 4],
    inner: [u8; 4],
}
const _: () = assert!(size_of::<Device>() == 24);

impl Device {
    /// A device without VLAN tags; `mtu` in bytes of layer 3.
    pub const fn new(ifindex: u32, mac: [u8; 6], mtu: u32) -> Self {
        let [a, b, c, d, e, f] = mac;
        let mac_and_tags = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        Self { ifindex, mtu, mac_and_tags, outer: [0; 4], inner: [0; 4] }
    }

    /// The same device inside a VLAN; `tag` is (TPID, VLAN id). The first call adds the outermost
    /// tag, the second the inner one, a third changes nothing.
    pub const fn with_tag(mut self, tag: (u16, u16)) -> Self {
        let [a, b] = tag.0.to_be_bytes();
        let [c, d] = tag.1.to_be_bytes();
        match self.tags() {
            0 => self.outer = [a, b, c, d],
            1 => self.inner = [a, b, c, d],
            _ => return self,
        }
        let mut bytes = self.mac_and_tags.to_ne_bytes();
        bytes[6] += 1;
        self.mac_and_tags = u64::from_ne_bytes(bytes);
        self
    }

    /// Interface index of the device that has the driver.
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Largest packet (layer 3, in bytes).
    #[inline(always)]
    pub const fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The device's own MAC address.
    #[inline(always)]
    pub const fn mac(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.mac_and_tags.to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// The same as a number, the first byte the highest of its 48 bits.
    #[inline(always)]
    pub const fn mac_number(&self) -> u64 {
        u64::from_be(self.mac_and_tags) >> 16
    }

    /// How many VLAN tags a frame gets: 0 to 2.
    #[inline(always)]
    pub const fn tags(&self) -> u8 {
        let [.., tags, _] = self.mac_and_tags.to_ne_bytes();
        tags
    }

    /// TPID and TCI of the outermost tag, as on the wire.
    #[inline(always)]
    pub const fn outer_tag(&self) -> [u8; 4] {
        self.outer
    }

    /// TPID and TCI of the inner tag, as on the wire.
    #[inline(always)]
    pub const fn inner_tag(&self) -> [u8; 4] {
        self.inner
    }
}
