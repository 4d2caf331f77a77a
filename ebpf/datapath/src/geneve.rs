//! The tunnel packets of mode `geneve` (RFC 8926): their format, written and read.
//!
//! Behind the outer IP header, in network byte order:
//!
//! | bytes | what | value |
//! | --- | --- | --- |
//! | 0–1 | UDP source port | 49152–65535 by the flow's hash (RFC 8926, 3.3) |
//! | 2–3 | UDP destination port | 6081 |
//! | 4–5 | UDP length | |
//! | 6–7 | UDP checksum | 0: the inner packet has its own (RFC 8926, 4.3; RFC 6935) |
//! | 8 | version, option length in words of four bytes | 3 (IPv4) or 6 (IPv6) |
//! | 9 | flags | `0x40`: a critical option is present |
//! | 10–11 | protocol | `0x0800` or `0x86dd`: an IP packet without a link header |
//! | 12–14 | virtual network | 0 |
//! | 15 | reserved | 0 |
//! | 16–17 | option class | `0xff4c`, experimental (RFC 8926, 7) |
//! | 18 | option type | `0x81` (IPv4) or `0x82` (IPv6); the highest bit says critical |
//! | 19 | option data in words of four bytes | 2 (IPv4) or 5 (IPv6) |
//! | 20–21 | frontend's port | 0 for a later fragment, which has no ports |
//! | 22–23 | reserved | 0 |
//! | 24–27 or 24–39 | frontend's address | |
//!
//! The inner packet follows, already addressed to the pod. Its family is the frontend's; the outer
//! packet's may be another.

use xdp_lb_abi::{Address, Reason};

use crate::{
    Frame,
    frame::{write, write_v6},
    parse::{Facts, ethertype},
    rewrite::End,
};

/// UDP port of Geneve (RFC 8926, 3.3).
pub const PORT: u16 = 6081;

/// Length of a UDP header.
const UDP: usize = 8;
/// Length of a Geneve header without options.
const HEADER: usize = 8;
/// Length of an option's header.
const OPTION: usize = 4;
/// Most options of a packet that are looked through.
const MAX_OPTIONS: usize = 4;

/// Flags of the Geneve header: OAM, a critical option is present.
mod flag {
    pub(super) const OAM: u64 = 0x80;
    pub(super) const CRITICAL: u64 = 0x40;
}

/// Bits of an option's type: an endpoint that does not know the option drops the packet.
const CRITICAL: u8 = 0x80;
/// Class of our option, of the range for experiments.
const CLASS: u16 = 0xff4c;

/// What an option of ours looks like by the family of its frontend.
struct Layout {
    kind: u8,
    /// Bytes of data behind the option's header: port, zeros, address.
    data: usize,
    /// The inner packet's.
    protocol: u16,
}

impl Layout {
    #[inline(always)]
    const fn of(v6: bool) -> Self {
        if v6 {
            Self { kind: CRITICAL | 2, data: 20, protocol: ethertype::IPV6 }
        } else {
            Self { kind: CRITICAL | 1, data: 8, protocol: ethertype::IPV4 }
        }
    }
}

/// Bytes from the UDP header to the inner packet.
#[inline(always)]
pub(crate) const fn overhead(v6: bool) -> usize {
    UDP + HEADER + OPTION + Layout::of(v6).data
}

/// Writes UDP header, Geneve header and option to `at`, in front of an inner packet of `length`.
#[inline(always)]
pub(crate) fn write_headers<F: Frame>(
    frame: &mut F,
    at: usize,
    hash: u32,
    length: usize,
    frontend: End,
) -> Result<(), Reason> {
    let v6 = frontend.0.is_v6();
    let layout = Layout::of(v6);
    let source = 0xc000 | u64::from(hash & 0x3fff);
    let length = (length + overhead(v6)) as u64 & 0xffff;
    let udp = source << 48 | u64::from(PORT) << 32 | length << 16;
    let options = (OPTION + layout.data) as u64 / 4;
    let header = options << 56 | flag::CRITICAL << 48 | u64::from(layout.protocol) << 32;
    let option = u64::from(CLASS) << 48
        | u64::from(layout.kind) << 40
        | (layout.data as u64 / 4) << 32
        | u64::from(frontend.1) << 16;
    write(frame, at, udp.to_be_bytes())?;
    write(frame, at + 8, header.to_be_bytes())?;
    write(frame, at + 16, option.to_be_bytes())?;
    if v6 {
        write_v6(frame, at + 24, &frontend.0)
    } else {
        write(frame, at + 24, frontend.0.v4_octets())
    }
}

/// What a tunnel packet says.
pub(crate) struct Opened {
    /// The frontend that the client's packet came by.
    pub(crate) frontend: End,
    /// Where the inner packet starts.
    pub(crate) inner: usize,
    /// Where the UDP datagram ends.
    pub(crate) end: usize,
}

/// Reads UDP header, Geneve header and options of a tunnel packet.
///
/// # Errors
///
/// [`Reason::BadLength`], [`Reason::GeneveChecksum`], [`Reason::GeneveFormat`],
/// [`Reason::GeneveOption`]; [`Reason::Truncated`] where the frame is shorter than its headers say.
#[inline(always)]
pub(crate) fn read_headers<F: Frame>(frame: &mut F, outer: &Facts) -> Result<Opened, Reason> {
    let at = outer.transport();
    let udp = u64::from_be_bytes(*frame.window::<UDP>(at)?);
    let length = (udp >> 16) as usize & 0xffff;
    if length < UDP + HEADER || at + length > outer.end() {
        return Err(Reason::BadLength);
    }
    if udp & 0xffff != 0 {
        return Err(Reason::GeneveChecksum);
    }
    let header = u64::from_be_bytes(*frame.window::<HEADER>(at + UDP)?);
    let (version, flags) = (header >> 62, header >> 48 & (flag::OAM | flag::CRITICAL));
    let (protocol, network) = ((header >> 32) as u16, header >> 8 & 0xff_ffff);
    let v6 = protocol == ethertype::IPV6;
    let layout = Layout::of(v6);
    // Our option is critical, which the header must say.
    if version != 0 || flags != flag::CRITICAL || protocol != layout.protocol || network != 0 {
        return Err(Reason::GeneveFormat);
    }
    let end = at + length;
    let inner = at + UDP + HEADER + (header >> 56 & 0x3f) as usize * 4;
    if inner > end {
        return Err(Reason::GeneveOption);
    }
    let option = find_option(frame, at + UDP + HEADER, inner, &layout)?;
    let port = u16::from_be_bytes(*frame.window::<2>(option + OPTION)?);
    let address = option + OPTION + 4;
    let frontend = if v6 {
        Address::v6(*frame.window::<16>(address)?)
    } else {
        Address::v4(*frame.window::<4>(address)?)
    };
    Ok(Opened { frontend: (frontend, port), inner, end })
}

/// Whether a Geneve packet plainly belongs to somebody else on this host: it has an Ethernet frame
/// inside, as overlay networks have.
#[inline(always)]
pub(crate) fn is_overlay<F: Frame>(frame: &mut F, outer: &Facts) -> bool {
    const ETHERNET: [u8; 2] = [0x65, 0x58];
    matches!(frame.window::<4>(outer.transport() + UDP), Ok([_, _, kind @ ..]) if *kind == ETHERNET)
}

/// Where our option is; the options must fill their space exactly (RFC 8926, 3.5).
#[inline(always)]
fn find_option<F: Frame>(
    frame: &mut F,
    start: usize,
    end: usize,
    layout: &Layout,
) -> Result<usize, Reason> {
    let mut next = start;
    let mut found = 0;
    for _ in 0..MAX_OPTIONS {
        if next == end {
            break;
        }
        if next + OPTION > end {
            return Err(Reason::GeneveOption);
        }
        let header = u32::from_be_bytes(*frame.window::<OPTION>(next)?);
        let (class, kind) = ((header >> 16) as u16, (header >> 8) as u8);
        let data = (header & 0x1f) as usize * 4;
        if class == CLASS && kind == layout.kind {
            if found != 0 || data != layout.data {
                return Err(Reason::GeneveOption);
            }
            found = next;
        } else if kind & CRITICAL != 0 {
            return Err(Reason::GeneveOption);
        }
        next += OPTION + data;
    }
    if next != end || found == 0 { Err(Reason::GeneveOption) } else { Ok(found) }
}
