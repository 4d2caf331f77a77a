//! A frame's link header, kept while the bytes before the IP header move.

use xdp_lb_abi::Reason;

use crate::{
    Frame,
    frame::write,
    parse::{ETHERNET, TAG, Word, ethertype, part},
};

/// MAC addresses and VLAN tags.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// The MAC addresses that it is to and from, as numbers of 48 bits
    macs: (u64, u64),
    outer: Word<[u8; TAG]>,
    inner: Word<[u8; TAG]>,
    length: usize,
}

impl Link {
    /// Reads a link header of `length` bytes.
    #[inline(always)]
    pub(crate) fn read<F: Frame>(frame: &mut F, length: usize) -> Result<Self, Reason> {
        let bytes = frame.window::<12>(0)?;
        let (first, rest) =
            (u64::from_be_bytes(part(bytes, 0)), u32::from_be_bytes(part(bytes, 8)));
        let macs = (first >> 16, (first & 0xffff) << 32 | u64::from(rest));
        let mut link = Self { macs, outer: Word([0; TAG]), inner: Word([0; TAG]), length };
        if length > ETHERNET {
            link.outer = Word(*frame.window::<TAG>(12)?);
        }
        if length > ETHERNET + TAG {
            link.inner = Word(*frame.window::<TAG>(12 + TAG)?);
        }
        Ok(link)
    }

    /// The header of an answer: back to the sender.
    #[inline(always)]
    pub(crate) const fn answer(mut self) -> Self {
        self.macs = (self.macs.1, self.macs.0);
        self
    }

    /// Writes the header to the start of the frame, before an IP packet of either family.
    #[inline(always)]
    pub(crate) fn write<F: Frame>(&self, frame: &mut F, v6: bool) -> Result<(), Reason> {
        write_macs(frame, self.macs.0, self.macs.1)?;
        if self.length > ETHERNET {
            write(frame, 12, self.outer.0)?;
        }
        if self.length > ETHERNET + TAG {
            write(frame, 12 + TAG, self.inner.0)?;
        }
        let kind = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
        write(frame, self.length - 2, kind.to_be_bytes())
    }
}

/// Writes the MAC addresses that a frame is to and from, numbers of 48 bits.
#[inline(always)]
pub(crate) fn write_macs<F: Frame>(frame: &mut F, to: u64, from: u64) -> Result<(), Reason> {
    write(frame, 0, (to << 16 | from >> 32).to_be_bytes())?;
    write(frame, 8, (from as u32).to_be_bytes())
}
