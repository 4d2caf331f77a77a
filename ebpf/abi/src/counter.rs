//! Counters: traffic by frontend and backend, and packets by named reason.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Packets and bytes, 16 bytes; one of each CPU's own.
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
}
const _: () = assert!(size_of::<Traffic>() == 16);

/// What becomes of a packet that a [`Reason`] is counted for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// Handed to the kernel's stack, byte for byte as it came.
    Pass,
    /// Dropped.
    Drop,
    /// Answered by the program itself.
    Answer,
    /// Unwrapped and handed to the kernel's stack.
    Deliver,
}

impl Disposition {
    /// The name in metrics, the API and the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Answer => "answer",
            Self::Deliver => "deliver",
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
    /// A fragment: only the first one has ports.
    Fragment = 7, "fragment", Pass;
    /// More IPv6 extension headers than are followed, or one that cannot be.
    ExtensionHeader = 8, "ipv6_extension_header", Pass;
    /// Neither TCP, UDP, SCTP, ICMP nor a tunnel.
    Protocol = 9, "protocol", Pass;
    /// ICMP other than a plain echo request to a frontend: errors to a frontend's address too.
    Icmp = 10, "icmp", Pass;
    /// A tunnel packet that is not addressed to this host, or whose inner packet is not.
    TunnelNotOurs = 11, "tunnel_not_ours", Pass;
    /// A well-formed tunnel packet for one of our addresses from an unknown peer.
    TunnelPeer = 12, "tunnel_unknown_peer", Drop;
    /// Outer congestion mark on an inner packet that does not take part in ECN (RFC 6040, 4.2).
    TunnelEcn = 13, "tunnel_ecn", Drop;
    /// The service has no backend.
    NoBackend = 14, "no_backend", Drop;
    /// No route or no neighbour's MAC address is known for the backend, or its device is gone.
    NoNextHop = 15, "no_next_hop", Drop;
    /// For a frontend, with a TTL or hop limit of 0 on arrival.
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
