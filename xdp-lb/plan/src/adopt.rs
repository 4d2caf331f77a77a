//! Takes over tables that an earlier run of the daemon left, with the same ids, so that no flow
//! moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use xdp_lb_abi::{Backend, Bucket, FrontendKey, Phase, Service, Table};

use crate::{
    backends::BackendKey,
    frontends::Place,
    maglev::Identity,
    model::Protocol,
    planner::{Assignment, Installed, Planner, Previous},
    target::Traits,
};

/// The arrays, to be read.
pub trait Image {
    /// Number of buckets
    fn buckets(&self) -> u32;
    /// A bucket of `FRONTENDS`
    fn bucket(&self, index: u32) -> Option<Bucket>;
    /// A record of `SERVICES`
    fn service(&self, index: u32) -> Option<Service>;
    /// A word of `ARENA`
    fn word(&self, index: u32) -> Option<u64>;
    /// A record of `BACKENDS`
    fn backend(&self, id: u32) -> Option<Backend>;
}

/// Why tables cannot be taken over.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{frontend:?}: {problem}")]
pub struct Unsound {
    /// The frontend whose entry leads nowhere
    pub frontend: FrontendKey,
    /// What is wrong
    pub problem: &'static str,
}

impl Planner {
    /// Takes over what the tables hold. The planner must be new.
    ///
    /// # Errors
    ///
    /// Where the tables contradict themselves. The planner is of no use then.
    pub fn adopt(&mut self, image: &impl Image, now: Duration) -> Result<(), Unsound> {
        let entries = entries(image)?;
        let mut backends = BTreeMap::new();
        let mut known = BTreeMap::new();
        let mut services = BTreeMap::new();
        let mut stats = BTreeSet::new();
        for (key, (_, record)) in &entries {
            let unsound = |problem| Unsound { frontend: *key, problem };
            let service = image.service(*record).ok_or(unsound("no such service record"))?;
            for table in [&with_draining(&service), service.previous()] {
                for id in ids(image, table).ok_or(unsound("backend list outside the arena"))? {
                    let backend = image.backend(id).ok_or(unsound("no such backend"))?;
                    let named = named(&backend).ok_or(unsound("backend of an unknown kind"))?;
                    if *known.entry(named).or_insert(id) != id {
                        return Err(unsound("a backend with two ids"));
                    }
                    backends.insert(id, (named, backend));
                }
            }
            if !stats.insert(service.stats()) || services.insert(*record, service).is_some() {
                return Err(unsound("record or counters of another frontend"));
            }
        }
        let last = entries.keys().next_back().copied();
        if !self.claim(&backends, stats, services.keys().copied())
            && let Some(frontend) = last
        {
            return Err(Unsound { frontend, problem: "more than the limits allow" });
        }
        self.know_last_owners((0..).map_while(|id| Some((id, image.backend(id)?))));
        for (key, (place, record)) in entries {
            let unsound = |problem| Unsound { frontend: key, problem };
            if !self.claim_place(&key, place) {
                return Err(unsound("entry in a bucket that is not its own"));
            }
            let service = services[&record];
            let current = self.adopt_table(image, service.current(), &with_draining(&service));
            let current = current.ok_or(unsound("table outside the arena, or over another"))?;
            if !current.is_sound(false) {
                return Err(unsound("slot that names no backend"));
            }
            let phase = service.phase();
            let traits = Traits {
                affinity: service.affinity(),
                reject: service.reject(),
                sources: service.sources(),
            };
            let picks = traits.picks();
            let picks = if service.switched() { picks.other() } else { picks };
            let previous = match phase {
                Phase::Rest => None,
                Phase::Handover | Phase::Exceptions => Some(
                    self.adopt_table(image, service.previous(), service.previous())
                        .filter(|previous| previous.is_sound(true))
                        .map(|assignment| Previous { assignment, picks })
                        .ok_or(unsound("previous table outside the arena, or over another"))?,
                ),
            };
            let one = Installed {
                place,
                record,
                stats: service.stats(),
                current,
                previous,
                phase,
                traits,
                wanted: None,
                since: now,
                phase_since: now,
                started: service.started(),
            };
            self.insert_adopted(key, one);
        }
        Ok(())
    }

    fn adopt_table(
        &mut self,
        image: &impl Image,
        table: &Table,
        list: &Table,
    ) -> Option<Assignment> {
        let slots: Option<Vec<u16>> = (0..table.size())
            .map(|slot| {
                let (word, shift) = table.locate_slot(slot);
                Some((image.word(word)? >> shift) as u16)
            })
            .collect();
        let (list, members) = (ids(image, list)?, table.length() as usize);
        self.adopt_assignment(&slots?, table.slots(), &list, table.list(), members)
    }
}

fn entries(image: &impl Image) -> Result<BTreeMap<FrontendKey, (Place, u32)>, Unsound> {
    let mut entries = BTreeMap::new();
    for index in 0..image.buckets() {
        let Some(bucket) = image.bucket(index) else { continue };
        for (entry, value) in bucket.entries.iter().enumerate() {
            let Some(frontend) = value.key() else { continue };
            let place = Place { bucket: index, entry };
            if entries.insert(frontend, (place, value.service())).is_some() {
                return Err(Unsound { frontend, problem: "two entries" });
            }
        }
    }
    Ok(entries)
}

/// The current table, with a list that goes on with the backends that take no new flows.
fn with_draining(service: &Service) -> Table {
    let table = service.current();
    let length = table.length().saturating_add(service.draining().into());
    Table::new(table.slots(), table.size(), table.list(), length)
}

fn ids(image: &impl Image, table: &Table) -> Option<Vec<u32>> {
    (0..table.length())
        .map(|index| {
            let (word, shift) = table.locate_id(index);
            Some((image.word(word)? >> shift) as u32)
        })
        .collect()
}

fn named(backend: &Backend) -> Option<BackendKey> {
    let protocol = Protocol::from_number(backend.protocol())?;
    let address = backend.address().to_ip();
    let identity = Identity { address, port: backend.port(), protocol };
    let tunnel = Some(backend.tunnel().to_ip()).filter(|end| *end != address);
    Some(BackendKey { identity, mode: backend.mode()?, tunnel })
}
