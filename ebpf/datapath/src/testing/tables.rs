//! The maps in memory, with the layout that they have in the kernel.

use core::cell::{Cell, RefCell};
use core::net::IpAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use xdp_lb_abi::{
    Address, AddressFlags, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment,
    FrontendEntry, FrontendKey, Hop, Phase, Reason, Reverse, Service, Settings, SocketFrontend,
    SocketKey, SocketReason, SocketSettings, Table, Traffic, Translation,
};

use crate::{Claim, Frame, Hand, Lookup, Sockets, Tables, Verdict, handle, parse::Facts, resume};

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
    /// `PODS`: networks as address and prefix length
    pub pods: Vec<(Address, u8)>,
    /// `SOURCES`: number, and network as address and prefix length
    pub sources: Vec<(u32, Address, u8)>,
    /// `PORT_FILTER`
    pub port_filter: Vec<u64>,
    /// `ADDRESS_FILTER`
    pub address_filter: Vec<u64>,
    /// `HAND`
    pub hand: Cell<Option<Hand>>,
    /// `ANSWERS`
    pub answers: RefCell<BTreeMap<FlowKey, Answer>>,
    /// `ANSWER_FILTER`: the words that are not 0
    pub answer_filter: RefCell<BTreeSet<u32>>,
    /// `TRANSLATIONS`
    pub translations: RefCell<BTreeMap<FlowKey, Translation>>,
    /// `FRAGMENTS`
    pub fragments: RefCell<BTreeMap<FlowKey, Fragment>>,
    /// `ANSWER_FRAGMENTS`
    pub answer_fragments: RefCell<BTreeMap<FlowKey, Answer>>,
    /// `NAT_FORWARD`
    pub nat_forward: RefCell<BTreeMap<FlowKey, Forward>>,
    /// `NAT_REVERSE`
    pub nat_reverse: RefCell<BTreeMap<FlowKey, Reverse>>,
    /// How many entries each of `NAT_FORWARD` and `NAT_REVERSE` may have
    pub nat_room: Cell<usize>,
    /// `CLIENTS`
    pub clients: RefCell<BTreeMap<FlowKey, Flow>>,
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
    /// `SOCKET_SETTINGS`
    pub socket_settings: SocketSettings,
    /// `SOCKETS`
    pub sockets: RefCell<BTreeMap<SocketKey, SocketFrontend>>,
    /// How many entries `SOCKETS` may have
    pub socket_room: Cell<usize>,
    /// `SOCKET_STATS`, without the zeros
    pub socket_stats: RefCell<BTreeMap<SocketReason, u64>>,
    /// What the next call of a socket draws
    pub dice: Cell<u32>,
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
            pods: Vec::new(),
            sources: Vec::new(),
            port_filter: vec![0; FrontendKey::FILTER_WORDS as usize],
            address_filter: vec![0; AddressFlags::FILTER_WORDS as usize],
            hand: Cell::new(None),
            answers: RefCell::default(),
            answer_filter: RefCell::default(),
            translations: RefCell::default(),
            fragments: RefCell::default(),
            answer_fragments: RefCell::default(),
            nat_forward: RefCell::default(),
            nat_reverse: RefCell::default(),
            nat_room: Cell::new(usize::MAX),
            clients: RefCell::default(),
            flows: RefCell::default(),
            routes: BTreeMap::new(),
            icmp_tokens: Cell::new(1000),
            now: Cell::new(1),
            frontend_stats: RefCell::default(),
            backend_stats: RefCell::default(),
            reason_stats: RefCell::default(),
            socket_settings: SocketSettings::default(),
            sockets: RefCell::default(),
            socket_room: Cell::new(usize::MAX),
            socket_stats: RefCell::default(),
            dice: Cell::new(0),
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
        self.add_record(Service::new(current, previous, phase, 0))
    }

    /// Adds a service by its record, but for its counters, whose index becomes the service's own.
    pub fn add_record(&mut self, service: Service) -> u32 {
        let index = self.services.len() as u32;
        self.services.push(service.with_stats(index));
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
        self.add_port(key.port());
    }

    /// Has packets to a port looked up.
    pub fn add_port(&mut self, port: u16) {
        let (word, bit) = FrontendKey::filter(port);
        self.port_filter[word as usize] |= bit;
    }

    /// Says what an address is to this host, by [`xdp_lb_abi::AddressFlags`].
    pub fn add_address(&mut self, address: IpAddr, flags: u32) {
        self.addresses.insert(address.into(), flags);
        if flags & AddressFlags::FRONTEND != 0 {
            let (word, bit) = AddressFlags::filter(&address.into());
            self.address_filter[word as usize] |= bit;
        }
    }

    /// Says that pods of this network are on this host.
    pub fn add_pods(&mut self, network: IpAddr, length: u8) {
        self.pods.push((network.into(), length));
    }

    /// Allows clients of a network to use the services with this number.
    pub fn add_source(&mut self, number: u32, network: IpAddr, length: u8) {
        self.sources.push((number, network.into(), length));
    }

    /// Handles a frame in as many stages as it takes.
    ///
    /// # Panics
    ///
    /// Where a stage goes on without having left anything for the next, or never ends.
    pub fn run<F: Frame>(&self, frame: &mut F) -> Verdict {
        self.hand.set(None);
        let mut verdict = handle(frame, self);
        for _ in 0..crate::stage::MAX_STAGES {
            let Verdict::Next(stage) = verdict else { return verdict };
            let Some(hand) = self.hand.get() else { panic!("nothing is handed to {stage:?}") };
            verdict = resume(stage, frame, self, &hand);
        }
        panic!("{verdict:?} after too many stages");
    }

    /// Accepts tunnel packets from a network.
    pub fn add_peer(&mut self, network: IpAddr, length: u8) {
        self.peers.push((network.into(), length));
    }
}

impl Lookup for MemoryTables {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings).filter(|settings| settings.buckets() != 0)
    }

    fn may_be_served(&self, port: u16) -> bool {
        let (word, bit) = FrontendKey::filter(port);
        self.port_filter.get(word as usize).is_some_and(|word| word & bit != 0)
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

    fn client(&self, key: &FlowKey) -> Option<Flow> {
        self.clients.borrow().get(key).copied()
    }

    fn record_client(&self, key: &FlowKey, backend: u32, generation: u32) {
        self.clients.borrow_mut().insert(*key, Flow::new(backend, generation, self.now.get()));
    }

    fn is_allowed(&self, sources: u32, client: &Address) -> bool {
        let mut networks = self.sources.iter().filter(|(number, ..)| *number == sources);
        networks.any(|(_, network, length)| within(client, network, *length))
    }
}

impl Sockets for MemoryTables {
    fn socket_settings(&self) -> Option<&SocketSettings> {
        Some(&self.socket_settings).filter(|settings| settings.netns() != 0)
    }

    fn random(&self) -> u32 {
        self.dice.get()
    }

    fn named(&self, key: &SocketKey) -> Option<SocketFrontend> {
        self.sockets.borrow().get(key).copied()
    }

    fn record_named(&self, key: &SocketKey, frontend: &SocketFrontend) -> bool {
        let mut sockets = self.sockets.borrow_mut();
        let fits = sockets.contains_key(key) || sockets.len() < self.socket_room.get();
        if fits {
            sockets.insert(*key, *frontend);
        }
        fits
    }

    fn forget_named(&self, key: &SocketKey) {
        self.sockets.borrow_mut().remove(key);
    }

    fn count_call(&self, reason: SocketReason) {
        *self.socket_stats.borrow_mut().entry(reason).or_default() += 1;
    }

    fn count_opened(&self, stats: u32, backend: u32) {
        self.frontend_stats.borrow_mut().entry(stats).or_default().flows += 1;
        self.backend_stats.borrow_mut().entry(backend).or_default().flows += 1;
    }
}

impl Tables for MemoryTables {
    fn device(&self, index: u16) -> Option<&Device> {
        self.devices.get(usize::from(index)).filter(|device| device.ifindex() != 0)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.addresses.get(address).copied().unwrap_or(0)
    }

    fn is_peer(&self, address: &Address) -> bool {
        self.peers.iter().any(|(network, length)| within(address, network, *length))
    }

    fn hand_on(&self, write: impl FnOnce(&mut Hand)) {
        let mut hand = self.hand.get().unwrap_or(Hand::NOTHING);
        write(&mut hand);
        self.hand.set(Some(hand));
    }

    fn may_be_frontend(&self, address: &Address) -> bool {
        let (word, bit) = AddressFlags::filter(address);
        self.address_filter.get(word as usize).is_some_and(|word| word & bit != 0)
    }

    fn is_pod(&self, address: &Address) -> bool {
        self.pods.iter().any(|(network, length)| within(address, network, *length))
    }

    fn answer(&self, key: &FlowKey) -> Option<Answer> {
        self.answers.borrow().get(key).copied()
    }

    fn record_answer(&self, key: &FlowKey, answer: &Answer) {
        self.answers.borrow_mut().insert(*key, *answer);
    }

    fn claim_answer(&self, key: &FlowKey, answer: &Answer) -> bool {
        let free = !self.answers.borrow().contains_key(key);
        if free {
            self.record_answer(key, answer);
        }
        free
    }

    fn forget_answer(&self, key: &FlowKey) {
        self.answers.borrow_mut().remove(key);
    }

    fn may_be_answer(&self, pod: &Address, port: u16, protocol: u8) -> bool {
        self.answer_filter.borrow().contains(&Answer::filter(pod, port, protocol))
    }

    fn expect_answers(&self, pod: &Address, port: u16, protocol: u8) {
        self.answer_filter.borrow_mut().insert(Answer::filter(pod, port, protocol));
    }

    fn translation(&self, key: &FlowKey) -> Option<Translation> {
        self.translations.borrow().get(key).copied()
    }

    fn record_translation(&self, key: &FlowKey, translation: &Translation) {
        self.translations.borrow_mut().insert(*key, *translation);
    }

    fn fragment(&self, key: &FlowKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn record_fragment(&self, key: &FlowKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn answer_fragment(&self, key: &FlowKey) -> Option<Answer> {
        self.answer_fragments.borrow().get(key).copied()
    }

    fn record_answer_fragment(&self, key: &FlowKey, answer: &Answer) {
        self.answer_fragments.borrow_mut().insert(*key, *answer);
    }

    fn nat_forward(&self, key: &FlowKey) -> Option<Forward> {
        self.nat_forward.borrow().get(key).copied()
    }

    fn claim_nat_forward(&self, key: &FlowKey, flow: &Forward) -> Claim {
        claim(&mut self.nat_forward.borrow_mut(), key, flow, self.nat_room.get())
    }

    fn see_nat_forward(&self, key: &FlowKey, seen: u64, state: u8) {
        if let Some(flow) = self.nat_forward.borrow_mut().get_mut(key) {
            (flow.seen, flow.state) = (seen, state);
        }
    }

    fn remove_nat_forward(&self, key: &FlowKey) -> bool {
        self.nat_forward.borrow_mut().remove(key).is_some()
    }

    fn nat_reverse(&self, key: &FlowKey) -> Option<Reverse> {
        self.nat_reverse.borrow().get(key).copied()
    }

    fn claim_nat_reverse(&self, key: &FlowKey, flow: &Reverse) -> Claim {
        claim(&mut self.nat_reverse.borrow_mut(), key, flow, self.nat_room.get())
    }

    fn see_nat_reverse(&self, key: &FlowKey, seen: u64, state: u8) {
        if let Some(flow) = self.nat_reverse.borrow_mut().get_mut(key) {
            (flow.seen, flow.state) = (seen, state);
        }
    }

    fn remove_nat_reverse(&self, key: &FlowKey) {
        self.nat_reverse.borrow_mut().remove(key);
    }

    fn route_back(&self, _facts: &Facts, _from: &Address, to: &Address) -> Hop {
        self.routes.get(to).copied().unwrap_or(Hop::UNKNOWN)
    }

    fn device_of(&self, ifindex: u32) -> u16 {
        let untagged = |device: &Device| device.ifindex() == ifindex && device.tags() == 0;
        self.devices.iter().position(untagged).unwrap_or(0) as u16
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

    fn count_frontend(&self, stats: u32, facts: &Facts) {
        let mut counters = self.frontend_stats.borrow_mut();
        counters.entry(stats).or_default().add(facts.length, facts.opens.0);
    }

    fn count_backend(&self, id: u32, facts: &Facts) {
        let mut counters = self.backend_stats.borrow_mut();
        counters.entry(id).or_default().add(facts.length, facts.opens.0);
    }

    fn count_reason(&self, reason: Reason, bytes: usize) {
        self.reason_stats.borrow_mut().entry(reason).or_default().add(bytes, false);
    }
}

/// An insert that replaces nothing, into a table of limited size.
fn claim<T: Copy>(
    table: &mut BTreeMap<FlowKey, T>,
    key: &FlowKey,
    value: &T,
    room: usize,
) -> Claim {
    if table.contains_key(key) {
        return Claim::Taken;
    }
    if table.len() >= room {
        return Claim::Full;
    }
    table.insert(*key, *value);
    Claim::New
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
