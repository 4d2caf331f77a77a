//! `xdp-lb stats --rate`: what passes a second, again and again, read from the pinned maps. It works
//! with and without a daemon, and changes nothing.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use xdp_lb_api::rfc3339;

use crate::{
    pins::Pins,
    stats::{self, Stats, StatsError, columns},
};

/// Cursor to the upper left corner, and everything behind it erased (ECMA-48).
const HOME: &str = "\x1b[H\x1b[J";

/// What passed a second, between two moments.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// When they end, RFC 3339
    pub time: String,
    /// Seconds between the two moments
    pub seconds: f64,
    /// All frontends together
    pub total: Rate,
    /// By frontend, in the order of their addresses
    pub frontends: Vec<FrontendRate>,
    /// By backend, of all frontends
    pub backends: Vec<BackendRate>,
    /// By reason; those that did not happen are left out
    pub reasons: Vec<ReasonRate>,
}

/// What passed a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Packets forwarded
    pub packets_per_second: f64,
    /// Bytes of layer 3 forwarded
    pub bytes_per_second: f64,
    /// TCP SYN and SCTP INIT packets forwarded
    pub new_flows_per_second: f64,
}

/// A frontend's rates.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRate {
    /// Address, port and protocol
    pub frontend: String,
    /// `rest`, `handover` or `exceptions`
    pub phase: &'static str,
    /// Its rates
    #[serde(flatten)]
    pub rate: Rate,
    /// Ids of its backends
    pub backends: Vec<u32>,
}

/// A backend's rates.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRate {
    /// Backend id
    pub id: u32,
    /// Address and port
    pub backend: String,
    /// Its rates
    #[serde(flatten)]
    pub rate: Rate,
}

/// A reason's rates.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonRate {
    /// Name
    pub reason: &'static str,
    /// What becomes of such packets
    pub disposition: &'static str,
    /// Packets
    pub packets_per_second: f64,
    /// Bytes of the frames
    pub bytes_per_second: f64,
}

/// Packets, bytes and new flows up to a moment.
type Counts = [u64; 3];

/// A counter that went back has a new owner, and began at nothing.
fn grown(after: u64, before: u64) -> u64 {
    after.checked_sub(before).unwrap_or(after)
}

fn rate(after: Counts, before: Counts, seconds: f64) -> Rate {
    let per_second = |index: usize| grown(after[index], before[index]) as f64 / seconds;
    Rate {
        packets_per_second: per_second(0),
        bytes_per_second: per_second(1),
        new_flows_per_second: per_second(2),
    }
}

impl Rates {
    /// What passed between two readings that are `elapsed` apart. What is new counts from nothing.
    pub fn between(before: &Stats, after: &Stats, elapsed: Duration, time: SystemTime) -> Self {
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let frontends: HashMap<&str, Counts> = before
            .frontends
            .iter()
            .map(|one| (one.frontend.as_str(), [one.packets, one.bytes, one.new_flows]))
            .collect();
        // Ids are given away again.
        let backends: HashMap<(u32, &str), Counts> = before
            .backends
            .iter()
            .map(|one| ((one.id, one.backend.as_str()), [one.packets, one.bytes, one.new_flows]))
            .collect();
        let reasons: HashMap<&str, (u64, u64)> =
            before.reasons.iter().map(|one| (one.reason, (one.packets, one.bytes))).collect();
        let frontends: Vec<FrontendRate> = after
            .frontends
            .iter()
            .map(|one| {
                let was = frontends.get(one.frontend.as_str()).copied().unwrap_or_default();
                let is = [one.packets, one.bytes, one.new_flows];
                FrontendRate {
                    frontend: one.frontend.clone(),
                    phase: one.phase,
                    rate: rate(is, was, seconds),
                    backends: one.backends.iter().map(|share| share.id).collect(),
                }
            })
            .collect();
        let backends = after.backends.iter().map(|one| {
            let was = backends.get(&(one.id, one.backend.as_str())).copied().unwrap_or_default();
            let is = [one.packets, one.bytes, one.new_flows];
            let backend = one.backend.clone();
            BackendRate { id: one.id, backend, rate: rate(is, was, seconds) }
        });
        let reasons = after.reasons.iter().filter_map(|one| {
            let was = reasons.get(one.reason).copied().unwrap_or_default();
            let (packets, bytes) = (grown(one.packets, was.0), grown(one.bytes, was.1));
            (packets > 0).then(|| ReasonRate {
                reason: one.reason,
                disposition: one.disposition,
                packets_per_second: packets as f64 / seconds,
                bytes_per_second: bytes as f64 / seconds,
            })
        });
        let total = frontends.iter().fold(Rate::default(), |sum, one| Rate {
            packets_per_second: sum.packets_per_second + one.rate.packets_per_second,
            bytes_per_second: sum.bytes_per_second + one.rate.bytes_per_second,
            new_flows_per_second: sum.new_flows_per_second + one.rate.new_flows_per_second,
        });
        let (backends, reasons) = (backends.collect(), reasons.collect());
        Self { time: rfc3339(time), seconds, total, frontends, backends, reasons }
    }

    /// A table for people: whole numbers, which is all that changes slowly enough to be read.
    pub fn table(&self) -> String {
        let whole = |number: f64| format!("{number:.0}");
        let row = |name: String, state: &str, rate: &Rate| {
            [
                name,
                state.to_owned(),
                whole(rate.packets_per_second),
                whole(rate.bytes_per_second),
                whole(rate.new_flows_per_second),
            ]
        };
        let head = ["FRONTEND / BACKEND", "STATE", "PACKETS/s", "BYTES/s", "NEW FLOWS/s"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.push(row("all".to_owned(), "", &self.total));
        let backends: HashMap<u32, &BackendRate> =
            self.backends.iter().map(|one| (one.id, one)).collect();
        for one in &self.frontends {
            rows.push(row(one.frontend.clone(), one.phase, &one.rate));
            for backend in one.backends.iter().filter_map(|id| backends.get(id)) {
                rows.push(row(format!("  -> {}", backend.backend), "", &backend.rate));
            }
        }
        let mut text = columns(&rows);
        if !self.reasons.is_empty() {
            let head = ["NOT FORWARDED BECAUSE", "THEN", "PACKETS/s", "BYTES/s"];
            let mut rows = vec![head.map(str::to_owned)];
            rows.extend(self.reasons.iter().map(|one| {
                let (packets, bytes) = (whole(one.packets_per_second), whole(one.bytes_per_second));
                [one.reason.to_owned(), one.disposition.to_owned(), packets, bytes]
            }));
            let _ = write!(text, "\n{}", columns(&rows));
        }
        text
    }
}

/// How often, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Time between two readings
    pub interval: Duration,
    /// How many times; for ever where nothing is said
    pub count: Option<u64>,
    /// One JSON object a line instead of tables
    pub json: bool,
}

/// Why it ends too early.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    /// The data path cannot be read.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    /// The rates are no JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints rates until it has done so often enough, or nobody reads any more.
///
/// # Errors
///
/// Where the data path cannot be read, or the output not be written.
pub fn run(pins: &Pins, options: Options) -> Result<(), RateError> {
    let mut before = (stats::read_traffic(pins)?, Instant::now());
    let mut done = 0;
    while options.count.is_none_or(|count| done < count) {
        // From reading to reading: what reading takes does not add up.
        sleep(options.interval.saturating_sub(before.1.elapsed()));
        let after = (stats::read_traffic(pins)?, Instant::now());
        let elapsed = after.1.duration_since(before.1);
        let rates = Rates::between(&before.0, &after.0, elapsed, SystemTime::now());
        let text = if options.json {
            format!("{}\n", serde_json::to_string(&rates)?)
        } else {
            shown(&rates, io::stdout().is_terminal(), done == 0)
        };
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
        before = after;
        done += 1;
    }
    Ok(())
}

/// A table: on a terminal in the place of the one before, elsewhere below it.
fn shown(rates: &Rates, terminal: bool, first: bool) -> String {
    let text = format!("{}, {:.1} s\n{}", rates.time, rates.seconds, rates.table());
    if terminal {
        let height = terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0));
        return format!("{HOME}{}", fit(&text, height));
    }
    if first { text } else { format!("\n{text}") }
}

/// As many lines as a terminal shows, and how many more there are.
fn fit(text: &str, height: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // The cursor takes the line behind the last.
    let room = height.saturating_sub(1).max(1);
    if lines.len() <= room {
        return text.to_owned();
    }
    let mut fitting = lines[..room - 1].join("\n");
    let _ = write!(fitting, "\n… {} more lines\n", lines.len() - room + 1);
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{BackendStats, FrontendStats, ReasonStats, Share};

    /// One frontend with one backend, of this id.
    fn reading(packets: u64, backend: (u32, &str), dropped: u64) -> Stats {
        let share = Share {
            id: backend.0,
            backend: backend.1.to_owned(),
            mode: "l2",
            state: "active",
            slots: 1,
            recorded_flows: 0,
        };
        let frontend = FrontendStats {
            frontend: "203.0.113.1:80/TCP".to_owned(),
            phase: "rest",
            table_size: 1,
            packets,
            bytes: packets * 100,
            new_flows: packets / 10,
            backends: vec![share],
        };
        let backend = BackendStats {
            id: backend.0,
            backend: backend.1.to_owned(),
            mode: "l2",
            next_hop: None,
            packets,
            bytes: packets * 100,
            new_flows: packets / 10,
        };
        let reason =
            ReasonStats { reason: "not_ip", disposition: "pass", packets: dropped, bytes: dropped };
        Stats {
            frontends: vec![frontend],
            backends: vec![backend],
            reasons: vec![reason],
            ..Stats::default()
        }
    }

    fn between(before: &Stats, after: &Stats) -> Rates {
        Rates::between(before, after, Duration::from_secs(2), SystemTime::UNIX_EPOCH)
    }

    const B1: (u32, &str) = (1, "10.0.0.1:80");

    #[test]
    fn a_rate_is_what_passed_by_the_time_that_it_took() {
        let rates = between(&reading(1000, B1, 7), &reading(1500, B1, 7));
        let wanted = Rate {
            packets_per_second: 250.0,
            bytes_per_second: 25_000.0,
            new_flows_per_second: 25.0,
        };
        assert_eq!(rates.total, wanted);
        assert_eq!((rates.frontends[0].rate, rates.backends[0].rate), (wanted, wanted));
        assert!(rates.reasons.is_empty(), "it did not happen meanwhile");
        assert_eq!(
            rates.table(),
            "FRONTEND / BACKEND  STATE  PACKETS/s  BYTES/s  NEW FLOWS/s\n\
             all                              250    25000           25\n\
             203.0.113.1:80/TCP  rest         250    25000           25\n\
             \u{20} -> 10.0.0.1:80                 250    25000           25\n"
        );
    }

    #[test]
    fn counters_of_new_owners_count_from_nothing() {
        let after = reading(100, B1, 9);
        assert_eq!(between(&reading(5000, B1, 7), &after).total.packets_per_second, 50.0);
        let other = between(&reading(60, (1, "10.0.0.9:80"), 7), &after);
        assert_eq!(other.backends[0].rate.packets_per_second, 50.0);
        assert_eq!(other.reasons[0].packets_per_second, 1.0);
    }

    #[test]
    fn a_table_fits_its_terminal() {
        assert_eq!(fit("a\nb\n", 3), "a\nb\n");
        assert_eq!(fit("a\nb\nc\nd\n", 4), "a\nb\n… 2 more lines\n");
        assert_eq!(fit("a\nb\n", 0), "\n… 2 more lines\n");
    }
}
