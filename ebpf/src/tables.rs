//! The maps. Sizes written here are the smallest; the daemon sets the configured ones when it loads
//! the object.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST, bpf_fib_lookup as FibLookup,
    },
    btf_maps::{
        Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key,
    },
    helpers::generated::{
        bpf_fib_lookup, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    },
    macros::btf_map,
};
use xdp_lb_abi::{
    Address, AddressFlags, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment,
    FrontendKey, Hop, Limiter, MAX_DEVICES, Mode, PeerKey, Reason, Reverse, Service, Settings,
    SocketFrontend, SocketKey, SocketReason, SocketSettings, SourceKey, Traffic, Translation,
    names::STAGE_PROGRAMS,
};

use crate::frame::Interface;
use xdp_lb_datapath::{
    Claim, Hand, Lookup, Sockets, Tables,
    parse::{Facts, Word},
};

/// Written by user space through memory mappings, so that one store publishes.
const MAPPED: usize = BPF_F_MMAPABLE as usize;
/// The monitoring programs are reached by the same array.
const STAGE_COUNT: usize = STAGE_PROGRAMS.len() + if cfg!(feature = "monitor") { 2 } else { 0 };
const DEVICE_COUNT: usize = MAX_DEVICES as usize;

#[btf_map]
pub(crate) static FRONTENDS: Array<Bucket, 1, MAPPED> = Array::new();
#[btf_map]
static PORT_FILTER: Array<u64, { FrontendKey::FILTER_WORDS as usize }, MAPPED> = Array::new();
#[btf_map]
pub(crate) static SERVICES: Array<Service, 1, MAPPED> = Array::new();
#[btf_map]
pub(crate) static ARENA: Array<u64, 1, MAPPED> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 1, MAPPED> = Array::new();
#[btf_map]
pub(crate) static DEVICES: Array<Device, DEVICE_COUNT> = Array::new();
#[btf_map]
static DEVMAP: DevMap<DEVICE_COUNT> = DevMap::new();
#[btf_map]
static DEVICE_OF: HashMap<u32, u32, DEVICE_COUNT> = HashMap::new();
#[btf_map]
static ADDRESSES: HashMap<Address, u32, 1> = HashMap::new();
#[btf_map]
static PEERS: LpmTrie<PeerKey, u32, 65536> = LpmTrie::new();
#[btf_map]
static ADDRESS_FILTER: Array<u64, { AddressFlags::FILTER_WORDS as usize }> = Array::new();
#[btf_map]
static PODS: LpmTrie<PeerKey, u32, 65536> = LpmTrie::new();
#[btf_map]
static SOURCES: LpmTrie<SourceKey, u32, 65536> = LpmTrie::new();
#[btf_map]
pub(crate) static ANSWERS: LruHashMap<FlowKey, Answer, 1> = LruHashMap::new();
#[btf_map]
static ANSWER_FILTER: Array<u64, { Answer::FILTER_WORDS as usize }> = Array::new();
#[btf_map]
pub(crate) static TRANSLATIONS: LruHashMap<FlowKey, Translation, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FlowKey, Fragment, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static ANSWER_FRAGMENTS: LruHashMap<FlowKey, Answer, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static NAT_FORWARD: HashMap<FlowKey, Forward, 1> = HashMap::new();
#[btf_map]
pub(crate) static NAT_REVERSE: HashMap<FlowKey, Reverse, 1> = HashMap::new();
#[btf_map]
static HAND: PerCpuArray<Hand, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static STAGES: ProgramArray<STAGE_COUNT> = ProgramArray::new();
#[btf_map]
pub(crate) static CLIENTS: LruHashMap<FlowKey, Flow, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static FRONTEND_STATS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map]
static BACKEND_STATS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map]
static REASON_STATS: PerCpuArray<Traffic, { Reason::COUNT }> = PerCpuArray::new();
#[btf_map]
static SOCKETS: LruHashMap<SocketKey, SocketFrontend, 1> = LruHashMap::new();
#[btf_map]
static SOCKET_SETTINGS: Array<SocketSettings, 1> = Array::new();
#[btf_map]
static SOCKET_STATS: PerCpuArray<u64, { SocketReason::COUNT }> = PerCpuArray::new();
#[btf_map]
static LIMITER: PerCpuArray<Limiter, 1> = PerCpuArray::new();

/// The maps, for a packet of this context.
pub(crate) struct Maps<'a, C>(&'a C);

impl<'a, C> Maps<'a, C> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a C) -> Self {
        Self(context)
    }
}

impl<C> Lookup for Maps<'_, C> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        // All zero until the control plane has written it.
        SETTINGS.get(0).filter(|settings| settings.buckets() != 0)
    }

    #[inline(always)]
    fn may_be_served(&self, port: u16) -> bool {
        let (word, bit) = FrontendKey::filter(port);
        PORT_FILTER.get(word).is_some_and(|word| word & bit != 0)
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        FRONTENDS.get(index)
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<&Service> {
        SERVICES.get(index)
    }

    #[inline(always)]
    fn arena(&self, word: u32) -> Option<u64> {
        ARENA.get(word).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: the value is copied at once; its generation tells whether it is still the flow's.
        unsafe { FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32) {
        // A full table evicts its oldest entry (LRU), so the only errors left are of memory, and then
        // the flow is simply found again by its slot.
        let _ = FLOWS.insert(key, Flow::new(backend, generation, self.clock()), 0);
    }

    #[inline(always)]
    fn touch_flow(&self, key: &FlowKey) {
        // In place: an update would undo what another CPU has recorded since.
        if let Some(flow) = FLOWS.get_ptr_mut(key) {
            // SAFETY: the word is inside the value and aligned, as the value is. The entry may belong
            // to another flow by now; that one just seems to have been seen.
            unsafe { flow.byte_add(Flow::SEEN_OFFSET).cast::<u64>().write_volatile(self.clock()) };
        }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn client(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: the value is copied at once.
        unsafe { CLIENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_client(&self, key: &FlowKey, backend: u32, generation: u32) {
        // As in `record_flow`.
        let _ = CLIENTS.insert(key, Flow::new(backend, generation, self.clock()), 0);
    }

    #[inline(always)]
    fn is_allowed(&self, sources: u32, client: &Address) -> bool {
        let key = Word(Key::new(SourceKey::BITS, SourceKey::new(sources, client)));
        SOURCES.get(&key.0).is_some()
    }
}

impl<C> Sockets for Maps<'_, C> {
    #[inline(always)]
    fn socket_settings(&self) -> Option<&SocketSettings> {
        SOCKET_SETTINGS.get(0).filter(|settings| settings.netns() != 0)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn named(&self, key: &SocketKey) -> Option<SocketFrontend> {
        // SAFETY: the value is copied at once.
        unsafe { SOCKETS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_named(&self, key: &SocketKey, frontend: &SocketFrontend) -> bool {
        SOCKETS.insert(key, frontend, 0).is_ok()
    }

    #[inline(always)]
    fn forget_named(&self, key: &SocketKey) {
        // Most sockets have no record.
        let _ = SOCKETS.remove(key);
    }

    #[inline(always)]
    fn count_call(&self, reason: SocketReason) {
        if let Some(count) = SOCKET_STATS.get_ptr_mut(reason as u32) {
            add(count);
        }
    }

    #[inline(always)]
    fn count_opened(&self, stats: u32, backend: u32) {
        if let Some(traffic) = FRONTEND_STATS.get_ptr_mut(stats) {
            // SAFETY: the field is inside the value.
            add(unsafe { &raw mut (*traffic).flows });
        }
        if let Some(traffic) = BACKEND_STATS.get_ptr_mut(backend) {
            // SAFETY: as above.
            add(unsafe { &raw mut (*traffic).flows });
        }
    }
}

/// Adds one. A task that makes a call may be interrupted by another one on the same CPU, unlike what
/// handles packets.
#[inline(always)]
fn add(count: *mut u64) {
    // The compiler has no atomic addition for this target; the kernel has had one from the start.
    // SAFETY: the counter is a word of a map's value, aligned as the value is.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) 1_u64) };
}

impl<C: Interface> Tables for Maps<'_, C> {
    #[inline(always)]
    fn device(&self, index: u16) -> Option<&Device> {
        DEVICES.get(index.into()).filter(|device| device.ifindex() != 0)
    }

    #[inline(always)]
    fn address_flags(&self, address: &Address) -> u32 {
        // SAFETY: the value is copied at once; a concurrent update may give the older or the newer.
        unsafe { ADDRESSES.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn is_peer(&self, address: &Address) -> bool {
        let key = Word(Key::new(PeerKey::BITS, PeerKey::new(address)));
        PEERS.get(&key.0).is_some()
    }

    #[inline(always)]
    fn hand_on(&self, write: impl FnOnce(&mut Hand)) {
        if let Some(entry) = HAND.get_ptr_mut(0) {
            // SAFETY: the entry is this CPU's own, and XDP programs do not interrupt each other; the
            // stage that reads it ends here. All zeros, as it begins, is a value of each field.
            write(unsafe { &mut *entry });
        }
    }

    #[inline(always)]
    fn may_be_frontend(&self, address: &Address) -> bool {
        let (word, bit) = AddressFlags::filter(address);
        ADDRESS_FILTER.get(word).is_some_and(|word| word & bit != 0)
    }

    #[inline(always)]
    fn is_pod(&self, address: &Address) -> bool {
        let key = Word(Key::new(PeerKey::BITS, PeerKey::new(address)));
        PODS.get(&key.0).is_some()
    }

    #[inline(always)]
    fn answer(&self, key: &FlowKey) -> Option<Answer> {
        // SAFETY: the value is copied at once.
        unsafe { ANSWERS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_answer(&self, key: &FlowKey, answer: &Answer) {
        // A full table evicts its oldest entry; what errors are left are of memory, and the client's
        // next packet tries again.
        let _ = ANSWERS.insert(key, answer, 0);
    }

    #[inline(always)]
    fn claim_answer(&self, key: &FlowKey, answer: &Answer) -> bool {
        ANSWERS.insert(key, answer, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(always)]
    fn forget_answer(&self, key: &FlowKey) {
        // That it is not there is what was wanted.
        let _ = ANSWERS.remove(key);
    }

    #[inline(always)]
    fn may_be_answer(&self, pod: &Address, port: u16, protocol: u8) -> bool {
        ANSWER_FILTER.get(Answer::filter(pod, port, protocol)).is_some_and(|word| *word != 0)
    }

    #[inline(always)]
    fn expect_answers(&self, pod: &Address, port: u16, protocol: u8) {
        if let Some(word) = ANSWER_FILTER.get_ptr_mut(Answer::filter(pod, port, protocol)) {
            // SAFETY: all writers write the same.
            unsafe { *word = 1 };
        }
    }

    #[inline(always)]
    fn translation(&self, key: &FlowKey) -> Option<Translation> {
        // SAFETY: the value is copied at once.
        unsafe { TRANSLATIONS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_translation(&self, key: &FlowKey, translation: &Translation) {
        // As in `record_answer`.
        let _ = TRANSLATIONS.insert(key, translation, 0);
    }

    #[inline(always)]
    fn fragment(&self, key: &FlowKey) -> Option<Fragment> {
        // SAFETY: the value is copied at once.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_fragment(&self, key: &FlowKey, fragment: &Fragment) {
        // Without a record the packet's other fragments are dropped, and its sender tries again.
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn answer_fragment(&self, key: &FlowKey) -> Option<Answer> {
        // SAFETY: the value is copied at once.
        unsafe { ANSWER_FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_answer_fragment(&self, key: &FlowKey, answer: &Answer) {
        // As in `record_fragment`.
        let _ = ANSWER_FRAGMENTS.insert(key, answer, 0);
    }

    #[inline(always)]
    fn nat_forward(&self, key: &FlowKey) -> Option<Forward> {
        // SAFETY: the value is copied at once.
        unsafe { NAT_FORWARD.get(key) }.copied()
    }

    #[inline(always)]
    fn claim_nat_forward(&self, key: &FlowKey, flow: &Forward) -> Claim {
        claim(NAT_FORWARD.insert(key, flow, BPF_NOEXIST.into()))
    }

    #[inline(always)]
    fn see_nat_forward(&self, key: &FlowKey, seen: u64, state: u8) {
        if let Some(flow) = NAT_FORWARD.get_ptr_mut(key) {
            // SAFETY: the fields are inside the value. The entry may belong to another flow by now;
            // that one just seems to have been seen.
            unsafe {
                (&raw mut (*flow).seen).write_volatile(seen);
                (&raw mut (*flow).state).write_volatile(state);
            }
        }
    }

    #[inline(always)]
    fn remove_nat_forward(&self, key: &FlowKey) -> bool {
        NAT_FORWARD.remove(key).is_ok()
    }

    #[inline(always)]
    fn nat_reverse(&self, key: &FlowKey) -> Option<Reverse> {
        // SAFETY: the value is copied at once.
        unsafe { NAT_REVERSE.get(key) }.copied()
    }

    #[inline(always)]
    fn claim_nat_reverse(&self, key: &FlowKey, flow: &Reverse) -> Claim {
        claim(NAT_REVERSE.insert(key, flow, BPF_NOEXIST.into()))
    }

    #[inline(always)]
    fn see_nat_reverse(&self, key: &FlowKey, seen: u64, state: u8) {
        if let Some(flow) = NAT_REVERSE.get_ptr_mut(key) {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*flow).seen).write_volatile(seen);
                (&raw mut (*flow).state).write_volatile(state);
            }
        }
    }

    #[inline(always)]
    fn remove_nat_reverse(&self, key: &FlowKey) {
        // As above.
        let _ = NAT_REVERSE.remove(key);
    }

    #[inline(always)]
    fn route_back(&self, facts: &Facts, from: &Address, to: &Address) -> Hop {
        Hop::from_word(fib(self.0, facts.protocol.0, from, to, false))
    }

    #[inline(always)]
    fn device_of(&self, ifindex: u32) -> u16 {
        // SAFETY: the value is copied at once.
        unsafe { DEVICE_OF.get(ifindex) }.map_or(0, |device| *device as u16)
    }

    #[inline(always)]
    fn may_send_icmp(&self, rate: u32) -> bool {
        match LIMITER.get_ptr_mut(0) {
            // SAFETY: the entry is this CPU's own, and XDP programs do not interrupt each other.
            Some(limiter) => unsafe { &mut *limiter }.take(now(), rate),
            None => false,
        }
    }

    #[inline(always)]
    fn route(&self, facts: &Facts, backend: &Backend) -> Hop {
        route(self.0, facts, backend)
    }

    #[inline(always)]
    fn redirect(&self, device: u16) -> bool {
        // The kernel empties the entry of a device that goes away.
        DEVMAP.redirect(device.into(), 0).is_ok()
    }

    #[inline(always)]
    fn count_frontend(&self, stats: u32, facts: &Facts) {
        count(FRONTEND_STATS.get_ptr_mut(stats), facts.length, facts.opens.0);
        #[cfg(feature = "monitor")]
        crate::monitor::counted_frontend(stats);
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, facts: &Facts) {
        count(BACKEND_STATS.get_ptr_mut(id), facts.length, facts.opens.0);
        #[cfg(feature = "monitor")]
        crate::monitor::counted_backend(id);
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason, bytes: usize) {
        count(REASON_STATS.get_ptr_mut(reason as u32), bytes, false);
        #[cfg(feature = "monitor")]
        crate::monitor::counted_reason(reason);
    }
}

/// What an insertion that asked for a new key came to.
#[inline(always)]
fn claim(result: Result<(), i32>) -> Claim {
    match result {
        Ok(()) => Claim::New,
        Err(error) if error == -EEXIST => Claim::Taken,
        Err(_) => Claim::Full,
    }
}

/// Whether one more ICMP error may be sent by this CPU, which is not noted.
#[cfg(feature = "trace")]
#[inline(always)]
pub(crate) fn may_send(rate: u32) -> bool {
    match LIMITER.get(0) {
        // A copy: the limit is that of real packets.
        Some(limiter) => Limiter::clone(limiter).take(now(), rate),
        None => false,
    }
}

/// What the stage before left for this one.
#[inline(always)]
pub(crate) fn hand<'a>() -> Option<&'a Hand> {
    // SAFETY: the entry is this CPU's own, XDP programs do not interrupt each other, and the stage
    // before has just written it whole.
    HAND.get_ptr(0).map(|hand| unsafe { &*hand })
}

#[inline(always)]
fn count(traffic: Option<*mut Traffic>, bytes: usize, opens: bool) {
    if let Some(traffic) = traffic {
        // SAFETY: the entry is this CPU's own, and XDP programs do not interrupt each other.
        unsafe { &mut *traffic }.add(bytes, opens);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Asks the kernel's routing table for the next hop towards a backend.
///
/// Answers in mode `l2` only, where the kernel forwards between these devices and knows the neighbour
/// already: an outer header's source comes with the path, which there is none of.
#[inline(always)]
fn route<C: Interface>(context: &C, facts: &Facts, backend: &Backend) -> Hop {
    if backend.mode() != Some(Mode::L2) {
        return Hop::UNKNOWN;
    }
    // In mode l2 only the backend itself will do: a gateway would route the packet back to us.
    Hop::from_word(fib(context, facts.protocol.0, &facts.source, &backend.tunnel(), true))
}

/// Asks the kernel's routing table: the word of the next hop, or that of [`Hop::UNKNOWN`].
///
/// A plain number, since the verifier sees the unused half of an enum as uninitialised.
#[inline(never)]
fn fib<C: Interface>(context: &C, protocol: u8, from: &Address, to: &Address, direct: bool) -> u64 {
    let mut word = core::mem::MaybeUninit::<Word<FibLookup>>::uninit();
    // Volatile, so that no call of `memset` comes of it: Linux 6.1 counts 32 bytes of stack for one.
    for index in 0..size_of::<Word<FibLookup>>() / size_of::<u64>() {
        // SAFETY: within the structure, whose alignment is that of `u64`.
        unsafe { word.as_mut_ptr().cast::<u64>().add(index).write_volatile(0) };
    }
    // SAFETY: all zeros is a value of this plain C structure.
    let query = &mut unsafe { word.assume_init_mut() }.0;
    query.ifindex = context.ifindex();
    query.l4_protocol = protocol;
    // No length: the path's MTU is checked where a packet that is too big is answered.
    if to.is_v6() {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = words(&from.octets());
        query.__bindgen_anon_4.ipv6_dst = words(&to.octets());
    } else {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(from.v4_octets());
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(to.v4_octets());
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the structure is of the size given, and the context the one that the kernel handed in.
    let result = unsafe { bpf_fib_lookup(context.as_ptr(), (&raw mut *query).cast(), size, 0) };
    if result != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return Hop::UNKNOWN.word();
    }
    // The kernel puts the gateway's address where the destination was.
    // SAFETY: every bit pattern is a value of either member.
    let is_direct = unsafe {
        if to.is_v6() {
            query.__bindgen_anon_4.ipv6_dst == words(&to.octets())
        } else {
            query.__bindgen_anon_4.ipv4_dst == u32::from_ne_bytes(to.v4_octets())
        }
    };
    if direct && !is_direct {
        return Hop::UNKNOWN.word();
    }
    // SAFETY: the value is copied at once.
    match unsafe { DEVICE_OF.get(query.ifindex) } {
        Some(device) => Hop::new(query.dmac, *device as u16).word(),
        None => Hop::UNKNOWN.word(),
    }
}

/// The error of an insertion that asked for a new key.
const EEXIST: i32 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An address as the four words that the kernel's structure has.
#[inline(always)]
fn words(octets: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}
