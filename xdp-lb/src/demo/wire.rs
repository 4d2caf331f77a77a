//! What passes on the demo's wires, and what the packets of one connection look like hop by hop.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr},
};

use super::{
    DemoError,
    network::{self, BALANCER_PORT, FAR, Host, NEAR, SWITCH, Service},
    report::{Report, number},
    stage::Stage,
};
use crate::lab::{
    Capture, Captured, Detail, Lab, Recording, describe_with,
    layers::{self, Body},
    verify,
};

/// Bits of the TCP header's flags.
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A place where frames are recorded: a node and its device.
pub(super) type Point = (&'static str, &'static str);

/// The client's device.
pub(super) const CLIENT: Point = ("client", "eth0");
/// All that the balancer receives and sends; its own device would show nothing of what XDP sends.
pub(super) const BALANCER: Point = (SWITCH, BALANCER_PORT);

/// The router's device to the balancer's segment.
pub(super) fn near() -> Point {
    ("router", network::near_device())
}

/// The router's device to the other segment.
pub(super) fn far() -> Point {
    ("router", network::far_device())
}

/// Captures everywhere.
#[derive(Debug)]
pub(super) struct Captures(BTreeMap<Point, Capture>);

impl Captures {
    pub(super) fn start(lab: &Lab) -> Result<Self, DemoError> {
        let hosts = NEAR.iter().chain(&FAR).map(|host| (host.node, "eth0"));
        let points = [CLIENT, BALANCER, near(), far()].into_iter().chain(hosts);
        let start = |point: Point| Ok((point, Capture::start(lab.ns(point.0)?, point.1)?));
        points.map(start).collect::<Result<_, DemoError>>().map(Self)
    }

    pub(super) fn stop(self) -> Result<Wires, DemoError> {
        let stop = |(point, capture): (Point, Capture)| Ok((point, capture.stop()?));
        self.0.into_iter().map(stop).collect::<Result<_, DemoError>>().map(Wires)
    }
}

/// What was recorded.
#[derive(Debug)]
pub(super) struct Wires(BTreeMap<Point, Recording>);

/// A TCP segment in a frame, in a tunnel or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    /// Who put the frame on this wire
    pub(super) sender: &'static str,
    /// Whom it is for on this wire
    pub(super) receiver: &'static str,
    /// Addresses of the outer header
    pub(super) tunnel: Option<(IpAddr, IpAddr)>,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Bytes of IP, the outer header included
    pub(super) length: usize,
    flags: u8,
    /// The innermost packet, from its IP header on
    packet: Vec<u8>,
}

impl Segment {
    /// Reads a frame; nothing where it holds no TCP segment.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let frame = layers::frame(bytes).ok()?;
        let Body::Tcp(segment) = frame.body else { return None };
        let (from, to) = (segment.get(..2)?, segment.get(2..4)?);
        let port = |field: &[u8]| u16::from_be_bytes([field[0], field[1]]);
        let ip = frame.headers.last()?;
        let first = frame.headers.first()?;
        let outer = Some(first).filter(|_| frame.headers.len() > 1);
        Some(Self {
            length: first.header.len() + first.payload.len(),
            sender: network::owner(frame.source),
            receiver: network::owner(frame.destination),
            tunnel: outer.map(|outer| (outer.source, outer.destination)),
            source: SocketAddr::new(ip.source, port(from)),
            destination: SocketAddr::new(ip.destination, port(to)),
            flags: *segment.get(13)?,
            packet: [ip.header, ip.payload].concat(),
        })
    }
}

impl Wires {
    /// The frames at one point.
    fn frames(&self, point: Point) -> &[Captured] {
        self.0.get(&point).map(|recording| recording.frames.as_slice()).unwrap_or_default()
    }

    /// The TCP segments at one point, with whether the device there sent them.
    pub(super) fn segments(&self, point: Point) -> impl Iterator<Item = (bool, Segment)> {
        let frames = self.frames(point).iter();
        frames.filter_map(|frame| Some((frame.sent, Segment::read(&frame.bytes)?)))
    }

    /// The first frame of a connection's opening, or of the answer to it, with its description.
    fn opening(&self, point: Point, sent: bool, from: SocketAddr, to: SocketAddr) -> Option<Hop> {
        self.frames(point).iter().filter(|frame| frame.sent == sent).find_map(|frame| {
            let segment = Segment::read(&frame.bytes)?;
            let ends = (segment.source, segment.destination) == (from, to);
            let text = describe_with(&frame.bytes, Detail { macs: false, ttl: true });
            (ends && segment.flags & SYN != 0).then_some(Hop { segment, text })
        })
    }
}

/// A frame on one wire.
#[derive(Clone, Debug)]
struct Hop {
    segment: Segment,
    text: String,
}

impl Hop {
    /// Who to whom, and the frame, its tunnel on a line of its own.
    fn lines(&self, unwrapped: bool) -> String {
        let Segment { sender, receiver, .. } = self.segment;
        let who =
            if unwrapped { format!("in {receiver}") } else { format!("{sender} → {receiver}") };
        self.text
            .split(" | ")
            .enumerate()
            .map(|(index, part)| match index {
                0 => format!("{who:16}{part}\n"),
                _ => format!("{:16}└ {part}\n", ""),
            })
            .collect()
    }
}

/// A connection whose packets are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Example {
    pub(super) service: Service,
    pub(super) client: SocketAddr,
    pub(super) frontend: SocketAddr,
    pub(super) host: Host,
}

impl Example {
    /// The opening's hops as they should be: where, sent or received there, from whom to whom, and
    /// in a tunnel or not.
    fn way(&self) -> Vec<(Point, bool, [&'static str; 2], bool)> {
        let node = self.host.node;
        let home = (node, "eth0");
        let start = [
            (CLIENT, true, ["client", "router"], false),
            (BALANCER, true, ["router", network::BALANCER], false),
        ];
        let rest = if self.service.mode == "l2" {
            vec![(home, false, [network::BALANCER, node], false)]
        } else {
            vec![
                (BALANCER, false, [network::BALANCER, "router"], true),
                (far(), true, ["router", node], true),
                // XDP has unwrapped it before the capture sees it.
                (home, false, ["router", node], false),
            ]
        };
        start.into_iter().chain(rest).collect()
    }

    fn answer(&self) -> [(Point, bool, [&'static str; 2], bool); 2] {
        let node = self.host.node;
        [
            ((node, "eth0"), true, [node, "router"], false),
            (CLIENT, false, ["router", "client"], false),
        ]
    }
}

/// Shows one connection's way, and checks it.
fn show<W: Write>(
    report: &mut Report<W>,
    wires: &Wires,
    example: &Example,
    all: bool,
) -> Result<bool, DemoError> {
    let Example { service, client, frontend, host } = *example;
    let form = service.form(frontend);
    let version = if frontend.is_ipv6() { "IPv6" } else { "IPv4" };
    report.heading(&format!("{} over {version}, mode {}: {form}", service.name, service.mode))?;
    let mut good = true;
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let legs = [(client, frontend, example.way()), (frontend, client, example.answer().into())];
    for (from, to, hops) in legs {
        let answer = from == frontend;
        for (point, sent, [sender, receiver], tunnel) in hops {
            let Some(hop) = wires.opening(point, sent, from, to) else {
                report.lines(&format!("{sender} → {receiver}: no such frame"))?;
                good = false;
                continue;
            };
            let Segment { flags, .. } = hop.segment;
            let outer = hop.segment.tunnel.map(|(_, to)| to);
            good &= (hop.segment.sender, hop.segment.receiver) == (sender, receiver)
                && (flags & ACK != 0) == answer
                && outer == tunnel.then(|| service.address(&host));
            let unwrapped = service.mode == "ipip" && point == (host.node, "eth0") && !sent;
            if !answer && point != CLIENT {
                packets.push(hop.segment.packet.clone());
            }
            if all || tunnel {
                report.lines(&hop.lines(unwrapped))?;
            }
        }
    }
    // From the router on, the client's packet stays as it is, in a tunnel or not.
    good &= packets.windows(2).all(|pair| pair[0] == pair[1]);
    Ok(good)
}

/// The section about what the packets look like.
pub(super) fn report<W: Write>(
    report: &mut Report<W>,
    wires: &Wires,
    examples: &[Example],
) -> Result<(), DemoError> {
    report.section("What the packets look like")?;
    report.text(
        "The opening of one connection to each frontend, and its answer, as captured: who put the \
         frame on the wire → whom it is for, by its MAC addresses; then its IP headers.",
    )?;
    let mut good = 0;
    for example in examples {
        let Example { service, frontend, .. } = example;
        // Each form in full once; of the others, what leaves the balancer.
        let all = service.mode == "l2"
            || service.form(*frontend) == "IPv4 in IPv4"
            || service.form(*frontend) == "IPv6 in IPv6";
        report.gap()?;
        good += usize::from(show(report, wires, example, all)?);
    }
    report.gap()?;
    report.check(
        good == examples.len() && good > 0,
        &format!(
            "{good} of {} openings went this way, the client's packet unchanged, byte for byte, \
             from the router to the backend",
            examples.len()
        ),
    )?;
    checksums(report, wires)
}

/// Checks every frame on every wire.
fn checksums<W: Write>(report: &mut Report<W>, wires: &Wires) -> Result<(), DemoError> {
    let (mut frames, mut sums, mut lost) = (0_usize, 0_usize, 0_u32);
    let mut faults = Vec::new();
    for recording in wires.0.values() {
        lost += recording.dropped;
        for frame in &recording.frames {
            frames += 1;
            match verify::checksums(&frame.bytes) {
                Ok(checked) => sums += checked.right,
                Err(fault) => faults.push(fault.to_string()),
            }
        }
    }
    if let Some(first) = faults.first() {
        report.text(&format!("{} frames with faults, the first: {first}", faults.len()))?;
    }
    report.check(
        faults.is_empty() && sums > 0,
        &format!(
            "{} checksums in {} frames, captured at {} places, are right; {} are wrong",
            number(sums),
            number(frames),
            wires.0.len(),
            number(faults.len())
        ),
    )?;
    report.check(lost == 0, &format!("the captures are complete: {lost} frames lost"))?;
    Ok(())
}

/// Stops the captures once nothing is under way any more.
pub(super) fn stop(stage: &mut Stage, captures: Captures) -> Result<Wires, DemoError> {
    stage.wait_until_still()?;
    captures.stop()
}
