//! Restarts: a new process takes over the maps and goes on; and maps that somebody else wrote to.

mod common;

use proptest::{collection::vec, prelude::*, sample::Index};
use xdp_lb_abi::FrontendKey;
use xdp_lb_plan::{
    Layout, Planner,
    model::{Backend, Mode, Service},
};
use zerocopy::IntoBytes;

use crate::common::{
    AMPLE, HANDOVER, Run, all, expected,
    input::{Step, Wanted, address, frontend, history},
    key,
    world::{Seen, World},
};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn step(run: &mut Run, wanted: &mut Wanted, step: &Step) {
    wanted.change(&step.change);
    run.wait(step.wait);
    run.way = step.way;
    run.apply(&wanted.services());
}

/// Every frontend with its backends' ids, and what it leads to.
fn results(run: &Run) -> Vec<(FrontendKey, Vec<u32>, Option<Seen>)> {
    run.planner
        .frontends()
        .map(|one| (one.key, one.ids.to_vec(), run.world.seen(&one.key)))
        .collect()
}

/// Room for everything, and little more: damage is likely to hit what is in use.
const SMALL: Layout = Layout { frontends: 8, backends: 64, words: 8_000, buckets: 8, seed: 17 };

/// One byte of the maps becomes another.
fn corrupt(world: &mut World, array: usize, place: Index, value: u8) {
    let bytes = match array {
        0 => world.buckets.as_mut_bytes(),
        1 => world.services.as_mut_bytes(),
        2 => world.arena.as_mut_bytes(),
        _ => world.backends.as_mut_bytes(),
    };
    bytes[place.index(bytes.len())] = value;
}

#[test]
fn what_is_held_after_a_restart_stays_as_it_is_until_it_is_let_go() {
    let service = |name: &str, number, pods: &[u8]| {
        let backends = pods.iter().map(|pod| Backend::new(address(*pod))).collect();
        Service::new(name, Mode::Ipip, vec![frontend(number)], backends)
    };
    let (file, cluster) = (service("file", 0, &[1, 2]), service("cluster", 1, &[2, 3]));
    let other = service("other", 2, &[4]);
    let mut run = Run::new(AMPLE, HANDOVER);
    run.apply(&[file.clone(), cluster.clone(), other.clone()]);
    let before = results(&run);
    run.restart();
    run.planner.hold();
    // The cluster has not spoken yet, and of the file one service is gone meanwhile.
    assert_eq!(run.apply(std::slice::from_ref(&file)).ops, []);
    assert_eq!(results(&run), before);
    let held: Vec<_> = run.planner.held().iter().copied().collect();
    assert_eq!(held, [frontend(1).key(), frontend(2).key()]);
    let kept: std::collections::BTreeSet<_> =
        run.planner.held_backends().map(|key| key.identity.address).collect();
    assert_eq!(kept, [address(2), address(3), address(4)].into());

    // What somebody names is his from then on, and goes when he does not name it any more.
    run.apply(&[file.clone(), other]);
    run.apply(std::slice::from_ref(&file));
    assert_eq!(run.planner.frontends().count(), 2);

    // It speaks, and wants what it has: nothing changes.
    run.planner.let_go();
    assert_eq!(run.apply(&[file.clone(), cluster]).ops, []);
    run.apply(std::slice::from_ref(&file));
    assert_eq!(run.planner.frontends().count(), 1);
}

#[test]
fn a_restart_knows_tunnels_to_other_hosts_and_pods_with_their_nodes_address() {
    for mode in [Mode::Geneve, Mode::Hybrid, Mode::Snat] {
        let backend =
            |number, node| Backend { node: Some(address(node)), ..Backend::new(address(number)) };
        let services = [Service {
            name: "web".to_owned(),
            frontends: vec![frontend(0), frontend(1)],
            mode,
            backends: vec![backend(2, 2), backend(3, 9)],
            ..Service::default()
        }];
        let mut run = Run::new(SMALL, HANDOVER);
        run.apply(&services);
        for _ in 0..3 {
            run.restart();
            let outcome = run.apply(&services);
            assert_eq!((outcome.ops, outcome.refused), (vec![], vec![]));
        }
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn drift_is_found_and_mended(
        steps in history(4),
        damage in vec((0_usize..4, any::<Index>(), any::<u8>()), 1..20),
    ) {
        let mut run = Run::new(SMALL, HANDOVER);
        let mut wanted = Wanted::default();
        steps.iter().for_each(|one| step(&mut run, &mut wanted, one));
        prop_assert_eq!(run.planner.drift(&run.world), vec![]);
        let before = results(&run);
        for (array, place, value) in damage {
            corrupt(&mut run.world, array, place, value);
        }
        for op in run.planner.drift(&run.world) {
            run.world.mend(&op);
        }
        prop_assert_eq!(run.planner.drift(&run.world), vec![]);
        prop_assert_eq!(results(&run), before);
        let installed: Vec<FrontendKey> = run.planner.frontends().map(|one| one.key).collect();
        let visible: Vec<FrontendKey> = run.world.frontends().into_iter().collect();
        prop_assert_eq!(visible, installed);
    }

    #[test]
    fn a_restart_changes_nothing(steps in history(6)) {
        let mut run = Run::new(AMPLE, HANDOVER);
        let mut wanted = Wanted::default();
        steps.iter().for_each(|one| step(&mut run, &mut wanted, one));
        let before = results(&run);
        run.restart();
        prop_assert_eq!(results(&run), before);
        let outcome = run.apply(&wanted.services());
        prop_assert_eq!((outcome.ops, outcome.refused), (vec![], vec![]));
    }

    #[test]
    fn going_on_after_a_restart_is_going_on(before in history(5), after in history(5)) {
        let mut run = Run::new(AMPLE, HANDOVER);
        let mut wanted = Wanted::default();
        before.iter().for_each(|one| step(&mut run, &mut wanted, one));
        let (mut restarted, mut wanted_too) = (run.clone(), wanted.clone());
        restarted.restart();
        after.iter().for_each(|one| step(&mut run, &mut wanted, one));
        after.iter().for_each(|one| step(&mut restarted, &mut wanted_too, one));
        for (service, frontend) in all(&wanted.services()) {
            let seen = restarted.world.seen(&frontend.key());
            prop_assert_eq!(seen.as_ref(), Some(&expected(service, frontend)));
            prop_assert_eq!(seen, run.world.seen(&frontend.key()));
        }
        prop_assert_eq!(run.world.frontends(), restarted.world.frontends());
        restarted.apply(&[]);
        prop_assert_eq!(restarted.planner.words(), (AMPLE.words, AMPLE.words));
    }

    #[test]
    fn a_process_that_dies_half_way_is_taken_over(steps in history(6), cut in any::<Index>()) {
        let mut run = Run::new(AMPLE, HANDOVER);
        let mut wanted = Wanted::default();
        let (last, before) = steps.split_last().unwrap();
        before.iter().for_each(|one| step(&mut run, &mut wanted, one));
        wanted.change(&last.change);
        run.wait(last.wait);
        let ops = run.plan(&wanted.services()).ops;
        for op in &ops[..cut.index(ops.len() + 1)] {
            run.world.carry_out(op);
        }
        run.restart();
        prop_assert_eq!(run.apply(&wanted.services()).refused, []);
        for (service, frontend) in all(&wanted.services()) {
            prop_assert_eq!(run.world.seen(&frontend.key()), Some(expected(service, frontend)));
        }
    }

    #[test]
    fn corrupt_maps_are_refused_or_taken_over(
        steps in history(6),
        damage in vec((0_usize..4, any::<Index>(), prop_oneof![0_u8..8, any::<u8>()]), 1..30),
        more in history(3),
    ) {
        let mut run = Run::new(SMALL, HANDOVER);
        let mut wanted = Wanted::default();
        steps.iter().for_each(|one| step(&mut run, &mut wanted, one));
        for (array, place, value) in damage {
            corrupt(&mut run.world, array, place, value);
        }
        let mut planner = Planner::new(&SMALL, key(), HANDOVER);
        if planner.adopt(&run.world, run.now).is_ok() {
            // Only the planner goes on: what the damaged maps break is for the maps to say.
            run.planner = planner;
            for one in &more {
                wanted.change(&one.change);
                prop_assert_eq!(run.plan(&wanted.services()).refused, []);
            }
            run.plan(&[]);
            prop_assert_eq!(run.planner.words(), (SMALL.words, SMALL.words));
        }
    }
}
