//! The maps in memory, with the layout that they have in the kernel.

use core::cell::{Cell, RefCell};
use core::net::IpAddr;
use std::{collections::BTreeMap, vec, vec::Vec};

use xdp_lb_abi::{
    Address, Backend, Bucket, Device, Flow, FlowKey, FrontendEntry, FrontendKey, Hop, Phase,
    Reason, Service, Settings, Table, Traffic,
};

use crate::{Tables, parse::Facts};

/// The maps in memory. Index 0 of services, backends and devices stays empty.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    /// `SETTINGS`
    pub settings: Settings,
    /// `FRONTENDS`
    pub buckets: Vec<Bucket>,
    /// `SERVICES`
    pub services: Vec<Service>,
    /// `ARENA`
    pub arena: Vec<u64>,
    /// `BACKENDS`
    pub backends: Vec<Backend>,
    /// `DEVICES`
    pub devices: Vec<Device>,
    /// Indices that `DEVMAP` does not have
    pub absent: Vec<u16>,
    /// `ADDRESSES`
    pub addresses: BTreeMap<Address, u32>,
    /// `PEERS`: networks as address and prefix length
    pub peers: Vec<(Address, u8)>,
    /// `FLOWS`
    pub flows: RefCell<BTreeMap<FlowKey, Flow>>,
    /// What the kernel's routing table says, by destination
    pub routes: BTreeMap<Address, Hop>,
    /// How many ICMP errors may still be sent
    pub icmp_tokens: Cell<u32>,
    /// The clock, in nanoseconds
    pub now: Cell<u64>,
    /// `FRONTEND_STATS`, without the zeros
    pub frontend_stats: RefCell<BTreeMap<u32, Traffic>>,
    /// `BACKEND_STATS`, without the zeros
    pub backend_stats: RefCell<BTreeMap<u32, Traffic>>,
    /// `REASON_STATS`, without the zeros
    pub reason_stats: RefCell<BTreeMap<Reason, Traffic>>,
}

impl MemoryTables {
    /// Empty tables, with as many buckets as the settings say.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            buckets: vec![Bucket::default(); settings.buckets() as usize],
            services: vec![Service::default()],
            arena: Vec::new(),
            backends: vec![Backend::default()],
            devices: vec![Device::default()],
            absent: Vec::new(),
            addresses: BTreeMap::new(),
            peers: Vec::new(),
            flows: RefCell::default(),
            routes: BTreeMap::new(),
            icmp_tokens: Cell::new(1000),
            now: Cell::new(1),
            frontend_stats: RefCell::default(),
            backend_stats: RefCell::default(),
            reason_stats: RefCell::default(),
        }
    }

    /// Adds a device; its index.
    pub fn add_device(&mut self, device: Device) -> u16 {
        self.devices.push(device);
        (self.devices.len() - 1) as u16
    }

    /// Adds a backend; its id.
    pub fn add_backend(&mut self, backend: Backend) -> u32 {
        self.backends.push(backend);
        (self.backends.len() - 1) as u32
    }

    /// Writes slots and backend ids into the arena.
    pub fn add_table(&mut self, slots: &[u16], ids: &[u32]) -> Table {
        let first_slot = self.arena.len() as u32;
        for slots in slots.chunks(4) {
            let word = slots.iter().rev().fold(0, |word, slot| word << 16 | u64::from(*slot));
            self.arena.push(word);
        }
        let first_id = self.arena.len() as u32;
        for ids in ids.chunks(2) {
            let word = ids.iter().rev().fold(0, |word, id| word << 32 | u64::from(*id));
            self.arena.push(word);
        }
        Table::new(first_slot, slots.len() as u32, first_id, ids.len() as u32)
    }

    /// Adds a service; its index, which is that of its counters too.
    pub fn add_service(&mut self, current: Table, previous: Table, phase: Phase) -> u32 {
        let index = self.services.len() as u32;
        self.services.push(Service::new(current, previous, phase, index));
        index
    }

    /// Publishes a frontend.
    ///
    /// # Panics
    ///
    /// Where both its buckets are full: give the tables more of them.
    pub fn add_frontend(&mut self, key: FrontendKey, service: u32) {
        let used = |bucket: &Bucket| bucket.entries.iter().filter(|e| e.service() != 0).count();
        let [first, second] = key
            .buckets(self.settings.frontend_seed(), self.settings.buckets())
            .map(|bucket| bucket as usize);
        let emptier =
            if used(&self.buckets[first]) <= used(&self.buckets[second]) { first } else { second };
        let free = self.buckets[emptier].entries.iter_mut().find(|entry| entry.service() == 0);
        let Some(entry) = free else { panic!("no free entry for {key:?}") };
        *entry = FrontendEntry::new(key, service);
    }

    /// Says what an address is to this host, by [`xdp_lb_abi::AddressFlags`].
    pub fn add_address(&mut self, address: IpAddr, flags: u32) {
        self.addresses.insert(address.into(), flags);
    }

    /// Accepts tunnel packets from a network.
    pub fn add_peer(&mut self, network: IpAddr, length: u8) {
        self.peers.push((network.into(), length));
    }
}

impl Tables for MemoryTables {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings).filter(|settings| settings.buckets() != 0)
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

    fn device(&self, index: u16) -> Option<&Device> {
        self.devices.get(usize::from(index)).filter(|device| device.ifindex() != 0)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.addresses.get(address).copied().unwrap_or(0)
    }

    fn is_peer(&self, address: &Address) -> bool {
        self.peers.iter().any(|(network, length)| within(address, network, *length))
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.borrow().get(key).copied()
    }

    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32) {
        self.flows.borrow_mut().insert(*key, Flow::new(backend, generation, self.now.get()));
    }

    fn may_send_icmp(&self, rate: u32) -> bool {
        let tokens = self.icmp_tokens.get();
        self.icmp_tokens.set(tokens.saturating_sub(1));
        rate > 0 && tokens > 0
    }

    fn route(&self, _facts: &Facts, backend: &Backend) -> Hop {
        self.routes.get(&backend.tunnel()).copied().unwrap_or(Hop::UNKNOWN)
    }

    fn redirect(&self, device: u16) -> bool {
        !self.absent.contains(&device)
    }

    fn count_frontend(&self, stats: u32, bytes: usize) {
        count(&mut self.frontend_stats.borrow_mut(), stats, bytes);
    }

    fn count_backend(&self, id: u32, bytes: usize) {
        count(&mut self.backend_stats.borrow_mut(), id, bytes);
    }

    fn count_reason(&self, reason: Reason, bytes: usize) {
        count(&mut self.reason_stats.borrow_mut(), reason, bytes);
    }
}

fn count<K: Ord>(counters: &mut BTreeMap<K, Traffic>, key: K, bytes: usize) {
    let traffic = counters.entry(key).or_default();
    traffic.packets += 1;
    traffic.bytes += bytes as u64;
}

/// Whether an address is in a network, bit by bit.
fn within(address: &Address, network: &Address, length: u8) -> bool {
    let bits = |address: &Address| match address.to_ip() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let differing = (bits(address) ^ bits(network)).leading_zeros();
    address.is_v6() == network.is_v6() && differing >= u32::from(length)
}
