//! Health checks: what is declared, what a backend's answers come to, and what that does to a
//! service's backends.
//!
//! Pure: time is an argument, and who asks is elsewhere.

mod apply;
mod check;

use std::{collections::VecDeque, time::Duration};

pub use apply::apply;
pub use check::{AllDown, HealthCheck, Http, Probe, Udp};

/// How long a fall is remembered.
pub const WINDOW: Duration = Duration::from_secs(600);
/// Falls within [`WINDOW`] that have no consequence.
pub const FREE_FALLS: usize = 3;
/// Longest time that a backend is held down for falling often, unless its rise alone takes longer.
pub const LONGEST_HOLD: Duration = Duration::from_secs(300);
/// Smallest change of the weight that a backend wants, in percent, that counts, and the time between two
/// such changes.
pub const WEIGHT_STEP: u32 = 10;
/// See [`WEIGHT_STEP`].
pub const WEIGHT_PAUSE: Duration = Duration::from_secs(30);
/// Falls that are remembered: more than it takes to reach [`LONGEST_HOLD`].
const REMEMBERED: usize = 16;

/// What a check came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// As it should be; `weight` is what the backend says of its own.
    Good {
        /// Share of new flows that it wants
        weight: Option<u16>,
    },
    /// None, or a wrong one
    Bad,
}

/// Whether a backend is well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum State {
    /// Nobody has asked yet; counts as up.
    #[default]
    Unchecked,
    /// It answers.
    Up,
    /// It does not answer.
    Down,
}

/// What is known of one backend's health.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    state: State,
    since: Duration,
    changes: u64,
    last_good: bool,
    /// Answers like the last one, in a row
    streak: u32,
    weight: Option<u16>,
    /// Since when it wants that
    weighed: Duration,
    /// When it fell lately, the oldest first
    falls: VecDeque<Duration>,
    held_until: Duration,
}

impl Health {
    /// A backend as an earlier run left it: it changes as any other does.
    pub fn known(state: State, weight: Option<u16>, since: Duration) -> Self {
        Self {
            state,
            since,
            weight,
            last_good: state == State::Up,
            streak: u32::from(state != State::Unchecked),
            ..Self::default()
        }
    }

    /// Takes in an answer. The first one of all decides at once, so that a dead backend is found with
    /// one question; later ones change nothing until there are enough in a row.
    pub fn answer(&mut self, check: &HealthCheck, answer: Answer, now: Duration) {
        let good = matches!(answer, Answer::Good { .. });
        if let Answer::Good { weight } = answer {
            self.weigh(weight, now);
        }
        self.streak = if good == self.last_good { self.streak.saturating_add(1) } else { 1 };
        self.last_good = good;
        match (self.state, good) {
            (State::Unchecked, true) => self.change(State::Up, now),
            (State::Unchecked, false) => self.change(State::Down, now),
            (State::Up, false) if self.streak >= check.fall => self.fall(check, now),
            (State::Down, true) if self.streak >= check.rise && now >= self.held_until => {
                self.change(State::Up, now);
            }
            (State::Up | State::Down, _) => {}
        }
    }

    /// Takes in the weight that it wants. Each change hands flows over, so small ones and frequent ones
    /// are left out; a backend that wants nothing, or something again, gets that at once.
    fn weigh(&mut self, wanted: Option<u16>, now: Duration) {
        let counts = match (self.weight, wanted) {
            (Some(had @ 1..), Some(wants @ 1..)) => {
                let step = u32::from(had.abs_diff(wants)) * 100 >= u32::from(had) * WEIGHT_STEP;
                step && now.saturating_sub(self.weighed) >= WEIGHT_PAUSE
            }
            (had, wants) => had != wants,
        };
        if counts {
            self.weight = wanted;
            self.weighed = now;
        }
    }

    /// Takes it down; the more often it falls, the longer it stays down at least.
    fn fall(&mut self, check: &HealthCheck, now: Duration) {
        self.falls.retain(|at| now.saturating_sub(*at) < WINDOW);
        self.falls.push_back(now);
        if self.falls.len() > REMEMBERED {
            self.falls.pop_front();
        }
        let doublings = self.falls.len().saturating_sub(FREE_FALLS) as u32;
        if doublings > 0 {
            let rise = check.rise_time();
            let hold = rise.saturating_mul(1 << doublings);
            self.held_until = now.saturating_add(hold.min(LONGEST_HOLD.max(rise)));
        }
        self.change(State::Down, now);
    }

    fn change(&mut self, state: State, now: Duration) {
        self.state = state;
        self.since = now;
        self.changes += 1;
    }

    /// Whether it is well.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when it is so.
    pub const fn since(&self) -> Duration {
        self.since
    }

    /// How often that has changed, the first answer included.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// The weight that it last wanted.
    pub const fn weight(&self) -> Option<u16> {
        self.weight
    }

    /// Whether it answers well enough, and is only kept down for having fallen often.
    pub const fn is_held(&self, check: &HealthCheck) -> bool {
        matches!(self.state, State::Down) && self.last_good && self.streak >= check.rise
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Answer = Answer::Good { weight: None };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// An answer each second: `+` and `-`; what each makes of it: up, down, held.
    fn run(check: &HealthCheck, health: &mut Health, answers: &str, start: u64) -> String {
        let mut result = String::new();
        for (n, answer) in (start..).zip(answers.chars()) {
            let answer = if answer == '+' { GOOD } else { Answer::Bad };
            health.answer(check, answer, seconds(n));
            result.push(match health.state() {
                State::Unchecked => '?',
                State::Up => 'u',
                State::Down if health.is_held(check) => 'h',
                State::Down => 'd',
            });
        }
        result
    }

    #[test]
    fn it_takes_enough_answers_in_a_row() {
        let check = HealthCheck::new(Probe::Tcp);
        for (answers, states) in [
            ("+", "u"),
            ("-", "d"),
            ("+--+--+", "uuuuuuu"),
            ("+---+-++", "uuuddddu"),
            ("---++", "ddddu"),
            ("-+-+-++", "ddddddu"),
        ] {
            assert_eq!(run(&check, &mut Health::default(), answers, 0), states, "{answers}");
        }
        let mut health = Health::known(State::Down, None, seconds(1));
        assert_eq!(run(&check, &mut health, "+-++", 2), "dddu");
    }

    #[test]
    fn who_falls_often_is_held_down_longer_each_time() {
        let check = HealthCheck { interval: seconds(1), ..HealthCheck::new(Probe::Tcp) };
        let mut health = Health::default();
        let mut now = 0;
        let mut held = Vec::new();
        run(&check, &mut health, "+", now);
        for _ in 0..10 {
            now += 10;
            assert_eq!(run(&check, &mut health, "---", now), "uud");
            let down = health.since().as_secs();
            now = down + 1;
            while run(&check, &mut health, "+", now) != "u" {
                now += 1;
            }
            held.push(now - down);
        }
        assert_eq!(held, [2, 2, 2, 4, 8, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn falls_are_forgotten() {
        let check = HealthCheck { interval: seconds(1), ..HealthCheck::new(Probe::Tcp) };
        let mut health = Health::default();
        for n in 0..10 {
            // Never more than three within ten minutes.
            assert_eq!(run(&check, &mut health, "++---++", n * 201), "uuuuddu", "{n}");
        }
    }

    #[test]
    fn the_last_weight_counts() {
        let check = HealthCheck::new(Probe::Tcp);
        let mut health = Health::default();
        let answers = [Answer::Good { weight: Some(7) }, Answer::Bad, GOOD];
        let weights = answers.map(|answer| {
            health.answer(&check, answer, seconds(1));
            health.weight()
        });
        assert_eq!(weights, [Some(7), Some(7), None]);
    }

    #[test]
    fn weights_follow_in_steps_and_not_often() {
        let check = HealthCheck::new(Probe::Tcp);
        let mut health = Health::default();
        for (second, wants, has) in [
            (1, 100, 100),
            (2, 200, 100),
            (31, 109, 100),
            (32, 91, 100),
            (33, 90, 90),
            (62, 200, 90),
            (63, 200, 200),
            (64, 0, 0),
            (65, 3, 3),
            (66, 4, 3),
            (95, 4, 4),
        ] {
            health.answer(&check, Answer::Good { weight: Some(wants) }, seconds(second));
            assert_eq!(health.weight(), Some(has), "at {second}");
        }
        let known = Health::known(State::Up, health.weight(), seconds(90));
        assert_eq!(
            (known.state(), known.weight(), known.since()),
            (State::Up, Some(4), seconds(90))
        );
    }

    #[test]
    fn who_was_up_at_the_restart_falls_as_any_other() {
        let check = HealthCheck::new(Probe::Tcp);
        let mut health = Health::known(State::Up, None, seconds(1));
        assert_eq!(run(&check, &mut health, "--+---", 2), "uuuuud");
    }

    proptest! {
        /// Against the rule said in another way: over all answers so far, not one after another.
        #[test]
        fn a_change_has_its_reason(
            answers in prop::collection::vec(any::<bool>(), 1..200),
            rise in 1..5_u32,
            fall in 1..5_u32,
            interval in 1..100_u64,
        ) {
            let check = HealthCheck {
                rise, fall, interval: seconds(interval), ..HealthCheck::new(Probe::Tcp)
            };
            let mut health = Health::default();
            let mut falls: Vec<Duration> = Vec::new();
            for (n, good) in answers.iter().enumerate() {
                let before = health.clone();
                let now = seconds(n as u64 * interval);
                health.answer(&check, if *good { GOOD } else { Answer::Bad }, now);
                let row = |count: u32, wanted: bool| {
                    answers[..=n].iter().rev().take(count as usize).filter(|one| **one == wanted)
                        .count() == count as usize
                };
                match (before.state(), health.state()) {
                    (State::Unchecked, state) => {
                        prop_assert_eq!(state == State::Up, *good);
                    }
                    (State::Up, State::Down) => {
                        prop_assert!(row(fall, false));
                        falls.push(now);
                    }
                    (State::Up, _) => prop_assert!(!row(fall, false)),
                    (State::Down, State::Up) => {
                        prop_assert!(row(rise, true));
                        prop_assert!(now - before.since() >= Duration::ZERO);
                    }
                    (State::Down, _) => {
                        // Enough good answers: then only damping holds it, and not for ever.
                        let lately = falls.iter().filter(|at| now - **at < 2 * WINDOW).count();
                        let longest = LONGEST_HOLD.max(check.rise_time());
                        prop_assert!(
                            !row(rise, true)
                                || lately > FREE_FALLS && now - health.since() < longest
                        );
                    }
                }
                prop_assert_eq!(health.changes() - before.changes(),
                    u64::from(before.state() != health.state()));
            }
        }
    }
}
