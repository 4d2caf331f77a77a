//! Pods that run: a namespace each, with a real server in it, from the Pod's start to its end.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1;
use nix::sys::signal::Signal;

use super::{
    control_plane::{Life, spawn},
    objects::{self, Probe, Report},
};
use crate::lab::{Client, Lab, LabError, Node, PodsSpec, Process, pods::Pod as Place};

/// How long a readiness probe waits for each step.
const PROBE: Duration = Duration::from_secs(1);
/// How long a server that has ended stays away.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Numbers of a node's pods.
const PLACES: u8 = 200;

/// What makes and ends the pods of a lab.
#[derive(Debug)]
pub(super) struct Kubelet {
    pub(super) lab: Lab,
    /// For programs in pods that use the API
    pub(super) kubeconfig: PathBuf,
    /// This program, whose hidden commands are the servers
    pub(super) program: PathBuf,
    /// Where servers log
    pub(super) directory: PathBuf,
    /// The directory of the nodes' cgroups, where they have some
    pub(super) cgroups: Option<PathBuf>,
    /// The number that was given last, over all nodes
    pub(super) last: u8,
}

/// A Pod that runs.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    /// What it runs of this program, where it says that itself
    command: Option<Vec<String>>,
    ports: Vec<u16>,
    udp: bool,
    probe: Option<Probe>,
    server: Option<Process>,
    /// When the server is started, or started anew
    start: Instant,
    /// When it is asked again whether it is ready
    ask: Instant,
    failures: u32,
    ending: Option<Ending>,
    /// What the API is to say of it
    pub(super) report: Report,
    /// What the API was told
    pub(super) told: Option<Report>,
}

/// How a Pod that was deleted ends.
#[derive(Clone, Copy, Debug)]
struct Ending {
    /// When its server is asked to end, unless it was
    ask: Option<Instant>,
    /// When it is killed
    kill: Instant,
}

impl Kubelet {
    /// A place on a node that none of `taken` has. Numbers go round, so that an address is not
    /// another pod's at once.
    pub(super) fn place(&mut self, node: Node, taken: impl Fn(Place) -> bool) -> Option<Place> {
        let next = |number: u8| number % PLACES + 1;
        let mut number = next(self.last);
        while taken(Place { node, number }) {
            if number == self.last {
                return None;
            }
            number = next(number);
        }
        self.last = number;
        Some(Place { node, number })
    }

    /// Makes the namespaces of pods, and starts their servers.
    pub(super) fn start(&mut self, pods: &[(&v1::Pod, Place)]) -> Result<Vec<Running>, LabError> {
        let spec = PodsSpec::default();
        let items: Vec<_> = pods.iter().flat_map(|(_, place)| spec.pod(*place)).collect();
        self.lab.add(items)?;
        pods.iter().map(|(pod, place)| self.begin(pod, *place)).collect()
    }

    fn begin(&self, pod: &v1::Pod, place: Place) -> Result<Running, LabError> {
        let (now, since) = (Instant::now(), objects::now());
        let probe = objects::probe(pod);
        let (ports, udp) = objects::ports(pod);
        let mut running = Running {
            name: pod.metadata.name.clone().unwrap_or_default(),
            command: objects::command(pod),
            ports,
            udp,
            server: None,
            start: now,
            ask: now + probe.as_ref().map_or(Duration::ZERO, |probe| probe.delay),
            failures: 0,
            ending: None,
            report: Report {
                place,
                started: since.clone(),
                running: false,
                ready: probe.is_none(),
                since,
                restarts: 0,
            },
            told: None,
            probe,
        };
        self.serve(&mut running)?;
        Ok(running)
    }

    fn serve(&self, running: &mut Running) -> Result<(), LabError> {
        let place = running.report.place;
        let mut command = Command::new(&self.program);
        if let Some(words) = &running.command {
            command.args(words).env("KUBECONFIG", &self.kubeconfig);
        } else {
            command.args(["demo-server", "--name", &running.name]);
            if running.udp {
                command.arg("--udp");
            }
            let sockets = running.ports.iter().flat_map(|port| place.at(*port));
            command.args(sockets.map(|socket| socket.to_string()));
        }
        let log = self.directory.join("pods.log");
        let mut space = self.lab.ns(&place.name())?.clone();
        if let Some(cgroups) = &self.cgroups {
            space = space.in_cgroup(&cgroups.join(place.node.name()))?;
        }
        running.server = Some(spawn(&space, &log, command, Life::Bound)?);
        running.report.running = true;
        Ok(())
    }

    /// What is due for a pod at this time: its server ends and is started anew, its probe is asked,
    /// its end goes on. Says whether it has ended.
    pub(super) fn turn(&self, running: &mut Running, now: Instant) -> Result<bool, LabError> {
        let ended = running.server.as_mut().is_none_or(|server| server.ended().is_some());
        if let Some(ending) = running.ending {
            return Ok(ended || running.end(ending, now));
        }
        let before = (running.report.running, running.report.ready);
        if ended && running.report.running {
            running.server = None;
            running.report.running = false;
            running.report.ready = running.probe.is_none();
            running.start = now + BACK_OFF;
        } else if ended && running.start <= now {
            running.report.restarts += 1;
            self.serve(running)?;
        }
        self.ask(running, now)?;
        if before != (running.report.running, running.report.ready) {
            running.report.since = objects::now();
        }
        Ok(false)
    }

    fn ask(&self, running: &mut Running, now: Instant) -> Result<(), LabError> {
        let Some(probe) = running.probe.clone().filter(|_| running.ask <= now) else {
            return Ok(());
        };
        running.ask = now + probe.period;
        let place = running.report.place;
        let [address, _] = place.at(probe.port);
        let space = self.lab.ns(place.node.name())?;
        let good = match &probe.path {
            Some(path) => {
                let response = Client::new(space).timeout(PROBE).get(address, path, None);
                response.is_ok_and(|response| (200..400).contains(&response.status))
            }
            None => space.run(|| TcpStream::connect_timeout(&address, PROBE).is_ok())?,
        };
        running.failures = if good { 0 } else { running.failures + 1 };
        let ready = &mut running.report.ready;
        *ready = good || (*ready && running.failures < probe.failures);
        if !*ready {
            // The first good answer is not to wait for its turn.
            running.ask = now + probe.period.min(Duration::from_millis(250));
        }
        Ok(())
    }

    /// Removes what is left of a pod.
    pub(super) fn remove(&mut self, mut running: Running) -> Result<(), LabError> {
        running.server = None;
        let place = running.report.place;
        // Both ends of its cable go at once; a namespace takes its time.
        self.lab.ns(place.node.name())?.ip(&format!("link delete dev {}", place.device()))?;
        self.lab.remove(&place.name(), &[(place.node.name(), &place.device())])
    }
}

impl Running {
    /// The Pod was deleted: it serves on for a while where it has a hook for that, is asked to end,
    /// and is killed at last.
    pub(super) fn begin_end(&mut self, pod: &v1::Pod, now: Instant) {
        let [serve, grace] = objects::ending(pod);
        self.ending.get_or_insert(Ending { ask: Some(now + serve), kill: now + grace });
    }

    /// Says whether it has ended.
    fn end(&mut self, ending: Ending, now: Instant) -> bool {
        if ending.ask.is_some_and(|due| due <= now) {
            if let Some(server) = &self.server {
                server.signal(Signal::SIGTERM);
            }
            self.ending = Some(Ending { ask: None, ..ending });
        }
        if ending.kill <= now {
            self.server = None;
        }
        self.server.is_none()
    }
}
