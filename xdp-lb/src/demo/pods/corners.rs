//! What else has to work: large and small packets, clients inside the cluster, refusals.

use std::{
    io::{ErrorKind, Write},
    net::SocketAddr,
};

use super::{
    super::{
        DemoError,
        report::{Report, number},
        stage::Stage,
    },
    cluster::{self, SERVICES},
};
use crate::lab::{
    Client, ClientError, Node, Pod, Probe,
    forge::{Datagram, Wire, ethernet, tunnel},
    trace,
};

/// Bytes of each transfer, up and down.
const TRANSFER: u64 = 4_000_000;
/// Bytes of datagrams that travel in fragments, there and back.
const LARGE: [u16; 2] = [8_192, 60_000];
/// A port that no service has.
const UNKNOWN: u16 = 4_711;

/// The section.
pub(super) fn report<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    report.section("What else has to work")?;
    transfers(report, stage)?;
    fragments(report, stage)?;
    one_port(report, stage)?;
    inside(report, stage)?;
    way(report, stage)?;
    unknown_port(report, stage)?;
    forged(report, stage)
}

/// The frontends on LoadBalancer addresses.
fn frontends() -> impl Iterator<Item = SocketAddr> {
    SERVICES.iter().flat_map(|service| service.load_balancer())
}

fn transfers<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let client = stage.client()?;
    let (mut moved, mut failed) = (0, None);
    for frontend in frontends() {
        for transfer in [client.upload(frontend, TRANSFER), client.download(frontend, TRANSFER)] {
            match transfer {
                Ok(transfer) => moved += transfer.bytes,
                Err(error) => drop(failed.get_or_insert(error.to_string())),
            }
        }
    }
    observed(
        report,
        failed,
        &format!(
            "{} bytes went up and came down through all LoadBalancer ports, each byte right",
            number(moved)
        ),
    )
}

fn fragments<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let client = stage.client()?;
    let (mut done, mut failed) = (0, None);
    for frontend in frontends() {
        for length in LARGE {
            // The first may only teach the client that the way through the tunnel is narrower.
            match client.exchange_udp(frontend, None, [length; 2], 4) {
                Ok(_) => done += 1,
                Err(error) => drop(failed.get_or_insert(error.to_string())),
            }
        }
    }
    let [short, long] = LARGE;
    observed(
        report,
        failed,
        &format!(
            "{done} datagrams of {} and {} bytes were answered by as long ones, in fragments",
            number(short),
            number(long)
        ),
    )
}

/// Two frontends on one pod from the same port of the client.
fn one_port<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let client = stage.client()?;
    let pod = Pod { node: Node::Worker, number: 1 };
    let [web, _, _, dns] = SERVICES.map(|service| service.load_balancer()[0]);
    let mut seen = Vec::new();
    for port in 45_000..45_200 {
        let mut held = Vec::new();
        for frontend in [web, dns] {
            held.push(client.hold(frontend, Some(port))?);
        }
        let answers = held.iter_mut().map(|one| one.ask()).collect::<Result<Vec<_>, _>>()?;
        if answers.iter().all(|answer| answer.backend == pod.name()) {
            seen = answers.iter().map(|answer| answer.client.port()).collect();
            seen.push(port);
            break;
        }
    }
    let good = matches!(seen[..], [first, second, port] if first == port && second != port);
    report.check(
        good,
        &format!(
            "two connections from one port of the client, to web and to dns, both served by {}, \
             which sees ports {}",
            pod.name(),
            seen.iter().take(2).map(ToString::to_string).collect::<Vec<_>>().join(" and ")
        ),
    )?;
    Ok(())
}

/// Pods that use the services themselves.
fn inside<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let [web, ..] = SERVICES;
    let (mut asked, mut answered, mut itself, mut failed) = (0, 0, 0, None);
    for pod in cluster::pods() {
        let client = Client::new(stage.lab.ns(&pod.name())?);
        for frontend in web.load_balancer() {
            asked += 20;
            for outcome in client.ask_each(frontend, 5_000..=5_019)? {
                match outcome.answer {
                    Ok(answer) => {
                        answered += 1;
                        itself += usize::from(answer.backend == pod.name());
                    }
                    Err(error) => drop(failed.get_or_insert(error.to_string())),
                }
            }
        }
    }
    if let Some(failed) = failed {
        report.text(&format!("The first failure: {failed}"))?;
    }
    report.check(
        answered == asked && itself > 0,
        &format!(
            "all {} pods reach web by its LoadBalancer addresses, {answered} of {asked} times, \
             {itself} times the very pod that asked",
            cluster::pods().len()
        ),
    )?;
    Ok(())
}

/// A traceroute through a frontend.
fn way<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let [web, ..] = SERVICES;
    let mut good = 0;
    let mut texts = Vec::new();
    for frontend in web.load_balancer() {
        let v6 = frontend.is_ipv6();
        let hops = trace(stage.lab.ns("client")?, "eth0", Probe::Udp, (46_000, frontend), 8)?;
        let from: Vec<_> =
            hops.iter().map(|hop| hop.answer.as_ref().map(|answer| answer.from.ip())).collect();
        let named = |ip: &Option<std::net::IpAddr>| ip.map_or("*".to_owned(), |ip| ip.to_string());
        texts.push(from.iter().map(named).collect::<Vec<_>>().join(" "));
        let [_, nodes @ .., last] = &from[..] else { continue };
        let balancer = nodes.first().copied().flatten() == Some(cluster::balancer(v6));
        good += usize::from(balancer && *last == Some(frontend.ip()) && !from.contains(&None));
    }
    report.check(
        good == 2,
        &format!("traceroute names router, nodes and frontend: {}", texts.join("; ")),
    )?;
    Ok(())
}

fn unknown_port<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let [web, ..] = SERVICES;
    let client = stage.client()?;
    let mut refused = 0;
    for frontend in web.load_balancer() {
        let to = SocketAddr::new(frontend.ip(), UNKNOWN);
        if let Err(ClientError::Connect { source, .. }) = client.ask(to, None)
            && source.kind() == ErrorKind::ConnectionRefused
        {
            refused += 1;
        }
    }
    report.check(
        refused == 2,
        &format!("a port that no service has is refused at once, {refused} of 2 times"),
    )?;
    Ok(())
}

/// A tunnel packet from somebody who is no peer.
fn forged<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    const REASON: &str = "tunnel_unknown_peer";
    let [web, ..] = SERVICES;
    let [frontend, _] = web.load_balancer();
    let pod = Pod { node: Node::Worker, number: 1 };
    let node = pod.node.name();
    let counted = || -> Result<u64, DemoError> {
        let reasons = stage.stats(node)?.reasons;
        Ok(reasons.iter().find(|one| one.reason == REASON).map_or(0, |one| one.packets))
    };
    let before = counted()?;
    let client = SocketAddr::new(cluster::client(false), 47_000);
    let inner = Datagram::new(client, SocketAddr::new(pod.v4(), cluster::POD_PORT), b"forged");
    let packet = tunnel(client, pod.node.v4(), frontend, &inner.packet());
    let wire = Wire::open(stage.lab.ns("client")?, "eth0")?;
    wire.send(&ethernet([2, 0, 0, 0, 2, 0xfe], [2, 0, 0, 0, 2, 2], &packet))?;
    // What follows on the same way arrives behind it.
    stage.client()?.ask(pod.node.at(0).map(|one| SocketAddr::new(one.ip(), 9))[0], None).err();
    let after = counted()?;
    report.check(
        after == before + 1,
        &format!(
            "a tunnel packet that the client forged is dropped by {node}, which counted {} as {REASON}",
            after - before
        ),
    )?;
    Ok(())
}

fn observed<W: Write>(
    report: &mut Report<W>,
    failed: Option<String>,
    claim: &str,
) -> Result<(), DemoError> {
    if let Some(failed) = &failed {
        report.text(&format!("The first failure: {failed}"))?;
    }
    Ok(report.check(failed.is_none(), claim)?)
}
