//! A hundred clients change services at once while traffic flows.
//!
//! `XDP_LB_WRITERS_SECONDS` says how long, 6 where it is not set.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xdp_lb_api::{
    client::{Client, ClientError},
    http::{Method, header},
};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, config, near, network, wait_until, without_root,
};

const WEB: SocketAddr = SocketAddr::new(V4, 80);
const WRITERS: usize = 100;
/// Services that they share; each counts in the weight of its backend, up to 65535.
const SERVICES: usize = 20;
/// How much the daemon may grow while it does nothing new, in bytes: allocators keep some.
const GROWTH: u64 = 24 << 20;

fn name(service: usize) -> String {
    format!("count{service}")
}

fn declared(service: usize, weight: u64) -> Value {
    json!({
        "mode": "l2",
        "frontends": [{"address": "203.0.113.77", "port": 1000 + service}],
        "backends": [{"address": near(1), "weight": weight}, {"address": near(2)}],
    })
}

/// One more, where nobody else was faster; whether it counted, and how long the change took.
async fn count(client: &Client, service: usize) -> (bool, Duration) {
    let path = format!("/services/{}", name(service));
    let read = client.send(Method::GET, &path, None, &[]).await.unwrap();
    let view: Value = serde_json::from_slice(&read.body).unwrap();
    let weight = view["service"]["backends"][0]["weight"].as_u64().unwrap();
    let tag = read.etag.unwrap();
    let began = Instant::now();
    let body = declared(service, weight + 1);
    let written = client.send(Method::PUT, &path, Some(&body), &[(header::IF_MATCH, &tag)]).await;
    let took = began.elapsed();
    match written {
        Ok(_) => (true, took),
        Err(ClientError::Refused(problem)) if problem.status == 412 => (false, took),
        Err(error) => panic!("{error}"),
    }
}

/// Open files and resident memory of the daemon.
fn process(daemon: &Daemon) -> (usize, u64) {
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    (files, kilobytes << 10)
}

/// Sends requests until it is told to stop; how many there were, all of which must be answered.
fn traffic(net: &Net, stop: &AtomicBool) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let port = 20_000 + (sent % 20_000) as u16;
        let answers = net.client().ask_each(WEB, port..=port).unwrap();
        let answer = &answers[0].answer;
        assert!(answer.is_ok(), "request {sent}: {answer:?}");
        sent += 1;
    }
    sent
}

#[test]
fn no_update_of_a_hundred_writers_is_lost_and_nothing_leaks_while_traffic_flows() {
    if without_root() {
        return;
    }
    let seconds = std::env::var("XDP_LB_WRITERS_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(6));
    let net = Net::up("xlbnwri", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[WEB]);
    let daemon =
        net.balance(&config(&[Service::new("web", "l2").tcp(WEB).backends([near(1), near(2)])]));
    wait_until("the API is served", || daemon.socket().exists());
    let client = Client::new(daemon.socket());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for service in 0..SERVICES {
            let path = format!("/services/{}", name(service));
            let body = declared(service, 1);
            client.send(Method::PUT, &path, Some(&body), &[]).await.unwrap();
        }
    });
    let (idle, _) = process(&daemon);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flowing = scope.spawn(|| traffic(&net, &stop));
        let counts: Arc<Vec<AtomicU64>> =
            Arc::new((0..SERVICES).map(|_| AtomicU64::new(1)).collect());
        // All that it ever needs is there after the first part.
        let (mut took, mut refused) = write(&runtime, &client, &counts, time / 3);
        let (_, before) = process(&daemon);
        let (more, too) = write(&runtime, &client, &counts, time - time / 3);
        took.extend(more);
        refused += too;
        // Its ends of closed connections go in a moment.
        wait_until("no file is left open", || process(&daemon).0 <= idle);
        let (_, after) = process(&daemon);
        stop.store(true, Ordering::Relaxed);
        let requests = flowing.join().unwrap();

        for (service, count) in counts.iter().enumerate() {
            let path = format!("/services/{}", name(service));
            let view: Value = runtime.block_on(client.get(&path)).unwrap();
            let weight = &view["service"]["backends"][0]["weight"];
            assert_eq!(weight, &json!(count.load(Ordering::Relaxed)), "{}", name(service));
        }
        assert!(after < before + GROWTH, "{before} bytes, then {after}");
        took.sort_unstable();
        let part = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "{WRITERS} writers for {time:?}: {} changes, {refused} refused since another was faster; \
             p50 {:?}, p99 {:?}, longest {:?}; {requests} requests of traffic, all answered; {} KiB, \
             then {} KiB",
            took.len() - refused,
            part(50),
            part(99),
            part(100),
            before >> 10,
            after >> 10,
        );
        assert!(took.len() > WRITERS && requests > 0);
    });
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// All writers for so long: how long their changes took, and how many were refused.
fn write(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    counts: &Arc<Vec<AtomicU64>>,
    time: Duration,
) -> (Vec<Duration>, usize) {
    let end = Instant::now() + time;
    runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, counts) = (client.clone(), counts.clone());
                tokio::spawn(async move {
                    let (mut took, mut refused) = (Vec::new(), 0);
                    let service = writer % SERVICES;
                    while Instant::now() < end {
                        let (counted, one) = count(&client, service).await;
                        took.push(one);
                        if counted {
                            counts[service].fetch_add(1, Ordering::Relaxed);
                        } else {
                            refused += 1;
                        }
                    }
                    (took, refused)
                })
            })
            .collect();
        let (mut took, mut refused) = (Vec::new(), 0);
        for writer in writers {
            let (more, too) = writer.await.unwrap();
            took.extend(more);
            refused += too;
        }
        (took, refused)
    })
}
