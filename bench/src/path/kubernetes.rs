//! kube-proxy itself, and the daemon that follows the same cluster: fed by a real API server in the
//! balancer's namespace.

use std::{
    fs, panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use xdp_lb::{
    bench::Sample,
    lab::{
        Process,
        kubernetes::{Assets, ControlPlane, Life},
    },
};
use xdp_lb_api::benchmark::PathCase;

use super::{Bench, Error, HEAD, PORT, STOPPING, Scale, address, endpoints, own, rules};

/// Requests to the API server at a time.
const AT_ONCE: usize = 24;
const NODE: &str = "balancer";
const NODE_ADDRESS: &str = "10.1.0.1";
/// How long a change is followed by no other.
const PAUSE: Duration = Duration::from_millis(300);

/// The programs.
pub(super) struct Proxy {
    assets: Assets,
    proxy: PathBuf,
}

impl Proxy {
    /// Finds them; or says what is missing.
    pub(super) fn find() -> Result<Self, String> {
        let assets = Assets::find().map_err(|missing| missing.to_string())?;
        let proxy = assets.kubectl().with_file_name("kube-proxy");
        if proxy.is_file() {
            return Ok(Self { assets, proxy });
        }
        Err(format!("{} is missing: `make kubernetes` builds it", proxy.display()))
    }

    fn start(&self, bench: &Bench, mode: &str, kubeconfig: &Path) -> Result<Process, Error> {
        let mut command = Command::new(&self.proxy);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--proxy-mode", mode, "--hostname-override", NODE])
            // Those of the whole machine stay as they are.
            .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s"])
            .args(["--conntrack-tcp-timeout-close-wait=0s", "--cluster-cidr=10.0.0.0/8"])
            .args([
                "--healthz-bind-address=127.0.0.1:10256",
                "--metrics-bind-address=127.0.0.1:10249",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(bench.directory.join(format!("kube-proxy-{mode}.log")))?);
        Ok(bench.lab.ns("balancer")?.spawn_bound(command)?)
    }

    /// Takes out the rules that it left.
    fn clean(&self, bench: &Bench) -> Result<(), Error> {
        let mut command = bench.lab.ns("balancer")?.command(&self.proxy);
        let output = command.args(["--cleanup"]).output()?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().last().unwrap_or_default().to_owned();
        Err(Error::Tool { tool: "kube-proxy --cleanup", message })
    }
}

/// Measures kube-proxy in both modes, and how long a change takes to reach packets, for the daemon too.
pub(super) fn measure(
    bench: &Bench,
    programs: &Proxy,
    scale: &Scale,
    cases: &mut Vec<PathCase>,
    skipped: &mut impl FnMut(&str),
) -> Result<(), Error> {
    let space = bench.lab.ns("balancer")?;
    let address = NODE_ADDRESS.parse().map_err(|_| Error::Missing("address of the node"))?;
    let directory = bench.directory.join("kubernetes");
    let plane = ControlPlane::start(space, address, &directory, &programs.assets, Life::Bound)?;
    let cluster = Cluster { bench, kubeconfig: plane.kubeconfig() };
    cluster.with(|client| async move { client.node().await })?;
    let mut made = 0;
    for &services in &scale.kubernetes {
        cluster.with(|client| async move {
            let indices = stream::iter(made..services).map(Ok);
            indices.try_for_each_concurrent(AT_ONCE, |one| client.service(one)).await
        })?;
        made = services;
        for mode in ["nftables", "iptables"] {
            if mode == "iptables" && !has_iptables() {
                skipped("kube-proxy in iptables mode: the program iptables is missing");
                continue;
            }
            let proxy = programs.start(bench, mode, &cluster.kubeconfig)?;
            let name = format!("kube-proxy-{mode}-{services}");
            let [mut measured, new] = bench.measure_both(&name, scale)?;
            cases.push(own::served(bench, &name, scale)?);
            match cluster.change(scale.changes) {
                Ok(time) => measured.change_ms = Some(time),
                Err(error) => skipped(&format!("time of a change of {name}: {error}")),
            }
            cases.extend([measured, new]);
            proxy.stop(STOPPING)?;
            programs.clean(bench)?;
        }
        let daemon = cluster.daemon(scale)?;
        bench.wait_until_served()?;
        cases.push(PathCase {
            name: format!("xdp-lb-kubernetes-{services}"),
            change_ms: Some(cluster.change(scale.changes)?),
            ..PathCase::default()
        });
        daemon.stop(STOPPING)?;
    }
    Ok(())
}

fn has_iptables() -> bool {
    let found = Command::new("iptables").arg("--version").stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

struct Cluster<'a> {
    bench: &'a Bench,
    kubeconfig: PathBuf,
}

impl Cluster<'_> {
    /// Makes requests from the balancer, where the API server is.
    fn with<F: Future<Output = Result<(), kube::Error>>>(
        &self,
        work: impl FnOnce(Requests) -> F + Send,
    ) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Kubernetes(error.to_string());
        let requests = || -> Result<(), Error> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let file =
                    Kubeconfig::read_from(&self.kubeconfig).map_err(|error| failed(&error))?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options).await;
                let client = Client::try_from(config.map_err(|error| failed(&error))?);
                let client = client.map_err(|error| failed(&error))?;
                work(Requests(client)).await.map_err(|error| failed(&error))
            })
        };
        self.bench.lab.ns("balancer")?.run(requests)?
    }

    /// Milliseconds from the API server's answer to a change until new connections are refused: median
    /// of so many. The first service loses all its endpoints, and gets them back.
    fn change(&self, times: u32) -> Result<f64, Error> {
        let mut sample = Sample::default();
        for _ in 0..times {
            let mut answered = Instant::now();
            let at = &mut answered;
            // Looked at all the time, also while the request is on its way.
            let shown = thread::scope(|scope| {
                let waits = scope.spawn(|| rules::wait(&self.bench.lab, false));
                self.with(|client| async move {
                    client.ready(false).await?;
                    *at = Instant::now();
                    Ok(())
                })?;
                waits.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
            })?;
            sample.push(shown.saturating_duration_since(answered).as_secs_f64() * 1e3);
            self.with(|client| async move { client.ready(true).await })?;
            rules::wait(&self.bench.lab, true)?;
            thread::sleep(PAUSE);
        }
        Ok(sample.median())
    }

    /// The daemon, which follows the cluster.
    fn daemon(&self, scale: &Scale) -> Result<Process, Error> {
        let file = self.kubeconfig.display();
        let section = format!("kubernetes: {{kubeconfig: {file}, nodeName: {NODE}}}\n");
        self.bench.daemon(scale, &(HEAD.to_owned() + &section))
    }
}

#[derive(Clone)]
struct Requests(Client);

impl Requests {
    async fn node(&self) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let node = from(json!({"metadata": {"name": NODE}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let status =
            json!({"status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]}});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    async fn service(&self, index: u32) -> Result<(), kube::Error> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.0.clone());
        let services: Api<Service> = Api::default_namespaced(self.0.clone());
        let parameters = PostParams::default();
        slices.create(&parameters, &from(slice(index))?).await?;
        let port =
            |name: &str, protocol: &str| json!({"name": name, "port": PORT, "protocol": protocol});
        let service = json!({
            "metadata": {"name": name(index)},
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": "xdp-lb.dev/bench",
                "allocateLoadBalancerNodePorts": false,
                "ports": [port("tcp", "TCP"), port("udp", "UDP")],
            },
        });
        services.create(&parameters, &from(service)?).await?;
        let ingress = json!([{"ip": address(index), "ipMode": "VIP"}]);
        let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        services.patch_status(&name(index), &PatchParams::default(), &status).await?;
        Ok(())
    }

    /// Makes all endpoints of the first service ready, or not.
    async fn ready(&self, ready: bool) -> Result<(), kube::Error> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.0.clone());
        let mut slice = slice(0);
        if let Some(all) = slice["endpoints"].as_array_mut() {
            for one in all {
                one["conditions"] = json!({"ready": ready, "serving": ready, "terminating": false});
            }
        }
        let patch = Patch::Merge(json!({"endpoints": slice["endpoints"]}));
        slices.patch(&name(0), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn name(index: u32) -> String {
    format!("service-{index}")
}

fn slice(index: u32) -> Value {
    let endpoint = |address| {
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        json!({"addresses": [address], "conditions": conditions, "nodeName": "elsewhere"})
    };
    json!({
        "metadata": {
            "name": name(index),
            "labels": {
                "kubernetes.io/service-name": name(index),
                "endpointslice.kubernetes.io/managed-by": "bench.xdp-lb.dev",
            },
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "tcp", "port": PORT, "protocol": "TCP"},
            {"name": "udp", "port": PORT, "protocol": "UDP"},
        ],
        "endpoints": endpoints(index).map(endpoint).collect::<Vec<_>>(),
    })
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, kube::Error> {
    serde_json::from_value(value).map_err(kube::Error::SerdeError)
}
