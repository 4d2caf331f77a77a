//! Lists and watches one kind of objects on one server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    core::Status as Refusal,
    runtime::watcher::{self, Config, watcher},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use xdp_lb_api::view::FollowState;
use xdp_lb_plan::kubernetes::{Key, ObjectKind};

use super::{
    Pace,
    object::{Garbage, Raw, selector},
    status::Status,
};

/// Objects of a list that come in one answer.
const PAGE: u32 = 500;

/// An object that is what its kind has to be.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
}

/// What the server says.
#[derive(Debug)]
pub(super) enum News {
    /// All objects of a kind
    Listed(ObjectKind, Vec<Result<(Key, Object), Garbage>>),
    /// One is there, or has changed
    Applied(ObjectKind, Result<(Key, Object), Garbage>),
    /// One is gone
    Deleted(ObjectKind, Key),
}

/// News with the time of its arrival.
pub(super) type Stamped = (Instant, News);

/// Where the news of a session go, and its signs of life.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) news: mpsc::Sender<Stamped>,
    pub(super) status: Arc<Status>,
    pub(super) pace: Pace,
    /// When the server was heard last
    pub(super) heard: Arc<watch::Sender<Instant>>,
    /// Woken where a connection failed
    pub(super) doubt: Arc<Notify>,
}

type Events = BoxStream<'static, watcher::Result<watcher::Event<Raw>>>;

impl Session {
    /// Follows a kind until it is aborted.
    pub(super) async fn follow(self, kind: ObjectKind) {
        let mut backoff = Backoff::new(self.pace);
        let mut events = self.begin(kind);
        let mut listing: Option<Vec<Result<(Key, Object), Garbage>>> = None;
        let mut failed = false;
        self.status.resource(kind, FollowState::Listing, None);
        loop {
            // A watch may be silent for minutes, a list may not. What fails, fails soon.
            let patience = match listing {
                Some(_) => self.pace.list,
                None if failed => self.pace.answer * 2,
                None => Duration::MAX,
            };
            let Ok(event) = timeout(patience, events.next()).await else {
                if listing.is_none() {
                    failed = false;
                    self.status.resource(kind, FollowState::Watching, None);
                    continue;
                }
                let why = format!("the list does not come within {patience:?}");
                self.failed(kind, why, &mut backoff).await;
                (events, listing) = (self.begin(kind), None);
                continue;
            };
            let now = Instant::now();
            match event {
                Some(Ok(event)) => {
                    self.heard.send_replace(now);
                    let news = match event {
                        watcher::Event::Init => {
                            listing = Some(Vec::new());
                            continue;
                        }
                        watcher::Event::InitApply(raw) => {
                            listing.get_or_insert_default().push(read(kind, raw));
                            continue;
                        }
                        watcher::Event::InitDone => {
                            News::Listed(kind, listing.take().unwrap_or_default())
                        }
                        watcher::Event::Apply(raw) => News::Applied(kind, read(kind, raw)),
                        watcher::Event::Delete(raw) => match raw.key() {
                            Some(key) => News::Deleted(kind, key),
                            None => continue,
                        },
                    };
                    failed = false;
                    backoff.reset();
                    self.status.resource(kind, FollowState::Watching, None);
                    if self.news.send((now, news)).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    let anew = must_list_anew(&error);
                    if status_of(&error).is_none() {
                        self.doubt.notify_one();
                    }
                    // The first "too old" is no failure, but the way to say: list again.
                    if anew && backoff.is_new() {
                        backoff.next();
                    } else {
                        failed = true;
                        self.failed(kind, reason(&error), &mut backoff).await;
                    }
                    if anew {
                        (events, listing) = (self.begin(kind), None);
                    }
                }
                None => (events, listing) = (self.begin(kind), None),
            }
        }
    }

    fn begin(&self, kind: ObjectKind) -> Events {
        let api: Api<Raw> = Api::all_with(self.client.clone(), &kind);
        let mut config = Config::default().page_size(PAGE);
        if let Some(labels) = selector(kind) {
            config = config.labels(labels);
        }
        watcher(api, config).boxed()
    }

    async fn failed(&self, kind: ObjectKind, why: String, backoff: &mut Backoff) {
        self.status.resource(kind, FollowState::Failed, Some(why));
        sleep(backoff.next()).await;
    }
}

/// The server's refusal, where it is one.
fn status_of(error: &watcher::Error) -> Option<&Refusal> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Whether the server does not know our state any more: 410 Gone, as an event or as an answer.
fn must_list_anew(error: &watcher::Error) -> bool {
    status_of(error).is_some_and(|status| status.code == 410)
}

/// What to tell about an error.
fn reason(error: &watcher::Error) -> String {
    match status_of(error) {
        Some(status) if status.code == 403 => {
            format!("permission denied: {}; give the role the verbs list and watch", status.message)
        }
        Some(status) if status.code == 401 => {
            format!("the server does not know who this is: {}", status.message)
        }
        Some(status) => format!("the server says {}: {}", status.code, status.message),
        None => crate::error::chain(error),
    }
}

fn read(kind: ObjectKind, raw: Raw) -> Result<(Key, Object), Garbage> {
    let key = raw.key();
    let object = match kind {
        ObjectKind::Service => raw.read().map(|one| Object::Service(Box::new(one)))?,
        ObjectKind::EndpointSlice => raw.read().map(|one| Object::Slice(Box::new(one)))?,
        ObjectKind::Node => raw.read().map(|one| Object::Node(Box::new(one)))?,
    };
    // What has no name cannot be read.
    let unnamed = || Garbage { key: None, uid: String::new(), why: "it has no name".to_owned() };
    Ok((key.ok_or_else(unnamed)?, object))
}

/// Waits longer after each failure, with some chance, so that not all nodes come at once.
#[derive(Debug)]
pub(super) struct Backoff {
    pace: Pace,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, next: pace.least }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.pace.least;
    }

    fn is_new(&self) -> bool {
        self.next == self.pace.least
    }

    /// How long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.pace.most);
        // The clock's last digits are chance enough to spread a cluster's nodes.
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let share = f64::from(nanos.unwrap_or_default().subsec_nanos() % 1000) / 1000.0;
        now.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_waited_for_longer_up_to_a_bound() {
        let pace = Pace::default();
        let mut backoff = Backoff::new(pace);
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= pace.least / 2 && wait <= pace.most, "{wait:?}");
            longest = longest.max(wait);
        }
        assert!(longest >= pace.most / 2, "{longest:?}");
        backoff.reset();
        assert!(backoff.next() <= pace.least);
    }
}
