//! What a lab consists of: a list of items, each made by one of the functions here.
//!
//! The functions take text as a person writes it; [`super::Lab::build`] checks it all before it
//! creates anything.

/// One line of a topology.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Item(pub(super) Kind);

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Node { name: String, role: Role },
    Link { ends: [End; 2] },
    Vlan { id: u16, protocol: &'static str, parent: String, end: End },
    Vip { node: String, address: String },
    Route { node: String, destination: String, via: String },
    Sysctl { node: String, key: String, value: String },
    Ip { node: String, command: String },
}

/// What a node does with the frames that are not its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Host,
    Router,
    Switch,
}

/// One end of a link: a device in a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    pub(super) node: String,
    pub(super) device: String,
    pub(super) mac: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) addresses: Vec<String>,
    pub(super) receives_xdp: bool,
}

impl End {
    /// Adds an address with its prefix length, like `10.0.0.1/24` or `2001:db8::1/64`.
    pub fn addr(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Sets the MAC address; without it the lab chooses one that is the same in every run.
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// Sets the MTU, in bytes of IP; 1500 without it.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Lets native XDP at the other end send back what came in there (`XDP_TX`): puts an XDP
    /// program on this end that passes everything, without which such frames lie in a queue until
    /// other frames come. What XDP redirects arrives without it too.
    pub fn receives_xdp(mut self) -> Self {
        self.receives_xdp = true;
        self
    }
}

/// A device named `device` (at most 15 bytes) in `node`.
pub fn end(node: &str, device: &str) -> End {
    End {
        node: node.to_owned(),
        device: device.to_owned(),
        mac: None,
        mtu: None,
        addresses: Vec::new(),
        receives_xdp: false,
    }
}

/// A host: it forwards nothing.
pub fn host(name: &str) -> Item {
    node(name, Role::Host)
}

/// A router for IPv4 and IPv6.
pub fn router(name: &str) -> Item {
    node(name, Role::Router)
}

/// An Ethernet switch: every link that ends here becomes a port of one bridge, `br0`. It passes
/// VLAN tags through, and has no addresses and no say of its own.
pub fn switch(name: &str) -> Item {
    node(name, Role::Switch)
}

fn node(name: &str, role: Role) -> Item {
    Item(Kind::Node { name: name.to_owned(), role })
}

/// A cable: a pair of veth devices, both up. Either end receives frames that XDP redirects to it;
/// see [`End::receives_xdp`] for those that XDP sends back.
pub fn link(a: End, b: End) -> Item {
    Item(Kind::Link { ends: [a, b] })
}

/// An 802.1Q device with tag `id` (1 to 4094) on top of the device `parent` of the same node.
/// Refused where the kernel has no such devices; a [`super::Tagger`] does without them.
pub fn vlan(id: u16, parent: &str, end: End) -> Item {
    Item(Kind::Vlan { id, protocol: "802.1q", parent: parent.to_owned(), end })
}

/// Like [`vlan`] with the tag of 802.1ad, the outer one of two.
pub fn service_vlan(id: u16, parent: &str, end: End) -> Item {
    Item(Kind::Vlan { id, protocol: "802.1ad", parent: parent.to_owned(), end })
}

/// A service's address on a backend: on the loopback device, and not announced on the segment, so
/// that the balancer alone answers ARP and neighbour solicitations for it.
pub fn vip(node: &str, address: &str) -> Item {
    Item(Kind::Vip { node: node.to_owned(), address: address.to_owned() })
}

/// A route to a prefix (`0.0.0.0/0` and `::/0` are the defaults) by way of a neighbour.
pub fn route(node: &str, destination: &str, via: &str) -> Item {
    Item(Kind::Route {
        node: node.to_owned(),
        destination: destination.to_owned(),
        via: via.to_owned(),
    })
}

/// A value under /proc/sys, like `net.ipv4.icmp_ratelimit`; set after the devices exist. A key
/// with slashes is taken as a path, for devices with a dot in their name.
pub fn sysctl(node: &str, key: &str, value: &str) -> Item {
    Item(Kind::Sysctl { node: node.to_owned(), key: key.to_owned(), value: value.to_owned() })
}

/// Any other command of ip(8), without the word `ip`; run in the list's order within its node.
pub fn ip(node: &str, command: &str) -> Item {
    Item(Kind::Ip { node: node.to_owned(), command: command.to_owned() })
}
