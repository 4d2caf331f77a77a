//! What the answers of pods need: which frontend a flow came by.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Address, FlowKey,
    hash::{finish, round},
};

/// How the answers of a flow that was delivered to a pod leave, 56 bytes.
///
/// The key in `ANSWERS` is the [`FlowKey`] of what the pod receives: client to pod. The answer's
/// source becomes the frontend, its destination the client as the frontend knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Answer {
    frontend: [u64; 2],
    client: [u64; 2],
    frontend_port: u16,
    client_port: u16,
    flags: u32,
    /// When a packet of the flow was last delivered: see [`Answer::seen`].
    seen: u64,
    reserved: u64,
}
const _: () = assert!(size_of::<Answer>() == 56);

impl Answer {
    const HAIRPIN: u32 = 1;

    /// A record; `frontend` and `client` as the client's packets name them, ports in host order.
    #[inline(always)]
    pub const fn new(frontend: (Address, u16), client: (Address, u16), seen: u64) -> Self {
        Self {
            frontend: frontend.0.words(),
            client: client.0.words(),
            frontend_port: frontend.1,
            client_port: client.1,
            flags: 0,
            seen,
            reserved: 0,
        }
    }

    /// The same record of a flow whose client is on the pod's host: its answers come back in.
    #[inline(always)]
    #[must_use]
    pub const fn hairpin(mut self) -> Self {
        self.flags |= Self::HAIRPIN;
        self
    }

    /// The same record, seen at another time.
    #[inline(always)]
    #[must_use]
    pub const fn at(mut self, seen: u64) -> Self {
        self.seen = seen;
        self
    }

    /// Address and port of the frontend; `v6` is the family of the flow.
    #[inline(always)]
    pub const fn frontend(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.frontend, v6), self.frontend_port)
    }

    /// Address and port of the client as the frontend knows it.
    #[inline(always)]
    pub const fn client(&self, v6: bool) -> (Address, u16) {
        (Address::from_words(self.client, v6), self.client_port)
    }

    /// Whether the client is on the pod's host.
    #[inline(always)]
    pub const fn is_hairpin(&self) -> bool {
        self.flags & Self::HAIRPIN != 0
    }

    /// Whether two records mean the same flow, whenever they were seen.
    #[inline(always)]
    pub const fn same_flow(&self, other: &Self) -> bool {
        self.frontend[0] == other.frontend[0]
            && self.frontend[1] == other.frontend[1]
            && self.client[0] == other.client[0]
            && self.client[1] == other.client[1]
            && self.frontend_port == other.frontend_port
            && self.client_port == other.client_port
    }

    /// When a packet of the flow was last seen to be delivered, in nanoseconds of the kernel's
    /// coarse monotonic clock; not written for every packet.
    #[inline(always)]
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// Words of the array `ANSWER_FILTER`.
    pub const FILTER_WORDS: u32 = 65_536;

    /// Index of the word of `ANSWER_FILTER` that is not 0 where flows to this pod, port and protocol
    /// were recorded: it spares other traffic the look-up.
    #[inline(always)]
    pub const fn filter(pod: &Address, port: u16, protocol: u8) -> u32 {
        let [high, low] = pod.words();
        let rest = (port as u64) << 8 | protocol as u64;
        let mut state = round(rest, low);
        if pod.is_v6() {
            state = round(state, high);
        }
        (finish(state) >> 48) as u32 % Self::FILTER_WORDS
    }
}

/// The port under which a pod sees a client that reaches it by two frontends from one port, 24 bytes.
///
/// The key in `TRANSLATIONS` is the [`FlowKey`] of what the client sends: client to frontend.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Translation {
    pod: [u64; 2],
    pod_port: u16,
    port: u16,
    reserved: u32,
}
const _: () = assert!(size_of::<Translation>() == 24);

impl Translation {
    /// `port` instead of the client's, towards this pod.
    #[inline(always)]
    pub const fn new(pod: (Address, u16), port: u16) -> Self {
        Self { pod: pod.0.words(), pod_port: pod.1, port, reserved: 0 }
    }

    /// The client's port towards this pod; nothing where the translation is another pod's.
    #[inline(always)]
    pub const fn port(&self, pod: (&Address, u16)) -> Option<u16> {
        let words = pod.0.words();
        if self.pod[0] == words[0] && self.pod[1] == words[1] && self.pod_port == pod.1 {
            Some(self.port)
        } else {
            None
        }
    }
}

/// The key under which the fragments of one packet find each other: addresses, protocol (0 for IPv6,
/// RFC 8200, 4.5) and identification (RFC 791, 3.2).
#[inline(always)]
pub const fn fragment_key(
    source: Address,
    destination: Address,
    protocol: u8,
    identification: u32,
) -> FlowKey {
    let protocol = if destination.is_v6() { 0 } else { protocol };
    let ports = ((identification >> 16) as u16, identification as u16);
    FlowKey::new(source, destination, ports, protocol)
}
