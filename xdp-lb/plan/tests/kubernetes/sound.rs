//! What the data path may rely on, whatever the objects say.

use std::collections::BTreeSet;

use xdp_lb_abi::{MAX_SERVICE_BACKENDS, Scope};
use xdp_lb_plan::{
    kubernetes::{Key, Served, ServiceState},
    maglev::{LADDER, table_size},
    model::Mode,
};

/// Checks what the data path may rely on.
pub(crate) fn check(state: &ServiceState) {
    let mut names = BTreeSet::new();
    let mut frontends = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for service in &state.services {
        assert_eq!(Key::of_service_name(&service.name), Some(state.key.clone()));
        assert!(state.port_of(&service.name).is_some(), "{}", service.name);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
        assert!(service.name.bytes().all(allowed) && service.name.len() <= 253);
        assert!(names.insert(&service.name), "one name, one service");
        assert!(service.frontends.iter().all(|one| frontends.insert(service.key(one))));
        let family = service.node_port_family;
        assert!(service.node_ports.iter().all(|one| node_ports.insert((
            *one,
            family,
            service.scope
        ))));
        assert!(!service.frontends.is_empty() || !service.node_ports.is_empty());
        match service.scope {
            Scope::All => {
                assert!(matches!(service.mode, Mode::Geneve | Mode::Snat | Mode::Hybrid))
            }
            // The kernel routes what sockets send.
            Scope::Sockets => assert_eq!(service.mode, Mode::Local),
        }
        assert!(service.backends.len() <= MAX_SERVICE_BACKENDS);
        let sockets = || service.backends.iter().map(|one| (one.address, one.port.unwrap()));
        assert!(sockets().is_sorted_by(|one, next| one < next), "sorted, and none twice");
        let v4 = service.backends.iter().map(|one| one.address);
        let v4 = v4.chain(service.frontends.iter().map(|one| one.address));
        let v4: BTreeSet<bool> = v4.map(|address| address.is_ipv4()).collect();
        assert!(v4.len() <= 1, "one family");
        if let Some(size) = service.table_size {
            let with_weight = service.backends.iter().filter(|one| one.weight > 0).count();
            assert!(LADDER.contains(&size) && size >= table_size(with_weight));
        }
    }
    for port in &state.ports {
        for frontend in &port.frontends {
            if let Served::Here(name) = &frontend.served {
                assert!(names.contains(name), "{name} is there");
            }
        }
    }
}

/// Checks what it may rely on of all Services together: no frontend is in two.
pub(crate) fn check_all<'a>(states: impl Iterator<Item = &'a ServiceState>) {
    let mut frontends = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for service in states.flat_map(|state| &state.services) {
        let family = service.node_port_family;
        assert!(service.frontends.iter().all(|one| frontends.insert(service.key(one))));
        assert!(service.node_ports.iter().all(|one| node_ports.insert((
            *one,
            family,
            service.scope
        ))));
    }
}
