//! How a scenario begins and ends, and what to do in a lab that stays up.

use std::{env, io::Write};

use super::{
    DemoError, Options,
    report::Report,
    stage::{self, Places, Stage},
};
use crate::lab::Lab;

/// Commands to try, under what they are for.
pub(super) type Block = (&'static str, Vec<String>);

/// Claims the names of a scenario's lab, and begins its report with a title and the section about
/// the network.
pub(super) fn begin<W: Write>(
    report: &mut Report<W>,
    options: &Options,
    title: &str,
) -> Result<(Lab, Places), DemoError> {
    let places = Places::new(&options.prefix);
    places.spare_kept()?;
    let used = places.used();
    let lab = stage::claim(&places)?;
    report.heading(&format!("xdp-lb {}: {title}", env!("CARGO_PKG_VERSION")))?;
    report.section("Network")?;
    if used {
        report.text("(Removed first: what an earlier demo left.)")?;
    }
    if stage::mount_bpf()? {
        report.text("(Mounted, and it stays: a BPF file system on /sys/fs/bpf.)")?;
    }
    Ok((lab, places))
}

/// Removes the lab; or leaves it up, where the user wants that, and says what to do in it.
pub(super) fn end<W: Write>(
    report: &mut Report<W>,
    stage: Stage,
    options: &Options,
    commands: impl FnOnce(&Stage) -> Result<Vec<Block>, DemoError>,
) -> Result<(), DemoError> {
    if !options.keep {
        return Ok(());
    }
    let mut blocks = commands(&stage)?;
    let prefix = &options.prefix;
    let other = if prefix == super::PREFIX { String::new() } else { format!(" --prefix {prefix}") };
    blocks.push(("Remove it all", vec![format!("{} demo --clean{other}", program()?)]));
    report.section("The lab stays up")?;
    for (title, commands) in blocks {
        report.text(&format!("{title}:"))?;
        report.commands(&commands)?;
    }
    stage.keep()
}

/// How to see what a balancer does.
pub(super) fn counters(stage: &Stage, node: &str) -> Result<Block, DemoError> {
    let pins = stage.places.pins(node);
    let command = format!("{} stats --pin-dir {}", program()?, pins.display());
    Ok(("See counters, shares and next hops", vec![command]))
}

/// How to change what it serves.
pub(super) fn changes(stage: &Stage, node: &str) -> Block {
    let (config, log) = (stage.places.config(node), stage.places.log(node));
    (
        "Change the services: the daemon looks at its file every second, and logs",
        vec![format!("${{EDITOR:-vi}} {}", config.display()), format!("tail {}", log.display())],
    )
}

fn program() -> Result<String, DemoError> {
    Ok(env::current_exe().map_err(DemoError::Program)?.display().to_string())
}
