//! A mirror of the kernel's links, addresses and neighbours, folded from its messages.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use super::{Hop, Link};

/// What the kernel said last about each link, address and neighbour.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Tables {
    links: BTreeMap<u32, Link>,
    /// With the prefix length: the kernel knows one address twice if the lengths differ.
    addresses: BTreeSet<(u32, IpAddr, u8)>,
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
    /// Links, addresses, routes or rules: any route may lead elsewhere now.
    Routes,
}

impl Tables {
    pub(super) fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.addresses.iter().map(|&(device, address, _)| (device, address))
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
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Effect::Routes,
            _ => Effect::Nothing,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Effect {
        if !describes_the_link(message) {
            return Effect::Nothing;
        }
        let Some(link) = parse_link(message) else { return Effect::Nothing };
        self.links.insert(link.index, link);
        // Also where nothing changed that a `Link` shows: an IPv4 route dies with its device's
        // flags, and no message of its own says so.
        Effect::Routes
    }

    fn del_link(&mut self, message: &LinkMessage) -> Effect {
        if !describes_the_link(message) {
            return Effect::Nothing;
        }
        let index = message.header.index;
        self.links.remove(&index);
        self.addresses.retain(|&(device, ..)| device != index);
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
