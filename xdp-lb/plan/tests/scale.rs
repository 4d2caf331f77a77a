//! How long a plan for 10,000 services of 10 backends takes: `cargo test --release --test scale --
//! --nocapture` prints it (without optimisation it is 1000 services). What it asserts is the size of
//! the plan.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use xdp_lb_plan::{
    Layout, Op, Planner, buckets,
    model::{Backend, Frontend, Mode, Protocol, Service},
};

use crate::common::{HANDOVER, key, path, world::World};

const SERVICES: u32 = if cfg!(debug_assertions) { 1000 } else { 10_000 };
const BACKENDS: u32 = 10;

fn services() -> Vec<Service> {
    let port = NonZeroU16::new(80).unwrap();
    let address = |base: u32, number: u32| IpAddr::from(Ipv4Addr::from(base + number));
    let backend = |number| Backend::new(address(0x0a00_0000, number));
    (0..SERVICES)
        .map(|number| Service {
            name: format!("service-{number}"),
            frontends: vec![Frontend {
                address: address(0x6440_0000, number),
                port,
                protocol: Protocol::Tcp,
            }],
            mode: Mode::L2,
            backends: (number * BACKENDS..(number + 1) * BACKENDS).map(backend).collect(),
            ..Service::default()
        })
        .collect()
}

/// Prints how long something took, in whole milliseconds.
fn timed<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = action();
    let _ = writeln!(std::io::stderr(), "{what}: {} ms", start.elapsed().as_millis());
    result
}

#[test]
fn a_change_of_one_service_is_a_few_operations_among_many() {
    let layout = Layout {
        frontends: 2 * SERVICES,
        backends: 2 * SERVICES * BACKENDS,
        words: 3 * SERVICES * 300,
        buckets: buckets(2 * SERVICES),
        seed: 9,
    };
    let mut services = services();
    let mut planner = Planner::new(&layout, key(), HANDOVER);
    let mut now = Duration::ZERO;
    let apply = |planner: &mut Planner, services: &[Service], now: Duration| {
        let outcome = planner.apply_over_known_paths(services, &|key| Some(path(key, 1)), now);
        assert_eq!(outcome.refused, []);
        outcome.ops
    };
    let ops = timed("from nothing", || apply(&mut planner, &services, now));
    // A backend each, and for each service a list, a table, counters, a record and an entry.
    assert_eq!(ops.len() as u32, SERVICES * (BACKENDS + 5));
    let mut world = World::new(&layout);
    ops.iter().for_each(|op| world.carry_out(op));
    world.settle();

    let again = timed("the same again", || apply(&mut planner, &services, now));
    assert_eq!(again, []);

    services[471].backends[3].address = Ipv4Addr::new(10, 200, 0, 1).into();
    let one = timed("one backend replaced", || apply(&mut planner, &services, now));
    // The new backend, its list and table, the table that is handed over, the record and the entry;
    // the old backend's record; and the wait.
    assert_eq!(one.len(), 8, "{one:?}");
    one.iter().for_each(|op| world.carry_out(op));

    let mut restarted = Planner::new(&layout, key(), HANDOVER);
    timed("taken over", || restarted.adopt(&world, now)).unwrap();
    let after = timed("the same after a restart", || apply(&mut restarted, &services, now));
    assert_eq!(after, []);

    now += HANDOVER;
    for service in &mut services {
        service.backends[0].weight = 2;
    }
    let all = timed("all services changed", || apply(&mut planner, &services, now));
    assert!(matches!(all.last(), Some(Op::Grace)));
    for service in &mut services {
        service.backends[0].weight = 1;
    }
    timed("all services changed back", || apply(&mut planner, &services, now));
    timed("all removed", || apply(&mut planner, &[], now));
    assert_eq!(planner.words(), (layout.words, layout.words));
}
