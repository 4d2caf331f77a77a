//! From the configuration and the network to what the small tables hold, and to each backend's path.
//!
//! Pure; [`crate::dataplane`] writes the result.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use xdp_lb_abi::{Address, AddressFlags, Device, Hop, MAX_DEVICES, Mode, PeerKey};
use xdp_lb_plan::{BackendKey, Path};

use crate::{
    config::{Config, Tunnel},
    net::{self, View, Why},
};

/// The devices that packets leave by, by their index in `DEVICES`.
///
/// A device keeps its index as long as it exists, so that no path changes without need.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slots {
    /// Index of each interface
    pub of: BTreeMap<u32, u16>,
    /// The last index that was given away
    last: u16,
}

impl Slots {
    /// The slots that an earlier run gave away.
    pub fn adopt(of: BTreeMap<u32, u16>) -> Self {
        let last = of.values().copied().max().unwrap_or(0);
        Self { of, last }
    }

    /// The slots for the devices of these paths: the ones they have, and new ones.
    ///
    /// An index that was given up is the last to be given away again: a backend whose path is being
    /// looked for may still name it.
    pub fn update(&mut self, view: &View) {
        self.of.retain(|ifindex, _| view.links.contains_key(ifindex));
        for path in view.paths.values() {
            let net::Path::Ready { device, .. } = path else { continue };
            if self.of.contains_key(device) || !view.links.contains_key(device) {
                continue;
            }
            let taken: BTreeSet<u16> = self.of.values().copied().collect();
            let all = 1..MAX_DEVICES as u16;
            let mut after = all.clone().filter(|slot| *slot > self.last).chain(all);
            if let Some(free) = after.find(|slot| !taken.contains(slot)) {
                self.of.insert(*device, free);
                self.last = free;
            }
        }
    }

    /// What `DEVICES` must hold.
    pub fn devices(&self, view: &View) -> BTreeMap<u32, Device> {
        self.of
            .iter()
            .filter_map(|(ifindex, slot)| Some((u32::from(*slot), device(view, *ifindex)?)))
            .collect()
    }
}

/// A device as the packet path sees it: its lowest parent, and the VLAN tags that lead to it.
///
/// Nothing where it has more tags than the packet path writes, or a parent elsewhere.
fn device(view: &View, ifindex: u32) -> Option<Device> {
    let top = view.links.get(&ifindex)?;
    let mut tags = Vec::new();
    let mut lowest = top;
    while let Some(tag) = lowest.vlan {
        tags.push(tag);
        lowest = view.links.get(&lowest.parent?)?;
    }
    if tags.len() > 2 {
        return None;
    }
    let device = Device::new(lowest.index, top.mac?, top.mtu);
    // The lowest VLAN device's tag is the outermost one.
    Some(tags.into_iter().rev().fold(device, Device::with_tag))
}

/// The path to a backend; unknown where the mode cannot use the one that the network has.
///
/// Nothing while the network has no answer yet: the last way known stays, which a neighbour that is
/// being asked again still answers to, or nobody does.
pub fn path(key: &BackendKey, view: &View, slots: &Slots, tunnel: &Tunnel) -> Option<Path> {
    match usable(key, view, slots, tunnel) {
        Ok(path) => Some(path),
        Err(Unreachable::Network(Why::Pending | Why::NoNeighbour { .. })) => None,
        Err(_) => Some(Path::unknown(key.identity.address)),
    }
}

/// Why a backend cannot be reached; completes "no path to ADDRESS: …".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreachable {
    /// The network has no path.
    #[error(transparent)]
    Network(#[from] Why),
    /// It is one of this host's addresses.
    #[error("it is an address of this host, which modes l2 and ipip cannot deliver to")]
    Local,
    /// Mode `l2` changes the MAC address alone, so the next router would send the packet back.
    #[error("it is behind the router {0}, but mode l2 needs it on the same segment; use ipip")]
    Routed(IpAddr),
    /// An outer header needs a source.
    #[error("this host has no address to send tunnel packets from; set tunnel.sourceIPv4 or -v6")]
    NoSource,
    /// The device cannot be used.
    #[error("its device has more than two VLAN tags, or there are too many devices")]
    Device,
}

/// The path to a backend.
///
/// # Errors
///
/// Why there is none.
pub fn usable(
    key: &BackendKey,
    view: &View,
    slots: &Slots,
    tunnel: &Tunnel,
) -> Result<Path, Unreachable> {
    let to = key.identity.address;
    let (ifindex, neighbour, mac, mtu, source) = match view.paths.get(&to) {
        None => return Err(Why::Pending.into()),
        Some(net::Path::Unresolved { why }) => return Err(why.clone().into()),
        Some(net::Path::Local) => return Err(Unreachable::Local),
        Some(net::Path::Ready { device, neighbour, mac, mtu, source }) => {
            (*device, *neighbour, *mac, *mtu, *source)
        }
    };
    if key.mode == Mode::L2 && neighbour != to {
        return Err(Unreachable::Routed(neighbour));
    }
    let slot = *slots.of.get(&ifindex).ok_or(Unreachable::Device)?;
    device(view, ifindex).ok_or(Unreachable::Device)?;
    let (source, source_bits) = outer_source(to, source, tunnel);
    if key.mode == Mode::Ipip && source.is_unspecified() {
        return Err(Unreachable::NoSource);
    }
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    Ok(Path { hop: Hop::new(mac, slot), mtu, source: source.into(), source_bits })
}

/// The source of outer headers to an address: from the configured prefix, else the host's own.
fn outer_source(to: IpAddr, own: IpAddr, tunnel: &Tunnel) -> (IpAddr, u8) {
    match (to, tunnel.source_v4, tunnel.source_v6) {
        (IpAddr::V4(_), Some(net), _) => (net.network().into(), 32 - net.prefix_len()),
        (IpAddr::V6(_), _, Some(net)) => (net.network().into(), (128 - net.prefix_len()).min(32)),
        _ => (own, 0),
    }
}

/// What `ADDRESSES` must hold.
pub fn addresses(config: &Config, view: &View) -> BTreeMap<Address, u32> {
    let mut flags: BTreeMap<Address, u32> = BTreeMap::new();
    for frontend in config.services.iter().flat_map(|service| &service.frontends) {
        *flags.entry(frontend.address.into()).or_default() |= AddressFlags::FRONTEND;
    }
    if config.terminate.is_some() {
        for (_, address) in &view.addresses {
            if !address.is_loopback() {
                *flags.entry((*address).into()).or_default() |= AddressFlags::LOCAL;
            }
        }
    }
    flags
}

/// What `PEERS` must hold: prefix lengths and keys.
pub fn peers(config: &Config) -> BTreeSet<(u32, PeerKey)> {
    let peers = config.terminate.iter().flat_map(|terminate| &terminate.peers);
    peers
        .map(|peer| {
            let key = PeerKey::new(&peer.network().into());
            (key.prefix_length(peer.prefix_len()), key)
        })
        .collect()
}

/// The addresses to which paths are wanted.
pub fn destinations(config: &Config) -> BTreeSet<IpAddr> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    backends.map(|backend| backend.address).collect()
}

#[cfg(test)]
mod tests {
    use xdp_lb_plan::{maglev::Identity, model::Protocol};

    use super::*;
    use crate::net::Link;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(index: u32, vlan: Option<(u16, u16)>, parent: Option<u32>) -> Link {
        Link {
            index,
            name: format!("dev{index}"),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            parent,
            vlan,
            master: None,
            kind: String::new(),
        }
    }

    fn view() -> View {
        let links = [
            link(2, None, None),
            link(3, Some((0x8100, 10)), Some(2)),
            link(4, Some((0x8100, 20)), Some(3)),
        ];
        let path = |device, neighbour: &str, source: &str| net::Path::Ready {
            device,
            neighbour: ip(neighbour),
            mac: [2, 0, 0, 0, 1, 1],
            mtu: 1400,
            source: ip(source),
        };
        View {
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            addresses: [(1, ip("127.0.0.1")), (2, ip("10.0.0.1"))].into(),
            paths: [
                (ip("10.0.0.11"), path(2, "10.0.0.11", "10.0.0.1")),
                (ip("10.0.1.11"), path(4, "10.0.0.254", "10.0.0.1")),
                (ip("2001:db8::11"), path(2, "fe80::1", "::")),
            ]
            .into(),
        }
    }

    fn key(address: &str, mode: Mode) -> BackendKey {
        let identity = Identity { address: ip(address), port: 80, protocol: Protocol::Tcp };
        BackendKey { identity, mode }
    }

    #[test]
    fn a_vlan_device_is_its_lowest_parent_with_the_outermost_tag_first() {
        let device = device(&view(), 4).unwrap();
        assert_eq!((device.ifindex(), device.tags(), device.mac()[5]), (2, 2, 4));
        assert_eq!(device.outer_tag(), [0x81, 0, 0, 10]);
        assert_eq!(device.inner_tag(), [0x81, 0, 0, 20]);
    }

    #[test]
    fn devices_keep_their_slots() {
        let mut view = view();
        let mut slots = Slots::default();
        slots.update(&view);
        let before = slots.clone();
        assert_eq!(before.of, [(2, 1), (4, 2)].into());
        view.links.insert(9, link(9, None, None));
        view.links.remove(&2);
        view.paths.clear();
        slots.update(&view);
        assert_eq!(slots.of, [(4, 2)].into());
        assert_ne!(slots, before);
    }

    #[test]
    fn mode_l2_refuses_what_is_behind_a_router() {
        let (view, tunnel) = (view(), Tunnel { source_v4: None, source_v6: None });
        let mut slots = Slots::default();
        slots.update(&view);
        let try_path = |address, mode| usable(&key(address, mode), &view, &slots, &tunnel);
        assert_eq!(try_path("10.0.1.11", Mode::L2), Err(Unreachable::Routed(ip("10.0.0.254"))));
        let path = try_path("10.0.1.11", Mode::Ipip).unwrap();
        assert_eq!((path.hop.device(), path.mtu, path.source_bits), (2, 1400, 0));
        assert_eq!(path.source, ip("10.0.0.1").into());
        assert!(try_path("10.0.0.11", Mode::L2).is_ok());
        assert_eq!(try_path("2001:db8::11", Mode::Ipip), Err(Unreachable::NoSource));
        assert_eq!(try_path("192.0.2.9", Mode::L2), Err(Why::Pending.into()));
    }

    #[test]
    fn a_configured_prefix_is_varied() {
        let view = view();
        let tunnel = Tunnel {
            source_v4: Some("10.200.0.0/24".parse().unwrap()),
            source_v6: Some("fd00::/64".parse().unwrap()),
        };
        let mut slots = Slots::default();
        slots.update(&view);
        let path = usable(&key("10.0.1.11", Mode::Ipip), &view, &slots, &tunnel).unwrap();
        assert_eq!((path.source, path.source_bits), (ip("10.200.0.0").into(), 8));
        let path = usable(&key("2001:db8::11", Mode::Ipip), &view, &slots, &tunnel).unwrap();
        assert_eq!((path.source, path.source_bits), (ip("fd00::").into(), 32));
    }
}
