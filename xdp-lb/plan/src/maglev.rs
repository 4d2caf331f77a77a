//! Maglev tables.

/// Sizes that a table may have: primes, so that every step of a permutation reaches every slot.
pub const LADDER: [u32; 7] = [1, 251, 1021, 4093, 16_381, 65_537, 131_071];
