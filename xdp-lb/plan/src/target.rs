//! What each frontend must lead to.

use std::collections::BTreeMap;

use xdp_lb_abi::{FrontendKey, Mode};

use crate::{
    maglev::{Candidate, Identity, table_size},
    model::{Frontend, Service},
};

/// What one frontend must lead to.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) service: &'a str,
    pub(crate) frontend: Frontend,
    pub(crate) mode: Mode,
    pub(crate) table_size: u32,
    /// Sorted by identity
    pub(crate) candidates: Vec<Candidate>,
}

/// The targets of all services, by frontend. A frontend that two services name is the first one's.
pub(crate) fn targets(services: &[Service]) -> BTreeMap<FrontendKey, Target<'_>> {
    let mut targets = BTreeMap::new();
    for service in services {
        for frontend in &service.frontends {
            targets.entry(frontend.key()).or_insert_with(|| target(service, *frontend));
        }
    }
    targets
}

fn target(service: &Service, frontend: Frontend) -> Target<'_> {
    let mut candidates: Vec<Candidate> = service
        .backends
        .iter()
        .map(|backend| Candidate {
            identity: Identity {
                address: backend.address,
                port: backend.port.unwrap_or(frontend.port).get(),
                protocol: frontend.protocol,
            },
            weight: backend.weight,
        })
        .collect();
    candidates.sort_unstable();
    candidates.dedup_by_key(|candidate| candidate.identity);
    let with_weight = candidates.iter().filter(|candidate| candidate.weight > 0).count();
    Target {
        service: &service.name,
        frontend,
        mode: service.mode,
        table_size: service.table_size.unwrap_or_else(|| table_size(with_weight)),
        candidates,
    }
}
