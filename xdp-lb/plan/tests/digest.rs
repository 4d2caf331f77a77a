//! Instances that are told the same have the same tables, whatever happened to them before.

mod common;

use proptest::{prelude::*, sample::Index};
use xdp_lb_plan::model::Service;

use crate::common::{
    AMPLE, HANDOVER, Run,
    input::{Step, Wanted, history},
};

/// An instance that lived through these steps, and then is told what is wanted at last.
fn instance(steps: &[Step], at_last: &[Service]) -> Run {
    let mut run = Run::new(AMPLE, HANDOVER);
    let mut wanted = Wanted::default();
    for step in steps {
        wanted.change(&step.change);
        run.wait(step.wait);
        run.apply(&wanted.services());
    }
    run.apply(at_last);
    run
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn digests_do_not_depend_on_history(
        one in history(6), other in history(6), order in prop::collection::vec(any::<Index>(), 8),
    ) {
        let mut wanted = Wanted::default();
        one.iter().for_each(|step| wanted.change(&step.change));
        let services = wanted.services();
        // The same objects in another order, with their parts in another order.
        let mut shuffled = services.clone();
        for (place, index) in order.iter().enumerate().take(shuffled.len()) {
            let with = index.index(shuffled.len());
            shuffled.swap(place, with);
            shuffled[place].backends.reverse();
            shuffled[place].frontends.reverse();
        }
        let (first, second) = (instance(&one, &services), instance(&other, &shuffled));
        let mut restarted = second.clone();
        restarted.restart();
        for run in [&second, &restarted] {
            prop_assert_eq!(run.planner.digest_of_all(), first.planner.digest_of_all());
        }
        for (one, two) in first.planner.frontends().zip(second.planner.frontends()) {
            prop_assert_eq!(one.key, two.key);
            prop_assert_eq!(first.planner.digest(&one), second.planner.digest(&two));
        }
    }

    #[test]
    fn digests_tell_instances_apart(steps in history(5), weight in 1_u16..4) {
        let mut wanted = Wanted::default();
        steps.iter().for_each(|step| wanted.change(&step.change));
        let services = wanted.services();
        let mut changed = services.clone();
        let with_two = |service: &&mut Service| {
            service.table_size != Some(1) && service.backends.iter().filter(|one| one.weight > 0).count() > 1
        };
        let Some(service) = changed.iter_mut().find(with_two) else { return Ok(()) };
        let Some(backend) = service.backends.iter_mut().find(|one| one.weight > 0) else { return Ok(()) };
        backend.weight += 100 * weight;
        let (one, other) = (instance(&[], &services), instance(&[], &changed));
        prop_assert_ne!(one.planner.digest_of_all(), other.planner.digest_of_all());
    }
}
