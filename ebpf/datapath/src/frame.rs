//! Access to the bytes of a packet.

use xdp_lb_abi::Reason;

/// Largest offset of a window: it bounds what the verifier has to follow.
pub const MAX_OFFSET: usize = 2047;

/// The frame ends before the wanted bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Truncated;

impl From<Truncated> for Reason {
    #[inline(always)]
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

/// The driver cannot make the frame that long, or that short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NoRoom;

impl From<NoRoom> for Reason {
    #[inline(always)]
    fn from(NoRoom: NoRoom) -> Self {
        Self::Headroom
    }
}

/// A frame whose bytes are reached only through a bounds check of constant size.
///
/// `&mut self` makes two overlapping windows a compile error.
pub trait Frame {
    /// `N` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Where the frame's linear part ends before, or `offset` is over [`MAX_OFFSET`].
    fn window<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Truncated>;

    /// Bytes of the linear part, the one that windows reach.
    fn linear_length(&self) -> usize;

    /// Bytes of the whole frame, with the fragments of a multi-buffer frame (Linux 5.18).
    fn total_length(&self) -> usize;

    /// Moves the start of the frame: `by` bytes more in front, or less where it is negative.
    ///
    /// New bytes are of any value.
    ///
    /// # Errors
    ///
    /// Where the driver has no room; the frame is then as before.
    fn grow_front(&mut self, by: i32) -> Result<(), NoRoom>;

    /// Cuts the frame off after `length` bytes, counted over the whole frame.
    ///
    /// # Errors
    ///
    /// Where it is not that long; the frame is then as before.
    fn truncate(&mut self, length: usize) -> Result<(), NoRoom>;

    /// Interface index of the device that the frame came from.
    fn ingress(&self) -> u32;
}

/// Writes bytes into a frame that was already made long enough.
///
/// # Errors
///
/// [`Reason::Headroom`], which drops: the frame may be half written by now.
#[inline(always)]
pub(crate) fn write<F: Frame, const N: usize>(
    frame: &mut F,
    at: usize,
    bytes: [u8; N],
) -> Result<(), Reason> {
    *frame.window::<N>(at).map_err(|Truncated| Reason::Headroom)? = bytes;
    Ok(())
}
