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
        /// MAC address of the neighbour: the destination itself, or the gateway
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
        mac: neighbour.mac,
        mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        source: source.unwrap_or(match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }),
    })
}
