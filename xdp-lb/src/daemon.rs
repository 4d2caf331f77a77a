//! The daemon: one writer that keeps the data path equal to the configuration and the network.
//!
//! ```text
//! file ── Config ─┐
//!                 ├─► topology, Planner ─► operations ─► maps
//! netlink ─ View ─┘
//! ```
//! Whatever fails later, the last good state stays in the kernel.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{error, info, warn};
use xdp_lb_plan::{Planner, Refused, maglev::HashKey};

use crate::{
    config::{self, Config, MAX_FILE},
    dataplane::{Dataplane, DataplaneError, chain, raise_memory_limit},
    net::{Follower, NetError, Path, View, Why},
    pins::{LinkName, PinError, Pins},
    topology::{self, Slots},
};

/// How long the start waits for the neighbours of backends to answer.
const SETTLE: Duration = Duration::from_secs(2);
/// Events that come together are handled together.
const BATCH: Duration = Duration::from_millis(5);
/// How often the file is looked at, and the devices are compared with what is attached.
const LOOK: Duration = Duration::from_secs(1);

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

/// Why the daemon cannot start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file
        path: PathBuf,
        /// The kernel's answer
        source: io::Error,
    },
    /// The file has mistakes: one line each.
    #[error("{0}")]
    Config(String),
    /// Not root.
    #[error("xdp-lb run needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission,
    /// The network cannot be followed.
    #[error("cannot follow the network: {0}")]
    Net(#[from] NetError),
    /// A device of the configuration is not there at the start.
    #[error("device {0} of the configuration does not exist; see `ip link`")]
    NoDevice(String),
    /// The data path cannot be set up.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The program cannot be attached.
    #[error("cannot attach to {0}")]
    Attach(#[from] crate::dataplane::AttachError),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The tables cannot be written.
    #[error(transparent)]
    Table(#[from] crate::maps::TableError),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signal(io::Error),
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
    let config = read_config(&options.config)?;
    if !nix::unistd::geteuid().is_root() && !has_capabilities() {
        return Err(DaemonError::Permission);
    }
    if let Err(error) = raise_memory_limit() {
        warn!("cannot raise the limit of locked memory: {error}");
    }
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let follower = Follower::start().await?;
    follower.set_destinations(topology::destinations(&config));
    let mut view = follower.view();
    for device in &config.devices {
        if !view.borrow().links.values().any(|link| link.name == device.name) {
            return Err(DaemonError::NoDevice(device.name.clone()));
        }
    }
    settle(&mut view).await;

    let pins = Pins::new(&options.pins);
    let existed = pins.exists();
    let _lock = pins.lock()?;
    let mut daemon = Daemon::open(config, pins.clone(), &options)?;
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
async fn settle(view: &mut watch::Receiver<Arc<View>>) {
    let settled = view.wait_for(|view| !view.paths.values().any(unsettled));
    // Those that do not answer are told about below, one by one.
    let _ = timeout(SETTLE, settled).await;
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
    /// A new configuration that waits for paths to its backends, until then.
    next: Option<(Config, Instant)>,
    /// What was said already, so that it is said once.
    told: Told,
    since: Instant,
    file: Stamp,
}

/// Messages that stand, by what they are about.
#[derive(Default)]
struct Told {
    refused: Vec<Refused>,
    unreachable: BTreeMap<String, String>,
    devices: BTreeMap<String, String>,
}

impl Daemon {
    fn open(config: Config, pins: Pins, options: &Options) -> Result<Self, DaemonError> {
        let dataplane = Dataplane::open(pins, &config.limits)?;
        let key = HashKey::from(config.hash_key);
        let mut planner = Planner::new(dataplane.layout(), key, config.handover);
        if dataplane.adopted() {
            if let Err(unsound) = planner.adopt(&dataplane.arrays, Duration::ZERO) {
                // The old data path goes on; taking it over blindly could misdirect its flows.
                return Err(crate::maps::TableError::Unsound(unsound.to_string()).into());
            }
            info!("took over the running data path");
        }
        if !dataplane.fits(&config.limits) {
            warn!(
                "the limits of the configuration take effect once the data path is made anew: stop \
                   with --detach-on-exit, or run `xdp-lb clean`, then start"
            );
        }
        Ok(Self {
            file: Stamp::of(&options.config),
            options: options.clone(),
            config,
            dataplane,
            planner,
            slots: Slots::default(),
            attached: BTreeMap::new(),
            next: None,
            told: Told::default(),
            since: Instant::now(),
        })
    }

    /// Fills the tables, then attaches.
    fn start(&mut self, view: &View) -> Result<(), DaemonError> {
        self.apply(view)?;
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let Some(link) = link else { return Err(DaemonError::NoDevice(device.name)) };
            let name = self.dataplane.attach(&device.name, link.index, device.xdp)?;
            self.say_attached(&name);
            self.attached.insert(device.name, name);
        }
        self.detach_unwanted();
        let frontends: usize = self.config.services.iter().map(|one| one.frontends.len()).sum();
        info!(services = self.config.services.len(), frontends, "the data path is up");
        Ok(())
    }

    fn say_attached(&self, name: &LinkName) {
        let mode = if name.native { "native XDP" } else { "generic XDP (slow)" };
        info!("{} runs in {mode}", name.device);
    }

    /// Brings the tables up to date with configuration and network.
    fn apply(&mut self, view: &View) -> Result<(), DaemonError> {
        let started = Instant::now();
        let config = &self.config;
        self.slots.update(view);
        // Devices before the paths that name them.
        self.dataplane.configure(config.hash_key, config.icmp_errors_per_second)?;
        self.dataplane.set_devices(&self.slots.devices(view), &self.slots.of)?;
        self.dataplane.set_peers(&topology::peers(config))?;
        let slots = &self.slots;
        let path = |key: &_| topology::path(key, view, slots, &config.tunnel);
        let outcome = self.planner.apply(&config.services, &path, self.since.elapsed());
        let result = self.dataplane.run(&outcome.ops);
        self.dataplane.set_addresses(&topology::addresses(config, view))?;
        if !outcome.ops.is_empty() {
            info!(operations = outcome.ops.len(), took = ?started.elapsed(), "tables written");
        }
        self.tell_refused(outcome.refused);
        self.tell_unreachable(view);
        Ok(result?)
    }

    fn tell_refused(&mut self, refused: Vec<Refused>) {
        for one in refused.iter().filter(|one| !self.told.refused.contains(one)) {
            error!(service = one.service, frontend = %one.frontend, "cannot be served: {}", one.refusal);
        }
        self.told.refused = refused;
    }

    fn tell_unreachable(&mut self, view: &View) {
        let mut now = BTreeMap::new();
        for (_, key, _) in self.planner.backends() {
            let address = key.identity.address;
            if let Err(why) = topology::usable(key, view, &self.slots, &self.config.tunnel) {
                now.insert(address.to_string(), why.to_string());
            }
        }
        for (address, why) in &now {
            if self.told.unreachable.get(address) != Some(why) {
                warn!("no path to {address}: {why}");
            }
        }
        for address in self.told.unreachable.keys().filter(|address| !now.contains_key(*address)) {
            info!("there is a path to {address} again");
        }
        self.told.unreachable = now;
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
                    Event::Reload => self.reload(follower).await,
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
                        self.reload(follower).await;
                    }
                }
            }
            let now = view.borrow_and_update().clone();
            self.take_next(follower, &now);
            self.follow_devices(&now);
            if let Err(error) = self.apply(&now) {
                error!("tables are not up to date: {}", chain(&error));
            }
        }
    }

    /// Takes a new configuration if it is sound; otherwise the one in force stays.
    async fn reload(&mut self, follower: &Follower) {
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
        let mut destinations = topology::destinations(&config);
        // Those in force stay followed until the change.
        destinations.extend(topology::destinations(&self.config));
        follower.set_destinations(destinations);
        self.next = Some((config, Instant::now() + SETTLE));
    }

    /// Makes the new configuration the one in force, once its backends have paths or had their time
    /// to get one: a backend takes no flow that could not reach it.
    fn take_next(&mut self, follower: &Follower, view: &View) {
        let Some((config, deadline)) = &self.next else { return };
        let mut paths = topology::destinations(config).into_iter().map(|to| view.paths.get(&to));
        let settled = !paths.any(|path| path.is_none_or(unsettled));
        if !settled && Instant::now() < *deadline {
            return;
        }
        let Some((config, _)) = self.next.take() else { return };
        if !self.dataplane.fits(&config.limits) {
            warn!(
                "new limits take effect once the data path is made anew: stop with \
                   --detach-on-exit, then start"
            );
        }
        if config.hash_key != self.config.hash_key {
            warn!("the hash key changes: flows may move to other backends");
        }
        self.planner.configure(HashKey::from(config.hash_key), config.handover);
        follower.set_destinations(topology::destinations(&config));
        self.config = config;
        info!(services = self.config.services.len(), "configuration reloaded");
    }

    /// Attaches to devices that came, forgets those that went.
    fn follow_devices(&mut self, view: &View) {
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let ifindex = link.map(|link| link.index);
            let have = self.attached.get(&device.name).map(|name| name.ifindex);
            if have.is_some() && ifindex != have {
                warn!("device {} is gone", device.name);
                if let Some(name) = self.attached.remove(&device.name)
                    && let Err(error) = self.dataplane.detach(&name)
                {
                    error!("{error}");
                }
            }
            let Some(ifindex) = ifindex else { continue };
            if self.attached.contains_key(&device.name) {
                continue;
            }
            match self.dataplane.attach(&device.name, ifindex, device.xdp) {
                Ok(name) => {
                    self.say_attached(&name);
                    self.attached.insert(device.name.clone(), name);
                    self.told.devices.remove(&device.name);
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.told.devices.get(&device.name) != Some(&text) {
                        error!("cannot attach to {text}");
                        self.told.devices.insert(device.name.clone(), text);
                    }
                }
            }
        }
        self.detach_unwanted();
    }

    /// Detaches from devices that the configuration does not name any more.
    fn detach_unwanted(&mut self) {
        let wanted = |name: &str| self.config.devices.iter().any(|device| device.name == name);
        let links = match self.dataplane.links() {
            Ok(links) => links,
            Err(error) => return error!("{error}"),
        };
        for name in links.into_iter().filter(|name| !wanted(&name.device)) {
            match self.dataplane.detach(&name) {
                Ok(()) => info!("detached from {}", name.device),
                Err(error) => error!("{error}"),
            }
        }
        self.attached
            .retain(|name, _| self.config.devices.iter().any(|device| device.name == *name));
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

/// What tells a changed file from an unchanged one, also when it is replaced by a rename.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Stamp(Option<(SystemTime, u64, u64)>);

impl Stamp {
    fn of(path: &std::path::Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.and_then(|one| Some((one.modified().ok()?, one.len(), one.ino()))))
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// What a signal asks for.
enum Event {
    Stop,
    Reload,
}

impl Signals {
    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hang_up.recv() => Event::Reload,
        }
    }
}

/// Whether this process may do without being root.
fn has_capabilities() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: u64 = 1 << 12 | 1 << 38 | 1 << 39; // NET_ADMIN, PERFMON, BPF
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    bits & NEEDED == NEEDED || bits & SYS_ADMIN != 0
}

/// Tells systemd, where it asked to be told (sd_notify(3)).
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("cannot notify systemd: {error}");
    }
}
