//! The commands that ask a running daemon, over its API.

mod bench;
pub(crate) mod kube_proxy;
mod monitor;
mod show;
mod simulate;
mod table;
mod yaml;

use std::{
    fs,
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use axum::http::{HeaderName, Method, header};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use xdp_lb_api::{
    client::{Client, escape},
    view::{
        BackendView, DeviceView, FlowCount, FlowView, FrontendView, HealthView, ServiceView,
        StatusView,
    },
};

use self::monitor::MonitorArgs;
pub(crate) use self::{
    bench::{Bench, Scale},
    simulate::Simulation,
};
use crate::config::{SOCKET, yaml_to_json};

/// Longest file of services, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// How to reach the daemon, and how to show its answer.
#[derive(Args, Debug)]
pub(crate) struct Common {
    /// The daemon's unix socket
    #[arg(long, value_name = "PATH", default_value = SOCKET, env = "XDP_LB_SOCKET")]
    socket: PathBuf,
    /// The daemon over TCP instead, like https://192.0.2.1:9870
    #[arg(long, value_name = "URL", env = "XDP_LB_SERVER")]
    server: Option<String>,
    /// File with the token for TCP
    #[arg(long, value_name = "FILE", requires = "server", env = "XDP_LB_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificate of the authority that vouches for the daemon's (PEM)
    #[arg(long, value_name = "FILE", requires = "server", env = "XDP_LB_CA")]
    ca: Option<PathBuf>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    Json,
    Yaml,
}

/// Commands that ask a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show, set and remove services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show backends, and take them out of service
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Show the devices that traffic comes in by
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Show the flows that are recorded, since their backend is not the one of the current table
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Show whether everything is as it should be
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Show packets as they pass, and what becomes of them
    #[command(long_about = monitor::LONG)]
    Monitor {
        #[command(flatten)]
        packets: MonitorArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Print the API's OpenAPI document
    Openapi,
}

/// Commands for services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// List frontends and their backends
    List {
        #[command(flatten)]
        filter: Frontends,
        #[command(flatten)]
        common: Common,
    },
    /// Show a service as it is declared
    Get {
        /// Name of the service
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Create or replace services: one, a list, or all under `services` of a configuration file
    Apply {
        /// YAML or JSON; `-` for standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Only find out whether it could be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Remove services that were set through the API
    Delete {
        /// Names of the services
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
}

/// Commands for backends.
#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// List backends
    List {
        /// Only those of this service
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Give a backend no new flows; it keeps those that it has
    Drain {
        /// Name of its service
        service: String,
        /// `ADDRESS` or `ADDRESS:PORT`, as `backend list` shows it
        backend: String,
        /// Remove it from its service once its last flow is gone; the API's services only
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Give a drained backend new flows again
    Undrain {
        /// Name of its service
        service: String,
        /// `ADDRESS` or `ADDRESS:PORT`, as `backend list` shows it
        backend: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Commands for devices.
#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List devices
    List {
        #[command(flatten)]
        common: Common,
    },
}

/// Which frontends are wanted.
#[derive(Args, Debug, Default)]
pub(crate) struct Frontends {
    /// Only those of services of this namespace: named `NAMESPACE/…`
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only those of services whose name contains this
    #[arg(long, value_name = "PART")]
    name: Option<String>,
    /// Only those of this type: LoadBalancer, NodePort, ExternalIP, ClusterIP
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only those with this address
    #[arg(long, value_name = "ADDRESS")]
    address: Option<std::net::IpAddr>,
}

impl Frontends {
    fn lets_through(&self, one: &FrontendView) -> bool {
        let namespace = |wanted: &String| {
            one.service.split_once('/').is_some_and(|(namespace, _)| namespace == wanted)
        };
        let address = |wanted: &std::net::IpAddr| {
            let socket = one.frontend.rsplit_once('/').and_then(|(socket, _)| socket.parse().ok());
            socket.is_some_and(|socket: std::net::SocketAddr| socket.ip() == *wanted)
        };
        self.namespace.as_ref().is_none_or(namespace)
            && self.name.as_ref().is_none_or(|part| one.service.contains(part))
            && self.kind.as_ref().is_none_or(|kind| one.kind.eq_ignore_ascii_case(kind))
            && self.address.as_ref().is_none_or(address)
    }
}

/// Which flows are wanted.
#[derive(Args, Debug)]
pub(crate) struct Flows {
    /// Only those of this client
    #[arg(long, value_name = "ADDRESS")]
    client: Option<std::net::IpAddr>,
    /// Only those of this frontend, like 203.0.113.10:80/TCP
    #[arg(long, value_name = "FRONTEND")]
    frontend: Option<String>,
    /// Only those of this backend, like 10.0.1.11:80
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: Option<String>,
}

/// Commands for flows.
#[derive(Debug, Subcommand)]
pub(crate) enum FlowCommand {
    /// Count them
    Count {
        #[command(flatten)]
        flows: Flows,
        #[command(flatten)]
        common: Common,
    },
    /// List them
    List {
        #[command(flatten)]
        flows: Flows,
        #[command(flatten)]
        common: Common,
    },
}

impl Flows {
    fn query(&self) -> String {
        let client = self.client.map(|client| client.to_string());
        let all = [("client", &client), ("frontend", &self.frontend), ("backend", &self.backend)];
        let said = all.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let said: Vec<_> = said.map(|(name, value)| format!("{name}={}", escape(value))).collect();
        said.join("&")
    }
}

impl Common {
    fn client(&self) -> anyhow::Result<Client> {
        let Some(server) = &self.server else { return Ok(Client::new(self.socket.clone())) };
        let token = match &self.token_file {
            None => None,
            Some(file) => {
                let text = fs::read_to_string(file);
                let text = text.with_context(|| format!("cannot read {}", file.display()))?;
                text.lines().next().map(|line| line.trim().to_owned())
            }
        };
        Ok(Client::tcp(server, token, self.ca.as_deref())?)
    }

    /// An answer as it was asked for: as data, or by `table`.
    fn form<T: serde::Serialize>(
        &self,
        data: &T,
        table: impl FnOnce(&T, bool) -> table::Table,
    ) -> anyhow::Result<String> {
        Ok(match self.output {
            Form::Table | Form::Wide => {
                let wide = self.output == Form::Wide;
                table(data, wide).text(std::io::stdout().is_terminal())
            }
            Form::Json => format!("{}\n", serde_json::to_string_pretty(data)?),
            Form::Yaml => yaml::yaml(&serde_json::to_value(data)?),
        })
    }
}

impl Command {
    /// Carries it out; what is to be printed comes back.
    ///
    /// # Errors
    ///
    /// Where the daemon does not answer, or refuses.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        if let Self::Openapi = self {
            return Ok(format!("{}\n", xdp_lb_api::document().to_pretty_json()?));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.ask())
    }

    async fn ask(self) -> anyhow::Result<String> {
        match self {
            Self::Service(command) => command.ask().await,
            Self::Backend(command) => command.ask().await,
            Self::Device(DeviceCommand::List { common }) => {
                let devices: Vec<DeviceView> = common.client()?.get("/devices").await?;
                common.form(&devices, |devices, _| show::devices(devices))
            }
            Self::Flow(FlowCommand::Count { flows, common }) => {
                let path = format!("/flows/count?{}", flows.query());
                let count: FlowCount = common.client()?.get(&path).await?;
                common.form(&count, |count, _| show::count(*count))
            }
            Self::Flow(FlowCommand::List { flows, common }) => {
                let path = format!("/flows?{}", flows.query());
                let flows: Vec<FlowView> = common.client()?.list(&path).await?;
                common.form(&flows, |flows, _| show::flows(flows))
            }
            Self::Status { common } => {
                let client = common.client()?;
                let status: StatusView = client.get("/status").await?;
                let health: HealthView = client.get("/health").await?;
                let both = serde_json::json!({"status": status, "health": health});
                let text = common.form(&both, |_, _| show::status(&status, &health))?;
                let table = matches!(common.output, Form::Table | Form::Wide);
                let details = show::replacement(&status.kube_proxy_replacement);
                Ok(if table { text + &details } else { text })
            }
            Self::Monitor { packets, common } => {
                packets.run(&common).await?;
                Ok(String::new())
            }
            Self::Openapi => bail!("the document needs no daemon"),
        }
    }
}

impl ServiceCommand {
    async fn ask(self) -> anyhow::Result<String> {
        match self {
            Self::List { filter, common } => {
                let mut frontends: Vec<FrontendView> = common.client()?.list("/frontends").await?;
                frontends.retain(|one| filter.lets_through(one));
                // Those without a number last.
                frontends.sort_by_key(|one| one.id.unwrap_or(u32::MAX));
                common.form(&frontends, |frontends, wide| show::frontends(frontends, wide))
            }
            Self::Get { name, common } => {
                let path = format!("/services/{}", escape(&name));
                let service: ServiceView = common.client()?.get(&path).await?;
                match common.output {
                    Form::Json => Ok(format!("{}\n", serde_json::to_string_pretty(&service)?)),
                    Form::Yaml => Ok(yaml::yaml(&serde_json::to_value(&service)?)),
                    // What `apply` takes.
                    Form::Table | Form::Wide => Ok(yaml::yaml(&service.service)),
                }
            }
            Self::Apply { file, dry_run, common } => apply(&common.client()?, &file, dry_run).await,
            Self::Delete { names, common } => {
                let client = common.client()?;
                let mut said = String::new();
                for name in names {
                    let path = format!("/services/{}", escape(&name));
                    client.send(Method::DELETE, &path, None, &[]).await?;
                    said.push_str(&format!("service {name} removed\n"));
                }
                Ok(said)
            }
        }
    }
}

/// Sets the services of a file, those that stay the same included: the daemon sees no change there.
async fn apply(client: &Client, file: &Path, dry_run: bool) -> anyhow::Result<String> {
    let services = read_services(file)?;
    let query = if dry_run { "?dryRun=true" } else { "" };
    let mut said = String::new();
    for service in services {
        let Some(name) = service.get("name").and_then(Value::as_str) else {
            bail!("a service has no name: add `name: web`");
        };
        let path = format!("/services/{}", escape(name));
        let before = client.send(Method::GET, &path, None, &[]).await.ok();
        let before = before.and_then(|one| one.etag);
        // Not over a change that somebody else made meanwhile.
        let header: (HeaderName, &str) = match &before {
            Some(tag) => (header::IF_MATCH, tag),
            None => (header::IF_NONE_MATCH, "*"),
        };
        let url = format!("{path}{query}");
        let answer = client.send(Method::PUT, &url, Some(&service), &[header]).await;
        let answer = answer.with_context(|| format!("service {name}"))?;
        let what = match &before {
            None => "created",
            Some(_) if before == answer.etag => "unchanged",
            Some(_) => "replaced",
        };
        let tried = if dry_run { " (dry run)" } else { "" };
        said.push_str(&format!("service {name} {what}{tried}\n"));
    }
    Ok(said)
}

fn read_services(file: &Path) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    let name = file.display().to_string();
    if file == Path::new("-") {
        std::io::stdin().take(MAX_FILE).read_to_string(&mut text)?;
    } else {
        let file = fs::File::open(file).with_context(|| format!("cannot read {name}"))?;
        file.take(MAX_FILE).read_to_string(&mut text)?;
    }
    let value =
        yaml_to_json(&text).map_err(|mistakes| anyhow::anyhow!("{}", mistakes.in_file(&name)))?;
    Ok(match value {
        Value::Array(services) => services,
        Value::Object(mut keys) => match keys.remove("services") {
            Some(Value::Array(services)) => services,
            Some(_) => bail!("{name}: services is no list"),
            None => vec![Value::Object(keys)],
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            bail!("{name} holds no service")
        }
    })
}

impl BackendCommand {
    async fn ask(self) -> anyhow::Result<String> {
        let (service, backend, common, (verb, said)) = match self {
            Self::List { service, common } => {
                let path = match service {
                    Some(service) => format!("/services/{}/backends", escape(&service)),
                    None => "/backends".to_owned(),
                };
                let backends: Vec<BackendView> = common.client()?.list(&path).await?;
                return common.form(&backends, |backends, wide| show::backends(backends, wide));
            }
            Self::Drain { service, backend, remove: false, common } => {
                (service, backend, common, ("drain", "drained"))
            }
            Self::Drain { service, backend, remove: true, common } => {
                let said = "drained, and removed once its last flow is gone";
                (service, backend, common, ("drain?remove=true", said))
            }
            Self::Undrain { service, backend, common } => {
                (service, backend, common, ("undrain", "undrained"))
            }
        };
        let path = format!("/services/{}/backends/{}/{verb}", escape(&service), escape(&backend));
        common.client()?.send(Method::POST, &path, None, &[]).await?;
        Ok(format!("backend {backend} of service {service} {said}\n"))
    }
}
