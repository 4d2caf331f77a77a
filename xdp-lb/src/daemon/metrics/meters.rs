//! What the daemon itself does, counted as it happens.

use std::{fmt, sync::Arc, time::Duration};

use xdp_lb_api::prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the times that a change takes, in seconds: from a hundred microseconds, which one
/// backend takes, to some seconds for hundreds of thousands.
const TIMES: [f64; 14] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Part of a change.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Step {
    Compute,
    Write,
}

impl EncodeLabelSet for Step {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Compute => "compute",
            Self::Write => "write",
        };
        [("step", name)].encode(encoder)
    }
}

fn histogram() -> Histogram {
    Histogram::new(TIMES)
}

/// What the daemon's writer counts.
#[derive(Clone, Debug)]
pub(in super::super) struct Meters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    took: Family<Step, Histogram>,
    operations: Counter,
    failures: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        let took = Family::new_with_constructor(histogram as fn() -> Histogram);
        // There from the start, so that rates begin at nothing.
        drop(took.get_or_create(&Step::Compute));
        drop(took.get_or_create(&Step::Write));
        let (operations, failures) = (Counter::default(), Counter::default());
        Self(Arc::new(Inner { took, operations, failures }))
    }
}

impl Meters {
    /// A change was computed and written, in so many operations.
    pub(in super::super) fn synced(&self, compute: Duration, write: Duration, operations: usize) {
        self.0.took.get_or_create(&Step::Compute).observe(compute.as_secs_f64());
        self.0.took.get_or_create(&Step::Write).observe(write.as_secs_f64());
        self.0.operations.inc_by(operations as u64);
    }

    /// The tables could not be brought up to date.
    pub(in super::super) fn failed(&self) {
        self.0.failures.inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Inner { took, operations, failures } = &*self.0;
        registry.register_with_unit(
            "xdp_lb_sync_duration",
            "Time to compute and to write a change of the data path's tables",
            Unit::Seconds,
            took.clone(),
        );
        registry.register(
            "xdp_lb_sync_operations",
            "Operations that changes of the tables took",
            operations.clone(),
        );
        registry.register(
            "xdp_lb_sync_failures",
            "How often the tables could not be brought up to date",
            failures.clone(),
        );
    }
}
