//! Which of our ports a new flow of mode `snat` may get, in the order in which they are tried.
//!
//! A port towards one backend is taken or free; nothing tells beforehand, so candidates are tried one
//! after another, at most [`Candidates::TRIES`] of them. The first is the flow's own, from its hash.
//! A range of up to as many ports is tried through to the end: it is used up to the last port. Of a
//! larger one, each try takes another equal part of the range, beginning at the flow's own port, and
//! a port of that part by chance, so that the tries of one flow are spread, never repeat, and have
//! nothing to do with those of others: runs of taken ports do not grow as they would in a linear
//! search.
//!
//! So of N ports with a share of f free, a new flow finds none with a probability of (1 - f)^128, and
//! while a range fills up, the first refusal comes where f is about ln(N / 128) / 128: with 97 % of
//! 4,500 ports in use, or 95 % of 50,000 (`tests/snat.rs` measures it). At 90 % in use it is one new
//! flow in 700,000. Chance takes the time in: who is refused and tries again a second later tries
//! other ports.

/// The candidates of one flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates {
    first: u32,
    count: u32,
    /// Width of a part, in 65,536ths of a port.
    part: u64,
    own: u32,
    seed: u32,
}

impl Candidates {
    /// How many are tried at most.
    pub(crate) const TRIES: u32 = 128;
    /// 2^32 divided by the golden ratio, odd: carries a hash's low bits into its high ones, which
    /// the Maglev slot has used up.
    const SPREAD: u32 = 0x9e37_79b1;
    /// Bits of a nanosecond clock that are about a second.
    const SECOND_BITS: u32 = 30;

    /// The candidates from `first` to `last` for a flow with this hash at this time.
    #[inline(always)]
    pub(crate) const fn new((first, last): (u16, u16), hash: u32, now: u64) -> Self {
        let (first, last) = (first as u32, last as u32);
        let count = if last == 0 || last < first { 0 } else { last - first + 1 };
        let own = scale(hash.wrapping_mul(Self::SPREAD), count);
        let parts = if count < Self::TRIES { count } else { Self::TRIES };
        let part = if parts == 0 { 0 } else { ((count as u64) << 16) / parts as u64 };
        Self { first, count, part, own, seed: hash ^ (now >> Self::SECOND_BITS) as u32 }
    }

    /// Candidate `n` below [`Self::TRIES`]; 0 where there are none. A range of fewer ports comes round
    /// again.
    ///
    /// Hardly a branch: the verifier follows each, for every try.
    #[inline(always)]
    pub(crate) const fn port(&self, n: u32) -> u16 {
        if self.count == 0 {
            return 0;
        }
        let start = ((n as u64 * self.part) >> 16) as u32;
        let end = (((n as u64 + 1) * self.part) >> 16) as u32;
        let chance =
            if n == 0 { 0 } else { mix(self.seed.wrapping_add(n.wrapping_mul(Self::SPREAD))) };
        let offset = (self.own + start + scale(chance, end - start)) % self.count;
        (self.first + offset) as u16
    }
}

/// A number below `count` from one of 32 bits, without a division.
#[inline(always)]
const fn scale(number: u32, count: u32) -> u32 {
    ((number as u64 * count as u64) >> 32) as u32
}

/// Spreads every bit over all others: the finaliser of MurmurHash3.
#[inline(always)]
const fn mix(mut bits: u32) -> u32 {
    bits = (bits ^ bits >> 16).wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ bits >> 13).wrapping_mul(0xc2b2_ae35);
    bits ^ bits >> 16
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn all(range: (u16, u16), hash: u32, now: u64) -> Vec<u16> {
        let candidates = Candidates::new(range, hash, now);
        let tries = candidates.count.min(Candidates::TRIES);
        (0..tries).map(|n| candidates.port(n)).collect()
    }

    proptest! {
        #[test]
        fn every_candidate_is_in_the_range_and_none_comes_twice(
            first in 1..=u16::MAX,
            length: u16,
            hash: u32,
            now: u64,
        ) {
            let last = first.saturating_add(length);
            let list = all((first, last), hash, now);
            let count = usize::from(last - first) + 1;
            prop_assert_eq!(list.len(), count.min(Candidates::TRIES as usize));
            prop_assert!(list.iter().all(|port| (first..=last).contains(port)));
            prop_assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        }
    }

    #[test]
    fn without_a_range_there_are_none() {
        assert!(all((0, 0), 7, 7).is_empty());
        assert!(all((9, 8), 7, 7).is_empty());
    }

    #[test]
    fn a_second_later_others_come_after_the_first() {
        let [before, after] = [0, 2_000_000_000].map(|now| all((61_000, 65_500), 12_345, now));
        assert_eq!(before[0], after[0]);
        let common: BTreeSet<_> = before.iter().filter(|port| after.contains(port)).collect();
        assert!(common.len() < 20, "{}", common.len());
    }

    /// Flows of one backend have hashes of one Maglev slot: their first candidates still differ.
    #[test]
    fn the_flows_of_one_slot_begin_everywhere() {
        let firsts: BTreeSet<u16> = (0..4096)
            .map(|low| Candidates::new((61_000, 65_095), 0xabcd_0000 | low << 4, 0).port(0))
            .collect();
        // By chance 4096 × (1 - 1/e).
        assert!(firsts.len() > 2400, "{}", firsts.len());
    }
}
