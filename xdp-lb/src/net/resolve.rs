//! When to make the kernel resolve a neighbour, and when to ask for all routes again. Time is an
//! argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Hop, tables::Neighbour};

/// Pause after the first attempt; each next one doubles, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a neighbour that nothing confirms is asked whether it still has its MAC address.
const CONFIRM_EVERY: Duration = Duration::from_secs(30);

/// The neighbours that paths need, and how often each was asked for in vain.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    wanted: BTreeMap<Hop, Attempts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Attempts {
    in_vain: u32,
    last: Option<Instant>,
}

impl Resolver {
    /// Replaces the wanted neighbours; those that stay keep their pauses.
    pub(super) fn want(&mut self, hops: &BTreeSet<Hop>) {
        self.wanted.retain(|hop, _| hops.contains(hop));
        for hop in hops {
            self.wanted.entry(*hop).or_default();
        }
    }

    pub(super) fn wants(&self, hop: &Hop) -> bool {
        self.wanted.contains_key(hop)
    }

    /// At most `limit` neighbours to resolve or confirm now; counts as an attempt for each.
    pub(super) fn due<'a>(
        &mut self,
        now: Instant,
        limit: usize,
        neighbour: impl Fn(&Hop) -> Option<&'a Neighbour>,
    ) -> Vec<Hop> {
        let mut due = Vec::new();
        for (hop, attempts) in &mut self.wanted {
            let pause = match neighbour(hop) {
                None => pause_after(attempts.in_vain),
                Some(known) => {
                    // So that it is asked for at once, should it be lost.
                    attempts.in_vain = 0;
                    if !known.stale {
                        continue;
                    }
                    CONFIRM_EVERY
                }
            };
            if attempts.last.is_some_and(|last| now < last + pause) {
                continue;
            }
            if due.len() == limit {
                break;
            }
            if neighbour(hop).is_none() {
                attempts.in_vain += 1;
            }
            attempts.last = Some(now);
            due.push(*hop);
        }
        due
    }
}

fn pause_after(in_vain: u32) -> Duration {
    match in_vain {
        0 => Duration::ZERO,
        n => (FIRST_PAUSE * (1 << (n - 1).min(5))).min(LONGEST_PAUSE),
    }
}

/// Changes come in bursts (a device that goes down, a routing daemon that starts): how long to let
/// one grow before the routes are asked for again.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// From the start of one round to the start of the next, however many changes there are.
const LEAST_INTERVAL: Duration = Duration::from_millis(200);
/// A round takes at most one part in this many of the time, even where it is long.
const SHARE: u32 = 4;

/// Paces the rounds in which every route is asked for again.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    due: Option<Instant>,
    running_since: Option<Instant>,
    not_before: Option<Instant>,
}

impl Rounds {
    /// Something changed: there must be a round that starts later than now.
    pub(super) fn request(&mut self, now: Instant) {
        self.due.get_or_insert(now + DEBOUNCE);
    }

    /// When the next round may start; nothing while none is needed or one is running.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = self.due.filter(|_| self.running_since.is_none())?;
        Some(self.not_before.map_or(due, |earliest| earliest.max(due)))
    }

    pub(super) fn start(&mut self, now: Instant) {
        self.due = None;
        self.running_since = Some(now);
    }

    /// Nothing is being asked any more.
    pub(super) fn finish(&mut self, now: Instant) {
        if let Some(since) = self.running_since.take() {
            self.not_before = Some(since + LEAST_INTERVAL.max((now - since) * SHARE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Neighbour = Neighbour { mac: [2; 6], stale: false };
    const STALE: Neighbour = Neighbour { mac: [2; 6], stale: true };

    fn hop(last: u8) -> Hop {
        Hop { device: 2, address: [10, 0, 0, last].into() }
    }

    fn wanting(hops: &[Hop]) -> Resolver {
        let mut resolver = Resolver::default();
        resolver.want(&hops.iter().copied().collect());
        resolver
    }

    /// The seconds of the first two minutes at which one hop is asked for.
    fn asked_at(
        resolver: &mut Resolver,
        start: Instant,
        known: impl Fn(u64) -> Option<&'static Neighbour>,
    ) -> Vec<u64> {
        let at = |second| start + Duration::from_secs(second);
        (0..120).filter(|&s| !resolver.due(at(s), 9, |_| known(s)).is_empty()).collect()
    }

    #[test]
    fn a_silent_neighbour_is_asked_ever_less_often() {
        let asked = asked_at(&mut wanting(&[hop(1)]), Instant::now(), |_| None);
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 61, 91]);
    }

    #[test]
    fn a_fresh_neighbour_is_left_alone_and_a_stale_one_confirmed_now_and_then() {
        let start = Instant::now();
        assert_eq!(asked_at(&mut wanting(&[hop(1)]), start, |_| Some(&FRESH)), Vec::<u64>::new());
        assert_eq!(asked_at(&mut wanting(&[hop(1)]), start, |_| Some(&STALE)), [0, 30, 60, 90]);
    }

    #[test]
    fn a_neighbour_that_is_lost_is_asked_at_once() {
        let known = |second| if (20..70).contains(&second) { Some(&FRESH) } else { None };
        let asked = asked_at(&mut wanting(&[hop(1)]), Instant::now(), known);
        assert_eq!(asked, [0, 1, 3, 7, 15, 70, 71, 73, 77, 85, 101]);
    }

    #[test]
    fn a_batch_is_bounded_and_the_rest_follows() {
        let mut resolver = wanting(&[hop(1), hop(2), hop(3)]);
        let now = Instant::now();
        assert_eq!(resolver.due(now, 2, |_| None), [hop(1), hop(2)]);
        assert_eq!(resolver.due(now, 2, |_| None), [hop(3)]);
        assert_eq!(resolver.due(now, 2, |_| None), []);
    }

    #[test]
    fn who_stays_wanted_keeps_the_pause() {
        let mut resolver = wanting(&[hop(1)]);
        let now = Instant::now();
        resolver.due(now, 9, |_| None);
        resolver.want(&BTreeSet::from([hop(1), hop(2)]));
        assert_eq!(resolver.due(now, 9, |_| None), [hop(2)]);
        resolver.want(&BTreeSet::from([hop(2)]));
        assert!(!resolver.wants(&hop(1)) && resolver.wants(&hop(2)));
    }

    #[test]
    fn a_burst_of_changes_is_one_round() {
        let (mut rounds, start) = (Rounds::default(), Instant::now());
        assert_eq!(rounds.next(), None);
        rounds.request(start);
        rounds.request(start + DEBOUNCE / 2);
        assert_eq!(rounds.next(), Some(start + DEBOUNCE));
        rounds.start(start + DEBOUNCE);
        assert_eq!(rounds.next(), None);
    }

    #[test]
    fn a_change_during_a_round_leads_to_another_one_after_a_pause() {
        let (mut rounds, start) = (Rounds::default(), Instant::now());
        let ms = Duration::from_millis;
        rounds.request(start);
        rounds.start(start);
        rounds.request(start + ms(1));
        assert_eq!(rounds.next(), None, "one round at a time");
        rounds.finish(start + ms(10));
        assert_eq!(rounds.next(), Some(start + LEAST_INTERVAL));
        // Long rounds leave most of the time to others.
        rounds.start(start + ms(1_000));
        rounds.request(start + ms(1_001));
        rounds.finish(start + ms(1_500));
        assert_eq!(rounds.next(), Some(start + ms(1_000) + ms(500) * SHARE));
    }
}
