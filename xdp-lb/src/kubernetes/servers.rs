//! Which API servers there are: those of the configuration, and those that the cluster itself tells of,
//! the endpoints of `default/kubernetes`. These are kept in a file, so that the next start finds one
//! though all configured ones are gone.

use std::{
    collections::BTreeSet,
    env, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use axum::http::Uri;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};
use xdp_lb_plan::{
    kubernetes::{EndpointState, FrontendKind, Key, ServiceState},
    model::Protocol,
};

use crate::files;

const FILE: &str = "api-servers.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Port of the Service of the API servers.
const SERVICE_PORT: u16 = 443;
/// What is to be done about a ClusterIP.
const REMEDY: &str =
    "name an API server itself: `k8sServiceHost` and `k8sServicePort`, or `apiServers`";

/// A server that may be followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Server {
    pub(super) url: Uri,
    /// Whether the cluster told of it, and not the configuration
    pub(super) learnt: bool,
}

impl Server {
    pub(super) fn name(&self) -> String {
        self.url.to_string()
    }
}

/// What is known of a cluster's servers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Known {
    /// URLs of the configured ones: what was learnt from them is of no use to others
    configured: Vec<String>,
    /// Endpoints of `default/kubernetes`
    endpoints: Vec<SocketAddr>,
    /// Its ClusterIPs
    cluster_ips: Vec<IpAddr>,
}

/// The servers, and what is kept of them.
pub(super) struct Servers {
    known: watch::Sender<Known>,
    /// The ClusterIP that this pod was told
    told: Option<IpAddr>,
    /// URLs of those that have served: somebody leads there
    served: Mutex<BTreeSet<String>>,
}

impl Servers {
    /// Begins with what an earlier run kept in this directory, and keeps what changes. Needs a tokio
    /// runtime.
    pub(super) fn start(directory: PathBuf) -> Self {
        let (known, mut changes) = watch::channel(load(&directory));
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let (directory, known) = (directory.clone(), changes.borrow_and_update().clone());
                let saved = tokio::task::spawn_blocking(move || save(&directory, &known)).await;
                if let Err(error) = saved.map_err(io::Error::other).and_then(|result| result) {
                    warn!("the API servers cannot be kept for the next start: {error}");
                }
            }
        });
        Self { known, told: told(|name| env::var(name).ok()), served: Mutex::default() }
    }

    /// The cluster is followed by this one.
    pub(super) fn serves(&self, server: &Server) {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(server.name());
    }

    /// These are configured. What was learnt from others is forgotten.
    pub(super) fn configure(&self, urls: &[Uri]) {
        let configured: Vec<String> = urls.iter().map(ToString::to_string).collect();
        self.known.send_if_modified(|known| {
            let changed = known.configured != configured;
            if changed {
                *known = Known { configured, ..Known::default() };
            }
            changed
        });
    }

    /// Takes what the cluster says of its own servers; whether that is news. When it names none, those
    /// of before stay.
    pub(super) fn learn(&self, state: &ServiceState) -> bool {
        let named = state.ports.iter().any(|port| &*port.name == "https");
        let https = state
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp && (&*port.name == "https" || !named));
        let serving = https.clone().flat_map(|port| &port.endpoints);
        let serving = serving.filter(|one| one.state != EndpointState::NotReady);
        let mut endpoints: Vec<SocketAddr> =
            serving.map(|one| SocketAddr::new(one.address, one.port.get())).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let frontends = https.flat_map(|port| &port.frontends);
        let cluster_ips = frontends.filter(|one| one.kind == FrontendKind::ClusterIp);
        let cluster_ips: Vec<IpAddr> = cluster_ips.filter_map(|one| one.address).collect();
        self.known.send_if_modified(|known| {
            let endpoints = if endpoints.is_empty() { known.endpoints.clone() } else { endpoints };
            let changed = known.endpoints != endpoints || known.cluster_ips != cluster_ips;
            if changed {
                let text: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                info!("API servers that the cluster tells of: {}", text.join(", "));
                (known.endpoints, known.cluster_ips) = (endpoints, cluster_ips);
            }
            changed
        })
    }

    /// All of them, those of the configuration first.
    pub(super) fn all(&self) -> Vec<Server> {
        let known = self.known.borrow();
        let configured = known.configured.iter().filter_map(|url| url.parse::<Uri>().ok());
        let mut all: Vec<Server> = configured.map(|url| Server { url, learnt: false }).collect();
        // One without TLS stands for no others: it is of this host, and asks for nothing.
        let secure = all.iter().any(|one| one.url.scheme_str() == Some("https"));
        let places: Vec<_> = all.iter().map(|one| place(&one.url)).collect();
        for endpoint in known.endpoints.iter().filter(|_| secure) {
            let Ok(url) = format!("https://{endpoint}").parse::<Uri>() else { continue };
            if !places.contains(&place(&url)) {
                all.push(Server { url, learnt: true });
            }
        }
        all
    }

    /// What to tell of a server that does not answer, where perhaps nobody leads there: a ClusterIP is
    /// but a name for what a proxy knows. Of one that has served there is nothing to tell.
    pub(super) fn advice(&self, server: &Server) -> Option<Advice> {
        if self.served.lock().unwrap_or_else(PoisonError::into_inner).contains(&server.name()) {
            return None;
        }
        let (host, port) = place(&server.url);
        let known = self.known.borrow();
        let say = known.endpoints.first().map(|one| format!(" ({one}, say)")).unwrap_or_default();
        if is_dns_name(&host) {
            let text = format!(
                "{host} is a name for the ClusterIP of default/kubernetes, which only a proxy leads to; \
                 {REMEDY}{say}"
            );
            return Some(Advice { certain: true, text });
        }
        let address: IpAddr = host.parse().ok()?;
        if self.told == Some(address) || known.cluster_ips.contains(&address) {
            let text = format!(
                "{address} is the ClusterIP of default/kubernetes, which leads nowhere until kube-proxy, \
                 or `socketLB` here, has read the cluster; {REMEDY}{say}"
            );
            return Some(Advice { certain: true, text });
        }
        // Before the first contact nobody knows.
        let perhaps = known.cluster_ips.is_empty() && port == SERVICE_PORT && !server.learnt;
        let text = format!(
            "if {address} is the ClusterIP of default/kubernetes, it leads nowhere without kube-proxy; \
             {REMEDY}"
        );
        perhaps.then_some(Advice { certain: false, text })
    }
}

/// Why a server may not answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Advice {
    /// Whether it is known to be behind a ClusterIP
    pub(super) certain: bool,
    pub(super) text: String,
}

/// The Service of the API servers.
pub(super) fn service() -> Key {
    Key::new("default", "kubernetes")
}

/// Names by which a cluster's own DNS knows the Service.
fn is_dns_name(host: &str) -> bool {
    let rest = host.strip_prefix("kubernetes.default");
    rest.is_some_and(|rest| rest.is_empty() || rest == ".svc" || rest.starts_with(".svc."))
}

/// Host, without brackets, and port.
pub(super) fn place(url: &Uri) -> (String, u16) {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
    (host.to_owned(), url.port_u16().unwrap_or(usual))
}

/// The ClusterIP that a kubelet tells a pod. Manifests that replace `KUBERNETES_SERVICE_HOST` by a
/// server's own address leave `KUBERNETES_PORT` as it is.
fn told(variable: impl Fn(&str) -> Option<String>) -> Option<IpAddr> {
    match variable("KUBERNETES_PORT") {
        // Like `tcp://10.96.0.1:443`
        Some(url) => place(&url.parse().ok()?).0.parse().ok(),
        None => variable("KUBERNETES_SERVICE_HOST")?.parse().ok(),
    }
}

/// What an earlier run kept; nothing where no sound file is there.
fn load(directory: &Path) -> Known {
    let file = directory.join(FILE);
    let small = fs::metadata(&file).is_ok_and(|data| data.len() <= MAX_FILE);
    let text = if small { fs::read(&file).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&text).unwrap_or_default()
}

fn save(directory: &Path, known: &Known) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    files::replace(&directory.join(FILE), &serde_json::to_vec(known)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use xdp_lb_plan::kubernetes::{Index, Rules};

    use super::*;

    fn servers(configured: &str, endpoints: &[&str], told: Option<&str>) -> Servers {
        let known = Known {
            configured: configured.split(' ').map(str::to_owned).collect(),
            endpoints: endpoints.iter().map(|one| one.parse().unwrap()).collect(),
            cluster_ips: Vec::new(),
        };
        let told = told.map(|one| one.parse().unwrap());
        Servers { known: watch::Sender::new(known), told, served: Mutex::default() }
    }

    fn names(servers: &Servers) -> Vec<String> {
        servers.all().iter().map(Server::name).collect()
    }

    #[test]
    fn learnt_servers_come_after_the_configured_ones_and_each_once() {
        let all = servers(
            "https://10.0.0.1:6443 https://api.example.org",
            &["10.0.0.1:6443", "10.0.0.2:6443", "[2001:db8::1]:6443"],
            None,
        );
        assert_eq!(
            names(&all),
            [
                "https://10.0.0.1:6443/",
                "https://api.example.org/",
                "https://10.0.0.2:6443/",
                "https://[2001:db8::1]:6443/"
            ]
        );
        let learnt: Vec<bool> = all.all().iter().map(|one| one.learnt).collect();
        assert_eq!(learnt, [false, false, true, true]);
    }

    #[test]
    fn a_server_without_tls_stands_for_no_others() {
        let all = servers("http://127.0.0.1:8001", &["10.0.0.2:6443"], None);
        assert_eq!(names(&all), ["http://127.0.0.1:8001/"]);
    }

    /// What the rules make of the Service, and of a slice with these endpoints.
    fn state(endpoints: &[&str]) -> Arc<ServiceState> {
        let service = json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1"],
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "https", "port": 443, "protocol": "TCP"}],
            },
        });
        let one = |address| json!({"addresses": [address], "conditions": {"ready": true}});
        let slice = json!({
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
            "endpoints": endpoints.iter().map(one).collect::<Vec<_>>(),
        });
        let mut index = Index::new(Rules::default());
        index.replace_nodes([]);
        index.replace_services([&serde_json::from_value(service).unwrap()]);
        index.replace_slices([&serde_json::from_value(slice).unwrap()]);
        index.changes().into_iter().find_map(|change| change.state).unwrap()
    }

    #[test]
    fn the_endpoints_of_the_service_are_the_servers_until_it_has_others() {
        let all = servers("https://10.0.0.1:6443", &[], None);
        assert!(all.learn(&state(&["10.0.0.3", "10.0.0.2"])));
        let [first, second, third] = ["1", "2", "3"].map(|n| format!("https://10.0.0.{n}:6443/"));
        assert_eq!(names(&all), [&first, &second, &third].map(Clone::clone));
        let cluster_ip = Server { url: "https://10.96.0.1".parse().unwrap(), learnt: false };
        let Advice { certain, text } = all.advice(&cluster_ip).unwrap();
        assert!(certain && text.contains("(10.0.0.2:6443, say)"), "{text}");
        assert!(!all.learn(&state(&["10.0.0.2", "10.0.0.3"])), "it is no news");
        assert!(!all.learn(&state(&[])), "nothing is better than the last");
        assert!(all.learn(&state(&["10.0.0.3"])));
        assert_eq!(names(&all), [first, third]);
    }

    #[test]
    fn other_configured_servers_are_another_clusters() {
        let all = servers("https://10.0.0.1:6443/", &["10.0.0.2:6443"], None);
        all.configure(&["https://10.0.0.1:6443".parse().unwrap()]);
        assert_eq!(names(&all).len(), 2);
        all.configure(&["https://10.0.9.1:6443".parse().unwrap()]);
        assert_eq!(names(&all), ["https://10.0.9.1:6443/"]);
    }

    #[test]
    fn a_cluster_ip_is_known_as_one_and_an_address_that_may_be_one_is_told_so() {
        let advice = |told: Option<&str>, url: &str| {
            let all = servers(url, &[], told);
            all.advice(&all.all()[0]).map(|one| (one.certain, one.text))
        };
        let (certain, text) = advice(Some("10.96.0.1"), "https://10.96.0.1").unwrap();
        assert!(certain && text.contains("10.96.0.1 is the ClusterIP"), "{text}");
        assert!(text.contains("`k8sServiceHost`"), "{text}");
        let (certain, text) = advice(Some("fd00:96::1"), "https://[fd00:96::1]:443").unwrap();
        assert!(certain && text.contains("fd00:96::1 is the ClusterIP"), "{text}");
        for name in ["kubernetes.default", "kubernetes.default.svc.cluster.local"] {
            let (certain, text) = advice(None, &format!("https://{name}")).unwrap();
            assert!(certain && text.contains("name for the ClusterIP"), "{text}");
        }
        let (certain, text) = advice(None, "https://10.96.0.1").unwrap();
        assert!(!certain && text.starts_with("if 10.96.0.1 is"), "{text}");
        let served = servers("https://10.96.0.1", &[], Some("10.96.0.1"));
        served.serves(&served.all()[0]);
        assert_eq!(served.advice(&served.all()[0]), None);
        for other in
            ["https://10.0.0.1:6443", "https://api.example.org", "https://kubernetes.default-x.org"]
        {
            assert_eq!(advice(Some("10.96.0.1"), other), None, "{other}");
        }
    }

    #[test]
    fn what_a_kubelet_tells_counts_and_not_what_a_manifest_puts_in_its_place() {
        let told = |pairs: &[(&str, &str)]| {
            told(|name| {
                let found = pairs.iter().find(|(one, _)| *one == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let host = ("KUBERNETES_SERVICE_HOST", "10.0.0.10");
        assert_eq!(told(&[host]), ip("10.0.0.10"));
        assert_eq!(told(&[host, ("KUBERNETES_PORT", "tcp://10.96.0.1:443")]), ip("10.96.0.1"));
        assert_eq!(told(&[("KUBERNETES_PORT", "tcp://[fd00:96::1]:443")]), ip("fd00:96::1"));
        assert_eq!(told(&[host, ("KUBERNETES_PORT", "?")]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_broken_file_is_none() {
        let directory = env::temp_dir().join(format!("xlbservers-{}", std::process::id()));
        let known =
            servers("https://10.0.0.1:6443/", &["10.0.0.2:6443"], None).known.borrow().clone();
        save(&directory, &known).unwrap();
        assert_eq!(load(&directory), known);
        fs::write(directory.join(FILE), "{\"configured\": 7").unwrap();
        assert_eq!(load(&directory), Known::default());
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(load(&directory), Known::default());
    }
}
