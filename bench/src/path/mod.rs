//! Whole paths: packets from a generator across veth pairs through what balances to a sink that counts
//! them, and connections of real sockets through the same.
//!
//! ```text
//!  client eth0 ──── eth0 balancer eth1 ──── eth0 server
//!         eth1 ──────────────────────────── eth1          (answers that bypass the balancer)
//! ```

mod error;
mod kubernetes;
mod latency;
mod own;
mod rules;
mod traffic;

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use xdp_lb::{
    error::chain,
    lab::{Item, Lab, Process, end, host, ip, link, route, router, sysctl, vip},
};
use xdp_lb_api::benchmark::PathCase;

pub use self::error::Error;
use self::{
    kubernetes::Proxy,
    traffic::{Flows, Traffic},
};

/// Begins the names of namespaces, pins and files.
const PREFIX: &str = "xlbbench";
/// The frontend that is measured.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(crate) const PORT: u16 = 80;
/// Address of the client's that looks whether the frontend is served.
pub(crate) const PROBER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
/// Endpoints of each service.
pub(crate) const ENDPOINTS: u8 = 10;
/// How long what balances may take until it does.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a connection may take that shows whether it does.
const ATTEMPT: Duration = Duration::from_millis(200);
/// How long a program may take to end.
const STOPPING: Duration = Duration::from_secs(20);
const TURN: Duration = Duration::from_millis(20);

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Numbers of services
    pub services: Vec<u32>,
    /// The same for kube-proxy, ascending: each service is made by requests to the API server
    pub kubernetes: Vec<u32>,
    /// Packets of each measurement
    pub packets: u32,
    /// Connections of each measurement
    pub connections: u32,
    /// Changes of an endpoint
    pub changes: u32,
    /// The program of the daemon
    pub daemon: PathBuf,
}

/// Addresses of the endpoints of a service; those of the first are the server's.
pub(crate) fn endpoints(service: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..ENDPOINTS).map(move |number| match service {
        0 => Ipv4Addr::new(10, 2, 0, 10 + number),
        _ => Ipv4Addr::from_bits(0x0a40_0000 + service * 16 + u32::from(number)),
    })
}

/// Address of a service.
pub(crate) fn address(service: u32) -> Ipv4Addr {
    match service {
        0 => VIP,
        _ => Ipv4Addr::from_bits(0x6440_0000 + service),
    }
}

fn topology() -> Vec<Item> {
    let mut items = vec![
        host("client"),
        router("balancer"),
        host("server"),
        link(
            end("client", "eth0")
                .mac("02:00:00:00:01:02")
                .addr("10.1.0.2/24")
                .addr(&format!("{PROBER}/24")),
            end("balancer", "eth0").mac("02:00:00:00:01:01").addr("10.1.0.1/24"),
        ),
        link(
            end("server", "eth0").mac("02:00:00:00:02:02").addr("10.2.0.2/24"),
            end("balancer", "eth1").mac("02:00:00:00:02:01").addr("10.2.0.1/24"),
        ),
        link(
            end("client", "eth1").mac("02:00:00:00:03:02").addr("10.3.0.2/24"),
            end("server", "eth1").mac("02:00:00:00:03:01").addr("10.3.0.1/24"),
        ),
        route("client", "0.0.0.0/0", "10.1.0.1"),
        route("server", "10.1.0.0/24", "10.3.0.2"),
        // Clients of the generator, which nobody answers.
        route("balancer", "198.18.0.0/15", "10.1.0.2"),
        route("balancer", "172.16.0.0/12", "10.1.0.2"),
        route("balancer", "10.64.0.0/10", "10.2.0.2"),
        // By a router that is not there: own connections get through as far as somebody translates them.
        ip("balancer", "route add 203.0.113.0/24 via 10.2.0.254 dev eth1 onlink"),
        vip("server", &VIP.to_string()),
        // Resolved for good: nobody is asked while packets are counted.
        ip("balancer", "neigh replace 10.1.0.2 lladdr 02:00:00:00:01:02 dev eth0 nud permanent"),
    ];
    for node in ["client", "server", "balancer"] {
        items.push(sysctl(node, "net.ipv4.conf.all.rp_filter", "0"));
        items.push(sysctl(node, "net.ipv4.conf.eth0.rp_filter", "0"));
        items.push(sysctl(node, "net.ipv4.conf.eth1.rp_filter", "0"));
    }
    for address in endpoints(0) {
        items.push(ip("server", &format!("addr add {address}/24 dev eth0")));
        let neighbour =
            format!("neigh replace {address} lladdr 02:00:00:00:02:02 dev eth1 nud permanent");
        items.push(ip("balancer", &neighbour));
    }
    items
}

/// The lab, and what balances in it.
struct Bench {
    lab: Lab,
    directory: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Files alone are left, which the next run replaces.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Bench {
    fn up() -> Result<Self, Error> {
        let lab = Lab::build(PREFIX, topology())?;
        traffic::apart(&lab)?;
        let directory = std::env::temp_dir().join(PREFIX);
        fs::create_dir_all(&directory)?;
        Ok(Self { lab, directory })
    }

    /// Measures what balances now, and the same with new flows.
    fn measure_both(&self, name: &str, scale: &Scale) -> Result<[PathCase; 2], Error> {
        let known = self.measure(name, scale)?;
        let new = traffic::measure(&self.lab, Flows::New, scale.packets)?;
        Ok([known, case(&format!("{name}-new"), &new)])
    }

    /// Measures what balances now: known flows, and connections.
    fn measure(&self, name: &str, scale: &Scale) -> Result<PathCase, Error> {
        self.wait_until_ready(name)?;
        let frontend = SocketAddr::from((VIP, PORT));
        let latency = latency::measure(self.lab.ns("client")?, frontend, scale.connections)?;
        let known = traffic::measure(&self.lab, Flows::Known, scale.packets)?;
        let PathCase { name, delivered_pps, delivered, cpu_ns, .. } = case(name, &known);
        Ok(PathCase { name, delivered_pps, delivered, cpu_ns, ..latency.case() })
    }

    /// Waits until what is to be measured serves, and has nothing else to do.
    fn wait_until_ready(&self, name: &str) -> Result<(), Error> {
        // Minutes pass with many services: what takes them is said.
        let _ = writeln!(io::stderr(), "{name}");
        self.wait_until_served()?;
        if !traffic::settle()? {
            let _ = writeln!(io::stderr(), "{name} is measured while its CPU has other work, too");
        }
        Ok(())
    }

    /// Waits until a connection through the frontend succeeds.
    fn wait_until_served(&self) -> Result<(), Error> {
        let frontend = SocketAddr::from((VIP, PORT));
        let began = Instant::now();
        let client = self.lab.ns("client")?;
        while !client.run(|| latency::opens(frontend, ATTEMPT))?? {
            if began.elapsed() > PATIENCE {
                return Err(Error::NotServed(PATIENCE.as_secs(), self.last_words()));
            }
            thread::sleep(TURN);
        }
        Ok(())
    }

    /// The ends of all logs.
    fn last_words(&self) -> String {
        let files = fs::read_dir(&self.directory).into_iter().flatten().filter_map(Result::ok);
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        let mut text = String::new();
        for file in logs {
            let log = fs::read_to_string(file.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(5)..].join("\n");
            let _ = write!(text, "\n{}:\n{end}", file.path().display());
        }
        text
    }

    /// Starts the daemon with this configuration.
    fn daemon(&self, scale: &Scale, config: &str) -> Result<Process, Error> {
        let file = self.directory.join("xdp-lb.yaml");
        fs::write(&file, config)?;
        let mut command = Command::new(&scale.daemon);
        let path = |name: &str| self.directory.join(name);
        command
            .args([Path::new("run"), Path::new("--config"), &file, Path::new("--detach-on-exit")])
            .args([Path::new("--pin-dir"), &Path::new("/sys/fs/bpf").join(PREFIX)])
            .args([Path::new("--state-dir"), &path("state")])
            .args([Path::new("--socket"), &path("api.sock")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("daemon.log"))?);
        Ok(self.lab.ns("balancer")?.spawn_bound(command)?)
    }
}

fn case(name: &str, traffic: &Traffic) -> PathCase {
    PathCase {
        name: name.to_owned(),
        delivered_pps: Some(traffic.delivered as f64 / traffic.time.as_secs_f64()),
        delivered: Some(traffic.delivered as f64 / f64::from(traffic.sent)),
        cpu_ns: Some(traffic.cpu.as_nanos() as f64 / traffic.delivered.max(1) as f64),
        ..PathCase::default()
    }
}

/// What all configurations begin with.
const HEAD: &str = "\
hashKey: \"0102030405060708090a0b0c0d0e0f1a\"
devices:
  - {name: eth0, xdp: native}
  - {name: eth1, xdp: native}
limits: {frontends: 32768, backends: 131072, slots: 16777216, flows: 65536}
";

fn config(mode: &str, services: u32) -> String {
    let mut text = format!("{HEAD}handover: 0s\nservices:\n");
    for service in 0..services {
        let frontend = address(service);
        let _ = write!(
            text,
            "  - name: s{service}\n    mode: {mode}\n    frontends:\n      \
             - {{address: {frontend}, port: {PORT}}}\n      \
             - {{address: {frontend}, port: {PORT}, protocol: UDP}}\n    backends:\n"
        );
        for endpoint in endpoints(service) {
            let _ = writeln!(text, "      - {{address: {endpoint}}}");
        }
    }
    text
}

/// Measures all that balances here, one after the other on the same topology; what is missing on this
/// machine is told to `skipped`.
///
/// # Errors
///
/// Where the lab cannot be built, or something does not balance.
pub fn measure(scale: &Scale, mut skipped: impl FnMut(&str)) -> Result<Vec<PathCase>, Error> {
    let bench = Bench::up()?;
    let _server = latency::serve(&bench.lab)?;
    let mut cases = vec![case("sink-alone", &traffic::floor(&bench.lab, scale.packets)?)];
    cases.push(own::direct(&bench, scale)?);
    for &services in &scale.services {
        let daemon = bench.daemon(scale, &config("l2", services))?;
        cases.extend(bench.measure_both(&format!("xdp-lb-l2-{services}"), scale)?);
        daemon.stop(STOPPING)?;
        // No new flows: a million of them from one address would use up its ports at once.
        let daemon = bench.daemon(scale, &config("snat", services))?;
        cases.push(bench.measure(&format!("xdp-lb-snat-{services}"), scale)?);
        daemon.stop(STOPPING)?;
        cases.extend(own::sockets(&bench, scale, services, &mut skipped)?);
    }
    if !rules::has_nft() {
        skipped("nftables and kube-proxy: the program nft is missing (apt-get install nftables)");
        return Ok(cases);
    }
    for &services in &scale.services {
        rules::install(&bench.lab, services)?;
        let name = format!("nftables-{services}");
        let [mut measured, new] = bench.measure_both(&name, scale)?;
        cases.push(own::served(&bench, &name, scale)?);
        // Each takes seconds there.
        let changes = if services < 10_000 { scale.changes } else { scale.changes.min(3) };
        measured.change_ms = Some(rules::change(&bench.lab, changes)?);
        cases.extend([measured, new]);
        rules::remove(&bench.lab)?;
    }
    if scale.kubernetes.is_empty() {
        return Ok(cases);
    }
    match Proxy::find() {
        Ok(programs) => {
            // The other figures are not lost with it.
            let result = kubernetes::measure(&bench, &programs, scale, &mut cases, &mut skipped);
            if let Err(error) = result {
                skipped(&format!("the rest of kube-proxy: {}", chain(&error)));
            }
        }
        Err(why) => skipped(&format!("kube-proxy: {why}")),
    }
    Ok(cases)
}
