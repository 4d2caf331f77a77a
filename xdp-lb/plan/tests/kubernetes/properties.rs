//! Any history of objects ends where the final objects alone lead.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        core::v1::{
            ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, NodeSpec,
            NodeStatus, Service, ServicePort, ServiceSpec, ServiceStatus, SessionAffinityConfig,
            Taint,
        },
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
            ForZone,
        },
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use proptest::{collection::vec, option, prelude::*, sample::select, strategy::Union};
use xdp_lb_plan::kubernetes::{Classes, Index, Key, Rules, Serves, ServiceState};

use crate::sound;

/// One event of a watch, or a new list.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are a few dozen at a time")]
enum Step {
    Service(Service),
    Slice(EndpointSlice),
    Node(Node),
    DeleteService(Key),
    DeleteSlice(Key),
    DeleteNode(String),
    Services(Vec<Service>),
    Slices(Vec<EndpointSlice>),
    Nodes(Vec<Node>),
    Rules(Rules),
    Look,
}

/// The final objects, by name.
#[derive(Debug, Default)]
struct Cluster {
    rules: Rules,
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, EndpointSlice>,
    nodes: BTreeMap<String, Node>,
    listed: BTreeSet<&'static str>,
}

impl Cluster {
    fn take(&mut self, step: &Step) {
        let service = |one: &Service| (Key::of(&one.metadata), one.clone());
        let slice = |one: &EndpointSlice| (Key::of(&one.metadata), one.clone());
        let node = |one: &Node| (one.metadata.name.clone().unwrap_or_default(), one.clone());
        match step {
            Step::Service(one) => self.services.extend([service(one)]),
            Step::Slice(one) => self.slices.extend([slice(one)]),
            Step::Node(one) => self.nodes.extend([node(one)]),
            Step::DeleteService(key) => drop(self.services.remove(key)),
            Step::DeleteSlice(key) => drop(self.slices.remove(key)),
            Step::DeleteNode(name) => drop(self.nodes.remove(name)),
            Step::Services(all) => self.services = all.iter().map(service).collect(),
            Step::Slices(all) => self.slices = all.iter().map(slice).collect(),
            Step::Nodes(all) => self.nodes = all.iter().map(node).collect(),
            Step::Rules(rules) => self.rules = rules.clone(),
            Step::Look => {}
        }
        match step {
            Step::Services(_) => drop(self.listed.insert("services")),
            Step::Slices(_) => drop(self.listed.insert("slices")),
            Step::Nodes(_) => drop(self.listed.insert("nodes")),
            Step::Service(_)
            | Step::Slice(_)
            | Step::Node(_)
            | Step::DeleteService(_)
            | Step::DeleteSlice(_)
            | Step::DeleteNode(_)
            | Step::Rules(_)
            | Step::Look => {}
        }
    }

    /// The lists that no step told.
    fn missing_lists(&self) -> Vec<Step> {
        let services = || Step::Services(self.services.values().cloned().collect());
        let slices = || Step::Slices(self.slices.values().cloned().collect());
        let nodes = || Step::Nodes(self.nodes.values().cloned().collect());
        let missing = |name, list: &dyn Fn() -> Step| (!self.listed.contains(name)).then(list);
        let all =
            [missing("services", &services), missing("slices", &slices), missing("nodes", &nodes)];
        all.into_iter().flatten().collect()
    }

    /// An index that has seen nothing but these, in one order of lists.
    fn index(&self) -> Index {
        let mut index = Index::new(self.rules.clone());
        index.replace_services(self.services.values());
        index.replace_slices(self.slices.values());
        index.replace_nodes(self.nodes.values());
        index.changes();
        index
    }
}

fn tell(index: &mut Index, step: &Step) {
    match step {
        Step::Service(one) => index.apply_service(one),
        Step::Slice(one) => index.apply_slice(one),
        Step::Node(one) => index.apply_node(one),
        Step::DeleteService(key) => index.delete_service(key),
        Step::DeleteSlice(key) => index.delete_slice(key),
        Step::DeleteNode(name) => index.delete_node(name),
        Step::Services(all) => index.replace_services(all),
        Step::Slices(all) => index.replace_slices(all),
        Step::Nodes(all) => index.replace_nodes(all),
        Step::Rules(rules) => index.set_rules(rules.clone()),
        Step::Look => {}
    }
}

type States = BTreeMap<Key, ServiceState>;

fn states(index: &Index) -> States {
    index.states().map(|state| (state.key.clone(), ServiceState::clone(state))).collect()
}

/// Takes the changes up, as the daemon does.
fn follow(index: &mut Index, told: &mut States) {
    let changes = index.changes();
    assert!(changes.is_sorted_by(|one, next| one.key < next.key), "in order, none twice");
    for change in changes {
        let before = match change.state {
            Some(state) => {
                told.insert(change.key, ServiceState::clone(&state)).as_ref() == Some(&state)
            }
            None => told.remove(&change.key).is_none(),
        };
        assert!(!before, "what did not change is not told");
    }
    assert_eq!(index.changes(), [], "and nothing is told twice");
}

fn check(steps: &[Step]) {
    let mut cluster = Cluster::default();
    let mut index = Index::new(Rules::default());
    let mut told = States::new();
    for step in steps {
        tell(&mut index, step);
        cluster.take(step);
        if matches!(step, Step::Look) {
            follow(&mut index, &mut told);
            let complete = cluster.listed.len() == 3;
            assert_eq!(index.is_complete(), complete);
            let expected = if complete { states(&cluster.index()) } else { States::new() };
            assert_eq!(told, expected);
        }
    }
    for step in cluster.missing_lists() {
        tell(&mut index, &step);
    }
    follow(&mut index, &mut told);
    let alone = cluster.index();
    assert_eq!(told, states(&alone), "the changes add up to the final objects' state");
    assert_eq!(told, states(&index));
    assert_eq!(index.findings(), alone.findings());
    assert_eq!(index.own_node(), alone.own_node());
    told.values().for_each(sound::check);
    sound::check_all(told.values());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_history_ends_where_the_final_objects_alone_lead(steps in history()) {
        check(&steps);
    }

    #[test]
    fn a_repeated_event_changes_nothing(steps in vec(step(), 1..20)) {
        let mut index = Index::new(Rules::default());
        for step in [Step::Services(vec![]), Step::Slices(vec![]), Step::Nodes(vec![])] {
            tell(&mut index, &step);
        }
        for step in &steps {
            tell(&mut index, step);
            index.changes();
            tell(&mut index, step);
            prop_assert_eq!(index.changes(), []);
        }
    }
}

/// Most begin with the three lists, so that what follows is looked at as it comes.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let lists = || vec![Step::Services(vec![]), Step::Slices(vec![]), Step::Nodes(vec![])];
    let first = prop_oneof![4 => Just(lists()), 1 => Just(vec![])];
    (first, vec(step(), 1..40)).prop_map(|(first, rest)| [first, rest].concat())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => service().prop_map(Step::Service),
        8 => slice().prop_map(Step::Slice),
        4 => node().prop_map(Step::Node),
        2 => key(service_name()).prop_map(Step::DeleteService),
        2 => key(slice_name()).prop_map(Step::DeleteSlice),
        2 => node_name().prop_map(Step::DeleteNode),
        1 => vec(service(), 0..4).prop_map(Step::Services),
        1 => vec(slice(), 0..5).prop_map(Step::Slices),
        1 => vec(node(), 0..3).prop_map(Step::Nodes),
        2 => rules().prop_map(Step::Rules),
        4 => Just(Step::Look),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let node = option::of(node_name().prop_map(String::into_boxed_str));
    let only = vec(option::of(select(vec!["x", "y"])), 0..2)
        .prop_map(|all| Classes::Only(all.into_iter().map(|one| one.map(Box::from)).collect()));
    let classes = prop_oneof![Just(Classes::All), only];
    let serves = (
        any::<bool>(),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(sockets, node_ports, external_ips, load_balancers)| Serves {
            sockets,
            node_ports,
            external_ips,
            load_balancers,
        });
    (node, classes, select(vec!["geneve", "snat", "hybrid"]), any::<bool>(), serves).prop_map(
        |(node, classes, mode, snat, serves)| Rules {
            node,
            classes,
            mode: mode.parse().unwrap(),
            serves,
            snat_ports: snat.then_some(30_001..=30_001),
        },
    )
}

/// Mostly one of a few texts, so that objects meet, and sometimes anything.
fn text(few: &[&str]) -> Union<BoxedStrategy<String>> {
    let few: Vec<String> = few.iter().map(|text| (*text).to_owned()).collect();
    Union::new_weighted(vec![(19, select(few).boxed()), (1, "\\PC{0,12}".boxed())])
}

/// Mostly one of a few numbers, and sometimes anything.
fn number(few: &[i32]) -> Union<BoxedStrategy<i32>> {
    Union::new_weighted(vec![(19, select(few.to_vec()).boxed()), (1, any::<i32>().boxed())])
}

fn service_name() -> impl Strategy<Value = String> {
    select(vec!["one", "two", "three"]).prop_map(str::to_owned)
}

fn slice_name() -> impl Strategy<Value = String> {
    select(vec!["p", "q", "r", "s"]).prop_map(str::to_owned)
}

fn node_name() -> impl Strategy<Value = String> {
    select(vec!["a", "b"]).prop_map(str::to_owned)
}

fn key(name: impl Strategy<Value = String>) -> impl Strategy<Value = Key> {
    (prop_oneof![9 => Just("m"), 1 => Just("n")], name)
        .prop_map(|(namespace, name)| Key::new(namespace, &name))
}

const ADDRESSES: [&str; 9] = [
    "192.0.2.1",
    "192.000.2.1",
    "192.0.2.2",
    "::ffff:192.0.2.2",
    "2001:db8::1",
    "2001:DB8:0::1",
    "10.96.0.1",
    "127.0.0.1",
    "",
];

fn addresses() -> impl Strategy<Value = Option<Vec<String>>> {
    option::of(vec(text(&ADDRESSES), 0..3))
}

/// Some of a few labels or annotations.
fn map(of: &'static [(&str, &[&str])]) -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    let one = select(of).prop_flat_map(|(key, values)| (Just(key.to_owned()), text(values)));
    option::of(vec(one, 0..3).prop_map(|all| all.into_iter().collect()))
}

fn service() -> impl Strategy<Value = Service> {
    let other_proxy = "service.kubernetes.io/service-proxy-name".to_owned();
    let labels = prop_oneof![
        9 => Just(None),
        1 => Just(Some(BTreeMap::from([(other_proxy, String::new())]))),
    ];
    let annotations = map(&[
        ("xdp-lb.dev/mode", &["snat", "geneve", "l2"]),
        ("xdp-lb.dev/table-size", &["251", "0"]),
        ("xdp-lb.dev/node-weights", &["a=0", "a=2,b=3"]),
        ("xdp-lb.dev/zone-weights", &["z=4"]),
    ]);
    let metadata = (key(service_name()), labels, annotations, option::of(0_i64..3));
    let metadata = metadata.prop_map(|(key, labels, annotations, created)| ObjectMeta {
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        labels,
        annotations,
        creation_timestamp: created.map(|at| Time(Timestamp::from_second(at).unwrap())),
        ..ObjectMeta::default()
    });
    let ips = prop_oneof![
        10 => Just(vec!["10.96.0.1", "2001:db8:96::1"]),
        10 => Just(vec!["10.96.0.2"]),
        1 => Just(vec!["None"]),
        1 => Just(vec!["x", "2001:db8:96::1"]),
        1 => Just(vec![]),
    ];
    let families = prop_oneof![
        10 => Just(vec!["IPv4".to_owned(), "IPv6".to_owned()]),
        1 => vec(text(&["IPv4", "IPv6"]), 0..3),
    ];
    let policies = (
        option::of(text(&["Cluster", "Local"])),
        option::of(text(&["Cluster", "Local"])),
        option::of(text(&["ClientIP", "None"])),
        option::of(number(&[1, 10_800])),
    );
    let ports = option::weighted(0.9, vec(port(), 1..4));
    let types =
        ["ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"];
    let kind = option::weighted(0.9, text(&types));
    let outside = (
        addresses(),
        option::of(vec(ingress(), 0..3)),
        option::of(vec(text(&["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "x"]), 0..3)),
        option::of(text(&["x", "y"])),
        number(&[0, 31_000]),
    );
    (metadata, kind, ips, families, policies, ports, outside).prop_map(
        |(metadata, kind, ips, families, policies, ports, outside)| {
            let (external, internal, affinity, timeout) = policies;
            let (external_ips, ingress, ranges, class, health) = outside;
            let client_ip = ClientIPConfig { timeout_seconds: timeout };
            let config = SessionAffinityConfig { client_ip: Some(client_ip) };
            let load_balancer = LoadBalancerStatus { ingress };
            Service {
                metadata,
                spec: Some(ServiceSpec {
                    type_: kind,
                    cluster_ip: ips.first().map(|ip| (*ip).to_owned()),
                    cluster_ips: Some(ips.into_iter().map(str::to_owned).collect()),
                    ip_families: Some(families),
                    external_traffic_policy: external,
                    internal_traffic_policy: internal,
                    session_affinity: affinity,
                    session_affinity_config: timeout.map(|_| config),
                    ports,
                    external_ips,
                    load_balancer_source_ranges: ranges,
                    load_balancer_class: class,
                    health_check_node_port: Some(health),
                    ..ServiceSpec::default()
                }),
                status: Some(ServiceStatus {
                    load_balancer: Some(load_balancer),
                    ..ServiceStatus::default()
                }),
            }
        },
    )
}

fn port() -> impl Strategy<Value = ServicePort> {
    let protocol = option::of(text(&["TCP", "UDP"]));
    let numbers = (number(&[80, 81]), option::of(number(&[0, 30_000, 30_001])));
    (option::of(text(&["", "http"])), protocol, numbers).prop_map(
        |(name, protocol, (port, node_port))| ServicePort {
            name,
            protocol,
            port,
            node_port,
            ..ServicePort::default()
        },
    )
}

fn ingress() -> impl Strategy<Value = LoadBalancerIngress> {
    (option::of(text(&ADDRESSES)), option::of(text(&["VIP", "Proxy"]))).prop_map(|(ip, ip_mode)| {
        LoadBalancerIngress { ip, ip_mode, ..LoadBalancerIngress::default() }
    })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let owner = option::weighted(0.9, text(&["one", "one", "two", "three", ""]));
    let labels = (owner, prop_oneof![9 => Just(false), 1 => Just(true)]);
    let labels = labels.prop_map(|(owner, headless)| {
        let owner = owner.map(|owner| ("kubernetes.io/service-name".to_owned(), owner));
        let headless =
            headless.then(|| ("service.kubernetes.io/headless".to_owned(), String::new()));
        Some(owner.into_iter().chain(headless).collect::<BTreeMap<_, _>>())
    });
    let annotations = map(&[(
        "endpoints.kubernetes.io/last-change-trigger-time",
        &["2026-01-01T00:00:00.123Z", "x"],
    )]);
    let ports = (option::of(text(&["", "http"])), option::of(number(&[8080, 8081])));
    let ports = (ports, option::of(text(&["TCP", "UDP"]))).prop_map(|((name, port), protocol)| {
        EndpointPort { name, port, protocol, ..EndpointPort::default() }
    });
    let ports = option::weighted(0.9, vec(ports, 1..3));
    let endpoints = option::weighted(0.9, vec(endpoint(), 0..5));
    (key(slice_name()), labels, annotations, text(&["IPv4", "IPv4", "IPv6"]), ports, endpoints)
        .prop_map(|(key, labels, annotations, address_type, ports, endpoints)| EndpointSlice {
            metadata: ObjectMeta {
                namespace: Some(key.namespace.to_string()),
                name: Some(key.name.to_string()),
                labels,
                annotations,
                ..ObjectMeta::default()
            },
            address_type,
            ports,
            endpoints,
        })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let addresses = vec(text(&["10.1.0.1", "10.1.0.2", "10.1.0.3", "2001:db8:1::1"]), 1..2);
    let conditions = (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>());
    let hints = (vec(text(&["z", "y"]), 0..2), vec(text(&["a", "b"]), 0..2));
    let places = (option::of(text(&["a", "b", "gone"])), option::of(text(&["z", "y"])));
    (addresses, conditions, hints, places, option::of(text(&["pod"]))).prop_map(
        |(
            addresses,
            (ready, serving, terminating),
            (zones, nodes),
            (node_name, zone),
            hostname,
        )| {
            Endpoint {
                addresses,
                conditions: Some(EndpointConditions { ready, serving, terminating }),
                hints: Some(EndpointHints {
                    for_zones: Some(zones.into_iter().map(|name| ForZone { name }).collect()),
                    for_nodes: Some(nodes.into_iter().map(|name| ForNode { name }).collect()),
                }),
                node_name,
                zone,
                hostname,
                ..Endpoint::default()
            }
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let address =
        (text(&["InternalIP", "ExternalIP"]), text(&["10.0.0.1", "10.0.0.2", "2001:db8::a"]));
    let address = address.prop_map(|(type_, address)| NodeAddress { type_, address });
    let labels = map(&[("topology.kubernetes.io/zone", &["z", "y"])]);
    let taint = text(&["ToBeDeletedByClusterAutoscaler", "other"]);
    (node_name(), labels, option::of(vec(address, 0..3)), option::of(taint), any::<bool>())
        .prop_map(|(name, labels, addresses, taint, deleting)| Node {
            metadata: ObjectMeta {
                name: Some(name),
                labels,
                deletion_timestamp: deleting.then_some(Time(Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: taint.map(|key| vec![Taint { key, ..Taint::default() }]),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus { addresses, ..NodeStatus::default() }),
        })
}
