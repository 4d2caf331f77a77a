//! Nanoseconds a packet costs that changes under the program, and the memory of recorded flows.

use std::{error::Error, io::Write as _};

use xdp_lb_bench::pods::{Scale, measure, memory, memory_text, text};

const FLOWS: u32 = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "skipped: loading eBPF programs needs root")?;
        return Ok(());
    }
    let figures = measure(&Scale::full())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}", text(&figures))?;
    write!(out, "{}", memory_text(FLOWS, &memory(FLOWS)?))?;
    Ok(())
}
