//! What holds for the whole instance.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What holds for the whole instance, 32 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Settings {
    flow_key: [u64; 2],
    frontend_seed: u64,
    buckets: u32,
    icmp_rate: u32,
}
const _: () = assert!(size_of::<Settings>() == 32);

impl Settings {
    /// `flow_key` keys the hash of flows (one for all instances of a cluster), `frontend_seed` that
    /// of the frontend table (this host's own); `buckets` is the table's size, a power of two;
    /// `icmp_rate` how many ICMP errors a CPU may send a second.
    pub const fn new(flow_key: [u64; 2], frontend_seed: u64, buckets: u32, icmp_rate: u32) -> Self {
        Self { flow_key, frontend_seed, buckets, icmp_rate }
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
    fn rate_zero_sends_nothing() {
        assert!(!Limiter::default().take(1, 0));
    }
}
