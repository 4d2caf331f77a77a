//! Numbers by which instances compare their tables.

use siphasher::sip;
use xdp_lb_abi::Scope;

use crate::{
    maglev::{self, Identity},
    model::Protocol,
    planner::{FrontendState, Planner},
};

impl Planner {
    /// The digest of a frontend's current table, as [`maglev::Table::digest`] says: it depends on
    /// the hash key, the backends, their weights and the table's size, and on nothing else. Ids,
    /// places in the arena, modes and the order of events do not matter.
    pub fn digest(&self, state: &FrontendState<'_>) -> u64 {
        let backends = state.ids.iter().filter_map(|id| self.backend(*id));
        maglev::digest(backends.map(|key| key.identity), state.slots)
    }

    /// One number for the tables of all frontends that packets meet: those for sockets are each node's
    /// own.
    ///
    /// SipHash-2-4 (64 bits, key of zeros) over, for each frontend in ascending order of the first:
    /// its [canonical bytes](Identity::to_bytes), and its table's digest (u64, little-endian).
    pub fn digest_of_all(&self) -> u64 {
        let mut each: Vec<[u8; 28]> = self
            .frontends()
            .filter(|state| state.key.scope() == Scope::All)
            .filter_map(|state| {
                let protocol = Protocol::from_number(state.key.protocol())?;
                let (address, port) = (state.key.address().to_ip(), state.key.port());
                let mut bytes = [0; 28];
                let (name, digest) = bytes.split_at_mut(20);
                name.copy_from_slice(&Identity { address, port, protocol }.to_bytes());
                digest.copy_from_slice(&self.digest(&state).to_le_bytes());
                Some(bytes)
            })
            .collect();
        each.sort_unstable();
        sip::SipHasher24::new().hash(&each.concat())
    }
}
