//! The checks: what follows from the facts.

mod devices;
mod network;
mod system;
#[cfg(test)]
mod tests;

use super::{Finding, State, facts::Facts};

/// All checks, in the order of the report.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        system::privileges(facts),
        system::kernel(facts),
        system::options(facts),
        system::btf(facts),
        system::jit(facts),
        system::hardening(facts),
        system::bpffs(facts),
        system::data_path(facts),
        system::locked_memory(facts),
        system::memory(facts),
        system::clock(facts),
    ];
    findings.extend(system::sockets(facts));
    findings.extend(system::configuration(facts));
    findings.extend(devices::all(facts));
    findings.extend(network::all(facts));
    findings
}

fn ok(check: impl Into<String>, detail: impl Into<String>) -> Finding {
    Finding { check: check.into(), state: State::Ok, detail: detail.into(), mend: None }
}

fn unknown(check: impl Into<String>, detail: impl Into<String>) -> Finding {
    Finding { check: check.into(), state: State::Unknown, detail: detail.into(), mend: None }
}

fn warning(
    check: impl Into<String>,
    detail: impl Into<String>,
    mend: impl Into<String>,
) -> Finding {
    let (check, detail, mend) = (check.into(), detail.into(), Some(mend.into()));
    Finding { check, state: State::Warning, detail, mend }
}

fn error(check: impl Into<String>, detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { state: State::Error, ..warning(check, detail, mend) }
}
