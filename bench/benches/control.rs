//! The control plane: Maglev tables beside the `maglev` crate, and 10,000 services planned and
//! installed. Adds to `target/bench/report.json`.

use std::{error::Error, io::Write as _};

use xdp_lb_bench::{
    control::{Scale, services, tables},
    report,
};

fn main() -> Result<(), Box<dyn Error>> {
    let quick = report::Arguments::read().quick;
    let scale = Scale {
        sizes: if quick { vec![65_537] } else { vec![16_381, 65_537, 131_071] },
        backends: if quick { vec![100, 1000] } else { vec![10, 100, 1000, 10_000] },
        builds: if quick { 20 } else { 100 },
        crate_builds: if quick { 2 } else { 5 },
        services: if quick { 1000 } else { 10_000 },
        rounds: 3,
    };
    let mut cases = tables(&scale);
    let mut out = std::io::stdout().lock();
    if nix::unistd::geteuid().is_root() {
        cases.extend(services(&scale)?);
    } else {
        writeln!(out, "skipped: installing services needs root")?;
    }
    write!(out, "\n{}", report::store(|report| report.control_plane = cases)?)?;
    Ok(())
}
