//! Who is to blame for a connection that ended.

use std::{net::SocketAddr, time::Instant};

use super::pool::Change;
use crate::lab::Loss;

/// A backend that a service's file did not name for a while.
#[derive(Debug)]
struct Out {
    frontends: [SocketAddr; 2],
    node: &'static str,
    /// From before the file was written that left it out,
    from: Instant,
    /// when the tables said the same,
    force: Option<Instant>,
    /// and until after they named it again
    to: Option<Instant>,
}

/// Knows when which backend was out.
#[derive(Debug, Default)]
pub(super) struct Judge(Vec<Out>);

/// How many connections ended, and why.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Verdict {
    /// Their own backend had been removed
    pub(super) removed: usize,
    /// Their backend was there
    pub(super) broken: usize,
}

impl Judge {
    /// A file is about to be written.
    pub(super) fn begins(&mut self, change: &Change, now: Instant) {
        let frontends = change.frontends;
        let out = |&node| Out { frontends, node, from: now, force: None, to: None };
        self.0.extend(change.removed.iter().map(out));
    }

    /// The tables say what the file says.
    pub(super) fn is_in_force(&mut self, change: &Change, now: Instant) {
        let ours = self.0.iter_mut().filter(|out| out.frontends == change.frontends);
        for out in ours {
            out.force.get_or_insert(now);
            if change.added.contains(&out.node) {
                out.to.get_or_insert(now);
            }
        }
    }

    /// Whether a connection's own backend was out when it ended, or since it was well.
    pub(super) fn excuses(&self, loss: &Loss) -> bool {
        self.0.iter().filter(|out| out.frontends.contains(&loss.server)).any(|out| {
            let began = out.from <= loss.lost;
            match &loss.backend {
                Some(node) => node == out.node && began && out.to.is_none_or(|to| loss.good <= to),
                // Nobody knows whose it was: one that was removed while it began.
                None => began && out.force.is_none_or(|force| loss.good <= force),
            }
        })
    }

    pub(super) fn judge(&self, losses: &[Loss]) -> Verdict {
        let removed = losses.iter().filter(|loss| self.excuses(loss)).count();
        Verdict { removed, broken: losses.len() - removed }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::demo::handover::pool::Pools;

    /// A change that removes a backend, and the one that puts it back.
    fn changes() -> (Change, Change) {
        let mut pools = Pools::new(true);
        let removes = loop {
            let change = pools.next();
            pools.make(&change);
            if !change.removed.is_empty() && change.added.is_empty() {
                break change;
            }
        };
        let adds = Change { removed: vec![], added: removes.removed.clone(), ..removes.clone() };
        (removes, adds)
    }

    #[test]
    fn only_a_backends_own_absence_is_an_excuse() {
        let (removes, adds) = changes();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut judge = Judge::default();
        judge.begins(&removes, at(10));
        judge.is_in_force(&removes, at(11));
        judge.begins(&adds, at(20));
        judge.is_in_force(&adds, at(21));
        let node = removes.removed[0];
        let [server, other] = [removes.frontends[0], "192.0.2.1:80".parse().unwrap()];
        let excuses = |server, backend: Option<&str>, good, lost| {
            let backend = backend.map(str::to_owned);
            judge.excuses(&Loss {
                server,
                backend,
                good: at(good),
                lost: at(lost),
                how: String::new(),
            })
        };
        assert!(excuses(server, Some(node), 9, 12));
        assert!(excuses(server, Some(node), 9, 25), "found out late");
        assert!(!excuses(server, Some(node), 5, 9), "before");
        assert!(!excuses(server, Some(node), 22, 23), "after");
        assert!(!excuses(server, Some("another"), 9, 12));
        assert!(!excuses(other, Some(node), 9, 12), "another service");
        assert!(excuses(server, None, 9, 12));
        assert!(!excuses(server, None, 15, 16), "begun long after the removal");
    }
}
