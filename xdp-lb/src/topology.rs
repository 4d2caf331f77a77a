//! From the configuration and the network to what the small tables hold, and to each backend's path.
//!
//! Pure; [`crate::dataplane`] writes the result.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use xdp_lb_abi::{
    Address, AddressFlags, Device, FrontendKey, Hop, MAX_DEVICES, Mode, PeerKey, Scope, Settings,
    SocketSettings, SourceKey,
};
use xdp_lb_plan::{
    BackendKey, Path, Sources,
    model::{self, Node},
};

use crate::{
    config::{Config, NodePortAddresses, UnknownPorts},
    health::asked_at,
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

    /// The slots for the devices of these paths, and for those of the configuration, by which clients
    /// are answered: the ones they have, and new ones.
    ///
    /// An index that was given up is the last to be given away again: a backend whose path is being
    /// looked for may still name it.
    pub fn update(&mut self, config: &Config, view: &View) {
        self.of.retain(|ifindex, _| view.links.contains_key(ifindex));
        let of_paths = view.paths.values().filter_map(|path| match path {
            net::Path::Ready { device, .. } => Some(device),
            net::Path::Local | net::Path::Unresolved { .. } => None,
        });
        let named = |link: &&net::Link| config.devices.iter().any(|one| one.name == link.name);
        let configured = view.links.values().filter(named).map(|link| &link.index);
        for device in of_paths.chain(configured) {
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
pub fn path(key: &BackendKey, view: &View, slots: &Slots, config: &Config) -> Option<Path> {
    match usable(key, view, slots, config) {
        Ok(path) => Some(path),
        Err(Unreachable::Network(Why::Pending | Why::NoNeighbour { .. })) => None,
        Err(_) => Some(Path::unknown(key.target())),
    }
}

/// Why a backend cannot be reached; completes "no path to ADDRESS: …".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreachable {
    /// The network has no path.
    #[error(transparent)]
    Network(#[from] Why),
    /// It is one of this host's addresses.
    #[error("it is an address of this host, which this mode cannot deliver to")]
    Local,
    /// Mode `l2` changes the MAC address alone, so the next router would send the packet back.
    #[error("it is behind the router {0}, but mode l2 needs it on the same segment; use ipip")]
    Routed(IpAddr),
    /// An outer header needs a source.
    #[error("this host has no address to send its packets from; {0}")]
    NoSource(&'static str),
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
    config: &Config,
) -> Result<Path, Unreachable> {
    let to = key.target();
    // The kernel finds the way to a pod of its own.
    if key.mode == Mode::Local {
        return Ok(Path::unknown(to));
    }
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
    let (source, source_bits) = match key.mode {
        Mode::Ipip => outer_source(to, source, config),
        Mode::Snat => (snat_source(to, source, config), 0),
        Mode::L2 | Mode::Geneve | Mode::Local => (source, 0),
    };
    if key.mode != Mode::L2 && source.is_unspecified() {
        return Err(Unreachable::NoSource(match key.mode {
            Mode::Snat => "set snat.sourceIPv4 or snat.sourceIPv6",
            Mode::Ipip => "set tunnel.sourceIPv4 or tunnel.sourceIPv6",
            Mode::L2 | Mode::Geneve | Mode::Local => "give its device one of the node's family",
        }));
    }
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    Ok(Path { hop: Hop::new(mac, slot), mtu, source: source.into(), source_bits })
}

/// The source of outer headers to an address: from the configured prefix, else the host's own.
fn outer_source(to: IpAddr, own: IpAddr, config: &Config) -> (IpAddr, u8) {
    let tunnel = &config.tunnel;
    match (to, tunnel.source_v4, tunnel.source_v6) {
        (IpAddr::V4(_), Some(net), _) => (net.network().into(), 32 - net.prefix_len()),
        (IpAddr::V6(_), _, Some(net)) => (net.network().into(), (128 - net.prefix_len()).min(32)),
        _ => (own, 0),
    }
}

fn snat_source(to: IpAddr, own: IpAddr, config: &Config) -> IpAddr {
    let configured = if to.is_ipv4() { config.snat.source_v4 } else { config.snat.source_v6 };
    configured.unwrap_or(own)
}

/// What the node contributes to its services.
pub fn node(config: &Config, view: &View) -> Node {
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let addresses = view.addresses.iter().map(|(_, address)| *address);
    let node_port_addresses = match &config.node_port_addresses {
        NodePortAddresses::Primary => own_addresses(config, view).into_values().collect(),
        NodePortAddresses::In(networks) => addresses
            .clone()
            .filter(|address| usable(address))
            .filter(|address| networks.iter().any(|net| net.contains(address)))
            .collect(),
    };
    Node {
        node_port_addresses,
        pods: pods(config).collect(),
        addresses: addresses.filter(usable).collect(),
        sockets: config.replacement.serves.sockets,
    }
}

/// The first address of each family on each of the configured devices, the devices in their order.
fn own_addresses(config: &Config, view: &View) -> BTreeMap<(usize, bool), IpAddr> {
    let mut own = BTreeMap::new();
    for (ifindex, address) in &view.primary {
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let name = view.links.get(ifindex).map(|link| &link.name);
        let device = config.devices.iter().position(|device| Some(&device.name) == name);
        if let Some(device) = device.filter(|_| !link_local && !address.is_loopback()) {
            own.entry((device, address.is_ipv6())).or_insert(*address);
        }
    }
    own
}

/// What `SETTINGS` must hold beside keys and sizes; `installed` says whether the tables have backends
/// of mode `snat`. While they do, new flows may come to them, whatever the services say: until the
/// tables are written, and in a handover.
pub fn settings(settings: Settings, config: &Config, view: &View, installed: bool) -> Settings {
    let own = own_addresses(config, view);
    let first = |v6| own.iter().find(|((_, family), _)| *family == v6).map(|(_, ip)| *ip);
    let v4 = match first(false) {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(_)) | None => [0; 4],
    };
    let v6 = first(true).map_or(Address::v6([0; 16]), Address::from);
    let node = node(config, view);
    let snat = |one: &model::Service| match one.mode {
        model::Mode::Snat | model::Mode::Hybrid => true,
        model::Mode::Geneve => one.backends.iter().any(|backend| no_tunnel(backend, &node)),
        model::Mode::L2 | model::Mode::Ipip | model::Mode::Local => false,
    };
    let ports = &config.snat.ports;
    let needed = installed || config.services.iter().any(snat);
    let (first, last) = if needed { (*ports.start(), *ports.end()) } else { (0, 0) };
    settings
        .with_own(v4, v6)
        .with_nat_ports(first, last)
        .with_terminate(config.terminate.is_some())
        .with_pass_unknown(config.unknown_ports == UnknownPorts::Pass)
}

/// What `SOCKET_SETTINGS` must hold; `netns` is the cookie of the host's network namespace.
pub fn socket_settings(config: &Config, netns: u64) -> SocketSettings {
    let sockets = &config.replacement.sockets;
    SocketSettings::new(netns)
        .with_loopback(sockets.loopback)
        .with_bind_protection(config.replacement.bind_protection)
        .with_host_only(sockets.host_only)
        .with_refuse_excluded(sockets.refuse_excluded)
}

/// Whether a backend is served as in mode `snat` though its service has another.
fn no_tunnel(backend: &model::Backend, node: &Node) -> bool {
    backend.node.is_none() && !node.has(backend)
}

/// What `ADDRESSES` must hold; `held` are frontends that are kept, though no service names them.
pub fn addresses(
    config: &Config,
    view: &View,
    held: &BTreeSet<FrontendKey>,
) -> BTreeMap<Address, u32> {
    let mut flags: BTreeMap<Address, u32> = BTreeMap::new();
    // Packets meet no frontend that is for sockets alone.
    let met = config.services.iter().filter(|service| service.scope == Scope::All);
    for frontend in met.flat_map(|service| &service.frontends) {
        *flags.entry(frontend.address.into()).or_default() |= AddressFlags::FRONTEND;
    }
    for (_, address) in &view.addresses {
        if !address.is_loopback() {
            *flags.entry((*address).into()).or_default() |= AddressFlags::LOCAL;
        }
    }
    // On the host's own addresses these are node ports.
    for frontend in held.iter().filter(|frontend| frontend.scope() == Scope::All) {
        flags.entry(frontend.address()).or_insert(AddressFlags::FRONTEND);
    }
    flags
}

/// What `PEERS` must hold: prefix lengths and keys.
pub fn peers(config: &Config) -> BTreeSet<(u32, PeerKey)> {
    let peers = config.terminate.iter().flat_map(|terminate| &terminate.peers);
    peers.map(network).collect()
}

/// What `PODS` must hold: prefix lengths and keys.
pub fn pod_networks(config: &Config) -> BTreeSet<(u32, PeerKey)> {
    pods(config).map(|net| network(&net)).collect()
}

fn pods(config: &Config) -> impl Iterator<Item = IpNet> {
    config.terminate.iter().flat_map(|terminate| terminate.pods.iter().copied())
}

fn network(net: &IpNet) -> (u32, PeerKey) {
    let key = PeerKey::new(&net.network().into());
    (key.prefix_length(net.prefix_len()), key)
}

/// What `SOURCES` must hold: prefix lengths and keys.
pub fn sources(config: &Config) -> BTreeSet<(u32, SourceKey)> {
    let sources = Sources::of(&config.services);
    let key = |(number, net): (u32, IpNet)| {
        let key = SourceKey::new(number, &net.network().into());
        (key.prefix_length(net.prefix_len()), key)
    };
    sources.networks().map(key).collect()
}

/// Whether something has to be rewritten on its way out: answers of pods on this host, or questions
/// of health checks.
pub fn needs_egress(config: &Config) -> bool {
    let rewrites = |service: &model::Service| {
        service.scope == Scope::All
            && (!service.mode.keeps_destination() || service.health_check.is_some())
    };
    pods(config).next().is_some()
        || config.kubernetes.is_some()
        || config.services.iter().any(rewrites)
}

/// The addresses to which paths are wanted.
pub fn destinations(config: &Config) -> BTreeSet<IpAddr> {
    let mut destinations = BTreeSet::new();
    for service in &config.services {
        // Questions to its backends leave by the route to the frontend.
        let asked = [false, true].into_iter().filter_map(|v6| asked_at(service, v6));
        destinations.extend(asked.map(|frontend| frontend.address));
        for backend in &service.backends {
            // A tunnel leads to the pod's node; mode hybrid needs the way to the pod as well.
            match service.mode {
                model::Mode::Local => {}
                model::Mode::Geneve => {
                    let is_pod = || pods(config).any(|net| net.contains(&backend.address));
                    let pod = || (!is_pod()).then_some(backend.address);
                    destinations.extend(backend.node.or_else(pod));
                }
                model::Mode::Hybrid => {
                    destinations.extend(backend.node.into_iter().chain([backend.address]));
                }
                model::Mode::L2 | model::Mode::Ipip | model::Mode::Snat => {
                    destinations.insert(backend.address);
                }
            }
        }
    }
    destinations
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
            addresses: [
                (1, ip("127.0.0.1")),
                (2, ip("10.0.0.1")),
                (2, ip("10.0.0.9")),
                (2, ip("2001:db8::1")),
                (2, ip("fe80::2")),
                (3, ip("10.244.1.1")),
            ]
            .into(),
            primary: [
                (1, ip("127.0.0.1")),
                (2, ip("10.0.0.1")),
                (2, ip("2001:db8::1")),
                (2, ip("fe80::2")),
                (3, ip("10.244.1.1")),
            ]
            .into(),
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
        BackendKey { identity, mode, tunnel: None }
    }

    fn config(rest: &str) -> Config {
        let start = "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{name: dev2}]\n";
        crate::config::parse(&format!("{start}{rest}")).unwrap()
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
        slots.update(&config(""), &view);
        let before = slots.clone();
        assert_eq!(before.of, [(2, 1), (4, 2)].into());
        view.links.insert(9, link(9, None, None));
        view.links.remove(&2);
        view.paths.clear();
        slots.update(&config(""), &view);
        assert_eq!(slots.of, [(4, 2)].into());
        assert_ne!(slots, before);
    }

    #[test]
    fn mode_l2_refuses_what_is_behind_a_router() {
        let (view, config) = (view(), config(""));
        let mut slots = Slots::default();
        slots.update(&config, &view);
        let try_path = |address, mode| usable(&key(address, mode), &view, &slots, &config);
        assert_eq!(try_path("10.0.1.11", Mode::L2), Err(Unreachable::Routed(ip("10.0.0.254"))));
        let path = try_path("10.0.1.11", Mode::Ipip).unwrap();
        assert_eq!((path.hop.device(), path.mtu, path.source_bits), (2, 1400, 0));
        assert_eq!(path.source, ip("10.0.0.1").into());
        assert!(try_path("10.0.0.11", Mode::L2).is_ok());
        assert_eq!(
            try_path("2001:db8::11", Mode::Ipip),
            Err(Unreachable::NoSource("set tunnel.sourceIPv4 or tunnel.sourceIPv6"))
        );
        assert_eq!(try_path("192.0.2.9", Mode::L2), Err(Why::Pending.into()));
    }

    #[test]
    fn a_configured_prefix_is_varied() {
        let view = view();
        let config = config(
            "tunnel: {sourceIPv4: 10.200.0.0/24, sourceIPv6: \"fd00::/64\"}\n\
             snat: {sourceIPv4: 10.0.0.9}",
        );
        let mut slots = Slots::default();
        slots.update(&config, &view);
        let path = usable(&key("10.0.1.11", Mode::Ipip), &view, &slots, &config).unwrap();
        assert_eq!((path.source, path.source_bits), (ip("10.200.0.0").into(), 8));
        let path = usable(&key("2001:db8::11", Mode::Ipip), &view, &slots, &config).unwrap();
        assert_eq!((path.source, path.source_bits), (ip("fd00::").into(), 32));
    }
    #[test]
    fn a_tunnel_to_a_pod_starts_at_the_hosts_own_address_and_ends_at_the_pods_node() {
        let view = view();
        let config = config("tunnel: {sourceIPv4: 10.200.0.0/24}\nsnat: {sourceIPv4: 10.0.0.9}");
        let mut slots = Slots::default();
        slots.update(&config, &view);
        let pod = BackendKey { tunnel: Some(ip("10.0.1.11")), ..key("10.244.7.2", Mode::Geneve) };
        let path = usable(&pod, &view, &slots, &config).unwrap();
        assert_eq!((path.source, path.source_bits), (ip("10.0.0.1").into(), 0));
        let path = usable(&key("10.0.1.11", Mode::Snat), &view, &slots, &config).unwrap();
        assert_eq!(path.source, ip("10.0.0.9").into());
        let path = usable(&key("10.244.1.2", Mode::Local), &view, &slots, &config).unwrap();
        assert_eq!(path.hop, Hop::UNKNOWN);
    }

    #[test]
    fn node_ports_are_on_the_first_addresses_of_the_devices_or_on_the_chosen_ones() {
        let node_ports = |rest| node(&config(rest), &view()).node_port_addresses;
        assert_eq!(node_ports(""), [ip("10.0.0.1"), ip("2001:db8::1")].into());
        assert_eq!(
            node_ports("nodePortAddresses: [10.0.0.0/8, 127.0.0.0/8]"),
            [ip("10.0.0.1"), ip("10.0.0.9"), ip("10.244.1.1")].into(),
        );
        assert_eq!(node_ports("nodePortAddresses: [192.0.2.0/24]"), [].into());
    }

    #[test]
    fn settings_name_the_hosts_own_addresses_and_snats_ports_only_where_it_is_used() {
        let with =
            |rest, installed| settings(Settings::default(), &config(rest), &view(), installed);
        let of = |rest| with(rest, false);
        let idle = of("unknownPorts: pass");
        assert_eq!(idle.own_v4(), ip("10.0.0.1").into());
        assert_eq!(idle.own_v6(), ip("2001:db8::1").into());
        assert!(!idle.is_nat_port(61_000) && idle.pass_unknown() && !idle.terminate());
        let used = of("services: [{name: s, mode: snat, frontends: [{nodePort: 30000}], \
             backends: [{address: 10.0.0.7, port: 80}]}]\nsnat: {ports: 50000-50010}");
        assert!(used.is_nat_port(50_000) && used.is_nat_port(50_010) && !used.is_nat_port(50_011));
        // Packets may still come to what services no longer say.
        let left = with("snat: {ports: 50000-50010}", true);
        assert_eq!(left.nat_ports(), (50_000, 50_010));
    }
}
