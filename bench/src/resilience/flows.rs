//! What moves of the flows that are sent through the planner's tables and the packet path's
//! decision, both as the daemon and the kernel run them.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    time::Duration,
};

use xdp_lb_abi::{Address, Backend as Record, Service as ServiceRecord, Settings};
use xdp_lb_datapath::{
    decide::decide,
    parse::{Facts, Word, parse},
    testing::{
        MemoryFrame, MemoryTables,
        packet::{ip, link},
    },
};
use xdp_lb_plan::{
    Layout, Op, Path, Planner,
    maglev::HashKey,
    model::{Backend, Frontend, Mode, Protocol, Service},
    record_count,
};

use super::{Error, Scale, Trial, tables::address};

const SYN: u8 = 2;
const ACK: u8 = 16;
const PORT: NonZeroU16 = NonZeroU16::MIN;
const FRONTEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Share of the flows that change their backend although it survives, of all whose backend does;
/// for each of `failures`. Each flow sends a packet after the failure and one after the handover.
pub(super) fn moved(trial: &Trial, scale: &Scale, handover: Duration) -> Result<Vec<f64>, Error> {
    let mut healthy = Balancer::new(trial, scale, handover);
    healthy.serve(trial.surviving(0), Duration::ZERO)?;
    let opening = packet(SYN)?;
    let later = packet(ACK)?;
    let owners = (0..scale.flows)
        .map(|number| healthy.send(&of_flow(opening, number)))
        .collect::<Result<Vec<Address>, Error>>()?;

    let share = |&count: &u32| {
        let failed: Vec<Address> =
            trial.failed(count).iter().map(|&number| address(number).into()).collect();
        let mut balancer = healthy.clone();
        let mut stayed = vec![true; owners.len()];
        let failure = Duration::from_secs(1);
        for now in [failure, failure + handover] {
            balancer.serve(trial.surviving(count), now)?;
            for ((number, owner), stayed) in (0..).zip(&owners).zip(&mut stayed) {
                let to = balancer.send(&of_flow(later, number))?;
                if failed.contains(&to) {
                    return Err(Error::Failed);
                }
                *stayed &= to == *owner;
            }
        }
        let could_stay = || owners.iter().zip(&stayed).filter(|(owner, _)| !failed.contains(owner));
        let moved = could_stay().filter(|(_, stayed)| !**stayed).count();
        Ok(moved as f64 / could_stay().count() as f64)
    };
    scale.failures.iter().map(share).collect()
}

/// What the packet path reads from a TCP packet of some client.
fn packet(flags: u8) -> Result<Facts, Error> {
    let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let packet = ip(client, FRONTEND.into()).tcp((0, PORT.get()), flags, 0);
    let frame = link([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).holds(packet);
    parse(&mut MemoryFrame::new(&frame, 1)).map_err(Error::NotForwarded)
}

/// The same packet as a flow's own: 100 flows from each client of 100.64.0.0/10.
fn of_flow(packet: Facts, number: u32) -> Facts {
    let (client, port) = (0x6440_0000 + number / 100, 40_000 + (number % 100) as u16);
    Facts {
        source: Address::v4(client.to_be_bytes()),
        ports: Word((port, packet.ports.0.1)),
        ..packet
    }
}

/// A planner and the maps that it writes.
#[derive(Clone)]
struct Balancer {
    planner: Planner,
    tables: MemoryTables,
    table_size: u32,
}

impl Balancer {
    fn new(trial: &Trial, scale: &Scale, handover: Duration) -> Self {
        // Room for a service's tables and lists, twice: a change needs the new beside the old.
        let words = 2 * (scale.flow_size + scale.backends);
        let layout =
            Layout { frontends: 1, backends: scale.backends + 1, words, buckets: 1, seed: 0 };
        let mut tables = MemoryTables::new(Settings::new(trial.flow_key, 0, layout.buckets, 0));
        tables.services = vec![ServiceRecord::default(); record_count(&layout) as usize];
        tables.backends = vec![Record::default(); layout.backends as usize];
        tables.arena = vec![0; words as usize];
        let planner = Planner::new(&layout, HashKey::from(trial.maglev_key), handover);
        Self { planner, tables, table_size: scale.flow_size }
    }

    /// Makes the service's backends these, at a time that packets see as well: a record that is older
    /// than the handover says nothing.
    fn serve(&mut self, backends: &[u32], now: Duration) -> Result<(), Error> {
        self.tables.now.set(now.as_nanos() as u64);
        let backend = |&number: &u32| Backend::new(address(number));
        let service = Service {
            name: "web".to_owned(),
            frontends: vec![Frontend {
                address: FRONTEND.into(),
                port: PORT,
                protocol: Protocol::Tcp,
            }],
            mode: Mode::L2,
            table_size: Some(self.table_size),
            backends: backends.iter().map(backend).collect(),
            ..Service::default()
        };
        let path = |key: &xdp_lb_plan::BackendKey| Some(Path::unknown(key.identity.address));
        let outcome = self.planner.apply(&[service], &path, now);
        if let Some(refused) = outcome.refused.into_iter().next() {
            return Err(Error::Refused(refused.refusal));
        }
        outcome.ops.iter().for_each(|op| self.write(op));
        Ok(())
    }

    fn write(&mut self, op: &Op) {
        let tables = &mut self.tables;
        match op {
            Op::Arena { word, words } => {
                tables.arena[*word as usize..][..words.len()].copy_from_slice(words);
            }
            Op::Backend { id, backend, .. } => tables.backends[*id as usize] = *backend,
            Op::Service { index, service } => tables.services[*index as usize] = *service,
            Op::Publish { bucket, entry, value } => {
                tables.buckets[*bucket as usize].entries[*entry] = *value;
                if let Some(key) = value.key() {
                    tables.add_port(key.port());
                }
            }
            // Nobody counts here, and no packet is on its way while the tables are written.
            Op::ResetFrontend { .. } | Op::Grace => {}
        }
    }

    /// Address of the backend that a packet goes to.
    fn send(&self, facts: &Facts) -> Result<Address, Error> {
        let choice = decide(facts, &self.tables).map_err(Error::NotForwarded)?;
        Ok(choice.backend.address())
    }
}
