//! The demo's lab with its processes: daemons, HTTP servers, their files and pins.

use std::{
    env, fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::Pid,
};

use super::{
    DemoError,
    network::{self, BALANCER, Host},
};
use crate::{
    lab::{
        Client, Item, Lab, LabError, Namespace, Outcome, Process, has_cgroups, make_cgroups,
        remove_cgroups,
    },
    pins::Pins,
    stats::{self, Stats, StatsError},
};

/// Where BPF file systems are by custom.
const BPF: &str = "/sys/fs/bpf";
/// How long anything may take to come about that is a matter of moments, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the programs of all daemons may take to be verified, on a busy machine too.
const STARTING: Duration = Duration::from_secs(60);
/// How long nothing is counted any more once traffic has ended.
const STILL: Duration = Duration::from_millis(100);
/// How long the client waits for each step of a connection.
const ANSWER: Duration = Duration::from_secs(2);
/// How many connections are made between two looks at what became of them.
const AT_A_TIME: u16 = 25;
/// How often it is looked whether it has.
const TURN: Duration = Duration::from_millis(10);

/// Where a demo keeps its files.
#[derive(Clone, Debug)]
pub(super) struct Places {
    prefix: String,
}

impl Places {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Configurations and logs.
    pub(super) fn directory(&self) -> PathBuf {
        Path::new("/run").join(&self.prefix)
    }

    pub(super) fn config(&self, node: &str) -> PathBuf {
        self.directory().join(format!("{node}.yaml"))
    }

    pub(super) fn log(&self, node: &str) -> PathBuf {
        self.directory().join(format!("{node}.log"))
    }

    /// Where a node's daemon serves its API.
    pub(super) fn socket(&self, node: &str) -> PathBuf {
        self.config(node).with_extension("sock")
    }

    pub(super) fn pins(&self, node: &str) -> PathBuf {
        Path::new(BPF).join(format!("{}-{node}", self.prefix))
    }

    /// Says, where it exists, that the lab was left up on purpose.
    fn kept(&self) -> PathBuf {
        self.directory().join("kept")
    }

    /// Refuses to go on where somebody may be looking around in a lab that was kept.
    pub(super) fn spare_kept(&self) -> Result<(), DemoError> {
        if self.kept().exists() { Err(DemoError::Kept) } else { Ok(()) }
    }

    /// Whether an earlier demo has left something.
    pub(super) fn used(&self) -> bool {
        self.directory().exists() || !self.pinned().is_empty() || has_cgroups(&self.prefix)
    }

    fn pinned(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(BPF) else { return Vec::new() };
        let start = format!("{}-", self.prefix);
        let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&start);
        entries.filter_map(Result::ok).filter(ours).map(|entry| entry.path()).collect()
    }

    /// Removes pins and files; the processes that use them have ended.
    pub(super) fn remove(&self) -> Result<(), DemoError> {
        for directory in self.pinned() {
            Pins::new(directory).clear()?;
        }
        remove_cgroups(&self.prefix).map_err(LabError::system("remove the nodes' cgroups"))?;
        match fs::remove_dir_all(self.directory()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DemoError::File { what: "remove", path: self.directory(), source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Takes the right to the demo's lab and removes what an earlier one has left.
pub(super) fn claim(places: &Places) -> Result<Lab, DemoError> {
    let lab = Lab::new(&places.prefix).map_err(|error| {
        if matches!(error, LabError::InUse(_)) { DemoError::Running } else { error.into() }
    })?;
    places.remove()?;
    let after = places.clone();
    // Nobody can be told at that moment; the next demo, or `--clean`, tries again.
    lab.afterwards(move || drop(after.remove()));
    Ok(lab)
}

/// Mounts a BPF file system where there is none; says whether it did.
pub(super) fn mount_bpf() -> Result<bool, DemoError> {
    if statfs(BPF).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(false);
    }
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| DemoError::Mount(errno.into()))?;
    Ok(true)
}

/// Everything that runs. The lab goes first, so that its processes are asked to end before they
/// are killed.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) places: Places,
    /// The directory of the nodes' cgroups, where each daemon has its own
    cgroups: Option<PathBuf>,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    log: PathBuf,
    process: Process,
}

/// Who is in a lab beside client, router and balancer, and what each of them does.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    /// The balancer's configuration
    pub(super) balancer: String,
    /// Hosts that unwrap what the balancer sends to them
    pub(super) unwrapping: Vec<Host>,
    /// Hosts that serve HTTP, and where
    pub(super) servers: Vec<(Host, Vec<SocketAddr>)>,
}

impl Stage {
    /// Builds the network and starts everything in it; all of it is ready on return.
    pub(super) fn set(mut lab: Lab, places: Places, cast: &Cast) -> Result<Self, DemoError> {
        let addresses = |sockets: &[SocketAddr]| sockets.iter().map(SocketAddr::ip).collect();
        let hosts = cast.servers.iter().map(|(host, sockets)| (*host, addresses(sockets)));
        lab.add(network::topology(&hosts.collect::<Vec<_>>()))?;
        let mut stage = Self { lab, places, cgroups: None, running: Vec::new() };
        let directory = stage.places.directory();
        fs::create_dir_all(&directory).map_err(|source| DemoError::File {
            what: "create",
            path: directory,
            source,
        })?;
        stage.configure(BALANCER, &cast.balancer)?;
        stage.start_daemon(BALANCER)?;
        for host in &cast.unwrapping {
            stage.configure(host.node, &network::terminator())?;
            stage.start_daemon(host.node)?;
        }
        for (host, sockets) in &cast.servers {
            stage.start_server(host, sockets)?;
        }
        stage.wait_until_ready(cast)?;
        Ok(stage)
    }

    /// Builds a network in which nothing runs yet.
    pub(super) fn build(mut lab: Lab, places: Places, items: &[Item]) -> Result<Self, DemoError> {
        lab.add(items)?;
        let directory = places.directory();
        fs::create_dir_all(&directory).map_err(|source| DemoError::File {
            what: "create",
            path: directory,
            source,
        })?;
        Ok(Self { lab, places, cgroups: None, running: Vec::new() })
    }

    /// Gives each of these nodes a cgroup of its own, in a directory that is returned: what starts in
    /// them from now on is in it.
    pub(super) fn make_cgroups(&mut self, nodes: &[&str]) -> Result<PathBuf, LabError> {
        let directory = make_cgroups(self.lab.prefix(), nodes)?;
        self.cgroups = Some(directory.clone());
        Ok(directory)
    }

    /// That directory, where the nodes have cgroups.
    pub(super) fn cgroups(&self) -> Option<&Path> {
        self.cgroups.as_deref()
    }

    /// Takes them away again, before anything is in them.
    pub(super) fn forget_cgroups(&mut self) -> Result<(), LabError> {
        self.cgroups = None;
        remove_cgroups(self.lab.prefix()).map_err(LabError::system("remove the nodes' cgroups"))
    }

    /// A node's namespace, or that of one of its pods, whose commands join the node's cgroup.
    pub(super) fn space(&self, node: &str, space: &Namespace) -> Result<Namespace, LabError> {
        match &self.cgroups {
            Some(cgroups) if cgroups.join(node).exists() => space.in_cgroup(&cgroups.join(node)),
            Some(_) | None => Ok(space.clone()),
        }
    }

    /// Starts a server for HTTP and datagrams in a pod.
    pub(super) fn start_pod(&mut self, pod: &str, at: &[SocketAddr]) -> Result<(), DemoError> {
        let mut command = this_program()?;
        command.args(["demo-server", "--udp", "--name", pod]);
        command.args(at.iter().map(ToString::to_string));
        self.start(pod, &format!("the server of {pod}"), self.places.log(pod), command)
    }

    /// Writes a node's configuration, as an editor does: the new file replaces the old one.
    pub(super) fn configure(&self, node: &str, text: &str) -> Result<(), DemoError> {
        let path = self.places.config(node);
        let new = path.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| DemoError::File { what: "write", path, source })
    }

    pub(super) fn start_daemon(&mut self, node: &str) -> Result<(), DemoError> {
        let mut command = this_program()?;
        command
            .args(["run", "--detach-on-exit", "--config"])
            .arg(self.places.config(node))
            .arg("--pin-dir")
            .arg(self.places.pins(node))
            .arg("--state-dir")
            .arg(self.places.config(node).with_extension("state"))
            .arg("--socket")
            .arg(self.places.socket(node))
            // These are for the process that started the demo.
            .env_remove("NOTIFY_SOCKET")
            .env("XDP_LB_LOG", "info");
        self.start(node, &daemon_of(node), self.places.log(node), command)
    }

    fn start_server(&mut self, host: &Host, sockets: &[SocketAddr]) -> Result<(), DemoError> {
        let mut command = this_program()?;
        command.args(["demo-server", "--name", host.node]);
        command.args(sockets.iter().map(ToString::to_string));
        let log = self.places.log(&format!("{}-http", host.node));
        self.start(host.node, &format!("the HTTP server of {}", host.node), log, command)
    }

    fn start(
        &mut self,
        node: &str,
        name: &str,
        log: PathBuf,
        mut command: Command,
    ) -> Result<(), DemoError> {
        let file = fs::File::create(&log).map_err(|source| DemoError::File {
            what: "create",
            path: log.clone(),
            source,
        })?;
        // In a process group of its own, Ctrl-C reaches the demo alone, which then ends the rest.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let process = self.space(node, self.lab.ns(node)?)?.spawn(command)?;
        self.running.push(Running { name: name.to_owned(), log, process });
        Ok(())
    }

    fn wait_until_ready(&mut self, cast: &Cast) -> Result<(), DemoError> {
        for node in [BALANCER].into_iter().chain(cast.unwrapping.iter().map(|host| host.node)) {
            self.wait_until_attached(node)?;
        }
        for (host, sockets) in &cast.servers {
            for socket in sockets {
                // From inside its own node: the services are not in use yet.
                let client = Client::new(self.lab.ns(host.node)?);
                let what = format!("the HTTP server of {} on {socket}", host.node);
                self.wait_for(&what, |_| client.ask(*socket, None).ok())?;
            }
        }
        Ok(())
    }

    /// Waits until the daemon of a node has attached its programs.
    pub(super) fn wait_until_attached(&mut self, node: &str) -> Result<(), DemoError> {
        self.wait(STARTING, &format!("the daemon of {node} to attach"), |stage| {
            let stats = stage.stats(node).ok()?;
            (!stats.devices.is_empty()).then_some(())
        })
    }

    /// Has a node's daemon look at its file at once.
    pub(super) fn reload(&self, node: &str) -> Result<(), DemoError> {
        let name = daemon_of(node);
        let one = self.running.iter().find(|one| one.name == name);
        let id = one.and_then(|one| one.process.id()).and_then(|id| i32::try_from(id).ok());
        let sent = id.map_or(Err(Errno::ESRCH), |id| kill(Pid::from_raw(id), Signal::SIGHUP));
        sent.map_err(|errno| DemoError::Reload { node: node.to_owned(), source: errno.into() })
    }

    /// Waits for something that a moment brings about, and watches the processes meanwhile.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        ready: impl Fn(&Self) -> Option<T>,
    ) -> Result<T, DemoError> {
        self.wait(PATIENCE, what, ready)
    }

    fn wait<T>(
        &mut self,
        limit: Duration,
        what: &str,
        ready: impl Fn(&Self) -> Option<T>,
    ) -> Result<T, DemoError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = ready(self) {
                return Ok(value);
            }
            self.watch()?;
            if Instant::now() >= end {
                return Err(DemoError::Late { what: what.to_owned(), limit });
            }
            thread::sleep(TURN);
        }
    }

    /// Waits until the balancer has counted nothing new for a moment: the last packets of closing
    /// connections come after their clients have their answers.
    pub(super) fn wait_until_still(&mut self) -> Result<(), DemoError> {
        let counted = |stage: &Self| -> Result<u64, StatsError> {
            let stats = stage.stats(BALANCER)?;
            Ok(stats.frontends.iter().map(|one| one.packets).sum())
        };
        self.wait_for("the traffic to end", |stage| {
            let before = counted(stage).ok()?;
            thread::sleep(STILL);
            (counted(stage).ok()? == before).then_some(())
        })
    }

    /// An error once a process has ended that should not have.
    pub(super) fn watch(&mut self) -> Result<(), DemoError> {
        for one in &mut self.running {
            if let Some(status) = one.process.ended() {
                let log = fs::read_to_string(&one.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
                return Err(DemoError::Ended { name: one.name.clone(), status, last });
            }
        }
        Ok(())
    }

    /// The counters of a node's data path.
    pub(super) fn stats(&self, node: &str) -> Result<Stats, StatsError> {
        stats::read(&Pins::new(self.places.pins(node)))
    }

    /// A client in the client's node.
    pub(super) fn client(&self) -> Result<Client, DemoError> {
        Ok(Client::new(self.lab.ns("client")?).timeout(ANSWER))
    }

    /// Makes a connection from each of the ports, and ends early once some have failed: a demo that
    /// goes wrong is to say so soon.
    pub(super) fn ask_each(
        &self,
        frontend: SocketAddr,
        ports: RangeInclusive<u16>,
    ) -> Result<Vec<Outcome>, DemoError> {
        let client = self.client()?;
        let (mut outcomes, end) = (Vec::new(), *ports.end());
        for first in ports.step_by(AT_A_TIME.into()) {
            let last = end.min(first + AT_A_TIME - 1);
            outcomes.extend(client.ask_each(frontend, first..=last)?);
            if outcomes.iter().any(|one| one.answer.is_err()) {
                break;
            }
        }
        Ok(outcomes)
    }

    /// Leaves everything up, until it is cleaned.
    pub(super) fn keep(self) -> Result<(), DemoError> {
        let path = self.places.kept();
        fs::write(&path, "").map_err(|source| DemoError::File { what: "create", path, source })?;
        self.running.into_iter().for_each(|one| one.process.keep());
        self.lab.keep();
        Ok(())
    }
}

fn daemon_of(node: &str) -> String {
    format!("the daemon of {node}")
}

/// A command that runs this program again.
pub(super) fn this_program() -> Result<Command, DemoError> {
    Ok(Command::new(env::current_exe().map_err(DemoError::Program)?))
}
