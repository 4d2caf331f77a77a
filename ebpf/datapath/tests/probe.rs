//! What asks a backend looks like what clients send to it: by all forwarded packets among the fixtures.

use xdp_lb_abi::{Mode, Reason};
use xdp_lb_datapath::{
    Lookup as _, Verdict,
    parse::{Kind, parse},
    probe::probe,
    testing::{
        Fixture, MemoryFrame, MemoryTables, fixtures,
        packet::{SYN, ip, link},
        world,
        world::*,
    },
};

/// The backend that the packet path sends a packet to, and the frame that it gets; nothing where there
/// is none.
fn backend(fixture: &Fixture, tables: &MemoryTables) -> Option<(u32, Vec<u8>)> {
    tables.backend_stats.borrow_mut().clear();
    let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
    let verdict = tables.run(&mut frame);
    let chosen = tables.backend_stats.borrow().keys().next().copied();
    let sent = matches!(verdict, Verdict::Transmit | Verdict::Redirect(_));
    chosen.filter(|_| sent).map(|id| (id, frame.bytes().to_vec()))
}

fn is_plain(fixture: &Fixture) -> bool {
    let plain = fixture.outgoing.is_none()
        && fixture.linear.is_none()
        && fixture.headroom.is_none()
        && !fixture.limited;
    let facts = parse(&mut MemoryFrame::new(&fixture.packet, INGRESS));
    plain && facts.is_ok_and(|facts| facts.kind.0 == Kind::Flow)
}

#[test]
fn a_question_gets_the_headers_that_clients_packets_get() {
    let mut modes = [0; 3];
    for fixture in fixtures().iter().filter(|fixture| is_plain(fixture)) {
        let tables = world();
        let Some((id, output)) = backend(fixture, &tables) else { continue };
        let record = tables.backend(id).unwrap();
        match record.mode() {
            Some(Mode::L2) => modes[0] += 1,
            Some(Mode::Ipip) => modes[1] += 1,
            Some(Mode::Geneve) => modes[2] += 1,
            _ => continue,
        }
        let device = xdp_lb_datapath::Tables::device(&tables, record.hop().device());
        let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
        match device {
            Some(device) => {
                let sent = probe(&mut frame, &tables, id);
                assert_eq!(sent, Ok(device.ifindex()), "{}", fixture.name);
                assert_eq!(frame.bytes(), output, "{}", fixture.name);
            }
            // The kernel's routing table had the next hop, which a question does not ask for.
            None => {
                assert_eq!(probe(&mut frame, &tables, id), Err(Reason::NoNextHop));
                assert_eq!(frame.bytes(), fixture.packet, "{}", fixture.name);
            }
        }
    }
    assert!(modes.iter().all(|count| *count > 10), "{modes:?}");
}

#[test]
fn what_cannot_be_asked_stays_as_it_is() {
    let tables = world();
    let frames = |to, port, data| {
        link(OUR_MAC, ROUTER_MAC).holds(ip(HOST_V4, to).tcp((40_000, port), SYN, data))
    };
    let id_at = |port| {
        let fixture = fixtures().into_iter().find(|fixture| {
            let facts = parse(&mut MemoryFrame::new(&fixture.packet, INGRESS));
            is_plain(fixture)
                && facts.is_ok_and(|facts| facts.ports.0.1 == port)
                && backend(fixture, &tables).is_some()
        });
        backend(&fixture.unwrap(), &tables).unwrap().0
    };
    let l2 = id_at(port::L2);
    for (what, packet, id, reason) in [
        ("somebody else's mark", frames(CLIENT_V4, port::L2, 0), l2, Reason::NoFrontend),
        ("no such backend", frames(VIP_V4, port::L2, 0), 1 << 20, Reason::Inconsistent),
        ("too long", frames(VIP_V4, port::L2, 1461), l2, Reason::TooBig),
        (
            "a mode whose answers come back here",
            frames(VIP_V4, port::SNAT, 0),
            id_at(port::SNAT),
            Reason::Inconsistent,
        ),
    ] {
        let mut frame = MemoryFrame::new(&packet, INGRESS);
        assert_eq!(probe(&mut frame, &tables, id), Err(reason), "{what}");
        assert_eq!(frame.bytes(), packet, "{what}");
    }
}
