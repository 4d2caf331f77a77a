//! The data path that is measured: programs and tables of its own, filled by the real planner.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    time::Duration,
};

use xdp_lb_abi::{Address, AddressFlags, Device, Hop, PeerKey};
use xdp_lb_plan::{
    Path, Planner,
    maglev::HashKey,
    model::{Backend, Frontend, Mode, Node, Protocol, Service},
};

use super::Error;
use crate::{clock, config::Limits, dataplane::Dataplane};

/// The address of most frontends.
pub(super) const VIP: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(net6(0xf, 1))];
/// An address that is nobody's.
pub(super) const STRANGER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(net6(0xe, 1))];
/// This host.
pub(super) const HOST: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 31, 0, 1)), IpAddr::V6(net6(0x31, 1))];
/// Another host, whose tunnels end here.
pub(super) const PEER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 31, 0, 2)), IpAddr::V6(net6(0x31, 2))];
/// A pod on this host.
pub(super) const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 0, 2)), IpAddr::V6(net6(0x244, 2))];
/// The port that pods serve on.
pub(super) const POD_PORT: u16 = 8080;
/// MAC address of the host.
pub(super) const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of the router.
pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Ports of the frontends on [`VIP`], by what their services do.
pub(super) mod port {
    pub(in super::super) const L2: u16 = 1001;
    pub(in super::super) const IPIP: u16 = 1002;
    pub(in super::super) const GENEVE: u16 = 1003;
    pub(in super::super) const LOCAL: u16 = 1004;
    pub(in super::super) const SNAT: u16 = 1005;
    pub(in super::super) const AFFINITY: u16 = 1006;
    /// Added to the port of a mode: a service whose backends were all replaced, the old ones drain
    pub(in super::super) const MOVED: u16 = 10;
}

const KEY: [u8; 16] = *b"a key of a bench";
const HANDOVER: Duration = Duration::from_secs(3600);
const DEVICE: u32 = 1;
/// Backends of each service.
const BACKENDS: u16 = 10;

const fn net6(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host)
}

/// The data path that is measured.
pub(super) struct World {
    pub(super) dataplane: Dataplane,
    planner: Planner,
    services: Vec<Service>,
}

impl World {
    /// Loads and fills it; with room for so many flows in each table that records some.
    pub(super) fn load(flows: u32) -> Result<Self, Error> {
        // A table that forgets the oldest does so before it is quite full.
        let room = flows + flows / 4;
        let nat_flows = room.min(131_072);
        let limits =
            Limits { flows: room, answers: room, nat_flows, clients: 1024, ..Limits::default() };
        let mut dataplane = Dataplane::apart(&limits)?;
        let own = Ipv4Addr::new(172, 31, 0, 1).octets();
        dataplane.configure(KEY, 1000, false, |settings| {
            settings
                .with_own(own, HOST[1].into())
                .with_nat_ports(61_000, 65_535)
                .with_terminate(true)
        })?;
        let device = Device::new(DEVICE, OUR_MAC, 1500);
        dataplane.set_devices(&[(1, device)].into(), &[(DEVICE, 1)].into())?;
        dataplane.set_peers(&hosts(PEER))?;
        dataplane.set_pods(&hosts(POD))?;
        let mut planner = Planner::new(dataplane.layout(), HashKey::from(KEY), HANDOVER);
        planner.set_node(Node {
            pods: POD.map(Into::into).into(),
            addresses: HOST.into(),
            ..Node::default()
        });
        let mut world = Self { dataplane, planner, services: services(false) };
        world.apply()?;
        // All services at rest but those that move.
        world.services = services(true);
        world.apply()?;
        Ok(world)
    }

    /// Adds services around those that are measured, until there are so many.
    pub(super) fn enlarge(&mut self, count: u32) -> Result<(), Error> {
        let have = self.services.len() as u32;
        self.services.extend((have..count).map(other));
        self.apply()
    }

    fn apply(&mut self) -> Result<(), Error> {
        let mut addresses: BTreeMap<Address, u32> =
            HOST.iter().map(|&address| (address.into(), AddressFlags::LOCAL)).collect();
        for frontend in self.services.iter().flat_map(|service| &service.frontends) {
            addresses.insert(frontend.address.into(), AddressFlags::FRONTEND);
        }
        self.dataplane.set_addresses(addresses)?;
        let outcome =
            self.planner.apply(&self.services, &|key| Some(path(key.target())), clock::now());
        if let Some(refused) = outcome.refused.first() {
            return Err(Error::Refused(refused.refusal.to_string()));
        }
        Ok(self.dataplane.run(&outcome.ops)?)
    }
}

fn path(target: IpAddr) -> Path {
    let source = HOST[usize::from(target.is_ipv6())].into();
    Path { hop: Hop::new(ROUTER_MAC, 1), mtu: 1500, source, source_bits: 0 }
}

fn hosts(addresses: [IpAddr; 2]) -> BTreeSet<(u32, PeerKey)> {
    addresses.map(|address| (PeerKey::BITS, PeerKey::new(&address.into()))).into()
}

/// The services that are measured, of both families.
fn services(moved: bool) -> Vec<Service> {
    let mut list = Vec::new();
    for v6 in [false, true] {
        let service = |port: u16, mode: Mode, backends: Vec<Backend>| {
            let frontend = |protocol| Frontend {
                address: VIP[usize::from(v6)],
                port: non_zero(port),
                protocol,
            };
            let name = format!("{mode:?}-{port}-{}", if v6 { 6 } else { 4 });
            let frontends = vec![frontend(Protocol::Tcp), frontend(Protocol::Udp)];
            Service::new(name, mode, frontends, backends)
        };
        let pod = Backend { port: Some(non_zero(POD_PORT)), ..Backend::new(POD[usize::from(v6)]) };
        list.push(service(port::LOCAL, Mode::Local, vec![pod]));
        let mut sticky = service(port::AFFINITY, Mode::L2, backends(v6, 6, Mode::L2));
        sticky.affinity = Some(HANDOVER);
        list.push(sticky);
        for (port, mode) in [
            (port::L2, Mode::L2),
            (port::IPIP, Mode::Ipip),
            (port::GENEVE, Mode::Geneve),
            (port::SNAT, Mode::Snat),
        ] {
            list.push(service(port, mode, backends(v6, port, mode)));
            let mut all = backends(v6, port + 100, mode);
            if moved {
                all.iter_mut().for_each(|backend| backend.weight = 0);
                all.extend(backends(v6, port + 200, mode));
            }
            list.push(service(port + port::MOVED, mode, all));
        }
    }
    list
}

/// Ten backends of a network of their own.
fn backends(v6: bool, net: u16, mode: Mode) -> Vec<Backend> {
    let count = if mode == Mode::Snat { 4 * BACKENDS } else { BACKENDS };
    (1..=count)
        .map(|host| {
            let [high, low] = net.to_be_bytes();
            let address: IpAddr = if v6 {
                net6(0x1000 + net, host).into()
            } else {
                Ipv4Addr::new(10, high, low, host as u8).into()
            };
            let node = (mode == Mode::Geneve).then(|| -> IpAddr {
                if v6 {
                    net6(0x32, host).into()
                } else {
                    Ipv4Addr::new(172, 30, 0, host as u8).into()
                }
            });
            let port = mode_port(mode);
            Backend { node, port, ..Backend::new(address) }
        })
        .collect()
}

fn mode_port(mode: Mode) -> Option<NonZeroU16> {
    (!mode.keeps_destination()).then(|| non_zero(POD_PORT))
}

/// One of the services around, of ten backends.
fn other(number: u32) -> Service {
    let address = |base: u32, number: u32| IpAddr::from(Ipv4Addr::from_bits(base + number));
    let frontend = Frontend {
        address: address(0xc800_0000, number << 8 | 1),
        port: non_zero(80),
        protocol: Protocol::Tcp,
    };
    let first = number * u32::from(BACKENDS);
    let backends = (first..first + u32::from(BACKENDS))
        .map(|backend| Backend::new(address(0x0b00_0000, backend)))
        .collect();
    Service::new(format!("other-{number}"), Mode::L2, vec![frontend], backends)
}

const fn non_zero(port: u16) -> NonZeroU16 {
    match NonZeroU16::new(port) {
        Some(port) => port,
        None => NonZeroU16::MIN,
    }
}
