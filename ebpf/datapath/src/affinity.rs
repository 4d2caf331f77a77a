//! Session affinity: all flows of a client go to one backend.
//!
//! The hash of the client's address picks the slot, so every balancer picks the same one. What a
//! client has is recorded as well, since a change of the backends may move its slot: it keeps its
//! backend until it was silent for the service's time. A table of clients that is full forgets the
//! oldest, which then have what the hash says.

use xdp_lb_abi::{Backend, Flow, FlowKey, Phase, Service, Table};

use crate::{
    Lookup,
    decide::{NOBODY, REFRESH, drains, named, slot},
    parse::{Facts, Kind, protocol},
};

/// The backend of a packet of a service with session affinity; [`NOBODY`] where it has none. `hash`
/// picks the previous table's slot.
///
/// Where affinity was switched on, each flow from before belongs to the backend that the previous
/// table has for it, which says nothing about its client: all flows are recorded one by one until the
/// handover is over.
#[inline(never)]
pub(crate) fn stick<T: Lookup>(
    facts: &Facts,
    tables: &T,
    service: &Service,
    flow: &FlowKey,
    hash: u32,
    current: u32,
) -> u32 {
    if service.phase() != Phase::Rest
        && let Some(record) = tables.flow(flow)
        && record.seen() >= service.started()
    {
        if serves(tables, &record)
            && !(facts.opens.0 && drains_apart(tables, service, record.backend()))
        {
            if tables.clock().saturating_sub(record.seen()) >= REFRESH {
                tables.touch_flow(flow);
            }
            return record.backend();
        }
        // The backend may return, and the flow goes on elsewhere: the record is overwritten.
        return alone(facts, tables, service, flow, hash, current);
    }
    if service.switched() && service.phase() == Phase::Handover {
        return alone(facts, tables, service, flow, hash, current);
    }
    of_client(facts, tables, service, flow, hash, current)
}

/// The same as [`drains`] in a frame of its own: its caller's would not fit beside [`of_client`]'s.
#[inline(never)]
fn drains_apart<T: Lookup>(tables: &T, service: &Service, id: u32) -> bool {
    drains(tables, service, id)
}

/// The backend of a flow that is recorded itself.
#[inline(always)]
fn alone<T: Lookup>(
    facts: &Facts,
    tables: &T,
    service: &Service,
    flow: &FlowKey,
    hash: u32,
    current: u32,
) -> u32 {
    let id = if service.switched() && service.phase() == Phase::Handover && !facts.opens.0 {
        before(tables, service, hash, current)
    } else {
        of_client(facts, tables, service, flow, hash, current)
    };
    let Some(backend) = tables.backend(id) else { return NOBODY };
    // An ICMP error is about a flow, and none of its packets.
    if facts.kind.0 != Kind::Error {
        tables.record_flow(flow, id, backend.generation());
    }
    id
}

/// The backend of a client.
///
/// One that takes no new flows keeps those that its clients have. New ones of the same clients go to
/// the current table's, and are recorded one by one.
#[inline(never)]
fn of_client<T: Lookup>(
    facts: &Facts,
    tables: &T,
    service: &Service,
    flow: &FlowKey,
    hash: u32,
    current: u32,
) -> u32 {
    let client = client(facts);
    if let Some(record) = tables.client(&client)
        && serves(tables, &record)
    {
        let silent = tables.clock().saturating_sub(record.seen());
        if silent <= lifetime(facts, service) {
            let id = record.backend();
            if drains(tables, service, id) {
                if facts.opens.0 {
                    if let Some(backend) = tables.backend(current) {
                        tables.record_flow(flow, current, backend.generation());
                    }
                    return current;
                }
                if service.phase() != Phase::Rest {
                    // An exception that the service must not come to rest before.
                    tables.record_flow(flow, id, record.generation());
                }
            }
            if silent >= REFRESH && facts.kind.0 != Kind::Error {
                tables.record_client(&client, id, record.generation());
            }
            return id;
        }
    }
    let mut id = current;
    if service.phase() == Phase::Handover && !facts.opens.0 {
        id = before(tables, service, hash, current);
    }
    let Some(backend) = tables.backend(id) else { return NOBODY };
    if facts.kind.0 != Kind::Error {
        tables.record_client(&client, id, backend.generation());
    }
    id
}

/// The backend of a flow from before session affinity was switched off: its client's, if that is
/// recorded and serves, or else `id`.
#[inline(always)]
pub(crate) fn had<T: Lookup>(facts: &Facts, tables: &T, id: u32) -> u32 {
    match tables.client(&client(facts)) {
        Some(record)
            if serves(tables, &record)
                && tables.clock().saturating_sub(record.seen()) <= CONNECTION =>
        {
            record.backend()
        }
        _ => id,
    }
}

/// Under which a client is recorded.
#[inline(always)]
fn client(facts: &Facts) -> FlowKey {
    FlowKey::new(facts.source, facts.destination, (0, facts.ports.0.1), facts.protocol.0)
}

/// How long a connection may be silent (RFC 5382, REQ-5).
const CONNECTION: u64 = 7440 * SECOND;

/// How long a silent client keeps its backend: a connection that goes on keeps it for as long as a
/// connection may be silent.
#[inline(always)]
fn lifetime(facts: &Facts, service: &Service) -> u64 {
    let affinity = u64::from(service.affinity()) * SECOND;
    let connection = !facts.opens.0 && facts.protocol.0 != protocol::UDP;
    if connection && affinity < CONNECTION { CONNECTION } else { affinity }
}

/// Nanoseconds
const SECOND: u64 = 1_000_000_000;

/// Whether a record's backend still takes packets.
#[inline(always)]
fn serves<T: Lookup>(tables: &T, record: &Flow) -> bool {
    tables
        .backend(record.backend())
        .is_some_and(|backend| backend.generation() == record.generation() && backend.serving())
}

/// The backend of a client that is in mid-stream and not recorded: the one from before the change.
#[inline(always)]
fn before<T: Lookup>(tables: &T, service: &Service, hash: u32, current: u32) -> u32 {
    let Ok(slot) = slot(tables, service.previous(), hash) else { return NOBODY };
    if slot & !Table::LOOK_UP == Table::GONE {
        return current;
    }
    let Ok(id) = named(tables, service.previous(), slot & !Table::LOOK_UP) else { return NOBODY };
    if tables.backend(id).is_some_and(Backend::serving) { id } else { current }
}
