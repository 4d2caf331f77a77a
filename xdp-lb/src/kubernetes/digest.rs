//! From news of objects to what the data path must serve, in batches.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Instant, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::timeout_at,
};
use tracing::warn;
use xdp_lb_api::view::{ClusterFinding, EventKind};
use xdp_lb_plan::kubernetes::{self as rules, Finding, Index, Key, ObjectKind, Rules};

use super::{
    Pace, Side,
    events::Notice,
    object::{Garbage, KINDS},
    servers::{self, Servers},
    status::Status,
    watch::{News, Object, Stamped},
};

/// Most news that are taken in at once: what is known must get to the data path meanwhile.
const BATCH: usize = 10_000;
/// Most things that are remembered as said; then all may be said once more.
const SAID: usize = 10_000;

/// What is known of the cluster.
pub(super) struct Digest {
    index: Index,
    known: BTreeMap<ObjectKind, HashSet<Key>>,
    garbage: BTreeMap<(ObjectKind, Key), Garbage>,
    side: Side,
    /// When this began: causes that are older were not waited for
    began: SystemTime,
    said: BTreeSet<(ObjectKind, Key, String)>,
}

/// Where results go.
pub(super) struct Outlets {
    pub(super) side: Arc<watch::Sender<Arc<Side>>>,
    pub(super) status: Arc<Status>,
    pub(super) servers: Arc<Servers>,
    pub(super) notices: mpsc::Sender<Notice>,
}

impl Digest {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            index: Index::new(rules),
            known: BTreeMap::new(),
            garbage: BTreeMap::new(),
            side: Side::default(),
            began: SystemTime::now(),
            said: BTreeSet::new(),
        }
    }

    /// Takes in news until there is nobody who sends them.
    pub(super) async fn run(
        mut self,
        pace: Pace,
        mut news: mpsc::Receiver<Stamped>,
        outlets: Outlets,
    ) {
        while let Some((arrived, first)) = news.recv().await {
            self.take(first);
            let end = tokio::time::Instant::now() + pace.batch;
            for _ in 1..BATCH {
                let Ok(Some((_, next))) = timeout_at(end, news.recv()).await else { break };
                self.take(next);
            }
            self.publish(arrived, &outlets);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Listed(kind, objects) => self.replace(kind, objects),
            News::Applied(kind, Ok((key, object))) => {
                self.garbage.remove(&(kind, key.clone()));
                self.apply(&object);
                self.known.entry(kind).or_default().insert(key);
            }
            // What was known of it stays.
            News::Applied(kind, Err(garbage)) => self.keep_garbage(kind, garbage),
            News::Deleted(kind, key) => {
                self.delete(kind, &key);
                self.garbage.remove(&(kind, key.clone()));
                self.known.entry(kind).or_default().remove(&key);
            }
        }
    }

    fn apply(&mut self, object: &Object) {
        match object {
            Object::Service(service) => self.index.apply_service(service),
            Object::Slice(slice) => self.index.apply_slice(slice),
            Object::Node(node) => self.index.apply_node(node),
        }
    }

    fn delete(&mut self, kind: ObjectKind, key: &Key) {
        match kind {
            ObjectKind::Service => self.index.delete_service(key),
            ObjectKind::EndpointSlice => self.index.delete_slice(key),
            ObjectKind::Node => self.index.delete_node(&key.name),
        }
    }

    /// A whole list. An object that is there but malformed now stays as it was known.
    fn replace(&mut self, kind: ObjectKind, objects: Vec<Result<(Key, Object), Garbage>>) {
        self.garbage.retain(|(of, _), _| *of != kind);
        let first = !self.known.contains_key(&kind);
        let before = self.known.remove(&kind).unwrap_or_default();
        let mut now = HashSet::with_capacity(objects.len());
        let mut good = Vec::with_capacity(objects.len());
        for object in objects {
            match object {
                Ok((key, object)) => {
                    now.insert(key);
                    good.push(object);
                }
                Err(garbage) => {
                    now.extend(garbage.key.iter().filter(|key| before.contains(key)).cloned());
                    self.keep_garbage(kind, garbage);
                }
            }
        }
        if first {
            self.replace_all(kind, &good);
        } else {
            good.iter().for_each(|object| self.apply(object));
            before.difference(&now).for_each(|key| self.delete(kind, key));
        }
        self.known.insert(kind, now);
    }

    fn replace_all(&mut self, kind: ObjectKind, objects: &[Object]) {
        match kind {
            ObjectKind::Service => self.index.replace_services(objects.iter().filter_map(|one| {
                if let Object::Service(one) = one { Some(&**one) } else { None }
            })),
            ObjectKind::EndpointSlice => {
                self.index.replace_slices(objects.iter().filter_map(|one| {
                    if let Object::Slice(one) = one { Some(&**one) } else { None }
                }))
            }
            ObjectKind::Node => {
                self.index.replace_nodes(objects.iter().filter_map(|one| {
                    if let Object::Node(one) = one { Some(&**one) } else { None }
                }))
            }
        }
    }

    fn keep_garbage(&mut self, kind: ObjectKind, garbage: Garbage) {
        // Without a name nobody could be told which one it is.
        let key = garbage.key.clone().unwrap_or_else(|| Key::new("", "(without a name)"));
        self.garbage.insert((kind, key), garbage);
    }

    /// Hands on what has changed.
    fn publish(&mut self, arrived: Instant, outlets: &Outlets) {
        let complete = self.index.is_complete();
        let count = |kind| (kind, self.known.get(&kind).map_or(0, HashSet::len));
        outlets.status.counted(KINDS.map(count), complete);
        if !complete {
            return;
        }
        let fresh = !self.side.complete;
        let changes = self.index.changes();
        let mut triggered = Vec::new();
        let count = changes.len();
        for rules::Change { key, state, triggered: times } in changes {
            triggered.extend(times.into_iter().filter(|time| *time >= self.began));
            if let Some(state) = &state {
                let findings = state.findings.iter().map(said);
                self.say(findings.collect(), outlets);
            }
            match state {
                Some(state) => self.side.states.insert(key, state),
                None => self.side.states.remove(&key),
            };
        }
        if let Some(state) = self.side.states.get(&servers::service())
            && outlets.servers.learn(state)
        {
            outlets.status.servers(outlets.servers.all());
        }
        let mut others: Vec<Said> = self.index.findings().iter().map(said).collect();
        others.extend(self.garbage.iter().map(|((kind, key), one)| malformed(*kind, key, one)));
        let findings: Vec<ClusterFinding> = others.iter().map(|one| one.finding.clone()).collect();
        let own_node = self.index.own_node();
        let news =
            fresh || count > 0 || findings != self.side.findings || own_node != self.side.own_node;
        if !news {
            return;
        }
        self.say(others, outlets);
        self.side.findings = findings;
        self.side.own_node = own_node;
        self.side.complete = true;
        // Not that of the one before, whose services must not be taken for these.
        self.side.revision = outlets.side.borrow().revision + 1;
        if count > 0 && !fresh {
            outlets.status.latency.sent(self.side.revision, vec![arrived; count], triggered);
        }
        outlets.side.send_replace(Arc::new(self.side.clone()));
    }

    /// Says once what is news.
    fn say(&mut self, findings: Vec<Said>, outlets: &Outlets) {
        for Said { finding, kind, key, uid } in findings {
            let about = (kind, key.clone(), format!("{}: {}", finding.field, finding.message));
            if !self.said.insert(about) {
                continue;
            }
            if self.said.len() > SAID {
                self.said.clear();
            }
            let text = match &*finding.field {
                "" => format!("{kind} {key}: {}", finding.message),
                field => format!("{kind} {key}: {field}: {}", finding.message),
            };
            warn!("{text}");
            outlets.status.say(EventKind::ClusterFinding, text);
            let note = match &*finding.field {
                "" => finding.message,
                field => format!("{field}: {}", finding.message),
            };
            let notice = Notice {
                kind,
                key,
                uid,
                reason: finding.reason,
                action: "Serve",
                note,
                here: false,
            };
            // Those that cannot be written in time are in the log and in the API.
            let _ = outlets.notices.try_send(notice);
        }
    }
}

/// A finding, and whom it is about.
struct Said {
    finding: ClusterFinding,
    kind: ObjectKind,
    key: Key,
    uid: String,
}

fn said(finding: &Finding) -> Said {
    let object = &finding.object;
    Said {
        finding: view(finding),
        kind: object.kind,
        key: object.key.clone(),
        uid: object.uid.to_string(),
    }
}

/// A finding as the API shows it.
pub(super) fn view(finding: &Finding) -> ClusterFinding {
    let Finding { object, field, problem } = finding;
    ClusterFinding {
        kind: object.kind.to_string(),
        object: object.key.to_string(),
        field: field.clone(),
        reason: problem.reason().to_owned(),
        message: problem.to_string(),
    }
}

fn malformed(kind: ObjectKind, key: &Key, garbage: &Garbage) -> Said {
    let finding = ClusterFinding {
        kind: kind.to_string(),
        object: key.to_string(),
        field: String::new(),
        reason: "Malformed".to_owned(),
        message: format!("the object cannot be read: {garbage}; what was known of it stays"),
    };
    Said { finding, kind, key: key.clone(), uid: garbage.uid.clone() }
}
