//! What the tests with real traffic share: the network, the daemon under test, and what the tables
//! say about a flow.
//!
//! Everything has an end: waiting is bounded, and what a test made is removed when it ends, panics,
//! or is killed.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how they report")]

mod config;
mod daemon;
mod kubernetes;
mod network;
mod pods;
mod predict;
mod scratch;
mod stream;

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use xdp_lb::lab::{Recording, describe, verify};

pub use config::{HASH_KEY, HASH_KEY_TEXT, SOURCE_V4, SOURCE_V6, Service, config, config_with};
pub use daemon::{Daemon, Ended, binary, run, run_here};
pub use kubernetes::{Cluster, Endpoint, control_plane};
pub use network::{
    Net, V4, V4_OVER_6, V6, V6_OVER_4, far, far6, host_name, near, near6, network, vip_at,
};
pub use pods::{
    POD_PORT, PodService, PodsNet, Seen, assert_whole, client_towards, load_balancer, pods_config,
    seen,
};
pub use predict::Prediction;
pub use scratch::Scratch;
pub use stream::{Arrivals, Stream};

/// How long anything may take that should happen at once: not so long that reading all anew, each half
/// minute, would make up for what was missed.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a daemon may take to start or to end: the kernel verifies its programs meanwhile.
pub(crate) const STARTING: Duration = Duration::from_secs(60);

/// Whether to skip a test, and says so: `if without_root() { return; }`.
pub fn without_root() -> bool {
    let missing = !nix::unistd::geteuid().is_root();
    if missing {
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces and XDP need root");
    }
    missing
}

/// Waits until `done`; panics with `what` after [`PATIENCE`].
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_for(PATIENCE, what, done);
}

/// Waits until `done`; panics with `what` after `limit`.
pub fn wait_for(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Panics unless every length and checksum of a recording is right, and the recording whole.
pub fn assert_right(recording: &Recording) {
    assert_eq!(recording.dropped, 0, "the capture is not whole");
    for frame in &recording.frames {
        if let Err(fault) = verify::checksums(&frame.bytes) {
            panic!("{fault}: {}", describe(&frame.bytes));
        }
    }
}
