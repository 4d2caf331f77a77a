//! What passes on the wires of the cluster's nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::super::DemoError;
use crate::lab::{
    Capture, Captured, Lab, Node, Recording,
    layers::{self, Body},
    reassembly,
};

/// Captures of all that the nodes and the client send and receive.
#[derive(Debug)]
pub(super) struct Captures {
    nodes: Vec<(Node, Capture)>,
    client: Capture,
}

/// What was recorded.
#[derive(Debug)]
pub(super) struct Wires {
    nodes: BTreeMap<Node, Recording>,
    client: Recording,
}

/// Ends of a TCP or UDP packet: of the innermost one, where it travels in a tunnel.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Ends {
    pub(super) protocol: u8,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
}

/// Who put a packet on a wire: whose MAC address it came from.
type Senders = BTreeMap<Ends, BTreeSet<[u8; 6]>>;

impl Captures {
    pub(super) fn start(lab: &Lab) -> Result<Self, DemoError> {
        // At the switch: a node's own device shows nothing of what XDP sends and drops.
        let start = |node: Node| Ok((node, Capture::start(lab.ns(node.segment())?, node.name())?));
        let nodes = Node::ALL.into_iter().map(start).collect::<Result<_, DemoError>>()?;
        Ok(Self { nodes, client: Capture::start(lab.ns("client")?, "eth0")? })
    }

    pub(super) fn stop(self) -> Result<Wires, DemoError> {
        let stop = |(node, capture): (Node, Capture)| Ok((node, capture.stop()?));
        let nodes = self.nodes.into_iter().map(stop).collect::<Result<_, DemoError>>()?;
        Ok(Wires { nodes, client: self.client.stop()? })
    }
}

/// How many checksums were right, and what was wrong.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) right: usize,
    pub(super) frames: usize,
    pub(super) faults: Vec<String>,
    pub(super) lost: u32,
}

impl Wires {
    /// Who sent which packets on a node's wire, those in tunnels left out.
    pub(super) fn on(&self, node: Node) -> Senders {
        let frames = self.nodes.get(&node).map(|one| one.frames.as_slice()).unwrap_or_default();
        let mut senders = Senders::new();
        for (ends, sender) in frames.iter().filter_map(plain) {
            senders.entry(ends).or_default().insert(sender);
        }
        senders
    }

    /// Checks every checksum.
    pub(super) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for recording in self.nodes.values().chain([&self.client]) {
            sums.lost += recording.dropped;
            match reassembly::verify(recording) {
                Ok(verified) => {
                    sums.right += verified.right;
                    sums.frames += verified.frames;
                }
                Err(fault) => sums.faults.push(fault.to_string()),
            }
        }
        sums
    }
}

fn plain(captured: &Captured) -> Option<(Ends, [u8; 6])> {
    let frame = layers::frame(&captured.bytes).ok()?;
    let ends = ends(&frame)?;
    (frame.headers.len() == 1).then_some((ends, frame.source))
}

/// The ends of the innermost packet of a frame.
pub(super) fn ends(frame: &layers::Frame<'_>) -> Option<Ends> {
    let ip = frame.headers.last()?;
    let (Body::Tcp(start) | Body::Udp(start)) = frame.body else { return None };
    let (ports, _) = start.split_first_chunk::<4>()?;
    Some(Ends {
        protocol: ip.protocol,
        from: SocketAddr::new(ip.source, u16::from_be_bytes([ports[0], ports[1]])),
        to: SocketAddr::new(ip.destination, u16::from_be_bytes([ports[2], ports[3]])),
    })
}
