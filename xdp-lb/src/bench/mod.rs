//! Benchmarks of the packet path, on programs and tables of their own.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` runs a program again and again on its own output. So the program
//! that is run here is a small one of the benchmark's own: it writes the frame anew, of the next flow,
//! and goes on in the program that is measured by a tail call. What that costs is in the floor, the
//! same with `return XDP_TX`, which takes turns with each case.

mod cases;
mod compare;
mod error;
mod html;
mod kernel;
mod machine;
mod runs;
mod statistics;
mod text;
mod worker;
mod world;

use std::{panic, thread, time::SystemTime};

use xdp_lb_api::{
    benchmark::{BenchmarkRequest, BenchmarkScale, Case, Method, REPORT_VERSION, Report},
    rfc3339,
};

pub(crate) use self::worker::work;
use self::{cases::cases, kernel::Kernel};
pub use self::{
    compare::{Change, Compared, compare},
    error::Error,
    html::html,
    machine::machine,
    runs::Runs,
    statistics::Sample,
    text::text,
};

/// How much is measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which cases
    pub scale: BenchmarkScale,
    /// Only those whose name contains this; the floors are measured in any case
    pub filter: String,
    /// Fresh loads
    pub loads: u32,
    /// Turns of floor and case in each load
    pub turns: u32,
    /// Packets in each turn
    pub packets: u32,
    /// Share of one CPU that may be used, above 0 and at most 1
    pub share: f64,
}

impl Options {
    /// As `cargo bench` measures.
    pub fn new(scale: BenchmarkScale) -> Self {
        Self { scale, filter: String::new(), loads: 7, turns: 6, packets: 20_000, share: 1.0 }
    }
}

/// Measures the packet path. `progress` is told how much is done, from 0 to 1.
///
/// # Errors
///
/// Where the kernel refuses, or a packet does not become what its case says.
pub fn run(options: &Options, progress: impl FnMut(f64) + Send) -> Result<Report, Error> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let isolated = kernel::isolate();
            measure(options, isolated, progress)
        });
        worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

fn measure(
    options: &Options,
    isolated: bool,
    mut progress: impl FnMut(f64),
) -> Result<Report, Error> {
    let mut report = empty();
    let mut all = cases(options.scale);
    let floors = all.iter().filter(|case| is_floor(&case.name)).count();
    all.retain(|case| is_floor(&case.name) || case.name.contains(&options.filter));
    if all.len() == floors {
        return Err(Error::Filter(options.filter.clone()));
    }
    let flows = match options.scale {
        BenchmarkScale::Quick => 1 << 16,
        BenchmarkScale::Full => 1 << 20,
    };
    let mut samples = vec![(Sample::default(), Sample::default()); all.len()];
    for load in 0..options.loads {
        let mut kernel = Kernel::load(flows, options.share, isolated)?;
        let mut services = 0;
        for (index, case) in all.iter().enumerate() {
            if case.services > services {
                services = case.services;
                kernel.world.enlarge(services)?;
            }
            let turns = kernel.time(case, options.turns, options.packets)?;
            let floor = statistics::middle(turns.iter().map(|turn| turn.0));
            let whole = statistics::middle(turns.iter().map(|turn| turn.1));
            samples[index].0.push(whole);
            samples[index].1.push(whole - floor);
            let done = load as usize * all.len() + index + 1;
            progress(done as f64 / (options.loads as usize * all.len()) as f64);
        }
    }
    let lookup = all.iter().position(|case| case.name == cases::HASH_LOOKUP);
    let hash_lookup_ns = lookup.map_or(0.0, |index| samples[index].1.median());
    let figures = all.iter().zip(&samples).map(|(case, (whole, above))| {
        let per_lookup = if hash_lookup_ns > 0.0 { above.median() / hash_lookup_ns } else { 0.0 };
        Case {
            name: case.name.clone(),
            median_ns: tenths(whole.median()),
            min_ns: tenths(whole.min()),
            max_ns: tenths(whole.max()),
            above_floor_ns: tenths(above.median()),
            above_floor_min_ns: tenths(above.min()),
            above_floor_max_ns: tenths(above.max()),
            hash_lookups: (per_lookup * 100.0).round() / 100.0,
            mpps: (100_000.0 / whole.median()).round() / 100.0,
        }
    });
    (report.floors, report.cases) = figures.partition(|case: &Case| is_floor(&case.name));
    report.method = Method { loads: options.loads, turns: options.turns, packets: options.packets };
    report.hash_lookup_ns = tenths(hash_lookup_ns);
    Ok(report)
}

/// A report of this machine and this moment, without figures.
pub fn empty() -> Report {
    Report {
        version: REPORT_VERSION,
        created: rfc3339(SystemTime::now()),
        xdp_lb: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        method: Method::default(),
        hash_lookup_ns: 0.0,
        floors: Vec::new(),
        cases: Vec::new(),
        control_plane: Vec::new(),
        paths: Vec::new(),
    }
}

/// Whether there is a case of what is asked for.
fn is_known(request: &BenchmarkRequest) -> bool {
    cases(request.scale)
        .iter()
        .any(|case| !is_floor(&case.name) && case.name.contains(&request.filter))
}

fn is_floor(name: &str) -> bool {
    name.starts_with("floor-")
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report whose cases are this much above the floor: least, median, most.
    pub(super) fn report(cases: &[(&str, [f64; 3])]) -> Report {
        let case = |(name, [least, median, most]): &(&str, [f64; 3])| Case {
            name: (*name).to_owned(),
            median_ns: median + 40.0,
            min_ns: least + 40.0,
            max_ns: most + 40.0,
            above_floor_ns: *median,
            above_floor_min_ns: *least,
            above_floor_max_ns: *most,
            hash_lookups: median / 30.0,
            mpps: 1000.0 / (median + 40.0),
        };
        Report { hash_lookup_ns: 30.0, cases: cases.iter().map(case).collect(), ..empty() }
    }
}
