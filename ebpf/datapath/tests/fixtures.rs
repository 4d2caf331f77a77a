//! The fixtures on the host.

use std::collections::BTreeSet;

use xdp_lb_abi::{Hop, Reason, Settings, Traffic};
use xdp_lb_datapath::{
    Verdict, handle,
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
    let verdict = handle(&mut frame, tables);
    let counted: Vec<_> =
        tables.reason_stats.borrow().iter().map(|(reason, n)| (*reason, *n)).collect();
    let bytes = fixture.linear.unwrap_or(fixture.output.len()) as u64;
    let expected: Vec<_> =
        fixture.reason.iter().map(|reason| (*reason, Traffic { packets: 1, bytes })).collect();
    if (verdict, &counted) != (fixture.verdict, &expected) {
        return Err(format!(
            "{verdict:?} {counted:?} instead of {:?} {expected:?}",
            fixture.verdict
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
        if matches!(fixture.verdict, Verdict::Transmit | Verdict::Redirect(_)) {
            assert_eq!(check_frame(&fixture.output), Ok(()), "{}", fixture.name);
        }
    }
}

#[test]
fn a_passed_packet_is_unchanged_unless_it_was_unwrapped() {
    for fixture in fixtures() {
        if fixture.verdict == Verdict::Pass && fixture.reason != Some(Reason::Unwrapped) {
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
    for fixture in fixtures().into_iter().filter(|fixture| fixture.reason.is_none()) {
        let reason = Some(Reason::NoFrontend);
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
    assert_eq!(handle(&mut frame, &tables), Verdict::Transmit);
    assert_eq!(frame.bytes()[..6], next_hop(1));
    assert_eq!(check_frame(frame.bytes()), Ok(()));
}

#[test]
fn a_forwarded_packet_is_counted_for_its_frontend_and_its_backend() {
    for fixture in fixtures().iter().filter(|fixture| fixture.reason.is_none()) {
        let tables = world();
        run(fixture, &tables).ok();
        let frontends: Vec<Traffic> = tables.frontend_stats.borrow().values().copied().collect();
        let backends: Vec<Traffic> = tables.backend_stats.borrow().values().copied().collect();
        assert_eq!(frontends, backends, "{}", fixture.name);
        assert_eq!(frontends.len(), 1, "{}", fixture.name);
        assert_eq!(frontends[0].packets, 1, "{}", fixture.name);
    }
}
