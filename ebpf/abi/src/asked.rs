//! What the tracing programs write down: each question that the packet path asked of its tables, and
//! the answer.
//!
//! The maps of these records are never pinned and belong to one load of the programs, which is this
//! build's own: they are no part of what [`crate::VERSION`] counts.

/// A question to the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Asked {
    /// The instance's settings
    Settings = 1,
    /// Whether some frontend has a port
    MayBeServed,
    /// A bucket of the frontend table
    Bucket,
    /// A service's record
    Service,
    /// A word of the arena
    Arena,
    /// A backend
    Backend,
    /// A recorded flow
    Flow,
    /// To record a flow
    RecordFlow,
    /// To date a flow's record anew
    TouchFlow,
    /// The time
    Clock,
    /// A client's recorded backend
    Client,
    /// To record a client's backend
    RecordClient,
    /// Whether a source may use a service
    Allowed,
    /// A device
    Device,
    /// What an address is to this host
    AddressFlags,
    /// Whether a sender's tunnel packets are accepted
    Peer,
    /// Whether an address may be a frontend's
    MayBeFrontend,
    /// Whether an address is of a pod on this host
    Pod,
    /// How answers of a flow leave
    Answer,
    /// To record how answers of a flow leave
    RecordAnswer,
    /// To record it where nothing is recorded yet
    ClaimAnswer,
    /// To forget it
    ForgetAnswer,
    /// Whether a pod's port has flows
    MayBeAnswer,
    /// To note that it has
    ExpectAnswers,
    /// The port under which a pod knows a client
    Translation,
    /// To record that port
    RecordTranslation,
    /// Where a packet's first fragment went
    Fragment,
    /// To record where it went
    RecordFragment,
    /// How the first fragment of an answer left
    AnswerFragment,
    /// To record how it left
    RecordAnswerFragment,
    /// A flow of mode `snat`, by its client
    NatForward,
    /// To record it where nothing is recorded yet: 0 done, 1 taken, 2 full
    ClaimNatForward,
    /// To date it anew
    SeeNatForward,
    /// To forget it
    RemoveNatForward,
    /// A flow of mode `snat`, by its backend
    NatReverse,
    /// To record it where nothing is recorded yet: 0 done, 1 taken, 2 full
    ClaimNatReverse,
    /// To date it anew
    SeeNatReverse,
    /// To forget it
    RemoveNatReverse,
    /// The kernel's route back to a client
    RouteBack,
    /// A device's index
    DeviceOf,
    /// Whether an ICMP error or RST may be sent
    MaySendIcmp,
    /// The kernel's route to a backend
    Route,
    /// To send by a device
    Redirect,
    /// To count for a frontend
    CountFrontend,
    /// To count for a backend
    CountBackend,
    /// To count for a reason
    CountReason,
}

/// A question and its answer: the [`Asked`] with [`ANSWERED`] where there was an entry, what was
/// asked for (an index, or 0), the answer's words.
pub type Note = [u64; NOTE_WORDS];

/// Words of a [`Note`].
pub const NOTE_WORDS: usize = 14;
/// Where a [`Note`]'s answer begins.
pub const NOTE_ANSWER: usize = 2;
/// In a [`Note`]'s first word: there was an entry.
pub const ANSWERED: u64 = 1 << 32;
/// Notes that a trace has room for; the longest way of a packet makes about 300.
pub const NOTES: usize = 512;

/// Words of the map `NOTED`.
pub mod noted {
    /// How many notes there are
    pub const COUNT: u32 = 0;
    /// Not 0 where `NAT_FORWARD` has no room
    pub const FORWARD_FULL: u32 = 1;
    /// Not 0 where `NAT_REVERSE` has no room
    pub const REVERSE_FULL: u32 = 2;
    /// All of them
    pub const WORDS: usize = 3;
}
