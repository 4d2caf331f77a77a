//! A stand-in for Kubernetes API servers: objects in memory, lists in pages, watches, and the ways in
//! which real servers fail.
//!
//! Several servers may serve the same [`Objects`], as several API servers serve one etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

/// What a watch sends after it is told to break in the middle.
const HALF: &[u8] = b"{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"na";

/// A change, as watches tell it.
#[derive(Clone, Debug)]
struct Logged {
    version: u64,
    kind: String,
    what: &'static str,
    object: Value,
}

#[derive(Debug, Default)]
struct Store {
    version: u64,
    /// Versions before this one are forgotten
    oldest: u64,
    /// By the kind's plural, then by namespace and name
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    log: Vec<Logged>,
    posted: Vec<Value>,
}

/// Objects of a cluster.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<Mutex<Store>>,
    news: watch::Sender<u64>,
}

impl Default for Objects {
    fn default() -> Self {
        let store = Store { version: 1, ..Store::default() };
        Self { store: Arc::new(Mutex::new(store)), news: watch::Sender::new(0) }
    }
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates or replaces an object; `kind` is the plural, like `services`.
    pub fn put(&self, kind: &str, mut object: Value) {
        let mut store = self.lock();
        store.version += 1;
        let version = store.version;
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (text("namespace"), text("name"));
        let known = store.objects.entry(kind.to_owned()).or_default();
        let uid = known.get(&key).and_then(|one| one["metadata"]["uid"].as_str());
        let uid = uid.map_or_else(|| format!("uid-{version}"), str::to_owned);
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
            metadata.insert("uid".to_owned(), uid.into());
        }
        let what = if known.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        store.log.push(Logged { version, kind: kind.to_owned(), what, object });
        drop(store);
        self.wake();
    }

    /// Removes an object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let mut store = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = store.objects.entry(kind.to_owned()).or_default().remove(&key)
        else {
            return;
        };
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        store.log.push(Logged { version, kind: kind.to_owned(), what: "DELETED", object });
        drop(store);
        self.wake();
    }

    /// Forgets all older versions: who wants to go on from one must list anew.
    pub fn compact(&self) {
        let mut store = self.lock();
        store.version += 1;
        store.oldest = store.version;
        store.log.clear();
        drop(store);
        self.wake();
    }

    /// Objects that were posted: Events.
    pub fn posted(&self) -> Vec<Value> {
        self.lock().posted.clone()
    }

    fn wake(&self) {
        self.news.send_modify(|news| *news += 1);
    }
}

/// How a server behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// It takes connections and answers nothing, on watches neither
    pub hangs: bool,
    /// `/readyz` says that it does not serve
    pub not_ready: bool,
    /// Kinds that may not be read, by their plurals; `events` may not be written
    pub forbidden: BTreeSet<String>,
    /// Most items on a page
    pub page: Option<usize>,
    /// Watches are refused with 410 Gone in the answer's head
    pub gone_in_head: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Commands {
    /// How often watches were told to break in the middle of an object
    cuts: u64,
    /// How often they were told to send a bookmark
    bookmarks: u64,
}

#[derive(Clone)]
struct Shared {
    objects: Objects,
    behaviour: watch::Sender<Behaviour>,
    commands: watch::Sender<Commands>,
    requests: Arc<Mutex<Vec<String>>>,
}

/// An API server; it ends, with all connections, when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    commands: watch::Sender<Commands>,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Serves objects at a listener, which may be one of another network namespace.
    ///
    /// # Errors
    ///
    /// Where the listener cannot be used.
    pub fn start(objects: Objects, listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Shared {
            objects,
            behaviour: watch::Sender::new(Behaviour::default()),
            commands: watch::Sender::default(),
            requests: Arc::default(),
        };
        let (behaviour, commands) = (shared.behaviour.clone(), shared.commands.clone());
        let requests = shared.requests.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::channel();
        let serve = async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let router = Router::new().fallback(answer).with_state(shared);
            tokio::select! {
                _ = async { axum::serve(listener, router).await } => {}
                _ = stopped => {}
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(serve);
            // Connections are tasks of the runtime: they end here.
            runtime.shutdown_timeout(Duration::from_millis(100));
        });
        started.recv().map_err(io::Error::other)??;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Self { address, behaviour, commands, requests, stop, thread })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.behaviour.send_modify(change);
    }

    /// Breaks all watches in the middle of an object.
    pub fn cut(&self) {
        self.commands.send_modify(|commands| commands.cuts += 1);
    }

    /// Sends a bookmark on all watches.
    pub fn bookmark(&self) {
        self.commands.send_modify(|commands| commands.bookmarks += 1);
    }

    /// The requests so far: paths with their queries.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Parameters = BTreeMap<String, String>;

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    Query(parameters): Query<Parameters>,
    body: Bytes,
) -> Response {
    let target = uri.to_string();
    shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push(target);
    let behaviour = shared.behaviour.borrow().clone();
    if behaviour.hangs {
        std::future::pending::<()>().await;
    }
    let path = uri.path();
    if path == "/readyz" {
        return if behaviour.not_ready {
            (StatusCode::INTERNAL_SERVER_ERROR, "not ready").into_response()
        } else {
            "ok".into_response()
        };
    }
    let kind = path.rsplit('/').next().unwrap_or_default().to_owned();
    if behaviour.forbidden.contains(&kind) {
        let message = format!("{kind} is forbidden: User \"test\" cannot read {kind}");
        return refusal(StatusCode::FORBIDDEN, "Forbidden", &message);
    }
    if method == Method::POST {
        return post(&shared.objects, &body);
    }
    if parameters.get("watch").is_some_and(|watch| watch == "true") {
        if behaviour.gone_in_head {
            return refusal(StatusCode::GONE, "Expired", "too old resource version");
        }
        return watched(shared, kind, &parameters);
    }
    listed(&shared.objects, &kind, &parameters, behaviour.page)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    })
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response {
    (code, Json(status(code, reason, message))).into_response()
}

/// Takes an object that has a name of its own; the same name again is refused.
fn post(objects: &Objects, body: &[u8]) -> Response {
    let Ok(object) = serde_json::from_slice::<Value>(body) else {
        return refusal(StatusCode::BAD_REQUEST, "BadRequest", "no JSON");
    };
    let mut store = objects.lock();
    let name = |one: &Value| one["metadata"]["name"].clone();
    if store.posted.iter().any(|one| name(one) == name(&object)) {
        return refusal(StatusCode::CONFLICT, "AlreadyExists", "it is there already");
    }
    store.posted.push(object.clone());
    (StatusCode::CREATED, Json(object)).into_response()
}

/// Whether a selector lets an object through: only `!KEY` is known.
fn selected(object: &Value, parameters: &Parameters) -> bool {
    let selectors = parameters.get("labelSelector").map(String::as_str).unwrap_or_default();
    selectors.split(',').filter_map(|one| one.strip_prefix('!')).all(|key| {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        labels.is_none_or(|labels| !labels.contains_key(key))
    })
}

/// A page of a list, as it is now: a real server would go on with the list as it was.
fn listed(objects: &Objects, kind: &str, parameters: &Parameters, page: Option<usize>) -> Response {
    let store = objects.lock();
    let number = |key: &str| parameters.get(key).and_then(|text| text.parse::<usize>().ok());
    let from = number("continue").unwrap_or(0);
    let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let limit = limit.min(page.unwrap_or(usize::MAX));
    let all: Vec<&Value> = store
        .objects
        .get(kind)
        .into_iter()
        .flat_map(BTreeMap::values)
        .filter(|object| selected(object, parameters))
        .collect();
    let items: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
    let next = from + items.len();
    let mut metadata = json!({"resourceVersion": store.version.to_string()});
    if next < all.len() {
        metadata["continue"] = next.to_string().into();
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    Json(list).into_response()
}

/// A watch from a version on, until the client goes or is cut off.
fn watched(shared: Shared, kind: String, parameters: &Parameters) -> Response {
    let version = parameters.get("resourceVersion").and_then(|text| text.parse().ok());
    let watch = Watch {
        news: shared.objects.news.subscribe(),
        behaviour: shared.behaviour.subscribe(),
        commands: shared.commands.subscribe(),
        obeyed: *shared.commands.borrow(),
        version: version.unwrap_or(0),
        parameters: parameters.clone(),
        objects: shared.objects,
        kind,
        cut: false,
    };
    let lines = stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((line, watch))
    });
    Response::new(Body::from_stream(lines))
}

struct Watch {
    objects: Objects,
    kind: String,
    version: u64,
    parameters: Parameters,
    news: watch::Receiver<u64>,
    behaviour: watch::Receiver<Behaviour>,
    commands: watch::Receiver<Commands>,
    obeyed: Commands,
    cut: bool,
}

impl Watch {
    /// What it sends next; an error breaks the connection, nothing ends it.
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if self.cut {
                return Some(Err(io::Error::other("cut off")));
            }
            if self.behaviour.borrow_and_update().hangs {
                self.behaviour.changed().await.ok()?;
                continue;
            }
            let commands = *self.commands.borrow_and_update();
            let before = std::mem::replace(&mut self.obeyed, commands);
            if commands.cuts != before.cuts {
                self.cut = true;
                return Some(Ok(Bytes::from_static(HALF)));
            }
            self.news.borrow_and_update();
            if let Some(event) = self.event() {
                let line = format!("{event}\n");
                return Some(Ok(line.into()));
            }
            if commands.bookmarks != before.bookmarks {
                let version = self.objects.lock().version;
                self.version = version;
                let object = json!({"kind": "Bookmark", "apiVersion": "v1",
                    "metadata": {"resourceVersion": version.to_string()}});
                return Some(Ok(format!("{}\n", event("BOOKMARK", &object)).into()));
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                changed = self.commands.changed() => changed.ok()?,
                changed = self.behaviour.changed() => changed.ok()?,
            }
        }
    }

    fn event(&mut self) -> Option<Value> {
        let store = self.objects.lock();
        if self.version < store.oldest {
            let gone = status(StatusCode::GONE, "Expired", "too old resource version");
            // Said once; then nothing comes any more.
            self.version = u64::MAX;
            return Some(event("ERROR", &gone));
        }
        let next = store.log.iter().find(|one| {
            one.version > self.version
                && one.kind == self.kind
                && selected(&one.object, &self.parameters)
        })?;
        self.version = next.version;
        Some(event(next.what, &next.object))
    }
}

fn event(what: &str, object: &Value) -> Value {
    json!({"type": what, "object": object})
}
