use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use xdp_lb_abi::{Mode, probe_mark};
use xdp_lb_plan::{
    BackendKey,
    health::{Http, Probe, Udp},
    maglev::Identity,
    model::{Backend, Protocol},
};

use super::*;
use crate::{
    config::{Config, parse},
    net::{Link, Path, View, Why},
};

const HERE: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn ask(to: SocketAddr, probe: Probe) -> Result<Answer, String> {
    let target = Target::at(to, HealthCheck::new(probe));
    let answer = timeout(Duration::from_secs(10), probe::ask(&target)).await.unwrap();
    answer.map_err(|problem| problem.to_string())
}

/// Answers the first request on each connection, and keeps the connection open.
async fn serve(answer: &'static str, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind(HERE).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept: Vec<Box<dyn Send>> = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            match &tls {
                None => {
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    kept.push(Box::new(stream));
                }
                Some(tls) => {
                    let Ok(mut stream) = tls.accept(stream).await else { continue };
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.flush().await;
                    kept.push(Box::new(stream));
                }
            }
        }
    });
    address
}

/// With a certificate that nobody vouches for.
fn acceptor() -> TlsAcceptor {
    let one = rcgen::generate_simple_self_signed(["example.org".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(one.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![one.cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn requests_are_judged_by_their_status() {
    let good = "HTTP/1.1 302 Found\r\nContent-Length: 10\r\n\
                X-Load-Balancing-Endpoint-Weight: 12\r\n\r\n";
    let plain = serve(good, None).await;
    let http = Http::new(false);
    let unweighed = Ok(Answer::Good { weight: None });
    assert_eq!(ask(plain, Probe::Http(http.clone())).await, unweighed, "nobody asked for it");
    let weighed = Http { weight: true, ..http.clone() };
    assert_eq!(ask(plain, Probe::Http(weighed)).await, Ok(Answer::Good { weight: Some(12) }));
    let strict = Http { status: 200..=299, ..http.clone() };
    assert_eq!(
        ask(plain, Probe::Http(strict)).await,
        Err("its status is 302, not 200 to 299".to_owned())
    );
    let sealed = serve(good, Some(acceptor())).await;
    assert_eq!(ask(sealed, Probe::Http(Http::new(true))).await, unweighed);
    let host = Some("example.org:443".to_owned());
    let named = Http { host, ..Http::new(true) };
    assert_eq!(ask(sealed, Probe::Http(named)).await, unweighed);
    for (to, tls) in [(plain, true), (serve("nonsense\r\n\r\n", None).await, false)] {
        let error = ask(to, Probe::Http(Http::new(tls))).await.unwrap_err();
        assert!(error.contains(if tls { "no TLS" } else { "not answer in HTTP" }), "{error}");
    }
}

#[tokio::test]
async fn connections_and_datagrams_are_answered_or_not() {
    let open = serve("", None).await;
    assert_eq!(ask(open, Probe::Tcp).await, Ok(Answer::Good { weight: None }));
    let closed = TcpListener::bind(HERE).await.unwrap().local_addr().unwrap();
    let error = ask(closed, Probe::Tcp).await.unwrap_err();
    assert!(error.starts_with("it takes no connection: "), "{error}");

    let socket = UdpSocket::bind(HERE).await.unwrap();
    let echo = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 100];
        while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..length], from).await;
        }
    });
    let udp = |expect: &[u8]| Probe::Udp(Udp { send: b"ping".to_vec(), expect: expect.to_vec() });
    for expect in [&b""[..], b"pi", b"ping"] {
        assert_eq!(ask(echo, udp(expect)).await, Ok(Answer::Good { weight: None }));
    }
    for expect in [&b"pong"[..], b"pings"] {
        let answer = ask(echo, udp(expect)).await;
        assert_eq!(answer, Err("its answer begins with other bytes".to_owned()));
    }
    let error = ask(closed, udp(b"")).await.unwrap_err();
    assert!(error.starts_with("it answers no datagram: "), "an ICMP error says so: {error}");
}

#[tokio::test]
async fn what_is_known_follows_the_answers_and_the_targets() {
    let key = |name: &str| ("s".to_owned(), name.to_owned());
    let open = serve("", None).await;
    let check = HealthCheck { interval: Duration::from_millis(20), ..HealthCheck::new(Probe::Tcp) };
    let gone = TcpListener::bind(HERE).await.unwrap();
    let closed = gone.local_addr().unwrap();
    drop(gone);
    let mut checks = Checks::start(Found::new());
    let target = |to| Some(Target::at(to, check.clone()));
    checks.aim([(key("open"), target(open)), (key("closed"), target(closed))].into());
    let state =
        |checks: &mut Checks, name| checks.found().get(&key(name)).map(|one| one.health.state());
    let limit = Duration::from_secs(20);
    let both = async {
        while state(&mut checks, "open").is_none() || state(&mut checks, "closed").is_none() {
            checks.changed().await;
        }
    };
    timeout(limit, both).await.unwrap();
    assert_eq!(state(&mut checks, "open"), Some(State::Up));
    assert_eq!(state(&mut checks, "closed"), Some(State::Down));
    assert!(checks.found()[&key("closed")].error.as_ref().unwrap().contains("no connection"));

    // Somewhere else now; and one that cannot be asked at the moment stays what it is.
    checks.aim([(key("open"), None), (key("closed"), target(open))].into());
    let up = async {
        while state(&mut checks, "closed") != Some(State::Up) {
            checks.changed().await;
        }
    };
    timeout(limit, up).await.unwrap();
    assert_eq!(checks.found()[&key("closed")].error, None);
    assert_eq!(state(&mut checks, "open"), Some(State::Up));
    checks.aim([(key("closed"), target(open))].into());
    timeout(limit, checks.changed()).await.unwrap();
    assert_eq!(state(&mut checks, "open"), None);
}

#[test]
fn what_was_found_is_known_to_the_next_run() {
    let directory = std::env::temp_dir().join(format!("xlbhealth-{}", std::process::id()));
    assert_eq!(load(&directory), Found::new());
    let minute = Duration::from_secs(60);
    let since = SystemTime::now() - minute;
    let status = |state, weight, error: Option<&str>| {
        let health = Health::known(state, weight, Duration::from_secs(5));
        Status { health, since, error: error.map(str::to_owned) }
    };
    let key = |name: &str| ("s".to_owned(), name.to_owned());
    let found = Found::from([
        (key("a"), status(State::Down, None, Some("no answer"))),
        (key("b"), status(State::Up, Some(7), None)),
        (key("c"), status(State::Unchecked, None, None)),
    ]);
    save(&directory, &found).unwrap();
    let known = load(&directory);
    std::fs::write(directory.join("health.json"), "{").unwrap();
    let broken = load(&directory);
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(known.keys().collect::<Vec<_>>(), [&key("a"), &key("b")]);
    let (a, b) = (&known[&key("a")].health, &known[&key("b")].health);
    assert_eq!((a.state(), b.state(), b.weight()), (State::Down, State::Up, Some(7)));
    let ago = clock::now().saturating_sub(a.since());
    assert!(ago >= minute && ago < 2 * minute || a.since().is_zero(), "{ago:?}");
    assert_eq!(known[&key("a")].error.as_deref(), Some("no answer"));
    assert_eq!(broken, Found::new());
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config(mode: &str, frontends: &str, check: &str) -> Config {
    let text = format!(
        "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{{name: eth0}}]\n\
         services: [{{name: s, mode: {mode}, frontends: [{frontends}], healthCheck: {{{check}}}, \
         backends: [{{address: 10.0.0.1, node: 10.0.9.9}}]}}]\n"
    );
    parse(&text).unwrap_or_else(|mistakes| panic!("{}", mistakes.in_file("test")))
}

/// The target of the only backend, over this path to the frontend.
fn target(config: &Config, path: Option<Path>) -> Option<Target> {
    let link = |index: u32| Link {
        index,
        name: format!("eth{}", index - 2),
        mac: Some([2; 6]),
        mtu: 1500,
        up: true,
        parent: None,
        vlan: None,
        master: None,
        kind: String::new(),
    };
    let view = View {
        links: [(2, link(2)), (3, link(3))].into(),
        paths: path.map(|path| (ip("192.0.2.1"), path)).into_iter().collect(),
        ..View::default()
    };
    let tunnel = Some(ip("10.0.9.9"));
    let identity = |port, protocol| Identity { address: ip("10.0.0.1"), port, protocol };
    let ids = [
        (7, BackendKey { identity: identity(80, Protocol::Tcp), mode: Mode::L2, tunnel: None }),
        (8, BackendKey { identity: identity(80, Protocol::Tcp), mode: Mode::Ipip, tunnel: None }),
        (9, BackendKey { identity: identity(53, Protocol::Udp), mode: Mode::Ipip, tunnel: None }),
        (10, BackendKey { identity: identity(80, Protocol::Tcp), mode: Mode::Geneve, tunnel }),
    ];
    let name = |backend: &Backend| backend.address.to_string();
    let targets = targets(config, &view, ids.iter().map(|(id, key)| (*id, key)), name);
    assert_eq!(targets.keys().collect::<Vec<_>>(), [&("s".to_owned(), "10.0.0.1".to_owned())]);
    targets.into_values().next().unwrap()
}

fn ready(device: u32) -> Option<Path> {
    let (neighbour, source) = (ip("10.0.0.254"), ip("10.0.0.7"));
    Some(Path::Ready { device, neighbour, mac: [2; 6], mtu: 1500, source })
}

#[test]
fn backends_are_asked_at_the_address_that_clients_packets_have() {
    const ONE: &str = "{address: 192.0.2.1, port: 80}";
    const TWO: &str =
        "{address: 192.0.2.1, port: 80}, {address: 192.0.2.1, port: 53, protocol: UDP}";
    for (mode, frontends, check, to, id) in [
        ("l2", ONE, "type: tcp", "192.0.2.1:80", Some(7)),
        ("ipip", ONE, "type: http, port: 81", "192.0.2.1:81", Some(8)),
        ("ipip", TWO, "type: udp, send: a", "192.0.2.1:53", Some(9)),
        ("ipip", ONE, "type: udp, send: a", "192.0.2.1:80", Some(8)),
        ("geneve", TWO, "type: tcp", "192.0.2.1:80", Some(10)),
        ("geneve", ONE, "type: tcp, port: 81", "10.0.0.1:81", None),
        ("geneve", "{nodePort: 30080}", "type: tcp", "10.0.0.1:30080", None),
        ("hybrid", TWO, "type: tcp", "192.0.2.1:80", Some(10)),
        ("hybrid", TWO, "type: udp, send: a", "10.0.0.1:80", None),
        ("snat", ONE, "type: tcp", "10.0.0.1:80", None),
        ("local", ONE, "type: tcp, port: 81", "10.0.0.1:81", None),
        ("snat", "{nodePort: 30080}", "type: tcp", "10.0.0.1:30080", None),
    ] {
        let target = target(&config(mode, frontends, check), ready(2)).unwrap();
        assert_eq!(target.to, to.parse().unwrap(), "{mode} {check}");
        assert_eq!(target.mark, id.and_then(probe_mark), "{mode} {check}");
        assert_eq!(target.note, None);
    }
}

#[test]
fn who_cannot_be_asked_there_is_asked_at_its_own_address_or_later() {
    let l2 = config("l2", "{address: 192.0.2.1, port: 80}", "type: tcp");
    let unresolved = |why| Some(Path::Unresolved { why });
    for (path, note) in [
        (Some(Path::Local), "192.0.2.1 is an address of this host"),
        (ready(3), "the route to 192.0.2.1 leaves by eth1"),
        (unresolved(Why::NoRoute), "there is no route to it"),
    ] {
        let target = target(&l2, path).unwrap();
        assert_eq!((target.to, target.mark), ("10.0.0.1:80".parse().unwrap(), None));
        assert!(target.note.as_ref().unwrap().contains(note), "{target:?}");
    }
    assert_eq!(target(&l2, None), None);
    assert_eq!(target(&l2, unresolved(Why::Pending)), None);
    // The data path does not know the backend yet.
    let other = config("l2", "{address: 192.0.2.1, port: 81}", "type: tcp");
    assert_eq!(target(&other, ready(2)), None);
}
