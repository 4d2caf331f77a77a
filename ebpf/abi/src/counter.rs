//! Counters: traffic by frontend and backend, and packets by named reason.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Packets, bytes and new flows, 24 bytes; one of each CPU's own.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Traffic {
    /// Packets
    pub packets: u64,
    /// Of frontends and backends: bytes of the IP packets as they arrived. Of reasons: bytes of the
    /// frames as they are handed on (of a multi-buffer frame, its linear part).
    pub bytes: u64,
    /// Packets among them that begin a flow: TCP SYN, SCTP INIT, repeated ones too. UDP has no such
    /// packet; of reasons none are counted.
    pub flows: u64,
}
const _: () = assert!(size_of::<Traffic>() == 24);

impl Traffic {
    /// Counts a packet.
    #[inline(always)]
    pub const fn add(&mut self, bytes: usize, opens: bool) {
        self.packets += 1;
        self.bytes += bytes as u64;
        self.flows += opens as u64;
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: &Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            flows: self.flows + other.flows,
        }
    }
}

/// What becomes of a packet that a [`Reason`] is counted for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// Handed to the kernel's stack, byte for byte as it came.
    Pass,
    /// Dropped.
    Drop,
    /// Answered by the program itself.
    Answer,
    /// Unwrapped or rewritten, and handed to the kernel's stack.
    Deliver,
    /// Sent on, rewritten: counted besides the frontend's and the backend's own counters.
    Forward,
}

impl Disposition {
    /// The name in metrics, the API and the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Answer => "answer",
            Self::Deliver => "deliver",
            Self::Forward => "forward",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $index:literal, $name:literal, $disposition:ident;)*) => {
        /// Why a packet was not simply forwarded: the index of its counter in `REASON_STATS`.
        #[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant = $index,)*
        }

        impl Reason {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics, the API and the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn disposition(self) -> Disposition {
                match self { $(Self::$variant => Disposition::$disposition,)* }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6: ARP, LLDP, …
    NotIp = 0, "not_ip", Pass;
    /// Not addressed to a frontend: most packets of a node.
    NoFrontend = 1, "no_frontend", Pass;
    /// Sent to a group MAC address: never for a frontend.
    GroupAddress = 2, "group_address", Pass;
    /// More than two VLAN tags.
    TooManyTags = 3, "too_many_vlan_tags", Pass;
    /// The frame ends inside a header.
    Truncated = 4, "truncated", Pass;
    /// IPv4 header with a wrong version or header length.
    BadHeader = 5, "bad_ip_header", Pass;
    /// The IP length says more than the frame has, or less than the headers need.
    BadLength = 6, "bad_ip_length", Pass;
    /// A fragment of a packet that is not for a frontend.
    Fragment = 7, "fragment", Pass;
    /// More IPv6 extension headers than are followed, or one that cannot be.
    ExtensionHeader = 8, "ipv6_extension_header", Pass;
    /// Neither TCP, UDP, SCTP, ICMP nor a tunnel.
    Protocol = 9, "protocol", Pass;
    /// ICMP that is neither a plain echo request to a frontend nor an error about one of its flows.
    Icmp = 10, "icmp", Pass;
    /// A tunnel packet that is not addressed to this host, or whose inner packet is not.
    TunnelNotOurs = 11, "tunnel_not_ours", Pass;
    /// A well-formed tunnel packet for one of our addresses from an unknown peer.
    TunnelPeer = 12, "tunnel_unknown_peer", Drop;
    /// Outer congestion mark on an inner packet that does not take part in ECN (RFC 6040, 4.2).
    TunnelEcn = 13, "tunnel_ecn", Drop;
    /// The service has no backend that policy allows.
    NoBackend = 14, "no_backend", Drop;
    /// No route or no neighbour's MAC address is known for the backend, or its device is gone.
    NoNextHop = 15, "no_next_hop", Drop;
    /// At the end of its TTL or hop limit, and no ICMP error may be sent for it.
    TtlZero = 16, "ttl_zero", Drop;
    /// Does not fit the path; the sender was told (ICMP fragmentation needed, ICMPv6 packet too big).
    TooBig = 17, "too_big_answered", Answer;
    /// Does not fit the path, and the rate of ICMP errors is used up.
    TooBigLimited = 18, "too_big_rate_limited", Drop;
    /// Does not fit the path, and no ICMP error may be sent for it (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
    TooBigSilent = 19, "too_big_no_answer", Drop;
    /// An IPv6 packet of at most 1280 bytes that the tunnel would have to fragment (RFC 2473, 7.1).
    MinimumMtu = 20, "ipv6_minimum_mtu", Drop;
    /// The driver gives no room for a longer header.
    Headroom = 21, "no_headroom", Drop;
    /// A table names something that does not exist; never with a sound control plane.
    Inconsistent = 22, "inconsistent_tables", Drop;
    /// An echo request to a frontend's address, answered.
    Echo = 23, "echo_answered", Answer;
    /// A tunnel packet from a known peer, unwrapped and delivered.
    Unwrapped = 24, "tunnel_unwrapped", Deliver;
    /// At the end of its TTL or hop limit; the sender was told (ICMP time exceeded).
    TimeExceeded = 25, "time_exceeded_answered", Answer;
    /// The client's address is none that the service allows.
    SourceRange = 26, "source_not_allowed", Drop;
    /// The service has no backend; answered with TCP RST.
    Reset = 27, "no_backend_reset", Answer;
    /// The service has no backend; answered with ICMP port unreachable.
    Unreachable = 28, "no_backend_unreachable", Answer;
    /// A port that no frontend has on a frontend's address; answered with TCP RST.
    UnknownPortReset = 29, "unknown_port_reset", Answer;
    /// A port that no frontend has on a frontend's address; answered with ICMP port unreachable.
    UnknownPortUnreachable = 30, "unknown_port_unreachable", Answer;
    /// A port that no frontend has on a frontend's address that is not the host's own: the kernel
    /// would route it back to where it came from.
    UnknownPort = 31, "unknown_port", Drop;
    /// Would be answered with RST or ICMP unreachable, but none may be sent for it, or the rate is
    /// used up.
    RefusedSilently = 32, "refused_no_answer", Drop;
    /// A later fragment for a frontend's address whose first one was not seen.
    FragmentUnknown = 33, "fragment_without_first", Drop;
    /// Rewritten to a pod on this host and handed to the kernel's stack.
    Local = 34, "delivered_local", Deliver;
    /// A Geneve packet to this host that is not one of ours: version, critical options, protocol.
    GeneveFormat = 35, "geneve_format", Drop;
    /// A Geneve packet whose option is missing, cut off or of a wrong length.
    GeneveOption = 36, "geneve_option", Drop;
    /// A Geneve packet with a UDP checksum: ours have none, and it cannot be verified here.
    GeneveChecksum = 37, "geneve_checksum", Drop;
    /// A tunnel packet from a known peer for a pod that is not on this host.
    NotHere = 38, "pod_not_here", Drop;
    /// No port is left under which the pod could tell this flow from another one's.
    TranslationExhausted = 39, "translation_ports_exhausted", Drop;
    /// No source port is left towards the backend.
    NatExhausted = 40, "snat_ports_exhausted", Drop;
    /// The table of snat's flows is full.
    NatFull = 41, "snat_table_full", Drop;
    /// A packet in mid-stream of no flow that snat knows.
    NatUnknown = 42, "snat_unknown_flow", Drop;
    /// An answer of a backend, translated back and sent to the client.
    NatAnswer = 43, "snat_answer", Forward;
    /// An ICMP error about a flow, sent on to the flow's backend or client.
    IcmpForwarded = 44, "icmp_error_forwarded", Forward;
    /// An ICMP error whose quoted packet is cut off or malformed.
    IcmpQuote = 45, "icmp_error_quote", Pass;
    /// A backend of another family than its frontend, which addresses cannot be rewritten to.
    Family = 46, "address_family", Drop;
    /// A pod's answer, its source rewritten to the frontend's.
    Answered = 47, "answer_rewritten", Forward;
    /// A pod's answer that cannot be rewritten: cut off, or malformed.
    AnswerMalformed = 48, "answer_malformed", Drop;
    /// A first fragment of SCTP whose port must change: its checksum is over the whole packet.
    SctpFragment = 49, "sctp_fragment", Drop;
    /// Of a protocol that no frontend has, or ICMP that is not for one, for a frontend's address that
    /// is not the host's own: the kernel would route it back to where it came from.
    NotServed = 50, "not_served", Drop;
    /// IPv6 neighbour discovery (RFC 4861): never leaves its link.
    Neighbour = 51, "neighbour_discovery", Pass;
}

impl Reason {
    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_are_dense() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::COUNT);
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
