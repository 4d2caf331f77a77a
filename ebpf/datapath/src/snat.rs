//! Mode `snat`, towards the backend: the packet's source becomes one of our own addresses and ports,
//! so that the answer comes back here ([`crate::unsnat`]).
//!
//! A flow has two records, which lead to each other: by its client's packets in `NAT_FORWARD`, by its
//! backend's answers in `NAT_REVERSE`. The second one is claimed first, by an insert that fails where
//! the key is taken: so no two flows ever send to one backend from one port of ours (RFC 4787, REQ-3;
//! RFC 5382, REQ-7). Then the first one is claimed in the same way: of two CPUs that open one flow at
//! once, the second finds the other's record and gives its own port back. What is found of a flow
//! later is checked against its other half every [`Seen::REFRESH`]: where the halves do not lead to
//! each other (a race between the sweep and a packet may leave one), the flow begins again or is
//! refused, and the sweep removes the rest.
//!
//! Which port a flow gets is in `ports`. Where all candidates are taken, one of the
//! first whose flow is silent for longer than [`Idle`] allows gives way; mostly the sweep has removed
//! it before.
//!
//! A connection is opened by its own first packet only (TCP SYN, SCTP INIT): in mid-stream its backend
//! would not know it under the new address. UDP has no such packet, so any opens.
//!
//! Fragments of different clients towards one backend share a source address then, and so the values
//! of the identification field, of which IPv4 has 65,536 for each pair of addresses and protocol. Two
//! that meet by chance are put together wrongly, which the transport's checksum mostly finds: nothing
//! in a translator that keeps fragments as they are can help it (RFC 6864 says what IPv4's sources
//! are to do), so fragments of IPv4 at high rates do not go well with this mode. IPv6 has 32 bits.

use xdp_lb_abi::{
    Address, Backend, FlowKey, Forward, Fragment, Hop, Idle, Mode, Reason, Reverse, Seen,
    fragment_key,
};

use crate::{
    Claim, Frame, Hand, Tables, Verdict,
    forward::{next_hop, path_mtu},
    nat::{DONE, Plan, REFUSED, can_translate, is_stale, passes, send_on, state_after},
    parse::{ETHERNET, Facts, Kind, Word, protocol},
    ports::Candidates,
    stage::{Chosen, Stage, hand_back},
};

/// Rewrites both ends of a client's packet, or of an ICMP error about an answer.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn snat<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    let mut plan = Plan::new(facts, tables.clock());
    let step = match facts.kind.0 {
        Kind::LaterFragment => choose(&mut plan, hand),
        Kind::Error => find_quoted(tables, hand, &mut plan),
        Kind::Flow | Kind::FirstFragment | Kind::Echo | Kind::Tunnel => {
            find(tables, hand, &mut plan)
        }
    };
    if step == REFUSED {
        return Err(plan.reason.0);
    }
    let id = plan.backend.0;
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    if step == UNKNOWN {
        let ours = source_of(backend, facts)?;
        plan.set_ends((ours, 0), (backend.address(), backend.port()));
    }
    plan.hop = next_hop(tables, facts, backend)?;
    let device = tables.device(plan.hop.device()).ok_or(Reason::Inconsistent)?;
    let mtu = path_mtu(backend, device);
    if let Err(reason) = passes(facts, mtu) {
        return Ok(hand_back(tables, reason, mtu));
    }
    let fragment = facts.kind.0 == Kind::FirstFragment;
    if step == UNKNOWN && facts.kind.0 != Kind::LaterFragment {
        // It comes back once the flow is recorded.
        return Ok(Verdict::Next(Stage::Open));
    }
    can_translate(facts, &plan)?;
    if fragment && id != hand.backend.id {
        lead(tables, hand, id, backend.generation());
    }
    if matches!(facts.kind.0, Kind::Flow | Kind::FirstFragment) {
        let after = state_after(frame, facts, plan.state.0);
        if after != plan.state.0 || is_stale(plan.seen, plan.now) {
            see(tables, facts, plan.now, after);
        }
    }
    let verdict = send_on(frame, tables, hand, &plan, device)?;
    tables.count_frontend(hand.backend.stats, facts);
    tables.count_backend(id, facts);
    if facts.kind.0 == Kind::Error {
        tables.count_reason(Reason::IcmpForwarded, frame.linear_length());
    }
    Ok(verdict)
}

/// Stage `Open`: records a new flow and finds the port that its backend sees; then its packet goes
/// through [`snat`] again.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn open_flow<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    if facts.kind.0 == Kind::FirstFragment && facts.protocol.0 == protocol::SCTP {
        // Its port would have to change.
        return Err(Reason::SctpFragment);
    }
    let backend = tables.backend(hand.backend.id).ok_or(Reason::Inconsistent)?;
    let mut plan = Plan::new(facts, tables.clock());
    plan.backend = Word(hand.backend.id);
    let ours = source_of(backend, facts)?;
    plan.set_ends((ours, 0), (backend.address(), backend.port()));
    let back = way_back(frame, tables, facts)?;
    open(tables, facts, backend, back, &mut plan)?;
    Ok(Verdict::Next(Stage::Snat))
}

/// The flow is not known yet: it goes to the chosen backend, from a port that is still to be found. Of
/// a later fragment only addresses change.
const UNKNOWN: u32 = 2;

/// The chosen backend.
#[inline(always)]
const fn choose(plan: &mut Plan, hand: &Hand) -> u32 {
    plan.backend = Word(hand.backend.id);
    UNKNOWN
}

/// Looks up the flow of a packet with ports.
#[inline(never)]
fn find<T: Tables>(tables: &T, hand: &Hand, plan: &mut Plan) -> u32 {
    let facts = &hand.facts;
    let key = facts.flow();
    let opens = facts.opens.0 || facts.protocol.0 == protocol::UDP;
    if let Some(record) = tables.nat_forward(&key) {
        if goes_on(tables, facts, &key, &record, plan.now) {
            known(plan, &record, facts);
            return DONE;
        }
        if opens {
            forget(tables, facts, &key, &record);
        }
    }
    if opens { choose(plan, hand) } else { plan.refuse(Reason::NatUnknown) }
}

/// Looks up the flow that an ICMP error is about: an answer that was translated back. The backend gets
/// the error about the answer that it sent (RFC 5508, REQ-4).
///
/// Nothing of the flow changes by it (RFC 5508, REQ-6; RFC 5382, REQ-10).
#[inline(never)]
fn find_quoted<T: Tables>(tables: &T, hand: &Hand, plan: &mut Plan) -> u32 {
    let quote = &hand.quote;
    let ports = (quote.ports.0.1, quote.ports.0.0);
    let key = FlowKey::new(quote.destination, quote.source, ports, quote.protocol.0);
    if let Some(record) = tables.nat_forward(&key)
        && owner(tables, &record).is_some()
    {
        known(plan, &record, &hand.facts);
        return DONE;
    }
    plan.refuse(Reason::NatUnknown)
}

/// Where a known flow's packets go.
#[inline(always)]
fn known(plan: &mut Plan, record: &Forward, facts: &Facts) {
    let v6 = facts.destination.is_v6();
    plan.set_ends(record.source(v6), record.target(v6));
    plan.backend = Word(record.backend());
    plan.seen = record.seen;
    plan.state = Word(record.state);
}

/// Lets the later fragments of a packet follow this one, instead of what would be chosen for a new
/// flow.
#[inline(never)]
fn lead<T: Tables>(tables: &T, hand: &Hand, id: u32, generation: u32) {
    let facts = &hand.facts;
    let (source, destination) = (facts.source, facts.destination);
    let whole = fragment_key(source, destination, facts.protocol.0, facts.identification.0);
    let Chosen { hash, stats, .. } = hand.backend;
    tables.record_fragment(&whole, &Fragment::new(id, generation, hash, stats, tables.clock()));
}

/// Writes down what the client was seen to do.
#[inline(never)]
fn see<T: Tables>(tables: &T, facts: &Facts, now: u64, state: u8) {
    tables.see_nat_forward(&facts.flow(), now, state);
}

/// The address that the backend is to see.
#[inline(always)]
fn source_of(backend: &Backend, facts: &Facts) -> Result<Address, Reason> {
    let v6 = facts.destination.is_v6();
    let source = backend.source();
    if backend.address().is_v6() != v6 || source.is_v6() != v6 {
        return Err(Reason::Family);
    }
    if source.words()[0] | source.words()[1] == 0 {
        return Err(Reason::NoNextHop);
    }
    Ok(source)
}

/// The backend of a record, where it is still the same and serves.
#[inline(always)]
fn owner<'a, T: Tables>(tables: &'a T, record: &Forward) -> Option<&'a Backend> {
    let backend = tables.backend(record.backend())?;
    let same = backend.generation() == record.generation() && backend.mode() == Some(Mode::Snat);
    if same && backend.serving() { Some(backend) } else { None }
}

/// Whether the packet belongs to the recorded flow, rather than to a new one in its place.
#[inline(always)]
fn goes_on<T: Tables>(
    tables: &T,
    facts: &Facts,
    key: &FlowKey,
    record: &Forward,
    now: u64,
) -> bool {
    if owner(tables, record).is_none() {
        return false;
    }
    if !facts.opens.0 && !is_stale(record.seen, now) {
        return true;
    }
    let (protocol, v6) = (facts.protocol.0, facts.destination.is_v6());
    match tables.nat_reverse(&record.reverse_key(protocol, v6)) {
        Some(other) => {
            let closed = facts.opens.0 && Seen::is_closed(record.state, other.state);
            !closed && other.forward_key(protocol, v6).equals(key)
        }
        None => false,
    }
}

/// Removes both halves of a flow, where the second one is its own.
///
/// The client's half goes first: only the one CPU that has removed it may remove the other, and while
/// it is there, its port has no other owner.
#[inline(always)]
fn forget<T: Tables>(tables: &T, facts: &Facts, key: &FlowKey, record: &Forward) {
    let (protocol, v6) = (facts.protocol.0, facts.destination.is_v6());
    let other = record.reverse_key(protocol, v6);
    let own = tables
        .nat_reverse(&other)
        .is_some_and(|reverse| reverse.forward_key(protocol, v6).equals(key));
    if tables.remove_nat_forward(key) && own {
        tables.remove_nat_reverse(&other);
    }
}

/// Where the client's packets come from, in case that the routing table does not know.
#[inline(always)]
fn way_back<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Result<Hop, Reason> {
    if facts.link() != ETHERNET {
        return Ok(Hop::UNKNOWN);
    }
    let device = tables.device_of(frame.ingress());
    let [_, _, _, _, _, _, mac @ ..] = *frame.window::<12>(0)?;
    Ok(if device == 0 { Hop::UNKNOWN } else { Hop::new(mac, device) })
}

/// Records a new flow, and finds the port that its backend sees.
#[inline(always)]
fn open<T: Tables>(
    tables: &T,
    facts: &Facts,
    backend: &Backend,
    back: Hop,
    plan: &mut Plan,
) -> Result<(), Reason> {
    let mut port = claim(tables, facts, back, plan);
    if port == EXHAUSTED {
        let free = give_way(tables, facts, plan);
        if free != 0 {
            port = claim_one(tables, facts, back, plan, free);
        }
    }
    match port {
        EXHAUSTED => return Err(Reason::NatExhausted),
        FULL => return Err(Reason::NatFull),
        _ => plan.ports.0.0 = port as u16,
    }
    if record(tables, facts, backend.generation(), plan) == DONE {
        return Ok(());
    }
    Err(plan.reason.0)
}

/// Records the client's half of a flow whose other half is claimed.
#[inline(never)]
fn record<T: Tables>(tables: &T, facts: &Facts, generation: u32, plan: &mut Plan) -> u32 {
    let id = plan.backend.0;
    let (source, target) = ((plan.source, plan.ports.0.0), (plan.destination, plan.ports.0.1));
    let forward = Forward::new((id, generation), source, target, plan.now);
    let key = facts.flow();
    let claimed = tables.claim_nat_forward(&key, &forward);
    if claimed == Claim::New {
        return DONE;
    }
    let v6 = facts.destination.is_v6();
    tables.remove_nat_reverse(&forward.reverse_key(facts.protocol.0, v6));
    if claimed == Claim::Full {
        return plan.refuse(Reason::NatFull);
    }
    // Another CPU has just opened the same flow.
    if let Some(other) = tables.nat_forward(&key)
        && other.backend() == id
        && other.generation() == generation
    {
        known(plan, &other, facts);
        return DONE;
    }
    plan.refuse(Reason::NatUnknown)
}

/// No candidate is free. More than any port: not an `Option`, see [`claim`].
const EXHAUSTED: u32 = 0x1_0000;
/// The table has no room.
const FULL: u32 = 0x1_0001;

/// Claims a port towards the backend; [`EXHAUSTED`] or [`FULL`] where there is none. A plain number:
/// an unused payload would be an uninitialised register to the verifier.
#[inline(never)]
fn claim<T: Tables>(tables: &T, facts: &Facts, back: Hop, plan: &Plan) -> u32 {
    let Some(candidates) = candidates(tables, facts, plan.now) else { return EXHAUSTED };
    let client = (facts.source, facts.ports.0.0);
    let frontend = (facts.destination, facts.ports.0.1);
    let reverse = Reverse::new(client, frontend, back, plan.now);
    for n in 0..Candidates::TRIES {
        let port = candidates.port(n);
        if port == 0 {
            break;
        }
        let key = answers(facts, plan, port);
        match tables.claim_nat_reverse(&key, &reverse) {
            Claim::New => return port.into(),
            Claim::Full => return FULL,
            Claim::Taken => {}
        }
    }
    EXHAUSTED
}

/// How many candidates are asked whether their flow is over: each costs the verifier much, and the
/// sweep removes such flows anyway.
const SILENT: u32 = 8;

/// Removes the first flow among the first candidates that was silent for too long; the port
/// that may be free now, or 0.
#[inline(never)]
fn give_way<T: Tables>(tables: &T, facts: &Facts, plan: &Plan) -> u32 {
    let Some(candidates) = candidates(tables, facts, plan.now) else { return 0 };
    let (protocol, v6) = (facts.protocol.0, facts.destination.is_v6());
    for n in 0..SILENT {
        let port = candidates.port(n);
        if port == 0 {
            break;
        }
        let key = answers(facts, plan, port);
        let Some(reverse) = tables.nat_reverse(&key) else { return port.into() };
        if plan.now.saturating_sub(reverse.seen) <= Idle::TRANSITORY {
            continue;
        }
        let owner = reverse.forward_key(protocol, v6);
        // A half without the other is the sweep's: here nothing would keep two CPUs from taking it.
        let Some(forward) = tables.nat_forward(&owner) else { continue };
        if !forward.reverse_key(protocol, v6).equals(&key)
            || !Idle::is_over(protocol, &forward, &reverse, plan.now)
        {
            continue;
        }
        if tables.remove_nat_forward(&owner) {
            tables.remove_nat_reverse(&key);
            return port.into();
        }
    }
    0
}

/// Claims this port; [`EXHAUSTED`] where another CPU was faster.
#[inline(never)]
fn claim_one<T: Tables>(tables: &T, facts: &Facts, back: Hop, plan: &Plan, port: u32) -> u32 {
    let client = (facts.source, facts.ports.0.0);
    let frontend = (facts.destination, facts.ports.0.1);
    let reverse = Reverse::new(client, frontend, back, plan.now);
    let key = answers(facts, plan, port as u16);
    if tables.claim_nat_reverse(&key, &reverse) == Claim::New { port } else { EXHAUSTED }
}

#[inline(always)]
fn candidates<T: Tables>(tables: &T, facts: &Facts, now: u64) -> Option<Candidates> {
    let settings = tables.settings()?;
    let hash = facts.flow().hash(settings.flow_key());
    Some(Candidates::new(settings.nat_ports(), hash, now))
}

/// The key of the answers to one of our ports.
#[inline(always)]
fn answers(facts: &Facts, plan: &Plan, port: u16) -> FlowKey {
    let ports = (plan.ports.0.1, port);
    FlowKey::new(plan.destination, plan.source, ports, facts.protocol.0)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;
    use std::vec::Vec;

    use super::*;
    use crate::{
        parse::parse,
        testing::{
            MemoryFrame, MemoryTables,
            packet::{SYN, ip, link},
            world,
            world::*,
        },
    };

    const NOW: u64 = 1 << 50;

    fn syn(client_port: u16) -> Facts {
        let packet = ip(CLIENT_V4, VIP_V4).tcp((client_port, port::SNAT), SYN, 0);
        let frame = link(ROUTER_MAC, OUR_MAC).holds(packet);
        parse(&mut MemoryFrame::new(&frame, INGRESS)).unwrap()
    }

    /// The id of the backend of [`port::SNAT`].
    fn backend_id(tables: &MemoryTables) -> u32 {
        let address: IpAddr = server(false, port::SNAT).0;
        let found = tables.backends.iter().position(|backend| backend.address() == address.into());
        found.unwrap() as u32
    }

    fn open_at(tables: &MemoryTables, facts: &Facts) -> Result<(Address, u16), Reason> {
        open_later(tables, facts, NOW)
    }

    fn open_later(
        tables: &MemoryTables,
        facts: &Facts,
        now: u64,
    ) -> Result<(Address, u16), Reason> {
        let id = backend_id(tables);
        let backend = tables.backends[id as usize];
        let mut plan = Plan::new(facts, now);
        plan.backend = Word(id);
        plan.set_ends((HOST_V4.into(), 0), (backend.address(), backend.port()));
        open(tables, facts, &backend, Hop::UNKNOWN, &mut plan)?;
        Ok((plan.source, plan.ports.0.0))
    }

    /// Two CPUs have found nothing recorded, and both open the flow.
    #[test]
    fn of_two_cpus_that_open_one_flow_the_second_takes_over_the_firsts_port() {
        let tables = world();
        let facts = syn(40000);
        let before = tables.nat_reverse.borrow().len();
        let first = open_at(&tables, &facts).unwrap();
        let second = open_at(&tables, &facts).unwrap();
        assert_eq!(first, second);
        assert_eq!(tables.nat_reverse.borrow().len(), before + 1, "no half is left over");
    }

    #[test]
    fn if_the_other_cpu_chose_another_backend_the_packet_is_dropped() {
        let tables = world();
        let facts = syn(40000);
        let before = tables.nat_reverse.borrow().len();
        let target = (server(false, port::SNAT).0.into(), 8080);
        let other = Forward::new((1, 1), (HOST_V4.into(), 61_000), target, NOW);
        tables.claim_nat_forward(&facts.flow(), &other);
        assert_eq!(open_at(&tables, &facts), Err(Reason::NatUnknown));
        assert_eq!(tables.nat_reverse.borrow().len(), before);
        assert_eq!(tables.nat_forward(&facts.flow()), Some(other));
    }

    #[test]
    fn where_one_table_is_full_nothing_is_left_in_the_other() {
        let tables = world();
        let room = tables.nat_forward.borrow().len();
        tables.nat_room.set(room + 1);
        let target = (HOST_V4.into(), 1);
        tables.claim_nat_forward(&syn(40001).flow(), &Forward::new((1, 1), target, target, NOW));
        assert_eq!(open_at(&tables, &syn(40000)), Err(Reason::NatFull));
        assert_eq!(tables.nat_reverse.borrow().len(), room);
        tables.nat_room.set(room);
        assert_eq!(open_at(&tables, &syn(40000)), Err(Reason::NatFull));
    }

    #[test]
    fn without_a_range_of_ports_no_flow_opens() {
        let mut tables = world();
        tables.settings = tables.settings.with_nat_ports(0, 0);
        assert_eq!(open_at(&tables, &syn(40000)), Err(Reason::NatExhausted));
    }

    /// Every silent flow gives way, one after another; a half without the other is left alone.
    #[test]
    fn silent_flows_give_way_and_halves_do_not() {
        let tables = world();
        let count = NAT_PORTS.1 - NAT_PORTS.0 + 1;
        let ports: Vec<u16> =
            (0..count).map(|n| open_at(&tables, &syn(40000 + n)).unwrap().1).collect();
        tables.remove_nat_forward(&syn(40000).flow());
        let late = |facts: &Facts, now| open_later(&tables, facts, now);
        let limit = NOW + Idle::TRANSITORY;
        assert_eq!(late(&syn(50000), limit), Err(Reason::NatExhausted));
        let mut again: Vec<u16> =
            (1..count).map(|n| late(&syn(50000 + n), limit + 1).unwrap().1).collect();
        again.sort_unstable();
        let mut expected = ports[1..].to_vec();
        expected.sort_unstable();
        assert_eq!(again, expected);
        assert_eq!(late(&syn(60000), limit + 1), Err(Reason::NatExhausted));
        for n in 1..count {
            assert_eq!(tables.nat_forward(&syn(40000 + n).flow()), None, "its other half too");
        }
    }
}
