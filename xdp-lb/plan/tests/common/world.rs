//! The maps as memory: written by the plan's operations, read by the packet path.
//!
//! Every write is checked against the rules that let packets go on while it happens.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use xdp_lb_abi::{
    Address, Backend, Bucket, Flow, FlowKey, FrontendEntry, FrontendKey, Hop, IDS_PER_WORD, Phase,
    SLOTS_PER_WORD, Service, Settings, Table,
};
use xdp_lb_datapath::Lookup;
use xdp_lb_plan::{BackendKey, Image, Layout, Op, maglev::Identity, model::Protocol, record_count};

/// The arrays, and what packets may be looking at.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) buckets: Vec<Bucket>,
    pub(crate) services: Vec<Service>,
    pub(crate) arena: Vec<u64>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, Flow>>,
    /// Those of services with session affinity
    pub(crate) clients: RefCell<BTreeMap<FlowKey, Flow>>,
    /// The clock, in nanoseconds
    pub(crate) now: Cell<u64>,
    reach: Reach,
}

/// What a packet may have got hold of since the last grace period.
#[derive(Clone, Default)]
struct Reach {
    entries: BTreeMap<(u32, usize), FrontendKey>,
    records: BTreeSet<u32>,
    stats: BTreeSet<u32>,
    words: Vec<bool>,
    backends: BTreeSet<u32>,
}

/// What a frontend leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    /// The backend of each slot
    pub(crate) slots: Vec<BackendKey>,
    /// All backends
    pub(crate) members: Vec<BackendKey>,
}

impl World {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self {
            settings: Settings::new([3, 5], layout.seed, layout.buckets, 0),
            buckets: vec![Bucket::default(); layout.buckets as usize],
            services: vec![Service::default(); record_count(layout) as usize],
            arena: vec![0; layout.words as usize],
            backends: vec![Backend::default(); layout.backends as usize],
            flows: RefCell::default(),
            clients: RefCell::default(),
            now: Cell::new(0),
            reach: Reach { words: vec![false; layout.words as usize], ..Reach::default() },
        }
    }

    /// Does what the operation says.
    ///
    /// # Panics
    ///
    /// Where a packet could see something half changed.
    pub(crate) fn carry_out(&mut self, op: &Op) {
        match op {
            Op::Arena { word, words } => self.write_words(*word, words),
            Op::Backend { id, backend, new } => self.write_backend(*id, backend, *new),
            Op::Service { index, service } => {
                let old = &mut self.services[*index as usize];
                assert!(*index != 0, "{op:?}: 0 means no service");
                assert!(old == service || !self.reach.records.contains(index), "{op:?}: in use");
                *old = *service;
            }
            Op::ResetFrontend { stats } => {
                assert!(!self.reach.stats.contains(stats), "{op:?}: in use");
            }
            Op::Publish { bucket, entry, value } => self.publish(*bucket, *entry, value),
            Op::Grace => self.settle(),
        }
    }

    /// Writes again what somebody else overwrote: packets may see that.
    pub(crate) fn mend(&mut self, op: &Op) {
        match op {
            Op::Arena { word, words } => {
                let start = *word as usize;
                self.arena[start..start + words.len()].copy_from_slice(words);
            }
            Op::Backend { id, backend, .. } => self.backends[*id as usize] = *backend,
            Op::Service { index, service } => self.services[*index as usize] = *service,
            Op::Publish { bucket, entry, value } => {
                self.buckets[*bucket as usize].entries[*entry] = *value;
            }
            Op::ResetFrontend { .. } | Op::Grace => panic!("{op:?} mends nothing"),
        }
    }

    /// Every packet that saw an older state is through.
    pub(crate) fn settle(&mut self) {
        self.reach = Reach { words: vec![false; self.arena.len()], ..Reach::default() };
        for (bucket, value) in (0..).zip(self.buckets.clone()) {
            for (entry, value) in value.entries.iter().enumerate() {
                self.expose(bucket, entry, value);
            }
        }
    }

    fn write_words(&mut self, first: u32, words: &[u64]) {
        for (word, &value) in (first..).zip(words) {
            let old = &mut self.arena[word as usize];
            assert!(*old == value || !self.reach.words[word as usize], "word {word} is in use");
            *old = value;
        }
    }

    fn write_backend(&mut self, id: u32, backend: &Backend, new: bool) {
        let constant = |one: &Backend| {
            one.with_path(Hop::UNKNOWN, 0, Address::v6([0; 16]), 0).with_serving(true)
        };
        let old = &mut self.backends[id as usize];
        if self.reach.backends.contains(&id) {
            assert!(!new, "backend {id} is in use");
            assert_eq!(constant(old), constant(backend), "backend {id} is in use");
        }
        if new {
            assert_ne!(old.generation(), backend.generation(), "backend {id} has a new owner");
        }
        *old = *backend;
    }

    fn publish(&mut self, bucket: u32, entry: usize, value: &FrontendEntry) {
        if let (Some(key), Some(old)) = (value.key(), self.reach.entries.get(&(bucket, entry))) {
            assert_eq!(key, *old, "entry {entry} of bucket {bucket} is in use");
        }
        self.buckets[bucket as usize].entries[entry] = *value;
        self.expose(bucket, entry, value);
    }

    /// Notes what packets reach through an entry, and that it is sound.
    fn expose(&mut self, bucket: u32, entry: usize, value: &FrontendEntry) {
        let Some(key) = value.key() else { return };
        let buckets = key.buckets(self.settings.frontend_seed(), self.settings.buckets());
        assert!(buckets.contains(&bucket), "{key:?} cannot be found in bucket {bucket}");
        self.reach.entries.insert((bucket, entry), key);
        self.reach.records.insert(value.service());
        let service = self.services[value.service() as usize];
        self.reach.stats.insert(service.stats());
        self.expose_table(service.current(), 0);
        self.expose_draining(&service, &key);
        match service.phase() {
            Phase::Rest => assert_eq!(service.previous().size(), 0, "{key:?} at rest"),
            Phase::Handover | Phase::Exceptions => {
                assert_ne!(service.previous().size(), 0, "{key:?} hands nothing over");
                self.expose_table(service.previous(), Table::LOOK_UP);
            }
        }
    }

    /// Notes the list that goes on behind the current table's one, and that it is right.
    fn expose_draining(&mut self, service: &Service, key: &FrontendKey) {
        let table = service.current();
        let length = table.length() + u32::from(service.draining());
        let list = Table::new(table.slots(), table.size(), table.list(), length);
        let words = &mut self.reach.words[table.list() as usize..];
        words[..length.div_ceil(IDS_PER_WORD) as usize].fill(true);
        let ids = self.ids(&list);
        let (members, draining) = ids.split_at(table.length() as usize);
        assert!(draining.is_sorted(), "{key:?}: {draining:?}");
        let named: BTreeSet<usize> = self.slots(table).into_iter().map(usize::from).collect();
        for (index, id) in members.iter().enumerate() {
            assert_ne!(named.contains(&index), draining.contains(id), "{key:?}: backend {id}");
        }
        self.reach.backends.extend(draining);
    }

    fn expose_table(&mut self, table: &Table, mark: u16) {
        let slot_words = table.size().div_ceil(SLOTS_PER_WORD);
        let id_words = table.length().div_ceil(IDS_PER_WORD);
        for (first, count) in [(table.slots(), slot_words), (table.list(), id_words)] {
            self.reach.words[first as usize..][..count as usize].fill(true);
        }
        for slot in self.slots(table) {
            let gone = mark != 0 && slot & !mark == Table::GONE;
            assert!(gone || u32::from(slot & !mark) < table.length(), "slot of nobody");
        }
        for id in self.ids(table) {
            assert_ne!(self.backends[id as usize].generation(), 0, "backend {id} is not written");
            self.reach.backends.insert(id);
        }
    }

    fn slots(&self, table: &Table) -> Vec<u16> {
        let slot = |slot| {
            let (word, shift) = table.locate_slot(slot);
            (self.arena[word as usize] >> shift) as u16
        };
        (0..table.size()).map(slot).collect()
    }

    fn ids(&self, table: &Table) -> Vec<u32> {
        let id = |index| {
            let (word, shift) = table.locate_id(index);
            (self.arena[word as usize] >> shift) as u32
        };
        (0..table.length()).map(id).collect()
    }

    /// What a backend id stands for.
    pub(crate) fn named(&self, id: u32) -> BackendKey {
        let backend = self.backends[id as usize];
        let protocol = Protocol::from_number(backend.protocol()).unwrap();
        let (address, port) = (backend.address().to_ip(), backend.port());
        BackendKey {
            identity: Identity { address, port, protocol },
            mode: backend.mode().unwrap(),
            tunnel: None,
        }
    }

    /// The record of a frontend.
    pub(crate) fn record(&self, key: &FrontendKey) -> Option<&Service> {
        let buckets = key.buckets(self.settings.frontend_seed(), self.settings.buckets());
        let found = buckets.map(|bucket| self.buckets[bucket as usize].find(key));
        let index = found.into_iter().find(|&index| index != 0)?;
        Some(&self.services[index as usize])
    }

    /// What a frontend leads to.
    pub(crate) fn seen(&self, key: &FrontendKey) -> Option<Seen> {
        let table = self.record(key)?.current();
        let members: Vec<BackendKey> =
            self.ids(table).into_iter().map(|id| self.named(id)).collect();
        let slots = self.slots(table).into_iter().map(|slot| members[usize::from(slot)]).collect();
        Some(Seen { slots, members })
    }

    /// The frontends that the table has.
    pub(crate) fn frontends(&self) -> BTreeSet<FrontendKey> {
        let entries = self.buckets.iter().flat_map(|bucket| &bucket.entries);
        entries.filter_map(FrontendEntry::key).collect()
    }
}

impl Image for World {
    fn buckets(&self) -> u32 {
        self.buckets.len() as u32
    }
    fn bucket(&self, index: u32) -> Option<Bucket> {
        self.buckets.get(index as usize).copied()
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(index as usize).copied()
    }
    fn word(&self, index: u32) -> Option<u64> {
        self.arena.get(index as usize).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(id as usize).copied()
    }
}

impl Lookup for World {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    /// The filter is not the planner's.
    fn may_be_served(&self, _: u16) -> bool {
        true
    }
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.buckets.get(index as usize)
    }
    fn service(&self, index: u32) -> Option<&Service> {
        self.services.get(index as usize)
    }
    fn arena(&self, word: u32) -> Option<u64> {
        self.arena.get(word as usize).copied()
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }
    fn client(&self, key: &FlowKey) -> Option<Flow> {
        self.clients.borrow().get(key).copied()
    }
    fn record_client(&self, key: &FlowKey, backend: u32, generation: u32) {
        self.clients.borrow_mut().insert(*key, Flow::new(backend, generation, self.now.get()));
    }
    fn is_allowed(&self, _: u32, _: &Address) -> bool {
        true
    }
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.borrow().get(key).copied()
    }
    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32) {
        self.flows.borrow_mut().insert(*key, Flow::new(backend, generation, self.now.get()));
    }
    fn touch_flow(&self, key: &FlowKey) {
        if let Some(flow) = self.flows.borrow_mut().get_mut(key) {
            *flow = Flow::new(flow.backend(), flow.generation(), self.now.get());
        }
    }
    fn clock(&self) -> u64 {
        self.now.get()
    }
}
