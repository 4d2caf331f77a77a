//! The sections about change: Deployments scale and roll out, Pods are deleted, the API server is away,
//! and clients notice nothing.

use std::{cell::RefCell, collections::BTreeSet, io::Write, net::SocketAddr, time::Duration};

use super::{
    super::{
        DemoError,
        report::{Report, Side, Table, number},
        stage::Stage,
    },
    cluster::Cluster,
};
use crate::lab::{Record, Traffic};

/// Clients that ask all the time, and how long each pauses.
const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// Requests between two changes.
const BETWEEN: u64 = 300;
/// Requests while the API server is away.
const AWAY: u64 = 1_000;

fn traffic(stage: &Stage, frontends: &[SocketAddr]) -> Result<Traffic, DemoError> {
    Ok(Traffic::start(&stage.client()?, frontends, CLIENTS, PAUSE))
}

/// Lets so many more requests be answered; or some fail, which the report will say.
fn go_on(stage: &mut Stage, traffic: &Traffic, count: u64) -> Result<(), DemoError> {
    let goal = traffic.so_far().0 + count;
    stage.wait_for(&format!("{count} more requests"), |_| {
        let (served, failed) = traffic.so_far();
        (served >= goal || failed > 0).then_some(())
    })
}

/// One line for all requests.
fn check<W: Write>(
    report: &mut Report<W>,
    record: &Record,
    meanwhile: &str,
) -> Result<(), DemoError> {
    if let Some(first) = record.failures.first() {
        report.text(&format!("The first failure: {}", first.cause))?;
    }
    report.check(
        record.failures.is_empty() && record.total() > 0,
        &format!(
            "{} requests were answered while {meanwhile}, {} failed; the slowest took {} ms",
            number(record.total()),
            record.failures.len(),
            record.slowest.as_millis()
        ),
    )?;
    Ok(())
}

/// Deployments scale and roll out, and Pods are deleted.
pub(super) fn rollout<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    cluster: &mut Cluster,
    frontends: &[SocketAddr],
) -> Result<(), DemoError> {
    report.section("Scaled, rolled out, deleted, under traffic")?;
    let traffic = traffic(stage, frontends)?;
    go_on(stage, &traffic, BETWEEN)?;
    let mut table =
        Table::new(&[("kubectl", Side::Left), ("pods", Side::Right), ("new", Side::Right)]);
    let mut ever: BTreeSet<String> =
        cluster.pods("frontend")?.into_iter().map(|pod| pod.name).collect();
    for change in [
        "scale deployment/frontend --replicas=6",
        "set image deployment/frontend server=shop.example.org/frontend:2",
        "delete pod POD --wait=false",
        "scale deployment/frontend --replicas=3",
    ] {
        let pods = cluster.pods("frontend")?;
        let pod = pods.first().map(|pod| pod.name.as_str()).unwrap_or_default();
        cluster.kubectl(&format!("-n shop {}", change.replace("POD", pod)))?;
        cluster.rolled_out("frontend")?;
        go_on(stage, &traffic, BETWEEN)?;
        let pods = cluster.pods("frontend")?;
        let new = pods.iter().filter(|pod| ever.insert(pod.name.clone())).count();
        table.row([&change, &pods.len(), &new]);
    }
    let record = traffic.finish()?;
    report.table(&table)?;
    report.gap()?;
    check(report, &record, "the Deployment changed")?;
    let served: BTreeSet<&String> = record.served.keys().map(|(_, pod)| pod).collect();
    let last = cluster.pods("frontend")?;
    report.check(
        last.iter().all(|pod| served.contains(&pod.name)),
        &format!("{} pods have served by turns, the last {} among them", served.len(), last.len()),
    )?;
    stage.watch()
}

/// The API server is killed, and comes back.
pub(super) fn outage<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    cluster: &mut Cluster,
    frontends: &[SocketAddr],
) -> Result<(), DemoError> {
    report.section("The API server is killed, and comes back")?;
    // Nobody could say any more that one of them goes.
    stage.wait_for("the pods of before to be gone", |_| {
        cluster.is_settled("frontend").is_ok_and(|settled| settled).then_some(())
    })?;
    let traffic = traffic(stage, frontends)?;
    go_on(stage, &traffic, BETWEEN)?;
    cluster.kill_api_server();
    go_on(stage, &traffic, AWAY)?;
    cluster.start_api_server()?;
    cluster.kubectl("-n shop scale deployment/frontend --replicas=4")?;
    cluster.rolled_out("frontend")?;
    let pods = cluster.pods("frontend")?;
    let client = stage.client()?;
    let missing: BTreeSet<String> = pods.into_iter().map(|pod| pod.name).collect();
    let missing = RefCell::new(missing);
    stage.wait_for("the new pod to serve", |_| {
        let answer = client.ask(frontends[0], None).ok()?;
        missing.borrow_mut().remove(&answer.backend);
        missing.borrow().is_empty().then_some(())
    })?;
    check(report, &traffic.finish()?, "it was away and one pod was added afterwards")?;
    stage.watch()
}
