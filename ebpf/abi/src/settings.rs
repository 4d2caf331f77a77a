//! What holds for the whole instance.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// What holds for the whole instance, 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Settings {
    flow_key: [u64; 2],
    frontend_seed: u64,
    buckets: u32,
    icmp_rate: u32,
    own_v6: [u64; 2],
    own_v4: [u8; 4],
    nat_first: u16,
    nat_last: u16,
    flags: u32,
    answers_first: u16,
    answers_last: u16,
}
const _: () = assert!(size_of::<Settings>() == 64);

impl Settings {
    /// `flow_key` keys the hash of flows (one for all instances of a cluster), `frontend_seed` that
    /// of the frontend table (this host's own); `buckets` is the table's size, a power of two;
    /// `icmp_rate` how many ICMP errors a CPU may send a second.
    pub const fn new(flow_key: [u64; 2], frontend_seed: u64, buckets: u32, icmp_rate: u32) -> Self {
        Self {
            flow_key,
            frontend_seed,
            buckets,
            icmp_rate,
            own_v6: [0; 2],
            own_v4: [0; 4],
            nat_first: 0,
            nat_last: 0,
            flags: 0,
            answers_first: 0,
            answers_last: 0,
        }
    }

    /// The same settings with the host's own addresses, which ICMP errors come from that a router
    /// sends; unspecified where it has none of that family.
    pub const fn with_own(mut self, v4: [u8; 4], v6: Address) -> Self {
        self.own_v4 = v4;
        self.own_v6 = v6.words();
        self
    }

    /// The same settings with the first and the last port that mode `snat` sends from; 0 and 0 where
    /// no service uses it.
    pub const fn with_nat_ports(mut self, first: u16, last: u16) -> Self {
        self.nat_first = first;
        self.nat_last = last;
        self.answers_first = first;
        self.answers_last = last;
        self
    }

    /// The same settings, which go on with the flows of mode `snat` that others have: answers to those
    /// ports are still looked up.
    pub const fn with_answers_of(mut self, had: &Self) -> Self {
        if had.answers_last == 0 {
            return self;
        }
        if self.answers_last == 0 || had.answers_first < self.answers_first {
            self.answers_first = had.answers_first;
        }
        if had.answers_last > self.answers_last {
            self.answers_last = had.answers_last;
        }
        self
    }

    /// The same settings, unwrapping tunnel packets of known peers or not.
    pub const fn with_terminate(mut self, terminate: bool) -> Self {
        self.flags =
            if terminate { self.flags | Self::TERMINATE } else { self.flags & !Self::TERMINATE };
        self
    }

    /// The same settings; `pass` drops what is for a port that no frontend has of a frontend's address,
    /// instead of answering it. Of the host's own addresses the kernel gets it either way.
    pub const fn with_pass_unknown(mut self, pass: bool) -> Self {
        self.flags =
            if pass { self.flags | Self::PASS_UNKNOWN } else { self.flags & !Self::PASS_UNKNOWN };
        self
    }

    const TERMINATE: u32 = 1;
    const PASS_UNKNOWN: u32 = 2;

    /// The host's own IPv4 address; 0.0.0.0 where it has none.
    #[inline(always)]
    pub const fn own_v4(&self) -> Address {
        Address::v4(self.own_v4)
    }

    /// The host's own IPv6 address; `::` where it has none.
    #[inline(always)]
    pub const fn own_v6(&self) -> Address {
        Address::from_words(self.own_v6, true)
    }

    /// Whether answers to mode `snat` may come to this port.
    #[inline(always)]
    pub const fn is_nat_port(&self, port: u16) -> bool {
        self.answers_first <= port && port <= self.answers_last && self.answers_last != 0
    }

    /// First and last port that mode `snat` sends from.
    #[inline(always)]
    pub const fn nat_ports(&self) -> (u16, u16) {
        (self.nat_first, self.nat_last)
    }

    /// Whether tunnel packets of known peers are unwrapped.
    #[inline(always)]
    pub const fn terminate(&self) -> bool {
        self.flags & Self::TERMINATE != 0
    }

    /// Whether packets to unknown ports of a frontend's address are not answered.
    #[inline(always)]
    pub const fn pass_unknown(&self) -> bool {
        self.flags & Self::PASS_UNKNOWN != 0
    }

    /// Key of the hash of flows.
    #[inline(always)]
    pub const fn flow_key(&self) -> [u64; 2] {
        self.flow_key
    }

    /// Seed of the frontend table's hash.
    #[inline(always)]
    pub const fn frontend_seed(&self) -> u64 {
        self.frontend_seed
    }

    /// Buckets of the frontend table, a power of two.
    #[inline(always)]
    pub const fn buckets(&self) -> u32 {
        self.buckets
    }

    /// ICMP errors that one CPU may send a second.
    #[inline(always)]
    pub const fn icmp_rate(&self) -> u32 {
        self.icmp_rate
    }
}

/// Token bucket of the ICMP errors that one CPU sends (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f), 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Limiter {
    last: u64,
    credit: u64,
}
const _: () = assert!(size_of::<Limiter>() == 16);

impl Limiter {
    const SECOND: u64 = 1_000_000_000;

    /// Takes a token at time `now` (nanoseconds), where one is left.
    ///
    /// The bucket holds one second's worth, and starts full.
    #[inline(always)]
    pub fn take(&mut self, now: u64, rate: u32) -> bool {
        if rate == 0 {
            return false;
        }
        let elapsed = if self.last == 0 { Self::SECOND } else { now.saturating_sub(self.last) };
        self.last = now;
        // Credit is counted in nanoseconds × rate, so that no division is needed.
        let full = Self::SECOND * rate as u64;
        let elapsed = if elapsed > Self::SECOND { Self::SECOND } else { elapsed };
        let credit = self.credit + elapsed * rate as u64;
        let credit = if credit > full { full } else { credit };
        let enough = credit >= Self::SECOND;
        self.credit = if enough { credit - Self::SECOND } else { credit };
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiter_gives_its_rate_and_no_more() {
        let mut limiter = Limiter::default();
        let start = 5_000_000_000;
        assert_eq!((0..1000).filter(|_| limiter.take(start, 100)).count(), 100);
        let later = (1..=1000).map(|ms| start + ms * 1_000_000);
        assert_eq!(later.filter(|&now| limiter.take(now, 100)).count(), 100);
    }

    #[test]
    fn answers_to_the_ports_of_before_are_still_looked_up() {
        let settings = Settings::new([0; 2], 0, 8, 0);
        let had = settings.with_nat_ports(61_000, 62_000);
        let now = settings.with_nat_ports(50_000, 50_100).with_answers_of(&had);
        assert!(now.is_nat_port(50_000) && now.is_nat_port(62_000) && !now.is_nat_port(62_001));
        assert_eq!(now.nat_ports(), (50_000, 50_100));
        let off = settings.with_answers_of(&had);
        assert!(off.is_nat_port(61_500) && off.nat_ports() == (0, 0));
        assert!(!settings.with_answers_of(&settings).is_nat_port(0));
    }

    #[test]
    fn rate_zero_sends_nothing() {
        assert!(!Limiter::default().take(1, 0));
    }
}
