//! Answers of pods on their way out: their source becomes the frontend.
//!
//! Everything that leaves by the device comes here, most of it none of ours: it stays byte for byte
//! what it is. Packets may be as long as IP allows, since the device cuts them up only later, and
//! their transport checksum may still be to be completed ([`Frame::apply`]).

use xdp_lb_abi::{Address, Answer, FlowKey, Reason, fragment_key};

use crate::{
    Frame, Tables,
    deliver::is_alive,
    fragment::is_late,
    link::write_macs,
    parse::{Facts, Kind, parse, part, protocol},
    quote::read_quote,
    rewrite::{End, Side, quoted, rewrite},
    stage::Quote,
};

/// What becomes of a packet on its way out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outgoing {
    /// It leaves as it is.
    Untouched,
    /// It leaves, rewritten.
    Rewritten,
    /// It was rewritten, and belongs to this host or a pod on it: it comes back in by the same device, whose
    /// own MAC address it is now for.
    BackIn,
    /// It is dropped.
    Drop,
}

/// Rewrites a packet where it is a pod's answer, or an error about what a pod received.
#[inline(always)]
pub fn egress<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Outgoing {
    let Ok(facts) = parse(frame) else { return Outgoing::Untouched };
    match facts.kind.0 {
        Kind::Flow | Kind::FirstFragment => answer(frame, tables, &facts),
        Kind::LaterFragment => piece(frame, tables, &facts),
        Kind::Error => error(frame, tables, &facts),
        Kind::Echo | Kind::Tunnel => Outgoing::Untouched,
    }
}

/// A packet with ports.
#[inline(always)]
fn answer<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Outgoing {
    let (from, to) = facts.ports.0;
    let protocol = facts.protocol.0;
    if !tables.may_be_answer(&facts.source, from, protocol) {
        return Outgoing::Untouched;
    }
    let received = FlowKey::new(facts.destination, facts.source, (to, from), protocol);
    let Some(answer) = tables.answer(&received) else { return Outgoing::Untouched };
    let now = tables.clock();
    if !is_alive(&answer, protocol, now) {
        return Outgoing::Untouched;
    }
    if facts.kind.0 == Kind::FirstFragment {
        tables.record_answer_fragment(&packet(facts), &answer.at(now));
    }
    let result = reachable(frame, facts).and_then(|()| rename(frame, facts, &answer));
    leave(frame, tables, &answer, result)
}

/// A fragment that is not the first of its packet.
#[inline(always)]
fn piece<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Outgoing {
    let Some(answer) = tables.answer_fragment(&packet(facts)) else { return Outgoing::Untouched };
    if is_late(tables.clock(), answer.seen()) {
        return Outgoing::Untouched;
    }
    let result = rename(frame, facts, &answer);
    leave(frame, tables, &answer, result)
}

/// The key of a fragment's packet.
#[inline(always)]
const fn packet(facts: &Facts) -> FlowKey {
    fragment_key(facts.source, facts.destination, facts.protocol.0, facts.identification.0)
}

/// An error that a pod, or this host in its place, sends about what the pod received.
#[inline(always)]
fn error<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Outgoing {
    let Ok(quote) = read_quote(frame, facts) else { return Outgoing::Untouched };
    let pod = (quote.destination, quote.ports.0.1);
    if !tables.may_be_answer(&pod.0, pod.1, quote.protocol.0) {
        return Outgoing::Untouched;
    }
    let received = FlowKey::new(quote.source, pod.0, quote.ports.0, quote.protocol.0);
    let Some(answer) = tables.answer(&received) else { return Outgoing::Untouched };
    let result = rename_error(frame, facts, &quote, &answer);
    leave(frame, tables, &answer, result)
}

/// Checks that the transport checksum is within reach: what is half rewritten must not leave.
#[inline(always)]
fn reachable<F: Frame>(frame: &mut F, facts: &Facts) -> Result<(), Reason> {
    let last = match facts.protocol.0 {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 10,
    };
    frame.window::<2>(facts.transport() + last)?;
    Ok(())
}

/// Puts the frontend in the pod's place, and the client as the frontend knows it in its own.
#[inline(always)]
fn rename<F: Frame>(frame: &mut F, facts: &Facts, answer: &Answer) -> Result<(), Reason> {
    let v6 = facts.destination.is_v6();
    rewrite(frame, facts, Side::Source, answer.frontend(v6))?;
    let client = answer.client(v6);
    if is_other(client, facts.destination, facts.ports.0.1) {
        rewrite(frame, facts, Side::Destination, client)?;
    }
    Ok(())
}

/// The same in the packet that an error quotes, which went the other way. Its own source stays, where
/// it is not the pod itself.
#[inline(always)]
fn rename_error<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    quote: &Quote,
    answer: &Answer,
) -> Result<(), Reason> {
    let v6 = facts.destination.is_v6();
    let (frontend, client) = (answer.frontend(v6), answer.client(v6));
    quoted(frame, facts, quote, Side::Destination, frontend)?;
    if is_other(client, quote.source, quote.ports.0.0) {
        quoted(frame, facts, quote, Side::Source, client)?;
    }
    if facts.source == quote.destination {
        rewrite(frame, facts, Side::Source, frontend)?;
    }
    if facts.destination != client.0 {
        rewrite(frame, facts, Side::Destination, client)?;
    }
    Ok(())
}

#[inline(always)]
fn is_other(end: End, address: Address, port: u16) -> bool {
    end.0 != address || end.1 != port
}

/// Counts what came out, and says how it leaves.
#[inline(always)]
fn leave<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    answer: &Answer,
    result: Result<(), Reason>,
) -> Outgoing {
    let result = match result {
        Ok(()) if answer.is_hairpin() => come_back(frame),
        result => result,
    };
    let (reason, outgoing) = match result {
        Ok(()) if answer.is_hairpin() => (Reason::Answered, Outgoing::BackIn),
        Ok(()) => (Reason::Answered, Outgoing::Rewritten),
        Err(Reason::SctpFragment) => (Reason::SctpFragment, Outgoing::Drop),
        Err(_) => (Reason::AnswerMalformed, Outgoing::Drop),
    };
    tables.count_reason(reason, frame.linear_length());
    outgoing
}

/// Addresses the frame to the device that it would leave by: the stack takes no other in.
#[inline(always)]
fn come_back<F: Frame>(frame: &mut F) -> Result<(), Reason> {
    let bytes = frame.window::<12>(0)?;
    let (high, low) = (u16::from_be_bytes(part(bytes, 6)), u32::from_be_bytes(part(bytes, 8)));
    let own = u64::from(high) << 32 | u64::from(low);
    write_macs(frame, own, own)
}
