//! The scenario `kubernetes`: a real control plane whose nodes run the daemon, and an example shop
//! that clients outside reach while it changes.

mod cluster;
mod inside;
mod life;

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    time::Instant,
};

use self::cluster::Cluster;
use super::{
    DemoError, Options,
    report::{Report, Side, Table, number},
    scenario::{self, Block},
    stage::{Stage, this_program},
};
use crate::lab::{
    Node,
    kubernetes::{Assets, DEPLOYMENTS, Kubernetes, Life, NODES, nodes},
    pods::{CLIENTS_4, CLIENTS_6},
};

/// Requests to each frontend in the first section.
const REQUESTS: u16 = 60;
/// The first client port of these; each frontend has ports of its own.
const FIRST_PORT: u16 = 5_000;

/// The network, for people.
const PICTURE: &str = "\
client ── router ─┬─ balancer  10.0.0.1  2001:db8:10::1 ── pods 10.244.1.0/24
                  ├─ worker    10.0.0.2  2001:db8:10::2 ── pods 10.244.2.0/24
                  ├─ worker2   10.0.1.3  2001:db8:11::3 ── pods 10.244.3.0/24
                  └─ plain     10.0.0.4  etcd, kube-apiserver on port 6443,
                                         kube-controller-manager";

/// Runs it; says whether every claim was observed.
pub(super) fn run<W: Write>(report: &mut Report<W>, options: &Options) -> Result<bool, DemoError> {
    let started = Instant::now();
    let assets = Assets::find()?;
    let (lab, places) = scenario::begin(report, options, "a Kubernetes cluster and its shop")?;
    picture(report)?;
    let mut stage = Stage::build(lab, places, &nodes().items())?;
    let life = if options.keep { Life::Free } else { Life::Bound };
    let directory = stage.places.directory().join("kubernetes");
    let program = this_program()?;
    let program = Path::new(program.get_program());
    let cgroups = inside::cgroups(report, &mut stage)?;
    let cgroups = cgroups.as_deref();
    let kubernetes = Kubernetes::start(&stage.lab, program, &directory, &assets, life, cgroups)?;
    let mut cluster = Cluster::new(kubernetes);
    for node in NODES {
        stage.configure(node.name(), &cluster.config(node, cgroups))?;
        stage.start_daemon(node.name())?;
    }
    for node in NODES {
        stage.wait_until_attached(node.name())?;
    }
    running(report, &mut cluster, started)?;
    if cgroups.is_some() {
        inside::strict(report, &stage)?;
    }
    let frontends = shop(report, &mut stage, &mut cluster)?;
    if cgroups.is_some() {
        inside::services(report, &mut stage, &cluster)?;
    }
    outside(report, &mut stage, &cluster, &frontends)?;
    if report.has_failed() {
        report.gap()?;
        report.text("The rest is left out, since it needs what has failed.")?;
    } else {
        life::rollout(report, &mut stage, &mut cluster, &frontends)?;
        life::outage(report, &mut stage, &mut cluster, &frontends)?;
    }
    list(report, &stage, cgroups.is_some())?;
    stage.watch()?;
    cluster.watch()?;
    scenario::end(report, stage, options, |stage| commands(stage, &cluster, &assets, &frontends))?;
    if options.keep {
        cluster.keep();
    }
    Ok(report.verdict(started.elapsed())?)
}

fn picture<W: Write>(report: &mut Report<W>) -> Result<(), DemoError> {
    report.lines(PICTURE)?;
    report.gap()?;
    report.text(
        "Each node and each pod is a network namespace of its own. The router sends what is for \
         203.0.113.0/24 and 2001:db8:80::/64, the LoadBalancer addresses, to balancer. The three \
         nodes are a Kubernetes cluster of this demo's own: real objects and controllers; a stand-in \
         for the kubelets gives each Pod a namespace with a real HTTP server in it. There is no \
         kube-proxy.",
    )?;
    Ok(())
}

/// The section about the control plane and the daemons.
fn running<W: Write>(
    report: &mut Report<W>,
    cluster: &mut Cluster,
    started: Instant,
) -> Result<(), DemoError> {
    report.section("What runs")?;
    let version = cluster.version()?;
    let [etcd, api, controllers] = cluster.memory().map(|bytes| number(bytes >> 20));
    report.check(
        true,
        &format!(
            "Kubernetes {version} and {} daemons were up after {:.1} s (etcd {etcd} MB, API server \
             {api} MB, controllers {controllers} MB)",
            NODES.len(),
            started.elapsed().as_secs_f64()
        ),
    )?;
    Ok(())
}

/// The section about the shop: applies it, and returns where clients find it.
fn shop<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    cluster: &mut Cluster,
) -> Result<Vec<SocketAddr>, DemoError> {
    report.section("An example shop")?;
    report.text("$ kubectl apply -f xdp-lb/kubernetes/shop.yaml")?;
    let began = Instant::now();
    cluster.open_shop()?;
    let took = began.elapsed().as_secs_f64();
    let mut table =
        Table::new(&[("deployment", Side::Left), ("pods", Side::Right), ("nodes", Side::Left)]);
    let mut ready = 0;
    for name in DEPLOYMENTS {
        let pods = cluster.pods(name)?;
        ready += pods.len();
        let mut nodes: Vec<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        table.row([&name, &pods.len(), &nodes.join(" ")]);
    }
    report.table(&table)?;
    report.gap()?;
    report.check(
        ready >= DEPLOYMENTS.len(),
        &format!("{} Deployments and {ready} Pods were ready after {took:.1} s", DEPLOYMENTS.len()),
    )?;
    let frontends = cluster.frontends()?;
    let text: Vec<String> = frontends.iter().map(ToString::to_string).collect();
    report.text(&format!("The service frontend-external is at {}.", text.join(", ")))?;
    let client = stage.client()?;
    for frontend in &frontends {
        stage
            .wait_for(&format!("{frontend} to be served"), |_| client.ask(*frontend, None).ok())?;
    }
    Ok(frontends)
}

/// The section about requests from outside.
fn outside<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    cluster: &Cluster,
    frontends: &[SocketAddr],
) -> Result<(), DemoError> {
    report.section("From outside: LoadBalancer addresses and node ports")?;
    let pods = cluster.pods("frontend")?;
    let (mut asked, mut served, mut seen, mut error) = (0, Vec::new(), 0, None);
    for (index, frontend) in (0..).zip(frontends) {
        let first = FIRST_PORT + index * REQUESTS;
        asked += usize::from(REQUESTS);
        let client = if frontend.is_ipv6() { CLIENTS_6[0] } else { CLIENTS_4[0] };
        for outcome in stage.ask_each(*frontend, first..=first + REQUESTS - 1)? {
            match outcome.answer {
                Ok(answer) => {
                    seen += usize::from(answer.client == SocketAddr::new(client, outcome.port));
                    served.push((*frontend, answer.backend));
                }
                Err(cause) => drop(error.get_or_insert(cause.to_string())),
            }
        }
    }
    let mut table = Table::new(&[
        ("pod", Side::Left),
        ("node", Side::Left),
        ("LoadBalancer", Side::Right),
        ("node ports", Side::Right),
    ]);
    for pod in &pods {
        let count = |balanced: bool| {
            let own = served.iter().filter(|(_, name)| *name == pod.name);
            own.filter(|(to, _)| frontends[..2].contains(to) == balanced).count()
        };
        table.row([&pod.name, &pod.node, &count(true), &count(false)]);
    }
    report.table(&table)?;
    if let Some(error) = error {
        report.text(&format!("The first failure: {error}"))?;
    }
    let all = pods.iter().all(|pod| served.iter().any(|(_, name)| *name == pod.name));
    report.check(
        served.len() == asked && all,
        &format!(
            "{} of {} requests to {} frontends were answered, by all {} pods",
            number(served.len()),
            number(asked),
            frontends.len(),
            pods.len()
        ),
    )?;
    report.check(
        seen == asked,
        &format!("{} times the pod saw the client's own address and port", number(seen)),
    )?;
    stage.watch()
}

/// The section with what the balancing node serves.
fn list<W: Write>(report: &mut Report<W>, stage: &Stage, sockets: bool) -> Result<(), DemoError> {
    report.section("xdp-lb service list, on balancer")?;
    let output = ask_daemon(stage, Node::Balancer, &["service", "list"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    report.lines(&text)?;
    let error = String::from_utf8_lossy(&output.stderr);
    report.lines(&error)?;
    let left = text.contains("left to kube-proxy");
    let kinds = ["ClusterIP", "LoadBalancer", "NodePort"];
    let all = kinds.iter().all(|kind| text.contains(kind)) && !text.contains("refused");
    report.check(
        output.status.success() && all && left != sockets,
        if sockets {
            "it lists ClusterIPs, LoadBalancer addresses and node ports, and nothing is left to \
             kube-proxy"
        } else {
            "it lists what is served, and what is left to kube-proxy"
        },
    )?;
    Ok(())
}

/// What a node's daemon answers.
fn ask_daemon(stage: &Stage, node: Node, words: &[&str]) -> Result<Output, DemoError> {
    let mut command = this_program()?;
    command.args(words).arg("--socket").arg(stage.places.socket(node.name()));
    Ok(command.stdin(Stdio::null()).output()?)
}

/// What to do in a lab that stays up.
fn commands(
    stage: &Stage,
    cluster: &Cluster,
    assets: &Assets,
    frontends: &[SocketAddr],
) -> Result<Vec<Block>, DemoError> {
    let inside = |node: &str| format!("ip netns exec {}-{node}", stage.lab.prefix());
    let kubectl = format!(
        "{} {} --kubeconfig {} -n shop",
        inside(Node::Plain.name()),
        assets.kubectl().display(),
        cluster.kubeconfig().display()
    );
    let asks: Vec<String> = frontends.iter().map(|one| format!("'http://{one}/'")).collect();
    let socket = stage.places.socket(Node::Balancer.name());
    let program = this_program()?.get_program().to_string_lossy().into_owned();
    let mut blocks = vec![
        ("Ask the shop", vec![format!("{} curl -s {}", inside("client"), asks.join(" "))]),
        (
            "Change it",
            vec![
                format!("{kubectl} get pods -o wide"),
                format!("{kubectl} scale deployment/frontend --replicas=5"),
                format!("{kubectl} rollout restart deployment/frontend"),
            ],
        ),
        (
            "See what the balancing node serves",
            vec![format!("{program} service list -o wide --socket {}", socket.display())],
        ),
        scenario::counters(stage, Node::Balancer.name())?,
    ];
    blocks.extend(inside::command(stage, cluster)?);
    Ok(blocks)
}
