//! The packet, as XDP hands it over: the only unsafe access to packet bytes.

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use xdp_lb_datapath::{Frame, MAX_OFFSET, NoRoom, Truncated};

pub(crate) struct XdpFrame<'a>(&'a XdpContext);

impl<'a> XdpFrame<'a> {
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

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Truncated> {
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
        self.0.ingress_ifindex() as u32
    }
}
