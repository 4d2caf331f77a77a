//! A daemon in memory, and servers over it.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how they report")]

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};
use xdp_lb_api::{
    Answer, ApiError, Benchmarks, Change, Changed, Control, Drain, FieldError, FlowFilter, Page,
    Paging, What,
    benchmark::{BenchmarkRequest, BenchmarkState, BenchmarkView},
    client::{Client, ClientError, Response},
    etag, merge,
    monitor::{Direction, MonitorRequest, PacketView, Seen},
    prometheus_client::{self, registry::Registry},
    server::{Settings, serve},
    trace::{FrameView, Outcome, StepView, TraceRequest, TraceView},
    view::{
        BackendState, BackendView, Counter, CountersView, DeviceView, EventKind, EventView,
        FlowView, FrontendState, FrontendView, KubernetesView, MaglevView, Owner, Phase,
        ServiceView, Services, State,
    },
};

/// What the API asks for, kept in memory. Services are valid where they have a frontend.
pub struct Memory {
    pub services: watch::Sender<Arc<Services>>,
    pub state: watch::Sender<Arc<State>>,
    pub counters: Mutex<CountersView>,
    pub tables: Mutex<Vec<MaglevView>>,
    events: broadcast::Sender<EventView>,
    pub runs: Runs,
    /// Whether changes can be stored
    pub broken: Mutex<bool>,
}

pub const FRONTEND: &str = "203.0.113.10:80/TCP";

impl Memory {
    /// With service `file` of the file.
    pub fn new() -> Arc<Self> {
        let mut services = Services::default();
        let file = ServiceView {
            name: "file".to_owned(),
            owner: Owner::File,
            drained: vec![],
            removing: vec![],
            service: json!({"name": "file", "frontends": [1]}),
        };
        services.by_name.insert("file".to_owned(), Arc::new(file));
        let mut state = State { version: "1".to_owned(), words: (10, 4), ..State::default() };
        state.config = json!({"handover": "300s"});
        for port in [80, 443] {
            let frontend = format!("203.0.113.10:{port}/TCP");
            let view = FrontendView {
                id: Some(1),
                frontend: frontend.clone(),
                kind: "LoadBalancer".to_owned(),
                service: "file".to_owned(),
                owner: Owner::File,
                mode: "l2".to_owned(),
                policy: None,
                state: if port == 80 { FrontendState::Served } else { FrontendState::Refused },
                reason: None,
                phase: Some(Phase::Rest),
                table_size: 1,
                backends: vec![],
            };
            state.frontends.insert(frontend, view);
        }
        for backend in ["10.0.0.1", "10.0.0.2:80"] {
            let view = BackendView {
                health: None,
                service: "file".to_owned(),
                owner: Owner::File,
                backend: backend.to_owned(),
                weight: 1,
                drained: false,
                removing: false,
                flows: 0,
                state: BackendState::Active,
                reason: None,
            };
            state.backends.insert(("file".to_owned(), backend.to_owned()), view);
        }
        state.devices.push(DeviceView {
            name: "eth0".to_owned(),
            wanted: "native".to_owned(),
            xdp: None,
            ifindex: None,
        });
        let counter = Counter {
            name: FRONTEND.to_owned(),
            id: Some(1),
            packets: 7,
            bytes: 700,
            new_flows: Some(1),
        };
        let counters = CountersView { frontends: vec![counter], ..CountersView::default() };
        let table = MaglevView {
            frontend: FRONTEND.to_owned(),
            digest: "0123456789abcdef".to_owned(),
            backends: vec!["10.0.0.1:80".to_owned()],
            slots: vec![0],
        };
        Arc::new(Self {
            counters: Mutex::new(counters),
            tables: Mutex::new(vec![table]),
            services: watch::Sender::new(Arc::new(services)),
            state: watch::Sender::new(Arc::new(state)),
            events: broadcast::Sender::new(4),
            broken: Mutex::new(false),
            runs: Runs::default(),
        })
    }

    fn make(&self, change: &Change, services: &mut Services) -> Result<Changed, ApiError> {
        let (What::Put { name, .. }
        | What::Patch { name, .. }
        | What::Delete { name }
        | What::Drain { service: name, .. }) = &change.what;
        let before = services.by_name.get(name).cloned();
        let tag = before.as_ref().map(|one| etag(&**one));
        change.precondition.check(name, tag.as_deref())?;
        if *self.broken.lock().unwrap() {
            return Err(ApiError::Unavailable("no space left".to_owned()));
        }
        let unknown = || ApiError::Unknown { what: "service", name: name.clone() };
        let mut view = before.as_deref().cloned().unwrap_or(ServiceView {
            name: name.clone(),
            owner: Owner::Api,
            drained: vec![],
            removing: vec![],
            service: Value::Null,
        });
        if let What::Drain { backend, drain, .. } = &change.what {
            before.as_ref().ok_or_else(unknown)?;
            let named = |whether| if whether { vec![backend.clone()] } else { vec![] };
            view.drained = named(*drain != Drain::Undo);
            view.removing = named(*drain == Drain::ThenRemove);
        } else if view.owner != Owner::Api {
            return Err(ApiError::ReadOnly { name: name.clone(), owner: view.owner });
        }
        match &change.what {
            What::Put { service, .. } => view.service = service.clone(),
            What::Patch { patch, .. } => {
                before.as_ref().ok_or_else(unknown)?;
                view.service = merge(view.service, patch.clone());
            }
            What::Delete { .. } => {
                before.as_ref().ok_or_else(unknown)?;
                services.by_name.remove(name);
                return Ok(Changed { service: None, created: false });
            }
            What::Drain { .. } => {}
        }
        if !view.service["frontends"].is_array() {
            let error = FieldError {
                pointer: "/frontends".to_owned(),
                detail: "is missing: add one".to_owned(),
            };
            return Err(ApiError::Invalid(vec![error]));
        }
        let view = Arc::new(view);
        services.by_name.insert(name.clone(), view.clone());
        Ok(Changed { service: Some(view), created: before.is_none() })
    }

    /// Says that something happened.
    pub fn happen(&self, message: &str) {
        let event = EventView {
            number: 2,
            time: "2026-01-01T00:00:00.000Z".to_owned(),
            kind: EventKind::Repaired,
            message: message.to_owned(),
        };
        let _ = self.events.send(event);
    }

    /// The data path changes.
    pub fn move_on(&self) {
        self.state.send_modify(|state| Arc::make_mut(state).revision += 1);
    }
}

impl Control for Memory {
    fn services(&self) -> watch::Receiver<Arc<Services>> {
        self.services.subscribe()
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    fn change(&self, change: Change) -> Answer<'_, Changed> {
        Box::pin(async move {
            let mut result = None;
            // Under the channel's lock: one after another.
            self.services.send_if_modified(|services| {
                let mut new = Services::clone(services);
                let made = self.make(&change, &mut new);
                let changed = made.is_ok() && !change.dry_run;
                if changed {
                    *services = Arc::new(new);
                }
                result = Some(made);
                changed
            });
            result.unwrap()
        })
    }

    fn events(&self) -> Vec<EventView> {
        vec![EventView {
            number: 1,
            time: "2026-01-01T00:00:00.000Z".to_owned(),
            kind: EventKind::Started,
            message: "it started".to_owned(),
        }]
    }

    fn follow(&self) -> broadcast::Receiver<EventView> {
        self.events.subscribe()
    }

    fn counters(&self) -> Answer<'_, CountersView> {
        let view = self.counters.lock().unwrap().clone();
        Box::pin(async { Ok(view) })
    }

    fn flows(&self, filter: FlowFilter, paging: Paging) -> Answer<'_, Page<FlowView>> {
        let flow = |n: u32| FlowView {
            protocol: "TCP".to_owned(),
            client: format!("198.51.100.{}:4000", n % 10),
            frontend: "203.0.113.10:80".to_owned(),
            backend: Some(format!("10.0.0.{n}:80")),
        };
        let flows = (0..30).map(flow).filter(move |one| filter.lets_through(one));
        let page = paging.of_unsorted(flows.map(|one| (format!("{one:?}"), one)));
        Box::pin(async { Ok(page) })
    }

    fn metrics(&self) -> Answer<'_, Registry> {
        let mut registry = Registry::default();
        let counter = prometheus_client::metrics::counter::ConstCounter::new(7_u64);
        registry.register("some", "Some things", counter);
        Box::pin(async { Ok(registry) })
    }

    /// Drops what comes from a port, and knows no packet without a source.
    fn trace(&self, request: TraceRequest) -> Answer<'_, TraceView> {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let (to, protocol) = (part(&request.to), part(&request.protocol));
        let view = move |from: String| TraceView {
            device: "eth0".to_owned(),
            packet: FrameView {
                headers: format!("{from} > {to} {protocol}"),
                length: 14,
                frame: "00".repeat(14),
            },
            outcome: Outcome::Dropped,
            verdict: "XDP_DROP".to_owned(),
            reason: Some("no_next_hop".to_owned()),
            advice: Some("look at the neighbour".to_owned()),
            frontend: None,
            backend: None,
            mode: None,
            leaves: None,
            result: None,
            steps: vec![StepView {
                step: "parse".to_owned(),
                found: "IPv4, <b>TCP</b>".to_owned(),
            }],
            warnings: vec![],
            difference: None,
        };
        let missing = || {
            let detail = "it is missing".to_owned();
            ApiError::Packet(FieldError { pointer: "/from".to_owned(), detail })
        };
        Box::pin(async move { request.from.map(view).ok_or_else(missing) })
    }

    /// One packet, one that was lost, and the end; there is no backend.
    fn monitor(&self, request: MonitorRequest) -> Answer<'_, mpsc::Receiver<Seen>> {
        let packet = PacketView {
            seconds: 1,
            nanoseconds: 2,
            device: "eth0".to_owned(),
            direction: Direction::In,
            after: request.after,
            length: 64,
            frame: "00".repeat(64),
            headers: format!("{:?}", request.host),
            outcome: Outcome::Forwarded,
            verdict: "XDP_TX".to_owned(),
            reason: None,
            frontend: request.frontend,
            backend: None,
        };
        let (to, seen) = mpsc::channel(2);
        to.try_send(Seen::Packet(Box::new(packet))).unwrap();
        to.try_send(Seen::Lost(1)).unwrap();
        let name = request.backend.unwrap_or_default();
        Box::pin(async move {
            if name.is_empty() {
                Ok(seen)
            } else {
                Err(ApiError::Unknown { what: "backend", name })
            }
        })
    }

    fn maglev(&self, frontend: Option<String>) -> Answer<'_, Vec<MaglevView>> {
        let wanted =
            |table: &&MaglevView| frontend.as_ref().is_none_or(|one| *one == table.frontend);
        let tables = self.tables.lock().unwrap().iter().filter(wanted).cloned().collect();
        Box::pin(async { Ok(tables) })
    }

    fn benchmarks(&self) -> &dyn Benchmarks {
        &self.runs
    }

    fn kubernetes(&self) -> Option<KubernetesView> {
        Some(KubernetesView { node: Some("n1".to_owned()), ..KubernetesView::default() })
    }
}

/// Runs that end when somebody ends them.
#[derive(Default)]
pub struct Runs(Mutex<Vec<BenchmarkView>>);

impl Benchmarks for Runs {
    fn start(&self, request: BenchmarkRequest) -> Answer<'_, BenchmarkView> {
        let mut runs = self.0.lock().unwrap();
        let running = runs.iter().find(|one| one.state == BenchmarkState::Running);
        if let Some(one) = running {
            let busy = ApiError::Busy(one.id.clone());
            return Box::pin(async { Err(busy) });
        }
        let view = BenchmarkView {
            id: (runs.len() + 1).to_string(),
            state: BenchmarkState::Running,
            request,
            started: "2026-01-01T00:00:00.000Z".to_owned(),
            ended: None,
            progress: 0.5,
            message: None,
            report: None,
        };
        runs.push(view.clone());
        Box::pin(async { Ok(view) })
    }

    fn list(&self) -> Vec<BenchmarkView> {
        self.0.lock().unwrap().clone()
    }

    fn get(&self, id: &str) -> Option<BenchmarkView> {
        self.0.lock().unwrap().iter().find(|one| one.id == id).cloned()
    }

    fn cancel<'a>(
        &'a self,
        id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<BenchmarkView>> + Send + 'a>> {
        let mut runs = self.0.lock().unwrap();
        let run = runs.iter_mut().find(|one| one.id == id).map(|one| {
            one.state = BenchmarkState::Cancelled;
            one.clone()
        });
        Box::pin(async { run })
    }
}

/// A directory of one test, removed with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("xlbapi-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server over a daemon in memory.
pub struct Server {
    pub memory: Arc<Memory>,
    pub scratch: Scratch,
    pub settings: watch::Sender<Settings>,
}

impl Server {
    /// On a unix socket, and with what `more` adds.
    pub async fn start(more: impl FnOnce(&mut Settings, &Scratch)) -> Self {
        let scratch = Scratch::new();
        let mut settings =
            Settings { socket: Some(scratch.0.join("api.sock")), ..Settings::default() };
        more(&mut settings, &scratch);
        let settings = watch::Sender::new(settings);
        let memory = Memory::new();
        tokio::spawn(serve(settings.subscribe(), memory.clone()));
        let server = Self { memory, scratch, settings };
        let socket = server.socket();
        until(|| socket.exists()).await;
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.scratch.0.join("api.sock")
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }
}

/// Waits until something is so, within bounds.
pub async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("in vain waited for ten seconds");
}

/// Status code of an answer, problem or not.
pub fn status(result: &Result<Response, ClientError>) -> u16 {
    match result {
        Ok(response) => response.status.as_u16(),
        Err(ClientError::Refused(problem)) => problem.status,
        Err(error) => panic!("{error}"),
    }
}
