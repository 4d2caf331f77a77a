//! What the process takes, by the names that all exporters have.

use std::time::SystemTime;

use procfs::{WithCurrentSystemInfo as _, process::Process};
use xdp_lb_api::prometheus_client::registry::Unit;

use super::page::Page;

/// Adds them to a page; without `/proc` there is nothing to add.
pub(super) fn add(page: &mut Page, started: SystemTime) {
    let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let start = "Start time of the process since the Unix epoch";
    page.gauge_of("process_start_time", Unit::Seconds, start).put(vec![], since.as_secs_f64());
    let Ok(process) = Process::myself() else { return };
    if let Ok(stat) = process.stat() {
        let ticks = procfs::ticks_per_second().max(1);
        let cpu = (stat.utime + stat.stime) as f64 / ticks as f64;
        page.counter_of("process_cpu", Unit::Seconds, "Processor time").put(vec![], cpu);
        let resident = stat.rss_bytes().get();
        page.gauge_of("process_resident_memory", Unit::Bytes, "Memory in RAM")
            .put(vec![], resident);
        page.gauge_of("process_virtual_memory", Unit::Bytes, "Address space")
            .put(vec![], stat.vsize);
        let threads = u64::try_from(stat.num_threads).unwrap_or_default();
        page.gauge("process_threads", "Threads").put(vec![], threads);
    }
    if let Ok(count) = process.fd_count() {
        page.gauge("process_open_fds", "Open file descriptors").put(vec![], count);
    }
    if let Ok(limits) = process.limits()
        && let procfs::process::LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        page.gauge("process_max_fds", "Most open file descriptors").put(vec![], most);
    }
}
