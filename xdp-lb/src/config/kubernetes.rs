//! The section `kubernetes`: which cluster is followed, and as what.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use axum::http::Uri;
use xdp_lb_plan::kubernetes::{Classes, PodMode};

use super::{
    api::{path, wanted},
    mistake::quote,
    read::{At, Fields},
};

/// Port of kube-proxy's health server.
const HEALTHZ: u16 = 10256;
/// How a server may be written.
const SERVER: &str = "an API server, like `10.0.0.10:6443` or `https://api.example.org:6443`";

/// Which cluster is followed, and as what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesConfig {
    /// Who this is to the API servers
    pub credentials: Credentials,
    /// URLs of the API servers, the preferred one first; those that the credentials come with where
    /// there is none
    pub servers: Vec<String>,
    /// Name in the servers' certificates, where it is not the one in their URLs
    pub tls_server_name: Option<String>,
    /// What this host is in the cluster
    pub node: NodeIdentity,
    /// Which services' LoadBalancer addresses are served
    pub classes: Classes,
    /// How packets get to the pods of services without an annotation
    pub default_mode: PodMode,
    /// Where `/healthz` and `/livez` are served; nowhere where it is empty
    pub healthz: Vec<SocketAddr>,
    /// Whether the `healthCheckNodePort`s of services are served
    pub health_check_node_ports: bool,
    /// Whether Events are written to the cluster
    pub events: bool,
}

/// Who this is to the API servers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// What a kubeconfig file says
    Kubeconfig {
        /// The file
        path: PathBuf,
        /// Its context; the current one where there is none
        context: Option<String>,
    },
    /// The service account of the pod that this runs in
    ServiceAccount,
    /// Files; each is read again when it changes
    Files {
        /// Bearer token
        token: Option<PathBuf>,
        /// Certificates of those who vouch for the servers, PEM; the system's where there is none
        authority: Option<PathBuf>,
        /// Client certificate and its key, PEM
        certificate: Option<(PathBuf, PathBuf)>,
    },
}

/// What this host is in the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeIdentity {
    /// A node: this one, or the one that `NODE_NAME` or the host name says
    Node(Option<String>),
    /// No node: a balancer beside the cluster
    None,
}

/// The section `kubernetes`.
pub(super) fn kubernetes(at: &At<'_>) -> Option<KubernetesConfig> {
    let fields = at.fields(&[
        "kubeconfig",
        "context",
        "inCluster",
        "apiServers",
        "k8sServiceHost",
        "k8sServicePort",
        "tokenFile",
        "caFile",
        "clientCertificate",
        "clientKey",
        "tlsServerName",
        "nodeName",
        "onNode",
        "loadBalancerClass",
        "defaultMode",
        "healthz",
        "healthCheckNodePorts",
        "events",
    ])?;
    let servers = servers(&fields);
    // Where the servers are wrong, nobody knows whether they are enough.
    let credentials = servers.as_ref().and_then(|servers| credentials(at, &fields, servers));
    let name =
        |at: At<'_>| nonempty(&at, "a host name, like `kubernetes.default.svc`").map(str::to_owned);
    let tls_server_name = wanted(fields.optional("tlsServerName").map(name));
    let classes =
        fields.optional("loadBalancerClass").map_or(Some(Classes::All), |at| classes(&at));
    let node = node(&fields);
    let default_mode = fields.optional("defaultMode").map_or(Some(PodMode::default()), |at| {
        at.choice(&[
            ("geneve", PodMode::Geneve),
            ("snat", PodMode::Snat),
            ("hybrid", PodMode::Hybrid),
        ])
    });
    let healthz = fields.optional("healthz").map_or_else(|| Some(everywhere()), |at| healthz(&at));
    let truth = |key| fields.optional(key).map_or(Some(true), |at: At<'_>| at.truth());
    let health_check_node_ports = truth("healthCheckNodePorts");
    let events = truth("events");
    Some(KubernetesConfig {
        credentials: credentials?,
        servers: servers?,
        tls_server_name: tls_server_name?,
        node: node?,
        classes: classes?,
        default_mode: default_mode?,
        healthz: healthz?,
        health_check_node_ports: health_check_node_ports?,
        events: events?,
    })
}

/// All addresses of the host, of both families.
fn everywhere() -> Vec<SocketAddr> {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    all.map(|address| SocketAddr::new(address, HEALTHZ)).into()
}

fn nonempty<'a>(at: &At<'a>, wanted: &str) -> Option<&'a str> {
    let text = at.text(wanted)?;
    if text.trim().is_empty() {
        at.expected(wanted);
        return None;
    }
    Some(text)
}

/// The servers that the file names.
fn servers(fields: &Fields<'_>) -> Option<Vec<String>> {
    let (host, port) = (fields.optional("k8sServiceHost"), fields.optional("k8sServicePort"));
    if let Some(at) = fields.optional("apiServers") {
        if let Some(other) = host.or(port) {
            other.mistake("`apiServers` names the servers already: remove one of the two");
            return None;
        }
        let items = at.items("a list of API servers, like `[10.0.0.10:6443]`")?;
        if items.len() == 0 {
            at.mistake("there is no server: add one, or remove the key");
            return None;
        }
        let mut seen = HashSet::new();
        let all: Vec<Option<String>> = items
            .map(|at| {
                let server = server(&at, nonempty(&at, SERVER)?)?;
                if !seen.insert(server.clone()) {
                    at.mistake(format_args!("{server} is in the list already: remove one"));
                    return None;
                }
                Some(server)
            })
            .collect();
        return all.into_iter().collect();
    }
    match (host, port) {
        (None, None) => Some(Vec::new()),
        (Some(host), Some(port)) => {
            let number = port.number(1..=0xffff)?;
            let text = nonempty(&host, "a host name or an address, like `10.0.0.10`")?;
            let name = match text.parse::<Ipv6Addr>() {
                Ok(v6) => format!("[{v6}]"),
                Err(_) => text.to_owned(),
            };
            Some(vec![server(&host, &format!("https://{name}:{number}"))?])
        }
        (Some(host), None) => {
            host.mistake("the port is missing: add `k8sServicePort: 6443`");
            None
        }
        (None, Some(port)) => {
            port.mistake("the host is missing: add `k8sServiceHost: 10.0.0.10`");
            None
        }
    }
}

/// The URL of a server: `HOST:PORT` is by TLS. Without TLS the token could be read on the way.
fn server(at: &At<'_>, text: &str) -> Option<String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let plain = !text.contains("://");
    let parsed = url.trim_end_matches('/').parse::<Uri>().ok();
    let parsed = parsed.filter(|uri| uri.host().is_some() && matches!(uri.path(), "" | "/"));
    let Some(uri) = parsed.filter(|uri| !plain || uri.port_u16().is_some()) else {
        at.mistake(format_args!("\"{}\" is none: write {SERVER}", quote(text)));
        return None;
    };
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let loopback = address.map_or(host == "localhost", |address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if loopback => {}
        Some("http") => {
            at.mistake("`http` is for this host alone (`kubectl proxy`): write `https://…`");
            return None;
        }
        Some(_) | None => {
            at.mistake(format_args!("\"{}\" is none: write {SERVER}", quote(text)));
            return None;
        }
    }
    Some(url.trim_end_matches('/').to_owned())
}

/// Who this is; the file must say it, unless it names servers: then it is the pod, or nobody, where the
/// server is one of this host that asks for nothing.
fn credentials(at: &At<'_>, fields: &Fields<'_>, servers: &[String]) -> Option<Credentials> {
    let named = !servers.is_empty();
    let file = |key| wanted(fields.optional(key).map(|at| path(&at)));
    let (kubeconfig, token, authority) = (file("kubeconfig"), file("tokenFile"), file("caFile"));
    let (certificate, key) = (file("clientCertificate"), file("clientKey"));
    let context = fields.optional("context").map(|at| nonempty(&at, "the name of a context"));
    let context = wanted(context);
    let in_cluster = fields.optional("inCluster").map_or(Some(false), |at| at.truth());
    let (kubeconfig, token, authority) = (kubeconfig?, token?, authority?);
    let (certificate, key, context, in_cluster) = (certificate?, key?, context?, in_cluster?);
    let by_files = token.is_some() || authority.is_some() || certificate.is_some() || key.is_some();
    let ways = [kubeconfig.is_some(), by_files, in_cluster];
    if ways.iter().filter(|way| **way).count() > 1 {
        at.mistake(
            "there is more than one way to log in: keep one of `kubeconfig`, `inCluster: true`, and \
             files (`tokenFile`, `caFile`, `clientCertificate`, `clientKey`)",
        );
        return None;
    }
    if context.is_some() && kubeconfig.is_none() {
        at.mistake("`context` is one of a kubeconfig file: add `kubeconfig: FILE`");
        return None;
    }
    if by_files {
        if !named {
            at.mistake("files do not say where the servers are: add `apiServers: [HOST:PORT]`");
            return None;
        }
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                at.mistake("`clientCertificate` and `clientKey` belong together: add the other");
                return None;
            }
        };
        return Some(Credentials::Files { token, authority, certificate });
    }
    if let Some(path) = kubeconfig {
        return Some(Credentials::Kubeconfig { path, context: context.map(str::to_owned) });
    }
    if !in_cluster && !named {
        at.mistake(
            "it does not say where the cluster is: add `kubeconfig: FILE`, `inCluster: true` in a \
             pod, or `apiServers: [HOST:PORT]`",
        );
        return None;
    }
    if named && !in_cluster && servers.iter().all(|server| server.starts_with("http://")) {
        return Some(Credentials::Files { token: None, authority: None, certificate: None });
    }
    Some(Credentials::ServiceAccount)
}

/// A class, or a list of them; `""` stands for services without one.
fn classes(at: &At<'_>) -> Option<Classes> {
    let one = |at: &At<'_>| -> Option<Option<Box<str>>> {
        let text =
            at.text("a class, like `example.org/xdp-lb`, or `\"\"` for services without one")?;
        Some(Some(text).filter(|text| !text.is_empty()).map(Into::into))
    };
    if !at.is_list() {
        return Some(Classes::Only([one(at)?].into()));
    }
    let items = at.items("a list of classes")?;
    if items.len() == 0 {
        at.mistake("there is no class: add one, or remove the key to serve all");
        return None;
    }
    let all: Vec<_> = items.map(|at| one(&at)).collect();
    all.into_iter().collect::<Option<_>>().map(Classes::Only)
}

fn node(fields: &Fields<'_>) -> Option<NodeIdentity> {
    let on_node = fields.optional("onNode").map_or(Some(true), |at| at.truth())?;
    let Some(at) = fields.optional("nodeName") else {
        return Some(if on_node { NodeIdentity::Node(None) } else { NodeIdentity::None });
    };
    let name = nonempty(&at, "the name of a node, as `kubectl get nodes` shows it")?;
    if !on_node {
        at.mistake("with `onNode: false` this host is no node: remove one of the two");
        return None;
    }
    Some(NodeIdentity::Node(Some(name.to_owned())))
}

fn healthz(at: &At<'_>) -> Option<Vec<SocketAddr>> {
    let example = "an address and a port, like `0.0.0.0:10256` or `\"[::]:10256\"`";
    let items = at.items("a list of addresses with ports, `[]` for none")?;
    let mut seen = HashSet::new();
    let all: Vec<Option<SocketAddr>> = items
        .map(|at| {
            let Ok(listen) = at.text(example)?.parse::<SocketAddr>() else {
                at.expected(example);
                return None;
            };
            if listen.port() == 0 || !seen.insert(listen) {
                at.expected(format_args!("{example}, each once"));
                return None;
            }
            Some(listen)
        })
        .collect();
    all.into_iter().collect()
}
