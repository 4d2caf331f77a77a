//! A flood of SYNs from random sources, while a thousand connections work.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use xdp_lb::{
    dataplane::Flows,
    lab::{
        Crowd, CrowdSpec, Figures, Item, end,
        forge::{Wire, ethernet, syn},
        host, link, route, sysctl,
    },
};
use xdp_lb_abi::names;
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, V6, config, near, near6, network, wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);
const CONNECTIONS: usize = 1000;
const BACKENDS: u8 = 4;
/// The flood ends after so many packets, or so long.
const PACKETS: u64 = 1_000_000;
const LONGEST: Duration = Duration::from_secs(10);
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// The network of the tests, with an attacker whose sources are anywhere in two large prefixes.
fn topology() -> Vec<Item> {
    let mut items = network(BACKENDS, 0);
    items.extend([
        host("attacker"),
        link(
            end("attacker", "eth0").addr("198.51.101.2/24").addr("2001:db8:2::2/64"),
            end("router", "attack")
                .mac("02:00:00:00:09:01")
                .addr("198.51.101.1/24")
                .addr("2001:db8:2::1/64"),
        ),
        // It gets the answers, and is silent.
        route("router", "198.18.0.0/15", "198.51.101.2"),
        route("router", "2001:db8:bad::/48", "2001:db8:2::2"),
    ]);
    // Half-open connections are not what is looked at here: their answers are sent once.
    for n in 1..=BACKENDS {
        items.push(sysctl(&format!("b{n}"), "net.ipv4.tcp_synack_retries", "0"));
    }
    items
}

fn services(weight: u16) -> String {
    let four = Service::new("four", "l2").tcp(FOUR).backends((2..=BACKENDS).map(near));
    let six = Service::new("six", "l2").tcp(SIX).backends((2..=BACKENDS).map(near6));
    config(&[four.weighted(near(1), weight), six.weighted(near6(1), weight)])
}

/// Numbers that nobody guesses (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
struct Flood {
    packets: u64,
    took: Duration,
}

impl Flood {
    fn rate(&self) -> f64 {
        self.packets as f64 / self.took.as_secs_f64()
    }
}

/// Sends SYNs from addresses and ports of which hardly any comes twice, as fast as it goes.
fn flood(net: &Net, seed: u64) -> Flood {
    let wire = Wire::open(net.ns("attacker"), "eth0").unwrap();
    let mut random = Random(seed);
    let begun = Instant::now();
    let mut packets = 0;
    while packets < PACKETS && begun.elapsed() < LONGEST {
        for _ in 0..100 {
            let [bits, more] = [random.next(), random.next()];
            let (source, to): (IpAddr, SocketAddr) = if packets % 2 == 0 {
                (Ipv4Addr::from_bits(0xc612_0000 | (bits as u32 & 0x1_ffff)).into(), FOUR)
            } else {
                let host = u128::from(bits) | u128::from(more & 0xffff) << 64;
                (Ipv6Addr::from_bits(0x2001_0db8_0bad << 80 | host).into(), SIX)
            };
            let source = SocketAddr::new(source, (more >> 16) as u16 | 1024);
            let frame = ethernet(ROUTER_MAC, [2, 0, 0, 0, 9, 2], &syn(source, to, bits as u32));
            wire.send(&frame).unwrap();
            packets += 1;
        }
    }
    Flood { packets, took: begun.elapsed() }
}

fn recorded(daemon: &Daemon) -> usize {
    Flows::open(daemon.pins(), names::FLOWS).unwrap().read().unwrap().records.len()
}

fn forwarded(daemon: &Daemon) -> u64 {
    daemon.stats().frontends.iter().map(|one| one.packets).sum()
}

fn crowd(net: &Net, node: &str) -> Crowd {
    let spec = CrowdSpec::new(&[FOUR, SIX], CONNECTIONS).lasting();
    let crowd = spec.start(net.ns(node)).unwrap();
    wait_until("all connections are up", || crowd.living() == CONNECTIONS);
    crowd
}

/// Panics unless all connections that there were are there still.
fn assert_undisturbed(crowd: Crowd) -> Figures {
    let (figures, losses) = crowd.finish().unwrap();
    assert!(losses.is_empty(), "{} were lost, the first: {:?}", losses.len(), losses[0]);
    assert_eq!(figures.living.values().sum::<usize>(), CONNECTIONS);
    assert_eq!(figures.lasting, CONNECTIONS);
    figures
}

#[test]
fn a_flood_of_syns_fills_no_table_and_disturbs_nobody() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnflood", topology());
    let mut daemon = net.balance(&services(1));
    let _servers = net.serve((1..=BACKENDS).map(|n| format!("b{n}")), &[FOUR, SIX]);
    let working = crowd(&net, "client");

    // At rest.
    let (before, taken) = (recorded(&daemon), forwarded(&daemon));
    let sent = flood(&net, 1);
    let (after, taken) = (recorded(&daemon), forwarded(&daemon) - taken);
    thread::sleep(Duration::from_secs(1));
    let figures = assert_undisturbed(working);
    println!(
        "at rest: {} SYNs in {:.1} s, {:.0} a second, {taken} packets forwarded; recorded flows \
         {before} before, {after} after; {} exchanges of {CONNECTIONS} connections, the slowest \
         {:.2} s",
        sent.packets,
        sent.took.as_secs_f64(),
        sent.rate(),
        figures.exchanges,
        figures.slowest.as_secs_f64()
    );
    assert!(sent.packets > 50_000, "{sent:?}");
    assert!(taken > sent.packets / 2, "the flood reached the balancer: {taken} of {sent:?}");
    assert_eq!((before, after), (0, 0));

    // During a handover: the flood's flows are recorded, and give way.
    let working = crowd(&net, "client");
    daemon.reload(&services(5));
    let young = crowd(&net, "router");
    let capacity = Flows::open(daemon.pins(), names::FLOWS).unwrap().capacity() as usize;
    let sent = flood(&net, 2);
    let after = recorded(&daemon);
    thread::sleep(Duration::from_secs(1));
    let figures = assert_undisturbed(working);
    // Those that began during the handover are known by their records alone. The table gives up what
    // was not used for longest, but only about.
    let (_, lost) = young.finish().unwrap();
    assert!(lost.len() * 20 < CONNECTIONS, "{} were lost, the first: {:?}", lost.len(), lost[0]);
    println!(
        "during a handover: {} SYNs in {:.1} s, {:.0} a second; recorded flows {after} of \
         {capacity}; {} exchanges of {CONNECTIONS} connections from before, the slowest {:.2} s; \
         of {CONNECTIONS} that began during the handover {} were lost",
        sent.packets,
        sent.took.as_secs_f64(),
        sent.rate(),
        figures.exchanges,
        figures.slowest.as_secs_f64(),
        lost.len()
    );
    assert!(after <= capacity, "{after} of {capacity}");
    assert!(after > capacity / 4, "the flood reached the table: {after} of {capacity}");
    // It goes on: changes are taken, and new connections served.
    daemon.reload(&services(2));
    for frontend in [FOUR, SIX] {
        for outcome in net.client().ask_each(frontend, 61_000..=61_049).unwrap() {
            outcome.answer.unwrap();
        }
    }
    assert_eq!(daemon.reason("inconsistent_tables"), 0);
}
