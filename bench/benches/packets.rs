//! The packet path, case by case: a table on standard output; `report.json` and `report.html` in
//! `target/bench/`.
//!
//! Arguments: a part of the cases' names, and `--quick`.

use std::{error::Error, io::Write as _};

use xdp_lb::bench::{Options, run};
use xdp_lb_api::benchmark::BenchmarkScale;
use xdp_lb_bench::report;

fn main() -> Result<(), Box<dyn Error>> {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "skipped: loading eBPF programs needs root")?;
        return Ok(());
    }
    let arguments = report::Arguments::read();
    let scale = if arguments.quick { BenchmarkScale::Quick } else { BenchmarkScale::Full };
    let mut options = Options::new(scale);
    options.filter = arguments.filter;
    let measured = run(&options, |_| ())?;
    let text = report::store(|report| {
        let (control_plane, paths) =
            (std::mem::take(&mut report.control_plane), std::mem::take(&mut report.paths));
        *report = xdp_lb_api::benchmark::Report { control_plane, paths, ..measured.clone() };
    })?;
    write!(std::io::stdout(), "\n{text}")?;
    Ok(())
}
