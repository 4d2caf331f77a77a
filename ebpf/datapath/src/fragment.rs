//! Fragments of TCP, UDP and SCTP packets follow the first one of their packet.
//!
//! Only the first fragment has the ports. Where it goes is recorded, and the others go there too,
//! whatever becomes of the service meanwhile. What comes before its first fragment is dropped where
//! the address is a frontend's alone; a node's own address is shared with the node's own traffic.
//!
//! A first fragment without the whole transport header (RFC 791 allows eight bytes of data) is
//! [`Reason::BadLength`] and nothing is recorded, so the rest of its packet reaches no backend either.
//! Overlapping fragments (RFC 1858, RFC 3128, RFC 5722) are the backend's to refuse: nothing here is
//! decided by more than the first fragment's ports.

use xdp_lb_abi::{Backend, FlowKey, Fragment, Reason, fragment_key};

use crate::{
    Stage, Tables, Verdict,
    decide::{self, Choice},
    elsewhere, is_foreign_frontend,
    parse::{Facts, Kind, is_extension, protocol},
    refusal, send_on,
    stage::Chosen,
};

/// How long later fragments follow their first, in nanoseconds: as long as Linux waits for the rest
/// of a packet (`net.ipv4.ipfrag_time`; RFC 1122, 3.3.2 would have a minute), since soon after its
/// sender may use the identification again.
pub const FRAGMENT_LIFETIME: u64 = 30_000_000_000;

/// Sends a fragment where the first one went.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn fragment<T: Tables>(tables: &T, facts: &Facts) -> Result<Verdict, Reason> {
    let (source, destination) = (facts.source, facts.destination);
    let key = fragment_key(source, destination, facts.protocol.0, facts.identification.0);
    match facts.kind.0 {
        Kind::FirstFragment => match decide::decide_by_hash(facts, tables) {
            Ok(Some(choice)) => {
                record(tables, &key, choice.chosen, choice.backend.generation());
                send_on(tables, &choice)
            }
            // That stage records it.
            Ok(None) => Ok(Verdict::Next(Stage::Remember)),
            Err(Reason::NoFrontend) => not_balanced(tables, facts),
            Err(reason) => Err(reason),
        },
        Kind::LaterFragment => match followed(tables, &key) {
            Some(_) if facts.ttl.0 == 0 => Err(Reason::TtlZero),
            Some(choice) => send_on(tables, &choice),
            None => unknown(tables, facts, &key),
        },
        Kind::Flow | Kind::Echo | Kind::Error | Kind::Tunnel => Err(Reason::Inconsistent),
    }
    .or_else(|reason| refusal(tables, facts, reason))
}

/// Records where the later fragments go.
#[inline(always)]
fn record<T: Tables>(tables: &T, key: &FlowKey, chosen: Chosen, generation: u32) {
    let Chosen { id, hash, stats } = chosen;
    tables.record_fragment(key, &Fragment::new(id, generation, hash, stats, tables.clock()));
}

/// The same for a first fragment whose backend was chosen in another stage: `backend` is its id and,
/// above, its generation, `flow` the hash and, above, the index of the counters. Whole words: the
/// verifier accepts only aligned access to the stack.
#[inline(never)]
pub(crate) fn record_first<T: Tables>(tables: &T, facts: &Facts, backend: u64, flow: u64) {
    let (source, destination) = (facts.source, facts.destination);
    let key = fragment_key(source, destination, facts.protocol.0, facts.identification.0);
    let chosen = Chosen { id: backend as u32, hash: flow as u32, stats: (flow >> 32) as u32 };
    record(tables, &key, chosen, (backend >> 32) as u32);
}

/// Where the first fragment went, if that was not long ago and the backend still serves.
#[inline(always)]
fn followed<'a, T: Tables>(tables: &'a T, key: &FlowKey) -> Option<Choice<'a>> {
    let record = tables.fragment(key)?;
    if is_late(tables.clock(), record.seen()) {
        return None;
    }
    let backend: &Backend = tables.backend(record.backend())?;
    if backend.generation() != record.generation() || !backend.serving() {
        return None;
    }
    let chosen = Chosen { id: record.backend(), hash: record.hash(), stats: record.stats() };
    Some(Choice { chosen, backend })
}

/// Whether a first fragment that was seen then is no other fragment's any more.
#[inline(always)]
pub(crate) const fn is_late(now: u64, seen: u64) -> bool {
    now.saturating_sub(seen) > FRAGMENT_LIFETIME
}

/// A first fragment that no frontend takes.
#[inline(always)]
fn not_balanced<T: Tables>(tables: &T, facts: &Facts) -> Result<Verdict, Reason> {
    match elsewhere(tables, facts) {
        Ok(Stage::Unsnat) => Ok(Verdict::Next(Stage::Unsnat)),
        // A tunnel packet in pieces is the kernel's to put together.
        Ok(_) | Err(Reason::NoFrontend) => Err(Reason::Fragment),
        Err(reason) => Err(reason),
    }
}

/// A later fragment whose first one went to no backend: of an answer to mode `snat`, of what the
/// kernel gets, or too early.
#[inline(always)]
fn unknown<T: Tables>(tables: &T, facts: &Facts, key: &FlowKey) -> Result<Verdict, Reason> {
    if tables.answer_fragment(key).is_some_and(|one| !is_late(tables.clock(), one.seen())) {
        return Ok(Verdict::Next(Stage::Unsnat));
    }
    // As for a first fragment: the kernel gets all of a packet, or nothing.
    if is_foreign_frontend(tables, &facts.destination) {
        if !may_have_ports(facts) {
            return Err(Reason::NotServed);
        }
        return Err(Reason::FragmentUnknown);
    }
    Err(Reason::Fragment)
}

/// Whether a packet's fragments may be ours: in IPv6, extension headers may hide the protocol.
#[inline(always)]
const fn may_have_ports(facts: &Facts) -> bool {
    let number = facts.protocol.0;
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
        || facts.destination.is_v6() && is_extension(number)
}
