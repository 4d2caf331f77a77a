//! What the packets of one connection look like, hop by hop, in each mode.

use std::{io::Write, net::SocketAddr};

use super::{
    super::{DemoError, report::Report, stage::Stage},
    cluster::{self, POD_PORT, SERVICES, Service, TCP},
    wires::{Ends, ends},
};
use crate::lab::{Answer, Capture, Detail, Node, Pod, Recording, describe_with, layers};

/// Client ports that are tried until one leads to the pod that is wanted.
const PORTS: std::ops::RangeInclusive<u16> = 40_000..=40_199;

/// Where frames are looked for: a namespace and its device.
type Point = (String, String);

/// One hop as it should be.
struct Hop {
    point: Point,
    from: SocketAddr,
    to: SocketAddr,
    tunnel: bool,
    /// Who puts it on the wire, and whom it is for there; within a pod, the pod alone
    who: Who,
}

enum Who {
    Between(&'static str, &'static str),
    In(Pod),
}

/// The section.
pub(super) fn report<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    report.section("What the packets look like")?;
    report.text(
        "The opening of a connection in each mode, and its answer, as captured: who put the frame on \
         the wire → whom it is for, by its MAC addresses; then its IP headers.",
    )?;
    let [web, cache, old, _] = SERVICES;
    let mut good = 0;
    let examples = [
        (web, 0, Pod { node: Node::Worker, number: 1 }),
        (web, 1, Pod { node: Node::Worker2, number: 1 }),
        (cache, 0, Pod { node: Node::Balancer, number: 1 }),
        (old, 0, Pod { node: Node::Plain, number: 1 }),
    ];
    for (service, family, pod) in &examples {
        report.gap()?;
        good += usize::from(show(report, stage, service, *family, *pod)?);
    }
    report.gap()?;
    report.check(
        good == examples.len(),
        &format!("{good} of {} connections went and were answered this way", examples.len()),
    )?;
    Ok(())
}

fn show<W: Write>(
    report: &mut Report<W>,
    stage: &Stage,
    service: &Service,
    family: usize,
    pod: Pod,
) -> Result<bool, DemoError> {
    let frontend = service.load_balancer()[family];
    let way = service.way(pod, TCP);
    let version = if frontend.is_ipv6() { "IPv6" } else { "IPv4" };
    report.heading(&format!("{} over {version}: {} by {way}", service.name, pod.name()))?;
    let points = points(pod);
    let start = |point: &Point| Ok(Capture::start(stage.lab.ns(&point.0)?, &point.1)?);
    let captures = points.iter().map(start).collect::<Result<Vec<_>, DemoError>>()?;
    let answer = find(stage, frontend, pod)?;
    let stop = |capture: Capture| Ok(capture.stop()?);
    let recordings = captures.into_iter().map(stop).collect::<Result<Vec<_>, DemoError>>()?;
    let Some((client, answer)) = answer else {
        report.text(&format!("no port of the client leads to {}", pod.name()))?;
        return Ok(false);
    };
    let mut good = true;
    for hop in hops(client, frontend, pod, &answer, way) {
        let at = points.iter().position(|point| *point == hop.point);
        let recording = at.and_then(|at| recordings.get(at));
        match recording.and_then(|recording| hop.find(recording)) {
            Some(lines) => report.lines(&lines)?,
            None => {
                report.lines(&format!("{}: no such frame", hop.who()))?;
                good = false;
            }
        }
    }
    Ok(good)
}

/// The places where the connection to a pod can be seen.
fn points(pod: Pod) -> Vec<Point> {
    let wire = |node: Node| (node.segment().to_owned(), node.name().to_owned());
    let mut points = vec![("client".to_owned(), "eth0".to_owned()), wire(Node::Balancer)];
    if pod.node != Node::Balancer {
        points.push(wire(pod.node));
    }
    points.push((pod.name(), "eth0".to_owned()));
    points
}

/// A connection that the pod serves, and the pod's answer.
fn find(
    stage: &Stage,
    frontend: SocketAddr,
    pod: Pod,
) -> Result<Option<(SocketAddr, Answer)>, DemoError> {
    let client = stage.client()?;
    for port in PORTS {
        let answer = client.ask(frontend, Some(port))?;
        if answer.backend == pod.name() {
            let from = SocketAddr::new(cluster::client(frontend.is_ipv6()), port);
            return Ok(Some((from, answer)));
        }
    }
    Ok(None)
}

/// The way of the opening, and of the answer to it.
fn hops(
    client: SocketAddr,
    frontend: SocketAddr,
    pod: Pod,
    answer: &Answer,
    way: &str,
) -> Vec<Hop> {
    let [outside, balancer, .., inside] = &points(pod)[..] else { return Vec::new() };
    let node = pod.node.name();
    let target = SocketAddr::new(answer.server.ip(), POD_PORT);
    let shown = answer.client;
    let hop =
        |point: &Point, from, to, who| Hop { point: point.clone(), from, to, tunnel: false, who };
    let lb = Node::Balancer.name();
    let wire = (pod.node.segment().to_owned(), node.to_owned());
    let beside = pod.node.segment() == Node::Balancer.segment();
    let mut hops = vec![
        hop(outside, client, frontend, Who::Between("client", "router")),
        hop(balancer, client, frontend, Who::Between("router", lb)),
    ];
    if way != "local" {
        let tunnel = way == "geneve";
        let next = if beside { node } else { "router" };
        let between = Who::Between(lb, next);
        hops.push(Hop { tunnel, ..hop(balancer, shown, target, between) });
        if !beside {
            let between = Who::Between("router", node);
            hops.push(Hop { tunnel, ..hop(&wire, shown, target, between) });
        }
    }
    hops.push(hop(inside, shown, target, Who::In(pod)));
    hops.push(hop(inside, target, shown, Who::In(pod)));
    if way == "snat" {
        hops.push(hop(&wire, target, shown, Who::Between(node, lb)));
        hops.push(hop(balancer, frontend, client, Who::Between(lb, "router")));
    } else {
        hops.push(hop(&wire, frontend, client, Who::Between(node, "router")));
    }
    hops.push(hop(outside, frontend, client, Who::Between("router", "client")));
    hops
}

impl Hop {
    fn who(&self) -> String {
        match &self.who {
            Who::Between(from, to) => format!("{from} → {to}"),
            Who::In(pod) => format!("in {}", pod.name()),
        }
    }

    /// The first frame that is as it should be, described; a tunnel on a line of its own.
    fn find(&self, recording: &Recording) -> Option<String> {
        let wanted = Ends { protocol: TCP, from: self.from, to: self.to };
        let found = recording.frames.iter().find(|frame| {
            layers::frame(&frame.bytes).is_ok_and(|parsed| {
                let between = (cluster::owner(parsed.source), cluster::owner(parsed.destination));
                ends(&parsed) == Some(wanted)
                    && (parsed.headers.len() > 1) == self.tunnel
                    && match self.who {
                        Who::Between(from, to) => between == (from, to),
                        Who::In(_) => true,
                    }
            })
        })?;
        let text = describe_with(&found.bytes, Detail { macs: false, ttl: true });
        let mut lines = format!("{}\n", self.who());
        for (index, part) in text.split(" | ").enumerate() {
            lines += &format!("  {}{part}\n", if index == 0 { "" } else { "└ " });
        }
        Some(lines)
    }
}
