//! The scenario `pods`: a NodePort and a LoadBalancer address, with pods on other nodes and on the
//! balancing one, in every mode.

mod cluster;
mod corners;
mod modes;
mod packets;
mod wires;

use std::{io::Write, net::SocketAddr, time::Instant};

use self::cluster::{INSTANCES, PICTURE, POD_PORT, SERVICES, pods};
use super::{
    DemoError, Options,
    report::{Report, Side, Table},
    scenario::{self, Block},
    stage::Stage,
};
use crate::lab::{Client, Node, Pod};

/// Runs it; says whether every claim was observed.
pub(super) fn run<W: Write>(report: &mut Report<W>, options: &Options) -> Result<bool, DemoError> {
    let started = Instant::now();
    let title = "pods behind node ports and LoadBalancer addresses";
    let (lab, places) = scenario::begin(report, options, title)?;
    picture(report)?;
    let mut stage = set(Stage::build(lab, places, &cluster::spec().items())?)?;
    running(report, &stage, started.elapsed().as_secs_f64())?;
    for service in &SERVICES {
        modes::report(report, &mut stage, service)?;
    }
    if report.has_failed() {
        report.gap()?;
        report.text("The rest is left out, since it needs what has failed.")?;
    } else {
        packets::report(report, &stage)?;
        corners::report(report, &stage)?;
    }
    stage.watch()?;
    scenario::end(report, stage, options, |stage| commands(stage, &options.prefix))?;
    Ok(report.verdict(started.elapsed())?)
}

fn picture<W: Write>(report: &mut Report<W>) -> Result<(), DemoError> {
    report.lines(PICTURE)?;
    report.gap()?;
    report.text(
        "Each node and each pod is a network namespace of its own. The router sends what is for \
         203.0.113.0/24 and 2001:db8:80::/64, the LoadBalancer addresses, to balancer. Nobody in \
         this network translates addresses but xdp-lb.",
    )?;
    Ok(())
}

/// Starts daemons and servers; all of it is ready on return.
fn set(mut stage: Stage) -> Result<Stage, DemoError> {
    for node in INSTANCES {
        stage.configure(node.name(), &cluster::config(node))?;
        stage.start_daemon(node.name())?;
    }
    for pod in pods() {
        stage.start_pod(&pod.name(), &pod.at(POD_PORT))?;
    }
    for node in INSTANCES {
        stage.wait_until_attached(node.name())?;
    }
    for pod in pods() {
        for socket in pod.at(POD_PORT) {
            stage.wait_for(&format!("the server of {} on {socket}", pod.name()), |stage| {
                // From its own node: nothing of it passes a balancer.
                let client = Client::new(stage.lab.ns(pod.node.name()).ok()?);
                client.ask(socket, None).ok()
            })?;
        }
    }
    Ok(stage)
}

/// The section about the daemons.
fn running<W: Write>(report: &mut Report<W>, stage: &Stage, seconds: f64) -> Result<(), DemoError> {
    report.section("What runs")?;
    let mut table = Table::new(&[
        ("service", Side::Left),
        ("mode", Side::Left),
        ("port", Side::Right),
        ("node port", Side::Right),
        ("pods", Side::Left),
    ]);
    for service in &SERVICES {
        let pods: Vec<String> = service.pods.iter().map(|pod| pod.name()).collect();
        let pods = pods.join(" ");
        table.row([&service.name, &service.mode, &service.port, &service.node_port(), &pods]);
    }
    report.table(&table)?;
    report.gap()?;
    let stats = stage.stats(Node::Balancer.name())?;
    let served = |frontend: SocketAddr| {
        let names = ["TCP", "UDP"].map(|protocol| format!("{frontend}/{protocol}"));
        names.into_iter().filter(|name| stats.frontends.iter().any(|one| one.frontend == *name))
    };
    let wanted = 2 * SERVICES.iter().map(|one| one.frontends().len()).sum::<usize>();
    let frontends = SERVICES.iter().flat_map(|one| one.frontends());
    let found: usize = frontends.map(|one| served(one).count()).sum();
    let mut native = 0;
    for node in INSTANCES {
        let devices = stage.stats(node.name())?.devices;
        native += devices.iter().filter(|device| device.xdp == "native").count();
    }
    report.check(
        found == wanted && native == INSTANCES.len(),
        &format!(
            "network, {} daemons and servers in {} pods were up after {seconds:.1} s; {native} of {} \
             devices run native XDP, {found} of {wanted} frontends are served",
            INSTANCES.len(),
            pods().len(),
            INSTANCES.len()
        ),
    )?;
    Ok(())
}

/// What to do in a lab that stays up.
fn commands(stage: &Stage, prefix: &str) -> Result<Vec<Block>, DemoError> {
    let inside = |node: &str| format!("ip netns exec {prefix}-{node}");
    let asks = SERVICES.iter().map(|service| {
        let [v4, v6, ..] = service.frontends();
        format!("{} curl -s 'http://{v4}/' 'http://{v6}/'", inside("client"))
    });
    let pod = Pod { node: Node::Worker, number: 1 };
    Ok(vec![
        ("Ask each service", asks.collect()),
        (
            "Watch the balancer's wire, and a worker's, at the switch; and a pod",
            vec![
                format!("{} tcpdump -nei balancer", inside("near")),
                format!("{} tcpdump -nei worker", inside("near")),
                format!("{} tcpdump -ni eth0", inside(&pod.name())),
            ],
        ),
        scenario::counters(stage, Node::Balancer.name())?,
    ])
}
