//! A frame in memory, with the limits that the kernel sets.

use std::{vec, vec::Vec};

use crate::{Frame, MAX_OFFSET, NoRoom, Truncated};

/// Bytes in front of a frame that a driver leaves, less those that the kernel keeps for itself
/// (`XDP_PACKET_HEADROOM` 256, `struct xdp_frame` 40).
pub const HEADROOM: usize = 216;
/// No frame may become shorter than an Ethernet header.
const SHORTEST: usize = 14;
/// What new bytes hold: the packet path must not rely on zeros.
const JUNK: u8 = 0xa5;

/// A frame in memory.
#[derive(Clone, Debug)]
pub struct MemoryFrame {
    /// Headroom, then the frame.
    bytes: Vec<u8>,
    start: usize,
    /// End of the linear part in `bytes`.
    linear_end: usize,
    ingress: u32,
}

impl MemoryFrame {
    /// A frame that came from a device, all of it linear.
    pub fn new(frame: &[u8], ingress: u32) -> Self {
        let mut bytes = vec![JUNK; HEADROOM];
        bytes.extend(frame);
        let linear_end = bytes.len();
        Self { bytes, start: HEADROOM, linear_end, ingress }
    }

    /// The same frame with only its first `length` bytes linear: a multi-buffer frame.
    pub fn with_linear(mut self, length: usize) -> Self {
        self.linear_end = self.bytes.len().min(self.start + length);
        self
    }

    /// The same frame with less headroom.
    pub fn with_headroom(mut self, headroom: usize) -> Self {
        let less = self.start.saturating_sub(headroom);
        self.bytes.drain(..less);
        self.start -= less;
        self.linear_end -= less;
        self
    }

    /// The frame as it is now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Frame for MemoryFrame {
    fn window<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Truncated> {
        if offset > MAX_OFFSET {
            return Err(Truncated);
        }
        let start = self.start + offset;
        self.bytes[..self.linear_end]
            .get_mut(start..start + N)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Truncated)
    }

    fn linear_length(&self) -> usize {
        self.linear_end - self.start
    }

    fn total_length(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn grow_front(&mut self, by: i32) -> Result<(), NoRoom> {
        let start = self.start.checked_add_signed(-by as isize).ok_or(NoRoom)?;
        if start + SHORTEST > self.linear_end {
            return Err(NoRoom);
        }
        // What is cut off does not come back either.
        let (low, high) = (start.min(self.start), start.max(self.start));
        self.bytes[low..high].fill(JUNK);
        self.start = start;
        Ok(())
    }

    fn truncate(&mut self, length: usize) -> Result<(), NoRoom> {
        if length < SHORTEST || length > self.total_length() {
            return Err(NoRoom);
        }
        self.bytes.truncate(self.start + length);
        self.linear_end = self.linear_end.min(self.bytes.len());
        Ok(())
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }
}
