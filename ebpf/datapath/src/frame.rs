//! Access to the bytes of a packet.

use xdp_lb_abi::{Address, Reason};

use crate::checksum::{Cover, Delta};

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

    /// Makes room for outer headers: an IP header of `ip` bytes, `datagram` bytes of UDP and what it
    /// carries in front of the packet, and a link header that is `link` bytes longer.
    ///
    /// # Errors
    ///
    /// As [`Frame::grow_front`].
    #[inline(always)]
    fn wrap_front(&mut self, link: i32, ip: usize, datagram: usize) -> Result<(), NoRoom> {
        self.grow_front(link + (ip + datagram) as i32)
    }

    /// Cuts the frame off after `length` bytes, counted over the whole frame.
    ///
    /// # Errors
    ///
    /// Where it is not that long; the frame is then as before.
    fn truncate(&mut self, length: usize) -> Result<(), NoRoom>;

    /// Interface index of the device that the frame came from, or leaves by.
    fn ingress(&self) -> u32;

    /// Brings the transport checksum at `at` up to date after what it covers has changed.
    ///
    /// A packet on its way out may have no checksum yet, only the sum of its pseudo header (Linux's
    /// `CHECKSUM_PARTIAL`); the kernel's own function knows.
    ///
    /// # Errors
    ///
    /// Where the field is not in the linear part.
    #[inline(always)]
    fn apply(&mut self, at: usize, delta: Delta, cover: Cover) -> Result<(), Truncated> {
        let field = self.window::<2>(at)?;
        *field = delta.applied(u16::from_be_bytes(*field), cover).to_be_bytes();
        Ok(())
    }
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

/// Writes the sixteen bytes of an IPv6 address, as [`write`] does, but as two words.
///
/// # Errors
///
/// As [`write`].
#[inline(always)]
pub(crate) fn write_v6<F: Frame>(
    frame: &mut F,
    at: usize,
    address: &Address,
) -> Result<(), Reason> {
    let [first, second] = address.words();
    write(frame, at, first.to_ne_bytes())?;
    write(frame, at + 8, second.to_ne_bytes())
}
