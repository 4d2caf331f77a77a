//! Following servers that fail in every way in which servers fail, over real connections.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use xdp_lb_api::view::{EventKind, FollowState};

use super::*;
use crate::{
    config::parse,
    lab::{ApiServer, Objects},
};

/// How long anything may take that should happen soon.
const PATIENCE: Duration = Duration::from_secs(20);

fn pace() -> Pace {
    Pace {
        answer: Duration::from_millis(700),
        doubt: Duration::from_millis(100),
        silence: Duration::from_millis(300),
        list: Duration::from_secs(2),
        least: Duration::from_millis(20),
        most: Duration::from_millis(200),
        batch: Duration::from_millis(2),
        port: Duration::from_millis(50),
    }
}

fn node(name: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
    })
}

/// A service at 203.0.113.N:80.
fn service(name: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": format!("10.96.0.{number}"),
            "clusterIPs": [format!("10.96.0.{number}")],
            "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000 + u32::from(number)}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{number}")}]}},
    })
}

/// The slice of a service with pods 10.244.1.N on node n1.
fn slice(service: &str, pods: &[u8]) -> Value {
    let endpoint = |pod: &u8| {
        json!({
            "addresses": [format!("10.244.1.{pod}")],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "n1",
        })
    };
    json!({
        "metadata": {
            "name": format!("{service}-x"),
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn objects() -> Objects {
    let objects = Objects::default();
    objects.put("nodes", node("n1", 1));
    for (number, name) in (1..).zip(["a", "b", "c", "d", "e"]) {
        objects.put("services", service(name, number));
        objects.put("endpointslices", slice(name, &[number]));
    }
    objects
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn free_port() -> u16 {
    listener().local_addr().unwrap().port()
}

fn serve(objects: &Objects) -> ApiServer {
    ApiServer::start(objects.clone(), listener()).unwrap()
}

/// What a follower has said and learnt.
struct World {
    cluster: Cluster,
    said: Arc<Mutex<Vec<(EventKind, String)>>>,
    /// What a daemon keeps for the next one
    _kept: Kept,
}

/// A directory that is removed at last.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    fn new(servers: &[&ApiServer]) -> Self {
        Self::with(servers, "healthz: [], nodeName: n1")
    }

    fn with(servers: &[&ApiServer], more: &str) -> Self {
        Self::follow(settings(servers, more))
    }

    fn follow(settings: Option<Settings>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xlbfollow-{}-{number}", std::process::id());
        Self::restart(settings, Kept(std::env::temp_dir().join(name)))
    }

    /// A daemon that finds what one before it has kept.
    fn restart(settings: Option<Settings>, kept: Kept) -> Self {
        let said: Arc<Mutex<Vec<(EventKind, String)>>> = Arc::default();
        let say = said.clone();
        let say: Say = Arc::new(move |kind, text| {
            say.lock().unwrap_or_else(PoisonError::into_inner).push((kind, text));
        });
        let cluster = Cluster::start(settings, false, kept.0.clone(), pace(), say);
        Self { cluster, said, _kept: kept }
    }

    /// Waits for something.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&Side, &KubernetesView) -> bool) {
        let observer = self.cluster.observer();
        let all = async {
            loop {
                let side = self.cluster.side();
                if done(&side, &observer.view().unwrap_or_default()) {
                    return;
                }
                // Not all that is looked at wakes the daemon.
                let _ = timeout(Duration::from_millis(50), self.cluster.changed()).await;
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            panic!("in vain waited until {what}: {:#?}", self.cluster.observer().view());
        }
    }

    async fn until_pods(&mut self, service: &str, pods: &[u8]) {
        let what = format!("service {service} has pods {pods:?}");
        self.until(&what, |side, _| pods_of(side, service) == pods).await;
    }

    fn has_said(&self, kind: EventKind, part: &str) -> bool {
        let said = self.said.lock().unwrap();
        said.iter().any(|(one, text)| *one == kind && text.contains(part))
    }
}

fn settings(servers: &[&ApiServer], more: &str) -> Option<Settings> {
    let urls: Vec<String> = servers.iter().map(|one| format!("\"{}\"", one.url())).collect();
    let text = format!(
        "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{{name: eth0}}]\n\
         kubernetes: {{apiServers: [{}], {more}}}\n",
        urls.join(", ")
    );
    Settings::of(&parse(&text).unwrap())
}

/// The last numbers of a service's backends; none where it is not served.
fn pods_of(side: &Side, service: &str) -> Vec<u8> {
    let Some(state) = side.states.get(&Key::new("shop", service)) else { return Vec::new() };
    let backends = state.services.iter().flat_map(|one| &one.backends);
    let last = |ip: std::net::IpAddr| ip.to_string().rsplit('.').next().unwrap().parse().unwrap();
    let mut pods: Vec<u8> = backends.map(|one| last(one.address)).collect();
    pods.sort_unstable();
    pods.dedup();
    pods
}

fn lists(server: &ApiServer, kind: &str) -> usize {
    let requests = server.requests();
    let list = |one: &&String| {
        one.contains(&format!("/{kind}?"))
            && !one.contains("watch=true")
            && !one.contains("continue=")
    };
    requests.iter().filter(list).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_put_together_and_changes_follow() {
    let objects = objects();
    let server = serve(&objects);
    server.behave(|one| one.page = Some(2));
    let mut world = World::new(&[&server]);
    world.until("all is there", |side, _| side.complete).await;
    let side = world.cluster.side();
    assert_eq!(side.states.len(), 5);
    assert_eq!(pods_of(&side, "e"), [5]);
    objects.put("endpointslices", slice("e", &[5, 6, 7]));
    world.until_pods("e", &[5, 6, 7]).await;
    objects.delete("services", "shop", "a");
    world.until("it is gone", |side, _| side.states.len() == 4).await;
    let view = world.cluster.observer().view().unwrap();
    assert_eq!(view.server.as_deref(), Some(&*format!("{}/", server.url())));
    assert_eq!(view.node.as_deref(), Some("n1"));
    let counts: Vec<_> = view.resources.iter().map(|one| (&*one.kind, one.objects)).collect();
    assert_eq!(counts, [("Service", 4), ("EndpointSlice", 5), ("Node", 1)]);
    let pages = server.requests().iter().filter(|one| one.contains("continue=")).count();
    assert_eq!(pages, 2 + 2, "5 objects of two kinds by twos: {:?}", server.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_leaves_out_what_is_for_other_proxies() {
    let objects = objects();
    let mut other = service("other", 9);
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    objects.put("services", other);
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until("all is there", |side, _| side.complete).await;
    assert_eq!(world.cluster.observer().view().unwrap().resources[0].objects, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_bookmark_a_broken_watch_goes_on_without_a_new_list() {
    let objects = objects();
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    // What the versions before the bookmark were is forgotten.
    objects.compact();
    server.bookmark();
    sleep(Duration::from_secs(2)).await;
    let before = lists(&server, "services");
    server.cut();
    objects.put("endpointslices", slice("a", &[1, 2]));
    world.until_pods("a", &[1, 2]).await;
    assert!(before <= 2 && lists(&server, "services") == before, "{:?}", server.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_gone_is_listed_anew() {
    for in_head in [false, true] {
        let objects = objects();
        let server = serve(&objects);
        let mut world = World::new(&[&server]);
        world.until_pods("a", &[1]).await;
        let before = lists(&server, "endpointslices");
        server.behave(|one| one.gone_in_head = in_head);
        server.cut();
        objects.delete("services", "shop", "b");
        objects.put("endpointslices", slice("a", &[2]));
        objects.compact();
        world.until_pods("a", &[2]).await;
        world.until("what went meanwhile is gone", |side, _| side.states.len() == 4).await;
        assert!(lists(&server, "endpointslices") > before);
        server.behave(|one| one.gone_in_head = false);
        objects.put("endpointslices", slice("a", &[2, 3]));
        world.until_pods("a", &[2, 3]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_the_middle_of_an_object_loses_nothing() {
    let objects = objects();
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    for pod in 2..8 {
        server.cut();
        objects.put("endpointslices", slice("a", &[pod]));
        assert_eq!(world.cluster.side().states.len(), 5);
        world.until_pods("a", &[pod]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_leaves_what_is_known_and_is_followed_again() {
    let objects = objects();
    let server = serve(&objects);
    let address = server.address();
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    drop(server);
    world.until("it is missed", |_, view| view.server.is_none()).await;
    assert!(world.has_said(EventKind::ClusterLost, "the last state stays"));
    assert!(!world.cluster.wrong().is_empty());
    objects.put("endpointslices", slice("a", &[1, 2]));
    sleep(Duration::from_millis(500)).await;
    let side = world.cluster.side();
    assert_eq!((side.states.len(), pods_of(&side, "a")), (5, vec![1]));
    let _server = ApiServer::start(objects, TcpListener::bind(address).unwrap()).unwrap();
    world.until_pods("a", &[1, 2]).await;
    world.until("it is said", |_, view| view.server.is_some()).await;
    world
        .until("all is well", |_, view| {
            view.resources.iter().all(|one| one.state == FollowState::Watching)
        })
        .await;
    assert_eq!(world.cluster.wrong(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_before_all_kinds_are_listed_and_a_denied_one_is_named() {
    let objects = objects();
    let server = serve(&objects);
    server.behave(|one| _ = one.forbidden.insert("nodes".to_owned()));
    let mut world = World::new(&[&server]);
    world
        .until("the denial is known", |_, view| {
            let node = view.resources.iter().find(|one| one.kind == "Node");
            node.and_then(|one| one.error.as_ref())
                .is_some_and(|why| why.contains("nodes is forbidden"))
        })
        .await;
    world.until("the others are listed", |_, view| view.resources[0].objects == 5).await;
    assert!(!world.cluster.side().complete);
    assert!(world.has_said(EventKind::ClusterLost, "cannot follow Nodes: permission denied"));
    server.behave(|one| one.forbidden.clear());
    world.until_pods("a", &[1]).await;
    assert!(world.has_said(EventKind::ClusterReached, "Nodes are followed again"));

    // One that is denied later: the others go on.
    server.behave(|one| _ = one.forbidden.insert("nodes".to_owned()));
    server.cut();
    world.until("it is known", |_, view| view.resources[2].state == FollowState::Failed).await;
    objects.put("endpointslices", slice("a", &[1, 2]));
    world.until_pods("a", &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_object_is_told_and_hides_no_other() {
    let objects = objects();
    let garbage = json!({"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": "x"}});
    objects.put("services", garbage.clone());
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    let found = |view: &KubernetesView, object: &str| {
        view.findings.iter().any(|one| one.object == object && one.reason == "Malformed")
    };
    world.until_pods("e", &[5]).await;
    world.until("it is told", |_, view| found(view, "shop/bad")).await;
    // A good one that is garbage from now on stays as it was, through a new list too.
    let mut broken = garbage;
    broken["metadata"]["name"] = json!("a");
    objects.put("services", broken);
    world.until("it is told", |_, view| found(view, "shop/a")).await;
    objects.put("services", json!({"metadata": {"namespace": "shop"}, "spec": 3}));
    objects.put("endpointslices", slice("a", &[1, 2]));
    world.until_pods("a", &[1, 2]).await;
    objects.compact();
    server.cut();
    objects.put("endpointslices", slice("b", &[3]));
    world.until_pods("b", &[3]).await;
    assert_eq!(pods_of(&world.cluster.side(), "a"), [1, 2]);
    objects.put("services", service("a", 1));
    objects.delete("services", "shop", "bad");
    world
        .until("nothing is told any more", |_, view| {
            !found(view, "shop/a") && !found(view, "shop/bad")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_takes_over_from_one_that_ends_hangs_or_is_not_ready() {
    let objects = objects();
    for how in ["ends", "hangs", "is not ready"] {
        let (first, second) = (serve(&objects), serve(&objects));
        let url = format!("{}/", second.url());
        let mut world = World::new(&[&first, &second]);
        world.until("all is there", |side, _| side.complete).await;
        let mut first = Some(first);
        match how {
            "ends" => drop(first.take()),
            "hangs" => first.as_ref().unwrap().behave(|one| one.hangs = true),
            _ => first.as_ref().unwrap().behave(|one| one.not_ready = true),
        }
        let what = format!("the second is used when the first {how}");
        world.until(&what, |_, view| view.server.as_ref() == Some(&url)).await;
        objects.put("endpointslices", slice("a", &[7]));
        world.until_pods("a", &[7]).await;
        objects.put("endpointslices", slice("a", &[1]));
        world.until_pods("a", &[1]).await;
        let view = world.cluster.observer().view().unwrap();
        assert!(view.servers[0].error.is_some() && view.servers[1].error.is_none(), "{view:#?}");
        assert!(world.has_said(EventKind::ClusterReached, &url));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_silent_is_told_at_once_where_its_name_is_a_cluster_ips() {
    // Connections wait there, as packets to a ClusterIP that nobody translates are lost.
    let silent = listener();
    let port = silent.local_addr().unwrap().port();
    let text = format!(
        "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{{name: eth0}}]\n\
         kubernetes: {{apiServers: [\"http://127.0.0.1:{port}\"], healthz: [], nodeName: n1}}\n"
    );
    let settings = Settings::of(&parse(&text).unwrap());
    let kept = Kept(std::env::temp_dir().join(format!("xlbclusterip-{}", std::process::id())));
    std::fs::create_dir_all(&kept.0).unwrap();
    // An earlier run knew it.
    let known = json!({
        "configured": [format!("http://127.0.0.1:{port}/")],
        "endpoints": [],
        "clusterIps": ["127.0.0.1"],
    });
    std::fs::write(kept.0.join("api-servers.json"), known.to_string()).unwrap();
    let mut world = World::restart(settings, kept);
    let told = |view: &KubernetesView, start: &str| {
        let error = view.servers.first().and_then(|one| one.error.as_deref());
        error.is_some_and(|error| error.starts_with(start) && error.contains("is the ClusterIP"))
    };
    world.until("it is told at once", |_, view| told(view, "no answer yet")).await;
    world.until("and then why", |_, view| told(view, "it does not answer within")).await;
    let said = world.said.clone();
    let is_lost = |(kind, text): &(EventKind, String)| {
        *kind == EventKind::ClusterLost && text.contains("`k8sServiceHost`")
    };
    world.until("it is missed", |_, _| said.lock().unwrap().iter().any(is_lost)).await;
    let wrong = world.cluster.wrong().join("\n");
    assert!(wrong.contains("127.0.0.1 is the ClusterIP of default/kubernetes"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_leaves_what_is_known_and_is_followed_again() {
    let objects = objects();
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    server.behave(|one| one.hangs = true);
    objects.put("endpointslices", slice("a", &[2]));
    world.until("it is missed", |_, view| view.server.is_none()).await;
    assert!(world.has_said(EventKind::ClusterLost, "does not answer within"));
    assert_eq!(pods_of(&world.cluster.side(), "a"), [1]);
    server.behave(|one| one.hangs = false);
    world.until_pods("a", &[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_configured_any_more_says_nothing() {
    let objects = objects();
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    // Another way to follow the same one: what is known stays.
    world.cluster.configure(settings(&[&server], "healthz: [], onNode: false"));
    assert_eq!(world.cluster.side().states.len(), 5);
    world
        .until("it is followed as no node", |side, view| {
            view.node.is_none() && side.complete && side.own_node.is_none()
        })
        .await;
    world.cluster.configure(None);
    world.until("nothing is left", |side, _| side.complete && side.states.is_empty()).await;
    assert_eq!(world.cluster.wrong(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_until_the_maps_have_a_change_is_measured() {
    let objects = objects();
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let mut changed = slice("a", &[2]);
    changed["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
    objects.put("endpointslices", changed);
    world.until_pods("a", &[2]).await;
    let revision = world.cluster.side().revision;
    world.cluster.applied(revision);
    let latency = world.cluster.observer().view().unwrap().latency;
    assert_eq!((latency.change.count, latency.trigger.count), (1, 1), "{latency:?}");
    assert!(latency.change.p99.is_some());
}

/// The whole answer of a server.
async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.ok()?.ok()?;
    Some(text)
}

async fn ask_until(address: SocketAddr, path: &str, done: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask(address, path).await;
        if let Some(answer) = &answer
            && done(answer)
        {
            return answer.clone();
        }
        assert!(
            Instant::now() < end,
            "{path} of {address} does not answer as it should: {answer:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_ports_answer_as_kube_proxys_do() {
    let objects = objects();
    let port = free_port();
    let mut own = service("a", 1);
    own["spec"]["externalTrafficPolicy"] = json!("Local");
    own["spec"]["healthCheckNodePort"] = json!(port);
    objects.put("services", own);
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    let answer =
        ask_until(local(port), "/whatever", |text| text.starts_with("HTTP/1.1 200 OK")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    for line in [
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        "X-Load-Balancing-Endpoint-Weight: 1",
        &format!("Content-Length: {}", body.len()),
    ] {
        assert!(head.lines().any(|one| one == line), "{line} in {head}");
    }
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"a\"\n\t},\n\
                    \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, expected);
    objects.put("endpointslices", slice("a", &[]));
    let answer =
        ask_until(local(port), "/", |text| text.contains(" 503 Service Unavailable")).await;
    assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 0"), "{answer}");
    assert!(answer.contains("\"localEndpoints\": 0"), "{answer}");
    objects.delete("services", "shop", "a");
    world.until("the service is gone", |side, _| side.states.len() == 4).await;
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(local(port)).await.is_ok() {
        assert!(Instant::now() < end, "the port is still served");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_once_and_had_when_it_is_free() {
    let objects = objects();
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut own = service("a", 1);
    own["spec"]["externalTrafficPolicy"] = json!("Local");
    own["spec"]["healthCheckNodePort"] = json!(port);
    objects.put("services", own);
    let server = serve(&objects);
    let mut world = World::new(&[&server]);
    world.until_pods("a", &[1]).await;
    world
        .until("it is told", |_, view| {
            view.troubles.iter().any(|one| one.contains("shop/a") && one.contains("in use"))
        })
        .await;
    let end = Instant::now() + PATIENCE;
    while objects.posted().is_empty() {
        assert!(Instant::now() < end, "no Event was written");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(300)).await;
    let events = objects.posted();
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = &events[0];
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!((&event["action"], &event["type"]), (&json!("Listen"), &json!("Warning")));
    assert_eq!(event["regarding"]["name"], "a");
    assert!(event["note"].as_str().unwrap().contains(&format!("on port {port}")), "{event}");
    drop(taken);
    ask_until(local(port), "/", |text| text.contains(" 200 OK")).await;
    world.until("nothing is told any more", |_, view| view.troubles.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_health_follows_the_node() {
    let objects = objects();
    let (port, server) = (free_port(), serve(&objects));
    let more = format!("nodeName: n1, healthz: [\"127.0.0.1:{port}\"]");
    let mut world = World::with(&[&server], &more);
    world.until_pods("a", &[1]).await;
    let revision = world.cluster.side().revision;
    world.cluster.applied(revision);
    let answer = ask_until(local(port), "/healthz", |text| text.contains(" 200 OK")).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)), "{body}");
    assert_eq!(body["status"]["IPv4"]["healthy"], true, "{body}");
    assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string(), "{body}");
    let gone = ask(local(port), "/elsewhere").await.unwrap();
    assert!(gone.contains(" 404 Not Found") && gone.ends_with("404 page not found\n"), "{gone}");

    let mut leaving = node("n1", 1);
    leaving["spec"]["taints"] =
        json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    let mut deleted = node("n1", 1);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for unfit in [leaving, deleted] {
        objects.put("nodes", unfit);
        let answer = ask_until(local(port), "/healthz", |text| text.contains(" 503 ")).await;
        assert!(answer.contains("\"nodeEligible\":false"), "{answer}");
        let live = ask(local(port), "/livez").await.unwrap();
        assert!(live.contains(" 200 OK") && !live.contains("nodeEligible"), "{live}");
        objects.put("nodes", node("n1", 1));
        ask_until(local(port), "/healthz", |text| text.contains(" 200 OK")).await;
    }
    objects.delete("nodes", "", "n1");
    ask_until(local(port), "/healthz", |text| text.contains(" 503 ")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_written_as_an_event_once_also_over_a_restart() {
    let objects = objects();
    let mut bad = service("a", 1);
    bad["status"]["loadBalancer"]["ingress"] = json!([{"ip": "127.0.0.1"}]);
    objects.put("services", bad.clone());
    let server = serve(&objects);
    for run in 0..2 {
        let mut world = World::new(&[&server]);
        world
            .until("it is found", |_, view| view.findings.iter().any(|one| one.object == "shop/a"))
            .await;
        assert!(world.has_said(EventKind::ClusterFinding, "shop/a"));
        let end = Instant::now() + PATIENCE;
        while objects.posted().is_empty() {
            assert!(Instant::now() < end, "no Event was written");
            sleep(Duration::from_millis(20)).await;
        }
        // The same again is no news.
        objects.put("services", bad.clone());
        sleep(Duration::from_millis(300)).await;
        let posted = objects.posted();
        assert_eq!(posted.len(), 1, "run {run}: {posted:#?}");
        assert_eq!(posted[0]["regarding"]["uid"].as_str().map(str::is_empty), Some(false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_events_follows_nevertheless() {
    let objects = objects();
    let mut bad = service("a", 1);
    bad["status"]["loadBalancer"]["ingress"] = json!([{"ip": "127.0.0.1"}]);
    objects.put("services", bad);
    let server = serve(&objects);
    server.behave(|one| _ = one.forbidden.insert("events".to_owned()));
    let mut world = World::new(&[&server]);
    world
        .until("it is told", |_, view| {
            view.troubles.iter().any(|one| one.starts_with("Events: permission denied"))
        })
        .await;
    objects.put("endpointslices", slice("b", &[9]));
    world.until_pods("b", &[9]).await;
    assert_eq!(objects.posted(), [] as [Value; 0]);
}
