//! Flows of mode `snat`: one record for each direction, and how long a silent flow is kept.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, FlowKey, Hop};

/// What one direction of a flow was seen to do, as bits.
pub struct Seen;

impl Seen {
    /// A packet other than the one that opens the flow
    pub const DATA: u8 = 1;
    /// TCP FIN, SCTP SHUTDOWN and its answers
    pub const FIN: u8 = 2;
    /// TCP RST, SCTP ABORT
    pub const RESET: u8 = 4;

    /// How often `seen` of a record is written while packets come, in nanoseconds.
    pub const REFRESH: u64 = SECOND;

    /// Whether both ends have finished a flow, or one has reset it: then another may open in its
    /// place.
    #[inline(always)]
    pub const fn is_closed(forward: u8, reverse: u8) -> bool {
        forward & reverse & Self::FIN != 0 || (forward | reverse) & Self::RESET != 0
    }
}

const SECOND: u64 = 1_000_000_000;

/// IP protocol numbers of flows that open and close.
const TCP: u8 = 6;
const SCTP: u8 = 132;

/// How long a silent flow is kept, in nanoseconds: after that its port may have another owner.
pub struct Idle;

impl Idle {
    /// A connection that both ends have opened (RFC 5382, REQ-5: at least 2 hours 4 minutes).
    pub const ESTABLISHED: u64 = (2 * 60 + 4) * 60 * SECOND;
    /// A connection that opens, or that was closed or reset (RFC 5382, REQ-5: at least 4 minutes;
    /// after a reset RFC 7857, 2.2).
    pub const TRANSITORY: u64 = 4 * 60 * SECOND;
    /// Everything else (RFC 4787, REQ-5: at least 2 minutes, 5 recommended).
    pub const DATAGRAM: u64 = 5 * 60 * SECOND;

    /// The limit for a flow whose directions did what these bits of [`Seen`] say.
    ///
    /// SCTP's connections are treated like TCP's: no RFC says otherwise.
    #[inline(always)]
    pub const fn limit(protocol: u8, forward: u8, reverse: u8) -> u64 {
        if protocol != TCP && protocol != SCTP {
            return Self::DATAGRAM;
        }
        if forward & reverse & Seen::DATA != 0 && !Seen::is_closed(forward, reverse) {
            Self::ESTABLISHED
        } else {
            Self::TRANSITORY
        }
    }

    /// Whether a flow was silent for longer than its limit at time `now`, in nanoseconds of the
    /// kernel's coarse monotonic clock. Either direction's packets keep it (RFC 4787, REQ-6).
    #[inline(always)]
    pub const fn is_over(protocol: u8, forward: &Forward, reverse: &Reverse, now: u64) -> bool {
        let seen = if forward.seen > reverse.seen { forward.seen } else { reverse.seen };
        now.saturating_sub(seen) > Self::limit(protocol, forward.state, reverse.state)
    }
}

/// A flow as its client's packets find it, 56 bytes; the key in `NAT_FORWARD` is their
/// [`FlowKey`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Forward {
    source: [u64; 2],
    target: [u64; 2],
    backend: u32,
    generation: u32,
    /// When the client last sent, in nanoseconds of the kernel's coarse monotonic clock; written
    /// every [`Seen::REFRESH`] at most
    pub seen: u64,
    source_port: u16,
    target_port: u16,
    /// Bits of [`Seen`]
    pub state: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<Forward>() == 56);

impl Forward {
    /// A flow to `target`, which is this backend's, from `source`, which is ours; ports in host
    /// order.
    #[inline(always)]
    pub const fn new(
        (backend, generation): (u32, u32),
        source: (Address, u16),
        target: (Address, u16),
        seen: u64,
    ) -> Self {
        Self {
            source: source.0.words(),
            target: target.0.words(),
            backend,
            generation,
            seen,
            source_port: source.1,
            target_port: target.1,
            state: 0,
            reserved: [0; 3],
        }
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// Generation that the backend's record must have.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Address and port that the backend sees.
    #[inline(always)]
    pub const fn source(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.source, v6), self.source_port)
    }

    /// Address and port of the backend.
    #[inline(always)]
    pub const fn target(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.target, v6), self.target_port)
    }

    /// The key in `NAT_REVERSE` of the same flow.
    #[inline(always)]
    pub const fn reverse_key(&self, protocol: u8, v6: bool) -> FlowKey {
        let (target, target_port) = self.target(v6);
        let (source, source_port) = self.source(v6);
        FlowKey::new(target, source, (target_port, source_port), protocol)
    }
}

/// A flow as its backend's answers find it, 56 bytes; the key in `NAT_REVERSE` is the
/// [`FlowKey`] of the answers: backend to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Reverse {
    client: [u64; 2],
    frontend: [u64; 2],
    hop: Hop,
    /// When the backend last sent, in nanoseconds of the kernel's coarse monotonic clock; written
    /// every [`Seen::REFRESH`] at most
    pub seen: u64,
    client_port: u16,
    frontend_port: u16,
    /// Bits of [`Seen`]
    pub state: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<Reverse>() == 56);

impl Reverse {
    /// A flow of `client` to `frontend`, ports in host order. `hop` is where the client's packets came
    /// from: the way back where the routing table knows none.
    #[inline(always)]
    pub const fn new(
        client: (Address, u16),
        frontend: (Address, u16),
        hop: Hop,
        seen: u64,
    ) -> Self {
        Self {
            client: client.0.words(),
            frontend: frontend.0.words(),
            hop,
            seen,
            client_port: client.1,
            frontend_port: frontend.1,
            state: 0,
            reserved: [0; 3],
        }
    }

    /// Address and port of the client.
    #[inline(always)]
    pub const fn client(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.client, v6), self.client_port)
    }

    /// Address and port of the frontend.
    #[inline(always)]
    pub const fn frontend(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.frontend, v6), self.frontend_port)
    }

    /// Where the client's packets came from.
    #[inline(always)]
    pub const fn hop(&self) -> Hop {
        self.hop
    }

    /// The key in `NAT_FORWARD` of the same flow.
    #[inline(always)]
    pub const fn forward_key(&self, protocol: u8, v6: bool) -> FlowKey {
        let (client, client_port) = self.client(v6);
        let (frontend, frontend_port) = self.frontend(v6);
        FlowKey::new(client, frontend, (client_port, frontend_port), protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;
    const MINUTE: u64 = 60 * SECOND;

    /// RFC 5382, REQ-5; RFC 4787, REQ-5; RFC 7857, 2.2.
    #[test]
    fn the_limits_are_those_of_the_rfcs() {
        let (data, fin, reset) = (Seen::DATA, Seen::DATA | Seen::FIN, Seen::DATA | Seen::RESET);
        for protocol in [TCP, SCTP] {
            for (forward, reverse, minutes) in [
                // The SYN alone, the SYN answered, and both.
                (0, 0, 4),
                (0, data, 4),
                (data, 0, 4),
                (data, data, 124),
                // One end has finished, then both have.
                (fin, data, 124),
                (data, fin, 124),
                (fin, fin, 4),
                (reset, data, 4),
                (data, reset, 4),
                (0, reset, 4),
            ] {
                let limit = Idle::limit(protocol, forward, reverse);
                assert_eq!(limit, minutes * MINUTE, "{protocol} {forward} {reverse}");
            }
        }
        assert_eq!(Idle::limit(UDP, 0, 0), 5 * MINUTE);
        assert_eq!(Idle::limit(UDP, data, data), 5 * MINUTE);
    }

    #[test]
    fn either_direction_keeps_a_flow() {
        let end = (Address::v4([10, 0, 0, 1]), 1);
        let forward = |seen| Forward::new((1, 1), end, end, seen);
        let reverse = |seen| Reverse::new(end, end, Hop::UNKNOWN, seen);
        let over = |f, r, now| Idle::is_over(UDP, &forward(f), &reverse(r), now);
        let limit = Idle::DATAGRAM;
        assert!(!over(7, 7, 7 + limit));
        assert!(over(7, 7, 8 + limit));
        assert!(!over(8, 7, 8 + limit));
        assert!(!over(7, 8, 8 + limit));
        // A record that was written after the clock was read.
        assert!(!over(u64::MAX, 7, 8 + limit));
    }

    #[test]
    fn each_record_leads_to_the_other() {
        for v6 in [false, true] {
            let address = |n| {
                if v6 { Address::v6([n; 16]) } else { Address::v4([10, 0, 0, n]) }
            };
            let [client, frontend, source, target] =
                [1, 2, 3, 4].map(|n| (address(n), u16::from(n) << 8));
            let forward_key = FlowKey::new(client.0, frontend.0, (client.1, frontend.1), UDP);
            let reverse_key = FlowKey::new(target.0, source.0, (target.1, source.1), UDP);
            let forward = Forward::new((1, 1), source, target, 0);
            let reverse = Reverse::new(client, frontend, Hop::UNKNOWN, 0);
            assert_eq!(forward.reverse_key(UDP, v6), reverse_key);
            assert_eq!(reverse.forward_key(UDP, v6), forward_key);
            assert_eq!((forward_key.protocol(), forward_key.is_v6()), (UDP, v6));
        }
    }
}
