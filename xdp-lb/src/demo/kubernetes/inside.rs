//! The sections about a cluster without kube-proxy: a Pod finds the other Services by DNS, and calls them
//! by their ClusterIPs.

use std::{collections::BTreeSet, io::Write, net::IpAddr, path::PathBuf, process::Stdio};

use serde_json::Value;

use super::{
    super::{
        DemoError,
        report::{Report, Side, Table, number},
        scenario::Block,
        stage::{Stage, this_program},
    },
    ask_daemon,
    cluster::{Cluster, Pod, Service},
};
use crate::{
    dataplane::try_hooks,
    error::chain,
    lab::{
        LabError,
        kubernetes::{DNS_SERVICE, NODES, Used, WAYS},
    },
    net::orphans,
};

/// The nodes' cgroups, where this machine can serve their sockets; otherwise says why not.
pub(super) fn cgroups<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
) -> Result<Option<PathBuf>, DemoError> {
    let wrong = match stage.make_cgroups(&NODES.map(|node| node.name())) {
        Ok(cgroups) => {
            let tried = try_hooks(Some(&cgroups.join(NODES[0].name())));
            let tried = tried.map_err(|error| chain(&error));
            match tried.and_then(|_| orphans::is_possible().map_err(|error| error.to_string())) {
                Ok(()) => return Ok(Some(cgroups)),
                Err(wrong) => wrong,
            }
        }
        Err(error) => chain(&error),
    };
    stage.forget_cgroups()?;
    report.gap()?;
    report.text(&format!(
        "This machine cannot lead sockets to Services: {wrong}. So ClusterIPs are left to kube-proxy, and \
         what Pods do inside the cluster is not shown."
    ))?;
    Ok(None)
}

/// Checks that the daemons have taken all of kube-proxy's work.
pub(super) fn strict<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), DemoError> {
    let mut strict = 0;
    for node in NODES {
        let output = ask_daemon(stage, node, &["status", "-o", "json"])?;
        let view: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let view = &view["status"]["kubeProxyReplacement"];
        let all = view["services"]
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["enabled"] == true));
        let served = view["status"] == "Strict" && view["socketLb"]["enabled"] == true;
        strict += usize::from(all && served);
    }
    report.check(
        strict == NODES.len(),
        &format!(
            "{strict} nodes serve ClusterIPs, node ports, LoadBalancer addresses and external IPs \
             (kubeProxyReplacement: strict)"
        ),
    )?;
    Ok(())
}

/// The section about what a Pod of the shop's front does inside the cluster.
pub(super) fn services<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    cluster: &Cluster,
) -> Result<(), DemoError> {
    report.section("From inside: a Pod of frontend, by DNS and ClusterIPs")?;
    report.text("$ kubectl apply -f xdp-lb/kubernetes/dns.yaml")?;
    cluster.start_dns()?;
    let services = cluster.services()?;
    let pods = cluster.pods("frontend")?;
    let Some(pod) = pods.first() else {
        report.check(false, "frontend has a pod")?;
        return Ok(());
    };
    // Until its node has heard of the last of them; what is missing then is reported.
    let reached = stage.wait_for("the pod to reach all services", |stage| {
        let used = use_all(stage, pod, &services).ok()?;
        used.iter().all(|one| one.errors.is_empty()).then_some(())
    });
    match reached {
        Ok(()) | Err(DemoError::Late { .. }) => {}
        Err(error) => return Err(error),
    }
    let used = use_all(stage, pod, &services)?;
    report.text(&format!(
        "{} on {} asks the DNS servers behind {} and {} for full names, in three ways, and the C library \
         by its /etc/resolv.conf for short ones; then it calls what it was told.",
        pod.name, pod.node, DNS_SERVICE[0], DNS_SERVICE[1]
    ))?;
    report.gap()?;
    let mut table = Table::new(&[
        ("service", Side::Left),
        ("ClusterIPs", Side::Left),
        ("names", Side::Right),
        ("calls", Side::Right),
        ("pods", Side::Right),
    ]);
    let (mut names, mut library, mut calls, mut all_pods) = (0, 0, 0, true);
    for (service, used) in services.iter().zip(&used) {
        let right = |found: &Vec<IpAddr>| {
            found.iter().copied().collect::<BTreeSet<_>>() == service.ips && !found.is_empty()
        };
        let known = used.names.iter().filter(|found| right(found)).count();
        let answered: BTreeSet<&str> = used.answers.iter().map(|(_, pod)| pod.as_str()).collect();
        let own: BTreeSet<String> =
            cluster.pods(&service.name)?.into_iter().map(|pod| pod.name).collect();
        all_pods &= !answered.is_empty() && answered.iter().all(|pod| own.contains(*pod));
        let ips: Vec<String> = service.ips.iter().map(ToString::to_string).collect();
        table.row([&service.name, &ips.join(" "), &known, &used.answers.len(), &answered.len()]);
        names += known;
        library += usize::from(right(&used.library));
        calls += used.answers.len();
    }
    report.table(&table)?;
    report.gap()?;
    if let Some(error) = used.iter().flat_map(|one| &one.errors).next() {
        report.text(&format!("The first failure: {error}"))?;
    }
    let asked = services.len() * WAYS.len() * DNS_SERVICE.len();
    report.check(
        names == asked,
        &format!(
            "{names} of {asked} lookups gave the ClusterIPs of both families: over IPv4 and IPv6, by UDP \
             unconnected and connected and by TCP; each socket said that the DNS Service had answered"
        ),
    )?;
    report.check(
        library == services.len(),
        &format!("{library} of {} short names were resolved by the C library", services.len()),
    )?;
    let wrong: usize = used.iter().map(|one| one.errors.len()).sum();
    report.check(
        wrong == 0 && calls > 0 && all_pods,
        &format!(
            "{} calls of ClusterIPs were answered by pods of the Service that was called, {wrong} failed",
            number(calls)
        ),
    )?;
    Ok(())
}

/// How to call a Service from inside, as a process of a Pod.
pub(super) fn command(stage: &Stage, cluster: &Cluster) -> Result<Option<Block>, DemoError> {
    let (services, pods) = (cluster.services()?, cluster.pods("frontend")?);
    let ip = services.iter().find(|one| one.name == "frontend");
    let ip = ip.and_then(|one| one.ips.iter().find(|ip| ip.is_ipv4()));
    let (Some(ip), Some(pod), Some(cgroups)) = (ip, pods.first(), stage.cgroups()) else {
        return Ok(None);
    };
    let space = stage.lab.joined(&pod.place)?;
    let members = cgroups.join(&pod.node).join("cgroup.procs");
    let command = format!(
        "sh -c 'echo $$ > {}; exec ip netns exec {} curl -s http://{ip}/'",
        members.display(),
        space.name()
    );
    Ok(Some(("Call a ClusterIP from a Pod: a process of its node's cgroup", vec![command])))
}

/// Runs an application in a Pod, as a process of its node, which uses these Services.
fn use_all(stage: &Stage, pod: &Pod, services: &[Service]) -> Result<Vec<Used>, DemoError> {
    let space = stage.lab.joined(&pod.place)?;
    let mut command = stage.space(&pod.node, &space)?.command(this_program()?.get_program());
    command
        .args(["demo-inside", "--namespace", "shop", "--space", space.name(), "--directory"])
        .arg(stage.places.directory())
        .args(services.iter().map(|one| format!("{}:{}", one.name, one.port)));
    let output = command.stdin(Stdio::null()).output()?;
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let refused = |message| LabError::Refused { command: "demo-inside".to_owned(), message };
    if !output.status.success() {
        return Err(refused(message).into());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| refused(error.to_string()).into())
}
