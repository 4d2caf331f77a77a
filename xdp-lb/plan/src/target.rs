//! What each frontend must lead to.

use std::collections::BTreeMap;

use xdp_lb_abi::{FrontendKey, Mode};

use crate::{
    backends::BackendKey,
    maglev::{Candidate, Identity, table_size},
    model::{Frontend, Service},
};

/// What one frontend must lead to.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) service: &'a str,
    pub(crate) frontend: Frontend,
    pub(crate) wanted: Wanted,
}

/// What a table is computed from, apart from the cluster's key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) mode: Mode,
    pub(crate) table_size: u32,
    /// Sorted by identity
    pub(crate) candidates: Vec<Candidate>,
}

impl Wanted {
    /// The backends, in the candidates' order.
    pub(crate) fn backends(&self) -> Vec<BackendKey> {
        let key =
            |candidate: &Candidate| BackendKey { identity: candidate.identity, mode: self.mode };
        self.candidates.iter().map(key).collect()
    }
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
        wanted: Wanted {
            mode: service.mode,
            table_size: service.table_size.unwrap_or_else(|| table_size(with_weight)),
            candidates,
        },
    }
}
