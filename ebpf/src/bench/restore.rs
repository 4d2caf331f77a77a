//! Writes the frame anew and goes on in the program that is measured.
//!
//! A test run with `repeat` hands each run what the run before left. With this in front, each run
//! sees the frame of the template, of the next flow, wherever the program before has moved its start.

use core::arch::asm;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action::XDP_ABORTED},
    btf_maps::{Array, ProgramArray},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use xdp_lb_abi::bench::Template;

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static IDLE: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static TARGET_OUT: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static IDLE_OUT: ProgramArray<1> = ProgramArray::new();

/// Writes the frame anew and goes on in `TARGET`; or in `IDLE`, as the template says.
///
/// Two arrays, so that none changes between two turns: the kernel turns tail calls by constants into
/// jumps, and waits for all CPUs to change one. With multi-buffer support (`frags`), since the kernel
/// lets no program go on in one that differs in this.
#[xdp(frags)]
pub(crate) fn bench_xdp(context: XdpContext) -> u32 {
    let Some(template) = template() else { return XDP_ABORTED };
    let mut length = context.data_end() - context.data();
    // The compiler would otherwise add the template's length to the frame's start before it takes away
    // the end: the verifier allows no arithmetic on pointers but to find a length.
    // SAFETY: it moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) length, options(nomem, nostack, preserves_flags)) };
    let grown = length as i32 - template.length as i32;
    if grown != 0 {
        // SAFETY: the context is the one that the kernel handed in.
        if unsafe { bpf_xdp_adjust_head(context.ctx, grown) } != 0 {
            return XDP_ABORTED;
        }
    }
    if write(template, context.data(), context.data_end()) {
        // SAFETY: nothing that is alive here needs to be dropped.
        unsafe {
            if template.idle == 0 {
                TARGET.tail_call(&context, 0);
            } else {
                IDLE.tail_call(&context, 0);
            }
        }
    }
    XDP_ABORTED
}

/// The same on the way out, where frames keep their length.
#[classifier]
pub(crate) fn bench_out(context: TcContext) -> i32 {
    let Some(template) = template() else { return TC_ACT_SHOT };
    if write(template, context.data(), context.data_end()) {
        // SAFETY: as above.
        unsafe {
            if template.idle == 0 {
                TARGET_OUT.tail_call(&context, 0);
            } else {
                IDLE_OUT.tail_call(&context, 0);
            }
        }
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn template() -> Option<&'static mut Template> {
    // SAFETY: the entry lives as long as the map; one test at a time runs on it.
    TEMPLATE.get_ptr_mut(0).map(|template| unsafe { &mut *template })
}

/// Writes the headers and the flow; false where the frame is too short.
#[inline(always)]
fn write(template: &mut Template, data: usize, end: usize) -> bool {
    if !block::<0>(template, data, end) {
        return false;
    }
    // As many blocks as the frame has: the rest of it no program changes.
    let _ = block::<1>(template, data, end) && block::<2>(template, data, end);

    let flow = template.flow(template.counter);
    template.counter = template.counter.wrapping_add(1);
    let at = data + (template.flow_at & 0xff) as usize;
    if at + 4 > end {
        return false;
    }
    // SAFETY: the four bytes are inside the frame.
    unsafe { (at as *mut u32).write_unaligned(flow.to_be()) };
    if template.checksum_at != 0 {
        let at = data + (template.checksum_at & 0xff) as usize;
        if at + 2 > end {
            return false;
        }
        // SAFETY: the two bytes are inside the frame.
        unsafe { (at as *mut u16).write_unaligned(template.checksum(flow).to_be()) };
    }
    true
}

/// Writes one block of the frame; false where the frame has none.
#[inline(always)]
fn block<const INDEX: usize>(template: &Template, data: usize, end: usize) -> bool {
    let start = data + INDEX * Template::BLOCK;
    if start + Template::BLOCK > end {
        return false;
    }
    let from = template.bytes.as_ptr().cast::<u64>();
    for word in 0..Template::BLOCK / 8 {
        // SAFETY: the block is inside the template, which is aligned, and inside the frame.
        unsafe {
            let value = from.add(INDEX * (Template::BLOCK / 8) + word).read();
            (start as *mut u64).add(word).write_unaligned(value);
        }
    }
    true
}
