//! The monitoring programs: they copy a packet before anything is done to it, and tell what became of
//! it to those who watch.
//!
//! The counters' writers note down what they count, so what is told is what is counted. What only
//! watchers cost stands in programs and functions of its own: the packet path's are near the limits of
//! the stack.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action::XDP_DROP},
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{
        bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    macros::{btf_map, xdp},
    programs::{TcContext, XdpContext},
};
use xdp_lb_abi::{
    Reason,
    monitor::{CAPTURE, Event, Filter, Headers, Place, RING, Seen, WATCHERS, Watch},
    names::{MONITOR_TELL, MONITOR_XDP},
};
use xdp_lb_datapath::{
    monitor,
    parse::{ETHERNET, parse},
};

use crate::{
    frame::{Interface as _, TcFrame, XdpFrame, opaque},
    tables::STAGES,
};

#[btf_map]
static WATCH: Array<Watch, 1> = Array::new();
#[btf_map]
static FILTERS: Array<Filter, WATCHERS> = Array::new();
#[btf_map]
static EVENTS: RingBuf<Event, { RING as usize }> = RingBuf::new();
/// Events for which the ring buffer had no room, by watcher
#[btf_map]
static UNTOLD: PerCpuArray<u64, WATCHERS> = PerCpuArray::new();
/// XDP programs do not interrupt each other, nor what is sent: bottom halves are off there.
#[btf_map]
static SEEN: PerCpuArray<Seen, 1> = PerCpuArray::new();

/// What becomes of packets that nobody gets: `XDP_DROP` and `TC_ACT_SHOT`.
const DROPPED: [u32; 2] = [XDP_DROP, TC_ACT_SHOT as u32];

/// Copies bytes from the start of the packet.
trait Load {
    fn length(&self) -> u32;
    /// Whether that could be done; `length` is at most [`CAPTURE`].
    fn load(&self, to: *mut u8, length: u32) -> bool;
}

impl Load for XdpContext {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the one that the kernel handed in.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn load(&self, to: *mut u8, length: u32) -> bool {
        // SAFETY: as above; the kernel checks both lengths.
        unsafe { bpf_xdp_load_bytes(self.ctx, 0, to.cast(), length) == 0 }
    }
}

impl Load for TcContext {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn load(&self, to: *mut u8, length: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.as_ptr(), 0, to.cast(), length) == 0 }
    }
}

/// What is attached instead of the balancer while somebody watches.
#[xdp(frags)]
pub(crate) fn xdp_lb_watch(context: XdpContext) -> u32 {
    if open(&context, context.ifindex(), Place::In) {
        let headers = parse(&mut XdpFrame::<false>::new(&context));
        close_headers(headers.ok().map(|facts| monitor::headers(&facts)));
    }
    // SAFETY: nothing that is alive here needs to be dropped.
    unsafe { STAGES.tail_call(&context, MONITOR_XDP) };
    XDP_DROP
}

/// Tells what became of a packet, then ends as the packet path wanted it to.
#[xdp(frags)]
pub(crate) fn xdp_lb_tell(context: XdpContext) -> u32 {
    let Some(seen) = SEEN.get_ptr_mut(0) else { return XDP_DROP };
    tell(&context, seen, Place::InAfter);
    // SAFETY: the entry is this CPU's own.
    unsafe { (*seen).event.action }
}

/// Ends a packet's way with this action, where nobody watches; else [`xdp_lb_tell`] does.
#[inline(always)]
pub(crate) fn end(context: &XdpContext, action: u32) -> u32 {
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe {
            if (*seen).open != 0 {
                (*seen).event.action = action;
                STAGES.tail_call(context, MONITOR_TELL);
            }
        }
    }
    action
}

/// Copies a packet on its way out.
#[inline(never)]
pub(crate) fn watch_out(skb: *mut __sk_buff) {
    let context = TcContext::new(skb);
    if open(&context, context.ifindex(), Place::Out) {
        let headers = parse(&mut TcFrame::new(&context));
        close_headers(headers.ok().map(|facts| monitor::headers(&facts)));
    }
}

/// Tells what became of it.
#[inline(never)]
pub(crate) fn tell_out(skb: *mut __sk_buff, action: i32) {
    let context = TcContext::new(skb);
    let Some(seen) = SEEN.get_ptr_mut(0) else { return };
    // SAFETY: the entry is this CPU's own.
    unsafe {
        if (*seen).open == 0 {
            return;
        }
        (*seen).event.action = action as u32;
    }
    tell(&context, seen, Place::OutAfter);
}

#[inline(always)]
pub(crate) fn counted_frontend(stats: u32) {
    note(|event| event.frontend = stats + 1);
}

#[inline(always)]
pub(crate) fn counted_backend(id: u32) {
    note(|event| event.backend = id + 1);
}

#[inline(always)]
pub(crate) fn counted_reason(reason: Reason) {
    note(|event| event.reason = reason as u16 + 1);
}

#[inline(always)]
pub(crate) fn rewritten() {
    note(|event| event.rewritten = 1);
}

#[inline(always)]
fn note(down: impl FnOnce(&mut Event)) {
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe { down(&mut (*seen).event) };
    }
}

/// Begins with a packet; whether anybody watches.
#[inline(always)]
fn open(context: &impl Load, ifindex: u32, place: Place) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(0) else { return false };
    let Some(watch) = WATCH.get(0) else { return false };
    // SAFETY: the helper has no preconditions; the entry is this CPU's own.
    unsafe {
        let now = bpf_ktime_get_ns();
        let open = now < watch.until;
        (*seen).open = open.into();
        if !open {
            return false;
        }
        (*seen).event = Event { time: now, ifindex, place: place as u8, ..Event::default() };
        copy(context, seen, watch.capture);
    }
    true
}

/// Copies the packet as it is now.
///
/// # Safety
///
/// `seen` is this CPU's own entry.
#[inline(always)]
unsafe fn copy(context: &impl Load, seen: *mut Seen, most: u32) {
    let length = context.length();
    let wanted = if length < most { length } else { most };
    let wanted = opaque(wanted as usize);
    let is_short = wanted <= CAPTURE;
    // Two comparisons, not one of a difference; and not with 0, from which Linux 6.1 does not conclude
    // that there is something to copy.
    let wanted = opaque(wanted);
    let is_some = wanted >= ETHERNET;
    // SAFETY: as for the caller; the bytes are inside the entry.
    unsafe {
        (*seen).event.length = length;
        (*seen).event.captured = 0;
        let bytes = (&raw mut (*seen).bytes).cast();
        if is_short && is_some && context.load(bytes, wanted as u32) {
            (*seen).event.captured = wanted as u32;
        }
    }
}

#[inline(always)]
fn close_headers(headers: Option<Headers>) {
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe { (*seen).headers = headers.unwrap_or_default() };
    }
}

/// Tells those who want to know, and of the packet as it is now those who want that too.
#[inline(always)]
fn tell(context: &impl Load, seen: *mut Seen, after: Place) {
    let Some(watch) = WATCH.get(0) else { return };
    // SAFETY: the entry is this CPU's own.
    unsafe {
        (*seen).open = 0;
        (*seen).after = 0;
        let lost = (*seen).event.action == DROPPED[(after as usize) >> 1];
        for watcher in 0..WATCHERS as u32 {
            let Some(filter) = FILTERS.get(watcher) else { break };
            let draw = bpf_get_prandom_u32() as u32;
            if !monitor::wants(filter, &(*seen).headers, &(*seen).event, lost, draw) {
                continue;
            }
            add(&raw mut (*seen).event.watchers, watcher);
            if filter.has(Filter::AFTER) && !lost {
                add(&raw mut (*seen).after, watcher);
            }
        }
        if (&raw const (*seen).event.watchers).read_volatile() == 0 {
            return;
        }
        send(seen);
        let both = (&raw const (*seen).after).read_volatile();
        if both != 0 {
            (*seen).event.watchers = both;
            (*seen).event.place = after as u8;
            copy(context, seen, watch.capture);
            send(seen);
        }
    }
}

/// Sets a bit; in memory, since the verifier would go through every sum of bits in a register.
///
/// # Safety
///
/// The word is this CPU's own.
#[inline(always)]
unsafe fn add(word: *mut u32, bit: u32) {
    // SAFETY: as for the caller.
    unsafe { word.write_volatile(word.read_volatile() | 1 << bit) };
}

/// Writes an event and its bytes into the ring buffer, or counts that there was no room.
///
/// # Safety
///
/// `seen` is this CPU's own entry.
#[inline(always)]
unsafe fn send(seen: *mut Seen) {
    // SAFETY: as for the caller; event and bytes lie one behind the other.
    unsafe {
        let captured = (*seen).event.captured;
        if captured > CAPTURE as u32 {
            return;
        }
        let length = size_of::<Event>() + captured as usize;
        let record = core::slice::from_raw_parts((&raw const (*seen).event).cast::<u8>(), length);
        if EVENTS.output_untyped::<[u8]>(record, 0).is_ok() {
            return;
        }
        let watchers = (*seen).event.watchers;
        for watcher in 0..WATCHERS as u32 {
            if watchers >> watcher & 1 != 0
                && let Some(count) = UNTOLD.get_ptr_mut(watcher)
            {
                *count += 1;
            }
        }
    }
}
