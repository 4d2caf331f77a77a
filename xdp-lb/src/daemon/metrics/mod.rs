//! Metrics for Prometheus: read when they are asked for, so that they cost nothing otherwise.
//!
//! Three sources: what the daemon tells the API anyway, what only its writer knows ([`Measured`]), and
//! the pinned maps, which are read on a thread of their own.

mod choice;
mod describe;
mod meters;
mod page;
mod process;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tracing::warn;
use xdp_lb_abi::{Reason, SocketReason, Traffic};
use xdp_lb_api::{
    ApiError,
    prometheus_client::registry::Registry,
    view::{EventKind, State},
};

pub(super) use self::meters::Meters;
use self::{
    choice::{Choice, choose},
    describe::Counted,
    page::Page,
};
use super::journal::Journal;
use crate::{
    config::MetricsConfig,
    dataplane::{Counters, Fill, ProgramFigures, SocketCounters, fill},
    error::chain,
    maps::TableError,
    pins::Pins,
};

/// How long the daemon's writer may take to answer; it may be busy with a large change.
const PATIENCE: Duration = Duration::from_secs(5);
/// The entries of tables are counted again after this time, and after many times what that took.
const FRESH: Duration = Duration::from_secs(10);
const TIMES: u32 = 50;

/// What only the daemon's writer knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) programs: Vec<ProgramFigures>,
    /// The tables that it fills itself
    pub(super) tables: Vec<Fill>,
    /// Recorded flows by frontend
    pub(super) recorded: BTreeMap<String, u64>,
    /// Looks that found the table of recorded flows full
    pub(super) times_full: u64,
    /// UDP sockets that were ended, since their backend was gone
    pub(super) sockets_ended: u64,
}

/// Entries of tables as they were counted last.
#[derive(Debug, Default)]
struct Counts {
    fill: Vec<Fill>,
    /// When to count again
    next: Option<Instant>,
}

/// Reads all metrics.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) pins: Pins,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) config: watch::Receiver<MetricsConfig>,
    pub(super) ask: mpsc::Sender<oneshot::Sender<Measured>>,
    pub(super) journal: Journal,
    pub(super) meters: Meters,
    started: SystemTime,
    counts: Arc<Mutex<Counts>>,
    /// Whether it was said that something is left out
    said: Arc<AtomicBool>,
}

impl Source {
    pub(super) fn new(
        pins: Pins,
        state: watch::Receiver<Arc<State>>,
        config: watch::Receiver<MetricsConfig>,
        ask: mpsc::Sender<oneshot::Sender<Measured>>,
        journal: Journal,
        meters: Meters,
    ) -> Self {
        let started = SystemTime::now();
        let (counts, said) = (Arc::default(), Arc::default());
        Self { pins, state, config, ask, journal, meters, started, counts, said }
    }

    /// Reads everything now. Where the writer is busy for long, what only it knows is left out.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be read.
    pub(super) async fn read(&self) -> Result<Registry, ApiError> {
        let (answer, measured) = oneshot::channel();
        let asked = self.ask.send(answer).await.is_ok();
        let measured = if asked { timeout(PATIENCE, measured).await.ok() } else { None };
        let measured = measured.and_then(Result::ok);
        let source = self.clone();
        let page = tokio::task::spawn_blocking(move || source.page(measured.as_ref())).await;
        let unavailable = |text| ApiError::Unavailable(text);
        let page = page.map_err(|error| unavailable(error.to_string()))?;
        let page = page.map_err(|error| unavailable(chain(&error)))?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(page));
        self.meters.register(&mut registry);
        Ok(registry)
    }

    fn page(&self, measured: Option<&Measured>) -> Result<Page, TableError> {
        let mut page = Page::default();
        let state = self.state.borrow().clone();
        let choice = choose(&state, *self.config.borrow());
        self.tell(&choice);
        let none = BTreeMap::new();
        let recorded = measured.map_or(&none, |one| &one.recorded);
        describe::traffic(&mut page, &choice, &count(&self.pins, &choice)?, recorded);
        describe::states(&mut page, &state, &choice);
        describe::tables(&mut page, &self.tables());
        if let Some(measured) = measured {
            describe::tables(&mut page, &measured.tables);
            describe::programs(&mut page, &measured.programs, bpf_stats());
            describe::full(&mut page, measured.times_full);
            describe::sockets_ended(&mut page, measured.sockets_ended);
        }
        let counts = self.journal.counts();
        let kinds = EventKind::ALL.into_iter();
        let counts = kinds.map(|kind| (kind, counts.get(&kind).copied().unwrap_or(0)));
        describe::events(&mut page, counts);
        describe::build(&mut page);
        process::add(&mut page, self.started);
        Ok(page)
    }

    /// Says once that something has no series.
    fn tell(&self, choice: &Choice<'_>) {
        let config = *self.config.borrow();
        let [frontends, services, backends] = choice.left_out;
        let backends = if config.per_backend { backends } else { 0 };
        let missing = frontends + services + backends > 0;
        if missing && !self.said.swap(missing, Ordering::Relaxed) {
            warn!(
                frontends,
                services,
                backends,
                "some have no metrics, since there may be {} series: raise metrics.maxSeries",
                config.max_series
            );
        }
        if !missing {
            self.said.store(false, Ordering::Relaxed);
        }
    }

    /// How full the hash tables are, as they were counted a short while ago.
    fn tables(&self) -> Vec<Fill> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.next.is_none_or(|next| next <= Instant::now()) {
            let began = Instant::now();
            match fill(&self.pins) {
                Ok(fill) => counts.fill = fill,
                Err(error) => warn!("entries of tables cannot be counted: {}", chain(&error)),
            }
            counts.next = Some(Instant::now() + (began.elapsed() * TIMES).max(FRESH));
        }
        counts.fill.clone()
    }
}

/// Reads the counters of what was chosen.
fn count(pins: &Pins, choice: &Choice<'_>) -> Result<Counted, TableError> {
    let counters = Counters::open(pins)?;
    let mut counted = Counted::default();
    for one in &choice.frontends {
        let traffic = one.id.map_or(Ok(Traffic::default()), |id| counters.frontend(id - 1))?;
        counted.frontends.push(traffic);
    }
    for ids in choice.backends.values() {
        let mut sum = Traffic::default();
        for id in ids {
            sum = sum.plus(&counters.backend(*id)?);
        }
        counted.backends.push(sum);
    }
    for reason in Reason::ALL {
        counted.reasons.push((*reason, counters.reason(*reason)?));
    }
    let sockets = SocketCounters::open(pins)?;
    for result in SocketReason::ALL {
        counted.calls.push((*result, sockets.get(*result)?));
    }
    Ok(counted)
}

/// Whether the kernel keeps run-time statistics; nothing where it does not say.
fn bpf_stats() -> Option<bool> {
    let text = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").ok()?;
    Some(text.trim() != "0")
}
