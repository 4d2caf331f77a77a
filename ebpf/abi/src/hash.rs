//! The two hashes of the data path: keyed multiply-mix over 64-bit words.
//!
//! Not cryptographic. The key keeps outsiders from computing which flows share a slot; it costs two
//! multiplications a packet (IPv4). 64-bit products only: BPF has no wider ones.

/// Odd constants with well spread bits: the golden ratio, and one of MurmurHash3's finaliser.
const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xff51_afd7_ed55_8ccd;

/// Mixes one word into the state: every bit of both reaches the upper half, which is folded down.
#[inline(always)]
pub(crate) const fn round(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(A);
    product ^ (product >> 32)
}

/// The last step: the upper 32 bits of the result depend on all of the state.
#[inline(always)]
pub(crate) const fn finish(state: u64) -> u64 {
    let product = state.wrapping_mul(B);
    product ^ (product >> 29)
}
