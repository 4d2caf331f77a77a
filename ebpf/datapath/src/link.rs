//! A frame's link header, kept while the bytes before the IP header move.

use xdp_lb_abi::Reason;

use crate::{
    Frame,
    frame::write,
    parse::{ETHERNET, TAG, Word, ethertype},
};

/// MAC addresses and VLAN tags.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    macs: Word<[u8; 12]>,
    outer: Word<[u8; TAG]>,
    inner: Word<[u8; TAG]>,
    length: usize,
}

impl Link {
    /// Reads a link header of `length` bytes.
    #[inline(always)]
    pub(crate) fn read<F: Frame>(frame: &mut F, length: usize) -> Result<Self, Reason> {
        let macs = Word(*frame.window::<12>(0)?);
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
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.macs.0;
        self.macs = Word([g, h, i, j, k, l, a, b, c, d, e, f]);
        self
    }

    /// Writes the header to the start of the frame, before an IP packet of either family.
    #[inline(always)]
    pub(crate) fn write<F: Frame>(&self, frame: &mut F, v6: bool) -> Result<(), Reason> {
        write(frame, 0, self.macs.0)?;
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
