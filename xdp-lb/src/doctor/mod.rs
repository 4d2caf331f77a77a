//! `xdp-lb doctor`: whether this host is fit to balance, what is not, why, and the command that mends it.
//!
//! The facts are read in one place (`gather`); each check is a function of them and nothing else. It
//! works without a daemon, changes nothing, and says what it could not find out.

mod checks;
mod facts;
mod gather;

use std::{fmt, path::Path};

use serde::Serialize;

pub(crate) use self::gather::nftables::chains as nftables_chains;
use crate::pins::Pins;

/// What a check came to; the worst last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be
    Ok,
    /// It could not be found out
    Unknown,
    /// It works, but worse than it could, or not in every case
    Warning,
    /// It does not work
    Error,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at
    pub check: String,
    /// What it came to
    pub state: State,
    /// What is so, and what follows
    pub detail: String,
    /// What to do: a command, or a line of the configuration
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The worst of the findings
    pub state: State,
    /// In the order of the checks
    pub findings: Vec<Finding>,
}

/// Looks at this host. The configuration file need not be there, unless it was `named`.
pub async fn examine(pins: &Pins, config: &Path, named: bool) -> Report {
    report(&gather::gather(pins, config, named).await)
}

fn report(facts: &facts::Facts) -> Report {
    let findings = checks::all(facts);
    let state = findings.iter().map(|one| one.state).max().unwrap_or(State::Ok);
    Report { state, findings }
}

impl Report {
    /// Whether nothing stands against it; with `strict`, not even a warning.
    pub fn is_good(&self, strict: bool) -> bool {
        self.state < if strict { State::Warning } else { State::Error }
    }

    /// Lines for people; a command to mend something is on a line of its own.
    pub fn text(&self, colour: bool) -> String {
        let width = self.findings.iter().map(|one| one.check.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, state, detail, mend } in &self.findings {
            let code = match state {
                State::Ok => "\x1b[32m",
                State::Unknown => "\x1b[36m",
                State::Warning => "\x1b[33m",
                State::Error => "\x1b[31m",
            };
            let (on, off) = if colour { (code, "\x1b[0m") } else { ("", "") };
            let margin = width + 11;
            let detail = detail.replace('\n', &format!("\n{:margin$}", ""));
            text.push_str(&format!("{on}{state:<7}{off}  {check:<width$}  {detail}\n"));
            if let Some(mend) = mend {
                text.push_str(&format!("{:margin$}→ {mend}\n", ""));
            }
        }
        let count = |state| self.findings.iter().filter(|one| one.state == state).count();
        let (errors, warnings) = (count(State::Error), count(State::Warning));
        text.push_str(&format!(
            "\n{} checks: {errors} errors, {warnings} warnings, {} could not be made\n",
            self.findings.len(),
            count(State::Unknown)
        ));
        text
    }
}
