//! What the packet path is compared with in the same run: the least that any program does.

use aya_ebpf::{
    bindings::{
        TC_ACT_UNSPEC,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX},
    },
    btf_maps::{HashMap, LruHashMap, PerCpuArray},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use xdp_lb_abi::{FlowKey, Traffic};

/// Flows that the yardsticks have room for.
const FLOWS: usize = 65_536;

/// A flow's key, as long as the packet path's own ([`FlowKey`]), which has room for both families.
type Flow = [u64; size_of::<FlowKey>() / 8];

#[btf_map]
static HASH: HashMap<Flow, u64, FLOWS> = HashMap::new();
#[btf_map]
static LRU: LruHashMap<Flow, u64, FLOWS> = LruHashMap::new();
#[btf_map]
static SUNK: PerCpuArray<Traffic, 1> = PerCpuArray::new();

/// Sends each packet back.
#[xdp(frags)]
pub(crate) fn floor_tx(_context: XdpContext) -> u32 {
    XDP_TX
}

/// Sends each packet back, with swapped MAC addresses.
#[xdp(frags)]
pub(crate) fn floor_swap(context: XdpContext) -> u32 {
    let start = context.data();
    if start + 12 > context.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: twelve bytes of the frame, which has no other reference.
    let addresses = unsafe { &mut *(start as *mut [[u8; 6]; 2]) };
    addresses.swap(0, 1);
    XDP_TX
}

/// The outer header: IPv4, TTL 64, protocol IPIP, from 10.0.0.1 to 10.0.0.2.
const OUTER: [u16; 10] = [0x4500, 0, 0, 0x4000, 0x4004, 0, 0x0a00, 1, 0x0a00, 2];

/// Puts an IPv4 header in front, the same each time, with its length and checksum.
#[xdp(frags)]
pub(crate) fn floor_encap(context: XdpContext) -> u32 {
    const LINK: usize = 14;
    const IP: usize = 20;
    // SAFETY: the context is the one that the kernel handed in.
    if unsafe { bpf_xdp_adjust_head(context.ctx, -(IP as i32)) } != 0 {
        return XDP_ABORTED;
    }
    let (start, end) = (context.data(), context.data_end());
    if start + LINK + IP > end {
        return XDP_ABORTED;
    }
    let length = (end - start - LINK) as u32;
    let mut sum = length;
    let mut index = 0;
    while index < OUTER.len() {
        sum += OUTER[index] as u32;
        index += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let mut header = OUTER;
    header[1] = length as u16;
    header[5] = !(sum as u16);
    // SAFETY: the bytes of both headers are inside the frame, which has no other reference.
    unsafe {
        (start as *mut [u16; 7]).write_unaligned([0x0200, 0, 9, 0x0200, 0, 1, 0x0008]);
        ((start + LINK) as *mut [u16; 10]).write_unaligned(header.map(u16::to_be));
    }
    XDP_TX
}

/// Sends each packet back after one look-up of its flow.
#[xdp(frags)]
pub(crate) fn floor_hash(context: XdpContext) -> u32 {
    let Some(flow) = flow(&context) else { return XDP_ABORTED };
    // SAFETY: the value is not kept.
    if unsafe { HASH.get(flow) }.is_none() {
        // The first packet of each flow, before anything is measured.
        let _ = HASH.insert(flow, 1, 0);
    }
    XDP_TX
}

/// Sends each packet back after one look-up of its flow, and one update.
#[xdp(frags)]
pub(crate) fn floor_lru(context: XdpContext) -> u32 {
    let Some(flow) = flow(&context) else { return XDP_ABORTED };
    // SAFETY: the value is copied at once.
    let seen = unsafe { LRU.get(flow) }.copied().unwrap_or(0);
    let _ = LRU.insert(flow, seen + 1, 0);
    XDP_TX
}

/// Lets each packet out.
#[classifier]
pub(crate) fn floor_out(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Counts and drops.
#[xdp(frags)]
pub(crate) fn bench_sink(context: XdpContext) -> u32 {
    if let Some(traffic) = SUNK.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe { (*traffic).add(context.data_end() - context.data(), false) };
    }
    XDP_DROP
}

/// The flow of an IPv4 packet without options or tags.
#[inline(always)]
fn flow(context: &XdpContext) -> Option<Flow> {
    const AT: usize = 14 + 12;
    let start = context.data() + AT;
    if start + 12 > context.data_end() {
        return None;
    }
    // SAFETY: twelve bytes of the frame.
    let [source, destination, ports] = unsafe { (start as *const [u32; 3]).read_unaligned() };
    Some([source.into(), 0, destination.into(), 0, ports.into()])
}
