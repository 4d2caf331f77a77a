//! Entry points.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    },
    helpers::generated::bpf_redirect,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use xdp_lb_abi::{Reason, probed_backend};
use xdp_lb_datapath::{
    Frame, Stage, Tables, Verdict,
    egress::{Outgoing, egress},
    handle,
    probe::probe,
    resume,
};

#[cfg(not(feature = "trace"))]
use crate::tables::Maps;
#[cfg(feature = "trace")]
use crate::trace::Traced as Maps;
use crate::{
    frame::{Interface, TcFrame, XdpFrame},
    tables::{STAGES, hand},
};

/// The balancer, on a device's driver hook.
///
/// Declares multi-buffer support (`frags`, Linux 5.18), so that it attaches to devices whose MTU is
/// above a page; it reads and writes the linear part alone. So do all its stages: the kernel lets no
/// program go on in one that differs in this.
///
/// Inlined into the entry point that the macro makes of it: Linux 6.1 counts 32 bytes of stack for that.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn xdp_lb(context: XdpContext) -> u32 {
    let verdict = handle(&mut XdpFrame::<false>::new(&context), &Maps::new(&context));
    action(&context, verdict)
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $stage:ident;)*) => {$(
        $(#[$doc])*
        #[xdp(frags)]
        #[inline(always)]
        pub(crate) fn $name(context: XdpContext) -> u32 {
            let Some(hand) = hand() else { return XDP_DROP };
            let verdict =
                resume(Stage::$stage, &mut XdpFrame::<true>::new(&context), &Maps::new(&context), hand);
            action(&context, verdict)
        }
    )*};
}

stages! {
    /// Modes `geneve` and `local`
    xdp_lb_pods = Pods;
    /// Mode `snat`, towards the backend
    xdp_lb_snat = Snat;
    /// Mode `snat`, back to the client
    xdp_lb_unsnat = Unsnat;
    /// Tunnel packets for this host
    xdp_lb_unwrap = Unwrap;
    /// ICMP to a frontend
    xdp_lb_icmp = Icmp;
    /// Fragments
    xdp_lb_fragment = Fragment;
    /// Packets that are answered instead of forwarded
    xdp_lb_refuse = Refuse;
    /// Packets for pods on this host
    xdp_lb_deliver = Deliver;
    /// ICMP errors to a frontend
    xdp_lb_error = Error;
    /// Mode `snat`, a new flow
    xdp_lb_open = Open;
    /// Services that remember flows or clients
    xdp_lb_remember = Remember;
    /// Modes `l2` and `ipip`, later
    xdp_lb_forward = Forward;
}

/// Ends with the kernel's name for a verdict; or the stage goes on from here, and this does not return.
#[inline(always)]
fn action(context: &XdpContext, verdict: Verdict) -> u32 {
    let action = match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Transmit => XDP_TX,
        // `Tables::redirect` has named the device.
        Verdict::Redirect(_) => XDP_REDIRECT,
        Verdict::Next(stage) => {
            go_on(context, stage);
            // The array lacks the program.
            let length = XdpFrame::<false>::new(context).linear_length();
            Maps::new(context).count_reason(Reason::Inconsistent, length);
            XDP_DROP
        }
    };
    #[cfg(feature = "monitor")]
    let action = crate::monitor::end(context, action);
    action
}

/// Goes on in a stage; comes back where the array lacks it.
///
/// For each stage there is a call with a constant: the kernel makes a jump of such a one. Of an index that
/// is computed it makes an indirect jump, which costs some hundred cycles where it is guarded against
/// Spectre v2 (retpoline).
#[inline(always)]
fn go_on(context: &XdpContext, stage: Stage) {
    macro_rules! each {
        ($($stage:ident)*) => {
            match stage {
                $(Stage::$stage => {
                    // SAFETY: nothing that is alive here needs to be dropped.
                    unsafe { STAGES.tail_call(context, Stage::$stage as u32) };
                    apart::<{ Stage::$stage as u64 }>();
                })*
            }
        };
    }
    each!(Pods Snat Unsnat Unwrap Icmp Fragment Refuse Deliver Forward Error Remember Open);
}

/// One instruction that differs from its like, so that the compiler does not make one call of several.
#[inline(always)]
fn apart<const NUMBER: u64>() {
    // SAFETY: it writes one register, which is told.
    unsafe { asm!("{0} = {1}", out(reg) _, const NUMBER, options(nomem, nostack)) };
}

/// Answers of pods, and the daemon's questions to backends, on their way out.
#[classifier]
pub(crate) fn xdp_lb_egress(context: TcContext) -> i32 {
    #[cfg(feature = "monitor")]
    crate::monitor::watch_out(context.skb.skb);
    let action = leave(&context);
    #[cfg(feature = "monitor")]
    crate::monitor::tell_out(context.skb.skb, action);
    action
}

#[inline(always)]
fn leave(context: &TcContext) -> i32 {
    // SAFETY: the context is the one that the kernel handed in, and stays valid.
    if let Some(backend) = probed_backend(unsafe { (*context.skb.skb).mark }) {
        let action = ask(context.skb.skb, backend);
        if action != TC_ACT_OK {
            return action;
        }
    }
    answer(context.skb.skb)
}

/// Rewrites an answer of a pod.
///
/// A function of its own, as the next one is, so that their stacks do not add up.
#[inline(never)]
fn answer(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    let outgoing = egress(&mut TcFrame::new(&context), &Maps::new(&context));
    #[cfg(feature = "monitor")]
    if !matches!(outgoing, Outgoing::Untouched) {
        crate::monitor::rewritten();
    }
    match outgoing {
        // The next program, or the device.
        Outgoing::Untouched | Outgoing::Rewritten => TC_ACT_UNSPEC,
        Outgoing::Drop => TC_ACT_SHOT,
        // SAFETY: the helper has no preconditions.
        Outgoing::BackIn => unsafe {
            bpf_redirect(context.ifindex(), u64::from(BPF_F_INGRESS)) as i32
        },
    }
}

/// Sends a question to its backend; `TC_ACT_OK` where the packet is none, whatever its mark.
#[inline(never)]
fn ask(skb: *mut __sk_buff, backend: u32) -> i32 {
    let context = TcContext::new(skb);
    // A tag beside the frame would come in front of what is written; the daemon asks by devices that
    // add none.
    // SAFETY: the context is the one that the kernel handed in.
    if unsafe { (*skb).vlan_present } != 0 {
        return TC_ACT_SHOT;
    }
    match probe(&mut TcFrame::new(&context), &Maps::new(&context), backend) {
        Ok(ifindex) => {
            // It may pass this program again by another device.
            // SAFETY: as above.
            unsafe { (*skb).mark = 0 };
            if ifindex == context.ifindex() {
                return TC_ACT_UNSPEC;
            }
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Err(Reason::NoFrontend) => TC_ACT_OK,
        Err(_) => TC_ACT_SHOT,
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
