//! A real kube-proxy serves a node; its work goes over to xdp-lb and back, in both of its modes, while
//! clients ask and connections last.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use xdp_lb::lab::{Cgroup, Client, Crowd, CrowdSpec, Namespace, Node, Traffic};
use xdp_lb_netns_tests::{Cluster, Daemon, binary, control_plane, wait_for, wait_until};

const NODE: Node = Node::Balancer;
/// Connections that last, half of them translated by kube-proxy.
const CONNECTIONS: usize = 500;
/// Clients, and the pause of each: 200 requests a second together.
const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(40);
/// How long kube-proxy may take to start and to write its rules.
const STARTING: Duration = Duration::from_secs(60);
/// Rounds of kills, and how often each command has to be killed before it ends.
const ROUNDS: u32 = 3;
const KILLS: u32 = 5;

/// kubelet, as far as a static pod goes: kube-proxy runs while its manifest is there.
struct Kubelet {
    manifest: PathBuf,
    pause: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Kubelet {
    fn start(
        space: Namespace,
        manifest: PathBuf,
        command: impl Fn(&Namespace) -> Command + Send + 'static,
    ) -> Self {
        let (pause, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let [paused, stopped] = [&pause, &stop].map(Arc::clone);
        let file = manifest.clone();
        let work = move || {
            let mut runs = None;
            while !stopped.load(Ordering::Relaxed) {
                if !paused.load(Ordering::Relaxed) {
                    match (file.exists(), runs.take()) {
                        (true, None) => runs = Some(space.spawn(command(&space)).unwrap()),
                        (true, running) => runs = running,
                        (false, None) => {}
                        (false, Some(running)) => {
                            let process: xdp_lb::lab::Process = running;
                            process.stop(Duration::from_secs(20)).unwrap();
                        }
                    }
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        let worker = Some(thread::spawn(work));
        Self { manifest, pause, stop, worker }
    }

    fn pause(&self, pause: bool) {
        self.pause.store(pause, Ordering::Relaxed);
        // The turn that is under way ends.
        thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A node with kube-proxy in some mode, beside the daemon.
struct World<'a> {
    cluster: &'a Cluster,
    daemon: &'a Daemon,
    cgroup: &'a Cgroup,
    mode: &'static str,
    kubelet: Kubelet,
    backup: PathBuf,
}

impl<'a> World<'a> {
    fn new(
        cluster: &'a Cluster,
        daemon: &'a Daemon,
        cgroup: &'a Cgroup,
        mode: &'static str,
    ) -> Self {
        let scratch = cluster.net().scratch();
        let manifests = scratch.file(&format!("manifests-{mode}"));
        fs::create_dir_all(&manifests).unwrap();
        let program = control_plane().unwrap().kubectl().with_file_name("kube-proxy");
        let (config, log) = (cluster.kubeconfig(), scratch.file(&format!("kube-proxy-{mode}.log")));
        let manifest = manifests.join("kube-proxy.yaml");
        fs::write(&manifest, MANIFEST).unwrap();
        let command = move |space: &Namespace| {
            let mut command = space.command(&program);
            command
                .arg("--kubeconfig")
                .arg(&config)
                .args(["--proxy-mode", mode, "--hostname-override", NODE.name()])
                // Those of the whole machine stay as they are.
                .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s"])
                .args(["--conntrack-tcp-timeout-close-wait=0s"])
                .args(["--cluster-cidr=10.244.0.0/16,fd00:244::/32"])
                // xdp-lb has the port 10256.
                .args(["--healthz-bind-address=127.0.0.1:10257"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(&log).unwrap());
            command
        };
        let space = cluster.net().ns(NODE.name()).clone();
        let kubelet = Kubelet::start(space, manifest, command);
        let backup = scratch.file(&format!("backup-{mode}"));
        let world = Self { cluster, daemon, cgroup, mode, kubelet, backup };
        wait_for(STARTING, "kube-proxy has written its rules", || world.status_frontends() > 20);
        world
    }

    fn space(&self) -> &Namespace {
        self.cluster.net().ns(NODE.name())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.space().command(binary());
        command.arg("kube-proxy").args(words).arg("--backup").arg(&self.backup);
        command.arg("--manifests").arg(self.kubelet.manifest.parent().unwrap());
        if words[0] != "restore" {
            command.arg("--socket").arg(self.daemon.socket());
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it prints; it must succeed.
    fn told(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}:\n{text}{errors}");
        text
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.told(&["status", "-o", "json"])).unwrap()
    }

    fn status_frontends(&self) -> u64 {
        let status = self.status();
        let rules = status["kubeProxy"]["rules"].as_array().unwrap().clone();
        rules.iter().filter_map(|one| one["frontends"].as_u64()).sum()
    }

    /// All rules, each chain for itself and without counters: those of kube-proxy, and all others.
    fn rules(&self) -> (Vec<String>, Vec<String>) {
        let mut all = Vec::new();
        for tool in ["iptables", "ip6tables"] {
            for variant in ["nft", "legacy"] {
                let tool = format!("{tool}-{variant}-save");
                let text = self.space().tool(&tool, "").unwrap();
                let mut table = String::new();
                for line in text.lines().filter(|line| !line.starts_with('#')) {
                    let line = line.split(" [").next().unwrap();
                    if line.starts_with('*') {
                        table = line.to_owned();
                    }
                    all.push(format!("{tool} {table} {line}"));
                }
            }
        }
        // What iptables has made is seen above.
        for table in ["ip kube-proxy", "ip6 kube-proxy", "inet mine", "ip mine"] {
            let text = self.space().tool("nft", &format!("-s list table {table}"));
            let text = text.unwrap_or_default();
            // Elements of sets come in any order.
            let mut lines: Vec<String> = text
                .lines()
                .flat_map(|line| line.split(", "))
                .map(|line| line.trim_matches([' ', '\t', ',', '}', '{']).to_owned())
                .map(|line| line.trim_start_matches("elements = { ").to_owned())
                .map(|line| format!("{table} {line}"))
                .collect();
            lines.sort();
            all.extend(lines);
        }
        all.into_iter().partition(|line| is_kube_proxys(line))
    }

    /// What kube-proxy's rules are once they rest.
    fn rules_at_rest(&self) -> Vec<String> {
        let mut before = self.rules().0;
        wait_for(STARTING, "kube-proxy's rules rest", || {
            thread::sleep(Duration::from_millis(1500));
            let now = self.rules().0;
            let rest = now == before;
            before = now;
            rest
        });
        before
    }

    /// Runs a command and kills it on the spot after a while; whether it had ended by itself.
    fn killed(&self, words: &[&str], after: Duration) -> bool {
        let mut child =
            self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + after;
        while Instant::now() < end {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }

    /// Connections of the node to a ClusterIP, which kube-proxy translates.
    fn connections_by_kube_proxy(&self, cluster_ips: &[SocketAddr]) -> Crowd {
        let crowd = self.cgroup.outside(|| {
            let crowd = CrowdSpec::new(cluster_ips, CONNECTIONS / 2).lasting();
            let crowd = crowd.pause(Duration::from_millis(500)).start(self.space()).unwrap();
            wait_until("connections by kube-proxy last", || crowd.living() == CONNECTIONS / 2);
            crowd
        });
        crowd.unwrap()
    }
}

const MANIFEST: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - {name: kube-proxy, image: registry.example.org/kube-proxy:1, command: [kube-proxy]}
";

/// A Service with a policy, and clients that stay.
const LOCAL: &str = "\
apiVersion: v1
kind: Service
metadata: {name: frontend-local, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  ipFamilyPolicy: RequireDualStack
  selector: {app: frontend}
  ports:
  - {name: http, port: 81, targetPort: http}
";

/// What kubelet and others have there: the first lines ask for no conntrack, the others do.
const FOREIGN: [&str; 2] = [
    "set -e
     for t in iptables ip6tables; do
       for table in mangle nat filter; do $t-nft -t $table -N KUBE-KUBELET-CANARY; done
       $t-nft -t mangle -N KUBE-IPTABLES-HINT
       $t-nft -N OWN
       $t-nft -A OWN -p tcp --dport 22 -m comment --comment 'KUBE-SERVICES is not \"here\"' -j ACCEPT
       $t-nft -I INPUT 1 -j OWN
       $t-legacy -N LEGACY
       $t-legacy -A LEGACY -p tcp --dport 23 -j DROP
       $t-legacy -A INPUT -j LEGACY
     done
     nft 'add table inet mine'
     nft 'add chain inet mine input { type filter hook input priority 5; }'
     nft 'add rule inet mine input tcp dport 9999 counter drop'",
    "set -e
     iptables-nft -N KUBE-FIREWALL
     iptables-nft -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment 'block incoming localnet connections' -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
     iptables-nft -I INPUT -j KUBE-FIREWALL
     iptables-nft -I OUTPUT -j KUBE-FIREWALL
     iptables-nft -t nat -N CNI-HOSTPORT-DNAT
     iptables-nft -t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 8099 -j DNAT --to-destination 10.244.1.99:80
     iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
     iptables-nft -t nat -A POSTROUTING -s 10.244.1.0/24 -d 192.0.2.0/24 -j MASQUERADE
     iptables-legacy -t nat -A PREROUTING -p tcp --dport 8098 -j REDIRECT --to-ports 8097
     nft 'add table ip mine'
     nft 'add chain ip mine post { type nat hook postrouting priority 90; }'
     nft 'add rule ip mine post ip daddr 192.0.2.7 masquerade'",
];

fn is_kube_proxys(line: &str) -> bool {
    let kubelets = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "here"];
    line.starts_with("ip kube-proxy")
        || line.starts_with("ip6 kube-proxy")
        || (line.contains("KUBE-") && !kubelets.iter().any(|name| line.contains(name)))
}

/// Panics with what is new and what is missing.
fn assert_same(now: &[String], before: &[String]) {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|one| !those.contains(one)).cloned().collect()
    };
    let (new, missing) = (only(now, before), only(before, now));
    let differs = now.iter().zip(before).find(|(now, before)| now != before);
    assert!(
        now == before,
        "new: {new:#?}\nmissing: {missing:#?}\nfirst difference of {} and {} lines: {differs:#?}",
        now.len(),
        before.len()
    );
}

fn foreign(cluster: &Cluster, script: &str) {
    let output = cluster.net().ns(NODE.name()).command("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// ClusterIPs of both families of a Service of the shop.
fn cluster_ips(cluster: &Cluster, service: &str) -> Vec<SocketAddr> {
    let text = cluster.kubectl(&format!("-n shop get service {service} -o json"));
    let object: Value = serde_json::from_str(&text).unwrap();
    let ips = object["spec"]["clusterIPs"].as_array().unwrap().clone();
    ips.iter().map(|ip| SocketAddr::new(ip.as_str().unwrap().parse().unwrap(), 80)).collect()
}

#[test]
fn kube_proxys_work_goes_over_and_back_and_no_connection_breaks() {
    let Some(assets) = control_plane() else { return };
    if !assets.kubectl().with_file_name("kube-proxy").is_file() {
        let _ = writeln!(std::io::stderr(), "skipped: `make kubernetes` builds kube-proxy");
        return;
    }
    if Command::new("iptables-legacy-save").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: iptables-legacy-save is missing (.ci/setup test installs it)"
        );
        return;
    }
    let cgroup = match Cgroup::enter("xlb-proxy-") {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            return;
        }
    };
    let cluster = Cluster::up("xlbnkproxy", &assets);
    cluster.open_shop();
    cluster.kubectl_with("apply -f -", LOCAL);
    let _others = [Node::Worker, Node::Worker2].map(|node| cluster.daemon(node));
    let root = cgroup.path().display();
    let daemon =
        cluster.daemon_with(NODE, &format!("socketLB: {{cgroupRoot: {root}, enabled: true}}\n"));
    for (mode, script) in ["nftables", "iptables"].into_iter().zip(FOREIGN) {
        foreign(&cluster, script);
        over_and_back(&World::new(&cluster, &daemon, &cgroup, mode));
    }
}

fn over_and_back(world: &World<'_>) {
    let (cluster, mode) = (world.cluster, world.mode);
    let began = Instant::now();
    let cluster_ips = cluster_ips(cluster, "frontend");
    let (addresses, node_port) = cluster.addresses("frontend-external");
    let outside: Vec<SocketAddr> = addresses.iter().copied().chain(NODE.at(node_port)).collect();
    let status = world.status();
    assert_eq!(status["kubeProxy"]["mode"], mode, "{status}");
    assert_eq!(status["kubeProxy"]["modeFrom"], "port", "{status}");
    assert_eq!(status["kubeProxy"]["processes"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["kubeProxy"]["manifests"].as_array().unwrap().len(), 1, "{status}");

    // A service that xdp-lb does not have: the kernel has no hook for it.
    cluster.kubectl("-n shop create service clusterip other --tcp=7:7");
    let port = r#"{"spec":{"ports":[{"name":"7-7","port":7,"protocol":"SCTP"}],"selector":null}}"#;
    let output = cluster.kubectl(&format!("-n shop patch service other --type=merge -p {port}"));
    assert!(output.contains("patched"), "{output}");
    wait_for(STARTING, "takeover finds it", || {
        let output = world.run(&["takeover", "-o", "json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = found["differences"].as_array().unwrap();
        let its = |one: &Value| one["frontend"].as_str().unwrap().ends_with("/SCTP");
        let found = all.len() == 1 && its(&all[0]);
        assert!(!found || output.status.code() == Some(1));
        found
    });
    let before = world.rules();
    let refused = world.run(&["remove", "--yes"]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("1 differences") && errors.contains("/SCTP"), "{errors}");
    assert!(world.kubelet.manifest.exists());
    cluster.kubectl("-n shop delete service other");
    wait_for(STARTING, "nothing differs", || world.run(&["takeover"]).status.success());
    eprintln!("{mode}: {}", world.told(&["takeover"]));
    assert_same(&world.rules().1, &before.1);

    // Connections that kube-proxy has translated, and some that XDP leads.
    let client = cluster.net().client();
    let translated = world.connections_by_kube_proxy(&cluster_ips);
    let led = CrowdSpec::new(&addresses, CONNECTIONS / 2).lasting();
    let led = led.pause(Duration::from_millis(500)).start(cluster.net().ns("client")).unwrap();
    wait_until("connections from outside last", || led.living() == CONNECTIONS / 2);
    let lasting = Instant::now();
    let from_outside = Traffic::start(&client, &outside, CLIENTS / 2, PAUSE);
    let inside = Client::new(world.space()).timeout(Duration::from_secs(2));
    let from_inside = Traffic::start(&inside, &cluster_ips, CLIENTS / 2, PAUSE);
    let asked = |count: u64| {
        let goal = [&from_outside, &from_inside].map(|one| one.so_far().0 + count);
        wait_until("requests are answered", || {
            from_outside.so_far().0 >= goal[0] && from_inside.so_far().0 >= goal[1]
        });
    };
    asked(100);
    let rules = world.rules_at_rest();
    let plan = world.told(&["remove"]);
    assert!(plan.contains("Nothing was changed"), "{plan}");
    let now = world.rules();
    assert_same(&now.0, &rules);
    assert_same(&now.1, &before.1);
    // Killed while it compares, and while it waits for kube-proxy to end.
    for after in [100, 250] {
        world.killed(&["remove", "--yes"], Duration::from_millis(after));
    }
    let removing = Instant::now();
    let said = world.told(&["remove", "--yes"]);
    let removing = removing.elapsed();
    eprintln!("{mode}: removed in {removing:?}: {said}");
    let (left, others) = world.rules();
    assert_same(&left, &[]);
    assert_same(&others, &before.1);
    let keepers = world.space().tool("nft", "list tables").unwrap();
    // Rules of others hold conntrack and NAT of IPv4 in the second round alone.
    assert_eq!(keepers.contains("ip xdp-lb-conntrack"), mode == "nftables", "{keepers}");
    assert!(keepers.contains("ip6 xdp-lb-conntrack"), "{keepers}");
    asked(200);

    for (name, crowd) in [("translated", translated), ("led", led)] {
        let (figures, mut losses) = crowd.finish().unwrap();
        // The node itself may have a port that a client wanted first.
        losses.retain(|loss| loss.lost > lasting);
        assert!(losses.is_empty(), "{name}: {} lost, first {:?}", losses.len(), losses[0]);
        assert_eq!(figures.living.values().sum::<usize>(), CONNECTIONS / 2, "{name}");
    }
    for traffic in [from_outside, from_inside] {
        let record = traffic.finish().unwrap();
        assert!(record.failures.is_empty(), "{:?}", record.failures);
    }
    assert_eq!(world.status()["removal"], "removed");

    // The rules that come back are those that went.
    world.kubelet.pause(true);
    let restoring = Instant::now();
    world.told(&["restore"]);
    let restoring = restoring.elapsed();
    let now = world.rules();
    assert_same(&now.0, &rules);
    assert_same(&now.1, &before.1);
    assert!(world.kubelet.manifest.exists());
    let keepers = world.space().tool("nft", "list tables").unwrap();
    assert!(!keepers.contains("xdp-lb-conntrack"), "{keepers}");

    // Killed at any point, both can be run again. kube-proxy does not run meanwhile.
    let mut work: [(&[&str], _, _); 2] =
        [(&["remove", "--yes"], removing, &[][..]), (&["restore"], restoring, &rules[..])];
    let mut kills = [0; 2];
    for round in 1.. {
        for ((words, takes, wanted), kills) in work.iter_mut().zip(&mut kills) {
            for part in 1..=4 {
                match world.killed(words, *takes * part / 5) {
                    // It took less than was thought.
                    true if part == 1 => *takes /= 2,
                    true => {}
                    false => *kills += 1,
                }
                // What is there at any time is whole: all of a table, or nothing.
                assert_same(&world.rules().1, &before.1);
            }
            let running = Instant::now();
            world.run(words);
            // What is left to do takes less.
            *takes = running.elapsed().max(*takes);
            let (own, others) = world.rules();
            assert_same(&own, wanted);
            assert_same(&others, &before.1);
        }
        if round >= ROUNDS && kills.iter().all(|&kills| kills >= KILLS) {
            break;
        }
        assert!(round < 3 * ROUNDS, "{kills:?} were killed in time");
    }

    // kubelet starts it anew, and it serves as before.
    world.kubelet.pause(false);
    wait_for(STARTING, "kube-proxy runs", || world.status()["kubeProxy"]["modeFrom"] == "port");
    world.cgroup.outside(|| inside.ask(cluster_ips[0], None)).unwrap().unwrap();
    // For the next round.
    world.told(&["remove", "--yes"]);
    for family in ["ip", "ip6"] {
        let _ = world.space().tool("nft", &format!("delete table {family} xdp-lb-conntrack"));
    }
    eprintln!("{mode}: {:?}, killed {kills:?} times", began.elapsed());
}
