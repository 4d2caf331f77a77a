//! Entry points.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};
use xdp_lb_datapath::{Verdict, handle};

use crate::{frame::XdpFrame, tables::Maps};

/// The balancer, on a device's driver hook.
///
/// Declares multi-buffer support (`frags`, Linux 5.18), so that it attaches to devices whose MTU is
/// above a page; it reads and writes the linear part alone.
#[xdp(frags)]
pub(crate) fn xdp_lb(context: XdpContext) -> u32 {
    match handle(&mut XdpFrame::new(&context), &Maps::new(&context)) {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Transmit => XDP_TX,
        // `Tables::redirect` has named the device.
        Verdict::Redirect(_) => XDP_REDIRECT,
    }
}

/// Passes everything: a veth device whose peer sends by XDP needs some program to receive by.
#[xdp(frags)]
pub(crate) fn xdp_lb_pass(_context: XdpContext) -> u32 {
    XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The release build has no call to this: the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
