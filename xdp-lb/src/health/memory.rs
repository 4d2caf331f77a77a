//! What was found is kept for the next start: a backend that is down then stays so until it answers,
//! and one that is up until it fails often enough.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;
use xdp_lb_plan::health::{Health, State};

use super::{Found, Status};
use crate::{clock, files};

const FILE: &str = "health.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// Backends by service and name.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    backends: BTreeMap<String, BTreeMap<String, Kept>>,
}

/// One backend.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    up: bool,
    /// Seconds since 1970
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Kept {
    /// Nothing where nobody has an opinion yet.
    fn of(status: &Status) -> Option<Self> {
        let up = match status.health.state() {
            State::Unchecked => return None,
            State::Up => true,
            State::Down => false,
        };
        let since =
            status.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Some(Self { up, since, weight: status.health.weight(), error: status.error.clone() })
    }

    fn status(self) -> Status {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(self.since);
        // The monotonic clock may have begun later.
        let ago = SystemTime::now().duration_since(since).unwrap_or_default();
        let state = if self.up { State::Up } else { State::Down };
        let health = Health::known(state, self.weight, clock::now().saturating_sub(ago));
        Status { health, since, error: self.error }
    }
}

/// What an earlier run found; nothing where no sound file is there: backends are up then until they
/// are asked.
pub fn load(directory: &Path) -> Found {
    let file = directory.join(FILE);
    let small = fs::metadata(&file).is_ok_and(|data| data.len() <= MAX_FILE);
    let text = if small { fs::read(&file).unwrap_or_default() } else { Vec::new() };
    let document: Document = serde_json::from_slice(&text).unwrap_or_default();
    let mut found = Found::new();
    for (service, backends) in document.backends {
        for (backend, kept) in backends {
            found.insert((service.clone(), backend), kept.status());
        }
    }
    found
}

/// Keeps what it is given, one after another; what comes meanwhile is kept together. Needs a tokio
/// runtime.
pub fn keep(directory: PathBuf) -> watch::Sender<Arc<Found>> {
    let (sender, mut found) = watch::channel(Arc::<Found>::default());
    tokio::spawn(async move {
        while found.changed().await.is_ok() {
            let (directory, found) = (directory.clone(), found.borrow_and_update().clone());
            let saved = tokio::task::spawn_blocking(move || save(&directory, &found)).await;
            if let Err(error) = saved.map_err(io::Error::other).and_then(|result| result) {
                warn!("what health checks found cannot be kept for the next start: {error}");
            }
        }
    });
    sender
}

/// Keeps what was found.
///
/// # Errors
///
/// Where the file system refuses; the file is then as before.
pub fn save(directory: &Path, found: &Found) -> io::Result<()> {
    let mut document = Document::default();
    for ((service, backend), status) in found {
        if let Some(kept) = Kept::of(status) {
            document.backends.entry(service.clone()).or_default().insert(backend.clone(), kept);
        }
    }
    fs::create_dir_all(directory)?;
    files::replace(&directory.join(FILE), &serde_json::to_vec(&document)?)
}
