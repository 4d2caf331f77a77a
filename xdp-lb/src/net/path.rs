//! Joins a route with the link and the neighbour that it names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Hop, route::Route, tables::Tables};

/// How packets get to a destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Path {
    /// Over a neighbour whose MAC address is known.
    Ready {
        /// Interface index of the route's device
        device: u32,
        /// The neighbour: the destination itself, or the gateway
        neighbour: IpAddr,
        /// MAC address of the neighbour
        mac: [u8; 6],
        /// Largest packet (layer 3, in bytes): the smaller of the route's and the device's
        mtu: u32,
        /// Source address that the kernel would choose; unspecified (`0.0.0.0`, `::`) where the
        /// host has none of that family
        source: IpAddr,
    },
    /// The destination is this host's own address.
    Local,
    /// There is none now.
    Unresolved {
        /// What is in the way
        why: Why,
    },
}

/// What is in the way of a path. The texts complete "no path to ADDRESS: …".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Why {
    /// The question is on its way.
    #[error("the kernel has not been asked yet")]
    Pending,
    /// No route, or only through devices that are down.
    #[error("there is no route to it")]
    NoRoute,
    /// A route of type `blackhole`.
    #[error("its route is a blackhole")]
    Blackhole,
    /// A route of type `unreachable`.
    #[error("its route says that it is unreachable")]
    Unreachable,
    /// A route of type `prohibit`.
    #[error("its route prohibits it")]
    Prohibited,
    /// A broadcast or multicast address.
    #[error("it is not a unicast address")]
    NotUnicast,
    /// The route wraps packets (MPLS, SRv6, IP), and the packet path does not.
    #[error("its route encapsulates packets, which only the kernel can do")]
    Encapsulated,
    /// Another errno of the route query.
    #[error("the kernel finds no route to it ({})", std::io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// The route names a device that is not there (any more).
    #[error("its route names the device with index {device}, which is gone")]
    NoDevice {
        /// Interface index
        device: u32,
    },
    /// The device is administratively down or has no carrier.
    #[error("device {device} is down or has no carrier")]
    DeviceDown {
        /// Interface name
        device: String,
    },
    /// The device has no Ethernet address.
    #[error("device {device} is no Ethernet device")]
    NoMac {
        /// Interface name
        device: String,
    },
    /// The neighbour's MAC address is being asked for; it may never answer.
    #[error("{neighbour} does not answer on {device} (yet)")]
    NoNeighbour {
        /// The gateway, or the destination itself
        neighbour: IpAddr,
        /// Interface name
        device: String,
    },
}

/// The path to `destination`, whose route the kernel gave as `route` (nothing: not asked yet).
pub(super) fn path(destination: IpAddr, route: Option<&Route>, tables: &Tables) -> Path {
    match attempt(destination, route, tables) {
        Ok(path) => path,
        Err(why) => Path::Unresolved { why },
    }
}

/// The neighbour to keep resolved for `route`, if its device could send to one.
pub(super) fn wanted_neighbour(route: &Route, tables: &Tables) -> Option<Hop> {
    let Route::Via { hop, .. } = route else { return None };
    let link = tables.links().get(&hop.device)?;
    (link.up && link.mac.is_some()).then_some(*hop)
}

fn attempt(destination: IpAddr, route: Option<&Route>, tables: &Tables) -> Result<Path, Why> {
    let (hop, mtu, source) = match route {
        None => return Err(Why::Pending),
        Some(Route::Local) => return Ok(Path::Local),
        Some(Route::Nowhere(why)) => return Err(why.clone()),
        Some(Route::Via { hop, mtu, source }) => (hop, mtu, source),
    };
    let link = tables.links().get(&hop.device).ok_or(Why::NoDevice { device: hop.device })?;
    if link.mac.is_none() {
        return Err(Why::NoMac { device: link.name.clone() });
    }
    if !link.up {
        return Err(Why::DeviceDown { device: link.name.clone() });
    }
    let neighbour = tables
        .neighbour(hop)
        .ok_or_else(|| Why::NoNeighbour { neighbour: hop.address, device: link.name.clone() })?;
    Ok(Path::Ready {
        device: hop.device,
        neighbour: hop.address,
        mac: neighbour.mac,
        mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        source: source.unwrap_or(match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    };

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn tables(kind: LinkLayerType, flags: LinkFlags, neighbour: Option<&str>) -> Tables {
        let mut link = LinkMessage::default();
        link.header.index = 2;
        link.header.link_layer_type = kind;
        link.header.flags = flags;
        link.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        let mut tables = Tables::default();
        tables.apply(&RouteNetlinkMessage::NewLink(link));
        if let Some(neighbour) = neighbour {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = 2;
            message.header.state = NeighbourState::Reachable;
            message.attributes = vec![
                NeighbourAttribute::Destination(ip(neighbour).into()),
                NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
            ];
            tables.apply(&RouteNetlinkMessage::NewNeighbour(message));
        }
        tables
    }

    fn working(neighbour: Option<&str>) -> Tables {
        tables(LinkLayerType::Ether, LinkFlags::Up | LinkFlags::LowerUp, neighbour)
    }

    fn via(device: u32, gateway: &str, mtu: Option<u32>, source: Option<&str>) -> Route {
        Route::Via { hop: Hop { device, address: ip(gateway) }, mtu, source: source.map(ip) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn route_link_and_neighbour_make_a_path() {
        let tables = working(Some("10.0.0.1"));
        for (route_mtu, mtu) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let route = via(2, "10.0.0.1", route_mtu, Some("10.0.0.9"));
            let expected = Path::Ready {
                device: 2,
                neighbour: ip("10.0.0.1"),
                mac: MAC,
                mtu,
                source: ip("10.0.0.9"),
            };
            assert_eq!(path(ip("192.0.2.1"), Some(&route), &tables), expected);
        }
    }

    #[test]
    fn a_host_without_addresses_has_an_unspecified_source_of_the_destinations_family() {
        let tables = working(Some("fd00::1"));
        let route = via(2, "fd00::1", None, None);
        for (destination, source) in [("192.0.2.1", "0.0.0.0"), ("2001:db8::1", "::")] {
            let expected = Path::Ready {
                device: 2,
                neighbour: ip("fd00::1"),
                mac: MAC,
                mtu: 1500,
                source: ip(source),
            };
            assert_eq!(path(ip(destination), Some(&route), &tables), expected);
        }
    }

    #[test]
    fn what_is_missing_is_named_and_resolved_only_where_that_can_help() {
        let device = || "eth0".to_owned();
        let (up, down) = (LinkFlags::Up | LinkFlags::LowerUp, LinkFlags::Up);
        let neighbour = || Why::NoNeighbour { neighbour: ip("10.0.0.1"), device: device() };
        for (index, kind, flags, why, resolved) in [
            (2, LinkLayerType::Ether, up, neighbour(), true),
            (2, LinkLayerType::Ether, down, Why::DeviceDown { device: device() }, false),
            (2, LinkLayerType::None, up, Why::NoMac { device: device() }, false),
            (3, LinkLayerType::Ether, up, Why::NoDevice { device: 3 }, false),
        ] {
            let tables = tables(kind, flags, None);
            let route = via(index, "10.0.0.1", None, None);
            let expected = Path::Unresolved { why };
            assert_eq!(path(ip("192.0.2.1"), Some(&route), &tables), expected);
            assert_eq!(wanted_neighbour(&route, &tables).is_some(), resolved, "{expected:?}");
        }
    }

    #[test]
    fn answers_without_a_way_are_passed_on() {
        let (tables, to) = (working(None), ip("192.0.2.1"));
        assert_eq!(path(to, Some(&Route::Local), &tables), Path::Local);
        assert_eq!(path(to, None, &tables), Path::Unresolved { why: Why::Pending });
        let refused = Route::Nowhere(Why::Blackhole);
        assert_eq!(path(to, Some(&refused), &tables), Path::Unresolved { why: Why::Blackhole });
        assert_eq!(wanted_neighbour(&refused, &tables), None);
    }
}
