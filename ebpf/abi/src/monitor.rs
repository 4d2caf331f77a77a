//! What the monitoring programs are told, and what they tell.
//!
//! As with [`crate::asked`], the maps of these records belong to one load of the programs, which is
//! this build's own: they are no part of what [`crate::VERSION`] counts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Reason};

/// How many may watch at the same time; each has a bit in [`Event::watchers`].
pub const WATCHERS: usize = 8;
/// Most bytes of a packet that are captured.
pub const CAPTURE: usize = 1536;
/// Bytes of the ring buffer.
pub const RING: u32 = 1 << 21;

/// What holds for all watchers: all zero while nobody watches.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Watch {
    /// Until when anything is told, in nanoseconds of CLOCK_MONOTONIC: nothing is, once nobody is left
    /// to say so again
    pub until: u64,
    /// Bytes that the longest capture wants, at most [`CAPTURE`]
    pub capture: u32,
    /// Always 0
    pub reserved: u32,
}

/// What one watcher wants to see: everything that is said here must hold.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Filter {
    /// An address of the packet's outermost IP header, source or destination; with [`Self::HOST`]
    pub host: [u64; 3],
    /// Index of the frontend's counters, and 1; 0 for any
    pub frontend: u32,
    /// Id of the backend, and 1; 0 for any
    pub backend: u32,
    /// Of so many random 32-bit numbers the lower ones are shown: all with `u32::MAX`
    pub sample: u32,
    /// [`Self::WATCHES`] and so on
    pub flags: u32,
    /// A port, source or destination; 0 for any
    pub port: u16,
    /// IP protocol number, and 1; 0 for any
    pub protocol: u16,
    /// The [`Reason`]'s number, and 1; 0 for any and none
    pub reason: u16,
    /// Always 0
    pub reserved: u16,
}

impl Filter {
    /// Somebody watches.
    pub const WATCHES: u32 = 1;
    /// [`Self::host`] counts.
    pub const HOST: u32 = 2;
    /// Only what is not forwarded, delivered or passed.
    pub const LOST: u32 = 4;
    /// Packets, too, that are none of ours.
    pub const ALL: u32 = 8;
    /// What the packet has become, too.
    pub const AFTER: u32 = 16;

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The outermost headers of a packet that is watched; zeros where there are none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Headers {
    /// [`Address::raw`] of the source
    pub source: [u64; 3],
    /// [`Address::raw`] of the destination
    pub destination: [u64; 3],
    /// Source port
    pub from: u16,
    /// Destination port
    pub to: u16,
    /// IP protocol number, and 1
    pub protocol: u16,
    /// Always 0
    pub reserved: u16,
}

/// Where a packet was when it was captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Place {
    /// On its way in, as it came
    In = 0,
    /// On its way in, as the program left it
    InAfter = 1,
    /// On its way out, as it came
    Out = 2,
    /// On its way out, as the program left it
    OutAfter = 3,
}

/// A packet that was seen; the captured bytes follow.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC
    pub time: u64,
    /// Index of the device that it came by, or leaves by
    pub ifindex: u32,
    /// What the program returned: `enum xdp_action`, or `TC_ACT_…`
    pub action: u32,
    /// Index of its frontend's counters, and 1; 0 where there is none
    pub frontend: u32,
    /// Id of its backend, and 1; 0 where there is none
    pub backend: u32,
    /// Length of the frame
    pub length: u32,
    /// Bytes that follow
    pub captured: u32,
    /// Bits of those who want to see it
    pub watchers: u32,
    /// The [`Reason`]'s number, and 1; 0 where none was counted
    pub reason: u16,
    /// A [`Place`]
    pub place: u8,
    /// Not 0 where the program rewrote it on its way out
    pub rewritten: u8,
}
const _: () = assert!(size_of::<Event>() == 40);

impl Event {
    /// Why it was not simply forwarded.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.reason).checked_sub(1)?).copied()
    }
}

/// What a CPU knows of the packet that it works at.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Seen {
    /// Its outermost headers
    pub headers: Headers,
    /// Not 0 while it is watched
    pub open: u32,
    /// Bits of those who want to see what it has become
    pub after: u32,
    /// What will be told of it
    pub event: Event,
    /// The packet
    pub bytes: [u8; CAPTURE],
}

impl Address {
    /// The address as three words, which no other address has.
    #[inline(always)]
    pub const fn raw(&self) -> [u64; 3] {
        let [high, low] = self.words();
        [high, low, self.family() as u64]
    }
}
