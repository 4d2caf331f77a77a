//! The maps. Sizes written here are the smallest; the daemon sets the configured ones when it loads
//! the object.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup},
    btf_maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::generated::{bpf_fib_lookup, bpf_ktime_get_ns},
    macros::btf_map,
    programs::XdpContext,
};
use xdp_lb_abi::{
    Address, Backend, Bucket, Device, Flow, FlowKey, Hop, Limiter, MAX_DEVICES, Mode, PeerKey,
    Reason, Service, Settings, Traffic,
};
use xdp_lb_datapath::{
    Tables,
    parse::{Facts, Word},
};

/// Written by user space through memory mappings, so that one store publishes.
const MAPPED: usize = BPF_F_MMAPABLE as usize;
const DEVICE_COUNT: usize = MAX_DEVICES as usize;

#[btf_map]
static FRONTENDS: Array<Bucket, 1, MAPPED> = Array::new();
#[btf_map]
static SERVICES: Array<Service, 1, MAPPED> = Array::new();
#[btf_map]
static ARENA: Array<u64, 1, MAPPED> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, 1, MAPPED> = Array::new();
#[btf_map]
static DEVICES: Array<Device, DEVICE_COUNT> = Array::new();
#[btf_map]
static DEVMAP: DevMap<DEVICE_COUNT> = DevMap::new();
#[btf_map]
static DEVICE_OF: HashMap<u32, u32, DEVICE_COUNT> = HashMap::new();
#[btf_map]
static ADDRESSES: HashMap<Address, u32, 1> = HashMap::new();
#[btf_map]
static PEERS: LpmTrie<PeerKey, u32, 65536> = LpmTrie::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, 1> = LruHashMap::new();
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static FRONTEND_STATS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map]
static BACKEND_STATS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map]
static REASON_STATS: PerCpuArray<Traffic, { Reason::COUNT }> = PerCpuArray::new();
#[btf_map]
static LIMITER: PerCpuArray<Limiter, 1> = PerCpuArray::new();

/// The maps, for a packet that came in by `context`.
pub(crate) struct Maps<'a>(&'a XdpContext);

impl<'a> Maps<'a> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a XdpContext) -> Self {
        Self(context)
    }
}

impl Tables for Maps<'_> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        // All zero until the control plane has written it.
        SETTINGS.get(0).filter(|settings| settings.buckets() != 0)
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
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: the value is copied at once; its generation tells whether it is still the flow's.
        unsafe { FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32) {
        // A full table evicts its oldest entry (LRU), so the only errors left are of memory, and then
        // the flow is simply found again by its slot.
        let _ = FLOWS.insert(key, Flow::new(backend, generation, now()), 0);
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
    fn count_frontend(&self, stats: u32, bytes: usize) {
        count(FRONTEND_STATS.get_ptr_mut(stats), bytes);
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, bytes: usize) {
        count(BACKEND_STATS.get_ptr_mut(id), bytes);
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason, bytes: usize) {
        count(REASON_STATS.get_ptr_mut(reason as u32), bytes);
    }
}

#[inline(always)]
fn count(traffic: Option<*mut Traffic>, bytes: usize) {
    if let Some(traffic) = traffic {
        // SAFETY: the entry is this CPU's own, and XDP programs do not interrupt each other.
        let traffic = unsafe { &mut *traffic };
        traffic.packets += 1;
        traffic.bytes += bytes as u64;
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
/// already.
#[inline(never)]
fn route(context: &XdpContext, facts: &Facts, backend: &Backend) -> Hop {
    let target = backend.tunnel();
    // An outer header's source comes with the path, which there is none of.
    if backend.mode() != Some(Mode::L2) {
        return Hop::UNKNOWN;
    }
    // SAFETY: all zeros is a value of this plain C structure.
    let mut word: Word<FibLookup> = unsafe { core::mem::zeroed() };
    let query = &mut word.0;
    query.ifindex = context.ingress_ifindex() as u32;
    query.l4_protocol = facts.protocol.0;
    // No length: the path's MTU is checked where a packet that is too big is answered.
    if target.is_v6() {
        query.family = AF_INET6;
        query.__bindgen_anon_4.ipv6_dst = words(&target.octets());
    } else {
        query.family = AF_INET;
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(target.v4_octets());
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the structure is of the size given, and the context the one that the kernel handed in.
    let result = unsafe { bpf_fib_lookup(context.ctx.cast(), (&raw mut *query).cast(), size, 0) };
    if result != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return Hop::UNKNOWN;
    }
    // In mode l2 only the backend itself will do: a gateway would route the packet back to us. The
    // kernel puts the gateway's address where the destination was.
    // SAFETY: every bit pattern is a value of either member.
    let direct = unsafe {
        if target.is_v6() {
            query.__bindgen_anon_4.ipv6_dst == words(&target.octets())
        } else {
            query.__bindgen_anon_4.ipv4_dst == u32::from_ne_bytes(target.v4_octets())
        }
    };
    if !direct {
        return Hop::UNKNOWN;
    }
    // SAFETY: the value is copied at once.
    match unsafe { DEVICE_OF.get(query.ifindex) } {
        Some(device) => Hop::new(query.dmac, *device as u16),
        None => Hop::UNKNOWN,
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An address as the four words that the kernel's structure has.
#[inline(always)]
fn words(octets: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}
