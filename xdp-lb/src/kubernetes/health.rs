//! What load balancers and kubelets ask a node: kube-proxy's health servers, with its answers
//! (Kubernetes 1.36, `pkg/proxy/healthcheck`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use xdp_lb_api::rfc3339;
use xdp_lb_plan::kubernetes::{Key, ObjectKind};

use super::{
    Side,
    events::Notice,
    http::{Answer, Handler, bind, serve},
    status::Status,
};
use crate::config::KubernetesConfig;

/// What a server answers with.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) side: watch::Receiver<Arc<Side>>,
    pub(super) status: Arc<Status>,
    /// Name of the node, for Events
    pub(super) host: String,
    pub(super) notices: mpsc::Sender<Notice>,
    /// How long to wait until a port that is taken is tried again
    pub(super) again: Duration,
}

impl Health {
    /// Serves all that the configuration and the Services ask for, until it is aborted.
    pub(super) async fn run(self, config: &KubernetesConfig) {
        let mut servers = JoinSet::new();
        for &address in &config.healthz {
            let health = self.clone();
            let handler: Handler = {
                let health = self.clone();
                Arc::new(move |path| health.proxy(path))
            };
            servers.spawn(async move {
                health.keep(address, "healthz".to_owned(), handler, |_| {}).await;
            });
        }
        if config.health_check_node_ports {
            self.follow_services().await;
        }
        std::future::pending::<()>().await;
    }

    /// Keeps a server at the `healthCheckNodePort` of each Service that has one.
    async fn follow_services(&self) {
        let mut side = self.side.clone();
        let mut open: BTreeMap<(Key, u16), JoinSet<()>> = BTreeMap::new();
        loop {
            let now = side.borrow_and_update().clone();
            let ports = now.states.values().filter_map(|state| {
                Some((state.key.clone(), state.health_check.as_ref()?.port.get()))
            });
            let wanted: Vec<(Key, u16)> = ports.collect();
            open.retain(|one, _| {
                let stays = wanted.binary_search(one).is_ok();
                if !stays {
                    self.forget(one);
                }
                stays
            });
            for one in wanted {
                open.entry(one.clone()).or_insert_with(|| self.open(&one));
            }
            if side.changed().await.is_err() {
                return;
            }
        }
    }

    /// A server for each family, since each has its own count.
    fn open(&self, (key, port): &(Key, u16)) -> JoinSet<()> {
        let mut servers = JoinSet::new();
        let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for address in families {
            let (health, key) = (self.clone(), key.clone());
            let address = SocketAddr::new(address, *port);
            servers.spawn(async move {
                let handler: Handler = {
                    let (health, key) = (health.clone(), key.clone());
                    Arc::new(move |_| health.service(&key, address.is_ipv6()))
                };
                let about = about(&key);
                let taken = |why: &str| health.tell(&key, address.port(), why);
                health.keep(address, about, handler, taken).await;
            });
        }
        servers
    }

    fn forget(&self, (key, port): &(Key, u16)) {
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            self.status.forget(&named(&about(key), SocketAddr::new(address, *port)));
        }
    }

    /// Serves at an address as soon as, and as long as, that can be done.
    async fn keep(
        &self,
        address: SocketAddr,
        about: String,
        handler: Handler,
        mut taken: impl FnMut(&str),
    ) {
        let about = named(&about, address);
        loop {
            match bind(address) {
                Ok(listener) => {
                    self.status.trouble(&about, None);
                    serve(listener, handler.clone()).await;
                }
                // A host without IPv6 has nobody who could ask by it.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return,
                Err(error) => {
                    let why = error.to_string();
                    if self.status.trouble(&about, Some(why.clone())) {
                        taken(&why);
                    }
                }
            }
            sleep(self.again).await;
        }
    }

    /// An Event as kube-proxy writes it.
    fn tell(&self, key: &Key, port: u16, why: &str) {
        let side = self.side.borrow();
        let Some(state) = side.states.get(key) else { return };
        let note = format!(
            "node {} failed to start healthcheck \"{key}\" on port {port}: {why}",
            self.host
        );
        let notice = Notice {
            kind: ObjectKind::Service,
            key: key.clone(),
            uid: state.uid.to_string(),
            reason: "FailedToStartServiceHealthcheck".to_owned(),
            action: "Listen",
            note,
            here: true,
        };
        let _ = self.notices.try_send(notice);
    }

    /// How many ready endpoints of a Service this node has.
    fn service(&self, key: &Key, v6: bool) -> Option<Answer> {
        let side = self.side.borrow().clone();
        let check = side.states.get(key).and_then(|state| state.health_check);
        let count = check.map_or(0, |one| if v6 { one.local_ipv6 } else { one.local_ipv4 });
        let healthy = self.status.healthy();
        let good = count != 0 && healthy;
        let (namespace, name) = (json!(&*key.namespace), json!(&*key.name));
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
             \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        );
        Some(Answer {
            status: if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            headers: vec![("X-Load-Balancing-Endpoint-Weight", count.to_string())],
            body,
        })
    }

    /// `/healthz` says whether load balancers may send traffic here, `/livez` whether this works.
    fn proxy(&self, path: &str) -> Option<Answer> {
        let eligible = match path {
            "/healthz" => Some(self.side.borrow().eligible()),
            "/livez" => None,
            _ => return None,
        };
        let healthy = self.status.healthy();
        let good = healthy && eligible != Some(false);
        let last = self.status.latency.last();
        let now = SystemTime::now();
        let updated = if good { Some(now) } else { last };
        // Go's zero time, where there was none.
        let text =
            |time: Option<SystemTime>| time.map_or("0001-01-01T00:00:00Z".to_owned(), rfc3339);
        let mut body = Map::new();
        body.insert("lastUpdated".to_owned(), json!(text(updated)));
        body.insert("currentTime".to_owned(), json!(text(Some(now))));
        if let Some(eligible) = eligible {
            body.insert("nodeEligible".to_owned(), json!(eligible));
        }
        body.insert("healthy".to_owned(), json!(healthy));
        if last.is_some() {
            let family = json!({"lastUpdated": text(last), "healthy": healthy});
            body.insert("status".to_owned(), json!({"IPv4": family, "IPv6": family}));
        }
        Some(Answer {
            status: if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            headers: Vec::new(),
            body: Value::Object(body).to_string(),
        })
    }
}

fn about(key: &Key) -> String {
    format!("healthCheckNodePort of Service {key}")
}

fn named(about: &str, address: SocketAddr) -> String {
    format!("{about} at {address}")
}
