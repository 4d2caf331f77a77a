//! etcd, kube-apiserver and kube-controller-manager in a namespace.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::Assets;
use crate::lab::{LabError, Namespace, Process, namespace::finish};

/// Port of the API server.
const PORT: u16 = 6443;
/// Networks of ClusterIPs.
pub const CLUSTER_IPS: &str = "10.96.0.0/16,fd00:96::/112";
/// Node ports that the API server gives out.
pub const NODE_PORTS: &str = "30000-32767";
/// How long the API server may take until it serves, on a busy machine too.
const STARTING: Duration = Duration::from_secs(90);
/// How often it is looked whether it does.
const TURN: Duration = Duration::from_millis(100);
/// The controllers that a cluster needs whose nodes and pods are real, and whose accounts are not.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,daemonset-controller,\
                           endpointslice-controller,endpoints-controller,node-lifecycle-controller,\
                           pod-garbage-collector-controller,garbage-collector-controller,\
                           namespace-controller,job-controller";
/// What daemons may do in a cluster: the manifest that users apply.
const RIGHTS: &str = include_str!("../../../../systemd/kubernetes/rbac.yaml");
/// Token, name, identifier and group of the one user: nobody else is in the namespace.
const TOKENS: &str = "admin,admin,admin,\"system:masters\"\n";

/// How long processes live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// They end with the thread that started them, however that ends
    Bound,
    /// They go on until they are stopped, or their lab is removed
    Free,
}

/// A control plane that runs.
#[derive(Debug)]
pub struct ControlPlane {
    space: Namespace,
    address: IpAddr,
    directory: PathBuf,
    assets: Assets,
    life: Life,
    etcd: Process,
    api_server: Option<Process>,
    /// Further API servers on the same etcd
    others: Vec<Process>,
    controller_manager: Option<Process>,
}

impl ControlPlane {
    /// Starts it in `space`, which has `address`; files and logs go to `directory`, which is made.
    /// The API serves when this returns.
    pub fn start(
        space: &Namespace,
        address: IpAddr,
        directory: &Path,
        assets: &Assets,
        life: Life,
    ) -> Result<Self, LabError> {
        let files = Files { directory, address };
        files.write().map_err(LabError::system(format!("write to {}", directory.display())))?;
        let spawn = |name, command| spawn(space, &log(directory, name), command, life);
        let etcd = spawn("etcd", files.etcd(assets))?;
        let api_server = spawn("kube-apiserver", files.api_server(assets))?;
        let mut plane = Self {
            space: space.clone(),
            address,
            directory: directory.to_owned(),
            assets: assets.clone(),
            life,
            etcd,
            api_server: Some(api_server),
            others: Vec::new(),
            controller_manager: None,
        };
        plane.wait_until_ready()?;
        // It gives up where no API server answers it soon.
        let command = files.controller_manager(assets);
        plane.controller_manager = Some(spawn("kube-controller-manager", command)?);
        Ok(plane)
    }

    /// A file for clients, kubectl among them, that may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// A file for daemons, which may do what `systemd/kubernetes/rbac.yaml` says.
    pub fn daemon_kubeconfig(&self) -> PathBuf {
        self.directory.join("daemon.kubeconfig")
    }

    /// Gives daemons their rights, and the file that shows them.
    pub(super) fn admit_daemons(&self) -> Result<(), LabError> {
        self.kubectl(&["apply", "-f", "-"], RIGHTS)?;
        let words = ["-n", "kube-system", "create", "token", "xdp-lb", "--duration=24h"];
        let token = self.kubectl(&words, "")?;
        let files = Files { directory: &self.directory, address: self.address };
        let path = self.daemon_kubeconfig();
        fs::write(&path, files.kubeconfig(token.trim()))
            .map_err(LabError::system(format!("write {}", path.display())))
    }

    /// Runs kubectl with these words and this input, and returns what it printed.
    pub fn kubectl(&self, words: &[&str], input: &str) -> Result<String, LabError> {
        let mut command = self.space.command(&self.assets.kubectl);
        command
            .args(words)
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.directory.join("cache"));
        finish(command, input)
    }

    /// Kills the API server on the spot.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server again; it serves when this returns.
    pub fn start_api_server(&mut self) -> Result<(), LabError> {
        let files = Files { directory: &self.directory, address: self.address };
        let command = files.api_server(&self.assets);
        let log = log(&self.directory, "kube-apiserver");
        self.api_server = Some(spawn(&self.space, &log, command, self.life)?);
        self.wait_until_ready()
    }

    /// Starts one more API server on the same etcd, at another address of the namespace, by the same
    /// certificate. It serves when this returns, and the cluster tells of it.
    pub fn add_api_server(&mut self, address: IpAddr) -> Result<(), LabError> {
        let files = Files { directory: &self.directory, address };
        let log = log(&self.directory, "kube-apiserver-2");
        self.others.push(spawn(&self.space, &log, files.api_server(&self.assets), self.life)?);
        self.wait_until_serves(Some(address))
    }

    /// Kills all that were added, on the spot.
    pub fn kill_added_api_servers(&mut self) {
        self.others.clear();
    }

    /// Words for kubectl with which it asks that one.
    pub fn at_api_server(&self, address: IpAddr) -> [String; 2] {
        let server = SocketAddr::new(address, PORT);
        [format!("--server=https://{server}"), format!("--tls-server-name={}", self.address)]
    }

    /// Bytes of memory that etcd, API server and controller manager have in use.
    pub fn memory(&self) -> [u64; 3] {
        let of = |process: Option<&Process>| {
            process.and_then(Process::id).and_then(super::memory_of).unwrap_or_default()
        };
        [of(Some(&self.etcd)), of(self.api_server.as_ref()), of(self.controller_manager.as_ref())]
    }

    /// Leaves everything running; the lab's removal ends it.
    pub fn keep(self) {
        let all = [Some(self.etcd), self.api_server, self.controller_manager];
        all.into_iter().flatten().chain(self.others).for_each(Process::keep);
    }

    fn wait_until_ready(&mut self) -> Result<(), LabError> {
        self.wait_until_serves(None)
    }

    fn wait_until_serves(&mut self, other: Option<IpAddr>) -> Result<(), LabError> {
        let end = Instant::now() + STARTING;
        let at = other.map(|address| self.at_api_server(address));
        let mut words = vec!["get", "--raw", "/readyz"];
        words.extend(at.iter().flatten().map(String::as_str));
        loop {
            let refused = match self.kubectl(&words, "") {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            self.watch()?;
            if Instant::now() > end {
                return Err(refused);
            }
            thread::sleep(TURN);
        }
    }

    /// An error once one of the programs has ended by itself.
    pub fn watch(&mut self) -> Result<(), LabError> {
        let all = [
            ("etcd", Some(&mut self.etcd)),
            ("kube-apiserver", self.api_server.as_mut()),
            ("kube-controller-manager", self.controller_manager.as_mut()),
        ];
        for (name, process) in all {
            if let Some(status) = process.and_then(Process::ended) {
                let message = last_words(&self.directory, name);
                return Err(LabError::Refused { command: format!("{name} ({status})"), message });
            }
        }
        Ok(())
    }

    /// The end of a program's log.
    pub(super) fn last_words(&self, name: &str) -> String {
        last_words(&self.directory, name)
    }
}

fn last_words(directory: &Path, name: &str) -> String {
    let log = fs::read_to_string(log(directory, name)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn log(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// Starts a program that adds to a log.
pub(super) fn spawn(
    space: &Namespace,
    log: &Path,
    mut command: Command,
    life: Life,
) -> Result<Process, LabError> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.map_err(LabError::system(format!("write to {}", log.display())))?;
    // In a process group of its own, it is not the terminal's Ctrl-C that ends it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    match life {
        Life::Bound => space.spawn_bound(command),
        Life::Free => space.spawn(command),
    }
}

/// The files and command lines of a control plane.
struct Files<'a> {
    directory: &'a Path,
    address: IpAddr,
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(self.directory)?;
        let [authority, certificate, key] = self.certificates().map_err(io::Error::other)?;
        fs::write(self.path("ca.crt"), authority)?;
        fs::write(self.path("server.crt"), certificate)?;
        fs::write(self.path("server.key"), key)?;
        let accounts = KeyPair::generate().map_err(io::Error::other)?;
        fs::write(self.path("accounts.key"), accounts.serialize_pem())?;
        fs::write(self.path("accounts.pub"), accounts.public_key_pem())?;
        fs::write(self.path("tokens.csv"), TOKENS)?;
        fs::write(self.path("kubeconfig"), self.kubeconfig("admin"))
    }

    /// An authority, and a certificate and its key for the API server: all of it PEM.
    fn certificates(&self) -> Result<[String; 3], rcgen::Error> {
        let mut authority = CertificateParams::new([])?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "authority of the lab");
        let own = KeyPair::generate()?;
        let certificate = authority.self_signed(&own)?;
        let issuer = Issuer::new(authority, own);
        let key = KeyPair::generate()?;
        let names = [self.address.to_string(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok([certificate.pem(), server.pem(), key.serialize_pem()])
    }

    /// A file for clients that have this token.
    fn kubeconfig(&self, token: &str) -> String {
        let server = SocketAddr::new(self.address, PORT);
        let authority = self.path("ca.crt");
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster:\n    server: https://{server}\n    \
             certificate-authority: {}\n\
             users:\n- name: user\n  user: {{token: {token}}}\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: user}}\n",
            authority.display()
        )
    }

    fn etcd(&self, assets: &Assets) -> Command {
        let mut command = Command::new(&assets.etcd);
        // The namespace's own loopback: nobody else is there.
        command
            .arg("--data-dir")
            .arg(self.path("etcd"))
            .args(["--listen-client-urls", "http://127.0.0.1:2379"])
            .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--unsafe-no-fsync", "--log-level=warn"]);
        command
    }

    fn api_server(&self, assets: &Assets) -> Command {
        let mut command = Command::new(&assets.api_server);
        let files = [
            ("--tls-cert-file", self.path("server.crt")),
            ("--tls-private-key-file", self.path("server.key")),
            ("--service-account-key-file", self.path("accounts.pub")),
            ("--service-account-signing-key-file", self.path("accounts.key")),
            ("--token-auth-file", self.path("tokens.csv")),
            ("--cert-dir", self.path("certificates")),
        ];
        command.args(files.iter().flat_map(|(flag, path)| [Path::new(flag), path]));
        command
            .args(["--etcd-servers", "http://127.0.0.1:2379"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range", CLUSTER_IPS])
            .args(["--service-node-port-range", NODE_PORTS])
            .args(["--advertise-address", &self.address.to_string()])
            .args(["--secure-port", &PORT.to_string()])
            // Another one may be beside it.
            .args(["--bind-address", &self.address.to_string()])
            .args(["--authorization-mode", "RBAC"])
            // Nothing here runs under an account of its own.
            .args(["--disable-admission-plugins", "ServiceAccount"]);
        command
    }

    fn controller_manager(&self, assets: &Assets) -> Command {
        let mut command = Command::new(&assets.controller_manager);
        command
            .arg("--kubeconfig")
            .arg(self.path("kubeconfig"))
            .args(["--controllers", CONTROLLERS])
            // A lost lease would end it: there is no second one.
            .args(["--leader-elect=false", "--secure-port=0"])
            // A rollout of the whole shop is not to wait for its turn.
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
        command
    }
}
