//! A real Kubernetes whose nodes run the daemon: clients outside reach the shop by its LoadBalancer
//! addresses and node ports, whatever becomes of Deployments, Pods, API server and daemon.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use xdp_lb::lab::{CrowdSpec, Node, Record, Traffic};
use xdp_lb_netns_tests::{Cluster, client_towards, control_plane, wait_for, wait_until};

/// Clients that ask all the time, and how long each pauses.
const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// How long it may take until all pods serve, or so many requests are answered.
const SOON: Duration = Duration::from_secs(60);
/// Connections that are held all the time.
const HELD: usize = 100;

/// One cluster at a time: each takes half a gigabyte, and both processors.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where clients find the shop: its LoadBalancer addresses, and its node port on each node.
fn frontends(cluster: &Cluster) -> Vec<SocketAddr> {
    let (mut all, node_port) = cluster.addresses("frontend-external");
    assert_eq!(all.len(), 2, "an address of each family");
    all.extend([Node::Balancer, Node::Worker2].iter().flat_map(|node| node.at(node_port)));
    all
}

/// Waits until every frontend is served.
fn wait_until_served(cluster: &Cluster, frontends: &[SocketAddr]) {
    let client = cluster.net().client();
    for frontend in frontends {
        wait_until(&format!("{frontend} is served"), || client.ask(*frontend, None).is_ok());
    }
}

/// Waits until every one of these pods has served a new connection to the frontend.
fn wait_until_all_serve(cluster: &Cluster, frontend: SocketAddr, pods: &[String]) {
    let client = cluster.net().client();
    let mut missing: BTreeSet<String> = pods.iter().cloned().collect();
    // A daemon that started while no server was there asks again within 30 s.
    wait_for(SOON, "all pods have served", || {
        let answer = client.ask(frontend, None).unwrap();
        missing.remove(&answer.backend);
        missing.is_empty()
    });
}

fn traffic(cluster: &Cluster, frontends: &[SocketAddr]) -> Traffic {
    Traffic::start(&cluster.net().client(), frontends, CLIENTS, PAUSE)
}

/// Lets so many more requests be answered.
fn go_on_for(traffic: &Traffic, count: u64) {
    let goal = traffic.so_far().0 + count;
    wait_for(SOON, "the traffic goes on", || {
        let (served, failed) = traffic.so_far();
        served >= goal || failed > 50
    });
}

/// Replaces all pods of the shop's front by such with another image.
fn roll_out(cluster: &Cluster, version: u32) {
    let image = format!("server=shop.example.org/frontend:{version}");
    cluster.kubectl(&format!("-n shop set image deployment/frontend {image}"));
    cluster.rolled_out("frontend");
}

/// Panics with the first failures and their causes, if there are any.
fn assert_none_failed(record: &Record, since: Instant) {
    let total = record.total();
    let list: Vec<String> = record
        .failures
        .iter()
        .take(20)
        .map(|one| format!("after {:?}: {}", one.asked.duration_since(since), one.cause))
        .collect();
    let count = record.failures.len();
    assert_eq!(
        count,
        0,
        "{count} of {} requests failed:\n{}",
        total + count as u64,
        list.join("\n")
    );
    eprintln!("{total} requests were answered, the slowest after {:?}", record.slowest);
}

#[test]
fn no_request_fails_while_deployments_scale_and_roll_out_and_pods_are_deleted() {
    let Some(assets) = control_plane() else { return };
    let _alone = alone();
    let cluster = Cluster::up("xlbnkroll", &assets);
    let _daemons = cluster.daemons();
    cluster.open_shop();
    let frontends = frontends(&cluster);
    wait_until_served(&cluster, &frontends);
    // The pods see the clients themselves, on whichever node they run.
    for frontend in &frontends {
        let answer = cluster.net().client().ask(*frontend, None).unwrap();
        assert_eq!(answer.client.ip(), client_towards(frontend.ip()), "{frontend}");
    }

    let since = Instant::now();
    let traffic = traffic(&cluster, &frontends);
    let crowd = CrowdSpec::new(&frontends[..2], HELD).pause(Duration::from_millis(250)).lasting();
    let crowd = crowd.start(cluster.net().ns("client")).unwrap();
    wait_until("connections are held", || crowd.living() == HELD);
    go_on_for(&traffic, 500);
    let first = cluster.pods("frontend");

    cluster.kubectl("-n shop scale deployment/frontend --replicas=6");
    cluster.rolled_out("frontend");
    let more = cluster.pods("frontend");
    assert_eq!(more.len(), 6);
    wait_until_all_serve(&cluster, frontends[0], &more);
    // Nothing has gone, so nothing may break.
    let losses = crowd.losses();
    assert!(losses.is_empty(), "{losses:?}");

    cluster.kubectl("-n shop scale deployment/frontend --replicas=2");
    cluster.rolled_out("frontend");
    go_on_for(&traffic, 500);
    for round in 0..3 {
        let pod = cluster.pods("frontend")[0].clone();
        cluster.kubectl(&format!("-n shop delete pod {pod} --wait=false"));
        cluster.rolled_out("frontend");
        go_on_for(&traffic, 200);
        if round == 1 {
            // Other Deployments change meanwhile.
            cluster.kubectl("-n shop rollout restart deployment/cart deployment/ad");
        }
    }
    for version in 2..=3 {
        roll_out(&cluster, version);
    }
    go_on_for(&traffic, 500);
    let last = cluster.pods("frontend");
    wait_until_all_serve(&cluster, frontends[1], &last);
    // The pods that ended have ended for good.
    wait_until("all slices are those of the last pods", || {
        cluster.endpoints_of_pods("frontend-external").len() == last.len()
    });
    let record = traffic.finish().unwrap();
    assert_none_failed(&record, since);
    assert!(record.total() > 3000, "{} requests", record.total());
    for frontend in &frontends {
        assert!(record.total_of(*frontend) > 0, "{frontend}");
    }
    let (_, losses) = crowd.finish().unwrap();
    // Connections broke with their pods alone: each was to one that is gone.
    for loss in &losses {
        let backend = loss.backend.as_deref().unwrap_or_default();
        assert!(!last.contains(&backend.to_owned()), "{loss:?}");
    }
    assert!(first.iter().all(|pod| !last.contains(pod)), "all were replaced");
}

#[test]
fn no_request_fails_while_the_api_server_is_away_and_what_it_says_then_counts() {
    let Some(assets) = control_plane() else { return };
    let _alone = alone();
    let mut cluster = Cluster::up("xlbnkapi", &assets);
    let daemons = cluster.daemons();
    cluster.open_shop();
    let frontends = frontends(&cluster);
    wait_until_served(&cluster, &frontends);
    let since = Instant::now();
    let traffic = traffic(&cluster, &frontends);
    go_on_for(&traffic, 300);

    cluster.kubernetes().plane().kill_api_server();
    go_on_for(&traffic, 1500);
    // A daemon that starts now has nobody to ask, and takes over what is there.
    let [balancer, _worker, _worker2] = daemons;
    balancer.kill();
    go_on_for(&traffic, 300);
    let _balancer = cluster.daemon(Node::Balancer);
    go_on_for(&traffic, 500);
    cluster.kubernetes().plane().start_api_server().unwrap();
    cluster.kubectl("-n shop scale deployment/frontend --replicas=5");
    cluster.rolled_out("frontend");
    wait_until_all_serve(&cluster, frontends[0], &cluster.pods("frontend"));
    roll_out(&cluster, 2);
    go_on_for(&traffic, 300);
    assert_none_failed(&traffic.finish().unwrap(), since);
}

#[test]
fn no_request_fails_while_daemons_are_killed_and_started() {
    let Some(assets) = control_plane() else { return };
    let _alone = alone();
    let cluster = Cluster::up("xlbnkdaemon", &assets);
    let daemons = cluster.daemons();
    cluster.open_shop();
    let frontends = frontends(&cluster);
    wait_until_served(&cluster, &frontends);
    let since = Instant::now();
    let traffic = traffic(&cluster, &frontends);
    go_on_for(&traffic, 300);
    let [mut balancer, _worker, mut worker2] = daemons.map(Some);
    // Where packets come in, and where tunnels end.
    for (daemon, node, version) in
        [(&mut balancer, Node::Balancer, 2), (&mut worker2, Node::Worker2, 3)]
    {
        // Killed, then stopped as a service manager does: the data path stays either way.
        for kill in [true, false] {
            let gone = daemon.take();
            if kill {
                gone.unwrap().kill()
            } else {
                drop(gone.unwrap().stop())
            }
            go_on_for(&traffic, 300);
            // What is added meanwhile counts from the start on.
            let pods = cluster.pods("frontend").len() + 1;
            cluster.kubectl(&format!("-n shop scale deployment/frontend --replicas={pods}"));
            cluster.rolled_out("frontend");
            go_on_for(&traffic, 200);
            *daemon = Some(cluster.daemon(node));
            wait_until_all_serve(&cluster, frontends[0], &cluster.pods("frontend"));
        }
        roll_out(&cluster, version);
        go_on_for(&traffic, 300);
    }
    assert_none_failed(&traffic.finish().unwrap(), since);
}
