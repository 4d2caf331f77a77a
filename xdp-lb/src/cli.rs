//! The command line.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;
use xdp_lb_api::benchmark::BenchmarkRequest;

use crate::{
    bench, ctl,
    daemon::{self, Options},
    demo::{self, Scenario},
    doctor,
    error::chain,
    lab::kubernetes::{StandIns, Target, serve_names, use_services},
    maglev_cli, pages,
    pins::Pins,
    rate, stats,
    trace_cli::{self, TraceArgs},
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
        /// Directory that keeps what is set through the API
        #[arg(
            long,
            value_name = "DIR",
            default_value = "/var/lib/xdp-lb",
            env = "XDP_LB_STATE_DIR"
        )]
        state_dir: PathBuf,
        /// Unix socket of the API, instead of the configuration's
        #[arg(long, value_name = "PATH", env = "XDP_LB_SOCKET")]
        socket: Option<PathBuf>,
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
        #[command(flatten)]
        rate: RateArgs,
    },
    /// Look whether this host is fit to balance: what is not, why, and what mends it
    Doctor {
        /// Configuration file, if it is there; without one, all devices are looked at
        #[arg(long, short, value_name = "FILE", env = "XDP_LB_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        pins: PinDir,
        /// End with 1 where there are warnings, too
        #[arg(long)]
        strict: bool,
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Tell what would happen to a packet now, step by step (root)
    #[command(long_about = trace_cli::LONG)]
    Trace {
        #[command(flatten)]
        packet: TraceArgs,
        #[command(flatten)]
        pins: PinDir,
        /// Form of the output; of JSON a line for each packet
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    #[command(flatten)]
    Ask(ctl::Command),
    /// Take over from kube-proxy on this node, and give back (root)
    #[command(subcommand, long_about = ctl::kube_proxy::LONG)]
    KubeProxy(ctl::kube_proxy::KubeProxy),
    /// Show the Maglev tables that are installed, with or without a daemon
    #[command(subcommand)]
    Maglev(MaglevCommand),
    /// Detach from all devices and remove the data path that an earlier run left
    Clean {
        #[command(flatten)]
        pins: PinDir,
        /// Remove what other versions of xdp-lb left, too
        #[arg(long)]
        all_versions: bool,
    },
    /// Measure what a packet costs on this machine, on programs and tables of its own
    #[command(long_about = BENCH)]
    Bench(Box<ctl::Bench>),
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
        #[command(flatten)]
        handover: HandoverArgs,
    },
    /// Print a script that completes this command in a shell
    #[command(long_about = COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the man page, or write those of all commands
    Man {
        /// Directory that gets them all
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// A benchmark that a daemon has started
    #[command(hide = true)]
    BenchRun {
        /// How much is measured
        #[arg(long, value_enum)]
        scale: ctl::Scale,
        /// What cases' names must contain
        #[arg(long)]
        filter: String,
    },
    /// A backend of the demo
    #[command(hide = true)]
    DemoServer {
        /// Name in its answers
        #[arg(long)]
        name: String,
        /// Answer datagrams, too
        #[arg(long)]
        udp: bool,
        /// Where it serves HTTP
        addresses: Vec<SocketAddr>,
    },
    /// Scheduler, kubelets and LoadBalancer addresses of the demo's cluster
    #[command(hide = true)]
    DemoCluster {
        /// Begins the names of the lab's namespaces
        #[arg(long)]
        prefix: String,
        /// Where the API server is
        #[arg(long)]
        kubeconfig: PathBuf,
        /// Where servers in pods log
        #[arg(long)]
        directory: PathBuf,
        /// The directory of the nodes' cgroups
        #[arg(long)]
        cgroups: Option<PathBuf>,
    },
    /// The DNS server of the demo's cluster
    #[command(hide = true)]
    DemoDns {
        /// Where the API server is
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: PathBuf,
    },
    /// An application in a pod of the demo, which uses Services and says what became of it
    #[command(hide = true)]
    DemoInside {
        /// Full name of the network namespace that it runs in
        #[arg(long)]
        space: String,
        /// For files
        #[arg(long)]
        directory: PathBuf,
        /// The Services' namespace
        #[arg(long)]
        namespace: String,
        /// The Services: NAME:PORT
        services: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum MaglevCommand {
    /// Print a number for each frontend's table: instances with equal numbers choose equal backends
    Digest {
        /// Only this one: ADDRESS:PORT/PROTOCOL, TCP where the protocol is left out
        #[arg(long, value_name = "FRONTEND")]
        frontend: Option<maglev_cli::Name>,
        #[command(flatten)]
        pins: PinDir,
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show what a change of a service's backends would do: which slots move, and the shares
    Simulate {
        #[command(flatten)]
        pins: PinDir,
        #[command(flatten)]
        simulation: Box<ctl::Simulation>,
    },
    /// Show one frontend's table
    Show {
        /// ADDRESS:PORT/PROTOCOL, TCP where the protocol is left out
        frontend: maglev_cli::Name,
        /// Print each slot too
        #[arg(long)]
        slots: bool,
        #[command(flatten)]
        pins: PinDir,
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct RateArgs {
    /// Show what passes a second instead, again and again; with `-o json` an object a line
    #[arg(long)]
    rate: bool,
    /// Seconds between two readings, from 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "rate", value_parser = seconds)]
    interval: Duration,
    /// End after so many; without it, at Ctrl-C
    #[arg(long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("write a number from 0.1 to 3600".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Of the scenario handover")]
struct HandoverArgs {
    /// TCP connections at a time
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    connections: u32,
    /// Changes of the configuration
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Seconds in which these are made
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Configure `handover: 0s`, to see how many connections plain Maglev breaks
    #[arg(long)]
    without_handover: bool,
}

impl From<HandoverArgs> for demo::Handover {
    fn from(args: HandoverArgs) -> Self {
        Self {
            connections: args.connections as usize,
            changes: args.changes as usize,
            time: Duration::from_secs(args.seconds.into()),
            enabled: !args.without_handover,
        }
    }
}

/// What `xdp-lb completions --help` says.
const COMPLETIONS: &str = "\
Print a script that completes this command in a shell. `make install` puts those of bash, zsh and fish in \
place. By hand, for bash:

    xdp-lb completions bash > /etc/bash_completion.d/xdp-lb";

/// What `xdp-lb bench --help` says.
const BENCH: &str = "\
Measure what a packet costs on this machine, on programs and tables of its own (root).

Nothing is attached, no packet is sent, and a data path that runs is not touched. Each case is a kind of \
packet; what it costs above the floor, a program that does nothing, is given in nanoseconds and in look-ups \
in a kernel hash map, measured in the same run. With `--daemon` the daemon measures, at the lowest \
priority; it needs no root, and takes longer.

Reports (`-o json`) of two runs are compared by `--compare`.";

/// The configuration file that is looked for where none is named.
const CONFIG: &str = "/etc/xdp-lb/xdp-lb.yaml";

/// What `xdp-lb demo --help` says.
const DEMO: &str = "\
Show it at work: the daemon with real traffic in a lab of network namespaces (root).

Builds a client, a router, a balancer and six backends as network namespaces, starts this daemon \
and HTTP servers in them, sends real requests over IPv4 and IPv6, and reports what it observed: \
who served how many, that answers bypass the balancer, what the packets look like, and that \
connections go on while a backend is taken out. It takes some seconds, changes nothing outside of its \
namespaces but files and pins of its own, and removes it all. It ends with 0 only if everything \
that it claims was observed.

The scenario pods builds a cluster of four nodes with pods behind them, and does the same for services \
of pods: in a Geneve tunnel, on the balancing node itself, and with both addresses translated, behind \
LoadBalancer addresses and node ports; with fragments, large transfers, and clients inside the cluster.

The scenario kubernetes starts etcd, a Kubernetes API server and its controllers, runs the daemon on \
three nodes of that cluster, applies an example shop of eleven Deployments, and asks it from outside \
while Deployments are scaled and rolled out, Pods are deleted and the API server is away. `make \
kubernetes` builds the control plane first (Go 1.26), or KUBEBUILDER_ASSETS says where it is.

The scenario handover holds a thousand connections that send data all the time, and changes the \
backends thirty times meanwhile: added, removed, drained, replaced, with other weights. Its last line \
says how many connections the balancer broke, and it ends with 0 only if there are none.

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
            Command::Run { config, pins, detach_on_exit, state_dir, socket } => {
                let (pins, state) = (pins.pin_dir, state_dir);
                run(Options { config, pins, detach_on_exit, state, socket })
            }
            Command::Check { config } => check(&config),
            Command::Stats { pins, output, rate } => show(&Pins::new(pins.pin_dir), output, &rate),
            Command::Doctor { config, pins, strict, output } => {
                match examine(config.as_deref(), &Pins::new(pins.pin_dir), strict, output) {
                    Ok(false) => return ExitCode::FAILURE,
                    result => result.map(drop),
                }
            }
            Command::Trace { packet, pins, output } => {
                let json = matches!(output, Output::Json);
                match packet.run(&Pins::new(pins.pin_dir), json) {
                    Ok(code) => return code,
                    Err(error) => {
                        complain(&error);
                        return ExitCode::from(trace_cli::FAILED);
                    }
                }
            }
            Command::Ask(command) => command.run().and_then(|text| print(&text)),
            Command::KubeProxy(command) => match command.run() {
                Ok((text, true)) => print(&text),
                Ok((text, false)) => match print(&text) {
                    Ok(()) => return ExitCode::FAILURE,
                    failed => failed,
                },
                Err(error) => Err(error),
            },
            Command::Maglev(command) => maglev(command),
            Command::Bench(bench) => bench.run().and_then(|text| print(&text)),
            Command::BenchRun { scale, filter } => {
                let request = BenchmarkRequest { scale: scale.into(), filter };
                bench::work(request).map_err(anyhow::Error::new)
            }
            Command::Clean { pins, all_versions } => clean(&Pins::new(pins.pin_dir), all_versions),
            Command::Demo { clean: true, prefix, .. } => clean_demo(&prefix),
            Command::Demo { scenario, keep, clean: false, prefix, handover } => {
                let handover = handover.into();
                match demo::run(&demo::Options { scenario, keep, prefix, handover }) {
                    // The report has said which of its claims failed.
                    Ok(false) => return ExitCode::FAILURE,
                    result => result.map(drop).map_err(anyhow::Error::new),
                }
            }
            Command::Completions { shell } => write(&pages::completions(&Self::command(), shell)),
            Command::Man { dir } => man(dir.as_deref()),
            Command::DemoServer { name, udp, addresses } => {
                demo::serve(&name, &addresses, udp).map_err(anyhow::Error::new)
            }
            Command::DemoCluster { prefix, kubeconfig, directory, cgroups } => {
                demo_cluster(prefix, kubeconfig, directory, cgroups)
            }
            Command::DemoDns { kubeconfig } => demo_dns(&kubeconfig),
            Command::DemoInside { space, directory, namespace, services } => {
                demo_inside(&space, &directory, &namespace, &services)
            }
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        }
    }

    /// Reads the command line and runs it.
    pub fn main() -> ExitCode {
        match Self::try_parse() {
            Ok(cli) => cli.run(),
            Err(error) => {
                let _ = error.print();
                match error.exit_code() {
                    0 => ExitCode::SUCCESS,
                    // Of this command 2 means something else.
                    _ if std::env::args_os().nth(1).is_some_and(|name| name == "trace") => {
                        ExitCode::from(trace_cli::FAILED)
                    }
                    _ => ExitCode::from(USAGE),
                }
            }
        }
    }
}

/// Exit code where the command line cannot be used.
const USAGE: u8 = 2;

fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "xdp-lb: {}", chain(error.as_ref()));
}

/// What is logged unless `XDP_LB_LOG` says so: we say ourselves what becomes of requests to API servers.
const DEFAULT_LOG: &str = "info,kube_client=off";

/// Logs go to standard error.
fn log() {
    let filter =
        EnvFilter::try_from_env("XDP_LB_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
}

fn run(options: Options) -> anyhow::Result<()> {
    log();
    // One writer, and a few sockets: more threads would only wait.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(daemon::run(options)).map_err(anyhow::Error::new)
}

fn check(config: &Path) -> anyhow::Result<()> {
    let config = daemon::read_config(config)?;
    let frontends: usize = config.services.iter().map(|service| service.frontends.len()).sum();
    let (services, devices) = (config.services.len(), config.devices.len());
    print(&format!("ok: {services} services, {frontends} frontends, {devices} devices\n"))
}

fn show(pins: &Pins, output: Output, rate: &RateArgs) -> anyhow::Result<()> {
    if rate.rate {
        let json = matches!(output, Output::Json);
        let options = rate::Options { interval: rate.interval, count: rate.count, json };
        return Ok(rate::run(pins, options)?);
    }
    let stats = stats::read(pins)?;
    match output {
        Output::Table => print(&stats.table()),
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&stats)?)),
    }
}

/// Whether nothing stands against it.
fn examine(
    config: Option<&Path>,
    pins: &Pins,
    strict: bool,
    output: Output,
) -> anyhow::Result<bool> {
    let path = config.unwrap_or(Path::new(CONFIG));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(doctor::examine(pins, path, config.is_some()));
    match output {
        Output::Table => {
            print(&report.text(std::io::IsTerminal::is_terminal(&std::io::stdout())))?;
        }
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
    }
    Ok(report.is_good(strict))
}

fn maglev(command: MaglevCommand) -> anyhow::Result<()> {
    let json = |value: serde_json::Result<String>| -> anyhow::Result<()> {
        print(&format!("{}\n", value?))
    };
    match command {
        MaglevCommand::Digest { frontend, pins, output } => {
            let digests = maglev_cli::digests(&Pins::new(pins.pin_dir), frontend)?;
            match output {
                Output::Table => print(&digests.table()),
                Output::Json => json(serde_json::to_string_pretty(&digests)),
            }
        }
        MaglevCommand::Simulate { pins, simulation } => {
            print(&simulation.run(&Pins::new(pins.pin_dir))?)
        }
        MaglevCommand::Show { frontend, slots, pins, output } => {
            let table = maglev_cli::table(&Pins::new(pins.pin_dir), frontend)?;
            match output {
                Output::Table => print(&table.table(slots)),
                Output::Json => json(serde_json::to_string_pretty(&table)),
            }
        }
    }
}

fn clean(pins: &Pins, all_versions: bool) -> anyhow::Result<()> {
    if !pins.is_used()? {
        return print("nothing to remove\n");
    }
    if !all_versions {
        pins.check()?;
    }
    let _lock = pins.lock()?;
    let devices = pins.clear_all_versions()?;
    let from = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
    print(&format!("removed; it was attached to {from}\n"))
}

fn man(directory: Option<&Path>) -> anyhow::Result<()> {
    let command = Cli::command();
    if let Some(directory) = directory {
        let count = pages::write_man_pages(command, directory)
            .with_context(|| format!("cannot write man pages to {}", directory.display()))?;
        return print(&format!("{count} man pages are in {}\n", directory.display()));
    }
    let pages = pages::man_pages(command)?;
    // The command's own comes behind those of all below it.
    write(pages.last().map(|(_, page)| page.as_slice()).unwrap_or_default())
}

fn clean_demo(prefix: &str) -> anyhow::Result<()> {
    let found = demo::clean(prefix)?;
    print(if found { "the demo's lab is removed\n" } else { "nothing to remove\n" })
}

fn demo_cluster(
    prefix: String,
    kubeconfig: PathBuf,
    directory: PathBuf,
    cgroups: Option<PathBuf>,
) -> anyhow::Result<()> {
    log();
    let program = std::env::current_exe()?;
    match (StandIns { prefix, kubeconfig, program, directory, cgroups }).run()? {}
}

fn demo_dns(kubeconfig: &Path) -> anyhow::Result<()> {
    log();
    match serve_names(kubeconfig)? {}
}

fn demo_inside(
    space: &str,
    directory: &Path,
    namespace: &str,
    services: &[String],
) -> anyhow::Result<()> {
    let target = |text: &String| {
        let (name, port) = text.split_once(':').context("a service is NAME:PORT")?;
        let (name, namespace) = (name.to_owned(), namespace.to_owned());
        anyhow::Ok(Target { name, namespace, port: port.parse()? })
    };
    let targets = services.iter().map(target).collect::<Result<Vec<_>, _>>()?;
    print(&serde_json::to_string(&use_services(space, directory, &targets)?)?)
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    write(text.as_bytes())
}

fn write(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
