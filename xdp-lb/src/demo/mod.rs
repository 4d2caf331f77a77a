//! `xdp-lb demo`: the real daemon and real traffic in a lab of network namespaces, with a report of
//! what was observed.
//!
//! Every figure in the report is measured in the run that prints it, and every claim is checked:
//! the verdict at the end counts them.

mod bypass;
mod dsr;
mod handover;
mod kubernetes;
mod network;
mod oracle;
mod pods;
mod report;
mod scenario;
mod stage;
mod takeout;
mod wire;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::{
    lab::{ClientError, LabError, ServerSpec, kubernetes::NoAssets},
    maps::TableError,
    pins::PinError,
    stats::StatsError,
};
use report::Report;
use stage::Places;

/// What the names of the demo's namespaces, pins and files begin with by default.
pub const PREFIX: &str = "xlbdemo";

/// What a demo shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Scenario {
    /// Maglev and direct server return: modes l2 and ipip over IPv4 and IPv6, a backend taken out
    #[default]
    Dsr,
    /// Kubernetes-like nodes: pods behind a NodePort and a LoadBalancer address, modes geneve, local,
    /// snat and hybrid
    Pods,
    /// A real Kubernetes control plane and an example shop, reached from outside while it changes
    Kubernetes,
    /// Backends come, go, drain and weigh more or less, and connections stay with theirs
    Handover,
}

/// How long and how hard the scenario `handover` is.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    /// Connections at a time
    pub connections: usize,
    /// Changes of the configuration
    pub changes: usize,
    /// Time in which these are made
    pub time: Duration,
    /// Whether the configuration has a handover at all
    pub enabled: bool,
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to show
    pub scenario: Scenario,
    /// Leave the lab up
    pub keep: bool,
    /// Begins the names of all namespaces, pins and files: 1 to 20 lower-case letters and digits
    pub prefix: String,
    /// For the scenario of that name
    pub handover: Handover,
}

/// Why a demo could not be carried out; claims that were not observed are no error, but in the
/// report.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Namespaces and XDP need root.
    #[error("the demo builds network namespaces and loads XDP programs: run it as root (sudo)")]
    NotRoot,
    /// A tool is missing.
    #[error("the demo needs the program `{tool}`: install the package {package}")]
    Tool {
        /// Its name
        tool: &'static str,
        /// Debian's package
        package: &'static str,
    },
    /// There is no control plane.
    #[error(transparent)]
    NoAssets(#[from] NoAssets),
    /// Another demo runs.
    #[error("another demo is running: wait until it has ended, or stop it with Ctrl-C")]
    Running,
    /// A lab that was left up on purpose.
    #[error(
        "the lab that an earlier demo kept is still up: remove it with the command that it ended \
         with (`xdp-lb demo --clean`, and its --prefix), or run beside it with another --prefix"
    )]
    Kept,
    /// There is no BPF file system, and none can be mounted.
    #[error("cannot mount a BPF file system on /sys/fs/bpf: {0}")]
    Mount(io::Error),
    /// The lab cannot do something.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The client got no answer where the demo cannot go on without.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration that the demo writes is wrong: a mistake in this program.
    #[error("the demo's own configuration is refused: {0}")]
    Configuration(String),
    /// A daemon is gone.
    #[error("cannot have the daemon of {node} look at its file: {source}")]
    Reload {
        /// Its node
        node: String,
        /// The system's answer
        source: io::Error,
    },
    /// Counters cannot be read.
    #[error("cannot read the balancer's counters: {0}")]
    Stats(#[from] StatsError),
    /// Tables cannot be read.
    #[error("cannot read the balancer's tables: {0}")]
    Table(#[from] TableError),
    /// Pins cannot be removed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A file of the demo.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried
        what: &'static str,
        /// The file
        path: PathBuf,
        /// The system's answer
        source: io::Error,
    },
    /// This program cannot be found to be started again.
    #[error("cannot find this program's own file: {0}")]
    Program(io::Error),
    /// A process ended on its own.
    #[error("{name} has ended ({status}); its last words:\n  {last}")]
    Ended {
        /// Which one
        name: String,
        /// How
        status: ExitStatus,
        /// The end of its log
        last: String,
    },
    /// Something did not come about.
    #[error("waited {} s in vain for {what}", limit.as_secs())]
    Late {
        /// What
        what: String,
        /// For how long
        limit: Duration,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Output(#[from] io::Error),
}

/// Runs a demo and reports on standard output; says whether all that it claims was observed.
///
/// # Errors
///
/// Where it could not be carried out; nothing is left behind then.
pub fn run(options: &Options) -> Result<bool, DemoError> {
    may_run()?;
    let mut report = Report::on_stdout();
    match options.scenario {
        Scenario::Dsr => dsr::run(&mut report, options),
        Scenario::Pods => pods::run(&mut report, options),
        Scenario::Kubernetes => kubernetes::run(&mut report, options),
        Scenario::Handover => handover::run(&mut report, options),
    }
}

/// Removes what a demo has left, kept or killed; says whether there was anything.
///
/// # Errors
///
/// Where it cannot be removed, or a demo runs.
pub fn clean(prefix: &str) -> Result<bool, DemoError> {
    may_run()?;
    let places = Places::new(prefix);
    let used = places.used();
    drop(stage::claim(&places)?);
    Ok(used)
}

/// Serves HTTP as a backend of the demo until it is killed, and answers datagrams if `udp`.
///
/// # Errors
///
/// Where it cannot listen.
pub fn serve(name: &str, addresses: &[SocketAddr], udp: bool) -> Result<(), DemoError> {
    let spec = addresses.iter().fold(ServerSpec::named(name), |spec, one| {
        let spec = spec.http(*one);
        if udp { spec.udp(*one) } else { spec }
    });
    match spec.serve()? {}
}

fn may_run() -> Result<(), DemoError> {
    if !geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    for (tool, package) in [("ip", "iproute2"), ("ethtool", "ethtool")] {
        let mut command = Command::new(tool);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DemoError::Tool { tool, package });
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
