//! Hands out the slots: backends take turns, and in its turn a backend takes the first slot of its
//! own permutation that is still free.

use super::{LADDER, quota::quotas};

/// One backend's permutation of the slots (`offset`, `offset + skip`, … modulo the table's size),
/// and its weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Less than the table's size
    pub(super) offset: u32,
    /// At least 1, and less than the table's size unless that is 1
    pub(super) skip: u32,
    /// 0 takes no turn
    pub(super) weight: u16,
}

/// Fills a table of `size` slots, a prime that [`Taken`] has room for, with indices into `walks`.
/// Empty if nobody has a weight.
pub(super) fn fill(walks: &[Walk], size: u32) -> Vec<u16> {
    let mut takers: Vec<Taker> = walks
        .iter()
        .zip(0..)
        .filter(|(walk, _)| walk.weight > 0)
        .map(|(walk, name)| Taker { at: walk.offset, skip: walk.skip, name })
        .collect();
    if takers.is_empty() {
        return Vec::new();
    }
    let weights: Vec<u16> =
        walks.iter().map(|walk| walk.weight).filter(|&weight| weight > 0).collect();
    let turns = turns(&weights, size);

    // Steps per turn grow as size / free slots, so the last few turns would cost most of the time:
    // they look through the free slots instead. Both ways cost the same when as many slots are
    // free as each free slot takes steps to find.
    let (walked, searched) = turns.split_at((size - (size - 1).isqrt()) as usize);
    let mut slots = vec![0; size as usize];
    let mut taken = Taken([0; TAKEN_WORDS]);
    for &turn in walked {
        let taker = &mut takers[usize::from(turn)];
        let mut slot = taker.at;
        while taken.has(slot) {
            slot = step(slot, taker.skip, size);
        }
        taken.add(slot);
        slots[slot as usize] = taker.name;
        taker.at = step(slot, taker.skip, size);
    }
    let mut free: Vec<u32> = (0..size).filter(|&slot| !taken.has(slot)).collect();
    for &turn in searched {
        let taker = &takers[usize::from(turn)];
        let slot = free.swap_remove(taker.first_of(&free, size));
        slots[slot as usize] = taker.name;
    }
    slots
}

/// A backend with a weight on its way through its permutation.
struct Taker {
    /// Next slot to look at; all before it in the permutation are taken
    at: u32,
    skip: u32,
    name: u16,
}

impl Taker {
    /// Index in `free` of the slot that comes first on the way from `at`.
    ///
    /// A slot is `(slot - at) / skip` steps away, divided modulo `size`. Only the order matters, so
    /// the reduction is left out: the fraction `(slot - at) * inverse / size` of a full circle, as
    /// a 64-bit number that overflows at each full circle, has the same order. Its error is below
    /// 2^35, the distance between neighbours is 2^64 / size, more than 2^46.
    fn first_of(&self, free: &[u32], size: u32) -> usize {
        let circle_part = u64::MAX / u64::from(size) + 1;
        let per_slot = circle_part * u64::from(inverse(self.skip, size));
        let mut first = (u64::MAX, 0);
        for (index, &slot) in free.iter().enumerate() {
            let distance = per_slot.wrapping_mul(u64::from(slot + (size - self.at)));
            if distance < first.0 {
                first = (distance, index);
            }
        }
        first.1
    }
}

/// The slot `skip` further on. Both are at most `size`; no branch, since no CPU could predict it.
fn step(slot: u32, skip: u32, size: u32) -> u32 {
    let next = slot + skip;
    next.min(next.wrapping_sub(size))
}

/// The number that multiplied by `value` gives 1 modulo the prime `size` (Euclid's algorithm).
/// `value` is not 0 modulo `size`.
fn inverse(value: u32, size: u32) -> u32 {
    let size = i64::from(size);
    let (mut rest, mut next_rest) = (size, i64::from(value));
    let (mut factor, mut next_factor) = (0, 1);
    while next_rest != 0 {
        let quotient = rest / next_rest;
        (rest, next_rest) = (next_rest, rest - quotient * next_rest);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(size) as u32
}

const TAKEN_WORDS: usize = 2048;
const _: () = assert!(LADDER[LADDER.len() - 1] as usize <= TAKEN_WORDS * 64);

/// Set of slots, one bit each: at most 16 KiB, so that it stays in the first-level cache.
struct Taken([u64; TAKEN_WORDS]);

impl Taken {
    fn has(&self, slot: u32) -> bool {
        self.0[Self::word(slot)] >> (slot % 64) & 1 != 0
    }

    fn add(&mut self, slot: u32) {
        self.0[Self::word(slot)] |= 1 << (slot % 64);
    }

    /// The remainder changes nothing; it tells the compiler that the index is in range.
    fn word(slot: u32) -> usize {
        slot as usize / 64 % TAKEN_WORDS
    }
}

/// Whose turn it is, `size` times, as indices into `weights`, all positive.
///
/// Turns come in rounds. In each the heaviest has a turn, and one of weight w in w / heaviest of
/// the rounds: its t-th turn is in round ⌈t × heaviest / w⌉, as long as its quota lasts. Within a
/// round the order is that of `weights`.
fn turns(weights: &[u16], size: u32) -> Vec<u16> {
    let heaviest = weights.iter().copied().max().unwrap_or_default();
    if weights.iter().all(|&weight| weight == heaviest) {
        return (0..weights.len() as u16).cycle().take(size as usize).collect();
    }

    // Sorted by counting: first how many turns each round has, from that where it starts, then
    // everyone's turns to their places.
    let quotas = quotas(weights, size);
    let everyone = || weights.iter().zip(&quotas).map(|(&weight, &quota)| (weight, quota));
    let last = everyone().map(|(weight, quota)| last_round(weight, heaviest, quota)).max();
    let mut starts = vec![0_u32; last.unwrap_or_default() as usize + 2];
    for (weight, quota) in everyone() {
        rounds(weight, heaviest, quota).for_each(|round| starts[round as usize + 1] += 1);
    }
    let mut start = 0;
    for entry in &mut starts {
        start += *entry;
        *entry = start;
    }
    let mut turns = vec![0; size as usize];
    for ((weight, quota), index) in everyone().zip(0..) {
        for round in rounds(weight, heaviest, quota) {
            let place = &mut starts[round as usize];
            turns[*place as usize] = index;
            *place += 1;
        }
    }
    turns
}

/// Rounds, counted from 1, in which one of `weight` has its first `quota` turns.
fn rounds(weight: u16, heaviest: u16, quota: u32) -> impl Iterator<Item = u32> {
    let (weight, heaviest) = (u32::from(weight), u32::from(heaviest));
    let (whole, fraction) = (heaviest / weight, heaviest % weight);
    // From weight - 1 on, not from 0: that rounds up.
    let (mut round, mut credit) = (0, weight - 1);
    (0..quota).map(move |_| {
        round += whole;
        credit += fraction;
        if credit >= weight {
            credit -= weight;
            round += 1;
        }
        round
    })
}

/// The last of [`rounds`]. Quotas follow the weights to within a slot, so it is less than the
/// table's size plus twice the largest weight.
fn last_round(weight: u16, heaviest: u16, quota: u32) -> u64 {
    (u64::from(quota) * u64::from(heaviest)).div_ceil(u64::from(weight))
}
