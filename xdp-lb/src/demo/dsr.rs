//! The scenario `dsr`: Maglev and direct server return.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    DemoError, Options, bypass,
    network::{
        self, BALANCER, BALANCER_PORT, CLIENT, Change, FAR, LB, NEAR, PORT, SERVICES, SWITCH,
        Service,
    },
    oracle::Oracle,
    report::{Report, Side, Table, number, share},
    scenario::{self, Block},
    stage::{Cast, Stage},
    takeout,
    wire::{self, Captures, Example},
};
use crate::{lab::Outcome, pins::Pins};

/// Connections to each frontend.
const CONNECTIONS: u16 = 300;
/// The first client port of these.
const FIRST_PORT: u16 = 5_000;

/// Runs it; says whether every claim was observed.
pub(super) fn run<W: Write>(report: &mut Report<W>, options: &Options) -> Result<bool, DemoError> {
    let started = Instant::now();
    let title = "real connections through a real balancer, in network namespaces";
    let (lab, places) = scenario::begin(report, options, title)?;
    picture(report)?;
    let cast = Cast {
        balancer: network::balancer(Change::None),
        unwrapping: FAR.to_vec(),
        servers: network::servers(),
    };
    let mut stage = Stage::set(lab, places, &cast)?;
    let ready = started.elapsed();

    running(report, &stage, ready.as_secs_f64())?;
    let captures = Captures::start(&stage.lab)?;
    let oracle = Oracle::read(&Pins::new(stage.places.pins(BALANCER)))?;
    let mut examples = Vec::new();
    for service in &SERVICES {
        examples.extend(spread(report, &mut stage, &oracle, service)?);
    }
    if report.has_failed() {
        report.gap()?;
        report.text("The rest is left out, since it needs what has failed.")?;
    } else {
        let downloads = bypass::download(&stage)?;
        let wires = wire::stop(&mut stage, captures)?;
        bypass::report(report, &stage, &wires, downloads)?;
        wire::report(report, &wires, &examples)?;
        drop(wires);
        takeout::report(report, &mut stage)?;
    }
    stage.watch()?;
    scenario::end(report, stage, options, |stage| commands(stage, &options.prefix))?;
    Ok(report.verdict(started.elapsed())?)
}

fn picture<W: Write>(report: &mut Report<W>) -> Result<(), DemoError> {
    report.lines(&network::picture())?;
    report.gap()?;
    report.text(
        "Each is a network namespace of its own. The router sends what is for 203.0.113.0/24 and \
         2001:db8:f::/64, the services' addresses, to lb; each backend has them on its loopback \
         device.",
    )?;
    Ok(())
}

/// The section about the daemons.
fn running<W: Write>(report: &mut Report<W>, stage: &Stage, seconds: f64) -> Result<(), DemoError> {
    report.section("What runs")?;
    let mut table = Table::new(&[
        ("node", Side::Left),
        ("device", Side::Left),
        ("XDP", Side::Left),
        ("part", Side::Left),
    ]);
    let mut native = 0;
    let nodes = [LB].into_iter().chain(FAR);
    let total = nodes.clone().count();
    for host in nodes {
        let stats = stage.stats(host.node)?;
        let part = if host == LB { "balances" } else { "unwraps what lb sends to it" };
        for device in &stats.devices {
            native += usize::from(device.xdp == "native");
            table.row([&host.node, &device.device, &device.xdp, &part]);
        }
    }
    report.table(&table)?;
    report.gap()?;
    let mut table = Table::new(&[
        ("service", Side::Left),
        ("mode", Side::Left),
        ("frontends", Side::Left),
        ("", Side::Left),
        ("Maglev slots", Side::Right),
        ("backends", Side::Right),
    ]);
    let stats = stage.stats(BALANCER)?;
    let mut found = 0;
    for service in &SERVICES {
        let [v4, v6] = service.frontends();
        let size = |one: SocketAddr| {
            let name = format!("{one}/TCP");
            stats.frontends.iter().find(|one| one.frontend == name).map(|one| one.table_size)
        };
        found += usize::from(size(v4).is_some()) + usize::from(size(v6).is_some());
        let slots = size(v4).map(number).unwrap_or_default();
        table.row([&service.name, &service.mode, &v4, &v6, &slots, &service.hosts.len()]);
    }
    report.table(&table)?;
    report.gap()?;
    report.check(
        native == total && found == 2 * SERVICES.len(),
        &format!(
            "network, {total} daemons and {} HTTP servers were up after {seconds:.1} s; \
             {native} of {total} devices run native XDP, {found} frontends are served",
            2 * FAR.len()
        ),
    )?;
    Ok(())
}

/// Makes the connections to one service; shows who served them.
fn spread<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    oracle: &Oracle,
    service: &Service,
) -> Result<Vec<Example>, DemoError> {
    let [v4, v6] = service.frontends();
    report.section(&format!("Service {}, mode {}: {v4} and {v6}", service.name, service.mode))?;
    let ports = FIRST_PORT..=FIRST_PORT + CONNECTIONS - 1;
    let mut tallies = Vec::new();
    let mut examples = Vec::new();
    for (frontend, address) in service.frontends().into_iter().zip(CLIENT) {
        let outcomes = stage.ask_each(frontend, ports.clone())?;
        let mut tally = Tally::default();
        for outcome in &outcomes {
            let from = SocketAddr::new(address, outcome.port);
            if let Some(host) = tally.add(outcome, service, oracle, from, frontend)
                && examples.len() < tallies.len() + 1
            {
                examples.push(Example { service: *service, client: from, frontend, host });
            }
        }
        tallies.push(tally);
    }
    let stats = stage.stats(BALANCER)?;
    let frontend = stats.frontends.iter().find(|one| one.frontend == format!("{v4}/TCP"));
    let mut table = Table::new(&[
        ("backend", Side::Left),
        ("address", Side::Left),
        ("weight", Side::Right),
        ("slots", Side::Right),
        ("Maglev", Side::Right),
        ("IPv4", Side::Right),
        ("share", Side::Right),
        ("IPv6", Side::Right),
        ("share", Side::Right),
    ]);
    let total = usize::from(CONNECTIONS);
    for (host, weight) in service.hosts.iter().zip(service.weights) {
        let address = service.address(host);
        let name = SocketAddr::new(address, PORT).to_string();
        let shares = frontend.map(|one| one.backends.as_slice()).unwrap_or_default();
        let slots = shares.iter().find(|one| one.backend == name).map_or(0, |one| one.slots);
        let maglev = share(slots, frontend.map_or(0, |one| one.table_size));
        let served: Vec<usize> = tallies.iter().map(|one| one.served(host.node)).collect();
        let [four, six] = [0, 1].map(|index| served.get(index).copied().unwrap_or_default());
        let shares = [four, six].map(|served| share(served, total));
        let [four_share, six_share] = &shares;
        table.row([
            &host.node, &address, &weight, &slots, &maglev, &four, four_share, &six, six_share,
        ]);
    }
    report.table(&table)?;
    let sum = |figure: fn(&Tally) -> usize| tallies.iter().map(figure).sum::<usize>();
    let all = 2 * total;
    let (answered, as_named, seen) =
        (sum(|one| one.answered), sum(|one| one.as_named), sum(|one| one.seen));
    stage.watch()?;
    let mut clients: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (address, times) in tallies.iter().flat_map(|tally| &tally.clients) {
        *clients.entry(*address).or_default() += times;
    }
    let clients: Vec<String> =
        clients.iter().map(|(address, times)| format!("{address} {times} times")).collect();
    report.text(&format!("Backends saw these clients: {}", clients.join(", ")))?;
    let name = service.name;
    if let Some(error) = tallies.iter().find_map(|one| one.error.as_ref()) {
        report.text(&format!("The first failure: {error}"))?;
    }
    report.check(
        answered == all,
        &format!(
            "{name}: {answered} of {all} HTTP requests, each on a connection of its own, answered"
        ),
    )?;
    report.check(
        as_named == all,
        &format!("{name}: {as_named} of {all} went where the Maglev table sends their hash"),
    )?;
    report.check(
        seen == all,
        &format!("{name}: {seen} of {all} times that was the client's own address, and its port"),
    )?;
    Ok(examples)
}

/// What became of the connections to one frontend.
#[derive(Debug, Default)]
struct Tally {
    by: BTreeMap<String, usize>,
    /// Client addresses that the backends saw, and how many times
    clients: BTreeMap<IpAddr, usize>,
    answered: usize,
    /// Served by the backend that the tables name
    as_named: usize,
    /// Where the backend saw the client's address and port
    seen: usize,
    error: Option<String>,
}

impl Tally {
    fn served(&self, node: &str) -> usize {
        self.by.get(node).copied().unwrap_or_default()
    }

    /// Counts an outcome; the backend that served, if it is one of the service's.
    fn add(
        &mut self,
        outcome: &Outcome,
        service: &Service,
        oracle: &Oracle,
        client: SocketAddr,
        frontend: SocketAddr,
    ) -> Option<network::Host> {
        let answer = match &outcome.answer {
            Ok(answer) => answer,
            Err(error) => {
                self.error.get_or_insert_with(|| error.to_string());
                return None;
            }
        };
        self.answered += 1;
        *self.by.entry(answer.backend.clone()).or_default() += 1;
        *self.clients.entry(answer.client.ip()).or_default() += 1;
        self.seen += usize::from(answer.client == client);
        let host = *service.hosts.iter().find(|host| host.node == answer.backend)?;
        let named = oracle.backend(client, frontend).map(|identity| identity.address);
        self.as_named += usize::from(named == Some(service.address(&host)));
        Some(host)
    }
}

/// What to do in a lab that stays up.
fn commands(stage: &Stage, prefix: &str) -> Result<Vec<Block>, DemoError> {
    let [web, api, api6] = SERVICES.map(|service| service.frontends());
    let [b1, ..] = NEAR;
    let [t1, ..] = FAR;
    let inside = |node: &str| format!("ip netns exec {prefix}-{node}");
    let curl = |[v4, v6]: [SocketAddr; 2]| {
        let inside = inside("client");
        format!("{inside} curl -s 'http://{}/' 'http://[{}]/'", v4.ip(), v6.ip())
    };
    let router = inside("router");
    let (near, far) = (network::near_device(), network::far_device());
    let tunnels = "'ip proto 4 or ip proto 41 or ip6 proto 4 or ip6 proto 41'";
    Ok(vec![
        ("Ask each service", vec![curl(web), curl(api), curl(api6)]),
        (
            "Watch the router, and the balancer's wire: at the switch, since what XDP sends back \
             passes no capture on its own device",
            vec![
                format!("{router} tcpdump -nei {near} tcp"),
                format!("{} tcpdump -nei {BALANCER_PORT}", inside(SWITCH)),
            ],
        ),
        (
            "Watch backends: packets in tunnels on the router, unwrapped on t1",
            vec![
                format!("{} tcpdump -ni eth0 port {PORT}", inside(b1.node)),
                format!("{router} tcpdump -ni {far} {tunnels}"),
                format!("{} tcpdump -ni eth0 port {PORT}", inside(t1.node)),
            ],
        ),
        scenario::counters(stage, BALANCER)?,
        scenario::changes(stage, BALANCER),
    ])
}
