//! What the daemon asks of its process: signals, systemd, capabilities, whether a file changed.

use std::{io, time::SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// What tells a changed file from an unchanged one, also when it is replaced by a rename.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stamp(Option<(SystemTime, u64, u64)>);

impl Stamp {
    pub(super) fn of(path: &std::path::Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.and_then(|one| Some((one.modified().ok()?, one.len(), one.ino()))))
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// What a signal asks for.
pub(super) enum Event {
    Stop,
    Reload,
}

impl Signals {
    /// Waits until the process is to stop.
    pub(super) async fn stop(&mut self) {
        while !matches!(self.next().await, Event::Stop) {}
    }

    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hang_up.recv() => Event::Reload,
        }
    }
}

/// Whether this process may do without being root.
pub(crate) fn has_capabilities() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: u64 = 1 << 12 | 1 << 38 | 1 << 39; // NET_ADMIN, PERFMON, BPF
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    bits & NEEDED == NEEDED || bits & SYS_ADMIN != 0
}

/// Tells systemd, where it asked to be told (sd_notify(3)).
pub(super) fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("cannot notify systemd: {error}");
    }
}
