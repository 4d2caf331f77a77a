//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Ones' complement has two zeros. A sum over a header is never `0x0000` unless all bytes are zero,
//! so [`Sum::finish`] returns `0xffff` only for such input. For UDP a checksum field of 0 means "not
//! computed" (RFC 768): a computed 0 is sent as `0xffff`.

/// A running ones' complement sum of big-endian 16-bit words; carries are folded at the end.
///
/// Holds up to 2^16 words without overflow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sum(u32);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds one word.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u16) -> Self {
        Self(self.0 + word as u32)
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds two words.
    #[inline(always)]
    #[must_use]
    pub const fn add_u32(self, words: u32) -> Self {
        self.add((words >> 16) as u16).add(words as u16)
    }

    /// Adds an address of sixteen bytes, as two words that lie as in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn add_address(self, words: [u64; 2]) -> Self {
        let [high, low] = [u64::from_be(words[0]), u64::from_be(words[1])];
        self.add_u32((high >> 32) as u32)
            .add_u32(high as u32)
            .add_u32((low >> 32) as u32)
            .add_u32(low as u32)
    }

    /// Adds an even number of bytes, as words.
    #[inline(always)]
    #[must_use]
    pub fn add_bytes<const N: usize>(self, bytes: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(2)) };
        let mut sum = self.0;
        let mut index = 0;
        while index < N {
            sum += u32::from(u16::from_be_bytes([bytes[index], bytes[index + 1]]));
            index += 2;
        }
        Self(sum)
    }

    /// The folded sum.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// The checksum: the complement of the folded sum.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// The checksum after one word under it changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum(!checksum as u32).add(!old).add(new).finish()
}

/// What a checksum covers of what has changed, and whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cover {
    /// The pseudo header: addresses
    Pseudo,
    /// The same, of UDP: 0 means "not computed" and stays, a computed 0 is sent as `0xffff`
    PseudoUdp,
    /// The transport header itself: ports
    Header,
    /// The same, of UDP
    HeaderUdp,
}

impl Cover {
    /// Whether the checksum is UDP's.
    #[inline(always)]
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::PseudoUdp | Self::HeaderUdp)
    }

    /// Whether the pseudo header changed.
    #[inline(always)]
    pub const fn is_pseudo(self) -> bool {
        matches!(self, Self::Pseudo | Self::PseudoUdp)
    }
}

/// The difference that a change makes to the sum over it (RFC 1624): new words less the old ones.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Delta(Sum);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(Sum::ZERO);

    /// One word changed.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0.add(!old).add(new))
    }

    /// An IPv4 address changed.
    #[inline(always)]
    #[must_use]
    pub const fn address_v4(self, old: [u8; 4], new: [u8; 4]) -> Self {
        Self(self.0.add_u32(!u32::from_be_bytes(old)).add_u32(u32::from_be_bytes(new)))
    }

    /// An IPv6 address changed.
    #[inline(always)]
    #[must_use]
    pub const fn address_v6(self, old: [u64; 2], new: [u64; 2]) -> Self {
        Self(self.0.add_address([!old[0], !old[1]]).add_address(new))
    }

    /// Two changes together.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.and(other.0))
    }

    /// The folded difference, as `bpf_l4_csum_replace` takes it: in network order.
    #[inline(always)]
    pub const fn network(self) -> u16 {
        self.0.fold().to_be()
    }

    /// A checksum after the change.
    #[inline(always)]
    pub const fn applied(self, checksum: u16, cover: Cover) -> u16 {
        if cover.is_udp() && checksum == 0 {
            return 0;
        }
        let sum = self.0.add(!checksum).finish();
        if cover.is_udp() && sum == 0 { 0xffff } else { sum }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 3.
    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::ZERO.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    /// RFC 1624, section 4: the case that RFC 1141's equation gets wrong.
    #[test]
    fn the_example_of_the_correction() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn udp_without_a_checksum_stays_without_and_a_computed_zero_is_never_sent() {
        let delta = Delta::NONE.word(1, 2);
        assert_eq!(delta.applied(0, Cover::HeaderUdp), 0);
        assert_ne!(delta.applied(0, Cover::Header), 0);
        // The word that makes the sum 0.
        assert_eq!(Delta::NONE.word(0, 5).applied(5, Cover::PseudoUdp), 0xffff);
        assert_eq!(Delta::NONE.word(0, 5).applied(5, Cover::Pseudo), 0);
    }

    proptest! {
        #[test]
        fn a_delta_of_addresses_and_ports_equals_a_full_sum(
            mut bytes in any::<[u8; 40]>(),
            address: [u8; 16],
            port: u16,
        ) {
            prop_assume!(bytes != [0; 40]);
            let before = Sum::ZERO.add_bytes(&bytes).finish();
            let words = |bytes: &[u8]| {
                let (high, low) = bytes.split_at(8);
                [high, low].map(|half| u64::from_ne_bytes(half.try_into().unwrap()))
            };
            let delta = Delta::NONE
                .address_v6(words(&bytes[8..24]), words(&address))
                .word(u16::from_be_bytes([bytes[24], bytes[25]]), port);
            bytes[8..24].copy_from_slice(&address);
            bytes[24..26].copy_from_slice(&port.to_be_bytes());
            prop_assume!(bytes != [0; 40]);
            let after = Sum::ZERO.add_bytes(&bytes).finish();
            prop_assert_eq!(delta.applied(before, Cover::Header), after);
        }

        #[test]
        fn an_update_equals_a_full_sum(mut bytes in any::<[u8; 40]>(), at in 0_usize..20, new: u16) {
            let before = Sum::ZERO.add_bytes(&bytes).finish();
            let old = u16::from_be_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
            bytes[at * 2..at * 2 + 2].copy_from_slice(&new.to_be_bytes());
            let after = Sum::ZERO.add_bytes(&bytes).finish();
            // An all-zero buffer is the one input whose sum has the other zero.
            prop_assume!(bytes != [0; 40]);
            prop_assert_eq!(update(before, old, new), after);
        }
    }
}
