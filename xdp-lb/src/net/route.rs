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

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn unicast_route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        message
    }

    fn v4() -> IpAddr {
        "192.0.2.9".parse().unwrap()
    }

    fn v6() -> IpAddr {
        "2001:db8::9".parse().unwrap()
    }

    #[test]
    fn the_question_is_about_one_address() {
        for (destination, family, bits) in
            [(v4(), AddressFamily::Inet, 32), (v6(), AddressFamily::Inet6, 128)]
        {
            let question = question(destination);
            assert_eq!(question.header.address_family, family);
            assert_eq!(question.header.destination_prefix_length, bits);
            assert_eq!(question.attributes, [RouteAttribute::Destination(destination.into())]);
        }
    }

    #[test]
    fn without_a_gateway_the_destination_is_the_neighbour() {
        let message = unicast_route(vec![RouteAttribute::Oif(3)]);
        let hop = Hop { device: 3, address: v4() };
        assert_eq!(answer(v4(), &message), Route::Via { hop, mtu: None, source: None });
    }

    #[test]
    fn gateway_source_and_mtu_are_read() {
        let gateway: IpAddr = "fd00::1".parse().unwrap();
        let source: IpAddr = "2001:db8::1".parse().unwrap();
        let message = unicast_route(vec![
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::PrefSource(source.into()),
            RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]),
            RouteAttribute::Oif(3),
        ]);
        let hop = Hop { device: 3, address: gateway };
        let expected = Route::Via { hop, mtu: Some(1400), source: Some(source) };
        assert_eq!(answer(v6(), &message), expected);
    }

    #[test]
    fn an_ipv4_route_may_have_an_ipv6_gateway() {
        let gateway = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let message = unicast_route(vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Via(gateway.into()),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(0)]),
        ]);
        let hop = Hop { device: 3, address: gateway.into() };
        assert_eq!(answer(v4(), &message), Route::Via { hop, mtu: None, source: None });
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let encapsulated =
            unicast_route(vec![RouteAttribute::Oif(3), RouteAttribute::Encap(vec![])]);
        assert_eq!(answer(v4(), &encapsulated), Route::Nowhere(Why::Encapsulated));
        assert_eq!(answer(v4(), &unicast_route(vec![])), Route::Nowhere(Why::NoRoute));
        for (kind, expected) in [
            (RouteType::Local, Route::Local),
            (RouteType::Anycast, Route::Local),
            (RouteType::BlackHole, Route::Nowhere(Why::Blackhole)),
            (RouteType::Unreachable, Route::Nowhere(Why::Unreachable)),
            (RouteType::Prohibit, Route::Nowhere(Why::Prohibited)),
            (RouteType::Broadcast, Route::Nowhere(Why::NotUnicast)),
            (RouteType::Multicast, Route::Nowhere(Why::NotUnicast)),
            (RouteType::Other(77), Route::Nowhere(Why::NotUnicast)),
        ] {
            let mut message = unicast_route(vec![RouteAttribute::Oif(3)]);
            message.header.kind = kind;
            assert_eq!(answer(v4(), &message), expected, "{kind:?}");
        }
    }

    #[test]
    fn each_errno_has_its_meaning() {
        for (errno, why) in [
            (libc::ENETUNREACH, Why::NoRoute),
            (libc::EHOSTUNREACH, Why::Unreachable),
            (libc::EINVAL, Why::Blackhole),
            (libc::EACCES, Why::Prohibited),
            (libc::EPERM, Why::Refused(libc::EPERM)),
        ] {
            assert_eq!(refusal(errno), Route::Nowhere(why));
        }
    }
}
