//! A mirror of the kernel's links, addresses and neighbours, folded from its messages.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::{Hop, Link};

/// What the kernel said last about each link, address and neighbour.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Tables {
    links: BTreeMap<u32, Link>,
    /// Those of each link that routes may depend on
    flags: BTreeMap<u32, LinkFlags>,
    /// With the prefix length: the kernel knows one address twice if the lengths differ.
    addresses: BTreeSet<(u32, IpAddr, u8)>,
    /// Those that the kernel made, or the administrator added, beside a first one in its subnet
    secondary: BTreeSet<(u32, IpAddr)>,
    neighbours: HashMap<Hop, Neighbour>,
}

/// A neighbour that packets can be sent to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Neighbour {
    pub(super) mac: [u8; 6],
    /// Nothing confirmed the MAC address lately.
    pub(super) stale: bool,
}

/// Whom a message concerns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Effect {
    Nothing,
    /// The MAC address of this neighbour came, went or changed.
    Neighbour(Hop),
    /// Routes to destinations in this network may lead elsewhere now.
    Network(IpNet),
    /// Links, addresses or rules: any route may lead elsewhere now.
    Routes,
}

impl Tables {
    pub(super) fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.addresses.iter().map(|&(device, address, _)| (device, address))
    }

    /// Own addresses in a subnet that are the first there: neither secondary, nor temporary, nor
    /// single ones.
    pub(super) fn primary(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        let in_subnet = |(_, address, length): &&(u32, IpAddr, u8)| {
            *length < if address.is_ipv4() { 32 } else { 128 }
        };
        let own = self.addresses.iter().filter(in_subnet);
        let own = own.map(|&(device, address, _)| (device, address));
        own.filter(|one| !self.secondary.contains(one))
    }

    pub(super) fn neighbour(&self, hop: &Hop) -> Option<&Neighbour> {
        self.neighbours.get(hop)
    }

    /// Folds one message in. Messages about anything else, and malformed ones, have no effect.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kernel's messages about other matters are no business of ours"
    )]
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) -> Effect {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => self.del_link(link),
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour_said(neighbour, true),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour_said(neighbour, false),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                network(route).map_or(Effect::Routes, Effect::Network)
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Effect::Routes,
            _ => Effect::Nothing,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Effect {
        if !describes_the_link(message) {
            return Effect::Nothing;
        }
        let Some(link) = parse_link(message) else { return Effect::Nothing };
        // An IPv4 route dies with its device's flags, and no message of its own says so. Who listens on
        // a device changes no route.
        let flags = message.header.flags.difference(LinkFlags::Promisc | LinkFlags::Allmulti);
        let had_flags = self.flags.insert(link.index, flags);
        let had = self.links.insert(link.index, link.clone());
        if had_flags == Some(flags) && had == Some(link) { Effect::Nothing } else { Effect::Routes }
    }

    fn del_link(&mut self, message: &LinkMessage) -> Effect {
        if !describes_the_link(message) {
            return Effect::Nothing;
        }
        let index = message.header.index;
        self.links.remove(&index);
        self.flags.remove(&index);
        self.addresses.retain(|&(device, ..)| device != index);
        self.secondary.retain(|&(device, _)| device != index);
        self.neighbours.retain(|hop, _| hop.device != index);
        Effect::Routes
    }

    fn address(&mut self, message: &AddressMessage, present: bool) -> Effect {
        // On a point-to-point link the "address" is the other end's, and "local" is ours.
        let (mut own, mut other) = (None, None);
        for attribute in &message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                own = Some(*address);
            } else if let AddressAttribute::Address(address) = attribute {
                other = Some(*address);
            }
        }
        let Some(address) = own.or(other) else { return Effect::Nothing };
        let entry = (message.header.index, address, message.header.prefix_len);
        if present {
            self.addresses.insert(entry);
        } else {
            self.addresses.remove(&entry);
        }
        if present && message.header.flags.contains(AddressHeaderFlags::Secondary) {
            self.secondary.insert((entry.0, entry.1));
        } else {
            self.secondary.remove(&(entry.0, entry.1));
        }
        // Also where it was there already: it may have left its tentative state, and be a source.
        Effect::Routes
    }

    fn neighbour_said(&mut self, message: &NeighbourMessage, present: bool) -> Effect {
        // A proxy entry says that we answer for the address, not where it is.
        if message.header.flags.contains(NeighbourFlags::Proxy) {
            return Effect::Nothing;
        }
        let Some(address) = message.attributes.iter().find_map(destination) else {
            return Effect::Nothing;
        };
        let hop = Hop { device: message.header.ifindex, address };
        let before = self.neighbours.get(&hop).map(|neighbour| neighbour.mac);
        let after = if present { usable(message) } else { None };
        match after {
            Some(neighbour) => self.neighbours.insert(hop, neighbour),
            None => self.neighbours.remove(&hop),
        };
        if before == after.map(|neighbour| neighbour.mac) {
            Effect::Nothing
        } else {
            Effect::Neighbour(hop)
        }
    }
}

/// Link messages of other families are about a port's part in a bridge or about IPv6 settings, and
/// their "deleted" does not mean the device.
fn describes_the_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec && message.header.index != 0
}

/// The destinations of a route; nothing where the message does not say.
fn network(message: &RouteMessage) -> Option<IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet(v4)) = attribute {
            Some(IpAddr::V4(*v4))
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(v6)) = attribute {
            Some(IpAddr::V6(*v6))
        } else {
            None
        }
    });
    let length = message.header.destination_prefix_length;
    // A default route has none.
    let destination = match (destination, message.header.address_family) {
        (Some(destination), _) => destination,
        (None, AddressFamily::Inet) if length == 0 => Ipv4Addr::UNSPECIFIED.into(),
        (None, AddressFamily::Inet6) if length == 0 => Ipv6Addr::UNSPECIFIED.into(),
        (None, _) => return None,
    };
    IpNet::new(destination, length).ok().map(|network| network.trunc())
}

/// Nothing for a message that describes the link only in part (a wireless event): those lack an MTU.
fn parse_link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        parent: None,
        vlan: None,
        master: None,
        kind: String::new(),
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the other hundred attributes of a link are no business of ours"
        )]
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(parent) => link.parent = Some(*parent).filter(|&index| index != 0),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(master) => {
                link.master = Some(*master).filter(|&index| index != 0);
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                        elsewhere |= matches!(kind, InfoKind::Veth | InfoKind::Netkit);
                    } else if let LinkInfo::Data(InfoData::Vlan(data)) = info {
                        link.vlan = parse_vlan(data);
                    }
                }
            }
            _ => {}
        }
    }
    if elsewhere {
        link.parent = None;
    }
    (link.mtu != 0 && !link.name.is_empty()).then_some(link)
}

fn parse_vlan(data: &[InfoVlan]) -> Option<(u16, u16)> {
    let (mut tpid, mut id) = (0x8100, None);
    for info in data {
        if let InfoVlan::Id(value) = info {
            id = Some(*value);
        } else if let InfoVlan::Protocol(value) = info {
            tpid = u16::from(*value);
        }
    }
    Some((tpid, id?))
}

fn destination(attribute: &NeighbourAttribute) -> Option<IpAddr> {
    if let NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) = attribute {
        Some((*v4).into())
    } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) = attribute {
        Some((*v6).into())
    } else {
        None
    }
}

fn usable(message: &NeighbourMessage) -> Option<Neighbour> {
    let stale = message.header.state == NeighbourState::Stale;
    let valid = stale
        || matches!(
            message.header.state,
            NeighbourState::Reachable
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
    let bytes = message.attributes.iter().find_map(|attribute| {
        if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute { Some(bytes) } else { None }
    })?;
    let mac = <[u8; 6]>::try_from(bytes.as_slice()).ok()?;
    (valid && mac != [0; 6]).then_some(Neighbour { mac, stale })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
    use netlink_packet_route::link::VlanProtocol;
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn link(index: u32, name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(MAC.to_vec()),
        ];
        message
    }

    fn neighbour(address: &str, state: NeighbourState, mac: &[u8]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(address.parse::<IpAddr>().unwrap().into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        message
    }

    fn address(local: Option<&str>, address: &str, prefix_len: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = 2;
        message.header.prefix_len = prefix_len;
        message.attributes.push(AddressAttribute::Address(address.parse().unwrap()));
        message.attributes.extend(local.map(|ip| AddressAttribute::Local(ip.parse().unwrap())));
        message
    }

    fn hop(address: &str) -> Hop {
        Hop { device: 2, address: address.parse().unwrap() }
    }

    fn tables(messages: impl IntoIterator<Item = RouteNetlinkMessage>) -> Tables {
        let mut tables = Tables::default();
        for message in messages {
            tables.apply(&message);
        }
        tables
    }

    #[test]
    fn a_vlan_device_has_its_tag_and_parent() {
        let mut message = link(5, "eth0.7");
        message.attributes.push(LinkAttribute::Link(2));
        message.attributes.push(LinkAttribute::Controller(9));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![
                InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
                InfoVlan::Id(7),
            ])),
        ]));
        let tables = tables([RouteNetlinkMessage::NewLink(message)]);
        let expected = Link {
            index: 5,
            name: "eth0.7".into(),
            mac: Some(MAC),
            mtu: 1500,
            up: true,
            parent: Some(2),
            vlan: Some((0x88a8, 7)),
            master: Some(9),
            kind: "vlan".into(),
        };
        assert_eq!(tables.links()[&5], expected);
    }

    #[test]
    fn a_pairs_other_end_and_another_namespaces_device_are_no_parents() {
        let mut pair = link(5, "veth0");
        pair.attributes.push(LinkAttribute::Link(6));
        pair.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]));
        let mut elsewhere = link(7, "macvlan0");
        elsewhere.attributes.push(LinkAttribute::LinkNetNsId(0));
        elsewhere.attributes.push(LinkAttribute::Link(2));
        let tables =
            tables([RouteNetlinkMessage::NewLink(pair), RouteNetlinkMessage::NewLink(elsewhere)]);
        assert_eq!(tables.links()[&5].parent, None);
        assert_eq!(tables.links()[&7].parent, None);
    }

    #[test]
    fn only_an_ethernet_device_with_carrier_is_up_and_has_a_mac() {
        let mut loopback = link(1, "lo");
        loopback.header.link_layer_type = LinkLayerType::Loopback;
        let mut unplugged = link(2, "eth0");
        unplugged.header.flags = LinkFlags::Up;
        let mut down = link(3, "eth1");
        down.header.flags = LinkFlags::LowerUp;
        let tables = tables([loopback, unplugged, down].map(RouteNetlinkMessage::NewLink));
        assert_eq!(tables.links()[&1].mac, None);
        assert!(tables.links()[&1].up && !tables.links()[&2].up && !tables.links()[&3].up);
    }

    #[test]
    fn only_a_links_changes_have_an_effect() {
        let mut tables = tables([RouteNetlinkMessage::NewLink(link(2, "eth0"))]);
        let mut said =
            |link: &LinkMessage| tables.apply(&RouteNetlinkMessage::NewLink(link.clone()));
        let mut changing = link(2, "eth0");
        assert_eq!(said(&changing), Effect::Nothing);
        changing.header.flags |= LinkFlags::Promisc;
        assert_eq!(said(&changing), Effect::Nothing);
        changing.header.flags |= LinkFlags::Running;
        assert_eq!(said(&changing), Effect::Routes);
        assert_eq!(said(&changing), Effect::Nothing);
        changing.attributes.push(LinkAttribute::Controller(9));
        assert_eq!(said(&changing), Effect::Routes);
        tables.apply(&RouteNetlinkMessage::DelLink(link(2, "eth0")));
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(link(2, "eth0"))), Effect::Routes);
    }

    #[test]
    fn a_route_affects_its_network_alone() {
        let effect = |family, length, destination: Option<&str>| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.destination_prefix_length = length;
            let destination = destination.map(|ip| ip.parse::<IpAddr>().unwrap().into());
            message.attributes.extend(destination.map(RouteAttribute::Destination));
            Tables::default().apply(&RouteNetlinkMessage::DelRoute(message))
        };
        let network = |text: &str| Effect::Network(text.parse().unwrap());
        let (v4, v6) = (AddressFamily::Inet, AddressFamily::Inet6);
        assert_eq!(effect(v4, 24, Some("10.1.2.0")), network("10.1.2.0/24"));
        assert_eq!(effect(v6, 128, Some("fd00::1")), network("fd00::1/128"));
        assert_eq!(effect(v4, 0, None), network("0.0.0.0/0"));
        assert_eq!(effect(v6, 0, None), network("::/0"));
        assert_eq!(effect(v4, 24, None), Effect::Routes);
        assert_eq!(effect(AddressFamily::Mpls, 20, None), Effect::Routes);
    }

    #[test]
    fn messages_about_a_part_of_a_link_leave_it_as_it_was() {
        let mut tables = tables([RouteNetlinkMessage::NewLink(link(2, "eth0"))]);
        let before = tables.links().clone();
        // It leaves its bridge.
        let mut port = link(2, "eth0");
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelLink(port.clone())), Effect::Nothing);
        port.attributes = vec![LinkAttribute::Mtu(9000), LinkAttribute::IfName("no".into())];
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(port)), Effect::Nothing);
        // A wireless event.
        let mut partial = link(2, "eth0");
        partial.attributes = vec![LinkAttribute::IfName("eth0".into())];
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(partial)), Effect::Nothing);
        assert_eq!(*tables.links(), before);
    }

    #[test]
    fn a_deleted_link_takes_its_addresses_and_neighbours_along() {
        let mut tables = tables([
            RouteNetlinkMessage::NewLink(link(2, "eth0")),
            RouteNetlinkMessage::NewAddress(address(None, "fd00::1", 64)),
            RouteNetlinkMessage::NewNeighbour(neighbour("10.0.0.2", NeighbourState::Stale, &MAC)),
        ]);
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelLink(link(2, "eth0"))), Effect::Routes);
        assert_eq!(tables, Tables::default());
    }

    #[test]
    fn an_address_stays_until_its_last_prefix_length_is_gone() {
        let both = [24, 32].map(|length| address(Some("10.0.0.1"), "10.0.0.1", length));
        let mut tables = tables(both.clone().map(RouteNetlinkMessage::NewAddress));
        let [first, second] = both.map(RouteNetlinkMessage::DelAddress);
        let own = (2, "10.0.0.1".parse().unwrap());
        tables.apply(&first);
        assert_eq!(tables.addresses().collect::<Vec<_>>(), [own]);
        tables.apply(&second);
        assert_eq!(tables.addresses().count(), 0);
    }

    #[test]
    fn the_own_end_of_a_point_to_point_link_is_the_address() {
        let message = address(Some("10.0.0.1"), "10.0.0.2", 32);
        let tables = tables([RouteNetlinkMessage::NewAddress(message)]);
        let own = (2, "10.0.0.1".parse().unwrap());
        assert_eq!(tables.addresses().collect::<Vec<_>>(), [own]);
    }

    #[test]
    fn a_neighbour_counts_in_the_states_that_vouch_for_its_mac() {
        for (state, expected) in [
            (NeighbourState::Reachable, Some(false)),
            (NeighbourState::Stale, Some(true)),
            (NeighbourState::Delay, Some(false)),
            (NeighbourState::Probe, Some(false)),
            (NeighbourState::Permanent, Some(false)),
            (NeighbourState::Noarp, Some(false)),
            (NeighbourState::Incomplete, None),
            (NeighbourState::Failed, None),
            (NeighbourState::None, None),
            (NeighbourState::Other(0x1000), None),
        ] {
            let message = neighbour("fd00::2", state, &MAC);
            let tables = tables([RouteNetlinkMessage::NewNeighbour(message)]);
            let found = tables.neighbour(&hop("fd00::2"));
            let expected = expected.map(|stale| Neighbour { mac: MAC, stale });
            assert_eq!(found, expected.as_ref(), "{state:?}");
        }
    }

    #[test]
    fn only_a_change_of_the_mac_concerns_the_paths() {
        use NeighbourState::{Failed, Incomplete, Reachable, Stale};
        let mut tables = Tables::default();
        let hop = hop("10.0.0.2");
        let mut say = |state, mac: &[u8]| {
            tables.apply(&RouteNetlinkMessage::NewNeighbour(neighbour("10.0.0.2", state, mac)))
        };
        assert_eq!(say(Incomplete, &[]), Effect::Nothing);
        assert_eq!(say(Reachable, &MAC), Effect::Neighbour(hop));
        assert_eq!(say(Stale, &MAC), Effect::Nothing);
        assert_eq!(say(Stale, &[2, 0, 0, 0, 0, 8]), Effect::Neighbour(hop));
        assert_eq!(say(Failed, &[]), Effect::Neighbour(hop));
        assert_eq!(say(Failed, &[]), Effect::Nothing);
    }

    #[test]
    fn entries_that_name_no_usable_mac_are_none() {
        let mut proxy = neighbour("10.0.0.2", NeighbourState::Permanent, &MAC);
        proxy.header.flags = NeighbourFlags::Proxy;
        let mut nameless = neighbour("10.0.0.2", NeighbourState::Reachable, &MAC);
        nameless.attributes.remove(0);
        let odd = [
            proxy,
            nameless,
            neighbour("10.0.0.2", NeighbourState::Noarp, &[0; 6]),
            neighbour("10.0.0.2", NeighbourState::Reachable, &[1; 20]),
            neighbour("10.0.0.2", NeighbourState::Reachable, &[]),
        ];
        for message in odd {
            let mut tables = Tables::default();
            let effect = tables.apply(&RouteNetlinkMessage::NewNeighbour(message.clone()));
            assert_eq!((effect, tables), (Effect::Nothing, Tables::default()), "{message:?}");
        }
    }

    #[test]
    fn routes_and_rules_concern_every_path() {
        for message in [
            RouteNetlinkMessage::NewRoute(Default::default()),
            RouteNetlinkMessage::DelRoute(Default::default()),
            RouteNetlinkMessage::NewRule(Default::default()),
            RouteNetlinkMessage::DelRule(Default::default()),
        ] {
            assert_eq!(Tables::default().apply(&message), Effect::Routes);
        }
    }

    proptest! {
        /// Whatever arrives on the socket, nothing panics: 16..=30 are the types of links,
        /// addresses, routes and neighbours, 32 and 33 those of rules.
        #[test]
        fn any_bytes_are_survived(kind in 16u16..=33, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut header = NetlinkHeader::default();
            header.message_type = kind;
            if let Ok(message) = RouteNetlinkMessage::deserialize(&header, &body) {
                Tables::default().apply(&message);
            }
        }
    }
}
