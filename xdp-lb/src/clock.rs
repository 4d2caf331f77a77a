//! The clock that the data path dates flows by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The kernel's monotonic clock in its coarse form: `bpf_ktime_get_coarse_ns` reads the same one
/// (Linux 5.11), so what it says here is never ahead of what a later packet sees.
pub fn now() -> Duration {
    // The clock is there since Linux 2.6.32, so this cannot fail; standing still moves no flow.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs() {
        let start = now();
        assert_ne!(start, Duration::ZERO);
        std::thread::sleep(Duration::from_millis(30));
        assert!(now() > start);
    }
}
