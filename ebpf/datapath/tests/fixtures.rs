//! The fixtures on the host.

use std::collections::BTreeSet;

use xdp_lb_abi::{Disposition, Hop, Reason, Settings, Traffic};
use xdp_lb_datapath::{
    Verdict,
    egress::{Outgoing, egress},
    parse::{Kind, parse},
    testing::{Fixture, MemoryFrame, MemoryTables, check::check_frame, fixtures, world, world::*},
};

/// Runs a fixture over the tables; what is wrong, or nothing.
fn run(fixture: &Fixture, tables: &MemoryTables) -> Result<(), String> {
    let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
    if let Some(linear) = fixture.linear {
        frame = frame.with_linear(linear);
    }
    if let Some(headroom) = fixture.headroom {
        frame = frame.with_headroom(headroom);
    }
    tables.icmp_tokens.set(u32::from(!fixture.limited));
    tables.reason_stats.borrow_mut().clear();
    let (verdict, outgoing) = match fixture.outgoing {
        Some(_) => (fixture.verdict, Some(egress(&mut frame, tables))),
        None => (tables.run(&mut frame), None),
    };
    let counted: Vec<_> =
        tables.reason_stats.borrow().iter().map(|(reason, n)| (*reason, *n)).collect();
    let bytes = fixture.linear.unwrap_or(fixture.output.len()) as u64;
    let expected: Vec<_> = fixture
        .reason
        .iter()
        .map(|reason| (*reason, Traffic { packets: 1, bytes, flows: 0 }))
        .collect();
    if (verdict, outgoing, &counted) != (fixture.verdict, fixture.outgoing, &expected) {
        return Err(format!(
            "{verdict:?} {outgoing:?} {counted:?} instead of {:?} {:?} {expected:?}",
            fixture.verdict, fixture.outgoing
        ));
    }
    if frame.bytes() != fixture.output {
        return Err(format!(
            "the frame is\n  {:02x?}\ninstead of\n  {:02x?}",
            frame.bytes(),
            fixture.output
        ));
    }
    Ok(())
}

/// Whether the packet comes in and is simply forwarded.
fn is_forwarded(fixture: &Fixture) -> bool {
    fixture.reason.is_none() && fixture.outgoing.is_none()
}

#[test]
fn every_fixture_comes_out_as_it_says() {
    let tables = world();
    let failures: Vec<String> = fixtures()
        .iter()
        .filter_map(|fixture| {
            run(fixture, &tables).err().map(|what| format!("{}: {what}", fixture.name))
        })
        .collect();
    assert!(failures.is_empty(), "{} fixtures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_reason_has_a_fixture() {
    let covered: BTreeSet<Reason> =
        fixtures().iter().filter_map(|fixture| fixture.reason).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !covered.contains(reason)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_reason_but_headroom_has_a_fixture_that_the_kernel_runs() {
    let covered: BTreeSet<Reason> = fixtures()
        .iter()
        .filter(|fixture| fixture.runs_in_kernel())
        .filter_map(|fixture| fixture.reason)
        .collect();
    // The kernel's test runs always have the usual headroom.
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !covered.contains(reason)).collect();
    assert_eq!(missing, [&Reason::Headroom]);
}

#[test]
fn names_are_unique() {
    let mut seen = BTreeSet::new();
    for fixture in fixtures() {
        assert!(seen.insert(fixture.name.clone()), "{}", fixture.name);
    }
    assert!(seen.len() >= 60);
}

/// The fixtures themselves are judged: what leaves is sound, whoever built it.
#[test]
fn what_leaves_has_right_lengths_and_checksums() {
    for fixture in fixtures() {
        let rewritten = matches!(fixture.outgoing, Some(Outgoing::Rewritten | Outgoing::BackIn));
        if rewritten || matches!(fixture.verdict, Verdict::Transmit | Verdict::Redirect(_)) {
            assert_eq!(check_frame(&fixture.output), Ok(()), "{}", fixture.name);
        }
    }
}

#[test]
fn a_passed_packet_is_unchanged_unless_it_is_delivered() {
    let delivers = |reason: Reason| reason.disposition() == Disposition::Deliver;
    for fixture in fixtures().into_iter().filter(|fixture| fixture.outgoing.is_none()) {
        if fixture.verdict == Verdict::Pass && !fixture.reason.is_some_and(delivers) {
            assert_eq!(fixture.packet, fixture.output, "{}", fixture.name);
        }
    }
}

/// The hash is the same on every instance, of whatever version: these values must never change.
#[test]
fn the_hash_of_flows_is_what_it_always_was() {
    let v4 = hash(CLIENT_V4, VIP_V4, (40000, 80), 6);
    let v6 = hash(CLIENT_V6, VIP_V6, (40000, 80), 6);
    assert_eq!((v4, v6), (997_235_904, 281_982_351));
}

#[test]
fn before_the_control_plane_has_written_anything_everything_passes() {
    let tables = MemoryTables::new(Settings::default());
    for fixture in fixtures().into_iter().filter(is_forwarded) {
        // A fragment is no packet of a flow.
        let facts = parse(&mut MemoryFrame::new(&fixture.packet, INGRESS)).unwrap();
        let fragment = matches!(facts.kind.0, Kind::FirstFragment | Kind::LaterFragment);
        let reason = Some(if fragment { Reason::Fragment } else { Reason::NoFrontend });
        let output = fixture.packet.clone();
        let fixture = Fixture { verdict: Verdict::Pass, reason, output, ..fixture };
        assert_eq!(run(&fixture, &tables), Ok(()), "{}", fixture.name);
    }
}

#[test]
fn the_kernels_routes_serve_a_backend_without_a_next_hop() {
    let mut tables = world();
    let hop = Hop::new(next_hop(1), device::UNTAGGED);
    tables.routes.insert(TUNNEL_END_V4.into(), hop);
    let fixture = fixtures()
        .into_iter()
        .find(|fixture| fixture.name == "an IPv4 tunnel, no next hop: IPv4")
        .unwrap();
    let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
    assert_eq!(tables.run(&mut frame), Verdict::Transmit);
    assert_eq!(frame.bytes()[..6], next_hop(1));
    assert_eq!(check_frame(frame.bytes()), Ok(()));
}

#[test]
fn a_forwarded_packet_is_counted_for_its_frontend_and_its_backend() {
    // In order: some packets belong to flows that earlier ones opened.
    let tables = world();
    for fixture in fixtures().iter().filter(|fixture| fixture.outgoing.is_none()) {
        tables.frontend_stats.borrow_mut().clear();
        tables.backend_stats.borrow_mut().clear();
        run(fixture, &tables).ok();
        let frontends: Vec<Traffic> = tables.frontend_stats.borrow().values().copied().collect();
        let backends: Vec<Traffic> = tables.backend_stats.borrow().values().copied().collect();
        assert_eq!(frontends, backends, "{}", fixture.name);
        // An error towards a backend counts for it, one towards a client does not.
        if fixture.reason != Some(Reason::IcmpForwarded) {
            let forwarded = matches!(fixture.reason, None | Some(Reason::Local));
            assert_eq!(frontends.len(), usize::from(forwarded), "{}", fixture.name);
        }
        assert!(frontends.iter().all(|traffic| traffic.packets == 1), "{}", fixture.name);
    }
}
