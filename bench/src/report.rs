//! `target/bench/report.json`, to which each bench adds its part.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use xdp_lb::bench::{html, text};
use xdp_lb_api::benchmark::Report;

/// What the command line of a bench says.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Measure less
    pub quick: bool,
    /// What the names of cases must contain: the last word
    pub filter: String,
}

impl Arguments {
    /// Those of this process; what cargo adds is left out.
    pub fn read() -> Self {
        let mut arguments =
            Self { quick: env::var_os("XDP_LB_BENCH_QUICK").is_some(), filter: String::new() };
        for word in env::args().skip(1) {
            match word.as_str() {
                "--quick" => arguments.quick = true,
                "--bench" => {}
                _ => arguments.filter = word,
            }
        }
        arguments
    }
}

/// The directory of the reports, made where it is not there.
///
/// # Errors
///
/// Where it cannot be made.
pub fn directory() -> io::Result<PathBuf> {
    // This program is in deps/ of a profile's directory.
    let program = env::current_exe()?;
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let directory = target.join("bench");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Changes the report that is there, or an empty one of this machine, and writes it as JSON and HTML;
/// its text.
///
/// # Errors
///
/// Where a file cannot be written.
pub fn store(change: impl FnOnce(&mut Report)) -> io::Result<String> {
    let path = directory()?.join("report.json");
    // What cannot be read is of another version: it is begun anew.
    let had = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut report = had.unwrap_or_else(xdp_lb::bench::empty);
    change(&mut report);
    fs::write(&path, serde_json::to_vec_pretty(&report)?)?;
    fs::write(path.with_extension("html"), html(&report))?;
    Ok(format!("{}\nreports: {} and report.html beside it\n", text(&report), path.display()))
}
