//! The packet, as the kernel hands it over: the only unsafe access to packet bytes.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_pull_data,
        bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use xdp_lb_datapath::{
    Frame, MAX_OFFSET, NoRoom, Truncated,
    checksum::{Cover, Delta},
};

/// A context that knows the packet's device.
pub(crate) trait Interface: EbpfContext {
    /// Interface index of the device that the packet came by, or leaves by.
    fn ifindex(&self) -> u32;
}

impl Interface for XdpContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }
}

impl Interface for TcContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the one that the kernel handed in, and stays valid.
        unsafe { (*self.skb.skb).ifindex }
    }
}

/// A packet on its way in.
///
/// `COMPUTED` says that its offsets come from memory or from each other, as in the later stages; the
/// first one's are few and nearly constant.
pub(crate) struct XdpFrame<'a, const COMPUTED: bool>(&'a XdpContext);

/// The same number, which the compiler knows nothing about.
///
/// It would otherwise compare one expression with the bound and use an equal one: the verifier does not
/// follow such conclusions.
#[inline(always)]
pub(crate) fn opaque(mut number: usize) -> usize {
    // One instruction, since the kernel refuses line information about none.
    // SAFETY: it moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

impl<'a, const COMPUTED: bool> XdpFrame<'a, COMPUTED> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a XdpContext) -> Self {
        Self(context)
    }

    /// Where the linear part starts and ends.
    ///
    /// Volatile, so that the compiler cannot conclude one bounds check from another with a different
    /// offset: the verifier does not follow such conclusions.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is the one that the kernel handed in, and stays valid.
        unsafe {
            let data = (&raw const (*self.0.ctx).data).read_volatile();
            let end = (&raw const (*self.0.ctx).data_end).read_volatile();
            (data as usize, end as usize)
        }
    }
}

impl<const COMPUTED: bool> Frame for XdpFrame<'_, COMPUTED> {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Truncated> {
        let offset = if COMPUTED { opaque(offset) } else { offset };
        // The verifier wants the offset's bound before the comparison with the end.
        if offset > MAX_OFFSET {
            return Err(Truncated);
        }
        let (data, end) = self.bounds();
        let start = data + offset;
        if start + N > end {
            return Err(Truncated);
        }
        // SAFETY: `start..start + N` is inside the packet, `[u8; N]` has alignment 1, and `&mut
        // self` makes this the only live window.
        Ok(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn linear_length(&self) -> usize {
        let (data, end) = self.bounds();
        end - data
    }

    #[inline(always)]
    fn total_length(&self) -> usize {
        // SAFETY: the context is the one that the kernel handed in.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as usize }
    }

    #[inline(always)]
    fn grow_front(&mut self, by: i32) -> Result<(), NoRoom> {
        // SAFETY: the context is the one that the kernel handed in; no window is alive, since
        // windows borrow `self`.
        let result = unsafe { bpf_xdp_adjust_head(self.0.ctx, -by) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Result<(), NoRoom> {
        let by = length as i32 - self.total_length() as i32;
        if by > 0 {
            return Err(NoRoom);
        }
        // SAFETY: as in `grow_front`.
        let result = unsafe { bpf_xdp_adjust_tail(self.0.ctx, by) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ifindex()
    }
}

/// A packet on its way out.
pub(crate) struct TcFrame<'a>(&'a TcContext);

impl<'a> TcFrame<'a> {
    /// Headers are linear from here on, as far as they are read.
    #[inline(always)]
    pub(crate) fn new(context: &'a TcContext) -> Self {
        let frame = Self(context);
        let length = frame.total_length();
        let wanted = if length < HEADERS { length } else { HEADERS };
        if frame.linear_length() < wanted {
            // Where it fails the packet is read as far as it goes.
            // SAFETY: the context is the one that the kernel handed in.
            let _ = unsafe { bpf_skb_pull_data(context.skb.skb, wanted as u32) };
        }
        frame
    }

    /// As for [`XdpFrame`].
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is the one that the kernel handed in, and stays valid.
        unsafe {
            let data = (&raw const (*self.0.skb.skb).data).read_volatile();
            let end = (&raw const (*self.0.skb.skb).data_end).read_volatile();
            (data as usize, end as usize)
        }
    }
}

/// As much of a packet as is read: link, IP and transport headers, and the packet that an ICMP error
/// quotes up to its ports.
const HEADERS: usize = 192;

impl Frame for TcFrame<'_> {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Truncated> {
        let offset = opaque(offset);
        if offset > MAX_OFFSET {
            return Err(Truncated);
        }
        let (data, end) = self.bounds();
        let start = data + offset;
        if start + N > end {
            return Err(Truncated);
        }
        // SAFETY: as for `XdpFrame`; the kernel makes the packet writable for programs that write.
        Ok(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn linear_length(&self) -> usize {
        let (data, end) = self.bounds();
        end - data
    }

    #[inline(always)]
    fn total_length(&self) -> usize {
        // SAFETY: the context is the one that the kernel handed in.
        unsafe { (*self.0.skb.skb).len as usize }
    }

    /// For VLAN tags.
    #[inline(always)]
    fn grow_front(&mut self, by: i32) -> Result<(), NoRoom> {
        if by == 0 {
            return Ok(());
        }
        if by < 0 {
            return Err(NoRoom);
        }
        // SAFETY: the context is the one that the kernel handed in; no window is alive, since windows
        // borrow `self`.
        let result = unsafe { bpf_skb_change_head(self.0.skb.skb, by as u32, 0) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    /// Room for the headers goes behind the link header, as a tunnel: the kernel then has the inner
    /// checksum completed where the device could not find it.
    #[inline(always)]
    fn wrap_front(&mut self, link: i32, ip: usize, datagram: usize) -> Result<(), NoRoom> {
        let mut flags = match ip {
            40 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            20 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            // No outer header at all.
            _ => return self.grow_front(link),
        };
        if datagram != 0 {
            flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
        }
        let by = (ip + datagram) as i32;
        // SAFETY: the context is the one that the kernel handed in; no window is alive, since windows
        // borrow `self`.
        let result =
            unsafe { bpf_skb_adjust_room(self.0.skb.skb, by, BPF_ADJ_ROOM_MAC, u64::from(flags)) };
        if result != 0 {
            return Err(NoRoom);
        }
        self.grow_front(link)
    }

    /// Packets on their way out keep their length.
    #[inline(always)]
    fn truncate(&mut self, _length: usize) -> Result<(), NoRoom> {
        Err(NoRoom)
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ifindex()
    }

    #[inline(always)]
    fn apply(&mut self, at: usize, delta: Delta, cover: Cover) -> Result<(), Truncated> {
        let mut flags = 0;
        if cover.is_pseudo() {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if cover.is_udp() {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        let difference = u64::from(delta.network());
        // SAFETY: the context is the one that the kernel handed in; no window is alive, since windows
        // borrow `self`.
        let result =
            unsafe { bpf_l4_csum_replace(self.0.skb.skb, at as u32, 0, difference, flags) };
        if result == 0 { Ok(()) } else { Err(Truncated) }
    }
}
