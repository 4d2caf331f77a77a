//! `xdp-lb bench`: measures here, or has a daemon measure.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stderr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::http::Method;
use clap::{Args, ValueEnum};
use tokio::{signal, time::sleep};
use xdp_lb_api::benchmark::{
    BenchmarkRequest, BenchmarkScale, BenchmarkState, BenchmarkView, Report,
};

use super::{Common, Form, yaml};
use crate::bench::{self, Options};

/// How often a daemon is asked how far it is.
const ASK: Duration = Duration::from_millis(500);

/// What to measure, and where.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// How much is measured: a minute, or some
    #[arg(long, value_enum, default_value_t = Scale::Quick)]
    scale: Scale,
    /// Only cases whose name contains this, like ipv4-tcp-ipip
    #[arg(long, value_name = "PART", default_value = "")]
    filter: String,
    /// Have the daemon measure, beside its data path and at a quarter of one CPU
    #[arg(long)]
    daemon: bool,
    /// Write the report as a page with plots, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: compare two reports (`-o json`), and tell noise from change
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], conflicts_with_all = ["daemon", "html", "filter", "scale"])]
    compare: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Scale {
    /// One of each kind
    Quick,
    /// All, up to a million flows and 10,000 services: it takes 1 GB of memory
    Full,
}

impl From<Scale> for BenchmarkScale {
    fn from(scale: Scale) -> Self {
        match scale {
            Scale::Quick => Self::Quick,
            Scale::Full => Self::Full,
        }
    }
}

impl Bench {
    /// Carries it out; what is to be printed comes back.
    ///
    /// # Errors
    ///
    /// Where nothing can be measured, or a file cannot be used.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        if let [before, after] = self.compare.as_slice() {
            let (list, text) = bench::compare(&read(before)?, &read(after)?);
            return Ok(match self.common.output {
                Form::Table | Form::Wide => text,
                Form::Json => format!("{}\n", serde_json::to_string_pretty(&list)?),
                Form::Yaml => yaml::yaml(&serde_json::to_value(&list)?),
            });
        }
        let report = if self.daemon { self.ask()? } else { self.measure()? };
        if let Some(file) = &self.html {
            fs::write(file, bench::html(&report))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(match self.common.output {
            Form::Table | Form::Wide => bench::text(&report),
            Form::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
            Form::Yaml => yaml::yaml(&serde_json::to_value(&report)?),
        })
    }

    fn measure(&self) -> anyhow::Result<Report> {
        if !nix::unistd::geteuid().is_root() {
            bail!("only root may load eBPF programs; `--daemon` has the daemon measure");
        }
        let options = Options { filter: self.filter.clone(), ..Options::new(self.scale.into()) };
        let report = bench::run(&options, show);
        clear();
        Ok(report?)
    }

    fn ask(&self) -> anyhow::Result<Report> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = self.common.client()?;
            let request =
                BenchmarkRequest { scale: self.scale.into(), filter: self.filter.clone() };
            let body = serde_json::to_value(&request)?;
            let begun = client.send(Method::POST, "/benchmarks", Some(&body), &[]).await?;
            let begun: BenchmarkView = serde_json::from_slice(&begun.body)?;
            let path = format!("/benchmarks/{}", begun.id);
            loop {
                tokio::select! {
                    () = sleep(ASK) => {}
                    _ = signal::ctrl_c() => {
                        let cancel = format!("{path}/cancel");
                        client.send(Method::POST, &cancel, None, &[]).await?;
                        clear();
                        bail!("ended by Ctrl-C, and so is the daemon's run");
                    }
                }
                let view: BenchmarkView = client.get(&path).await?;
                show(view.progress);
                if view.state == BenchmarkState::Running {
                    continue;
                }
                clear();
                return match (view.state, view.report) {
                    (BenchmarkState::Done, Some(report)) => Ok(report),
                    (BenchmarkState::Cancelled, _) => bail!("somebody has ended the run"),
                    _ => bail!("{}", view.message.unwrap_or_else(|| "it failed".to_owned())),
                };
            }
        })
    }
}

/// Shows on a terminal how much is done.
fn show(done: f64) {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r{:3.0} %", done * 100.0);
    }
}

fn clear() {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r     \r");
    }
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| {
        format!("{} is no report of `xdp-lb bench -o json` or `cargo bench`", file.display())
    })
}
