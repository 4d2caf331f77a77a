//! Ids and records of backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use xdp_lb_abi::{Address, Backend, Hop, Mode};

use crate::{arena::Pool, maglev::Identity, op::Op};

/// What a backend id stands for: a backend in one forwarding mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct BackendKey {
    /// Who serves
    pub identity: Identity,
    /// How packets get there
    pub mode: Mode,
    /// Where a tunnel to it ends, where that is not its own address
    pub tunnel: Option<IpAddr>,
}

impl BackendKey {
    /// The address that packets for it are sent to: the tunnel's end, or its own.
    pub fn target(&self) -> IpAddr {
        self.tunnel.unwrap_or(self.identity.address)
    }
}

/// How packets get to a backend at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Path {
    /// The next hop; [`Hop::UNKNOWN`] where none is known
    pub hop: Hop,
    /// Largest packet on the way, in bytes of layer 3; 0 where it is not known
    pub mtu: u16,
    /// Source of an outer header, of the family of the tunnel's end
    pub source: Address,
    /// How many of the source's lowest bits the flow's hash replaces
    pub source_bits: u8,
}

impl Path {
    /// No way is known.
    pub fn unknown(to: IpAddr) -> Self {
        let source = match to {
            IpAddr::V4(_) => Address::v4([0; 4]),
            IpAddr::V6(_) => Address::v6([0; 16]),
        };
        Self { hop: Hop::UNKNOWN, mtu: 0, source, source_bits: 0 }
    }
}

/// How often a backend is named.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Uses {
    current: usize,
    previous: usize,
    draining: usize,
}

/// Which table names a backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Use {
    Current,
    Previous,
    /// It takes no new flows of a service that has it, or had it in another mode.
    Draining,
}

/// Whose records may not be up to date.
#[derive(Clone, Debug)]
enum Stale {
    All,
    These(BTreeSet<u32>),
}

impl Stale {
    fn add(&mut self, id: u32) {
        match self {
            Self::All => {}
            Self::These(ids) => drop(ids.insert(id)),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    key: BackendKey,
    record: Backend,
    uses: Uses,
}

/// The backends that have an id.
#[derive(Clone, Debug)]
pub(crate) struct Backends {
    ids: BTreeMap<BackendKey, u32>,
    entries: BTreeMap<u32, Entry>,
    pool: Pool,
    /// Generation of the next owner of an id, where it is not the first.
    generations: BTreeMap<u32, u32>,
    /// How many current tables' frontends take a backend for dead
    down: BTreeMap<BackendKey, usize>,
    /// Whose records may not be up to date
    stale: Stale,
    /// Ids that are free though their records say that they serve: the last process died before it
    /// could write that they do not.
    left_over: Vec<(u32, Backend)>,
}

impl Backends {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            ids: BTreeMap::new(),
            entries: BTreeMap::new(),
            pool: Pool::new(0, limit),
            generations: BTreeMap::new(),
            down: BTreeMap::new(),
            stale: Stale::All,
            left_over: Vec::new(),
        }
    }

    /// The ids of all these backends, in order; new ones are written to `ops`. Nothing, and nothing
    /// is taken, where not enough ids are free.
    pub(crate) fn ids(
        &mut self,
        keys: &[BackendKey],
        path: &impl Fn(&BackendKey) -> Option<Path>,
        ops: &mut Vec<Op>,
    ) -> Option<Vec<u32>> {
        let new = keys.iter().filter(|key| !self.ids.contains_key(key)).count();
        if !self.pool.has(new) {
            return None;
        }
        keys.iter().map(|key| self.id(key, path, ops)).collect()
    }

    fn id(
        &mut self,
        key: &BackendKey,
        path: &impl Fn(&BackendKey) -> Option<Path>,
        ops: &mut Vec<Op>,
    ) -> Option<u32> {
        if let Some(&id) = self.ids.get(key) {
            return Some(id);
        }
        let id = self.pool.take()?;
        let generation = self.generations.get(&id).copied().unwrap_or(1);
        let path = path(key).unwrap_or_else(|| Path::unknown(key.target()));
        let record = record(key, generation, path);
        self.ids.insert(*key, id);
        self.entries.insert(id, Entry { key: *key, record, uses: Uses::default() });
        ops.push(Op::Backend { id, backend: record, new: true });
        Some(id)
    }

    /// Takes an id back that was never published.
    pub(crate) fn cancel(&mut self, id: u32) {
        if let Some(entry) = self.entries.remove(&id) {
            self.ids.remove(&entry.key);
            self.pool.give_back(id);
        }
    }

    /// One use more of each.
    pub(crate) fn acquire(&mut self, ids: &[u32], how: Use) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id) {
                self.stale.add(*id);
                match how {
                    Use::Current => entry.uses.current += 1,
                    Use::Previous => entry.uses.previous += 1,
                    Use::Draining => entry.uses.draining += 1,
                }
            }
        }
    }

    /// One use less of each.
    pub(crate) fn release(&mut self, ids: &[u32], how: Use) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id) {
                self.stale.add(*id);
                match how {
                    Use::Current => entry.uses.current -= 1,
                    Use::Previous => entry.uses.previous -= 1,
                    Use::Draining => entry.uses.draining -= 1,
                }
            }
        }
    }

    /// Says which backends are taken for dead, once for each frontend that does.
    pub(crate) fn set_down<'a>(&mut self, keys: impl Iterator<Item = &'a BackendKey>) {
        let mut down = BTreeMap::new();
        for key in keys {
            *down.entry(*key).or_default() += 1;
        }
        for key in self.down.keys().chain(down.keys()) {
            if let Some(id) = self.ids.get(key) {
                self.stale.add(*id);
            }
        }
        self.down = down;
    }

    /// Has the next [`Backends::refresh`] ask for every backend's path.
    pub(crate) fn ask_all_paths(&mut self) {
        self.stale = Stale::All;
    }

    /// Brings the records up to date that may not be; returns the ids that nobody names any more.
    ///
    /// A backend that no current table names was removed: it takes no more packets, also not those
    /// of the flows that are recorded for it. Neither does one that all take for dead.
    pub(crate) fn refresh(
        &mut self,
        path: &impl Fn(&BackendKey) -> Option<Path>,
        ops: &mut Vec<Op>,
    ) -> Vec<u32> {
        for (id, record) in std::mem::take(&mut self.left_over) {
            if !self.entries.contains_key(&id) {
                ops.push(Op::Backend { id, backend: record.with_serving(false), new: false });
            }
        }
        let mut unused = Vec::new();
        let ids: Vec<u32> = match std::mem::replace(&mut self.stale, Stale::These(BTreeSet::new()))
        {
            Stale::All => self.entries.keys().copied().collect(),
            Stale::These(ids) => ids.into_iter().collect(),
        };
        for id in ids {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.uses == Uses::default() {
                unused.push(id);
            }
            let known = path(&entry.key).map_or(entry.record, |path| {
                entry.record.with_path(path.hop, path.mtu, path.source, path.source_bits)
            });
            let dead = self.down.get(&entry.key).is_some_and(|n| *n >= entry.uses.current);
            let named = entry.uses.current > 0 || entry.uses.draining > 0;
            let record = known.with_serving(named && !dead);
            if record != entry.record {
                entry.record = record;
                ops.push(Op::Backend { id, backend: record, new: false });
            }
        }
        for id in &unused {
            if let Some(entry) = self.entries.remove(id) {
                self.ids.remove(&entry.key);
                self.generations.insert(*id, entry.record.generation().wrapping_add(1));
            }
        }
        unused
    }

    pub(crate) fn give_back(&mut self, id: u32) {
        self.pool.give_back(id);
    }

    /// Takes over ids that are in use; `false` where one is out of range.
    pub(crate) fn adopt(&mut self, records: &BTreeMap<u32, (BackendKey, Backend)>) -> bool {
        if !self.pool.claim(records.keys().copied()) {
            return false;
        }
        for (&id, &(key, record)) in records {
            self.ids.insert(key, id);
            self.entries.insert(id, Entry { key, record, uses: Uses::default() });
        }
        true
    }

    /// Learns of the ids' last owners: what is recorded of their flows may outlive both them and the
    /// process that knew them.
    pub(crate) fn know_last_owners(&mut self, records: impl Iterator<Item = (u32, Backend)>) {
        for (id, record) in records.filter(|(_, record)| record.generation() != 0) {
            self.generations.insert(id, record.generation().wrapping_add(1));
            if record.serving() && !self.entries.contains_key(&id) {
                self.left_over.push((id, record));
            }
        }
    }

    /// Id and record of every backend.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &BackendKey, &Backend)> {
        self.entries.iter().map(|(&id, entry)| (id, &entry.key, &entry.record))
    }

    pub(crate) fn record(&self, id: u32) -> Option<&Backend> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    pub(crate) fn key(&self, id: u32) -> Option<&BackendKey> {
        self.entries.get(&id).map(|entry| &entry.key)
    }
}

fn record(key: &BackendKey, generation: u32, path: Path) -> Backend {
    let Identity { address, port, protocol } = key.identity;
    Backend::new(address.into(), port, protocol.number(), key.mode, generation)
        .with_tunnel(key.target().into())
        .with_path(path.hop, path.mtu, path.source, path.source_bits)
}
