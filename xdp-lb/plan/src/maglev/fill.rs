//! Hands out the slots: backends take turns, and in its turn a backend takes the first slot of its
//! own permutation that is still free.

use xdp_lb_abi::MAX_SERVICE_BACKENDS;

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

/// Marks a slot that nobody has yet: the table itself says what is taken. A bitmap beside it would
/// fit into the first-level cache, but costs more to look up and a second write for each slot.
const FREE: u16 = 1 << 15;
const _: () = assert!(MAX_SERVICE_BACKENDS <= FREE as usize);
/// What is said below about errors of rounding holds up to this size.
const _: () = assert!(LADDER[LADDER.len() - 1] < 1 << 17);

/// Fills a table of `size` slots, a prime of [`LADDER`], with indices into `walks`, at most
/// [`MAX_SERVICE_BACKENDS`]. Empty if nobody has a weight.
pub(super) fn fill(walks: &[Walk], size: u32) -> Vec<u16> {
    let turns = turns(walks, size);
    if turns.is_empty() {
        return Vec::new();
    }
    let mut takers: Vec<Taker> = walks.iter().map(|walk| Taker::new(walk, size)).collect();
    let mut slots = vec![FREE; size as usize];

    // Steps per turn grow as size / free slots, so the last few turns would cost most of the time:
    // they look through the free slots instead. Both ways cost the same when as many slots are
    // free as each free slot takes steps to find.
    let (walked, searched) = turns.split_at((size - (size - 1).isqrt()) as usize);
    let eighths = |from, to| &walked[walked.len() * from / 8..walked.len() * to / 8];
    // A CPU guesses well whether the next slot is free where most are, and where few are.
    hand_out::<1>(eighths(0, 2), &mut takers, &mut slots);
    hand_out::<3>(eighths(2, 5), &mut takers, &mut slots);
    hand_out::<8>(eighths(5, 7), &mut takers, &mut slots);
    hand_out::<1>(eighths(7, 8), &mut takers, &mut slots);

    let mut free: Vec<u32> = (0..size).filter(|&slot| slots[slot as usize] == FREE).collect();
    for &turn in searched {
        let at = takers[usize::from(turn)].slot(size);
        let slot = free.swap_remove(first_of(&free, at, walks[usize::from(turn)].skip, size));
        slots[slot as usize] = turn;
    }
    slots
}

/// Gives each of `turns` its slot by walking, `AHEAD` slots at a time.
///
/// A CPU that guesses wrong whether a slot is free loses more time than looking at a few slots
/// costs. So all `AHEAD` are looked at before anything depends on what was found.
fn hand_out<const AHEAD: usize>(turns: &[u16], takers: &mut [Taker], slots: &mut [u16]) {
    let size = slots.len() as u32;
    for &turn in turns {
        let taker = &mut takers[usize::from(turn)];
        loop {
            // One bit for each free slot, the next one's lowest.
            let mut found = 0_u32;
            let mut ahead = *taker;
            for bit in 0..AHEAD {
                found |= u32::from(slots[ahead.slot(size) as usize] / FREE) << bit;
                ahead.step(1);
            }
            if found != 0 {
                taker.step(found.trailing_zeros());
                slots[taker.slot(size) as usize] = turn;
                taker.step(1);
                break;
            }
            *taker = ahead;
        }
    }
}

/// A backend on its way through its permutation.
///
/// Both numbers are parts of a full circle of 2^64, which is what all slots together make: a step
/// is an addition that overflows at each full circle, and the slot is the product with the table's
/// size, without its low half.
///
/// A circle part is rounded up by less than 1, so after the whole permutation, fewer than
/// `size`² + `size` slots' worth of parts, the position is too high by less than 2^35. A slot is
/// more than 2^46 wide.
#[derive(Clone, Copy)]
struct Taker {
    /// Next slot to look at; all before it in the permutation are taken
    at: u64,
    skip: u64,
}

impl Taker {
    fn new(walk: &Walk, size: u32) -> Self {
        let part = circle_part(size);
        Self {
            at: part.wrapping_mul(u64::from(walk.offset)),
            skip: part.wrapping_mul(u64::from(walk.skip)),
        }
    }

    fn slot(self, size: u32) -> u32 {
        ((u128::from(self.at) * u128::from(size)) >> 64) as u32
    }

    fn step(&mut self, times: u32) {
        self.at = self.at.wrapping_add(self.skip.wrapping_mul(u64::from(times)));
    }
}

/// What one of `size` slots is of a full circle of 2^64, rounded up; 0 where it is all.
fn circle_part(size: u32) -> u64 {
    (u64::MAX / u64::from(size)).wrapping_add(1)
}

/// Index in `free` of the slot that comes first on the way from the slot `at`.
///
/// A slot is `(slot - at) / skip` steps away, divided modulo `size`. Only the order matters, so
/// the reduction is left out: the fraction `(slot - at) * inverse / size` of a full circle, as
/// a 64-bit number that overflows at each full circle, has the same order. Its error is below
/// 2^35, the distance between neighbours is 2^64 / size, more than 2^46.
fn first_of(free: &[u32], at: u32, skip: u32, size: u32) -> usize {
    let per_slot = circle_part(size).wrapping_mul(u64::from(inverse(skip, size)));
    let mut first = (u64::MAX, 0);
    for (index, &slot) in free.iter().enumerate() {
        let distance = per_slot.wrapping_mul(u64::from(slot + (size - at)));
        if distance < first.0 {
            first = (distance, index);
        }
    }
    first.1
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

/// Whose turn it is, `size` times, as indices into `walks`; nothing if nobody has a weight.
///
/// Turns come in rounds. In each the heaviest has a turn, and one of weight w in w / heaviest of
/// the rounds: its t-th turn is in round ⌈t × heaviest / w⌉, as long as its quota lasts. Within a
/// round the order is that of `walks`.
fn turns(walks: &[Walk], size: u32) -> Vec<u16> {
    let names: Vec<u16> =
        walks.iter().zip(0..).filter(|(walk, _)| walk.weight > 0).map(|(_, name)| name).collect();
    let weights: Vec<u16> = names.iter().map(|&name| walks[usize::from(name)].weight).collect();
    let heaviest = weights.iter().copied().max().unwrap_or_default();
    if weights.iter().all(|&weight| weight == heaviest) {
        let rounds = (size as usize).div_ceil(names.len().max(1));
        let mut turns = names.repeat(rounds);
        turns.truncate(size as usize);
        return turns;
    }

    // Sorted by counting: first how many turns each round has, from that where it starts, then
    // everyone's turns to their places.
    let quotas = quotas(&weights, size);
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
    for ((weight, quota), name) in everyone().zip(names) {
        for round in rounds(weight, heaviest, quota) {
            let place = &mut starts[round as usize];
            turns[*place as usize] = name;
            *place += 1;
        }
    }
    turns
}

/// Rounds, counted from 1, in which one of `weight` has its first `quota` turns.
///
/// Reckoned in parts of a round, 2^44 of them, instead of divided each time. From one turn to the
/// next is rounded down by less than a part, so the last of fewer than 2^17 turns is too early by
/// less than 2^17. Rounding up to a whole round sets that right: an exact turn that is not at the
/// start of a round is at least 1 / `weight` behind it, which is more than 2^28 parts.
fn rounds(weight: u16, heaviest: u16, quota: u32) -> impl Iterator<Item = u32> {
    const ROUND: u64 = 1 << 44;
    let apart = u64::from(heaviest) * ROUND / u64::from(weight);
    (1..=u64::from(quota)).map(move |turn| (turn * apart).div_ceil(ROUND) as u32)
}

/// The last of [`rounds`]. Quotas follow the weights to within a slot, so it is less than the
/// table's size plus twice the largest weight.
fn last_round(weight: u16, heaviest: u16, quota: u32) -> u64 {
    (u64::from(quota) * u64::from(heaviest)).div_ceil(u64::from(weight))
}
