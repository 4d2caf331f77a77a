//! The daemon's side of the API: what it is asked, and what it tells.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use aya::maps::{HashMap, Map, MapData};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::warn;
use xdp_lb_abi::{Flow, FlowKey, Reason, Traffic, names};
use xdp_lb_api::{
    Answer, ApiError, Benchmarks, Change, Changed, Control, FieldError, FlowFilter, Page, Paging,
    monitor::{MonitorRequest, Seen},
    prometheus_client::registry::Registry,
    rfc3339,
    server::{Settings, Tls, serve},
    trace::{TraceRequest, TraceView},
    view::{
        Counter, CountersView, EventKind, EventView, FlowView, KubernetesView, MaglevView,
        Services, State,
    },
};
use xdp_lb_plan::{
    maglev::{self, Identity},
    model::Protocol,
};

use super::{
    journal::Journal,
    keeper::{Gone, Inputs, Keeper, Request},
    metrics::{Measured, Meters, Source},
    monitor::{Monitors, Subscribe, Swap},
    sources::{ApiSide, FileSide},
};
use crate::{
    bench::Runs,
    config::{ApiConfig, Config, MetricsConfig},
    dataplane::Counters,
    error::chain,
    kubernetes::Observer,
    maglev_cli,
    maps::TableError,
    pins::Pins,
    state::{StateError, Store},
    trace::{TraceError, Tracer, Wrong},
};

/// Changes and questions that may wait.
const WAITING: usize = 256;

/// A Maglev table as the planner has it.
pub(super) struct RawTable {
    pub(super) frontend: String,
    pub(super) backends: Vec<Identity>,
    pub(super) slots: Vec<u16>,
}

impl RawTable {
    /// As the API shows it, with the digest that `xdp-lb maglev digest` prints.
    fn view(self) -> MaglevView {
        let Self { frontend, backends, slots } = self;
        let digest = maglev_cli::hexadecimal(maglev::digest(backends.iter().copied(), &slots));
        let name = |one: Identity| std::net::SocketAddr::new(one.address, one.port).to_string();
        MaglevView { frontend, digest, backends: backends.into_iter().map(name).collect(), slots }
    }
}

/// Asks for the tables of one frontend, or of all.
pub(super) struct TableRequest {
    pub(super) frontend: Option<String>,
    pub(super) answer: oneshot::Sender<Vec<RawTable>>,
}

/// What reaches the daemon's one writer.
pub(super) enum Call {
    /// Nobody keeps what the API declares any more
    Ended,
    /// The API declares something else
    Declared,
    /// Somebody wants tables
    Tables(TableRequest),
    /// Somebody begins to watch packets, or nobody does any more
    Swap(Swap),
    /// Somebody wants figures
    Measure(oneshot::Sender<Measured>),
}

/// Where the daemon meets the API.
pub(super) struct Desk {
    pub(super) journal: Journal,
    /// When the daemon started
    pub(super) started: String,
    /// A path that counts more than the configuration's
    socket: Option<PathBuf>,
    api: watch::Receiver<Arc<ApiSide>>,
    file: watch::Sender<Arc<FileSide>>,
    pub(super) state: watch::Sender<Arc<State>>,
    /// Backends that have no flow any more
    pub(super) drained: watch::Sender<Arc<Gone>>,
    settings: watch::Sender<Settings>,
    tables: mpsc::Receiver<TableRequest>,
    measures: mpsc::Receiver<oneshot::Sender<Measured>>,
    swaps: mpsc::Receiver<Swap>,
    pub(super) meters: Meters,
    metrics: watch::Sender<MetricsConfig>,
    /// Until it is served
    handle: Option<Handle>,
}

impl Desk {
    /// Reads what was set through the API, which is kept in `store`; nothing is served yet.
    ///
    /// # Errors
    ///
    /// As [`Store::load`].
    pub(super) fn open(
        config: &Config,
        pins: Pins,
        store: Store,
        socket: Option<PathBuf>,
        journal: Journal,
        cluster: Observer,
    ) -> Result<Self, StateError> {
        let (file, from_file) = watch::channel(Arc::new(side(config)));
        let drained = watch::Sender::default();
        let inputs =
            Inputs { file: from_file, cluster: cluster.side(), drained: drained.subscribe() };
        let (keeper, (api, services)) = Keeper::new(store, inputs, journal.clone())?;
        let (state, from_state) = watch::channel(Arc::default());
        let (ask, asked) = mpsc::channel(WAITING);
        let (want, tables) = mpsc::channel(WAITING);
        let (measure, measures) = mpsc::channel(WAITING);
        let settings = watch::Sender::new(settings(&config.api, socket.as_ref()));
        let (metrics, meters) = (watch::Sender::new(config.metrics), Meters::default());
        let source = Source::new(
            pins.clone(),
            from_state.clone(),
            metrics.subscribe(),
            measure,
            journal.clone(),
            meters.clone(),
        );
        let (swap, swaps) = mpsc::channel(1);
        let (monitor, asked_to_watch) = mpsc::channel(WAITING);
        let state_of_monitors = from_state.clone();
        let monitors =
            Monitors { pins: pins.clone(), state: state_of_monitors, swap, asked: asked_to_watch };
        tokio::spawn(monitors.run());
        let handle = Handle {
            services,
            state: from_state,
            changes: ask,
            tables: want,
            journal: journal.clone(),
            pins,
            cluster,
            source,
            tracer: Arc::default(),
            monitor,
            benchmarks: Runs::default(),
        };
        tokio::spawn(keeper.run(asked));
        journal.push(EventKind::Started, "the daemon started");
        let started = rfc3339(SystemTime::now());
        let handle = Some(handle);
        Ok(Self {
            journal,
            started,
            socket,
            api,
            file,
            state,
            drained,
            settings,
            tables,
            measures,
            swaps,
            meters,
            metrics,
            handle,
        })
    }

    /// Serves the API from now on.
    pub(super) fn serve(&mut self) {
        if let Some(handle) = self.handle.take() {
            tokio::spawn(serve(self.settings.subscribe(), Arc::new(handle)));
        }
    }

    /// What the API declares now.
    pub(super) fn declared(&mut self) -> Arc<ApiSide> {
        self.api.borrow_and_update().clone()
    }

    /// Tells what the file says from now on.
    pub(super) fn configured(&self, config: &Config) {
        self.file.send_replace(Arc::new(side(config)));
        self.metrics.send_replace(config.metrics);
        let now = settings(&config.api, self.socket.as_ref());
        self.settings.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    /// The next call; waits for ever where there is none.
    pub(super) async fn call(&mut self) -> Call {
        tokio::select! {
            changed = self.api.changed() => match changed {
                Ok(()) => Call::Declared,
                Err(_) => Call::Ended,
            },
            Some(request) = self.tables.recv() => Call::Tables(request),
            Some(answer) = self.measures.recv() => Call::Measure(answer),
            Some(swap) = self.swaps.recv() => Call::Swap(swap),
        }
    }
}

fn side(config: &Config) -> FileSide {
    let pods = config.terminate.iter().flat_map(|one| one.pods.clone()).collect();
    FileSide { services: config.services.clone(), default_mode: config.default_mode, pods }
}

/// Where to serve; a group that does not exist is told about and left out.
fn settings(api: &ApiConfig, socket: Option<&PathBuf>) -> Settings {
    let group = api.group.as_deref().and_then(|name| {
        let group = nix::unistd::Group::from_name(name).ok().flatten();
        if group.is_none() {
            warn!("there is no group {name}: only root may use the API's socket");
        }
        group.map(|group| group.gid.as_raw())
    });
    let tls = api.tls.clone().map(|(certificate, key)| Tls { certificate, key });
    Settings {
        socket: Some(socket.unwrap_or(&api.socket).clone()),
        group,
        listen: api.listen,
        read_tokens: api.read_token_file.clone(),
        write_tokens: api.write_token_file.clone(),
        tls,
    }
}

/// The daemon as the API sees it.
struct Handle {
    services: watch::Receiver<Arc<Services>>,
    state: watch::Receiver<Arc<State>>,
    changes: mpsc::Sender<Request>,
    tables: mpsc::Sender<TableRequest>,
    journal: Journal,
    pins: Pins,
    cluster: Observer,
    source: Source,
    /// Loaded once somebody asks
    tracer: Arc<Mutex<Option<Tracer>>>,
    monitor: mpsc::Sender<Subscribe>,
    benchmarks: Runs,
}

impl Control for Handle {
    fn services(&self) -> watch::Receiver<Arc<Services>> {
        self.services.clone()
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    fn change(&self, change: Change) -> Answer<'_, Changed> {
        Box::pin(async {
            let (answer, result) = oneshot::channel();
            self.changes.send((change, answer)).await.map_err(|_| stopping())?;
            result.await.map_err(|_| stopping())?
        })
    }

    fn events(&self) -> Vec<EventView> {
        self.journal.events()
    }

    fn follow(&self) -> broadcast::Receiver<EventView> {
        self.journal.follow()
    }

    fn counters(&self) -> Answer<'_, CountersView> {
        let (pins, state) = (self.pins.clone(), self.state.borrow().clone());
        Box::pin(blocking(move || counters(&pins, &state)))
    }

    fn flows(&self, filter: FlowFilter, paging: Paging) -> Answer<'_, Page<FlowView>> {
        let (pins, state) = (self.pins.clone(), self.state.borrow().clone());
        Box::pin(blocking(move || flows(&pins, &state, &filter, &paging)))
    }

    fn metrics(&self) -> Answer<'_, Registry> {
        Box::pin(self.source.read())
    }

    fn trace(&self, request: TraceRequest) -> Answer<'_, TraceView> {
        let (pins, tracer) = (self.pins.clone(), self.tracer.clone());
        Box::pin(async move {
            let traced = tokio::task::spawn_blocking(move || trace(&pins, &tracer, &request));
            traced.await.map_err(|_| stopping())?
        })
    }

    fn monitor(&self, request: MonitorRequest) -> Answer<'_, mpsc::Receiver<Seen>> {
        Box::pin(async {
            let (answer, seen) = oneshot::channel();
            let subscribe = Subscribe { request, answer };
            self.monitor.send(subscribe).await.map_err(|_| stopping())?;
            seen.await.map_err(|_| stopping())?
        })
    }

    fn maglev(&self, frontend: Option<String>) -> Answer<'_, Vec<MaglevView>> {
        Box::pin(async {
            let (answer, tables) = oneshot::channel();
            let request = TableRequest { frontend, answer };
            self.tables.send(request).await.map_err(|_| stopping())?;
            let tables = tables.await.map_err(|_| stopping())?;
            blocking(move || Ok(tables.into_iter().map(RawTable::view).collect())).await
        })
    }

    fn benchmarks(&self) -> &dyn Benchmarks {
        &self.benchmarks
    }

    fn kubernetes(&self) -> Option<KubernetesView> {
        self.cluster.view()
    }
}

fn stopping() -> ApiError {
    ApiError::Unavailable("the daemon is stopping: try again".to_owned())
}

/// Reads maps on a thread of its own: large ones take a while.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(read).await.map_err(|_| stopping())?;
    result.map_err(|error| ApiError::Unavailable(chain(&error)))
}

/// Traces a packet; one at a time.
fn trace(
    pins: &Pins,
    tracer: &Mutex<Option<Tracer>>,
    request: &TraceRequest,
) -> Result<TraceView, ApiError> {
    let mut loaded = tracer.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |error: TraceError| match error {
        TraceError::Wrong(Wrong { key, problem }) => {
            ApiError::Packet(FieldError { pointer: format!("/{key}"), detail: problem })
        }
        error @ (TraceError::None(_)
        | TraceError::Dataplane(_)
        | TraceError::Table(_)
        | TraceError::Pin(_)
        | TraceError::Elsewhere(_)) => ApiError::Unavailable(chain(&error)),
    };
    let tracer = match loaded.take() {
        Some(tracer) => loaded.insert(tracer),
        None => loaded.insert(Tracer::open(pins).map_err(failed)?),
    };
    tracer.trace(request).map_err(failed)
}

fn counters(pins: &Pins, state: &State) -> Result<CountersView, TableError> {
    let counters = Counters::open(pins)?;
    let mut view = CountersView::default();
    let counter = |name: &str, id: Option<u32>, traffic: Traffic| {
        let Traffic { packets, bytes, flows } = traffic;
        let new_flows = id.is_some().then_some(flows);
        Counter { name: name.to_owned(), id, packets, bytes, new_flows }
    };
    let mut backends = std::collections::BTreeMap::new();
    for one in state.frontends.values() {
        if let Some(id) = one.id {
            let traffic = counters.frontend(id - 1)?;
            view.frontends.push(counter(&one.frontend, one.id, traffic));
        }
        backends.extend(one.backends.iter().filter_map(|one| Some((one.id?, &one.backend))));
    }
    for (id, name) in backends {
        view.backends.push(counter(name, Some(id), counters.backend(id)?));
    }
    for reason in Reason::ALL {
        let traffic = counters.reason(*reason)?;
        if traffic.packets > 0 {
            view.reasons.push(counter(reason.as_str(), None, traffic));
        }
    }
    Ok(view)
}

fn flows(
    pins: &Pins,
    state: &State,
    filter: &FlowFilter,
    paging: &Paging,
) -> Result<Page<FlowView>, TableError> {
    let error = |source| TableError::Operation { map: names::FLOWS, operation: "read", source };
    let data = MapData::from_pin(pins.map(names::FLOWS)).map_err(error)?;
    let map = HashMap::<_, FlowKey, Flow>::try_from(Map::LruHashMap(data)).map_err(error)?;
    let backends = state.frontends.values().flat_map(|one| &one.backends);
    let names = backends.filter_map(|one| Some((one.id?, one.backend.as_str()))).collect();
    // An entry that gives way while this reads is none of those that it shows.
    let flows = map.iter().filter_map(Result::ok).map(|(key, flow)| shown(&key, &flow, &names));
    let wanted = flows.filter(|one| filter.lets_through(one));
    Ok(paging.of_unsorted(
        wanted.map(|one| (format!("{} {} {}", one.protocol, one.frontend, one.client), one)),
    ))
}

fn shown(key: &FlowKey, flow: &Flow, backends: &std::collections::HashMap<u32, &str>) -> FlowView {
    let socket = |address: xdp_lb_abi::Address, port| {
        std::net::SocketAddr::new(address.to_ip(), port).to_string()
    };
    let (source, destination) = key.ports();
    let protocol = Protocol::from_number(key.protocol());
    FlowView {
        protocol: protocol.map_or_else(|| key.protocol().to_string(), |one| one.to_string()),
        client: socket(key.source(), source),
        frontend: socket(key.destination(), destination),
        backend: backends.get(&flow.backend()).map(|name| (*name).to_owned()),
    }
}
