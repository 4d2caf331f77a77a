//! The command line.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    daemon::{self, Options},
    demo::{self, Scenario},
    error::chain,
    pins::Pins,
    stats,
};

/// An XDP load balancer: Maglev hashing and direct server return on the network card's driver hook.
#[derive(Debug, Parser)]
#[command(name = "xdp-lb", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: load the data path, attach it, and keep it equal to the configuration
    Run {
        /// Configuration file
        #[arg(long, short, value_name = "FILE", env = "XDP_LB_CONFIG")]
        config: PathBuf,
        #[command(flatten)]
        pins: PinDir,
        /// Remove the data path at a clean stop; without it, traffic goes on without the daemon
        #[arg(long)]
        detach_on_exit: bool,
    },
    /// Check a configuration file as a whole, and print every mistake with its place
    Check {
        /// Configuration file
        #[arg(long, short, value_name = "FILE", env = "XDP_LB_CONFIG")]
        config: PathBuf,
    },
    /// Show what the data path counted, with or without a daemon
    Stats {
        #[command(flatten)]
        pins: PinDir,
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Detach from all devices and remove the data path that an earlier run left
    Clean {
        #[command(flatten)]
        pins: PinDir,
    },
    /// Show it at work: the daemon with real traffic in a lab of network namespaces (root)
    #[command(long_about = DEMO)]
    Demo {
        /// What to show
        #[arg(value_enum, default_value_t)]
        scenario: Scenario,
        /// Leave the lab up, and print commands to look around with
        #[arg(long)]
        keep: bool,
        /// Remove what a demo left that was kept or killed, pins included
        #[arg(long, conflicts_with_all = ["keep", "scenario"])]
        clean: bool,
        /// Begins the names of namespaces, pins and files; demos of other prefixes are left alone
        #[arg(long, value_name = "NAME", default_value = demo::PREFIX)]
        prefix: String,
    },
    /// A backend of the demo
    #[command(hide = true)]
    DemoServer {
        /// Name in its answers
        #[arg(long)]
        name: String,
        /// Where it serves HTTP
        addresses: Vec<SocketAddr>,
    },
}

/// What `xdp-lb demo --help` says.
const DEMO: &str = "\
Show it at work: the daemon with real traffic in a lab of network namespaces (root).

Builds a client, a router, a balancer and six backends as network namespaces, starts this daemon \
and HTTP servers in them, sends real requests over IPv4 and IPv6, and reports what it observed: \
who served how many, that answers bypass the balancer, what the packets look like, and that \
connections go on while a backend is taken out. It takes some seconds, changes nothing outside of its \
namespaces but files and pins of its own, and removes it all. It ends with 0 only if everything \
that it claims was observed.

It needs root, a kernel with native XDP on veth devices, and the programs ip and ethtool.";

#[derive(Debug, clap::Args)]
struct PinDir {
    /// Directory in a BPF file system where the data path is pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/xdp-lb", env = "XDP_LB_PIN_DIR")]
    pin_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Cli {
    /// Runs the command; errors go to standard error.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run { config, pins, detach_on_exit } => {
                run(Options { config, pins: pins.pin_dir, detach_on_exit })
            }
            Command::Check { config } => check(&config),
            Command::Stats { pins, output } => show(&Pins::new(pins.pin_dir), output),
            Command::Clean { pins } => clean(&Pins::new(pins.pin_dir)),
            Command::Demo { clean: true, prefix, .. } => clean_demo(&prefix),
            Command::Demo { scenario, keep, clean: false, prefix } => {
                match demo::run(&demo::Options { scenario, keep, prefix }) {
                    // The report has said which of its claims failed.
                    Ok(false) => return ExitCode::FAILURE,
                    result => result.map(drop).map_err(anyhow::Error::new),
                }
            }
            Command::DemoServer { name, addresses } => {
                demo::serve(&name, &addresses).map_err(anyhow::Error::new)
            }
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "xdp-lb: {}", chain(error.as_ref()));
                ExitCode::FAILURE
            }
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("XDP_LB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    // One writer, and a few sockets: more threads would only wait.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(daemon::run(options)).map_err(anyhow::Error::new)
}

fn check(config: &std::path::Path) -> anyhow::Result<()> {
    let config = daemon::read_config(config)?;
    let frontends: usize = config.services.iter().map(|service| service.frontends.len()).sum();
    let (services, devices) = (config.services.len(), config.devices.len());
    print(&format!("ok: {services} services, {frontends} frontends, {devices} devices\n"))
}

fn show(pins: &Pins, output: Output) -> anyhow::Result<()> {
    let stats = stats::read(pins)?;
    match output {
        Output::Table => print(&stats.table()),
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&stats)?)),
    }
}

fn clean(pins: &Pins) -> anyhow::Result<()> {
    if !pins.exists()? {
        return print("nothing to remove\n");
    }
    let _lock = pins.lock()?;
    let links = pins.links()?;
    pins.clear()?;
    let devices: Vec<String> = links.into_iter().map(|link| link.device).collect();
    let from = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
    print(&format!("removed; it was attached to {from}\n"))
}

fn clean_demo(prefix: &str) -> anyhow::Result<()> {
    let found = demo::clean(prefix)?;
    print(if found { "the demo's lab is removed\n" } else { "nothing to remove\n" })
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
