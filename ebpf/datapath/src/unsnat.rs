//! Mode `snat`, back to the client: an answer's source becomes the frontend, its destination the
//! client, as [`crate::snat`] recorded them.
//!
//! What has no record is the host's own traffic, and passes untouched.

use xdp_lb_abi::{Answer, FlowKey, Hop, Reason, Reverse, fragment_key};

use crate::{
    Frame, Hand, Tables, Verdict,
    fragment::is_late,
    nat::{DONE, Plan, REFUSED, can_translate, is_stale, passes, send_on, state_after},
    parse::{Facts, Kind, Word},
    stage::hand_back,
};

/// Translates an answer back, or an ICMP error about a packet that was sent to a backend.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn unsnat<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    let mut plan = Plan::new(facts, tables.clock());
    let step = match facts.kind.0 {
        Kind::LaterFragment => find_fragment(tables, hand, &mut plan),
        Kind::Error => find_quoted(tables, hand, &mut plan),
        Kind::Flow | Kind::FirstFragment | Kind::Echo | Kind::Tunnel => {
            find(tables, hand, &mut plan)
        }
    };
    if step == REFUSED {
        return Err(plan.reason.0);
    }
    let from = if plan.from_router.0 { &facts.source } else { &plan.source };
    let hop = tables.route_back(facts, from, &plan.destination);
    if hop.device() != 0 {
        plan.hop = hop;
    } else if facts.kind.0 == Kind::LaterFragment {
        recorded_way_back(tables, facts, &mut plan);
    }
    if plan.hop.device() == 0 {
        return Err(Reason::NoNextHop);
    }
    let device = tables.device(plan.hop.device()).ok_or(Reason::Inconsistent)?;
    // At least what any link carries (RFC 791, 3.2), at most what an IPv4 header can say.
    let mtu = (device.mtu() as usize).clamp(68, 0xffff);
    if let Err(reason) = passes(facts, mtu) {
        return Ok(hand_back(tables, reason, mtu));
    }
    can_translate(facts, &plan)?;
    if facts.kind.0 == Kind::FirstFragment {
        lead(tables, facts, &plan);
    }
    if matches!(facts.kind.0, Kind::Flow | Kind::FirstFragment) {
        let after = state_after(frame, facts, plan.state.0);
        if after != plan.state.0 || is_stale(plan.seen, plan.now) {
            see(tables, facts, plan.now, after);
        }
    }
    let verdict = send_on(frame, tables, hand, &plan, device)?;
    let error = facts.kind.0 == Kind::Error;
    let reason = if error { Reason::IcmpForwarded } else { Reason::NatAnswer };
    tables.count_reason(reason, frame.linear_length());
    Ok(verdict)
}

/// Looks up the flow of an answer with ports.
#[inline(never)]
fn find<T: Tables>(tables: &T, hand: &Hand, plan: &mut Plan) -> u32 {
    let facts = &hand.facts;
    let key = facts.flow();
    let Some(record) = tables.nat_reverse(&key) else { return plan.refuse(Reason::NoFrontend) };
    if is_stale(record.seen, plan.now) {
        // A half whose other half is gone belongs to no flow, and must age.
        let (protocol, v6) = (facts.protocol.0, facts.destination.is_v6());
        let other = tables.nat_forward(&record.forward_key(protocol, v6));
        if !other.is_some_and(|forward| forward.reverse_key(protocol, v6).equals(&key)) {
            return plan.refuse(Reason::NoFrontend);
        }
    }
    known(plan, &record, facts);
    DONE
}

/// Looks up the flow that an ICMP error is about: a packet that we sent. The client gets the error
/// about the packet that it sent (RFC 5508, REQ-5).
///
/// What the backend itself sends comes from the frontend: it is the host that the client knows. A
/// router on the way keeps its address. Nothing of the flow changes by it (RFC 5508, REQ-6; RFC
/// 5382, REQ-10).
#[inline(never)]
fn find_quoted<T: Tables>(tables: &T, hand: &Hand, plan: &mut Plan) -> u32 {
    let (facts, quote) = (&hand.facts, &hand.quote);
    let ports = (quote.ports.0.1, quote.ports.0.0);
    let key = FlowKey::new(quote.destination, quote.source, ports, quote.protocol.0);
    let Some(record) = tables.nat_reverse(&key) else { return plan.refuse(Reason::NoFrontend) };
    known(plan, &record, facts);
    let (sender, backend) = (facts.source.words(), quote.destination.words());
    plan.from_router = Word(sender[0] != backend[0] || sender[1] != backend[1]);
    DONE
}

/// Looks up where the first fragment of a packet has gone.
#[inline(never)]
fn find_fragment<T: Tables>(tables: &T, hand: &Hand, plan: &mut Plan) -> u32 {
    let facts = &hand.facts;
    match tables.answer_fragment(&whole(facts)) {
        Some(record) if !is_late(plan.now, record.seen()) => {
            let v6 = facts.destination.is_v6();
            plan.set_ends(record.frontend(v6), record.client(v6));
            DONE
        }
        Some(_) | None => plan.refuse(Reason::NoFrontend),
    }
}

/// Where a known flow's answers go.
#[inline(always)]
fn known(plan: &mut Plan, record: &Reverse, facts: &Facts) {
    let v6 = facts.destination.is_v6();
    plan.set_ends(record.frontend(v6), record.client(v6));
    plan.hop = record.hop();
    plan.seen = record.seen;
    plan.state = Word(record.state);
}

/// Where the client's packets came from, found from both ends of the flow; device 0 if it is not known.
#[inline(never)]
fn recorded_way_back<T: Tables>(tables: &T, facts: &Facts, plan: &mut Plan) {
    let ports = (plan.ports.0.1, plan.ports.0.0);
    let key = FlowKey::new(plan.destination, plan.source, ports, facts.protocol.0);
    let Some(forward) = tables.nat_forward(&key) else { return };
    let other = forward.reverse_key(facts.protocol.0, facts.destination.is_v6());
    plan.hop = match tables.nat_reverse(&other) {
        Some(reverse) => reverse.hop(),
        None => Hop::UNKNOWN,
    };
}

/// Lets the later fragments of an answer follow this one.
#[inline(never)]
fn lead<T: Tables>(tables: &T, facts: &Facts, plan: &Plan) {
    let (frontend_port, client_port) = plan.ports.0;
    let frontend = (plan.source, frontend_port);
    let client = (plan.destination, client_port);
    tables.record_answer_fragment(&whole(facts), &Answer::new(frontend, client, plan.now));
}

/// Writes down what the backend was seen to do.
#[inline(never)]
fn see<T: Tables>(tables: &T, facts: &Facts, now: u64, state: u8) {
    tables.see_nat_reverse(&facts.flow(), now, state);
}

/// The key under which the fragments of a packet find each other.
#[inline(always)]
fn whole(facts: &Facts) -> FlowKey {
    fragment_key(facts.source, facts.destination, facts.protocol.0, facts.identification.0)
}
