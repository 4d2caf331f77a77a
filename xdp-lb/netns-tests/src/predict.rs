//! Which backend a flow must go to, computed from the configuration alone.

use std::net::{IpAddr, SocketAddr};

use xdp_lb_abi::{Address, FlowKey};
use xdp_lb_plan::{
    maglev::{self, Candidate, HashKey, Identity, Table, table_size},
    model::Protocol,
};

use crate::config::{HASH_KEY, Service};

/// The table of one frontend.
#[derive(Clone, Debug)]
pub struct Prediction {
    table: Table,
    frontend: SocketAddr,
    protocol: Protocol,
}

impl Prediction {
    /// The table that a service has for a frontend.
    pub fn new(service: &Service, frontend: SocketAddr, protocol: Protocol) -> Self {
        let candidates: Vec<Candidate> = service
            .candidates()
            .iter()
            .map(|&(address, weight)| Candidate {
                identity: Identity { address, port: frontend.port(), protocol },
                weight,
            })
            .collect();
        let with_weight = candidates.iter().filter(|one| one.weight > 0).count();
        let key = HashKey::from(HASH_KEY);
        let table = maglev::build(&key, &candidates, table_size(with_weight)).unwrap();
        Self { table, frontend, protocol }
    }

    /// The backend of a client's flow.
    pub fn backend(&self, client: SocketAddr) -> IpAddr {
        let (low, high) = HASH_KEY.split_at(8);
        let key = [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
        let (source, destination) = (Address::from(client.ip()), Address::from(self.frontend.ip()));
        let ports = (client.port(), self.frontend.port());
        let hash = FlowKey::new(source, destination, ports, self.protocol.number()).hash(key);
        let slots = self.table.slots();
        let slot = (u64::from(hash) * slots.len() as u64) >> 32;
        self.table.backends()[usize::from(slots[slot as usize])].identity.address
    }

    /// Share of the slots that a backend has.
    pub fn share(&self, backend: IpAddr) -> f64 {
        let backends = self.table.backends().iter().map(|one| one.identity.address);
        let of = backends.zip(self.table.shares()).find(|(address, _)| *address == backend);
        of.map_or(0.0, |(_, slots)| f64::from(slots) / self.table.slots().len() as f64)
    }
}
