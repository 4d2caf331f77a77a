//! What both directions of mode `snat` share: the way out, and what a packet says of its flow.

use xdp_lb_abi::{Address, Device, Hop, Reason, Seen};

use crate::{
    Frame, Hand, Tables, Verdict,
    forward::{inner_kind, leave, link_length, write_link},
    parse::{Facts, Kind, Word, protocol},
    rewrite::{End, Side, decrement_ttl, quoted, rewrite},
};

/// Chunk types (RFC 9260, 3.2)
mod chunk {
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

/// TCP flags
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const RST: u8 = 0x04;
}

/// What was found out about a packet: where it goes, and as whose.
///
/// It lies on the stack of the stage's program, whose steps are functions of their own and fill it in:
/// together they would need more than the 512 bytes of stack that BPF has. They return a plain
/// number, and leave the reason of a refusal here.
pub(crate) struct Plan {
    /// Both ends of the packet after translation; of a later fragment only the addresses count. For
    /// an ICMP error: of a packet that goes the same way.
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) ports: Word<(u16, u16)>,
    /// An ICMP error of a router, whose address stays.
    pub(crate) from_router: Word<bool>,
    pub(crate) hop: Hop,
    pub(crate) backend: Word<u32>,
    /// The time, and when the record of the flow's direction was written
    pub(crate) now: u64,
    pub(crate) seen: u64,
    /// What that record says was seen
    pub(crate) state: Word<u8>,
    /// What is counted where a step returns [`REFUSED`]
    pub(crate) reason: Word<Reason>,
}

/// The packet goes on.
pub(crate) const DONE: u32 = 0;
/// The packet is refused, as [`Plan::reason`] says.
pub(crate) const REFUSED: u32 = 1;

impl Plan {
    #[inline(always)]
    pub(crate) const fn new(facts: &Facts, now: u64) -> Self {
        Self {
            source: facts.source,
            destination: facts.destination,
            ports: Word((0, 0)),
            from_router: Word(false),
            hop: Hop::UNKNOWN,
            backend: Word(0),
            now,
            seen: now,
            state: Word(0),
            reason: Word(Reason::Inconsistent),
        }
    }

    #[inline(always)]
    pub(crate) fn set_ends(&mut self, source: End, destination: End) {
        self.source = source.0;
        self.destination = destination.0;
        self.ports = Word((source.1, destination.1));
    }

    #[inline(always)]
    pub(crate) fn refuse(&mut self, reason: Reason) -> u32 {
        self.reason = Word(reason);
        REFUSED
    }
}

/// Whether a router would send the packet on by a path with this MTU.
///
/// # Errors
///
/// Why not: [`Reason::TimeExceeded`] or [`Reason::TooBig`].
#[inline(always)]
pub(crate) fn passes(facts: &Facts, mtu: usize) -> Result<(), Reason> {
    if facts.ttl.0 <= 1 {
        return Err(Reason::TimeExceeded);
    }
    if facts.length > mtu { Err(Reason::TooBig) } else { Ok(()) }
}

/// A first fragment of SCTP cannot get other ports: its checksum is over the whole packet.
///
/// # Errors
///
/// [`Reason::SctpFragment`]; nothing is written yet.
#[inline(always)]
pub(crate) fn can_translate(facts: &Facts, plan: &Plan) -> Result<(), Reason> {
    let sctp = facts.protocol.0 == protocol::SCTP && facts.kind.0 == Kind::FirstFragment;
    if sctp && facts.ports.0 != plan.ports.0 {
        return Err(Reason::SctpFragment);
    }
    Ok(())
}

/// Gives the packet its new ends, and sends it on as a router does. What an ICMP error quotes went
/// the other way, and gets the same ends.
///
/// # Errors
///
/// [`Reason::NoNextHop`] before anything is written, [`Reason::Headroom`] after.
#[inline(always)]
pub(crate) fn send_on<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
    plan: &Plan,
    device: &Device,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    let verdict = leave(frame, tables, device, plan.hop)?;
    let mut failed = translate(frame, hand, plan, DESTINATION);
    if !plan.from_router.0 {
        failed |= translate(frame, hand, plan, SOURCE);
    }
    if facts.kind.0 == Kind::Error {
        failed |= translate(frame, hand, plan, QUOTED_SOURCE);
        failed |= translate(frame, hand, plan, QUOTED_DESTINATION);
    }
    if failed != DONE {
        return Err(Reason::Headroom);
    }
    decrement_ttl(frame, facts)?;
    let growth = link_length(device) as i32 - facts.link() as i32;
    if growth != 0 {
        frame.grow_front(growth)?;
    }
    write_link(frame, device, plan.hop, facts.priority.0, inner_kind(facts))?;
    Ok(verdict)
}

/// What [`translate`] rewrites.
const SOURCE: u32 = 0;
const DESTINATION: u32 = 1;
const QUOTED_SOURCE: u32 = 2;
const QUOTED_DESTINATION: u32 = 3;

/// Rewrites one side of the packet, or of the one that it quotes.
#[inline(never)]
fn translate<F: Frame>(frame: &mut F, hand: &Hand, plan: &Plan, part: u32) -> u32 {
    let facts = &hand.facts;
    let (source_port, destination_port) = plan.ports.0;
    let (source, destination) = ((plan.source, source_port), (plan.destination, destination_port));
    let written = match part {
        SOURCE => rewrite(frame, facts, Side::Source, source),
        DESTINATION => rewrite(frame, facts, Side::Destination, destination),
        QUOTED_SOURCE => quoted(frame, facts, &hand.quote, Side::Source, destination),
        _ => quoted(frame, facts, &hand.quote, Side::Destination, source),
    };
    if written.is_ok() { DONE } else { REFUSED }
}

/// What is known of a flow's direction after a packet of it, as bits of [`Seen`].
///
/// Of SCTP only the first chunk is looked at: those that end an association mostly stand first.
#[inline(always)]
pub(crate) fn state_after<F: Frame>(frame: &mut F, facts: &Facts, before: u8) -> u8 {
    if facts.opens.0 {
        return before;
    }
    let after = before | Seen::DATA;
    match facts.protocol.0 {
        protocol::TCP => {
            // With the byte before them: the verifier learns nothing from a check of a single byte.
            let Ok([_, flags]) = frame.window::<2>(facts.transport() + 12) else { return after };
            if *flags & flag::RST != 0 {
                after | Seen::RESET
            } else {
                // Who goes on after a reset was not the one who sent it (RFC 7857, 2.2; RFC 6146,
                // 3.5.2.2).
                let after = after & !Seen::RESET;
                if *flags & flag::FIN != 0 { after | Seen::FIN } else { after }
            }
        }
        protocol::SCTP => {
            let at = facts.transport() + 12;
            if at + 4 > facts.end() {
                return after;
            }
            let Ok([kind, _, _, _]) = frame.window::<4>(at) else { return after };
            match *kind {
                chunk::ABORT => after | Seen::RESET,
                chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE => {
                    after & !Seen::RESET | Seen::FIN
                }
                _ => after & !Seen::RESET,
            }
        }
        _ => after,
    }
}

/// Whether a record that was last written at `seen` is to be written again.
#[inline(always)]
pub(crate) const fn is_stale(seen: u64, now: u64) -> bool {
    now.saturating_sub(seen) >= Seen::REFRESH
}
