//! The cluster's DNS server, which runs in a Pod: it follows the Services, as CoreDNS does.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::{ResourceExt as _, runtime::reflector::Store};

use super::stand_in::{self, StandInError, follow};
use crate::lab::{
    LabError,
    dns::{self, Names},
};

/// The Deployment of the server and its Service, with [`DNS_SERVICE`] as its ClusterIPs.
pub const DNS: &str = include_str!("../../../kubernetes/dns.yaml");
/// ClusterIPs of the DNS server's Service.
pub const DNS_SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa)),
];
/// What follows a Service's name and namespace.
pub const ZONE: &str = "svc.cluster.local";

/// Serves the ClusterIPs of Services under their names, on port 53 of all addresses, until it is killed.
///
/// # Errors
///
/// Where it cannot listen, or has no client of the API server.
pub fn serve_names(kubeconfig: &Path) -> Result<Infallible, StandInError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = stand_in::client(kubeconfig).await?;
        let (services, mut events) = follow::<Service>(client);
        let names: Names = Arc::new(move |name| addresses(&services, name));
        // One address of each family: the pod has no others.
        let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let everywhere = everywhere.map(|address| SocketAddr::new(address, dns::PORT));
        dns::serve(&everywhere, &names).map_err(LabError::system("serve DNS"))?;
        loop {
            if let Some(failed) = events.next().await {
                stand_in::say(failed).await;
            }
        }
    })
}

/// The ClusterIPs of the Service that a name stands for.
fn addresses(services: &Store<Service>, name: &str) -> Option<Vec<IpAddr>> {
    let (name, namespace) = name.strip_suffix(ZONE)?.strip_suffix('.')?.split_once('.')?;
    let services = services.state();
    let service = services
        .iter()
        .find(|one| one.name_any() == name && one.namespace().as_deref() == Some(namespace))?;
    let ips = service.spec.as_ref()?.cluster_ips.as_deref().unwrap_or_default();
    Some(ips.iter().filter_map(|ip| ip.parse().ok()).collect())
}
