//! Who is in the lab of pods, and by which addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A LoadBalancer address that the router sends to the balancer, as are all of its /24.
pub const LOAD_BALANCER_4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 80));
/// A LoadBalancer address over IPv6, as are all of its /64.
pub const LOAD_BALANCER_6: IpAddr =
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0x80));

/// The client's addresses: it sends from the first of each family unless told otherwise.
pub const CLIENTS_4: [IpAddr; 2] = [client4(2), client4(3)];
/// The client's addresses over IPv6.
pub const CLIENTS_6: [IpAddr; 2] = [client6(2), client6(3)];

const fn client4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, last))
}

const fn client6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last))
}

/// A node of the cluster.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Node {
    /// Receives what clients send to LoadBalancer addresses, and has pods
    Balancer,
    /// On the balancer's segment
    Worker,
    /// Behind the router, on a link with an MTU of its own
    Worker2,
    /// On the balancer's segment; for pods without an instance on their node
    Plain,
}

impl Node {
    /// All nodes.
    pub const ALL: [Self; 4] = [Self::Balancer, Self::Worker, Self::Worker2, Self::Plain];

    /// Its name, and that of its port at the switch of its segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Worker => "worker",
            Self::Worker2 => "worker2",
            Self::Plain => "plain",
        }
    }

    /// The switch that its `eth0` is plugged into.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Balancer | Self::Worker | Self::Plain => "near",
            Self::Worker2 => "far",
        }
    }

    /// Its IPv4 address.
    pub fn v4(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, self.third(), self.number()))
    }

    /// Its IPv6 address.
    pub fn v6(self) -> IpAddr {
        let network = 0x10 + u16::from(self.third());
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, self.number().into()).into()
    }

    /// Both, with a port: where a NodePort listens.
    pub fn at(self, port: u16) -> [SocketAddr; 2] {
        [self.v4(), self.v6()].map(|address| SocketAddr::new(address, port))
    }

    /// MAC address of its `eth0`.
    pub fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, self.third(), self.number()]
    }

    /// Addresses of its pods.
    pub fn pod_network_4(self) -> IpNet {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, self.number(), 0), 24).into()
    }

    /// Addresses of its pods.
    pub fn pod_network_6(self) -> IpNet {
        let number = self.number().into();
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, number, 0, 0, 0, 0, 0), 64).into()
    }

    /// The router's addresses on its segment.
    pub fn gateways(self) -> [IpAddr; 2] {
        gateways(self.third())
    }

    fn number(self) -> u8 {
        match self {
            Self::Balancer => 1,
            Self::Worker => 2,
            Self::Worker2 => 3,
            Self::Plain => 4,
        }
    }

    /// Third byte of its IPv4 address, which tells the segments apart.
    fn third(self) -> u8 {
        u8::from(self.segment() == "far")
    }
}

/// The router's addresses on a segment.
pub(super) fn gateways(segment: u8) -> [IpAddr; 2] {
    let network = 0x10 + u16::from(segment);
    [
        Ipv4Addr::new(10, 0, segment, 254).into(),
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, 0xfe).into(),
    ]
}

/// A pod on a node.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pod {
    /// Where it runs
    pub node: Node,
    /// From 1 on
    pub number: u8,
}

impl Pod {
    /// Its name, like `worker-pod1`; servers in it are called so.
    pub fn name(self) -> String {
        format!("{}-{}", self.node.name(), self.device())
    }

    /// The node's end of its veth pair, like `pod1`; the pod's own is `eth0`.
    pub fn device(self) -> String {
        format!("pod{}", self.number)
    }

    /// Its IPv4 address.
    pub fn v4(self) -> IpAddr {
        Ipv4Addr::new(10, 244, self.node.number(), self.number + 1).into()
    }

    /// Its IPv6 address.
    pub fn v6(self) -> IpAddr {
        let (node, number) = (self.node.number().into(), u16::from(self.number) + 1);
        Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, number).into()
    }

    /// Both, with a port.
    pub fn at(self, port: u16) -> [SocketAddr; 2] {
        [self.v4(), self.v6()].map(|address| SocketAddr::new(address, port))
    }
}

/// A MAC address as ip(8) takes it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::PodsSpec;

    #[test]
    fn a_pods_address_is_in_its_nodes_network_and_no_others() {
        for node in Node::ALL {
            for pod in PodsSpec::default().pods(200).pods_of(node) {
                for other in Node::ALL {
                    let inside = other == node;
                    assert_eq!(other.pod_network_4().contains(&pod.v4()), inside, "{pod:?}");
                    assert_eq!(other.pod_network_6().contains(&pod.v6()), inside, "{pod:?}");
                }
            }
        }
    }

    #[test]
    fn names_and_addresses_are_those_of_the_picture() {
        let pod = Pod { node: Node::Worker2, number: 1 };
        assert_eq!((pod.name(), pod.device()), ("worker2-pod1".to_owned(), "pod1".to_owned()));
        let texts = [pod.v4(), pod.v6(), Node::Worker2.v4(), Node::Worker2.v6()];
        assert_eq!(
            texts.map(|address| address.to_string()),
            ["10.244.3.2", "fd00:244:3::2", "10.0.1.3", "2001:db8:11::3"]
        );
        let [v4, v6] = Node::Balancer.gateways().map(|address| address.to_string());
        assert_eq!((v4.as_str(), v6.as_str()), ("10.0.0.254", "2001:db8:10::fe"));
        assert_eq!(mac(Node::Plain.mac()), "02:00:00:00:00:04");
    }
}
