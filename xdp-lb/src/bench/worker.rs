//! The process of a benchmark that a daemon has started.

use std::{
    io::{Read as _, Write as _, stdin, stdout},
    process, thread,
};

use rustix::process::nice;
use xdp_lb_api::benchmark::BenchmarkRequest;

use super::{Options, run, runs::Word};
use crate::error::chain;

/// Share of one CPU that a benchmark beside a data path may use.
const SHARE: f64 = 0.25;
/// The least that the kernel gives CPU time to.
const NICE: i32 = 19;

/// Measures and tells on standard output, at the lowest priority; ends with whoever holds the other end
/// of standard input.
///
/// # Errors
///
/// Where nobody listens any more.
pub(crate) fn work(request: BenchmarkRequest) -> std::io::Result<()> {
    // Where it is not allowed, the share alone bounds it.
    let _ = nice(NICE);
    thread::spawn(|| {
        let _ = stdin().read_to_end(&mut Vec::new());
        process::exit(1);
    });
    let options = Options { filter: request.filter, share: SHARE, ..Options::new(request.scale) };
    let mut told = 0.0;
    let result = run(&options, |done| {
        // A hundred lines are enough.
        if done - told >= 0.01 {
            told = done;
            let _ = tell(&Word::Progress(done));
        }
    });
    tell(&match result {
        Ok(report) => Word::Report(Box::new(report)),
        Err(error) => Word::Failed(chain(&error)),
    })
}

fn tell(word: &Word) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    stdout().lock().write_all(&line)
}
