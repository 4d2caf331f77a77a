//! The daemon: one writer that keeps the data path equal to the configuration and the network.
//!
//! ```text
//! file ── Config ─┐
//!                 ├─► topology, Planner ─► operations ─► maps
//! netlink ─ View ─┘
//! ```
//! Whatever fails later, the last good state stays in the kernel.

mod devices;
mod error;
mod host;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};
use xdp_lb_plan::{Planner, maglev::HashKey};

pub use self::error::DaemonError;
use self::{
    host::{Event, Signals, Stamp, has_capabilities, notify},
    told::Told,
};
use crate::{
    config::{self, Attach, Config, MAX_FILE},
    dataplane::{Dataplane, raise_memory_limit},
    error::chain,
    maps::TableError,
    net::{Follower, Path, View, Why},
    pins::{LinkName, Pins},
    topology::{self, Slots, Unreachable},
};

/// How long the start waits for the kernel's routes.
const ASK: Duration = Duration::from_secs(30);
/// How long the start waits for the neighbours of backends to answer.
const SETTLE: Duration = Duration::from_secs(2);
/// Events that come together are handled together.
const BATCH: Duration = Duration::from_millis(5);
/// How often the tables are compared with what they should hold.
const COMPARE: Duration = Duration::from_secs(30);
/// How often the file is looked at, and the devices are compared with what is attached.
const LOOK: Duration = Duration::from_secs(1);

/// What a new hash key means.
const REKEYED: &str = "the hash key changes: flows may move to other backends";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file
    pub config: PathBuf,
    /// The pin directory
    pub pins: PathBuf,
    /// Whether a clean stop removes the data path
    pub detach_on_exit: bool,
}

/// Reads and checks a configuration file.
///
/// # Errors
///
/// Where it cannot be read, or has mistakes.
pub fn read_config(path: &std::path::Path) -> Result<Config, DaemonError> {
    let error = |source| DaemonError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(error)?.len();
    if length > MAX_FILE as u64 {
        return Err(error(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20))));
    }
    let text = std::fs::read_to_string(path).map_err(error)?;
    config::parse(&text).map_err(|mistakes| {
        DaemonError::Config(mistakes.in_file(&path.display().to_string()).to_string())
    })
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// Where it cannot start; nothing is left behind then, and what an earlier run left is as it was.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    // Before it is read: a change meanwhile must be seen as one.
    let file = Stamp::of(&options.config);
    let config = read_config(&options.config)?;
    if !nix::unistd::geteuid().is_root() && !has_capabilities() {
        return Err(DaemonError::Permission);
    }
    if let Err(error) = raise_memory_limit() {
        // Only kernels before 5.11 count maps against it, and they say so when a map is made.
        debug!("cannot raise the limit of locked memory: {error}");
    }
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let follower = Follower::start().await?;
    let destinations = topology::destinations(&config);
    follower.set_destinations(destinations.clone());
    let mut view = follower.view();
    for device in &config.devices {
        if !view.borrow().links.values().any(|link| link.name == device.name) {
            return Err(DaemonError::NoDevice(device.name.clone()));
        }
    }
    tokio::select! {
        () = settle(&mut view, &destinations) => {}
        () = signals.stop() => return Ok(()),
    }

    let pins = Pins::new(&options.pins);
    let existed = pins.exists()?;
    let _lock = pins.lock()?;
    let mut daemon = Daemon::open(config, pins.clone(), &options, file)?;
    let started = daemon.start(&view.borrow_and_update().clone());
    if let Err(error) = started {
        if !existed {
            drop(daemon);
            pins.clear()?;
        }
        return Err(error);
    }
    notify(sd_notify::NotifyState::Ready);
    daemon.serve(&follower, view, &mut signals).await;
    notify(sd_notify::NotifyState::Stopping);
    daemon.stop()
}

/// Waits until each destination has a path, or has had time to get one.
async fn settle(view: &mut watch::Receiver<Arc<View>>, destinations: &BTreeSet<IpAddr>) {
    let all = |view: &View, done: fn(&Path) -> bool| {
        destinations.iter().all(|to| view.paths.get(to).is_some_and(done))
    };
    // The kernel answers for each destination; a hundred thousand take seconds.
    let asked = |path: &Path| !matches!(path, Path::Unresolved { why: Why::Pending });
    let _ = timeout(ASK, view.wait_for(|view| all(view, asked))).await;
    // Neighbours that do not answer are told about below, one by one.
    let _ = timeout(SETTLE, view.wait_for(|view| all(view, |path| !unsettled(path)))).await;
}

/// Whether a path may still come by itself, very soon.
fn unsettled(path: &Path) -> bool {
    matches!(path, Path::Unresolved { why: Why::Pending | Why::NoNeighbour { .. } })
}

struct Daemon {
    options: Options,
    config: Config,
    dataplane: Dataplane,
    planner: Planner,
    slots: Slots,
    attached: BTreeMap<String, LinkName>,
    /// Modes that devices which run in another one were refused.
    refused: BTreeMap<String, Attach>,
    /// The network that the tables are up to date with; nothing where they are not.
    applied: Option<Arc<View>>,
    /// A new configuration that waits for paths to its backends, until then.
    next: Option<(Config, Instant)>,
    /// What was said already, so that it is said once.
    told: Told,
    since: Instant,
    compared: Instant,
    file: Stamp,
}

impl Daemon {
    fn open(
        config: Config,
        pins: Pins,
        options: &Options,
        file: Stamp,
    ) -> Result<Self, DaemonError> {
        let dataplane = Dataplane::open(pins, &config.limits)?;
        let key = HashKey::from(config.hash_key);
        let mut planner = Planner::new(dataplane.layout(), key, config.handover);
        let mut slots = Slots::default();
        if dataplane.adopted() {
            if let Err(unsound) = planner.adopt(&dataplane.arrays, Duration::ZERO) {
                // The old data path goes on; taking it over blindly could misdirect its flows.
                return Err(TableError::Unsound(unsound.to_string()).into());
            }
            info!("took over the running data path");
            slots = Slots::adopt(dataplane.device_slots()?);
            if dataplane.rekeyed(config.hash_key) {
                warn!("{REKEYED}");
            }
        }
        if !dataplane.fits(&config.limits) {
            warn!(
                "the limits of the configuration take effect once the data path is made anew: stop \
                   with --detach-on-exit, or run `xdp-lb clean`, then start"
            );
        }
        Ok(Self {
            file,
            options: options.clone(),
            config,
            dataplane,
            planner,
            slots,
            attached: BTreeMap::new(),
            refused: BTreeMap::new(),
            applied: None,
            next: None,
            told: Told::default(),
            since: Instant::now(),
            compared: Instant::now(),
        })
    }

    /// Fills the tables and attaches.
    ///
    /// Tables that an earlier run left are changed last, when nothing can fail any more but a device's
    /// path.
    fn start(&mut self, view: &View) -> Result<(), DaemonError> {
        if self.dataplane.adopted() {
            let before = self.dataplane.links()?;
            if let Err(error) = self.attach_all(view) {
                let new = self.attached.values().filter(|name| !before.contains(name));
                new.for_each(|name| drop(self.dataplane.detach(name)));
                return Err(error);
            }
            self.apply(view)?;
        } else {
            self.apply(view)?;
            self.attach_all(view)?;
        }
        self.detach_unwanted();
        let frontends: usize = self.config.services.iter().map(|one| one.frontends.len()).sum();
        info!(services = self.config.services.len(), frontends, "the data path is up");
        Ok(())
    }

    fn attach_all(&mut self, view: &View) -> Result<(), DaemonError> {
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let Some(link) = link else { return Err(DaemonError::NoDevice(device.name)) };
            let name = self.dataplane.attach(&device.name, link.index, device.xdp)?;
            Self::say_attached(&name);
            self.attached.insert(device.name, name);
        }
        Ok(())
    }

    /// Brings the tables up to date with configuration and network.
    fn apply(&mut self, view: &View) -> Result<(), DaemonError> {
        let started = Instant::now();
        let config = &self.config;
        self.slots.update(view);
        // Devices before the paths that name them.
        self.dataplane.configure(config.hash_key, config.icmp_errors_per_second)?;
        self.dataplane.set_devices(&self.slots.devices(view), &self.slots.of)?;
        let peers = self.dataplane.set_peers(&topology::peers(config));
        let slots = &self.slots;
        let path = |key: &_| topology::path(key, view, slots, &config.tunnel);
        let outcome = self.planner.apply(&config.services, &path, self.since.elapsed());
        let result = self.dataplane.run(&outcome.ops);
        let addresses = self.dataplane.set_addresses(&topology::addresses(config, view));
        if !outcome.ops.is_empty() {
            info!(operations = outcome.ops.len(), took = ?started.elapsed(), "tables written");
        }
        self.told.refused(outcome.refused);
        self.told.paths(self.obstacles(view));
        // None of them keeps the others from being up to date.
        Ok(result.and(peers).and(addresses)?)
    }

    /// What is in the way of each backend; nothing where there is a path, or may be soon.
    fn obstacles(&self, view: &View) -> BTreeMap<IpAddr, Option<String>> {
        let why_not = |key| match topology::usable(key, view, &self.slots, &self.config.tunnel) {
            Ok(_) | Err(Unreachable::Network(Why::Pending)) => None,
            Err(why) => Some(why.to_string()),
        };
        // Records of backends that were removed stay for a while; nobody misses a path to them.
        let wanted = topology::destinations(&self.config);
        let keys = self.planner.backends().map(|(_, key, _)| key);
        keys.filter(|key| wanted.contains(&key.identity.address))
            .map(|key| (key.identity.address, why_not(key)))
            .collect()
    }

    /// Serves events until a signal ends it.
    async fn serve(
        &mut self,
        follower: &Follower,
        mut view: watch::Receiver<Arc<View>>,
        signals: &mut Signals,
    ) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline =
                self.planner.deadline().map(|at| tokio::time::Instant::from(self.since + at));
            // A configuration that waits is looked at again when its time is over.
            let waiting = self.next.as_ref().map(|(_, until)| tokio::time::Instant::from(*until));
            let deadline = [deadline, waiting].into_iter().flatten().min();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = signals.next() => match event {
                    Event::Stop => return,
                    Event::Reload => self.reload(follower, &view.borrow().clone()).await,
                },
                changed = view.changed() => {
                    if changed.is_err() {
                        error!("the network is not followed any more; the last state stays");
                        return;
                    }
                    sleep(BATCH).await;
                }
                () = due => {}
                _ = look.tick() => {
                    if Stamp::of(&self.options.config) != self.file {
                        let now = view.borrow().clone();
                        self.reload(follower, &now).await;
                    }
                }
            }
            let now = view.borrow_and_update().clone();
            let reloaded = self.take_next(follower, &now);
            self.follow_devices(&now);
            let over = self.planner.deadline().is_some_and(|at| at <= self.since.elapsed());
            if !reloaded && !over && self.applied.as_ref() == Some(&now) {
                self.mend();
                continue;
            }
            match self.apply(&now) {
                Ok(()) => self.applied = Some(now),
                // Tried again at the next look.
                Err(error) => error!("tables are not up to date: {}", chain(&error)),
            }
        }
    }

    /// Compares the real tables with what they should hold, now and then, and repairs them.
    fn mend(&mut self) {
        if self.compared.elapsed() < COMPARE {
            return;
        }
        self.compared = Instant::now();
        self.drop_dead_links();
        let drift = self.planner.drift(&self.dataplane.arrays);
        if drift.is_empty() {
            return;
        }
        warn!(operations = drift.len(), "somebody else wrote to the tables; they are put right");
        if let Err(error) = self.dataplane.run(&drift) {
            error!("tables cannot be put right: {}", chain(&error));
        }
    }

    /// Takes a new configuration if it is sound; otherwise the one in force stays.
    async fn reload(&mut self, follower: &Follower, view: &View) {
        self.file = Stamp::of(&self.options.config);
        let path = self.options.config.clone();
        // A large file takes a while.
        let read = tokio::task::spawn_blocking(move || read_config(&path)).await;
        let config = match read {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => {
                error!("the new configuration is refused, the one before stays in force:\n{error}");
                return;
            }
            Err(error) => {
                error!(
                    "the new configuration cannot be read, the one before stays in force: {error}"
                );
                return;
            }
        };
        if config == self.config {
            self.next = None;
            return;
        }
        // A device in force may be gone for a while; a new one that is not there is a mistake.
        let known = |name: &str| {
            self.config.devices.iter().any(|device| device.name == name)
                || view.links.values().any(|link| link.name == name)
        };
        if let Some(device) = config.devices.iter().find(|device| !known(&device.name)) {
            let error = DaemonError::NoDevice(device.name.clone());
            error!("the new configuration is refused, the one before stays in force:\n{error}");
            return;
        }
        let mut destinations = topology::destinations(&config);
        // Those in force stay followed until the change.
        destinations.extend(topology::destinations(&self.config));
        follower.set_destinations(destinations);
        self.next = Some((config, Instant::now() + SETTLE));
    }

    /// Makes the new configuration the one in force, once its backends have paths or had their time
    /// to get one: a backend takes no flow that could not reach it. Returns whether that happened.
    fn take_next(&mut self, follower: &Follower, view: &View) -> bool {
        let Some((config, deadline)) = &self.next else { return false };
        let mut paths = topology::destinations(config).into_iter().map(|to| view.paths.get(&to));
        let settled = !paths.any(|path| path.is_none_or(unsettled));
        if !settled && Instant::now() < *deadline {
            return false;
        }
        let Some((config, _)) = self.next.take() else { return false };
        if !self.dataplane.fits(&config.limits) {
            warn!(
                "new limits take effect once the data path is made anew: stop with \
                   --detach-on-exit, then start"
            );
        }
        if config.hash_key != self.config.hash_key {
            warn!("{REKEYED}");
        }
        self.planner.configure(HashKey::from(config.hash_key), config.handover);
        follower.set_destinations(topology::destinations(&config));
        self.config = config;
        info!(services = self.config.services.len(), "configuration reloaded");
        self.applied = None;
        true
    }

    fn stop(self) -> Result<(), DaemonError> {
        if self.options.detach_on_exit {
            self.dataplane.remove()?;
            info!("stopped; the data path is removed");
        } else {
            info!("stopped; the data path goes on without the daemon");
        }
        Ok(())
    }
}
