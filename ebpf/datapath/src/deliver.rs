//! Hands packets to pods on this host: what mode `local` and the end of a Geneve tunnel share.
//!
//! The pod answers the client from its own address, so how its answers must leave is recorded, for
//! [`crate::egress`]. The pod knows a flow by its client alone. Where a client uses two frontends of
//! one pod from one port, the second flow gets another source port; where the client is on this host
//! too, the pod itself or another, the frontend becomes the source: the kernel would hand the answer
//! to its neighbour directly, past the program on the way out.

use xdp_lb_abi::{Address, AddressFlags, Answer, FlowKey, Reason, Settings, Translation};

use crate::{
    Frame, Hand, Tables, Verdict,
    parse::{Facts, Kind, protocol},
    pods::count,
    quote::read_quote,
    rewrite::{End, Side, quoted, rewrite},
    stage::{Chosen, Quote, Stage, go_on},
};

/// Has a packet delivered whose destination is the pod already; `facts` say so too. `reason` is what
/// is counted then, for the backend too where it was chosen here.
#[inline(always)]
pub(crate) fn deliver_with<T: Tables>(
    tables: &T,
    facts: &Facts,
    backend: Chosen,
    frontend: End,
    reason: Reason,
) -> Verdict {
    tables.hand_on(|hand| {
        hand.backend = backend;
        hand.quote.source = frontend.0;
        hand.quote.ports.0.0 = frontend.1;
        hand.refusal.0 = reason;
    });
    go_on(tables, Stage::Deliver, facts)
}

/// Hands the packet to the stack, which routes it to its pod, and takes one off its TTL then.
///
/// # Errors
///
/// Always: what is counted.
#[inline(always)]
pub fn deliver<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    let frontend = (hand.quote.source, hand.quote.ports.0.0);
    let mut quote = Quote::NONE;
    let mut parties = Parties {
        client: (facts.source, facts.ports.0.0),
        frontend,
        pod: (facts.destination, facts.ports.0.1),
        protocol: facts.protocol.0,
        hairpin: false,
        port: 0,
    };
    if facts.kind.0 == Kind::Error {
        // The pod sent the quoted packet.
        quote = match read_quote(frame, facts) {
            Ok(quote) if quote.source == facts.destination => quote,
            Ok(_) | Err(_) => return Err(Reason::AnswerMalformed),
        };
        parties.client = (quote.destination, quote.ports.0.1);
        parties.pod.1 = quote.ports.0.0;
        parties.protocol = quote.protocol.0;
    }
    match admit(tables, facts.kind.0, &mut parties) {
        ADMITTED => {}
        EXHAUSTED => return Err(Reason::TranslationExhausted),
        _ => return Err(Reason::SctpFragment),
    }
    show(frame, facts, &quote, parties.client, (parties.shown(), parties.port))?;
    if hand.refusal.0 == Reason::Local {
        count(tables, hand);
    }
    Err(hand.refusal.0)
}

/// How long a silent flow keeps its port: RFC 4787 (REQ-5) for UDP, RFC 5382 (REQ-5) for connections;
/// in nanoseconds. A longer silence loses the port only if another frontend of the pod is used from it.
const UDP_LIFETIME: u64 = 300 * SECOND;
const CONNECTION_LIFETIME: u64 = 7440 * SECOND;
/// How old a record may get before a packet refreshes it.
const REFRESH: u64 = SECOND;
const SECOND: u64 = 1_000_000_000;

/// How many ports are tried for a flow whose own is taken.
pub(crate) const TRIES: u32 = 16;
/// First port that a flow may get (RFC 4787, REQ-3 a: a port above 1023 stays above), and how many
/// there are.
const FIRST: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST;
/// Distance between two tries, with no factor in common with [`PORTS`]: they are all different.
const STRIDE: u32 = 4099;

/// The three ends of a flow that is delivered.
#[derive(Clone, Copy)]
struct Parties {
    /// As the frontend knows it
    client: End,
    /// As the client knows it
    frontend: End,
    /// Who serves, on this host
    pod: End,
    /// Transport protocol
    protocol: u8,
    /// Whether the client is on this host too
    hairpin: bool,
    /// The client's port as the pod is to see it
    port: u16,
}

/// What [`admit`] says.
const ADMITTED: u32 = 0;
const EXHAUSTED: u32 = 1;
const SCTP_FRAGMENT: u32 = 2;

impl Parties {
    /// The client's address as the pod is to see it.
    #[inline(always)]
    fn shown(&self) -> Address {
        if self.hairpin { self.frontend.0 } else { self.client.0 }
    }

    /// What the pod receives from the client under one of its ports.
    #[inline(always)]
    fn delivered(&self, port: u16) -> FlowKey {
        FlowKey::new(self.shown(), self.pod.0, (port, self.pod.1), self.protocol)
    }

    /// What the client sends.
    #[inline(always)]
    fn sent(&self) -> FlowKey {
        let ports = (self.client.1, self.frontend.1);
        FlowKey::new(self.client.0, self.frontend.0, ports, self.protocol)
    }
}

/// Whether an address is one of this host or of a pod on it.
#[inline(always)]
fn is_here<T: Tables>(tables: &T, address: &Address) -> bool {
    tables.is_pod(address) || tables.address_flags(address) & AddressFlags::LOCAL != 0
}

/// Finds out how the pod is to see the client ([`Parties::hairpin`] and its port), and records how the
/// flow's answers leave. The packet is not touched yet: [`show`] does that. [`ADMITTED`], or why not.
///
/// A function of its own that returns a number: the verifier of Linux 6.1 would follow all that comes
/// after it once for each way through it.
#[inline(never)]
fn admit<T: Tables>(tables: &T, kind: Kind, parties: &mut Parties) -> u32 {
    let now = tables.clock();
    let own = parties.client.1;
    parties.port = own;
    let mut answer = Answer::new(parties.frontend, parties.client, now);
    // Most clients are elsewhere, and recorded: that takes one look-up.
    if kind != Kind::LaterFragment && holds(tables, parties, own, &answer) {
        return ADMITTED;
    }
    parties.hairpin = is_here(tables, &parties.client.0);
    // It has no ports, and its first fragment has recorded the flow.
    if kind == Kind::LaterFragment {
        parties.port = 0;
        return ADMITTED;
    }
    if parties.hairpin {
        answer = answer.hairpin();
    }
    let port = if kind == Kind::Error {
        known_port(tables, parties, &answer).unwrap_or(own)
    } else {
        match own_port(tables, parties, &answer) {
            Ok(port) => port,
            Err(_) => return EXHAUSTED,
        }
    };
    if port != own && kind == Kind::FirstFragment && parties.protocol == protocol::SCTP {
        return SCTP_FRAGMENT;
    }
    parties.port = port;
    ADMITTED
}

/// Makes the client look as the pod is to see it, in the packet or in what an error quotes.
#[inline(always)]
fn show<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    quote: &Quote,
    client: End,
    seen: End,
) -> Result<(), Reason> {
    if client == seen {
        return Ok(());
    }
    if facts.kind.0 == Kind::Error {
        return quoted(frame, facts, quote, Side::Destination, seen);
    }
    rewrite(frame, facts, Side::Source, seen)
}

/// The port under which the pod knows a flow that is recorded.
#[inline(always)]
fn known_port<T: Tables>(tables: &T, parties: &Parties, answer: &Answer) -> Option<u16> {
    if holds(tables, parties, parties.client.1, answer) {
        return Some(parties.client.1);
    }
    let port = tables.translation(&parties.sent())?.port((&parties.pod.0, parties.pod.1))?;
    if holds(tables, parties, port, answer) { Some(port) } else { None }
}

/// Whether the flow is recorded under a port; if so, keeps the record fresh.
#[inline(always)]
fn holds<T: Tables>(tables: &T, parties: &Parties, port: u16, answer: &Answer) -> bool {
    let key = parties.delivered(port);
    let Some(record) = tables.answer(&key) else { return false };
    if !record.same_flow(answer) {
        return false;
    }
    if answer.seen().saturating_sub(record.seen()) > REFRESH {
        record_answer(tables, parties, &key, answer);
    }
    true
}

/// The port under which the pod knows the flow, from now on if not before.
///
/// A flow keeps the port that it has, even where its own has become free: the pod would take it for
/// another one.
#[inline(always)]
fn own_port<T: Tables>(tables: &T, parties: &Parties, answer: &Answer) -> Result<u16, Reason> {
    if let Some(port) = known_port(tables, parties, answer) {
        return Ok(port);
    }
    if take(tables, parties, parties.client.1, answer) {
        return Ok(parties.client.1);
    }
    let sent = parties.sent();
    let hash = sent.hash(tables.settings().map_or([0; 2], Settings::flow_key));
    for attempt in 0..TRIES {
        let port = candidate(hash, attempt);
        if take(tables, parties, port, answer) {
            let translation = Translation::new(parties.pod, port);
            tables.record_translation(&sent, &translation);
            return Ok(port);
        }
    }
    Err(Reason::TranslationExhausted)
}

/// The port that a flow with this hash tries after `attempt` others.
#[inline(always)]
pub(crate) const fn candidate(hash: u32, attempt: u32) -> u16 {
    // Without the lowest bits of the hash the sum cannot overflow.
    (FIRST + ((hash >> 8) + attempt * STRIDE) % PORTS) as u16
}

/// Whether a flow was not silent for so long that its record says nothing any more.
#[inline(always)]
pub(crate) const fn is_alive(record: &Answer, protocol: u8, now: u64) -> bool {
    let lifetime = if protocol == protocol::UDP { UDP_LIFETIME } else { CONNECTION_LIFETIME };
    now.saturating_sub(record.seen()) <= lifetime
}

/// Records the flow under a port that no other live flow has; whether it is recorded.
#[inline(always)]
fn take<T: Tables>(tables: &T, parties: &Parties, port: u16, answer: &Answer) -> bool {
    let key = parties.delivered(port);
    if tables.claim_answer(&key, answer) {
        tables.expect_answers(&parties.pod.0, parties.pod.1, parties.protocol);
        return true;
    }
    let Some(record) = tables.answer(&key) else { return false };
    let alive = is_alive(&record, parties.protocol, answer.seen());
    // The same flow's, where another CPU was faster.
    if alive || record.same_flow(answer) {
        return record.same_flow(answer);
    }
    record_answer(tables, parties, &key, answer);
    true
}

#[inline(always)]
fn record_answer<T: Tables>(tables: &T, parties: &Parties, key: &FlowKey, answer: &Answer) {
    tables.record_answer(key, answer);
    tables.expect_answers(&parties.pod.0, parties.pod.1, parties.protocol);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn candidates_of_a_flow_are_different_ports_above_the_well_known_ones() {
        for hash in [0, 1, 0x1234_5678, u32::MAX] {
            let ports: BTreeSet<u16> = (0..TRIES).map(|attempt| candidate(hash, attempt)).collect();
            assert_eq!(ports.len(), TRIES as usize);
            assert!(ports.iter().all(|port| *port >= 1024));
        }
    }
}
