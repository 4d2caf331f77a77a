//! The packet path: read, decide, rewrite.
//!
//! The same code runs in the kernel and in tests on the host. It reaches packets through [`Frame`]
//! and everything else through [`Tables`], and contains no unsafe code. A packet goes through these
//! steps:
//!
//! 1. [`parse`] reads the headers once into [`parse::Facts`];
//! 2. [`decide`] finds the frontend and picks the backend;
//! 3. [`forward`] sends it there in modes `l2` and `ipip`;
//! 4. everything else is a [`stage`] of its own, a separate program in the kernel: [`pods`], [`snat`]
//!    and [`unsnat`], [`unwrap`], [`icmp`], [`fragment`], [`refuse`].
//!
//! Calls of this host's own sockets go through [`socket`], which leads them to a backend before there is
//! any packet.
//!
//! Answers of pods go through [`egress`] on their way out, the daemon's questions to backends through
//! [`probe`].
//!
//! A packet that is handed to the kernel's stack is never half changed.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "host"))]
extern crate std;

mod affinity;
pub mod checksum;
mod crc32c;
pub mod decide;
pub mod deliver;
pub mod egress;
pub mod forward;
pub mod fragment;
mod frame;
pub mod geneve;
mod header;
pub mod icmp;
mod link;
#[cfg(any(test, feature = "host"))]
mod memory;
pub mod monitor;
mod nat;
pub mod parse;
pub mod pods;
mod ports;
pub mod probe;
mod quote;
pub mod refuse;
mod reset;
mod rewrite;
pub mod snat;
pub mod socket;
pub mod stage;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod unsnat;
pub mod unwrap;

pub use frame::{Frame, MAX_OFFSET, NoRoom, Truncated};
#[cfg(any(test, feature = "host"))]
pub use memory::{HEADROOM, MemoryFrame};
pub use stage::{Hand, Stage, resume};
pub use tables::{Claim, Lookup, Sockets, Tables};
use xdp_lb_abi::{Address, AddressFlags, Disposition, Mode, Reason, Settings};

use crate::{
    decide::Choice,
    parse::{Facts, Kind, Network, ethertype, protocol},
    stage::{Chosen, go_on, refuse_with},
};

/// What to do with the frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Hand it to the kernel's stack.
    Pass,
    /// Drop it.
    Drop,
    /// Send it out of the device that it came from.
    Transmit,
    /// Send it out of this device of `DEVICES`; a whole word, as the stage below is, since the verifier
    /// accepts only aligned access to the stack.
    Redirect(u64),
    /// Go on in this stage, with what [`Tables::hand_on`] was told.
    Next(Stage),
}

/// Handles one frame: counts what becomes of it, and returns that.
#[inline(always)]
pub fn handle<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let result = process(frame, tables);
    settle(frame, tables, result)
}

/// Counts what a stage came to.
#[inline(always)]
fn settle<F: Frame, T: Tables>(frame: &F, tables: &T, result: Result<Verdict, Reason>) -> Verdict {
    let reason = match result {
        Ok(verdict) => return verdict,
        Err(reason) => reason,
    };
    tables.count_reason(reason, frame.linear_length());
    match reason.disposition() {
        Disposition::Pass | Disposition::Deliver => Verdict::Pass,
        Disposition::Drop => Verdict::Drop,
        Disposition::Answer | Disposition::Forward => Verdict::Transmit,
    }
}

/// Forwards the frame, or says why it is not simply forwarded.
#[inline(always)]
fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Verdict, Reason> {
    // The families go apart until the end: what both share would need room on the stack for each thing
    // that they find in different places.
    let Network { kind, link, priority } = parse::network(frame)?;
    match kind {
        ethertype::IPV4 => {
            let read = parse::ipv4(frame, link, priority);
            accept(frame, tables, read)
        }
        ethertype::IPV6 => {
            let read = parse::ipv6(frame, link, priority);
            accept(frame, tables, read)
        }
        _ => Err(parse::not_ip(kind)),
    }
}

/// Goes on with what was read.
#[inline(always)]
fn accept<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    read: Result<Facts, Reason>,
) -> Result<Verdict, Reason> {
    let facts = match read {
        Ok(facts) => facts,
        Err(
            reason @ (Reason::Icmp | Reason::Protocol | Reason::Fragment | Reason::ExtensionHeader),
        ) => return Err(stray(frame, tables, reason)),
        Err(reason) => return Err(reason),
    };
    let stage = match facts.kind.0 {
        Kind::Flow => return balance(frame, tables, &facts),
        Kind::Echo | Kind::Error => Stage::Icmp,
        Kind::Tunnel if !tables.settings().is_some_and(Settings::terminate) => {
            let foreign = is_foreign_frontend(tables, &facts.destination);
            return Err(if foreign { Reason::NotServed } else { Reason::TunnelNotOurs });
        }
        Kind::Tunnel => Stage::Unwrap,
        Kind::FirstFragment | Kind::LaterFragment => Stage::Fragment,
    };
    Ok(go_on(tables, stage, &facts))
}

#[inline(always)]
fn balance<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
) -> Result<Verdict, Reason> {
    match decide::decide_by_hash(facts, tables) {
        Ok(Some(choice)) => send(frame, tables, facts, &choice),
        Ok(None) => Ok(go_on(tables, Stage::Remember, facts)),
        Err(Reason::NoFrontend) => {
            elsewhere(tables, facts).map(|stage| go_on(tables, stage, facts))
        }
        Err(reason) => Err(reason),
    }
    .or_else(|reason| refusal(tables, facts, reason))
}

/// Stage `Remember`: picks the backend of a packet whose service remembers flows, in a handover, or
/// clients, for session affinity.
#[inline(always)]
fn remember<T: Tables>(tables: &T, facts: &Facts) -> Result<Verdict, Reason> {
    match decide::decide(facts, tables) {
        Ok(choice) => {
            if facts.kind.0 == Kind::FirstFragment {
                let Chosen { id, hash, stats } = choice.chosen;
                let backend = u64::from(choice.backend.generation()) << 32 | u64::from(id);
                let flow = u64::from(stats) << 32 | u64::from(hash);
                fragment::record_first(tables, facts, backend, flow);
            }
            send_on(tables, &choice)
        }
        Err(reason) => refusal(tables, facts, reason),
    }
}

/// Sends a packet to its backend: here in modes `l2` and `ipip`, in a later stage in the others.
#[inline(always)]
fn send<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
    choice: &Choice<'_>,
) -> Result<Verdict, Reason> {
    if matches!(choice.backend.mode(), Some(Mode::L2 | Mode::Ipip)) {
        return forward::forward_and_count(frame, tables, facts, choice);
    }
    let stage = later_stage(choice)?;
    tables.hand_on(|hand| hand.backend = choice.chosen);
    Ok(go_on(tables, stage, facts))
}

/// Has the packet that an earlier stage handed on sent to its backend in a later stage.
#[inline(always)]
pub(crate) fn send_on<T: Tables>(tables: &T, choice: &Choice<'_>) -> Result<Verdict, Reason> {
    let stage = later_stage(choice)?;
    tables.hand_on(|hand| hand.backend = choice.chosen);
    Ok(Verdict::Next(stage))
}

/// The stage that forwards to a backend.
#[inline(always)]
fn later_stage(choice: &Choice<'_>) -> Result<Stage, Reason> {
    match choice.backend.mode() {
        Some(Mode::L2 | Mode::Ipip) => Ok(Stage::Forward),
        Some(Mode::Geneve | Mode::Local) => Ok(Stage::Pods),
        Some(Mode::Snat) => Ok(Stage::Snat),
        None => Err(Reason::Inconsistent),
    }
}

/// A reason that asks for an answer is handed to the stage that gives it.
#[inline(always)]
pub(crate) fn refusal<T: Tables>(
    tables: &T,
    facts: &Facts,
    reason: Reason,
) -> Result<Verdict, Reason> {
    if matches!(reason, Reason::Reset | Reason::TimeExceeded | Reason::UnknownPort) {
        return Ok(refuse_with(tables, facts, reason, 0));
    }
    Err(reason)
}

/// What is for no frontend may be for this host itself: a tunnel's end, an answer to mode `snat`, or
/// a port that no frontend has on a frontend's address.
#[inline(always)]
pub(crate) fn elsewhere<T: Tables>(tables: &T, facts: &Facts) -> Result<Stage, Reason> {
    let Some(settings) = tables.settings() else { return Err(Reason::NoFrontend) };
    if is_foreign_frontend(tables, &facts.destination) {
        return Err(Reason::UnknownPort);
    }
    let port = facts.ports.0.1;
    if facts.protocol.0 == protocol::UDP && port == geneve::PORT && settings.terminate() {
        Ok(Stage::Unwrap)
    } else if settings.is_nat_port(port) {
        Ok(Stage::Unsnat)
    } else {
        if facts.opens.0 && tables.may_be_answer(&facts.destination, port, facts.protocol.0) {
            // A client speaks to a pod itself, from a port that it once used through a frontend.
            tables.forget_answer(&facts.flow());
        }
        Err(Reason::NoFrontend)
    }
}

/// What becomes of a packet that is none of a frontend's: the kernel gets it, but for a frontend's
/// address only where that is its own, or it would route it back to where it came from.
#[inline(always)]
fn stray<F: Frame, T: Tables>(frame: &mut F, tables: &T, reason: Reason) -> Reason {
    match parse::destination(frame) {
        Ok(address) if is_foreign_frontend(tables, &address) => Reason::NotServed,
        Ok(_) | Err(_) => reason,
    }
}

/// Whether the address is a frontend's, and not one of the host itself.
#[inline(always)]
pub(crate) fn is_foreign_frontend<T: Tables>(tables: &T, address: &Address) -> bool {
    tables.may_be_frontend(address) && is_foreign(tables, address)
}

/// The same for one that [`Tables::may_be_frontend`] lets through.
#[inline(never)]
fn is_foreign<T: Tables>(tables: &T, address: &Address) -> bool {
    let flags = AddressFlags::FRONTEND | AddressFlags::LOCAL;
    tables.address_flags(address) & flags == AddressFlags::FRONTEND
}
