//! The one set of tables that all fixtures run over.
//!
//! Every service is known by its port and has a frontend on both addresses for TCP, UDP and SCTP.

mod build;
mod nat;
mod pods;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use build::world;
pub use pods::*;
use xdp_lb_abi::FlowKey;

/// A client.
pub const CLIENT_V4: IpAddr = v4(10, 1, 2, 3);
/// A client.
pub const CLIENT_V6: IpAddr = v6(0x1, 0x3);
/// The address of all IPv4 frontends.
pub const VIP_V4: IpAddr = v4(192, 0, 2, 10);
/// The address of all IPv6 frontends.
pub const VIP_V6: IpAddr = v6(0x2, 0x10);
/// This host's own address, where tunnels to it end.
pub const HOST_V4: IpAddr = v4(198, 51, 100, 1);
/// This host's own address, where tunnels to it end.
pub const HOST_V6: IpAddr = v6(0x3, 0x1);
/// An address of a frontend of others, which this host serves and therefore owns.
pub const OWNED_V4: IpAddr = v4(203, 0, 113, 7);
/// An address of a frontend of others, which this host serves and therefore owns.
pub const OWNED_V6: IpAddr = v6(0x4, 0x7);
/// Another instance, in a network of peers.
pub const PEER_V4: IpAddr = v4(10, 9, 200, 1);
/// Another instance, in a network of peers.
pub const PEER_V6: IpAddr = v6(0x9, 0x1);
/// Source of outer headers.
pub const TUNNEL_SOURCE_V4: IpAddr = v4(10, 8, 0, 1);
/// Source of outer headers.
pub const TUNNEL_SOURCE_V6: IpAddr = v6(0x8, 0x1);
/// Where tunnels to backends end.
pub const TUNNEL_END_V4: IpAddr = v4(10, 7, 0, 1);
/// Where tunnels to backends end.
pub const TUNNEL_END_V6: IpAddr = v6(0x7, 0x1);

/// Network of the IPv4 clients that may use [`port::ALLOWED`]
pub const ALLOWED_V4: (IpAddr, u8) = (v4(10, 1, 2, 0), 23);
/// Network of the IPv6 clients that may use [`port::ALLOWED`]
pub const ALLOWED_V6: (IpAddr, u8) = (v6(0x1, 0), 47);

/// Interface index of the device that all fixtures come in by. The kernel's test runs use the
/// loopback device, whose index this is.
pub const INGRESS: u32 = 1;
/// Interface index of the other device; it need not exist.
pub const EGRESS: u32 = 2;

/// MAC address of the router before us.
pub const ROUTER_MAC: [u8; 6] = [2, 0xcc, 0, 0, 0, 1];
/// MAC address of [`INGRESS`].
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of [`EGRESS`].
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// What all next hops' MAC addresses start with; the backend's id or the service's port follows.
const HOP_MAC: [u8; 4] = [2, 0xbb, 0, 0];

/// A client that is recorded where session affinity was switched off
pub const KNOWN_V4: IpAddr = v4(10, 1, 7, 1);
/// A client that is recorded where session affinity was switched off
pub const KNOWN_V6: IpAddr = v6(0x1, 0x7);

/// Key of the hash of flows.
pub const FLOW_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// How long a silent client keeps its backend.
pub const AFFINITY_SECONDS: u32 = 3600;
/// ICMP errors a second
pub const ICMP_RATE: u32 = 1000;

/// First and last port that mode `snat` sends from.
pub const NAT_PORTS: (u16, u16) = (61_000, 61_007);
/// How many flows of mode `snat` there may be: what `NAT_FORWARD` and `NAT_REVERSE` have room for.
pub const NAT_ROOM: usize = 64;
/// The port that our side of the flows of [`port::SNAT_MOVED`] has that are recorded from the start.
pub const NAT_RECORDED: u16 = NAT_PORTS.0;
/// A source port whose TCP flow with [`port::SNAT_MOVED`] both ends have finished.
pub const RECORDED_CLOSED: u16 = 50_005;

/// A source port whose TCP flow is recorded for A with every service in handover (for B where A is
/// the current one).
pub const RECORDED: u16 = 50_001;
/// Another source port whose TCP flow is recorded for A with the services that have draining
/// backends.
pub const RECORDED_AGAIN: u16 = 50_005;
/// A source port that is recorded with a generation that has passed.
pub const RECORDED_LONG_AGO: u16 = 50_002;
/// A source port that is recorded for a backend that serves no more.
pub const RECORDED_NOT_SERVING: u16 = 50_003;
/// A source port that is recorded for a backend that does not exist.
pub const RECORDED_NOWHERE: u16 = 50_004;

/// Indices of the devices.
pub mod device {
    /// [`super::INGRESS`] without tags
    pub const UNTAGGED: u16 = 1;
    /// [`super::EGRESS`] without tags
    pub const OTHER: u16 = 2;
    /// VLAN 10 on [`super::INGRESS`]
    pub const VLAN: u16 = 3;
    /// VLAN 200 in service VLAN 100 on [`super::INGRESS`]
    pub const QINQ: u16 = 4;
    /// [`super::INGRESS`] with jumbo frames
    pub const JUMBO: u16 = 5;
    /// [`super::INGRESS`] with an MTU below what IP allows
    pub const TINY: u16 = 6;
    /// [`super::INGRESS`] with an MTU above what IP can express, like a loopback device's
    pub const LOOPBACK: u16 = 7;
    /// VLAN 20 on [`super::EGRESS`]
    pub const OTHER_VLAN: u16 = 8;
    /// [`super::EGRESS`], which the device map does not name any more
    pub const GONE: u16 = 9;
}

/// Services, by the port of their frontends.
pub mod port {
    /// Mode l2 by [`super::device::UNTAGGED`]
    pub const L2: u16 = 80;
    /// Mode l2 by [`super::device::OTHER`]
    pub const L2_OTHER: u16 = 81;
    /// Mode l2 by [`super::device::VLAN`]
    pub const L2_VLAN: u16 = 82;
    /// Mode l2 by [`super::device::QINQ`]
    pub const L2_QINQ: u16 = 83;
    /// Mode l2 by [`super::device::OTHER_VLAN`]
    pub const L2_OTHER_VLAN: u16 = 84;
    /// Mode l2 by [`super::device::JUMBO`]
    pub const L2_JUMBO: u16 = 85;
    /// Mode l2 by [`super::device::TINY`]
    pub const L2_TINY: u16 = 86;
    /// Mode l2 by [`super::device::GONE`]
    pub const L2_GONE: u16 = 89;
    /// Mode l2, with a path MTU of 1270
    pub const L2_NARROW: u16 = 87;
    /// Mode l2, three backends with the slots of [`super::SPREAD_SLOTS`]
    pub const L2_SPREAD: u16 = 88;
    /// IPv4 tunnel by [`super::device::UNTAGGED`]
    pub const TUNNEL_V4: u16 = 90;
    /// IPv6 tunnel by [`super::device::UNTAGGED`]
    pub const TUNNEL_V6: u16 = 91;
    /// IPv4 tunnel by [`super::device::OTHER`]
    pub const TUNNEL_V4_OTHER: u16 = 92;
    /// IPv6 tunnel by [`super::device::VLAN`]
    pub const TUNNEL_V6_VLAN: u16 = 93;
    /// IPv4 tunnel by [`super::device::QINQ`]
    pub const TUNNEL_V4_QINQ: u16 = 94;
    /// IPv4 tunnel, source varied in 8 bits
    pub const TUNNEL_V4_VARIED: u16 = 95;
    /// IPv6 tunnel, source varied in 32 bits
    pub const TUNNEL_V6_VARIED: u16 = 96;
    /// IPv4 tunnel, with a path MTU of 1400
    pub const TUNNEL_V4_NARROW: u16 = 97;
    /// IPv6 tunnel, with a path MTU of 1400
    pub const TUNNEL_V6_NARROW: u16 = 98;
    /// IPv4 tunnel by [`super::device::JUMBO`]
    pub const TUNNEL_V4_JUMBO: u16 = 99;
    /// IPv4 tunnel by [`super::device::LOOPBACK`]
    pub const TUNNEL_V4_LOOPBACK: u16 = 101;
    /// IPv6 tunnel by [`super::device::LOOPBACK`]
    pub const TUNNEL_V6_LOOPBACK: u16 = 102;

    /// Handover; both tables name A.
    pub const AGREE: u16 = 200;
    /// Handover; both tables name A, and the slot's flows may be recorded.
    pub const AGREE_LOOK_UP: u16 = 201;
    /// Handover from A to B.
    pub const MOVED: u16 = 202;
    /// Handover to B from a backend that takes no more packets.
    pub const GONE: u16 = 203;
    /// Handover to B from one that does not serve, and still has its slots.
    pub const NOT_SERVING: u16 = 204;
    /// Only recorded flows still go to A, all others to B.
    pub const EXCEPTIONS: u16 = 205;
    /// Handover to B; the previous table's slot names none of its backends.
    pub const PREVIOUS_SLOT: u16 = 206;
    /// Handover to B; the previous table is outside the arena.
    pub const PREVIOUS_OUTSIDE: u16 = 207;
    /// Handover from a backend that does not exist to B.
    pub const PREVIOUS_NOBODY: u16 = 208;
    /// Handover from A to a backend that does not exist.
    pub const CURRENT_NOBODY: u16 = 209;
    /// Handover from A to B; A takes no new flows.
    pub const DRAINED: u16 = 210;
    /// Only recorded flows still go to A, which takes no new ones.
    pub const DRAINED_EXCEPTIONS: u16 = 211;
    /// Handover from A to nobody: all backends take no new flows.
    pub const ALL_DRAINED: u16 = 212;
    /// Only recorded flows still go to A, but what is recorded is of an earlier handover.
    pub const LATER: u16 = 213;

    /// No backend; says so
    pub const REJECT: u16 = 440;
    /// No backend for new flows, which are told so; older ones are A's.
    pub const REJECT_NEW: u16 = 441;
    /// Mode l2; only for clients in [`super::ALLOWED_V4`] and [`super::ALLOWED_V6`]
    pub const ALLOWED: u16 = 442;
    /// Mode l2; only for the IPv4 client
    pub const ALLOWED_ONE: u16 = 443;
    /// The backends and slots of [`L2_SPREAD`], with session affinity
    pub const AFFINITY: u16 = 444;
    /// Another port of the same
    pub const AFFINITY_TOO: u16 = 445;
    /// Handover from A to B, with session affinity
    pub const AFFINITY_MOVED: u16 = 446;
    /// Handover of the backends and slots of [`L2_SPREAD`], by flows, to the same with session
    /// affinity
    pub const AFFINITY_ON: u16 = 447;
    /// The other way round; [`super::KNOWN_V4`] and [`super::KNOWN_V6`] have C.
    pub const AFFINITY_OFF: u16 = 448;
    /// Only recorded flows are exceptions to session affinity.
    pub const AFFINITY_ON_EXCEPTIONS: u16 = 449;

    /// Mode snat by [`super::device::UNTAGGED`]
    pub const SNAT: u16 = 600;
    /// Mode snat by [`super::device::OTHER`]
    pub const SNAT_OTHER: u16 = 601;
    /// Mode snat by [`super::device::VLAN`]
    pub const SNAT_VLAN: u16 = 602;
    /// Mode snat, with a path MTU of 1400
    pub const SNAT_NARROW: u16 = 603;
    /// Mode snat; fixtures use up its ports.
    pub const SNAT_FULL: u16 = 604;
    /// Mode snat, next hop unknown
    pub const SNAT_NO_HOP: u16 = 605;
    /// Mode snat, source unknown
    pub const SNAT_NO_SOURCE: u16 = 606;
    /// Mode snat; the backend is of the other family than the frontend.
    pub const SNAT_FAMILY: u16 = 607;
    /// Mode snat by [`super::device::GONE`]
    pub const SNAT_GONE: u16 = 608;
    /// Mode snat; flows are recorded with backends that it has no more, by the source ports
    /// [`super::RECORDED`] and following. Their backends are those of [`SNAT_MOVED_A`].
    pub const SNAT_MOVED: u16 = 609;
    /// Where the recorded flows of [`SNAT_MOVED`] go; no frontend.
    pub const SNAT_MOVED_A: u16 = 610;
    /// Mode snat; fixtures fill the tables with its flows, and the ports that follow.
    pub const SNAT_MANY: u16 = 620;

    /// No backend
    pub const EMPTY: u16 = 300;
    /// Mode l2, next hop unknown
    pub const L2_NO_HOP: u16 = 301;
    /// IPv4 tunnel, next hop and source unknown
    pub const TUNNEL_V4_NO_HOP: u16 = 302;
    /// IPv6 tunnel, next hop unknown
    pub const TUNNEL_V6_NO_HOP: u16 = 303;
    /// The slot names none of the backends.
    pub const BAD_SLOT: u16 = 304;
    /// The slots are outside the arena.
    pub const BAD_SLOTS: u16 = 305;
    /// The list of backends is outside the arena.
    pub const BAD_LIST: u16 = 306;
    /// The backend does not exist.
    pub const BAD_BACKEND: u16 = 307;
    /// The backend's device does not exist.
    pub const BAD_DEVICE: u16 = 308;
    /// The backend's index of a device is beyond the table.
    pub const BAD_DEVICE_INDEX: u16 = 309;
    /// The backend's mode is none.
    pub const BAD_MODE: u16 = 310;
    /// The service's record does not exist.
    pub const BAD_SERVICE: u16 = 311;
}

/// Slots of [`port::L2_SPREAD`]
pub const SPREAD_SLOTS: [u16; 5] = [0, 1, 2, 2, 0];
/// MAC addresses of the backends of [`port::L2_SPREAD`], and of A, B, C in that order.
pub const MACS: [[u8; 6]; 3] = [next_hop(1), next_hop(2), next_hop(3)];

/// MAC address of the next hop of the service's only backend.
pub const fn next_hop(port: u16) -> [u8; 6] {
    let [a, b, c, d] = HOP_MAC;
    let [e, f] = port.to_be_bytes();
    [a, b, c, d, e, f]
}

/// Address and port of the backend of a service in mode `snat`.
pub const fn server(v6_: bool, port: u16) -> (IpAddr, u16) {
    let address = if v6_ {
        v6(0x5, port)
    } else {
        let [high, low] = port.to_be_bytes();
        v4(10, 5, high, low)
    };
    (address, 8080)
}

/// Hash of a flow.
pub fn hash(source: IpAddr, destination: IpAddr, ports: (u16, u16), protocol: u8) -> u32 {
    FlowKey::new(source.into(), destination.into(), ports, protocol).hash(FLOW_KEY)
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(network: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host))
}
