//! Changes and counters as they happen (server-sent events).

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, watch},
    time::{Interval, MissedTickBehavior, interval},
};
use utoipa::IntoParams;

use super::Api;
use crate::{
    ApiError, Control, Problem,
    extract::Params,
    view::{self, EventView, Services},
};

/// Longest time between two sets of counters, in seconds.
const LONGEST: u32 = 3600;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamParams {
    /// Send all counters every so many seconds; never where it is left out
    #[param(minimum = 1, maximum = 3600)]
    counters: Option<u32>,
}

/// Changes and counters as they happen, as server-sent events
///
/// Each begins with all services as events `service`. Then come: `service` (created or changed, a
/// ServiceView), `removed` (a service's name), `state` (the data path changed: a StatusView), `event`
/// (an EventView), `lost` (how many events were not sent, since they were not read in time),
/// `counters` (a CountersView).
#[utoipa::path(
    get, path = "/stream", tag = "instance", params(StreamParams),
    responses(
        (status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream(
    State(api): State<Api>,
    Params(params): Params<StreamParams>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let counters = match params.counters {
        Some(seconds @ 1..=LONGEST) => Some(ticks(seconds)),
        Some(_) => {
            let text = format!("counters: write a number of seconds from 1 to {LONGEST}");
            return Err(ApiError::Parameter(text));
        }
        None => None,
    };
    let mut services = api.control.services();
    // Everything that there is counts as a change.
    services.mark_changed();
    let watcher = Watcher {
        services,
        state: api.control.state(),
        events: Some(api.control.follow()),
        control: api.control,
        counters,
        seen: Arc::default(),
        ready: VecDeque::new(),
    };
    let events = stream::unfold(watcher, |mut watcher| async {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn ticks(seconds: u32) -> Interval {
    let mut ticks = interval(Duration::from_secs(seconds.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits for what a client wants to know.
struct Watcher {
    control: Arc<dyn Control>,
    services: watch::Receiver<Arc<Services>>,
    state: watch::Receiver<Arc<view::State>>,
    /// Nothing where there will be no more
    events: Option<broadcast::Receiver<EventView>>,
    counters: Option<Interval>,
    /// What was sent already
    seen: Arc<Services>,
    ready: VecDeque<Event>,
}

impl Watcher {
    /// The next event; nothing where the daemon is gone.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            tokio::select! {
                changed = self.services.changed() => {
                    changed.ok()?;
                    self.compare();
                }
                changed = self.state.changed() => {
                    changed.ok()?;
                    let services = self.services.borrow().by_name.len();
                    let status = self.state.borrow_and_update().status(services);
                    self.ready.extend(event("state", &status));
                }
                happened = received(&mut self.events) => match happened {
                    Ok(one) => self.ready.extend(event("event", &one)),
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        self.ready.extend(event("lost", &count));
                    }
                    Err(broadcast::error::RecvError::Closed) => self.events = None,
                },
                () = due(&mut self.counters) => {
                    if let Ok(counters) = self.control.counters().await {
                        self.ready.extend(event("counters", &counters));
                    }
                }
            }
        }
    }

    /// What is new against what was sent.
    fn compare(&mut self) {
        let now = self.services.borrow_and_update().clone();
        for (name, service) in &now.by_name {
            let before = self.seen.by_name.get(name);
            // Unchanged ones are mostly the very same.
            let same = |before| Arc::ptr_eq(before, service) || before == service;
            if !before.is_some_and(same) {
                self.ready.extend(event("service", &**service));
            }
        }
        for name in self.seen.by_name.keys().filter(|name| !now.by_name.contains_key(*name)) {
            self.ready.extend(event("removed", name));
        }
        self.seen = now;
    }
}

/// An event; all that is sent can be written as JSON.
fn event(name: &str, data: &(impl Serialize + ?Sized)) -> Option<Event> {
    Event::default().event(name).json_data(data).ok()
}

async fn received(
    events: &mut Option<broadcast::Receiver<EventView>>,
) -> Result<EventView, broadcast::error::RecvError> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn due(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
