//! Laws of the plan, for any history of what users want.

mod common;

use proptest::prelude::*;
use xdp_lb_abi::FrontendKey;
use xdp_lb_plan::{Layout, Outcome, buckets, model::Service};

use crate::common::{
    AMPLE, HANDOVER, Run, all, expected,
    input::{Wanted, history},
    world::Seen,
};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Limits that some histories reach.
fn tight() -> impl Strategy<Value = Layout> {
    (1_u32..8, 1_u32..14, 1_u32..700).prop_map(|(frontends, backends, words)| Layout {
        frontends,
        backends,
        words,
        buckets: buckets(frontends),
        seed: 11,
    })
}

/// Every frontend leads to its service's table; a refused one stays as it was.
fn check(run: &Run, before: &Run, services: &[Service], outcome: &Outcome) {
    let refused = |key: &FrontendKey| outcome.refused.iter().any(|one| one.frontend.key() == *key);
    for (service, frontend) in all(services) {
        let key = frontend.key();
        let seen = run.world.seen(&key);
        if refused(&key) {
            assert_eq!(seen, before.world.seen(&key), "{frontend} was refused");
        } else {
            assert_eq!(seen, Some(expected(service, frontend)), "{frontend}");
        }
    }
    for key in run.world.frontends() {
        assert!(all(services).any(|(_, one)| one.key() == key), "{key:?} was removed");
    }
    let mut known: Vec<FrontendKey> = run.planner.frontends().map(|one| one.key).collect();
    known.sort_unstable();
    assert!(run.world.frontends().into_iter().eq(known));
}

fn results(run: &Run) -> Vec<(FrontendKey, Option<Seen>)> {
    run.world.frontends().into_iter().map(|key| (key, run.world.seen(&key))).collect()
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn every_frontend_leads_to_its_own_table(
        steps in history(8), layout in prop_oneof![Just(AMPLE), tight()],
        handover in prop::sample::select(vec![HANDOVER, std::time::Duration::ZERO]),
    ) {
        let mut run = Run::new(layout, handover);
        let mut wanted = Wanted::default();
        for step in &steps {
            wanted.change(&step.change);
            run.wait(step.wait);
            run.way = step.way;
            let services = wanted.services();
            let before = run.clone();
            let outcome = run.apply(&services);
            check(&run, &before, &services, &outcome);
            let again = run.apply(&services);
            prop_assert_eq!(&again.ops, &[]);
            // The others may have taken what else it would need: another reason is as true.
            let refused = |outcome: Outcome| {
                outcome.refused.into_iter().map(|one| one.frontend).collect::<Vec<_>>()
            };
            prop_assert_eq!(refused(again), refused(outcome));
        }
    }

    #[test]
    fn the_history_does_not_matter(steps in history(8)) {
        let mut run = Run::new(AMPLE, HANDOVER);
        let mut wanted = Wanted::default();
        for step in &steps {
            wanted.change(&step.change);
            run.wait(step.wait);
            prop_assert_eq!(run.apply(&wanted.services()).refused, []);
        }
        let mut fresh = Run::new(AMPLE, HANDOVER);
        fresh.apply(&wanted.services());
        prop_assert_eq!(results(&run), results(&fresh));
    }

    #[test]
    fn nothing_leaks(steps in history(8), layout in prop_oneof![Just(AMPLE), tight()]) {
        let mut run = Run::new(layout, HANDOVER);
        let mut wanted = Wanted::default();
        for step in &steps {
            wanted.change(&step.change);
            run.wait(step.wait);
            run.apply(&wanted.services());
        }
        run.apply(&[]);
        let ops = run.apply(&[]).ops;
        prop_assert_eq!(ops, []);
        prop_assert_eq!(run.planner.words(), (layout.words, layout.words));
        prop_assert_eq!(run.planner.backends().count(), 0);
        // And what fits in empty tables fits again.
        let refused = run.apply(&wanted.services()).refused;
        let mut fresh = Run::new(layout, HANDOVER);
        prop_assert_eq!(refused, fresh.apply(&wanted.services()).refused);
    }
}
