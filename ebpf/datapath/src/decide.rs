//! Finds the frontend and picks the backend; writes nothing in the packet.

use xdp_lb_abi::{Backend, FlowKey, FrontendKey, Phase, Reason, Service, Settings, Table};

use crate::{
    Lookup,
    affinity::{had, stick},
    parse::{Facts, Kind},
    stage::Chosen,
};

/// The backend that a packet goes to.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Its id, and what it was chosen by
    pub chosen: Chosen,
    /// The backend's record
    pub backend: &'a Backend,
}

/// Finds the frontend and picks the backend.
///
/// # Errors
///
/// [`Reason::NoFrontend`] for packets that are not ours; otherwise why the frontend cannot serve.
/// [`Reason::TimeExceeded`] and [`Reason::Reset`] ask for an answer.
#[inline(always)]
pub fn decide<'a, T: Lookup>(facts: &Facts, tables: &'a T) -> Result<Choice<'a>, Reason> {
    let settings = tables.settings().ok_or(Reason::NoFrontend)?;
    let service = admitted(facts, tables, settings)?;
    let flow = facts.flow();
    let (hash, current) = current(tables, service, settings, &flow)?;
    // What spreads a tunnel's packets is the flow, whatever has picked the slot.
    let spread = if service.affinity() == 0 { hash } else { flow.hash(settings.flow_key()) };
    let id = if service.affinity() != 0 {
        let previous = if service.switched() { spread } else { hash };
        stick(facts, tables, service, &flow, previous, current)
    } else if service.phase() == Phase::Rest {
        current
    } else {
        let client = service.switched();
        let previous = if client { flow.client().hash(settings.flow_key()) } else { hash };
        hand_over(facts, tables, service, &flow, previous, current)
    };
    chosen(tables, service, spread, id)
}

/// The same where the hash alone decides; nothing where a service remembers flows or clients.
///
/// # Errors
///
/// As [`decide`].
#[inline(always)]
pub(crate) fn decide_by_hash<'a, T: Lookup>(
    facts: &Facts,
    tables: &'a T,
) -> Result<Option<Choice<'a>>, Reason> {
    let settings = tables.settings().ok_or(Reason::NoFrontend)?;
    let service = admitted(facts, tables, settings)?;
    if service.affinity() != 0 || service.phase() != Phase::Rest {
        return Ok(None);
    }
    let (hash, current) = current(tables, service, settings, &facts.flow())?;
    chosen(tables, service, hash, current).map(Some)
}

/// The service, where the packet may use it.
#[inline(always)]
fn admitted<'a, T: Lookup>(
    facts: &Facts,
    tables: &'a T,
    settings: &Settings,
) -> Result<&'a Service, Reason> {
    let service = find(facts, tables, settings)?;
    // Not before it is known to be ours: a host takes its own packets whatever their TTL (RFC 1122,
    // 3.2.1.7), and so may the kernel.
    if facts.ttl.0 == 0 {
        return Err(Reason::TimeExceeded);
    }
    if service.sources() != 0 && !tables.is_allowed(service.sources(), &facts.source) {
        return Err(Reason::SourceRange);
    }
    Ok(service)
}

/// The flow's hash, and the backend that the current table names; [`NOBODY`] without one.
#[inline(always)]
fn current<T: Lookup>(
    tables: &T,
    service: &Service,
    settings: &Settings,
    flow: &FlowKey,
) -> Result<(u32, u32), Reason> {
    // With session affinity the client's address alone, so that all its flows agree.
    let chooses = if service.affinity() == 0 { *flow } else { flow.client() };
    let hash = chooses.hash(settings.flow_key());
    if service.current().size() == 0 {
        return Ok((hash, NOBODY));
    }
    let slot = slot(tables, service.current(), hash)?;
    Ok((hash, named(tables, service.current(), slot)?))
}

#[inline(always)]
fn chosen<'a, T: Lookup>(
    tables: &'a T,
    service: &Service,
    hash: u32,
    id: u32,
) -> Result<Choice<'a>, Reason> {
    if id == NOBODY {
        // Without a current table, new flows have no backend; older ones may still have theirs.
        return Err(match service.current().size() {
            0 if service.reject() => Reason::Reset,
            0 => Reason::NoBackend,
            _ => Reason::Inconsistent,
        });
    }
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    Ok(Choice { chosen: Chosen { id, hash, stats: service.stats() }, backend })
}

#[inline(always)]
fn find<'a, T: Lookup>(
    facts: &Facts,
    tables: &'a T,
    settings: &Settings,
) -> Result<&'a Service, Reason> {
    let port = facts.ports.0.1;
    if !tables.may_be_served(port) {
        return Err(Reason::NoFrontend);
    }
    let key = FrontendKey::new(facts.destination, port, facts.protocol.0);
    let [first, second] = key.buckets(settings.frontend_seed(), settings.buckets());
    let mut index = tables.bucket(first).ok_or(Reason::NoFrontend)?.find(&key);
    if index == 0 {
        index = tables.bucket(second).ok_or(Reason::NoFrontend)?.find(&key);
    }
    if index == 0 {
        return Err(Reason::NoFrontend);
    }
    tables.service(index).ok_or(Reason::Inconsistent)
}

/// What the flow's slot holds.
#[inline(always)]
pub(crate) fn slot<T: Lookup>(tables: &T, table: &Table, hash: u32) -> Result<u16, Reason> {
    let (word, shift) = table.locate_slot(table.slot(hash));
    let word = tables.arena(word).ok_or(Reason::Inconsistent)?;
    Ok((word >> shift) as u16)
}

/// The id of the backend that a slot names.
#[inline(always)]
pub(crate) fn named<T: Lookup>(tables: &T, table: &Table, slot: u16) -> Result<u32, Reason> {
    if u32::from(slot) >= table.length() {
        return Err(Reason::Inconsistent);
    }
    let (word, shift) = table.locate_id(slot.into());
    let word = tables.arena(word).ok_or(Reason::Inconsistent)?;
    Ok((word >> shift) as u32)
}

/// The backend of a flow while its service has two tables: exact for every flow that is seen while
/// the handover lasts. [`NOBODY`] where it has none, or the tables are inconsistent. `hash` picks the
/// previous table's slot.
///
/// A recorded flow stays where it is, also when its SYN comes again: the table may have changed since
/// it came first. Only where the recorded backend takes no new flows, a SYN means that the client
/// uses its port again, for a connection that is the current table's.
#[inline(never)]
fn hand_over<T: Lookup>(
    facts: &Facts,
    tables: &T,
    service: &Service,
    flow: &FlowKey,
    hash: u32,
    current: u32,
) -> u32 {
    let Ok(before) = slot(tables, service.previous(), hash) else { return NOBODY };
    let mut previous = NOBODY;
    if before & !Table::LOOK_UP != Table::GONE {
        match named(tables, service.previous(), before & !Table::LOOK_UP) {
            Ok(id) => previous = id,
            Err(_) => return NOBODY,
        }
    }
    if previous == current && before & Table::LOOK_UP == 0 && !service.switched() {
        return current;
    }
    let mut recorded = false;
    if let Some(record) = tables.flow(flow)
        && record.seen() >= service.started()
    {
        if let Some(backend) = tables.backend(record.backend())
            && backend.generation() == record.generation()
            && backend.serving()
            && !(facts.opens.0 && drains(tables, service, record.backend()))
        {
            if tables.clock().saturating_sub(record.seen()) >= REFRESH {
                tables.touch_flow(flow);
            }
            return record.backend();
        }
        recorded = true;
    }
    // A record of a backend that was removed is overwritten in either phase: the backend may return.
    if service.phase() == Phase::Exceptions && !recorded {
        return current;
    }
    let mut id = current;
    if previous != NOBODY
        && service.phase() == Phase::Handover
        && !facts.opens.0
        && tables.backend(previous).is_some_and(Backend::serving)
    {
        id = previous;
    }
    if service.switched() && service.phase() == Phase::Handover && !facts.opens.0 {
        id = had(facts, tables, id);
    }
    let Some(owner) = tables.backend(id) else { return NOBODY };
    // An ICMP error is about a flow, and none of its packets.
    if facts.kind.0 != Kind::Error {
        tables.record_flow(flow, id, owner.generation());
    }
    id
}

/// Whether this backend of the service takes no new flows.
#[inline(always)]
pub(crate) fn drains<T: Lookup>(tables: &T, service: &Service, id: u32) -> bool {
    let table = service.current();
    let mut first = 0;
    let mut count = u32::from(service.draining());
    // The ids ascend. Sixteen halvings are enough for any count, and the verifier sees an end.
    for _ in 0..=u16::BITS {
        if count == 0 {
            return false;
        }
        let middle = first + count / 2;
        let (word, shift) = table.locate_id(table.length().wrapping_add(middle));
        let Some(word) = tables.arena(word) else { return false };
        let found = (word >> shift) as u32;
        if found == id {
            return true;
        }
        if found < id {
            first = middle + 1;
            count -= count / 2 + 1;
        } else {
            count /= 2;
        }
    }
    false
}

/// How old a record's time may become while its flow goes on, in nanoseconds: written for every
/// packet, it would cost more than all the rest.
pub(crate) const REFRESH: u64 = 1_000_000_000;

/// No backend's id. Not an `Option`: an unused payload would be an uninitialised register to the
/// verifier.
pub(crate) const NOBODY: u32 = u32::MAX;
