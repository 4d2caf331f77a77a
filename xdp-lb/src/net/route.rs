//! Asking the kernel's own routing for the way to an address, and reading what it answers.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
    },
};

use super::{Hop, Why};

/// The kernel's answer for one destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Route {
    /// The destination is this host's own.
    Local,
    /// By way of a neighbour, which may be the destination itself.
    Via {
        hop: Hop,
        /// The route's own MTU, set or learnt from the path.
        mtu: Option<u32>,
        source: Option<IpAddr>,
    },
    /// No way for packets that we send ourselves.
    Nowhere(Why),
}

/// The body of RTM_GETROUTE for `destination`.
pub(super) fn question(destination: IpAddr) -> RouteMessage {
    let (address_family, destination_prefix_length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut message = RouteMessage::default();
    message.header =
        RouteHeader { address_family, destination_prefix_length, ..RouteHeader::default() };
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    message
}

/// What RTM_NEWROUTE, the answer for `destination`, means.
pub(super) fn answer(destination: IpAddr, message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => unicast(destination, message),
        // Anycast is a local address too, only one that others have as well.
        RouteType::Local | RouteType::Anycast => Route::Local,
        RouteType::BlackHole => Route::Nowhere(Why::Blackhole),
        RouteType::Unreachable => Route::Nowhere(Why::Unreachable),
        RouteType::Prohibit => Route::Nowhere(Why::Prohibited),
        RouteType::Broadcast
        | RouteType::Multicast
        | RouteType::Unspec
        | RouteType::Throw
        | RouteType::Nat
        | RouteType::ExternalResolve
        | RouteType::Other(_)
        | _ => Route::Nowhere(Why::NotUnicast),
    }
}

fn unicast(destination: IpAddr, message: &RouteMessage) -> Route {
    let (mut device, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the other attributes of a route do not change where its packets go"
        )]
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some((*v6).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                return Route::Nowhere(Why::Encapsulated);
            }
            _ => {}
        }
    }
    match device {
        Some(device) => {
            Route::Via { hop: Hop { device, address: gateway.unwrap_or(destination) }, mtu, source }
        }
        None => Route::Nowhere(Why::NoRoute),
    }
}

/// What an error in place of a route means: the kernel gives each kind of refusing route its own.
pub(super) fn refusal(errno: i32) -> Route {
    Route::Nowhere(match errno {
        libc::ENETUNREACH => Why::NoRoute,
        libc::EHOSTUNREACH => Why::Unreachable,
        libc::EINVAL => Why::Blackhole,
        libc::EACCES => Why::Prohibited,
        other => Why::Refused(other),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}
