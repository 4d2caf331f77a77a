//! Asks one backend whether it is well, in the form in which it gets clients' packets.
//!
//! Modes `l2`, `ipip` and `geneve` send clients' packets in a form that the kernel's stack would not
//! give the daemon's own. Its packet to the frontend's address has a mark that names the backend, and here
//! gets the headers that the packet path would have written. The answer comes from the frontend.

use xdp_lb_abi::{AddressFlags, Mode, Reason};

use crate::{
    Frame, Tables,
    decide::Choice,
    forward::{outer_length, path_mtu, wrap, write_link},
    geneve,
    parse::{Facts, IPV4, IPV6, Kind, ethertype, parse},
    pods,
    rewrite::{Side, decrement_ttl, rewrite},
    stage::Chosen,
};

/// Rewrites a packet so that it goes to a backend; the index of the interface that it leaves by.
///
/// # Errors
///
/// [`Reason::NoFrontend`] where it is for none, so that somebody else has marked it: it is unchanged
/// then. Any other: it cannot go there.
#[inline(always)]
pub fn probe<F: Frame, T: Tables>(frame: &mut F, tables: &T, id: u32) -> Result<u32, Reason> {
    let facts = parse(frame).map_err(|_| Reason::NoFrontend)?;
    let flags = tables.address_flags(&facts.destination);
    if flags & AddressFlags::FRONTEND == 0 || facts.kind.0 != Kind::Flow {
        return Err(Reason::NoFrontend);
    }
    let settings = tables.settings().ok_or(Reason::NoFrontend)?;
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    let tunnel = matches!(backend.mode(), Some(Mode::Geneve));
    let outer = if tunnel { tunnel_length(&facts, backend)? } else { outer_length(backend)? };
    let hop = backend.hop();
    if hop.device() == 0 {
        return Err(Reason::NoNextHop);
    }
    let device = tables.device(hop.device()).ok_or(Reason::Inconsistent)?;
    if facts.length + outer > path_mtu(backend, device) {
        return Err(Reason::TooBig);
    }
    let hash = facts.flow().hash(settings.flow_key());
    let choice = Choice { chosen: Chosen { id, hash, stats: 0 }, backend };
    if tunnel {
        let frontend = (facts.destination, facts.ports.0.1);
        rewrite(frame, &facts, Side::Destination, (backend.address(), backend.port()))?;
        // As for clients, this host is a router to it.
        decrement_ttl(frame, &facts)?;
        pods::wrap(frame, &facts, &choice, device, frontend)?;
        let kind = if backend.tunnel_is_v6() { ethertype::IPV6 } else { ethertype::IPV4 };
        write_link(frame, device, hop, facts.priority.0, kind)?;
    } else {
        wrap(frame, &facts, &choice, device, hop, outer)?;
    }
    Ok(device.ifindex())
}

/// Length of the headers in front of a packet for a pod.
#[inline(always)]
fn tunnel_length(facts: &Facts, backend: &xdp_lb_abi::Backend) -> Result<usize, Reason> {
    if backend.address().is_v6() != facts.destination.is_v6() {
        return Err(Reason::Family);
    }
    if facts.ttl.0 <= 1 {
        return Err(Reason::TimeExceeded);
    }
    let ip = if backend.tunnel_is_v6() { IPV6 } else { IPV4 };
    Ok(ip + geneve::overhead(facts.destination.is_v6()))
}
