//! What happened lately, for those who ask.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::broadcast;
use xdp_lb_api::{
    rfc3339,
    view::{EventKind, EventView},
};

/// Events that are kept.
const KEPT: usize = 1000;
/// Events that a slow listener may be behind.
const BEHIND: usize = 256;

/// The last events, and how many there were.
#[derive(Default)]
struct Kept {
    events: VecDeque<EventView>,
    last: u64,
    counts: HashMap<EventKind, u64>,
}

/// What happened lately.
#[derive(Clone)]
pub(super) struct Journal {
    kept: Arc<Mutex<Kept>>,
    listeners: broadcast::Sender<EventView>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { kept: Arc::default(), listeners: broadcast::Sender::new(BEHIND) }
    }
}

impl Journal {
    /// Writes an event down; the oldest one gives way.
    pub(super) fn push(&self, kind: EventKind, message: impl Into<String>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        *kept.counts.entry(kind).or_default() += 1;
        let time = rfc3339(SystemTime::now());
        let event = EventView { number: kept.last, time, kind, message: message.into() };
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        // Under the lock, so that listeners get them in their order. Nobody need listen.
        let _ = self.listeners.send(event);
    }

    /// All that are kept, the oldest first.
    pub(super) fn events(&self) -> Vec<EventView> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).events.iter().cloned().collect()
    }

    /// How many there were of each kind, since the start.
    pub(super) fn counts(&self) -> HashMap<EventKind, u64> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// Those to come.
    pub(super) fn follow(&self) -> broadcast::Receiver<EventView> {
        self.listeners.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_events_are_kept_and_numbers_go_on() {
        let journal = Journal::default();
        for n in 1..=KEPT + 5 {
            journal.push(EventKind::Changed, n.to_string());
        }
        let events = journal.events();
        assert_eq!(events.len(), KEPT);
        assert_eq!((events[0].number, events[0].message.as_str()), (6, "6"));
        assert_eq!(events[KEPT - 1].number, KEPT as u64 + 5);
    }
}
