//! Fragments: where the first one of a packet went.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the first fragment of a client's packet went, and so must go the others, 24 bytes; the key
/// in `FRAGMENTS` is [`crate::fragment_key`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Fragment {
    backend: u32,
    generation: u32,
    seen: u64,
    hash: u32,
    stats: u32,
}
const _: () = assert!(size_of::<Fragment>() == 24);

impl Fragment {
    /// A record; `hash` is the flow's, `stats` the index of the frontend's counters, `seen` in
    /// nanoseconds of the kernel's coarse monotonic clock.
    #[inline(always)]
    pub const fn new(backend: u32, generation: u32, hash: u32, stats: u32, seen: u64) -> Self {
        Self { backend, generation, seen, hash, stats }
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// Generation that the backend's record must have; otherwise the id has another owner now.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The flow's hash: outer headers vary with it, and all fragments should take one path.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        self.hash
    }

    /// Index of the frontend's counters.
    #[inline(always)]
    pub const fn stats(&self) -> u32 {
        self.stats
    }

    /// When the first fragment came, in nanoseconds of the kernel's coarse monotonic clock.
    #[inline(always)]
    pub const fn seen(&self) -> u64 {
        self.seen
    }
}
