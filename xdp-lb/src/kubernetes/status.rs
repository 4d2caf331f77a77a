//! How following the cluster goes: for the API, for the log, and for those who ask the health server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tracing::{info, warn};
use xdp_lb_api::{
    rfc3339,
    view::{ClusterResource, ClusterServer, EventKind, FollowState, KubernetesView},
};
use xdp_lb_plan::kubernetes::ObjectKind;

use super::{latency::Latency, object::KINDS, servers::Server};

/// Longest time that a change may wait until the proxy counts as broken, as with kube-proxy.
const STUCK: Duration = Duration::from_secs(60);

/// What is told about what happens.
pub(crate) type Say = Arc<dyn Fn(EventKind, String) + Send + Sync>;

/// How following one kind goes.
#[derive(Clone, Debug)]
struct Resource {
    state: FollowState,
    since: SystemTime,
    objects: usize,
    error: Option<String>,
}

/// A server.
#[derive(Clone, Debug)]
struct Known {
    url: String,
    learnt: bool,
    /// What was wrong with it when it was asked last
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    node: Option<String>,
    server: Option<String>,
    /// Every server
    servers: Vec<Known>,
    resources: BTreeMap<ObjectKind, Resource>,
    /// Things that do not work, by what they are about
    troubles: BTreeMap<String, String>,
    complete: bool,
    /// Whether it was said that no server answers
    lost: bool,
}

impl Inner {
    fn servers(&self) -> Vec<ClusterServer> {
        let view = |Known { url, learnt, error }: &Known| ClusterServer {
            url: url.clone(),
            learnt: *learnt,
            in_use: self.server.as_ref() == Some(url),
            error: error.clone(),
        };
        self.servers.iter().map(view).collect()
    }
}

/// How following the cluster goes.
pub(crate) struct Status {
    inner: Mutex<Inner>,
    /// Goes up with each change
    news: watch::Sender<u64>,
    say: Say,
    pub(super) latency: Latency,
}

impl Status {
    pub(super) fn new(say: Say) -> Self {
        let news = watch::Sender::new(0);
        Self { inner: Mutex::default(), news, say, latency: Latency::default() }
    }

    /// Tells that something happened.
    pub(super) fn say(&self, kind: EventKind, text: String) {
        (self.say)(kind, text);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.send_modify(|news| *news += 1);
        result
    }

    fn read<T>(&self, read: impl FnOnce(&Inner) -> T) -> T {
        read(&self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells who wants to know of each change.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Begins anew, for another cluster perhaps.
    pub(super) fn reset(&self, node: Option<String>) {
        self.change(|inner| *inner = Inner { node, ..Inner::default() });
    }

    /// The servers that there are.
    pub(super) fn servers(&self, servers: Vec<Server>) {
        let fresh = |one: Server| Known { url: one.name(), learnt: one.learnt, error: None };
        let mut servers: Vec<Known> = servers.into_iter().map(fresh).collect();
        let all = |list: &[Known]| -> Vec<(String, bool)> {
            list.iter().map(|one| (one.url.clone(), one.learnt)).collect()
        };
        if self.read(|inner| all(&inner.servers) == all(&servers)) {
            return;
        }
        self.change(|inner| {
            for one in &mut servers {
                let before = inner.servers.iter_mut().find(|before| before.url == one.url);
                one.error = before.and_then(|before| before.error.take());
            }
            inner.servers = servers;
        });
    }

    /// What is wrong with a server, or nothing.
    pub(super) fn server(&self, server: &Server, error: Option<String>) {
        let name = server.name();
        let known =
            |inner: &Inner| inner.servers.iter().any(|one| one.url == name && one.error == error);
        if self.read(known) {
            return;
        }
        if let Some(error) = &error {
            warn!("API server {name}: {error}");
        }
        self.change(|inner| {
            if let Some(known) = inner.servers.iter_mut().find(|one| one.url == name) {
                known.error = error;
            }
        });
    }

    /// What may be wrong with a server, of which nothing is known to be.
    pub(super) fn doubt(&self, server: &Server, text: String) {
        let name = server.name();
        let known = self
            .read(|inner| inner.servers.iter().any(|one| one.url == name && one.error.is_some()));
        if !known {
            self.server(server, Some(text));
        }
    }

    /// The servers, and how each was found last.
    pub(super) fn known_servers(&self) -> Vec<ClusterServer> {
        self.read(Inner::servers)
    }

    /// The cluster is followed by this server from now on.
    pub(super) fn connected(&self, server: &str) {
        info!("following the cluster by API server {server}");
        self.say(EventKind::ClusterReached, format!("by API server {server}"));
        self.change(|inner| {
            inner.server = Some(server.to_owned());
            inner.lost = false;
        });
    }

    /// No server answers. What was learnt stays in force.
    pub(super) fn lost(&self, why: &str) {
        if self.read(|inner| inner.lost) {
            return;
        }
        warn!("the cluster is not followed: {why}; the last state stays, and it is tried again");
        self.say(EventKind::ClusterLost, format!("{why}; the last state stays"));
        self.change(|inner| {
            inner.server = None;
            inner.lost = true;
        });
    }

    /// A kind is listed, watched, or cannot be.
    pub(super) fn resource(&self, kind: ObjectKind, state: FollowState, error: Option<String>) {
        let same = |inner: &Inner| {
            inner.resources.get(&kind).is_some_and(|one| one.state == state && one.error == error)
        };
        if self.read(same) {
            return;
        }
        let before = self.change(|inner| {
            let now = SystemTime::now();
            let fresh = Resource { state, since: now, objects: 0, error: None };
            let one = inner.resources.entry(kind).or_insert(fresh);
            if one.state != state {
                one.since = now;
            }
            one.state = state;
            std::mem::replace(&mut one.error, error.clone())
        });
        match error {
            Some(error) if before.as_ref() != Some(&error) => {
                warn!("cannot follow {kind}s: {error}; what is known of them stays");
                self.say(EventKind::ClusterLost, format!("cannot follow {kind}s: {error}"));
            }
            None if before.is_some() && state == FollowState::Watching => {
                info!("following {kind}s again");
                self.say(EventKind::ClusterReached, format!("{kind}s are followed again"));
            }
            Some(_) | None => {}
        }
    }

    /// How many objects of a kind there are, and whether all kinds have been listed.
    pub(super) fn counted(&self, counts: [(ObjectKind, usize); 3], complete: bool) {
        let same = |inner: &Inner| {
            inner.complete == complete
                && counts.iter().all(|(kind, count)| {
                    inner.resources.get(kind).is_some_and(|one| one.objects == *count)
                })
        };
        if self.read(same) {
            return;
        }
        self.change(|inner| {
            inner.complete = complete;
            for (kind, count) in counts {
                if let Some(one) = inner.resources.get_mut(&kind) {
                    one.objects = count;
                }
            }
        });
    }

    /// Something beside the following itself does not work, or works again; whether that is news.
    pub(super) fn trouble(&self, about: &str, text: Option<String>) -> bool {
        if self.read(|inner| inner.troubles.get(about) == text.as_ref()) {
            return false;
        }
        match &text {
            Some(text) => warn!("{about}: {text}; it is tried again"),
            None => info!("{about}: it works again"),
        }
        self.change(|inner| match text {
            Some(text) => inner.troubles.insert(about.to_owned(), text),
            None => inner.troubles.remove(about),
        });
        true
    }

    /// Something is not wanted any more, so it cannot be wrong.
    pub(super) fn forget(&self, about: &str) {
        if self.read(|inner| inner.troubles.contains_key(about)) {
            self.change(|inner| inner.troubles.remove(about));
        }
    }

    /// Whether changes reach the maps, in time.
    pub(super) fn healthy(&self) -> bool {
        self.latency.waiting().is_none_or(|waiting| waiting < STUCK)
    }

    /// All of it, without the findings.
    pub(super) fn view(&self) -> KubernetesView {
        let latency = self.latency.view();
        self.read(|inner| KubernetesView {
            node: inner.node.clone(),
            server: inner.server.clone(),
            servers: inner.servers(),
            complete: inner.complete,
            resources: KINDS
                .iter()
                .filter_map(|kind| Some((kind, inner.resources.get(kind)?)))
                .map(|(kind, one)| ClusterResource {
                    kind: kind.to_string(),
                    state: one.state,
                    since: rfc3339(one.since),
                    objects: one.objects,
                    error: one.error.clone(),
                })
                .collect(),
            troubles: inner
                .troubles
                .iter()
                .map(|(about, text)| format!("{about}: {text}"))
                .collect(),
            findings: Vec::new(),
            latency,
        })
    }

    /// What is not as it should be, one line each.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.read(|inner| {
            let mut wrong = Vec::new();
            if inner.server.is_none() {
                wrong.push("no API server answers: the last state stays".to_owned());
                let failed = inner.servers.iter();
                let failed = failed.filter_map(|one| Some((&one.url, one.error.as_ref()?)));
                wrong.extend(failed.map(|(url, error)| format!("API server {url}: {error}")));
            }
            let of = |(kind, one): (&ObjectKind, &Resource)| {
                Some(format!("{kind}s are not followed: {}", one.error.as_ref()?))
            };
            wrong.extend(inner.resources.iter().filter_map(of));
            if !inner.complete {
                wrong.push("the cluster has not been read as a whole yet".to_owned());
            }
            wrong.extend(inner.troubles.iter().map(|(about, text)| format!("{about}: {text}")));
            wrong
        })
    }
}
