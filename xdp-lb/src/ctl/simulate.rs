//! `xdp-lb maglev simulate`: the service comes from a file, or from the running daemon.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use xdp_lb_api::{
    client::{Client, escape},
    view::{BackendState, BackendView, MaglevView, ServiceView},
};
use xdp_lb_plan::{
    maglev::HashKey,
    model::{Backend, Mode, Service},
};

use super::{Common, Form, yaml};
use crate::{
    config::service_from_json,
    daemon::read_config,
    dataplane::hash_key,
    pins::Pins,
    simulate::{Changes, Outcome, simulate},
};

/// What to simulate, and with what.
#[derive(Args, Debug)]
pub(crate) struct Simulation {
    /// Name of the service
    service: String,
    /// The file's service, with the file's key, instead of the running daemon's
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    common: Common,
}

impl Simulation {
    /// Carries it out; what is to be printed comes back. The key of a running data path is read from
    /// its pins.
    ///
    /// # Errors
    ///
    /// Where there is no such service, or it cannot be changed like this.
    pub(crate) fn run(self, pins: &Pins) -> anyhow::Result<String> {
        let Self { service, config, changes, common } = self;
        let outcome = match config {
            Some(path) => {
                let config = read_config(&path)?;
                let found = config.services.iter().find(|one| one.name == service);
                let Some(found) = found else {
                    let names: Vec<&str> = config.services.iter().map(|one| &*one.name).collect();
                    bail!(
                        "{} has no service {service}; it has {}",
                        path.display(),
                        names.join(", ")
                    )
                };
                simulate(&HashKey::from(config.hash_key), found, &changes)?
            }
            None => {
                let key = HashKey::from(hash_key(pins).context(
                    "the key of the running data path cannot be read: run this as root, or name a file \
                     with --config",
                )?);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(live(&common.client()?, &service, &key, &changes))?
            }
        };
        Ok(match common.output {
            Form::Table | Form::Wide => outcome.text(),
            Form::Json => format!("{}\n", serde_json::to_string_pretty(&outcome)?),
            Form::Yaml => yaml::yaml(&serde_json::to_value(&outcome)?),
        })
    }
}

/// The service of the running daemon, with the weights that are in force now.
async fn live(
    client: &Client,
    name: &str,
    key: &HashKey,
    changes: &Changes,
) -> anyhow::Result<Outcome> {
    let path = format!("/services/{}", escape(name));
    let view: ServiceView = client.get(&path).await?;
    let config: Value = client.get("/config").await?;
    let pods = config["terminate"]["pods"].as_array().into_iter().flatten();
    let pods: Vec<_> = pods.filter_map(|net| net.as_str()?.parse().ok()).collect();
    let mode = Mode::NAMES.iter().find(|(name, _)| config["defaultMode"] == *name);
    let mode = mode.map(|(_, mode)| *mode).unwrap_or_default();
    let mut service = service_from_json(&view.service, mode, &pods)
        .map_err(|mistakes| anyhow::anyhow!("{}", mistakes.in_file(name)))?;
    let backends: Vec<BackendView> = client.list(&format!("{path}/backends")).await?;
    let notes = weigh(&mut service, &backends);
    let mut outcome = simulate(key, &service, changes)?;
    outcome.notes.extend(notes);
    for one in &outcome.tables {
        let Some(frontend) = one.frontends.iter().find(|one| !one.starts_with("nodePort")) else {
            continue;
        };
        let installed: MaglevView = match client.get(&format!("/maglev/{}", escape(frontend))).await
        {
            Ok(installed) => installed,
            Err(error) => {
                outcome.notes.push(format!("{frontend} is not served now: {error}"));
                continue;
            }
        };
        if Some(&installed.digest) != one.digest.first() {
            outcome.notes.push(format!(
                "the table of {frontend} that is installed is another one (digest {}): the service is \
                 changing, try again",
                installed.digest
            ));
        }
    }
    Ok(outcome)
}

/// Gives backends the weights that they have now: drained ones and those that are down none, others what
/// they asked for themselves. What was changed is told.
fn weigh(service: &mut Service, backends: &[BackendView]) -> Vec<String> {
    let mut notes = Vec::new();
    let name = |one: &Backend| match one.port {
        Some(port) => std::net::SocketAddr::new(one.address, port.get()).to_string(),
        None => one.address.to_string(),
    };
    for backend in &mut service.backends {
        let name = name(backend);
        let Some(view) = backends.iter().find(|one| one.backend == name) else { continue };
        let asked = view.health.as_ref().and_then(|health| health.weight);
        let (weight, why) = if view.drained {
            (0, "drained")
        } else if view.state == BackendState::Down {
            (0, "down")
        } else {
            (asked.unwrap_or(backend.weight), "by its own wish")
        };
        if weight != backend.weight {
            notes.push(format!(
                "{name} has weight {weight} now instead of {}: {why}",
                backend.weight
            ));
            backend.weight = weight;
        }
    }
    notes
}
