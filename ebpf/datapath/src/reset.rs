//! The TCP RST that answers a segment of no connection (RFC 9293, 3.10.7.1).

use xdp_lb_abi::Reason;

use crate::{
    Frame,
    frame::write,
    header::{ip_length, pseudo_header, write_ip_header},
    link::Link,
    parse::{Facts, protocol},
};

/// Length of a TCP header without options.
const HEADER: usize = 20;

/// TCP flags
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const RST: u8 = 0x04;
    pub(super) const ACK: u8 = 0x10;
}

/// What a RST says.
#[derive(Clone, Copy)]
pub(crate) struct Reset {
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
}

impl Reset {
    /// The answer to a segment; nothing to a RST, and to a header that is cut off or malformed.
    ///
    /// Of a first fragment the data counts that it has: the sender accepts an acknowledgment of less
    /// than it sent (RFC 9293, 3.10.7.3).
    #[inline(always)]
    pub(crate) fn answering<F: Frame>(frame: &mut F, facts: &Facts) -> Option<Self> {
        let header = frame.window::<HEADER>(facts.transport()).ok()?;
        let [_, _, _, _, a, b, c, d, e, f, g, h, offset, flags, ..] = *header;
        let segment = facts.end().wrapping_sub(facts.transport());
        let header_length = usize::from(offset >> 4) * 4;
        if flags & flag::RST != 0 || header_length < HEADER || header_length > segment {
            return None;
        }
        if flags & flag::ACK != 0 {
            let sequence = u32::from_be_bytes([e, f, g, h]);
            return Some(Self { sequence, acknowledgment: 0, flags: flag::RST });
        }
        // SYN and FIN have a sequence number each.
        let length = (segment - header_length) as u32
            + u32::from(flags & flag::SYN != 0)
            + u32::from(flags & flag::FIN != 0);
        let acknowledgment = u32::from_be_bytes([a, b, c, d]).wrapping_add(length);
        Some(Self { sequence: 0, acknowledgment, flags: flag::RST | flag::ACK })
    }

    /// Writes the RST in place of the segment, back to its sender from the address and port that it
    /// was for. It is never longer than the segment was.
    ///
    /// # Errors
    ///
    /// [`Reason::Headroom`] where the frame cannot become that short.
    #[inline(always)]
    pub(crate) fn write<F: Frame>(self, frame: &mut F, facts: &Facts) -> Result<(), Reason> {
        let v6 = facts.destination.is_v6();
        let (source, destination) = (&facts.destination, &facts.source);
        let at = facts.link() + ip_length(v6);
        let link = Link::read(frame, facts.link())?;
        frame.truncate(at + HEADER)?;
        link.answer().write(frame, v6)?;
        write_ip_header(frame, facts.link(), source, destination, HEADER, protocol::TCP)?;

        let (their_port, our_port) = facts.ports.0;
        let ports = u32::from(our_port) << 16 | u32::from(their_port);
        // Data offset and flags; the window is 0, and so is the urgent pointer.
        let flags = 0x5000 | u16::from(self.flags);
        let sum = pseudo_header(source, destination, HEADER, protocol::TCP)
            .add_u32(ports)
            .add_u32(self.sequence)
            .add_u32(self.acknowledgment)
            .add(flags)
            .finish();
        let first = u64::from(ports) << 32 | u64::from(self.sequence);
        let second = u64::from(self.acknowledgment) << 32 | u64::from(flags) << 16;
        write(frame, at, first.to_be_bytes())?;
        write(frame, at + 8, second.to_be_bytes())?;
        write(frame, at + 16, (u32::from(sum) << 16).to_be_bytes())
    }
}
