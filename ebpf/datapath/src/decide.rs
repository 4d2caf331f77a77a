//! Finds the frontend and picks the backend; writes nothing in the packet.

use xdp_lb_abi::{Backend, FlowKey, FrontendKey, Phase, Reason, Service, Settings, Table};

use crate::{Tables, parse::Facts};

/// The backend that a packet goes to.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Backend id
    pub id: u32,
    /// The backend's record
    pub backend: &'a Backend,
    /// The flow's hash
    pub hash: u32,
    /// Index of the frontend's counters
    pub stats: u32,
    /// What holds for the whole instance
    pub settings: &'a Settings,
}

/// Finds the frontend and picks the backend.
///
/// # Errors
///
/// [`Reason::NoFrontend`] for packets that are not ours; otherwise why the frontend cannot serve.
#[inline(always)]
pub fn decide<'a, T: Tables>(facts: &Facts, tables: &'a T) -> Result<Choice<'a>, Reason> {
    let settings = tables.settings().ok_or(Reason::NoFrontend)?;
    let service = find(facts, tables, settings)?;
    // Not before it is known to be ours: a host takes its own packets whatever their TTL (RFC 1122,
    // 3.2.1.7), and so may the kernel.
    if facts.ttl.0 == 0 {
        return Err(Reason::TtlZero);
    }
    let flow = FlowKey::new(facts.source, facts.destination, facts.ports.0, facts.protocol.0);
    let hash = flow.hash(settings.flow_key());
    // Without a current table, new flows have no backend; older ones may still have theirs.
    let (current, nobody) = match service.current().size() {
        0 => (NOBODY, Reason::NoBackend),
        _ => {
            let slot = slot(tables, service.current(), hash)?;
            (named(tables, service.current(), slot)?, Reason::Inconsistent)
        }
    };
    let id = match service.phase() {
        Phase::Rest => current,
        Phase::Handover | Phase::Exceptions => {
            hand_over(facts, tables, service, &flow, hash, current)
        }
    };
    if id == NOBODY {
        return Err(nobody);
    }
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    Ok(Choice { id, backend, hash, stats: service.stats(), settings })
}

#[inline(always)]
fn find<'a, T: Tables>(
    facts: &Facts,
    tables: &'a T,
    settings: &Settings,
) -> Result<&'a Service, Reason> {
    let key = FrontendKey::new(facts.destination, facts.ports.0.1, facts.protocol.0);
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
fn slot<T: Tables>(tables: &T, table: &Table, hash: u32) -> Result<u16, Reason> {
    let (word, shift) = table.locate_slot(table.slot(hash));
    let word = tables.arena(word).ok_or(Reason::Inconsistent)?;
    Ok((word >> shift) as u16)
}

/// The id of the backend that a slot names.
#[inline(always)]
fn named<T: Tables>(tables: &T, table: &Table, slot: u16) -> Result<u32, Reason> {
    if u32::from(slot) >= table.length() {
        return Err(Reason::Inconsistent);
    }
    let (word, shift) = table.locate_id(slot.into());
    let word = tables.arena(word).ok_or(Reason::Inconsistent)?;
    Ok((word >> shift) as u32)
}

/// The backend of a flow while its service has two tables: exact for every flow that is seen while
/// the handover lasts. [`NOBODY`] where it has none, or the tables are inconsistent.
#[inline(never)]
fn hand_over<T: Tables>(
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
    if previous == current && before & Table::LOOK_UP == 0 {
        return current;
    }
    let mut recorded = false;
    if let Some(record) = tables.flow(flow) {
        if let Some(backend) = tables.backend(record.backend())
            && backend.generation() == record.generation()
            && backend.serving()
        {
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
    let Some(owner) = tables.backend(id) else { return NOBODY };
    tables.record_flow(flow, id, owner.generation());
    id
}

/// No backend's id. Not an `Option`: an unused payload would be an uninitialised register to the
/// verifier.
const NOBODY: u32 = u32::MAX;
