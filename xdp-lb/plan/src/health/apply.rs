//! What the health of its backends does to a service.

use super::{AllDown, Health, HealthCheck, State};
use crate::model::{Backend, Service};

/// Gives each backend the weight that its health leaves it; `health` finds what is known of one.
///
/// Who is down drains: it gets no new flows, and keeps those of connections, since a check can be
/// wrong and a broken connection cannot be mended. Datagrams go elsewhere at once: a flow of theirs has
/// no beginning that could be seen, and who asks again may be answered there. Where nobody is up, those go on that only flap damping keeps
/// down; otherwise [`AllDown`] decides. Backends of weight 0 stay what they are.
pub fn apply<'a>(service: &mut Service, health: impl Fn(&Backend) -> Option<&'a Health>) {
    let Some(check) = &service.health_check else { return };
    let mut down = Vec::new();
    let mut anyone = false;
    for (index, backend) in service.backends.iter_mut().enumerate() {
        let Some(health) = health(backend) else {
            anyone |= backend.weight > 0;
            continue;
        };
        if let Some(weight) = health.weight().filter(|_| backend.weight > 0) {
            backend.weight = weight;
        }
        if backend.weight == 0 {
            continue;
        }
        match health.state() {
            State::Up | State::Unchecked => anyone = true,
            State::Down => down.push((index, health)),
        }
    }
    let kept = if anyone { Vec::new() } else { kept(check, &down) };
    for (index, _) in down {
        if !kept.contains(&index) {
            service.backends[index].weight = 0;
            service.backends[index].down = true;
        }
    }
}

/// Which backends go on, of those that are down, where nobody is up.
fn kept(check: &HealthCheck, down: &[(usize, &Health)]) -> Vec<usize> {
    let held = down.iter().filter(|(_, health)| health.is_held(check));
    let held: Vec<usize> = held.map(|(index, _)| *index).collect();
    if !held.is_empty() || check.all_down == AllDown::Reject {
        return held;
    }
    // What fails at once is found out one by one, within one round of questions.
    let round = check.interval.saturating_add(check.timeout);
    let last = down.iter().map(|(_, health)| health.since()).max().unwrap_or_default();
    let lately = down.iter().filter(|(_, health)| health.since().saturating_add(round) >= last);
    lately.map(|(index, _)| *index).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        health::{Answer, Probe},
        model::Mode,
    };

    const GOOD: Answer = Answer::Good { weight: None };

    /// What a service's backends weigh, each of which has its weight and its answers: at these
    /// seconds, good or bad.
    fn weights(all_down: AllDown, backends: &[(u16, &[(u64, Answer)])]) -> Vec<u16> {
        let check = HealthCheck { all_down, fall: 1, ..HealthCheck::new(Probe::Tcp) };
        let address = |n: usize| std::net::IpAddr::from([10, 0, 0, n as u8]);
        let declared = backends.iter().enumerate();
        let declared = declared
            .map(|(n, (weight, _))| Backend { weight: *weight, ..Backend::new(address(n)) });
        let mut service = Service::new("s", Mode::L2, Vec::new(), declared.collect());
        service.health_check = Some(check.clone());
        let health: Vec<Option<Health>> = backends
            .iter()
            .map(|(_, answers)| {
                let mut health = Health::default();
                for (second, answer) in *answers {
                    health.answer(&check, *answer, Duration::from_secs(*second));
                }
                (!answers.is_empty()).then_some(health)
            })
            .collect();
        apply(&mut service, |backend| {
            let std::net::IpAddr::V4(v4) = backend.address else { return None };
            health[usize::from(v4.octets()[3])].as_ref()
        });
        service.backends.iter().map(|backend| backend.weight).collect()
    }

    #[test]
    fn who_is_down_drains_and_who_is_unknown_serves() {
        let (up, down): (&[_], &[_]) = (&[(1, GOOD)], &[(1, Answer::Bad)]);
        assert_eq!(weights(AllDown::Keep, &[(3, up), (2, down), (4, &[])]), [3, 0, 4]);
        assert_eq!(weights(AllDown::Reject, &[(2, down), (4, &[])]), [0, 4]);
        assert_eq!(weights(AllDown::Keep, &[(0, up), (2, down)]), [0, 2], "who drains is nobody");
    }

    #[test]
    fn where_nobody_is_up_the_last_go_on_or_nobody() {
        let at = |second| [(1, GOOD), (second, Answer::Bad)];
        let (early, then, last) = (at(50), at(94), at(101));
        let all: [(u16, &[_]); 3] = [(1, &early), (2, &then), (3, &last)];
        assert_eq!(weights(AllDown::Keep, &all), [0, 2, 3], "found out in one round of 7 seconds");
        assert_eq!(weights(AllDown::Reject, &all), [0, 0, 0]);
    }

    #[test]
    fn damping_keeps_nobody_from_being_the_only_one() {
        let mut flapping = Vec::new();
        for n in 0..5 {
            flapping.extend([(n * 20, Answer::Bad), (n * 20 + 4, GOOD), (n * 20 + 9, GOOD)]);
        }
        let held = &flapping[..];
        let down: &[_] = &[(90, Answer::Bad)];
        assert_eq!(weights(AllDown::Reject, &[(1, held), (1, down)]), [1, 0]);
        assert_eq!(weights(AllDown::Keep, &[(1, held), (1, down)]), [1, 0]);
        assert_eq!(weights(AllDown::Keep, &[(1, held), (1, &[(1, GOOD)])]), [0, 1]);
    }

    #[test]
    fn a_backend_sets_its_own_weight_unless_it_drains() {
        let wants = |weight| [(1, Answer::Good { weight: Some(weight) })];
        let (nothing, much) = (wants(0), wants(65_535));
        assert_eq!(
            weights(AllDown::Keep, &[(1, &much), (5, &nothing), (0, &much)]),
            [65_535, 0, 0]
        );
    }
}
