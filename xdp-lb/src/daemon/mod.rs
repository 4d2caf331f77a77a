//! The daemon: one writer that keeps the data path equal to the configuration and the network.
//!
//! ```text
//! file ── Config ─┐
//! API ─── Keeper ─┼─► topology, Planner ─► operations ─► maps
//! cluster ── Side ─┤
//! netlink ─ View ─┘
//! ```
//! Whatever fails later, the last good state stays in the kernel.

mod control;
mod devices;
mod error;
mod health;
mod host;
mod journal;
mod keeper;
mod kubernetes;
mod measure;
mod metrics;
mod monitor;
pub mod nat;
mod publish;
mod replacement;
mod sockets;
mod sources;
pub mod sweep;
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
use xdp_lb_abi::Mode;
use xdp_lb_api::view::EventKind;
use xdp_lb_plan::{Planner, maglev::HashKey};

pub use self::error::DaemonError;
pub(crate) use self::host::has_capabilities;
use self::{
    control::{Call, Desk},
    host::{Event, Signals, Stamp, notify},
    journal::Journal,
    nat::NatSweep,
    replacement::Lack,
    sockets::Sockets,
    sources::Sources,
    sweep::Sweeper,
    told::Told,
};
use crate::{
    clock,
    config::{self, Attach, Config, MAX_FILE, ReplacementMode},
    dataplane::{Dataplane, MonitorSet, flow_key, raise_memory_limit},
    error::chain,
    health::{self as checks, Checks, Found},
    kubernetes::{Cluster, Pace, Settings},
    maps::TableError,
    net::{Follower, Path, View, Why},
    pins::{LinkName, Pins},
    state::Store,
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
/// Part of the time that goes into telling what the data path does: one of so many.
const TELLING: u32 = 20;

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
    /// Where what is set through the API is kept
    pub state: PathBuf,
    /// The API's socket, where it is not the configuration's
    pub socket: Option<PathBuf>,
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
    let mut config = read_config(&options.config)?;
    if !nix::unistd::geteuid().is_root() && !has_capabilities() {
        return Err(DaemonError::Permission);
    }
    if let Err(error) = raise_memory_limit() {
        // Only kernels before 5.11 count maps against it, and they say so when a map is made.
        debug!("cannot raise the limit of locked memory: {error}");
    }
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let lacks = replacement::fit(&mut config, &replacement::Here)?;
    replacement::tell(&lacks);
    let pins = Pins::new(&options.pins);
    let store = Store::new(options.state.clone());
    let existed = pins.exists()?;
    let journal = Journal::default();
    let say = kubernetes::teller(journal.clone());
    let state = options.state.clone();
    let mut cluster = Cluster::start(Settings::of(&config), existed, state, Pace::default(), say);
    let observer = cluster.observer();
    let mut desk =
        Desk::open(&config, pins.clone(), store, options.socket.clone(), journal, observer)?;
    let mut checks = Checks::start(checks::load(&options.state));
    let mut sources = Sources {
        file: config.services.clone(),
        api: desk.declared(),
        health: checks.found(),
        cluster: cluster.side(),
        ..Sources::default()
    };
    let config = Config { services: sources.services(), ..config };
    let follower = Follower::start().await?;
    let destinations = topology::destinations(&config);
    follower.set_destinations(destinations.clone());
    let mut view = follower.view();
    let probing = config.replacement.mode == Some(ReplacementMode::Probe);
    for device in config.devices.iter().filter(|_| !probing) {
        // A data path that runs on other devices goes on; this one is attached when it comes back.
        if !existed && !view.borrow().links.values().any(|link| link.name == device.name) {
            return Err(DaemonError::NoDevice(device.name.clone()));
        }
    }
    tokio::select! {
        () = settle(&mut view, &destinations) => {}
        () = signals.stop() => return Ok(()),
    }

    let _lock = pins.lock()?;
    let sources = (desk, sources, checks, cluster);
    let mut daemon = Daemon::open(config, pins.clone(), &options, file, sources)?;
    daemon.lacks = lacks;
    follower.set_destinations(daemon.followed(daemon.wanted.iter()));
    let started = daemon.start(&view.borrow_and_update().clone());
    if let Err(error) = started {
        if !existed {
            drop(daemon);
            pins.clear()?;
        }
        return Err(error);
    }
    daemon.publish();
    daemon.desk.serve();
    notify(sd_notify::NotifyState::Ready);
    daemon.serve(&follower, view, &mut signals).await?;
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

/// A configuration that waits for paths to its backends.
struct Next {
    config: Config,
    /// The addresses to which it needs paths
    wanted: BTreeSet<IpAddr>,
    /// Until then
    until: Instant,
    /// Whether it is worth telling: what the cluster changes by itself is not
    told: bool,
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
    /// The network whose paths the backends' records have, all of them
    pathed: Option<Arc<View>>,
    /// The addresses to which paths are needed
    wanted: BTreeSet<IpAddr>,
    /// A new configuration that waits.
    next: Option<Next>,
    /// What was said already, so that it is said once.
    told: Told,
    /// What the API was told is not up to date
    stale: bool,
    /// It is not told again before.
    tell: Instant,
    /// Devices by which answers of pods cannot leave, and why
    mute: BTreeMap<String, String>,
    desk: Desk,
    sources: Sources,
    cluster: Cluster,
    checks: Checks,
    /// Keeps what the checks found for the next start
    memory: watch::Sender<Arc<Found>>,
    /// Why the tables are not up to date
    failed: Option<String>,
    sweeper: Sweeper,
    nat: NatSweep,
    /// Programs that tell of packets, which a device may run still though nobody watches
    monitor: Option<Box<MonitorSet>>,
    sockets: Sockets,
    /// What this machine lacks of what is wanted
    lacks: Vec<Lack>,
    compared: Instant,
    file: Stamp,
}

impl Daemon {
    fn open(
        config: Config,
        pins: Pins,
        options: &Options,
        file: Stamp,
        (desk, sources, checks, cluster): (Desk, Sources, Checks, Cluster),
    ) -> Result<Self, DaemonError> {
        let sweeper = Sweeper::new(pins.clone());
        let nat = NatSweep::start(pins.clone());
        let sockets = Sockets::new(pins.clone());
        let dataplane = Dataplane::open(pins, &config.limits)?;
        let key = HashKey::from(config.hash_key);
        let mut planner = Planner::new(dataplane.layout(), key, config.handover);
        let mut slots = Slots::default();
        if dataplane.adopted() {
            if let Err(unsound) = planner.adopt(&dataplane.arrays, clock::now()) {
                // The old data path goes on; taking it over blindly could misdirect its flows.
                return Err(TableError::Unsound(unsound.to_string()).into());
            }
            info!("took over the running data path");
            if !sources.cluster.complete {
                // What of it is the cluster's, only the cluster can say.
                planner.hold();
            }
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
        let wanted = topology::destinations(&config);
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
            pathed: None,
            wanted,
            next: None,
            told: Told::new(desk.journal.clone()),
            stale: false,
            tell: Instant::now(),
            mute: BTreeMap::new(),
            desk,
            sources,
            cluster,
            checks,
            memory: checks::keep(options.state.clone()),
            failed: None,
            sweeper,
            nat,
            monitor: None,
            sockets,
            lacks: Vec::new(),
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
                self.do_without_packets(error)?;
            }
            self.apply(view, false)?;
        } else {
            self.apply(view, false)?;
            if let Err(error) = self.attach_all(view) {
                self.do_without_packets(error)?;
            }
        }
        // The tables are right by now.
        self.attach_sockets()?;
        self.look_for_orphans();
        self.detach_unwanted();
        self.dataplane.retire_programs()?;
        let frontends: usize = self.config.services.iter().map(|one| one.frontends.len()).sum();
        info!(services = self.config.services.len(), frontends, "the data path is up");
        Ok(())
    }

    /// Leaves what comes in by devices to kube-proxy, where the mode allows that.
    fn do_without_packets(&mut self, error: DaemonError) -> Result<(), DaemonError> {
        if let Some(lack) = replacement::fit_packets(&mut self.config, error)? {
            replacement::tell(std::slice::from_ref(&lack));
            self.lacks.push(lack);
            self.cluster.configure(Settings::of(&self.config));
        }
        Ok(())
    }

    fn attach_all(&mut self, view: &View) -> Result<(), DaemonError> {
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let Some(link) = link else {
                let missing = DaemonError::NoDevice(device.name);
                let probing = self.config.replacement.mode == Some(ReplacementMode::Probe);
                if !self.dataplane.adopted() || probing {
                    return Err(missing);
                }
                warn!("{missing}; it is attached once it is there");
                continue;
            };
            // First the way out: nothing is delivered to a pod before its answers can leave.
            self.attach_egress(&device.name, link.index)?;
            let name = self.dataplane.attach(&device.name, link.index, device.xdp)?;
            self.say_attached(&name);
            self.attached.insert(device.name, name);
        }
        Ok(())
    }

    /// Brings the tables up to date with configuration and network; `pathed` says whether nothing but
    /// services changed since the last time.
    fn apply(&mut self, view: &View, pathed: bool) -> Result<(), DaemonError> {
        let started = Instant::now();
        let config = &self.config;
        self.slots.update(config, view);
        if self.sources.cluster.complete && self.next.is_none() {
            self.planner.let_go();
        }
        let held = !self.planner.held().is_empty();
        let snat = self.planner.backends().any(|(_, key, _)| key.mode == Mode::Snat);
        // Devices before the paths that name them.
        let settings = |settings| topology::settings(settings, config, view, snat);
        self.dataplane.configure(
            config.hash_key,
            config.icmp_errors_per_second,
            self.nat.may_have_flows(),
            settings,
        )?;
        self.dataplane.set_devices(&self.slots.devices(view), &self.slots.of)?;
        let peers = self.dataplane.set_peers(&topology::peers(config));
        let pods = self.dataplane.set_pods(&topology::pod_networks(config));
        let sources = topology::sources(config);
        // A service must not name networks that are not there yet: nobody could use it.
        let added = self.dataplane.add_sources(&sources);
        let slots = &self.slots;
        let path = |key: &_| topology::path(key, view, slots, config);
        self.planner.set_node(topology::node(config, view));
        let computing = Instant::now();
        let outcome = if pathed {
            self.planner.apply_over_known_paths(&config.services, &path, clock::now())
        } else {
            self.planner.apply(&config.services, &path, clock::now())
        };
        let computed = computing.elapsed();
        let result = self.dataplane.run(&outcome.ops);
        self.dataplane.arrays.keep_ports(self.planner.frontends().map(|one| one.key.port()));
        let addresses = topology::addresses(config, view, self.planner.held());
        let addresses = self.dataplane.set_addresses(addresses);
        // Those of frontends that are kept are not known.
        let sources = if held { Ok(()) } else { self.dataplane.set_sources(&sources) };
        let sockets = self.configure_sockets();
        if !outcome.ops.is_empty() {
            self.look_for_orphans();
            let wrote = started.elapsed().saturating_sub(computed);
            self.desk.meters.synced(computed, wrote, outcome.ops.len());
            info!(operations = outcome.ops.len(), took = ?started.elapsed(), "tables written");
            self.sweeper.hurry();
        }
        self.told.refused(outcome.refused);
        self.retarget(view);
        // None of them keeps the others from being up to date.
        Ok(result.and(peers).and(pods).and(addresses).and(added).and(sources).and(sockets)?)
    }

    /// What is in the way of each backend; nothing where there is a path, or may be soon.
    fn obstacles(&self, view: &View) -> BTreeMap<IpAddr, Option<String>> {
        let why_not = |key| match topology::usable(key, view, &self.slots, &self.config) {
            Ok(_) | Err(Unreachable::Network(Why::Pending)) => None,
            Err(why) => Some(why.to_string()),
        };
        // Records of backends that were removed stay for a while; nobody misses a path to them.
        let keys = self.planner.backends().map(|(_, key, _)| key);
        keys.filter(|key| self.wanted.contains(&key.target()))
            .map(|key| (key.target(), why_not(key)))
            .collect()
    }

    /// Serves events until a signal ends it.
    ///
    /// # Errors
    ///
    /// Where a part of the daemon ended that it cannot be without.
    async fn serve(
        &mut self,
        follower: &Follower,
        mut view: watch::Receiver<Arc<View>>,
        signals: &mut Signals,
    ) -> Result<(), DaemonError> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.tell_when_due();
            let deadline = self
                .planner
                .deadline()
                .map(|at| tokio::time::Instant::now() + at.saturating_sub(clock::now()));
            // A configuration that waits is looked at again when its time is over.
            let waiting = self.next.as_ref().map(|one| tokio::time::Instant::from(one.until));
            let tell = self.stale.then(|| tokio::time::Instant::from(self.tell));
            let deadline = [deadline, waiting, tell].into_iter().flatten().min();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let sweep = tokio::time::Instant::from(self.sweeper.next());
            tokio::select! {
                event = signals.next() => match event {
                    Event::Stop => return Ok(()),
                    Event::Reload => self.reload(follower, &view.borrow().clone()).await,
                },
                call = self.desk.call() => match call {
                    Call::Ended => return Err(DaemonError::Ended("the API's keeper")),
                    Call::Declared => self.redeclare(follower),
                    Call::Tables(request) => {
                        self.show_tables(request);
                        continue;
                    }
                    Call::Swap(swap) => {
                        self.swap(swap);
                        continue;
                    }
                    Call::Measure(answer) => {
                        // Who asked may have gone.
                        let _ = answer.send(self.measure());
                        continue;
                    }
                },
                changed = self.checks.changed() => {
                    if !changed {
                        return Err(DaemonError::Ended("the health checks"));
                    }
                    self.recheck();
                }
                () = self.cluster.changed() => self.follow_cluster(follower),
                changed = view.changed() => {
                    if changed.is_err() {
                        return Err(DaemonError::Ended("the network's follower"));
                    }
                    sleep(BATCH).await;
                }
                () = due => {}
                () = sleep_until(sweep) => {
                    self.sweep();
                    continue;
                }
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
            let over = self.planner.deadline().is_some_and(|at| at <= clock::now());
            if !reloaded && !over && self.applied.as_ref() == Some(&now) {
                self.acknowledge();
                self.mend();
                continue;
            }
            let pathed = self.pathed.take().is_some_and(|before| Arc::ptr_eq(&before, &now));
            self.failed = match self.apply(&now, pathed) {
                Ok(()) => {
                    (self.applied, self.pathed) = (Some(now.clone()), Some(now));
                    self.acknowledge();
                    self.follow_sockets();
                    None
                }
                // Tried again at the next look.
                Err(error) => {
                    let text = format!("tables are not up to date: {}", chain(&error));
                    error!("{text}");
                    self.desk.meters.failed();
                    if self.failed.is_none() {
                        self.desk.journal.push(EventKind::Failed, &*text);
                    }
                    Some(text)
                }
            };
            self.stale = true;
        }
    }

    /// Tells the API what the data path does, where that has changed; with very many services, not each
    /// time at once.
    fn tell_when_due(&mut self) {
        if !self.stale || Instant::now() < self.tell {
            return;
        }
        let began = Instant::now();
        if let Some(view) = self.applied.clone() {
            self.told.paths(self.obstacles(&view));
        }
        self.publish();
        self.stale = false;
        self.tell = Instant::now() + began.elapsed() * TELLING;
    }

    /// Does some of the work on recorded flows, where it is due.
    fn sweep(&mut self) {
        let (key, idle) = (flow_key(self.config.hash_key), self.config.idle);
        let before = self.sweeper.found().clone();
        self.sweeper.step(&mut self.planner, &mut self.dataplane, key, idle);
        self.stale |= !Arc::ptr_eq(&before, self.sweeper.found());
    }

    /// Compares the real tables with what they should hold, now and then, and repairs them.
    fn mend(&mut self) {
        if self.compared.elapsed() < COMPARE {
            return;
        }
        self.compared = Instant::now();
        self.stale = true;
        self.dataplane.distrust_addresses();
        if self.monitor.is_some()
            && let Err(error) = self.unwatch()
        {
            warn!("the programs that tell of packets stay attached: {error}");
        }
        self.keep_attached();
        if self.config.replacement.serves.sockets && !self.dataplane.has_sockets() {
            self.keep_sockets();
        }
        let drift = self.planner.drift(&self.dataplane.arrays);
        if drift.is_empty() {
            return;
        }
        warn!(operations = drift.len(), "somebody else wrote to the tables; they are put right");
        let text = format!("somebody else wrote to the tables; {} were put right", drift.len());
        self.desk.journal.push(EventKind::Repaired, text);
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
        let mut config = match read {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return self.refuse(&error),
            Err(error) => return self.refuse(&error),
        };
        // A device in force may be gone for a while; a new one that is not there is a mistake.
        let known = |name: &str| {
            self.config.devices.iter().any(|device| device.name == name)
                || view.links.values().any(|link| link.name == name)
        };
        if let Some(device) = config.devices.iter().find(|device| !known(&device.name)) {
            return self.refuse(&DaemonError::NoDevice(device.name.clone()));
        }
        let wanted = self.config.replacement.sockets.cgroup.as_deref();
        let fitted = match &self.sockets.cgroup {
            Some(at) if self.dataplane.has_sockets() => {
                replacement::fit(&mut config, &replacement::Serving { wanted, at })
            }
            _ => replacement::fit(&mut config, &replacement::Here),
        };
        match fitted {
            Ok(mut lacks) => {
                lacks.extend(replacement::still(&mut config, &self.config, &self.lacks));
                replacement::tell(&lacks);
                self.lacks = lacks;
            }
            Err(error) => return self.refuse(&error),
        }
        self.desk.configured(&config);
        self.cluster.configure(Settings::of(&config));
        self.sources.file = std::mem::take(&mut config.services);
        config.services = self.sources.services();
        self.next = None;
        self.prepare(config, Instant::now() + SETTLE, true, follower);
    }

    fn refuse(&self, error: &dyn std::error::Error) {
        error!("the new configuration is refused, the one before stays in force:\n{error}");
        self.desk.journal.push(EventKind::Refused, format!("the new configuration: {error}"));
    }

    /// Takes what the API declares now.
    fn redeclare(&mut self, follower: &Follower) {
        self.sources.api = self.desk.declared();
        self.take_sources(true, follower);
        if self.next.is_none() {
            // The tables stay as they are, but not all that is told.
            self.stale = true;
        }
    }

    /// Has what all sources say now wait for its paths.
    fn take_sources(&mut self, told: bool, follower: &Follower) {
        // One that waits already does so no longer, however often a source says something.
        let (config, until, before) = match self.next.take() {
            Some(Next { config, until, told, .. }) => (config, until, told),
            None => (self.without_services(), Instant::now() + SETTLE, false),
        };
        let config = Config { services: self.sources.services(), ..config };
        self.prepare(config, until, told || before, follower);
    }

    /// The configuration in force, without its services: there may be very many.
    fn without_services(&mut self) -> Config {
        let services = std::mem::take(&mut self.config.services);
        let config = self.config.clone();
        self.config.services = services;
        config
    }

    /// Has a configuration wait for its paths, unless it is the one in force.
    fn prepare(&mut self, config: Config, until: Instant, told: bool, follower: &Follower) {
        if config == self.config {
            return;
        }
        let wanted = topology::destinations(&config);
        // Those in force stay followed until the change.
        if !wanted.is_subset(&self.wanted) {
            follower.set_destinations(self.followed(wanted.union(&self.wanted)));
        }
        self.next = Some(Next { config, wanted, until, told });
    }

    /// These addresses, and those of frontends that are kept.
    fn followed<'a>(&self, wanted: impl Iterator<Item = &'a IpAddr>) -> BTreeSet<IpAddr> {
        wanted.copied().chain(self.planner.held_backends().map(|key| key.target())).collect()
    }

    /// Makes the new configuration the one in force, once its backends have paths or had their time
    /// to get one: a backend takes no flow that could not reach it. Returns whether that happened.
    fn take_next(&mut self, follower: &Follower, view: &View) -> bool {
        let Some(Next { wanted, until, .. }) = &self.next else { return false };
        // What has no path already has been waited for.
        let mut paths = wanted.difference(&self.wanted).map(|to| view.paths.get(to));
        let settled = !paths.any(|path| path.is_none_or(unsettled));
        if !settled && Instant::now() < *until {
            return false;
        }
        let Some(Next { config, wanted, told, .. }) = self.next.take() else { return false };
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
        if wanted != self.wanted {
            follower.set_destinations(self.followed(wanted.iter()));
            self.wanted = wanted;
        }
        let before = std::mem::replace(&mut self.config, config);
        if self.without_services() != (Config { services: Vec::new(), ..before }) {
            // Paths are the configuration's as well.
            self.pathed = None;
        }
        if told {
            info!(services = self.config.services.len(), "configuration reloaded");
            self.desk.journal.push(EventKind::Reloaded, "a new configuration is in force");
        }
        self.applied = None;
        true
    }

    fn stop(mut self) -> Result<(), DaemonError> {
        if self.options.detach_on_exit {
            self.dataplane.remove()?;
            info!("stopped; the data path is removed");
        } else {
            if let Err(error) = self.unwatch() {
                warn!("the programs that tell of packets stay attached: {error}");
            }
            info!("stopped; the data path goes on without the daemon");
        }
        Ok(())
    }
}
