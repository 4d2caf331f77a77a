//! What one Service comes to, with its endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use xdp_lb_abi::{Family, MAX_SERVICE_BACKENDS, Scope};

use crate::{
    kubernetes::{
        Endpoint, Finding, FrontendKind, FrontendState, HealthCheckPort, Key, Object, ObjectKind,
        PodMode, PortState, Problem, Rules, Served, ServiceState, TrafficPolicy,
        choice::Here,
        claims::{Claim, Claims},
        endpoints::Endpoints,
        node::Node,
        service::{FamilyAddresses, Service, ServicePort},
        slice::Slice,
        state::port_name,
    },
    maglev,
    model::{self, Backend, Frontend, NoBackends, NodePort, Protocol},
};

/// All that the rules look at besides the Service and its slices.
#[derive(Clone, Copy, Debug)]
pub(super) struct World<'a> {
    pub(super) rules: &'a Rules,
    pub(super) nodes: &'a BTreeMap<Arc<str>, Node>,
    pub(super) claims: &'a Claims,
}

impl<'a> World<'a> {
    fn here(&self) -> Here<'a> {
        let node = self.rules.node.as_deref();
        let zone = node.and_then(|node| self.nodes.get(node)?.zone.as_deref());
        Here { node, zone }
    }
}

/// What one Service comes to, with its slices by name.
pub(super) fn resolve(
    key: &Key,
    service: &Service,
    slices: &BTreeMap<Arc<str>, Slice>,
    world: World<'_>,
) -> ServiceState {
    let mut resolver = Resolver::new(key, service, slices, world);
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        for (family, addresses) in service.families() {
            ports.push(resolver.port(port, family, addresses));
        }
    }
    resolver.finish(ports)
}

struct Resolver<'a> {
    key: &'a Key,
    service: &'a Service,
    slices: &'a BTreeMap<Arc<str>, Slice>,
    world: World<'a>,
    here: Here<'a>,
    mode: PodMode,
    /// Ready on this node
    local: BTreeSet<IpAddr>,
    services: Vec<model::Service>,
    findings: BTreeSet<Finding>,
}

impl<'a> Resolver<'a> {
    fn new(
        key: &'a Key,
        service: &'a Service,
        slices: &'a BTreeMap<Arc<str>, Slice>,
        world: World<'a>,
    ) -> Self {
        Self {
            key,
            service,
            slices,
            world,
            here: world.here(),
            mode: service.annotations.mode.unwrap_or(world.rules.mode),
            local: BTreeSet::new(),
            services: Vec::new(),
            findings: BTreeSet::new(),
        }
    }

    fn port(
        &mut self,
        port: &ServicePort,
        family: Family,
        addresses: &FamilyAddresses,
    ) -> PortState {
        let endpoints = Endpoints::join(self.slices, port, family);
        self.local.extend(endpoints.ready_here(&self.here));
        let annotations = &self.service.annotations;
        let described = endpoints.describe(&self.here, self.world.nodes, annotations, family);
        let ranges = ranges(&self.service.source_ranges, family);
        let mut frontends = self.frontends(port, family, addresses, !ranges.is_empty());
        for frontend in &mut frontends {
            frontend.no_backends = no_backends(&endpoints, &described, frontend.policy);
        }
        let outside = |one: &FrontendState| one.is_here() && one.kind != FrontendKind::ClusterIp;
        if frontends.iter().any(outside) {
            let policy = self.service.external_policy;
            let backends = self.backends(port, &endpoints, &described, policy);
            if self.world.rules.node.is_none()
                && policy == TrafficPolicy::Local
                && (self.mode == PodMode::Snat
                    || self.mode == PodMode::Hybrid && port.protocol != Protocol::Tcp)
            {
                self.find("spec.externalTrafficPolicy", Problem::SourceLost);
            }
            self.find_missing_nodes(&endpoints);
            self.add_services(port, family, &frontends, ranges, backends);
        }
        self.add_for_sockets(port, family, &frontends, &endpoints, &described);
        PortState {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol,
            family,
            frontends,
            endpoints: described,
        }
    }

    fn backends(
        &mut self,
        port: &ServicePort,
        endpoints: &Endpoints<'_>,
        described: &[Endpoint],
        policy: TrafficPolicy,
    ) -> Vec<Backend> {
        let (backends, too_many) = endpoints.backends(described, policy, port.protocol, &self.here);
        if too_many {
            self.find("spec.ports", Problem::TooManyEndpoints(MAX_SERVICE_BACKENDS));
        }
        backends
    }

    /// All frontends of a port, whoever serves them.
    fn frontends(
        &mut self,
        port: &ServicePort,
        family: Family,
        addresses: &FamilyAddresses,
        filtered: bool,
    ) -> Vec<FrontendState> {
        let service = self.service;
        let in_class = self.world.rules.classes.have(service.class.as_deref());
        let serves = self.world.rules.serves;
        let mut frontends = Vec::new();
        let mut add = |kind, address: Option<IpAddr>, number, served| {
            frontends.push(FrontendState {
                kind,
                address,
                port: number,
                policy: match kind {
                    FrontendKind::ClusterIp => service.internal_policy,
                    FrontendKind::NodePort
                    | FrontendKind::ExternalIp
                    | FrontendKind::LoadBalancer => service.external_policy,
                },
                filtered: filtered && kind == FrontendKind::LoadBalancer,
                no_backends: NoBackends::Reject,
                served,
            });
        };
        if let Some(address) = addresses.cluster_ip {
            let served = self.cluster_ip(port, address, family);
            add(FrontendKind::ClusterIp, Some(address), port.port, served);
        }
        if let Some(number) = port.node_port {
            let served = self.node_port(port, number, family);
            add(FrontendKind::NodePort, None, number, served);
        }
        // An address that is both is filtered as the LoadBalancer's.
        let external = addresses.external_ips.iter();
        let external = external.filter(|one| !(in_class && addresses.load_balancer.contains(*one)));
        for address in external {
            let name = service_name(self.key, port, family, if filtered { EXTERNAL } else { "" });
            let served = match serves.external_ips {
                true => self.address(port, *address, "spec.externalIPs", name),
                false => Served::LeftToKubeProxy,
            };
            add(FrontendKind::ExternalIp, Some(*address), port.port, served);
        }
        for address in &addresses.load_balancer {
            let served = if !serves.load_balancers {
                Served::LeftToKubeProxy
            } else if in_class {
                let name = service_name(self.key, port, family, "");
                self.address(port, *address, "status.loadBalancer.ingress", name)
            } else {
                Served::OtherClass
            };
            add(FrontendKind::LoadBalancer, Some(*address), port.port, served);
        }
        frontends
    }

    /// A ClusterIP, which sockets of this host alone reach.
    fn cluster_ip(&mut self, port: &ServicePort, address: IpAddr, family: Family) -> Served {
        match (self.world.rules.serves.sockets, port.protocol) {
            (false, _) => Served::LeftToKubeProxy,
            (true, Protocol::Sctp) => Served::NoHook,
            (true, Protocol::Tcp | Protocol::Udp) => {
                let name = service_name(self.key, port, family, CLUSTER_IP);
                self.address(port, address, "spec.clusterIPs", name)
            }
        }
    }

    fn address(
        &mut self,
        port: &ServicePort,
        address: IpAddr,
        field: &str,
        name: String,
    ) -> Served {
        let frontend = Frontend { address, port: port.port, protocol: port.protocol };
        match self.other_owner(&Claim::At(frontend)) {
            None => Served::Here(name),
            Some(owner) => {
                self.find(field, Problem::FrontendTaken { frontend, owner: owner.clone() });
                Served::Taken(owner)
            }
        }
    }

    fn node_port(
        &mut self,
        port: &ServicePort,
        number: std::num::NonZeroU16,
        family: Family,
    ) -> Served {
        if !self.world.rules.serves.node_ports {
            return Served::LeftToKubeProxy;
        }
        let port_of_node = NodePort { port: number, protocol: port.protocol };
        if self.world.rules.snat_ports.as_ref().is_some_and(|ports| ports.contains(&number.get())) {
            self.find("spec.ports", Problem::SnatPort(port_of_node));
            return Served::SnatPort;
        }
        match self.other_owner(&Claim::NodePort(port_of_node, family)) {
            None => Served::Here(service_name(self.key, port, family, "")),
            Some(owner) => {
                let problem = Problem::NodePortTaken { port: port_of_node, owner: owner.clone() };
                self.find("spec.ports", problem);
                Served::Taken(owner)
            }
        }
    }

    fn other_owner(&self, claim: &Claim) -> Option<Key> {
        self.world.claims.owner(claim).filter(|owner| *owner != self.key).cloned()
    }

    /// The model's services for the frontends that are served here: those with a filter and those
    /// without, where both are there. Node ports are never filtered, so either suits them.
    fn add_services(
        &mut self,
        port: &ServicePort,
        family: Family,
        frontends: &[FrontendState],
        ranges: Vec<IpNet>,
        backends: Vec<Backend>,
    ) {
        let mut services: BTreeMap<&str, model::Service> = BTreeMap::new();
        for frontend in frontends {
            let Served::Here(name) = &frontend.served else { continue };
            if frontend.kind == FrontendKind::ClusterIp {
                continue;
            }
            let service = services.entry(name).or_insert_with(|| model::Service {
                name: name.clone(),
                mode: self.mode.into(),
                node_port_family: Some(family),
                table_size: self.table_size(&backends),
                affinity: self.service.affinity,
                no_backends: frontend.no_backends,
                sockets_apart: self.has_short_cuts(port.protocol),
                backends: backends.clone(),
                ..model::Service::default()
            });
            if frontend.filtered {
                service.sources.clone_from(&ranges);
            }
            put(service, frontend, port.protocol);
        }
        self.services.extend(services.into_values());
    }

    /// Whether sockets of this host reach frontends for traffic from outside by services of their own:
    /// what starts inside the cluster may go to all endpoints, as with kube-proxy.
    fn has_short_cuts(&self, protocol: Protocol) -> bool {
        self.world.rules.serves.sockets
            && protocol != Protocol::Sctp
            && self.here.node.is_some()
            && self.service.external_policy == TrafficPolicy::Local
    }

    /// The model's services for what sockets of this host alone reach. Which way leads to a pod is for
    /// the kernel to know: packets are addressed to it from the start.
    fn add_for_sockets(
        &mut self,
        port: &ServicePort,
        family: Family,
        frontends: &[FrontendState],
        endpoints: &Endpoints<'_>,
        described: &[Endpoint],
    ) {
        let short_cuts = self.has_short_cuts(port.protocol);
        let is_cluster_ip = |one: &FrontendState| one.kind == FrontendKind::ClusterIp;
        let own = frontends.iter().find(|one| is_cluster_ip(one) && one.is_here());
        // An external IP that is the ClusterIP as well is reached as the latter.
        let twice = |one: &FrontendState| {
            !is_cluster_ip(one)
                && one.address.is_some()
                && own.is_some_and(|own| own.address == one.address)
        };
        for (suffix, wanted) in [(CLUSTER_IP, true), (INSIDE, short_cuts)] {
            let same = |one: &&FrontendState| {
                one.is_here() && is_cluster_ip(one) == (suffix == CLUSTER_IP) && !twice(one)
            };
            let mut frontends = frontends.iter().filter(same).peekable();
            let Some(first) = frontends.peek().filter(|_| wanted) else { continue };
            let policy = first.kind.policy_from_inside(self.service.internal_policy);
            let backends = self.backends(port, endpoints, described, policy);
            let mut service = model::Service {
                name: service_name(self.key, port, family, suffix),
                scope: Scope::Sockets,
                mode: model::Mode::Local,
                node_port_family: Some(family),
                table_size: self.table_size(&backends),
                affinity: self.service.affinity,
                no_backends: no_backends(endpoints, described, policy),
                backends,
                ..model::Service::default()
            };
            frontends.for_each(|one| put(&mut service, one, port.protocol));
            self.services.push(service);
        }
    }

    /// What its annotation says, or more where its backends need more.
    fn table_size(&self, backends: &[Backend]) -> Option<u32> {
        let with_weight = backends.iter().filter(|backend| backend.weight > 0).count();
        let size = self.service.annotations.table_size;
        size.map(|size| size.max(maglev::table_size(with_weight)))
    }

    /// Nodes that are not there: no tunnel can lead to them.
    fn find_missing_nodes(&mut self, endpoints: &Endpoints<'_>) {
        if self.mode == PodMode::Snat {
            return;
        }
        for name in endpoints.nodes() {
            if !self.world.nodes.contains_key(name) {
                let key = Key { namespace: "".into(), name: name.clone() };
                let object = Object { kind: ObjectKind::Node, key, uid: "".into() };
                let (field, problem) = ("metadata.name".to_owned(), Problem::NoNode);
                self.findings.insert(Finding { object, field, problem });
            }
        }
    }

    fn find(&mut self, field: &str, problem: Problem) {
        let object = self.object();
        self.findings.insert(Finding { object, field: field.to_owned(), problem });
    }

    fn object(&self) -> Object {
        let (key, uid) = (self.key.clone(), self.service.uid.clone());
        Object { kind: ObjectKind::Service, key, uid }
    }

    fn finish(mut self, ports: Vec<PortState>) -> ServiceState {
        let object = self.object();
        self.findings.extend(self.service.flaws.iter().map(|flaw| flaw.of(&object)));
        for (name, slice) in self.slices.iter().filter(|(_, slice)| !slice.flaws.is_empty()) {
            let key = Key { namespace: self.key.namespace.clone(), name: name.clone() };
            let object = Object { kind: ObjectKind::EndpointSlice, key, uid: slice.uid.clone() };
            self.findings.extend(slice.flaws.iter().map(|flaw| flaw.of(&object)));
        }
        let service = self.service;
        ServiceState {
            key: self.key.clone(),
            uid: service.uid.clone(),
            services: self.services,
            kind: service.kind,
            external_policy: service.external_policy,
            internal_policy: service.internal_policy,
            traffic_distribution: service.traffic_distribution.clone(),
            affinity: service.affinity,
            source_ranges: service.source_ranges.clone(),
            mode: self.mode,
            table_size: service.annotations.table_size,
            ports,
            health_check: self.here.node.and(service.health_check_port).map(|port| {
                let count = |v6| self.local.iter().filter(|one| one.is_ipv6() == v6).count();
                HealthCheckPort { port, local_ipv4: count(false), local_ipv6: count(true) }
            }),
            findings: self.findings.into_iter().collect(),
        }
    }
}

/// The networks of one family that filter; none where one of them is all of it.
fn ranges(all: &[IpNet], family: Family) -> Vec<IpNet> {
    let ranges: Vec<IpNet> =
        all.iter().filter(|net| net.addr().is_ipv4() == (family == Family::V4)).copied().collect();
    if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { ranges }
}

/// Nobody can serve: the client is to know. Somebody could, but the policy does not let him: another
/// node may serve, so the client tries again.
fn no_backends(
    endpoints: &Endpoints<'_>,
    described: &[Endpoint],
    policy: TrafficPolicy,
) -> NoBackends {
    if endpoints.any() && !described.iter().any(|one| one.serves(policy)) {
        NoBackends::Drop
    } else {
        NoBackends::Reject
    }
}

/// What stands behind the names of services whose frontends another one of the port has not: external
/// IPs beside filtered LoadBalancer addresses, ClusterIPs, and short cuts from inside.
const EXTERNAL: &str = "-external";
const CLUSTER_IP: &str = "-clusterip";
const INSIDE: &str = "-inside";

/// Adds a frontend to a model's service.
fn put(service: &mut model::Service, frontend: &FrontendState, protocol: Protocol) {
    let port = frontend.port;
    match frontend.address {
        Some(address) => service.frontends.push(Frontend { address, port, protocol }),
        None => service.node_ports.push(NodePort { port, protocol }),
    }
}

/// The name of the model's service for a port.
fn service_name(key: &Key, port: &ServicePort, family: Family, suffix: &str) -> String {
    port_name(key, port.port, port.protocol, family) + suffix
}
