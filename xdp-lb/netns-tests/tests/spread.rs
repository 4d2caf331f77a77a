//! Every connection goes to the backend that the table names for it.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use xdp_lb::lab::ip;
use xdp_lb_netns_tests::{
    Net, Prediction, Service, V4, V6, config, host_name, near, near6, network, vip_at, without_root,
};
use xdp_lb_plan::model::Protocol;

const CLIENTS_V4: [&str; 4] = ["198.51.100.2", "198.51.100.77", "198.51.100.130", "198.51.100.201"];
const CLIENTS_V6: [&str; 2] = ["2001:db8:1::2", "2001:db8:1::abcd:ef01"];

/// A connection from each address and port; returns how many each backend had, after comparing
/// every single one with the prediction.
fn spread(
    net: &Net,
    clients: &[&str],
    ports: RangeInclusive<u16>,
    frontend: SocketAddr,
    prediction: &Prediction,
) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for client in clients {
        let client: IpAddr = client.parse().unwrap();
        for outcome in net.client().from(client).ask_each(frontend, ports.clone()).unwrap() {
            let from = SocketAddr::new(client, outcome.port);
            let answer = outcome.answer.unwrap();
            assert_eq!(answer.client, from);
            assert_eq!(answer.backend, host_name(prediction.backend(from)), "from {from}");
            *counts.entry(answer.backend).or_default() += 1;
        }
    }
    counts
}

/// Panics unless the counts are what the table's shares make probable: within five standard
/// deviations of the binomial distribution.
fn assert_shares(counts: &BTreeMap<String, u32>, prediction: &Prediction, backends: &[IpAddr]) {
    let n: f64 = counts.values().map(|count| f64::from(*count)).sum();
    for backend in backends {
        let share = prediction.share(*backend);
        let count = f64::from(counts.get(&host_name(*backend)).copied().unwrap_or(0));
        let deviation = (n * share * (1.0 - share)).sqrt();
        assert!((count - n * share).abs() <= 5.0 * deviation, "{backend}: {count} of {n}, {share}");
    }
}

#[test]
fn ten_thousand_connections_go_where_the_table_says() {
    if without_root() {
        return;
    }
    let mut items = network(5, 0);
    for address in &CLIENTS_V4[1..] {
        items.push(ip("client", &format!("address add {address}/24 dev eth0")));
    }
    items.push(ip("client", &format!("address add {}/64 dev eth0 nodad", CLIENTS_V6[1])));
    let net = Net::up("xlbnspread", items);
    let (four, six) = (vip_at(V4, 80), vip_at(V6, 80));
    let (weighted4, weighted6) = (vip_at(V4, 81), vip_at(V6, 81));
    let weights = [1, 2, 5, 0];
    let with_weights = |name: &str, frontend, backend: fn(u8) -> IpAddr| {
        let service = Service::new(name, "l2").tcp(frontend);
        (1..)
            .zip(weights)
            .fold(service, |service, (n, weight)| service.weighted(backend(n), weight))
    };
    let services = [
        Service::new("four", "l2").tcp(four).backends((1..=5).map(near)),
        Service::new("six", "l2").tcp(six).backends((1..=5).map(near6)),
        with_weights("weighted-four", weighted4, near),
        with_weights("weighted-six", weighted6, near6),
    ];
    let _daemon = net.balance(&config(&services));
    let _servers = net.serve((1..=5).map(|n| format!("b{n}")), &[four, six, weighted4, weighted6]);
    let [table4, table6, table_weighted4, table_weighted6] =
        [(0, four), (1, six), (2, weighted4), (3, weighted6)]
            .map(|(index, at)| Prediction::new(&services[index], at, Protocol::Tcp));

    let counts = spread(&net, &CLIENTS_V4, 20_000..=21_874, four, &table4);
    assert_eq!(counts.values().sum::<u32>(), 7_500);
    assert_shares(&counts, &table4, &[1, 2, 3, 4, 5].map(near));
    let counts = spread(&net, &CLIENTS_V6, 20_000..=21_249, six, &table6);
    assert_eq!(counts.values().sum::<u32>(), 2_500);
    assert_shares(&counts, &table6, &[1, 2, 3, 4, 5].map(near6));

    for (clients, frontend, table, backend) in [
        (&CLIENTS_V4[..2], weighted4, &table_weighted4, near as fn(u8) -> IpAddr),
        (&CLIENTS_V6[..2], weighted6, &table_weighted6, near6),
    ] {
        let counts = spread(&net, clients, 30_000..=30_499, frontend, table);
        assert_eq!(counts.get("b4"), None, "a drained backend gets nothing");
        assert_shares(&counts, table, &[1, 2, 3].map(backend));
        for (n, weight) in (1..).zip(&weights[..3]) {
            let exact = f64::from(*weight) / 8.0;
            assert!((table.share(backend(n)) - exact).abs() < 0.005);
        }
    }
}

#[test]
fn datagrams_go_where_the_table_says() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnspreadudp", network(3, 0));
    for (frontend, backends) in
        [(vip_at(V4, 53), [1, 2, 3].map(near)), (vip_at(V6, 53), [1, 2, 3].map(near6))]
    {
        let service = Service::new("dns", "l2").udp(frontend).backends(backends);
        let _daemon = net.balance(&config(std::slice::from_ref(&service)));
        let _servers = net.serve(["b1", "b2", "b3"], &[frontend]);
        let prediction = Prediction::new(&service, frontend, Protocol::Udp);
        let outcomes = net.client().ask_udp_each(frontend, 20_000..=20_499, 3).unwrap();
        for outcome in outcomes {
            let answer = outcome.answer.unwrap();
            let expected = host_name(prediction.backend(answer.client));
            assert_eq!(answer.backend, expected, "from {}", answer.client);
        }
    }
}
