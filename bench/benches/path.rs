//! Whole paths over veth: what is delivered, what it takes, and how long connections take; beside
//! nftables rules and kube-proxy.

use std::{error::Error, io::Write as _, path::PathBuf};

use xdp_lb_bench::{
    path::{Scale, measure},
    report,
};

fn main() -> Result<(), Box<dyn Error>> {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "skipped: network namespaces and XDP need root")?;
        return Ok(());
    }
    let quick = report::Arguments::read().quick;
    let asked = |variable, usual: &[u32]| match std::env::var(variable) {
        Ok(text) => text.split(',').filter(|one| !one.is_empty()).map(str::parse).collect(),
        Err(_) => Ok(usual.to_vec()),
    };
    let (some, of_cluster): (&[u32], &[u32]) =
        if quick { (&[1000], &[1]) } else { (&[1, 1000, 10_000], &[1, 1000]) };
    let scale = Scale {
        services: asked("XDP_LB_BENCH_SERVICES", some)?,
        kubernetes: asked("XDP_LB_BENCH_KUBERNETES", of_cluster)?,
        packets: if quick { 200_000 } else { 1_000_000 },
        connections: if quick { 300 } else { 3000 },
        changes: if quick { 3 } else { 15 },
        daemon: PathBuf::from(env!("CARGO_BIN_EXE_xdp-lb-benched")),
    };
    let mut skipped = Vec::new();
    let paths = measure(&scale, |what| skipped.push(what.to_owned()))?;
    let text = report::store(|report| report.paths = paths)?;
    let mut out = std::io::stdout().lock();
    write!(out, "\n{text}")?;
    for what in skipped {
        writeln!(out, "skipped: {what}")?;
    }
    Ok(())
}
