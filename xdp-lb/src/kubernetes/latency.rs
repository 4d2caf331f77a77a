//! How long it takes until what the cluster says is in the maps.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use xdp_lb_api::view::{HistogramView, LatencyView};

/// Upper bounds of the buckets, in seconds: from half a millisecond, each about twice the one before.
const BOUNDS: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0,
    16.0, 32.0, 64.0,
];

/// Durations by buckets.
#[derive(Clone, Debug, Default)]
struct Histogram {
    /// Not cumulative; the last one is for what is above all bounds
    buckets: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket] += 1;
        self.sum += seconds;
    }

    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The quantile in seconds, by linear interpolation inside its bucket as Prometheus does it.
    fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile * count as f64;
        let mut below = 0.0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            let inside = *bucket as f64;
            if inside > 0.0 && below + inside >= rank {
                let lower = index.checked_sub(1).map_or(0.0, |one| BOUNDS[one]);
                let upper = BOUNDS.get(index).copied().unwrap_or(lower);
                return Some(lower + (upper - lower) * (rank - below) / inside);
            }
            below += inside;
        }
        BOUNDS.last().copied()
    }

    fn view(&self) -> HistogramView {
        let mut cumulative = 0;
        let buckets = BOUNDS.iter().zip(&self.buckets).map(|(bound, bucket)| {
            cumulative += bucket;
            (*bound, cumulative)
        });
        HistogramView {
            buckets: buckets.collect(),
            count: self.count(),
            sum: self.sum,
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
        }
    }
}

/// What waits to be in the maps.
#[derive(Debug)]
struct Pending {
    revision: u64,
    arrived: Vec<Instant>,
    triggered: Vec<SystemTime>,
}

/// Measures from a change's arrival, and from its cause, until the maps have it.
#[derive(Debug, Default)]
pub(super) struct Latency(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Pending>,
    /// When the maps were brought up to date last
    last: Option<SystemTime>,
    change: Histogram,
    trigger: Histogram,
}

impl Latency {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that came at these times are on their way as this revision.
    pub(super) fn sent(&self, revision: u64, arrived: Vec<Instant>, triggered: Vec<SystemTime>) {
        self.lock().pending.push_back(Pending { revision, arrived, triggered });
    }

    /// The maps have this revision.
    pub(super) fn applied(&self, revision: u64) {
        let mut state = self.lock();
        state.last = Some(SystemTime::now());
        while state.pending.front().is_some_and(|one| one.revision <= revision) {
            let Some(done) = state.pending.pop_front() else { return };
            for at in done.arrived {
                state.change.observe(at.elapsed());
            }
            for at in done.triggered {
                // A clock of another host may be ahead of ours.
                state.trigger.observe(at.elapsed().unwrap_or_default());
            }
        }
    }

    /// When the maps were brought up to date last.
    pub(super) fn last(&self) -> Option<SystemTime> {
        self.lock().last
    }

    /// How long the oldest change has waited.
    pub(super) fn waiting(&self) -> Option<Duration> {
        let state = self.lock();
        state.pending.iter().flat_map(|one| &one.arrived).map(Instant::elapsed).max()
    }

    pub(super) fn view(&self) -> LatencyView {
        let state = self.lock();
        LatencyView { change: state.change.view(), trigger: state.trigger.view() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_that_holds_them() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for millis in 1..=100 {
            histogram.observe(Duration::from_millis(millis));
        }
        let (p50, p99) = (histogram.quantile(0.5).unwrap(), histogram.quantile(0.99).unwrap());
        assert!((0.032..=0.064).contains(&p50), "{p50}");
        assert!((0.064..=0.125).contains(&p99), "{p99}");
        let view = histogram.view();
        assert_eq!((view.count, view.buckets.last().unwrap().1), (100, 100));
        assert!((view.sum - 5.05).abs() < 1e-9, "{}", view.sum);
        histogram.observe(Duration::from_secs(1000));
        assert_eq!(histogram.quantile(1.0), Some(64.0), "beyond all bounds");
        assert_eq!(histogram.view().buckets.last().unwrap().1, 100);
    }

    #[test]
    fn what_is_applied_together_is_measured_once() {
        let latency = Latency::default();
        let now = Instant::now();
        latency.sent(1, vec![now], vec![]);
        latency.sent(2, vec![now, now], vec![SystemTime::now() + Duration::from_secs(60)]);
        latency.sent(3, vec![now], vec![]);
        latency.applied(2);
        latency.applied(2);
        let view = latency.view();
        assert_eq!((view.change.count, view.trigger.count), (3, 1));
        assert!(latency.waiting().is_some());
        latency.applied(3);
        assert_eq!((latency.view().change.count, latency.waiting()), (4, None));
    }
}
