//! What the tests with real traffic share: the network, the daemon under test, and what the tables
//! say about a flow.
//!
//! Everything has an end: waiting is bounded, and what a test made is removed when it ends, panics,
//! or is killed.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how they report")]

mod config;
mod daemon;
mod network;
mod predict;
mod scratch;

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use xdp_lb::lab::{Recording, describe, verify};

pub use config::{HASH_KEY, HASH_KEY_TEXT, SOURCE_V4, SOURCE_V6, Service, config, config_with};
pub use daemon::{Daemon, Ended, binary, run, run_here};
pub use network::{
    Net, V4, V4_OVER_6, V6, V6_OVER_4, far, far6, host_name, near, near6, network, vip_at,
};
pub use predict::Prediction;
pub use scratch::Scratch;

/// How long anything may take that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Whether to skip a test, and says so: `if without_root() { return; }`.
pub fn without_root() -> bool {
    let missing = !nix::unistd::geteuid().is_root();
    if missing {
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces and XDP need root");
    }
    missing
}

/// Waits until `done`; panics with `what` after [`PATIENCE`].
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
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
