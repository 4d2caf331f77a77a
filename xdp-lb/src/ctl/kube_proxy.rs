//! `xdp-lb kube-proxy`: over to xdp-lb, and back.

use std::{fmt::Write as _, io::Write as _, path::PathBuf, thread, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::{
    Common, Form,
    table::{Cell, Table, Tone},
};
use crate::kube_proxy::{
    BACKUP, Comparison, Error, Found, Journal, MANIFESTS, Plan, Removal, RulesState, RunsAs, Stage,
    Told, compare, restore,
};

/// What `xdp-lb kube-proxy --help` says.
pub(crate) const LONG: &str = "\
Take over from kube-proxy on this node, and give back (root).

The order is: run the daemon beside kube-proxy, `takeover` until it finds no difference, `remove` to see \
what would go, `remove --yes`. `restore` puts all of it back. Each of them may be interrupted at any point, \
and run again.";

/// How often a difference is looked at before it counts, and how long is waited between.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// Commands for what kube-proxy did.
#[derive(Debug, Subcommand)]
pub(crate) enum KubeProxy {
    /// Show which kube-proxy runs here, in which mode, and what rules it left
    Status {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        common: Common,
    },
    /// Compare what kube-proxy serves with what xdp-lb serves; ends with 0 only if nothing differs
    Takeover {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        common: Common,
    },
    /// Stop kube-proxy and remove its rules; without --yes, only show what would go
    Remove {
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Do it even though xdp-lb does not serve all that kube-proxy serves
        #[arg(long)]
        force: bool,
        /// Seconds to wait until kube-proxy is gone
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        common: Common,
    },
    /// Put back what `remove` took out, as it was
    Restore {
        #[command(flatten)]
        place: Place,
    },
}

/// Where things are.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Directory of the static pods' manifests
    #[arg(long, value_name = "DIR", default_value = MANIFESTS)]
    manifests: PathBuf,
    /// Directory that keeps what is removed
    #[arg(long, value_name = "DIR", default_value = BACKUP)]
    backup: PathBuf,
}

impl KubeProxy {
    /// Carries it out; what is to be printed comes back, and whether all is well.
    ///
    /// # Errors
    ///
    /// Where it cannot be done; nothing is changed then but what the message says.
    pub(crate) fn run(self) -> anyhow::Result<(String, bool)> {
        match self {
            Self::Status { place, common } => Ok((place.status(&common)?, true)),
            Self::Takeover { place, common } => {
                let found = Found::look(&place.manifests)?;
                let comparison = last(&found, &place, &common)?;
                let text = show_comparison(&comparison, &found, &common)?;
                Ok((text, comparison.differences.is_empty()))
            }
            Self::Remove { yes: false, place, common, .. } => Ok((place.show_plan(&common)?, true)),
            Self::Remove { yes: true, force, timeout, place, common } => {
                Ok((place.remove(force, Duration::from_secs(timeout), &common)?, true))
            }
            Self::Restore { place } => {
                let said = restore(&place.backup, &place.manifests)?;
                Ok((said.into_iter().map(|line| line + "\n").collect(), true))
            }
        }
    }
}

/// Compares until nothing differs, or what differs has lasted: neither of the two is the first to hear of a
/// change.
fn last(found: &Found, place: &Place, common: &Common) -> anyhow::Result<Comparison> {
    let mut comparison = common.compare(found)?;
    for _ in 1..LOOKS {
        if comparison.differences.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        comparison = common.compare(&Found::look(&place.manifests)?)?;
    }
    Ok(comparison)
}

impl Common {
    fn compare(&self, found: &Found) -> anyhow::Result<Comparison> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let told = runtime.block_on(async {
            let client = self.client()?;
            anyhow::Ok(Told {
                frontends: client.list("/frontends").await?,
                devices: client.get("/devices").await?,
                health: client.get("/health").await?,
            })
        })?;
        Ok(compare(found, &told)?)
    }

    /// Text for people, or data.
    fn text_or<T: Serialize>(
        &self,
        data: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<String> {
        match self.output {
            Form::Table | Form::Wide => Ok(text()),
            Form::Json | Form::Yaml => self.form(data, |_, _| Table::new(&[])),
        }
    }

    fn colour() -> bool {
        std::io::IsTerminal::is_terminal(&std::io::stdout())
    }
}

impl Place {
    fn status(&self, common: &Common) -> anyhow::Result<String> {
        let found = Found::look(&self.manifests)?;
        let journal = Journal::read(&self.backup)?;
        let data = json!({"kubeProxy": found, "removal": journal.as_ref().map(|one| one.stage)});
        common.text_or(&data, || self.show_status(&found, journal.as_ref()).text(Common::colour()))
    }

    fn show_status(&self, found: &Found, journal: Option<&Journal>) -> Table {
        let mut table = Table::new(&["What", "State", "Detail"]);
        if found.processes.is_empty() {
            let detail = if found.answers {
                "no process of its name is seen here, but port 10249 answers as kube-proxy does"
            } else {
                ""
            };
            table.row(["process".into(), "none".into(), detail.into()]);
        }
        for one in &found.processes {
            let who = match &one.runs_as {
                RunsAs::StaticPod => "static pod".to_owned(),
                RunsAs::DaemonSet => "Pod of a DaemonSet".to_owned(),
                RunsAs::Unit(unit) => format!("unit {unit}"),
                RunsAs::Program => "no Pod, by its cgroup".to_owned(),
            };
            let state = format!("runs: {}", one.id);
            let detail = format!("{who}; {}", one.command.join(" "));
            table.row(["process".into(), Cell::toned(state, Tone::Good), detail.into()]);
        }
        for path in &found.manifests {
            table.row(["manifest".into(), "there".into(), path.display().to_string().into()]);
        }
        if found.manifests.is_empty() {
            let detail = format!("none in {}", self.manifests.display());
            table.row(["manifest".into(), "none".into(), detail.into()]);
        }
        let mode = found.mode.clone().unwrap_or_else(|| "-".to_owned());
        let from = found.mode_from.map_or("", |from| from.words());
        table.row(["mode".into(), mode.into(), from.into()]);
        for one in &found.rules {
            let what = format!("{} ({})", one.kind, one.family);
            match &one.state {
                RulesState::None => table.row([what.into(), "no rules".into()]),
                RulesState::Present { chains, rules, sets, frontends, kept } => {
                    let (first, second) = match one.kind {
                        "IPVS" => ("virtual servers", "destinations"),
                        _ => ("chains", "rules"),
                    };
                    let mut detail = format!(
                        "{chains} {first}, {rules} {second}, {sets} sets and maps; {frontends} frontends"
                    );
                    for (chain, why) in kept {
                        let _ = write!(detail, "; {chain} is not counted: {why}");
                    }
                    let state = Cell::toned("rules", Tone::Warning);
                    table.row([what.into(), state, detail.into()]);
                }
                RulesState::Unreadable { why } => {
                    let state = Cell::toned("unknown", Tone::Bad);
                    table.row([what.into(), state, why.into()]);
                }
            }
        }
        let removal = match journal.map(|one| one.stage) {
            None => ("none", String::new()),
            Some(Stage::Removed) => {
                ("done", format!("`restore` puts back what is in {}", self.backup.display()))
            }
            Some(Stage::Stopping | Stage::Saved) => {
                ("interrupted", "run `remove --yes` again, or `restore`".to_owned())
            }
            Some(Stage::Restoring | Stage::RulesBack) => {
                ("interrupted restore", "run `restore` again, or `remove --yes`".to_owned())
            }
        };
        table.row(["removal".into(), removal.0.into(), removal.1.into()]);
        table
    }

    fn show_plan(&self, common: &Common) -> anyhow::Result<String> {
        let found = Found::look(&self.manifests)?;
        found_readable(&found)?;
        let plan = Plan::of(&found, &self.backup);
        common.text_or(&plan, || {
            if plan.steps.is_empty() {
                return "nothing of kube-proxy is here\n".to_owned();
            }
            let mut table = Table::new(&["Step", "What", "Name", "Note"]);
            for one in &plan.steps {
                table.row([
                    one.action.into(),
                    (&one.what).into(),
                    (&one.name).into(),
                    (&one.note).into(),
                ]);
            }
            table.text(Common::colour())
                + &format!(
                    "\nNothing was changed. `xdp-lb kube-proxy remove --yes` does this, after `takeover` has \
                     found no difference; all of it is kept in {}.\n",
                    self.backup.display()
                )
        })
    }

    fn remove(&self, force: bool, timeout: Duration, common: &Common) -> anyhow::Result<String> {
        let mut removal = Removal::prepare(&self.backup, &self.manifests)?;
        if removal.is_done() {
            return Ok("nothing of kube-proxy is here\n".to_owned());
        }
        // Of a removal that was interrupted, rules are missing which were compared then.
        if removal.is_whole() && !force {
            let comparison = last(removal.found(), self, common)?;
            if !comparison.differences.is_empty() {
                say(&show_differences(&comparison));
                return Err(Error::Differences(comparison.differences.len()).into());
            }
        }
        removal.stop(timeout, |line| say(&format!("{line}\n")))?;
        removal.take_out()?;
        let left = Found::look(&self.manifests)?;
        if left.runs() || left.has_rules() {
            anyhow::bail!(
                "kube-proxy or some of its rules are there again: somebody has started it. `xdp-lb kube-proxy \
                 status` says how it runs; end that, then run this again"
            );
        }
        Ok(format!(
            "kube-proxy and its rules are removed; all of it is kept in {}, and `xdp-lb kube-proxy restore` \
             puts it back.\nIf `kubernetes.healthz` is `[]` or `kubernetes.healthCheckNodePorts` is `false`, set \
             them now: nobody else answers for this node's health.\n",
            removal.backup().display()
        ))
    }
}

fn found_readable(found: &Found) -> anyhow::Result<()> {
    for one in &found.rules {
        if let RulesState::Unreadable { why } = &one.state {
            anyhow::bail!("{} ({}): {why}", one.kind, one.family);
        }
    }
    Ok(())
}

/// What is told while it goes on.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn show_comparison(
    comparison: &Comparison,
    found: &Found,
    common: &Common,
) -> anyhow::Result<String> {
    common.text_or(comparison, || {
        let mut text = show_differences(comparison);
        let Comparison { frontends, endpoints, differences, notes } = comparison;
        for note in notes {
            let _ = writeln!(text, "note: {note}");
        }
        let _ = match differences.len() {
            0 if !found.has_rules() => writeln!(text, "kube-proxy has no rules here"),
            0 => writeln!(
                text,
                "no difference: xdp-lb serves all {frontends} frontends with their {endpoints} endpoints; go on \
                 with `xdp-lb kube-proxy remove`"
            ),
            count => writeln!(
                text,
                "{count} differences in {frontends} frontends with {endpoints} endpoints: kube-proxy is still \
                 needed"
            ),
        };
        text
    })
}

fn show_differences(comparison: &Comparison) -> String {
    if comparison.differences.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["Frontend", "Service Type", "Service", "Difference", "What to do"]);
    for one in &comparison.differences {
        table.row([
            (&one.frontend).into(),
            (&one.kind).into(),
            (&one.service).into(),
            Cell::toned(&one.reason, Tone::Bad),
            (&one.advice).into(),
        ]);
    }
    table.text(Common::colour()) + "\n"
}
