//! Those who watch packets, and the programs that tell them.
//!
//! The first watcher has the monitoring programs loaded and attached; some moments after the last one
//! the plain programs run again. Should the daemon end meanwhile, the programs stay, and tell nothing
//! once nobody prolongs their time ([`LEASE`]).

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{info, warn};
use xdp_lb_abi::monitor::{Event, WATCHERS};
use xdp_lb_api::{
    ApiError,
    monitor::{MonitorRequest, Seen},
    view::State,
};

use super::Daemon;
use crate::{
    dataplane::{MonitorSet, Monitored, next_event},
    error::chain,
    maps::TableError,
    monitor::{Known, Wanted, offset},
    pins::Pins,
};

/// How long the programs tell something without being told to go on.
const LEASE: Duration = Duration::from_secs(5);
/// How often they are, and watchers are told what they missed.
const TICK: Duration = Duration::from_secs(1);
/// Packets that a watcher may be behind.
const BEHIND: usize = 4096;
/// Packets that are read before anything else is looked at.
const AT_ONCE: usize = 1024;
/// Moments without a watcher after which the plain programs run again.
const LINGER: u32 = 3;

/// Asks the daemon's one writer to attach these programs, or the plain ones.
pub(super) struct Swap {
    pub(super) set: Option<Box<MonitorSet>>,
    pub(super) answer: oneshot::Sender<Result<(), String>>,
}

/// Somebody wants to watch.
pub(super) struct Subscribe {
    pub(super) request: MonitorRequest,
    pub(super) answer: oneshot::Sender<Result<mpsc::Receiver<Seen>, ApiError>>,
}

struct Watcher {
    wanted: Wanted,
    /// Since when; what was told before is not for it
    since: Duration,
    to: mpsc::Sender<Seen>,
    /// What it was not told since the last time it was told so
    lost: u64,
    /// Of the kernel's count, what it knows
    untold: u64,
}

/// While the programs run.
struct Running {
    ring: AsyncFd<RingBuf<MapData>>,
    monitored: Monitored,
    watchers: [Option<Watcher>; WATCHERS],
    known: Known,
    offset: Duration,
    idle: u32,
}

/// Serves watchers, until the daemon ends.
pub(super) struct Monitors {
    pub(super) pins: Pins,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) swap: mpsc::Sender<Swap>,
    pub(super) asked: mpsc::Receiver<Subscribe>,
}

impl Monitors {
    pub(super) async fn run(mut self) {
        while let Some(first) = self.asked.recv().await {
            match self.start().await {
                Ok(running) => self.serve(running, first).await,
                Err(error) => drop(first.answer.send(Err(error))),
            }
        }
    }

    /// Has the programs loaded and attached.
    async fn start(&mut self) -> Result<Running, ApiError> {
        let pins = self.pins.clone();
        let loaded = tokio::task::spawn_blocking(move || MonitorSet::open(&pins)).await;
        let (set, monitored, ring) = match loaded {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => return Err(ApiError::Unavailable(chain(&error))),
            Err(error) => return Err(ApiError::Unavailable(error.to_string())),
        };
        // SAFETY: the ring buffer has one descriptor, and keeps it open as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) };
        let ring = ring.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        self.attach(Some(set)).await.map_err(ApiError::Unavailable)?;
        info!("somebody watches packets: the programs that tell of them are attached");
        let known = Known::of(&self.state.borrow_and_update());
        let watchers = [const { None }; WATCHERS];
        Ok(Running { ring, monitored, watchers, known, offset: offset(), idle: 0 })
    }

    async fn attach(&self, set: Option<Box<MonitorSet>>) -> Result<(), String> {
        let stopping = || "the daemon is stopping".to_owned();
        let (answer, done) = oneshot::channel();
        self.swap.send(Swap { set, answer }).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    /// Serves watchers until there are none.
    async fn serve(&mut self, mut running: Running, first: Subscribe) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        running.take(first);
        if let Err(error) = self.follow(&mut running, &mut ticks).await {
            warn!("packets cannot be watched any more: {}", chain(&error));
        }
        // Whoever still watches sees the end of the stream.
        drop(running);
        match self.attach(None).await {
            Ok(()) => info!("nobody watches packets: the plain programs are attached again"),
            Err(error) => warn!("the programs that tell of packets stay attached: {error}"),
        }
    }

    async fn follow(
        &mut self,
        running: &mut Running,
        ticks: &mut Interval,
    ) -> Result<(), TableError> {
        while running.idle < LINGER {
            tokio::select! {
                Some(one) = self.asked.recv() => {
                    running.take(one);
                    running.say(true)?;
                }
                _ = ticks.tick() => {
                    if self.state.has_changed().unwrap_or(false) {
                        running.known = Known::of(&self.state.borrow_and_update());
                    }
                    running.tick()?;
                }
                ready = running.ring.readable_mut() => {
                    let Ok(mut ready) = ready else { return Ok(()) };
                    let mut packets = Vec::new();
                    while packets.len() < AT_ONCE {
                        let Some(packet) = next_event(ready.get_inner_mut()) else {
                            ready.clear_ready();
                            break;
                        };
                        packets.push(packet);
                    }
                    for (event, bytes) in packets {
                        running.tell(&event, &bytes);
                    }
                    // Others have work as well.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }
}

impl Running {
    /// Lets somebody watch, if there is room.
    fn take(&mut self, Subscribe { request, answer }: Subscribe) {
        let result = Wanted::new(request, &self.known).and_then(|wanted| {
            let free = self.watchers.iter_mut().enumerate().find(|(_, one)| one.is_none());
            let (number, free) = free.ok_or_else(|| {
                ApiError::Unavailable(format!("{WATCHERS} watch already: try again later"))
            })?;
            let untold = self.monitored.untold();
            let untold = untold.map_err(|error| ApiError::Unavailable(chain(&error)))?[number];
            let (to, seen) = mpsc::channel(BEHIND);
            let since = crate::clock::now();
            *free = Some(Watcher { wanted, since, to, lost: 0, untold });
            Ok(seen)
        });
        // Who asked may have gone: the next tick sees it.
        let _ = answer.send(result);
        self.idle = 0;
    }

    /// Prolongs the programs' time, forgets who has gone, tells what was missed.
    fn tick(&mut self) -> Result<(), TableError> {
        self.offset = offset();
        let untold = self.monitored.untold()?;
        for (one, untold) in self.watchers.iter_mut().zip(untold) {
            let Some(watcher) = one else { continue };
            watcher.lost += untold - std::mem::replace(&mut watcher.untold, untold);
            if watcher.lost > 0 && watcher.to.try_send(Seen::Lost(watcher.lost)).is_ok() {
                watcher.lost = 0;
            }
            if watcher.to.is_closed() {
                *one = None;
            }
        }
        self.idle = if self.watchers.iter().any(Option::is_some) { 0 } else { self.idle + 1 };
        self.say(self.idle == 0)
    }

    /// Says what is wanted.
    fn say(&mut self, wanted: bool) -> Result<(), TableError> {
        let watchers = self.watchers.iter().flatten();
        let capture = watchers.map(|one| one.wanted.capture()).max().unwrap_or(0);
        for (number, watcher) in self.watchers.iter().enumerate() {
            let filter = watcher.as_ref().map(|one| one.wanted.filter(&self.known));
            self.monitored.set_filter(number, filter.unwrap_or_default())?;
        }
        let until = crate::clock::now() + LEASE;
        self.monitored.watch(if wanted { until.as_nanos() as u64 } else { 0 }, capture)
    }

    /// Tells those of a packet who want to see it.
    fn tell(&mut self, event: &Event, bytes: &[u8]) {
        let time = UNIX_EPOCH + self.offset + Duration::from_nanos(event.time);
        let mut view = None;
        for (number, watcher) in self.watchers.iter_mut().enumerate() {
            let Some(watcher) = watcher else { continue };
            let late = Duration::from_nanos(event.time) < watcher.since;
            if event.watchers >> number & 1 == 0 || late {
                continue;
            }
            let packet = view.get_or_insert_with(|| self.known.view(event, bytes, time));
            if !watcher.wanted.lets_through(packet) {
                continue;
            }
            let Ok(place) = watcher.to.try_reserve() else {
                watcher.lost += 1;
                continue;
            };
            let mut packet = packet.clone();
            // Another watcher may have wanted more.
            packet.frame.truncate(2 * watcher.wanted.capture() as usize);
            place.send(Seen::Packet(Box::new(packet)));
        }
    }
}

impl Daemon {
    /// Attaches these programs, or the plain ones; where the former fails, the latter go on.
    pub(super) fn swap(&mut self, Swap { set, answer }: Swap) {
        // Some device may run the ones before still.
        let mut result = self.unwatch();
        if let (Ok(()), Some(set)) = (&result, set) {
            self.dataplane.monitor_with(Some(set));
            result = self.update_links();
            if result.is_err() {
                result = self.unwatch().and(result);
            }
        }
        // Who asked may have gone.
        let _ = answer.send(result);
    }

    /// Has the plain programs run. Those that tell of packets are kept until no device runs them: they
    /// would drop everything once their stages are gone.
    pub(super) fn unwatch(&mut self) -> Result<(), String> {
        if let Some(set) = self.dataplane.monitor_with(None) {
            self.monitor = Some(set);
        }
        if self.monitor.is_none() {
            return Ok(());
        }
        self.update_links()?;
        self.monitor = None;
        self.dataplane.retire_programs().map_err(|error| chain(&error))
    }

    /// Has every device run the programs that are to run; those whose link is gone get them when it is
    /// made anew.
    fn update_links(&mut self) -> Result<(), String> {
        let links: Vec<_> = self.attached.values().cloned().collect();
        let mut result = Ok(());
        for name in links {
            let egress = self.attach_egress(&name.device, name.ifindex);
            result = result.and(egress.map(drop).map_err(|error| chain(&error)));
            if !self.dataplane.is_attached(&name) {
                result = result.and(Err(format!("{} takes no other program", name.device)));
            }
        }
        result
    }
}
