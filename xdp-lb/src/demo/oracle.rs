//! Which backend a connection belongs to, by the tables that the data path uses.

use std::{collections::BTreeMap, net::SocketAddr};

use xdp_lb_abi::{FlowKey, Table};
use xdp_lb_plan::{maglev::Identity, model::Protocol};

use super::DemoError;
use crate::{dataplane::Counters, pins::Pins, stats};

/// The Maglev tables at one moment.
#[derive(Debug)]
pub(super) struct Oracle {
    flow_key: [u64; 2],
    tables: BTreeMap<SocketAddr, Slots>,
}

/// A table, and the backends that its slots name.
#[derive(Debug)]
struct Slots {
    slots: Vec<u16>,
    backends: Vec<Option<Identity>>,
}

impl Oracle {
    /// Reads the tables of the data path that is pinned here.
    pub(super) fn read(pins: &Pins) -> Result<Self, DemoError> {
        let (planner, settings) = stats::tables(pins, &Counters::open(pins)?)?;
        let tables = planner.frontends().map(|state| {
            let frontend = SocketAddr::new(state.key.address().to_ip(), state.key.port());
            let backend = |id: &u32| planner.backend(*id).map(|key| key.identity);
            let backends = state.ids.iter().map(backend).collect();
            (frontend, Slots { slots: state.slots.to_vec(), backends })
        });
        Ok(Self { flow_key: settings.flow_key(), tables: tables.collect() })
    }

    /// The address of the backend that a client's TCP connection to a frontend belongs to.
    pub(super) fn backend(&self, client: SocketAddr, frontend: SocketAddr) -> Option<Identity> {
        let table = self.tables.get(&frontend)?;
        let ports = (client.port(), frontend.port());
        let protocol = Protocol::Tcp.number();
        let flow = FlowKey::new(client.ip().into(), frontend.ip().into(), ports, protocol);
        let size = u32::try_from(table.slots.len()).ok()?;
        let slot = Table::new(0, size, 0, 0).slot(flow.hash(self.flow_key));
        let index = *table.slots.get(slot as usize)?;
        *table.backends.get(usize::from(index))?
    }
}
