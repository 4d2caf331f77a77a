//! Asks backends whether they are well.
//!
//! ```text
//! daemon ── Targets ──► one task a backend ── answers ──► Checker ── Found ──► daemon
//! ```
//! What an answer comes to is decided in [`xdp_lb_plan::health`].

mod memory;
mod probe;
mod target;
#[cfg(test)]
mod tests;
mod verifier;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use xdp_lb_plan::health::{Answer, Health, HealthCheck, State};

pub use memory::{keep, load, save};
pub use target::{Target, asked_at, targets};

use self::probe::Problem;
use crate::clock;

/// Questions that are open at a time.
const OPEN: usize = 512;
/// How many of them one service may have: backends that do not answer keep theirs open for long.
const OPEN_OF_ONE: usize = 128;
/// Answers that may wait.
const WAITING: usize = 1024;
/// The first questions are spread over this time, or over the interval where that is shorter.
const SPREAD: Duration = Duration::from_secs(2);

/// Names a backend: its service's name, and its own as the API has it.
pub type Key = (String, String);

/// Whom to ask; nothing where it cannot be asked at the moment, and what is known of it stays.
pub type Targets = BTreeMap<Key, Option<Target>>;

/// What is known of each backend.
pub type Found = BTreeMap<Key, Status>;

/// What is known of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What its answers came to
    pub health: Health,
    /// When that last changed
    pub since: SystemTime,
    /// What was wrong with the last bad answer
    pub error: Option<String>,
}

impl Status {
    /// Whether somebody who looks at it sees a difference.
    fn looks_like(&self, other: &Self) -> bool {
        let what = |one: &Self| (one.health.state(), one.health.changes(), one.health.weight());
        what(self) == what(other) && self.error == other.error
    }
}

/// Where the daemon meets those who ask.
#[derive(Debug)]
pub struct Checks {
    targets: watch::Sender<Arc<Targets>>,
    found: watch::Receiver<Arc<Found>>,
}

impl Checks {
    /// Starts to ask, nobody for now; `known` is what an earlier run found. Needs a tokio runtime.
    pub fn start(known: Found) -> Self {
        let known = Arc::new(known);
        let (targets, wanted) = watch::channel(Arc::default());
        let (publish, found) = watch::channel(known.clone());
        let (answer, answers) = mpsc::channel(WAITING);
        let open = Arc::new(Semaphore::new(OPEN));
        let asked = BTreeMap::new();
        let found_now = Found::clone(&known);
        let shares = BTreeMap::new();
        let checker = Checker { wanted, publish, found: found_now, asked, answer, open, shares };
        tokio::spawn(checker.run(answers));
        Self { targets, found }
    }

    /// Asks these from now on.
    pub fn aim(&self, targets: Targets) {
        self.targets.send_if_modified(|before| {
            let changed = **before != targets;
            *before = Arc::new(targets);
            changed
        });
    }

    /// Whom it asks.
    pub fn aimed(&self) -> Arc<Targets> {
        self.targets.borrow().clone()
    }

    /// What was found out so far.
    pub fn found(&mut self) -> Arc<Found> {
        self.found.borrow_and_update().clone()
    }

    /// Waits until something else is found out; `false` where nobody asks any more.
    pub async fn changed(&mut self) -> bool {
        self.found.changed().await.is_ok()
    }
}

/// An answer, or what is wrong with it.
type Heard = (Key, u64, Result<Answer, Failed>);

/// Why there is no good answer.
struct Failed {
    text: String,
    /// The question never left this host (no descriptors, no memory): that says nothing about the
    /// backend.
    unasked: bool,
}

struct Asked {
    target: Target,
    /// Tells its answers from those to earlier questions
    number: u64,
    task: JoinHandle<()>,
}

/// The one who knows.
struct Checker {
    wanted: watch::Receiver<Arc<Targets>>,
    publish: watch::Sender<Arc<Found>>,
    found: Found,
    asked: BTreeMap<Key, Asked>,
    answer: mpsc::Sender<Heard>,
    open: Arc<Semaphore>,
    /// What each service may have of it
    shares: BTreeMap<String, Arc<Semaphore>>,
}

impl Checker {
    async fn run(mut self, mut answers: mpsc::Receiver<Heard>) {
        let mut batch = Vec::new();
        loop {
            let changed = tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.aim(),
                    Err(_) => return self.asked.values().for_each(|one| one.task.abort()),
                },
                _ = answers.recv_many(&mut batch, WAITING) => {
                    let mut changed = false;
                    for heard in batch.drain(..) {
                        changed |= self.hear(heard);
                    }
                    changed
                }
            };
            if changed {
                self.publish.send_replace(Arc::new(self.found.clone()));
            }
        }
    }

    /// Asks whom it is told to ask; whether what is known became less.
    fn aim(&mut self) -> bool {
        let targets = self.wanted.borrow_and_update().clone();
        let before = self.found.len();
        self.found.retain(|key, _| targets.contains_key(key));
        self.asked.retain(|key, asked| {
            let stays = targets.get(key).and_then(Option::as_ref) == Some(&asked.target);
            if !stays {
                asked.task.abort();
            }
            stays
        });
        let services: BTreeSet<&String> = targets.keys().map(|(service, _)| service).collect();
        self.shares.retain(|service, _| services.contains(service));
        for (key, target) in &*targets {
            let Some(target) = target else { continue };
            if !self.asked.contains_key(key) {
                let asked = self.start(key.clone(), target.clone());
                self.asked.insert(key.clone(), asked);
            }
        }
        self.found.len() != before
    }

    fn start(&mut self, key: Key, target: Target) -> Asked {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let share = self.shares.entry(key.0.clone());
        let share = share.or_insert_with(|| Arc::new(Semaphore::new(OPEN_OF_ONE))).clone();
        let (answer, open) = (self.answer.clone(), [share, self.open.clone()]);
        let task = tokio::spawn(keep_asking(key, number, target.clone(), answer, open));
        Asked { target, number, task }
    }

    /// Takes in an answer; whether something looks different now.
    fn hear(&mut self, (key, number, result): Heard) -> bool {
        let Some(asked) = self.asked.get(&key).filter(|asked| asked.number == number) else {
            return false;
        };
        let new = || Status { health: Health::default(), since: SystemTime::now(), error: None };
        let status = self.found.entry(key).or_insert_with(new);
        let before = status.clone();
        let answer = match &result {
            Ok(answer) => Some(*answer),
            Err(failed) => (!failed.unasked).then_some(Answer::Bad),
        };
        if let Some(answer) = answer {
            status.health.answer(&asked.target.check, answer, clock::now());
        }
        if status.health.changes() != before.health.changes() {
            status.since = SystemTime::now();
        }
        match result {
            Err(failed) => status.error = Some(failed.text),
            Ok(_) if status.health.state() == State::Up => status.error = None,
            // What took it down stays in sight until it is up.
            Ok(_) => {}
        }
        !status.looks_like(&before)
    }
}

/// Asks one backend again and again. The questions of all are spread, since each has another beginning.
async fn keep_asking(
    key: Key,
    number: u64,
    target: Target,
    answer: mpsc::Sender<Heard>,
    [share, open]: [Arc<Semaphore>; 2],
) {
    let HealthCheck { interval, timeout: patience, .. } = target.check;
    let mut next = Instant::now() + delay(&key, interval.min(SPREAD));
    loop {
        sleep_until(next).await;
        // First the service's: who waits for that keeps nothing from the others.
        let Ok(of_share) = share.acquire().await else { return };
        let Ok(permit) = open.acquire().await else { return };
        // From here on: who had to wait is not asked more often for it.
        next = next.max(Instant::now()) + interval;
        let result = match timeout(patience, probe::ask(&target)).await {
            Ok(result) => result.map_err(|problem| Failed {
                text: problem.to_string(),
                unasked: matches!(problem, Problem::Socket(_)),
            }),
            Err(_) => Err(Failed {
                text: format!("no answer within {} s", patience.as_secs()),
                unasked: false,
            }),
        };
        drop((permit, of_share));
        if answer.send((key.clone(), number, result)).await.is_err() {
            return;
        }
    }
}

/// When a backend is first asked: another time for each.
fn delay(key: &Key, spread: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let part = RandomState::new().hash_one(key) as u32;
    spread.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

impl Target {
    /// A backend that is asked at this address.
    pub fn at(to: SocketAddr, check: HealthCheck) -> Self {
        Self { to, check, mark: None, note: None }
    }
}
