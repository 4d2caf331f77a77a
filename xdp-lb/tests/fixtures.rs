//! The fixtures in the kernel: the real object, the real maps, one `BPF_PROG_TEST_RUN` each.
//!
//! Needs root, and no network device but a loopback one; without root it is skipped.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kernel;

use std::io::{self, Write};

use kernel::Kernel;
use nix::{sched, sys::resource, unistd::Uid};
use xdp_lb_abi::Reason;
use xdp_lb_datapath::{
    Verdict,
    egress::egress,
    parse::{Kind, parse},
    testing::{Fixture, MemoryFrame, MemoryTables, fixtures, world, world::INGRESS},
};

#[test]
fn the_kernel_agrees_with_every_fixture() {
    if !Uid::effective().is_root() {
        say("skipped: the kernel loads programs for root only");
        return;
    }
    isolate();
    let tables = world();
    let kernel = Kernel::load(&tables);
    say(&kernel.figures());
    agree(kernel, &tables);
}

#[test]
fn the_kernel_agrees_while_somebody_watches_and_tells_of_each_packet() {
    if !Uid::effective().is_root() {
        say("skipped: the kernel loads programs for root only");
        return;
    }
    isolate();
    let tables = world();
    agree(Kernel::load_monitored(&tables), &tables);
}

/// Panics unless the kernel does with each fixture what the host does.
fn agree(mut kernel: Kernel, tables: &MemoryTables) {
    // Nothing is written yet: every packet passes.
    let forwarded = |fixture: &Fixture| fixture.reason.is_none() && fixture.outgoing.is_none();
    for fixture in kernel_fixtures().filter(forwarded) {
        let output = fixture.packet.clone();
        // A fragment is no packet of a flow.
        let facts = parse(&mut MemoryFrame::new(&fixture.packet, INGRESS)).unwrap();
        let fragment = matches!(facts.kind.0, Kind::FirstFragment | Kind::LaterFragment);
        let reason = Some(if fragment { Reason::Fragment } else { Reason::NoFrontend });
        let fixture = Fixture { verdict: Verdict::Pass, reason, output, ..fixture };
        assert_eq!(kernel.run(&fixture), Ok(()), "before the first write: {}", fixture.name);
    }

    kernel.fill(tables);
    let mut failures = Vec::new();
    let mut total = 0;
    for fixture in kernel_fixtures() {
        total += 1;
        if let Err(what) = kernel.run(&fixture) {
            failures.push(format!("{}: {what}", fixture.name));
        }
        // The same on the host, for the counters and the recorded flows.
        tables.icmp_tokens.set(u32::from(!fixture.limited));
        let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
        match fixture.outgoing {
            None => drop(tables.run(&mut frame)),
            Some(_) => drop(egress(&mut frame, tables)),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {total} fixtures:\n{}",
        failures.len(),
        failures.join("\n")
    );
    kernel.expect_same_state(tables);
    say(&format!("{total} fixtures agree byte for byte"));
}

fn kernel_fixtures() -> impl Iterator<Item = Fixture> {
    fixtures().into_iter().filter(Fixture::runs_in_kernel)
}

/// Prints a line past the test runner, which keeps what passing tests print to itself.
fn say(line: &str) {
    io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Gives this thread a network namespace of its own, so that the machine's routes cannot serve where
/// a fixture has no next hop; and lifts the limit that kernels before 5.11 count maps against.
fn isolate() {
    sched::unshare(sched::CloneFlags::CLONE_NEWNET).unwrap();
    let unlimited = resource::RLIM_INFINITY;
    // Not every container allows it, and newer kernels do not ask.
    let _ = resource::setrlimit(resource::Resource::RLIMIT_MEMLOCK, unlimited, unlimited);
}
