//! Where services come from, and what they are together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;
use xdp_lb_api::view::Owner;
use xdp_lb_plan::{
    health,
    model::{Backend, Mode, Service},
};

use crate::{config::Listen, health::Found, kubernetes::Side};

/// What the file says of services.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FileSide {
    /// In the file's order
    pub(super) services: Vec<Service>,
    /// For services that name no mode
    pub(super) default_mode: Mode,
    /// Networks of pods on this host
    pub(super) pods: Vec<IpNet>,
}

/// What the API says of services.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ApiSide {
    /// By name
    pub(super) services: BTreeMap<String, Service>,
    /// Names of backends that get no new flows, by service of whatever owner
    pub(super) drained: BTreeMap<String, BTreeSet<String>>,
    /// Those of them that are removed once their last flow is gone
    pub(super) removing: BTreeMap<String, BTreeSet<String>>,
    /// Services that cannot be used any more, and why
    pub(super) faults: Vec<String>,
}

/// What all sources say, as the daemon keeps it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) file: Vec<Service>,
    pub(super) api: Arc<ApiSide>,
    pub(super) cluster: Arc<Side>,
    /// What of the API's and of the cluster's does not count
    pub(super) conflicts: Vec<String>,
    /// What is known of backends that are asked
    pub(super) health: Arc<Found>,
}

impl Sources {
    /// The services of all sources, each backend with the weight that its health leaves it.
    pub(super) fn services(&mut self) -> Vec<Service> {
        let Union { mut services, conflicts } = union(&self.file, &self.api, &self.cluster);
        self.conflicts = conflicts;
        for service in &mut services {
            let name = service.name.clone();
            let status = |backend: &_| self.health.get(&(name.clone(), backend_name(backend)));
            health::apply(service, |backend| status(backend).map(|one| &one.health));
        }
        services
    }

    /// Who declares each service, and as what: before drains and health.
    pub(super) fn declared(&self) -> HashMap<&str, (Owner, &Service)> {
        let cluster = self.cluster.states.values().flat_map(|state| &state.services);
        let cluster = cluster.map(|one| (one, Owner::Kubernetes));
        let api = self.api.services.values().map(|one| (one, Owner::Api));
        // Those that count come last.
        let all = cluster.chain(api).chain(self.file.iter().map(|one| (one, Owner::File)));
        all.map(|(service, owner)| (service.name.as_str(), (owner, service))).collect()
    }
}

/// All services, and what of the API's and of the cluster's is not among them.
#[derive(Debug, PartialEq)]
pub(super) struct Union {
    pub(super) services: Vec<Service>,
    pub(super) conflicts: Vec<String>,
}

/// The services of all sources. Where two contradict each other, the file counts before the API, and
/// both before the cluster: the file has been checked as a whole, the API has refused what
/// contradicted it when it was set, and who declares something here wants to have it so.
pub(super) fn union(file: &[Service], api: &ApiSide, cluster: &Side) -> Union {
    let mut conflicts = api.faults.clone();
    let mut taken = Taken::default();
    taken.add(file, Owner::File);
    let of_api = taken.leave(api.services.values(), Owner::Api, &mut conflicts);
    taken.add(&of_api, Owner::Api);
    let of_cluster = cluster.states.values().flat_map(|state| &state.services);
    let of_cluster = taken.leave(of_cluster, Owner::Kubernetes, &mut conflicts);
    let mut services = file.to_vec();
    services.extend(of_api);
    services.extend(of_cluster);
    for service in &mut services {
        let Some(drained) = api.drained.get(&service.name) else { continue };
        for backend in &mut service.backends {
            if drained.contains(&backend_name(backend)) {
                backend.weight = 0;
            }
        }
    }
    Union { services, conflicts }
}

/// What belongs to somebody.
#[derive(Default)]
struct Taken<'a> {
    names: HashMap<&'a str, Owner>,
    listens: HashMap<Listen, (&'a str, Owner)>,
}

impl<'a> Taken<'a> {
    fn add(&mut self, services: &'a [Service], owner: Owner) {
        for service in services {
            self.names.insert(&service.name, owner);
            let listens = Listen::of(service);
            self.listens.extend(listens.map(|one| (one, (&*service.name, owner))));
        }
    }

    /// What is left of a source's services without what belongs to others.
    fn leave<'b>(
        &self,
        services: impl Iterator<Item = &'b Service>,
        owner: Owner,
        conflicts: &mut Vec<String>,
    ) -> Vec<Service> {
        let whose = place(owner);
        let left = services.filter_map(|one| {
            let name = &one.name;
            if let Some(other) = self.names.get(&**name) {
                conflicts.push(format!(
                    "service {name} of {whose} has the name of one in {}, which counts",
                    place(*other)
                ));
                return None;
            }
            let mut free = |listen: Listen| {
                let other = self.listens.get(&listen);
                if let Some((other, owner)) = other {
                    conflicts.push(format!(
                        "{listen} of service {name} of {whose} belongs to service {other} of {}, \
                         which counts",
                        place(*owner)
                    ));
                }
                other.is_none()
            };
            let mut service = one.clone();
            service.frontends.retain(|one| free(Listen::Address(*one)));
            service.node_ports.retain(|one| free(Listen::NodePort(*one)));
            let served = !service.frontends.is_empty() || !service.node_ports.is_empty();
            served.then_some(service)
        });
        left.collect()
    }
}

const fn place(owner: Owner) -> &'static str {
    match owner {
        Owner::File => "the file",
        Owner::Api => "the API",
        Owner::Kubernetes => "Kubernetes",
    }
}

/// What the API calls a backend: its address, and its port where it has one of its own.
pub(super) fn backend_name(backend: &Backend) -> String {
    match backend.port {
        Some(port) => std::net::SocketAddr::new(backend.address, port.get()).to_string(),
        None => backend.address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service_from_json;

    /// A service with frontends 192.0.2.N:80 and backends 10.0.0.1 and 10.0.0.2.
    fn service(name: &str, frontends: &[u8]) -> Service {
        let frontends: Vec<_> = frontends
            .iter()
            .map(|n| serde_json::json!({"address": format!("192.0.2.{n}"), "port": 80}))
            .collect();
        let value = serde_json::json!({
            "name": name,
            "frontends": frontends,
            "backends": [{"address": "10.0.0.1", "port": 80}, {"address": "10.0.0.2"}],
        });
        service_from_json(&value, Mode::L2, &[]).unwrap()
    }

    fn api(services: &[Service], drained: &[(&str, &str)]) -> ApiSide {
        let services = services.iter().map(|one| (one.name.clone(), one.clone())).collect();
        let mut side = ApiSide { services, ..ApiSide::default() };
        for (service, backend) in drained {
            let of = side.drained.entry((*service).to_owned()).or_default();
            of.insert((*backend).to_owned());
        }
        side
    }

    #[test]
    fn services_of_both_are_together() {
        let (a, b) = (service("a", &[1]), service("b", &[2]));
        let union =
            union(std::slice::from_ref(&b), &api(std::slice::from_ref(&a), &[]), &Side::default());
        assert_eq!(union, Union { services: vec![b, a], conflicts: vec![] });
    }

    #[test]
    fn the_file_counts_where_they_contradict_each_other() {
        let file = [service("a", &[1]), service("b", &[2])];
        let side = api(&[service("b", &[3]), service("c", &[1, 4]), service("d", &[2])], &[]);
        let union = union(&file, &side, &Side::default());
        let names: Vec<_> = union.services.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(union.services[1].frontends, file[1].frontends);
        assert_eq!(union.services[2].frontends, service("c", &[4]).frontends);
        assert_eq!(union.conflicts.len(), 3, "{:?}", union.conflicts);
        assert!(union.conflicts[1].contains("192.0.2.1:80/TCP"), "{:?}", union.conflicts);
    }

    #[test]
    fn drained_backends_weigh_nothing_whoever_owns_their_service() {
        let drained = [("a", "10.0.0.1:80"), ("b", "10.0.0.2"), ("b", "10.0.0.1"), ("x", "y")];
        let union =
            union(&[service("a", &[1])], &api(&[service("b", &[2])], &drained), &Side::default());
        let weights = |n: usize| union.services[n].backends.iter().map(|b| b.weight);
        assert_eq!(weights(0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(weights(1).collect::<Vec<_>>(), [1, 0], "a name with a port is another one");
    }
}
