//! The sections about the modes: who serves, whom pods see, and which way their answers take.

use std::{collections::BTreeMap, io::Write, net::SocketAddr};

use super::{
    super::{
        DemoError,
        report::{Report, Side, Table, number},
        stage::Stage,
    },
    cluster::{self, Service, TCP, UDP},
    wires::{Captures, Ends, Wires},
};
use crate::lab::{Answer, Node, Outcome, Pod};

/// Connections to each frontend, and as many datagrams.
const REQUESTS: u16 = 60;
/// The first client port of these; each frontend has ports of its own.
const FIRST_PORT: u16 = 5_000;
/// How often a datagram is sent until it is given up.
const TRIES: u32 = 2;

/// What became of one request.
struct Served {
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
    pod: Pod,
    answer: Answer,
}

/// Sends requests to all of a service's frontends, and shows what became of them.
pub(super) fn report<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    service: &Service,
) -> Result<(), DemoError> {
    let Service { name, mode, port, .. } = *service;
    let node_port = service.node_port();
    report.section(&format!("Service {name}, mode {mode}: port {port}, node port {node_port}"))?;
    let captures = Captures::start(&stage.lab)?;
    let (mut served, mut error, mut asked) = (Vec::new(), None, 0);
    for (index, frontend) in (0..).zip(service.frontends()) {
        let first = FIRST_PORT + (port * 4 + index) * REQUESTS;
        let ports = first..=first + REQUESTS - 1;
        let client = stage.client()?;
        for protocol in [TCP, UDP] {
            let outcomes = if protocol == TCP {
                stage.ask_each(frontend, ports.clone())?
            } else {
                client.ask_udp_each(frontend, ports.clone(), TRIES)?
            };
            asked += usize::from(REQUESTS);
            for outcome in outcomes {
                match take(outcome, protocol, frontend) {
                    Ok(one) => served.push(one),
                    Err(text) => drop(error.get_or_insert(text)),
                }
            }
            // What fails, fails for all: the rest would only take time.
            if error.is_some() {
                break;
            }
        }
    }
    let wires = captures.stop()?;
    stage.watch()?;
    table(report, service, &served)?;
    if let Some(error) = error {
        report.text(&format!("The first failure: {error}"))?;
    }
    checks(report, service, &served, asked, &wires)
}

fn take(outcome: Outcome, protocol: u8, frontend: SocketAddr) -> Result<Served, String> {
    let Outcome { port, answer } = outcome;
    let answer = answer.map_err(|error| error.to_string())?;
    let client = SocketAddr::new(cluster::client(frontend.is_ipv6()), port);
    let pod = cluster::pod_named(&answer.backend);
    let pod = pod.ok_or_else(|| format!("{} is no pod", answer.backend))?;
    Ok(Served { protocol, client, frontend, pod, answer })
}

fn table<W: Write>(
    report: &mut Report<W>,
    service: &Service,
    served: &[Served],
) -> Result<(), DemoError> {
    let mut table = Table::new(&[
        ("pod", Side::Left),
        ("protocol", Side::Left),
        ("packets go", Side::Left),
        ("IPv4", Side::Right),
        ("IPv6", Side::Right),
        ("client that the pod saw", Side::Left),
    ]);
    for pod in service.pods {
        for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
            let own = || served.iter().filter(|one| (one.pod, one.protocol) == (*pod, protocol));
            let count = |v6| own().filter(|one| one.frontend.is_ipv6() == v6).count();
            let mut clients: BTreeMap<_, usize> = BTreeMap::new();
            for one in own() {
                *clients.entry(one.answer.client.ip()).or_default() += 1;
            }
            let clients: Vec<String> = clients.keys().map(ToString::to_string).collect();
            let way = match service.way(*pod, protocol) {
                "local" => "to the stack",
                "snat" => "translated",
                _ => "in Geneve",
            };
            let (v4, v6) = (count(false), count(true));
            table.row([&pod.name(), &name, &way, &v4, &v6, &clients.join(" ")]);
        }
    }
    report.table(&table)?;
    Ok(())
}

fn checks<W: Write>(
    report: &mut Report<W>,
    service: &Service,
    served: &[Served],
    asked: usize,
    wires: &Wires,
) -> Result<(), DemoError> {
    let name = service.name;
    let all = served.iter().filter(|one| service.pods.contains(&one.pod)).count();
    report.check(
        all == asked && service.pods.iter().all(|pod| served.iter().any(|one| one.pod == *pod)),
        &format!(
            "{name}: {} of {} connections and datagrams to both LoadBalancer addresses and both \
             node ports were answered, by all {} pods",
            number(all),
            number(asked),
            service.pods.len()
        ),
    )?;
    let (direct, translated): (Vec<&Served>, Vec<&Served>) =
        served.iter().partition(|one| service.way(one.pod, one.protocol) != "snat");
    let on: BTreeMap<Node, _> = Node::ALL.map(|node| (node, wires.on(node))).into();
    let answer = |one: &Served| Ends { protocol: one.protocol, from: one.frontend, to: one.client };
    // Whether its answers were on the wire of a node, and all sent by that node itself.
    let left = |one: &Served, node: Node| {
        on[&node].get(&answer(one)).is_some_and(|by| by.iter().eq([&node.mac()]))
    };
    if !direct.is_empty() {
        let total = direct.len();
        let seen = direct.iter().filter(|one| one.answer.client == one.client).count();
        report.check(
            seen == total,
            &format!(
                "{name}: {seen} of {total} times the pod saw the client's own address and port"
            ),
        )?;
        let right = direct.iter().filter(|one| {
            let others = Node::ALL.into_iter().filter(|node| *node != one.pod.node);
            left(one, one.pod.node)
                && others.clone().all(|node| !on[&node].contains_key(&answer(one)))
        });
        let right = right.count();
        report.check(
            right == total,
            &format!(
                "{name}: {right} of {total} answers came from the frontend, and left the pod's own \
                 node for the router; no other node saw them"
            ),
        )?;
    }
    if !translated.is_empty() {
        let total = translated.len();
        let ours =
            |one: &&&Served| one.answer.client.ip() == cluster::balancer(one.frontend.is_ipv6());
        let seen = translated.iter().filter(ours).count();
        let through = translated.iter().filter(|one| left(one, Node::Balancer)).count();
        report.check(
            seen == total && through == total,
            &format!(
                "{name}: {seen} of {total} translated flows came from the balancer for the pod, and \
                 {through} of their answers left it for the client, from the frontend"
            ),
        )?;
    }
    let sums = wires.sums();
    if let Some(fault) = sums.faults.first() {
        report.text(&format!("The first fault: {fault}"))?;
    }
    report.check(
        sums.faults.is_empty() && sums.lost == 0 && sums.right > 0,
        &format!(
            "{name}: {} checksums in {} frames on the wires are right, {} are wrong",
            number(sums.right),
            number(sums.frames),
            sums.faults.len()
        ),
    )?;
    Ok(())
}
