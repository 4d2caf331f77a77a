//! What the kernel knows about the network, followed as it changes: links, addresses, and the path
//! to each destination (route and neighbour together).
//!
//! ```text
//! netlink events, dumps ──► Tables ─────────────┐
//! RTM_GETROUTE answers  ──► Route per address ──┴─► Path per address ──► View
//! ```
//! [`Follower`] does the I/O; folding messages, reading route answers, joining both into paths and
//! deciding when to ask again are pure.

mod asker;
mod follow;
pub(crate) mod orphans;
mod path;
mod resolve;
mod route;
mod socket;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

pub use follow::Follower;
pub use path::{Path, Why};
pub use socket::NetError;

/// The network at one moment. Two equal views mean that nothing of interest changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct View {
    /// Links of this network namespace, by interface index
    pub links: BTreeMap<u32, Link>,
    /// Own addresses: (interface index, address)
    pub addresses: BTreeSet<(u32, IpAddr)>,
    /// Those of them that are the first of their subnet
    pub primary: BTreeSet<(u32, IpAddr)>,
    /// The path to each destination of [`Follower::set_destinations`], by address
    pub paths: BTreeMap<IpAddr, Path>,
}

/// A network device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Interface index; a device that was deleted and made again has another one
    pub index: u32,
    /// Interface name
    pub name: String,
    /// Ethernet address; nothing for devices that have none (loopback, tun)
    pub mac: Option<[u8; 6]>,
    /// Largest packet (layer 3, in bytes)
    pub mtu: u32,
    /// Administratively up and with a carrier
    pub up: bool,
    /// Interface index of the device below (of a VLAN, a macvlan …), where it is in this namespace.
    /// The other end of a veth or netkit pair is none.
    pub parent: Option<u32>,
    /// TPID (0x8100 or 0x88a8) and id, of a VLAN device
    pub vlan: Option<(u16, u16)>,
    /// Interface index of the bridge, bond or VRF that it belongs to
    pub master: Option<u32>,
    /// The kernel's name of its kind (`veth`, `vlan`, `bond` …); empty for hardware
    pub kind: String,
}

/// A neighbour: an address on the segment behind a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
struct Hop {
    device: u32,
    address: IpAddr,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on device {}", self.address, self.device)
    }
}
