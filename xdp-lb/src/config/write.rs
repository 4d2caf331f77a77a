//! The configuration as JSON, with the file's keys.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use xdp_lb_abi::Family;
use xdp_lb_plan::{
    health::{AllDown, HealthCheck, Http, Probe, Udp},
    kubernetes::Classes,
    model::{Backend, Frontend, NoBackends, NodePort, Service},
};

use super::{
    Attach, Config, Credentials, KubernetesConfig, NodeIdentity, NodePortAddresses, Replacement,
    ReplacementMode, SocketConfig, UnknownPorts,
};

/// A service as its file may have it: reading this gives the same service.
pub fn service_to_json(service: &Service) -> Value {
    let Service {
        name,
        frontends,
        node_ports,
        node_port_family,
        mode,
        table_size,
        affinity,
        sources,
        no_backends,
        health_check,
        backends,
        // The cluster's services alone have them; what is written for those is never read again.
        scope: _,
        sockets_apart: _,
    } = service;
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    put("name", json!(name));
    put("mode", json!(mode.as_str()));
    if let Some(size) = table_size {
        put("tableSize", json!(size));
    }
    if let Some(time) = affinity {
        put("sessionAffinity", json!(format!("{}s", time.as_secs())));
    }
    if !sources.is_empty() {
        put("sourceRanges", sources.iter().map(ToString::to_string).collect());
    }
    let refused = match no_backends {
        NoBackends::Reject => "reject",
        NoBackends::Drop => "drop",
    };
    put("noBackends", json!(refused));
    if let Some(check) = health_check {
        put("healthCheck", health(check));
    }
    let ports = node_ports.iter().map(|one| port(one, *node_port_family));
    put("frontends", frontends.iter().map(frontend).chain(ports).collect());
    put("backends", backends.iter().map(backend).collect());
    Value::Object(keys)
}

fn health(check: &HealthCheck) -> Value {
    let HealthCheck { probe, interval, timeout, rise, fall, port, all_down } = check;
    let all_down = match all_down {
        AllDown::Keep => "keep",
        AllDown::Reject => "reject",
    };
    let mut value = json!({
        "interval": format!("{}s", interval.as_secs()),
        "timeout": format!("{}s", timeout.as_secs()),
        "rise": rise,
        "fall": fall,
        "allDown": all_down,
    });
    if let Some(port) = port {
        value["port"] = json!(port);
    }
    match probe {
        Probe::Tcp => value["type"] = json!("tcp"),
        Probe::Http(Http { tls, path, host, status, weight }) => {
            value["type"] = json!(if *tls { "https" } else { "http" });
            value["path"] = json!(path);
            if let Some(host) = host {
                value["host"] = json!(host);
            }
            value["status"] = json!(format!("{}-{}", status.start(), status.end()));
            value["weightHeader"] = json!(weight);
        }
        Probe::Udp(Udp { send, expect }) => {
            value["type"] = json!("udp");
            value["send"] = payload(send);
            if !expect.is_empty() {
                value["expect"] = payload(expect);
            }
        }
    }
    value
}

/// Text where it is plain, otherwise hexadecimal.
fn payload(bytes: &[u8]) -> Value {
    let plain = bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
    match std::str::from_utf8(bytes) {
        Ok(text) if plain && !text.starts_with("0x") => json!(text),
        _ => json!(bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))),
    }
}

fn frontend(frontend: &Frontend) -> Value {
    let Frontend { address, port, protocol } = frontend;
    json!({"address": address, "port": port, "protocol": protocol.to_string()})
}

/// The family is one that only the cluster's services have.
fn port(port: &NodePort, family: Option<Family>) -> Value {
    let NodePort { port, protocol } = port;
    let mut value = json!({"nodePort": port, "protocol": protocol.to_string()});
    if let Some(family) = family {
        value["family"] = json!(match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        });
    }
    value
}

fn backend(backend: &Backend) -> Value {
    let Backend { address, port, weight, node, down: _ } = backend;
    let mut keys = Map::new();
    keys.insert("address".to_owned(), json!(address));
    if let Some(port) = port {
        keys.insert("port".to_owned(), json!(port));
    }
    keys.insert("weight".to_owned(), json!(weight));
    if let Some(node) = node {
        keys.insert("node".to_owned(), json!(node));
    }
    Value::Object(keys)
}

impl Attach {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::NativeOrGeneric => "native-or-generic",
        }
    }
}

/// Everything but services and secrets.
pub fn settings_to_json(config: &Config) -> Value {
    let device = |one: &super::Device| json!({"name": one.name, "xdp": one.xdp.name()});
    let devices: Vec<Value> = config.devices.iter().map(device).collect();
    let texts = |nets: &[IpNet]| -> Value { nets.iter().map(ToString::to_string).collect() };
    let terminate = config
        .terminate
        .as_ref()
        .map(|one| json!({"peers": texts(&one.peers), "pods": texts(&one.pods)}));
    let snat = &config.snat;
    let addresses = match &config.node_port_addresses {
        NodePortAddresses::Primary => json!("primary"),
        NodePortAddresses::In(nets) => texts(nets),
    };
    let unknown = match config.unknown_ports {
        UnknownPorts::Reject => "reject",
        UnknownPorts::Pass => "pass",
    };
    let prefix = |net: Option<String>| net.map_or(Value::Null, Value::String);
    let limits = config.limits;
    json!({
        "devices": devices,
        "defaultMode": config.default_mode.as_str(),
        "tunnel": {
            "sourceIPv4": prefix(config.tunnel.source_v4.map(|net| net.to_string())),
            "sourceIPv6": prefix(config.tunnel.source_v6.map(|net| net.to_string())),
        },
        "terminate": terminate,
        "snat": {
            "sourceIPv4": snat.source_v4,
            "sourceIPv6": snat.source_v6,
            "ports": range(&snat.ports),
        },
        "nodePortAddresses": addresses,
        "unknownPorts": unknown,
        "limits": {
            "frontends": limits.frontends,
            "backends": limits.backends,
            "slots": limits.slots,
            "flows": limits.flows,
            "clients": limits.clients,
            "answers": limits.answers,
            "natFlows": limits.nat_flows,
            "sockets": limits.sockets,
        },
        "icmpErrorsPerSecond": config.icmp_errors_per_second,
        "handover": format!("{}s", config.handover.as_secs()),
        "tcpIdle": format!("{}s", config.idle.tcp.as_secs()),
        "udpIdle": format!("{}s", config.idle.udp.as_secs()),
        "kubernetes": config.kubernetes.as_ref().map(kubernetes),
        "kubeProxyReplacement": config.replacement.mode.map(ReplacementMode::as_str),
        "socketLB": socket_lb(&config.replacement),
        "nodePort": {
            "enabled": config.replacement.serves.node_ports,
            "bindProtection": config.replacement.bind_protection,
            "range": range(&config.replacement.node_ports),
        },
        "externalIPs": {"enabled": config.replacement.serves.external_ips},
        "loadBalancer": {"enabled": config.replacement.serves.load_balancers},
        "metrics": {
            "perBackend": config.metrics.per_backend,
            "maxSeries": config.metrics.max_series,
        },
    })
}

fn range(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

fn socket_lb(config: &Replacement) -> Value {
    let SocketConfig { cgroup, host_only, loopback, refuse_excluded, end_orphans } =
        &config.sockets;
    json!({
        "enabled": config.serves.sockets,
        "cgroupRoot": cgroup,
        "hostNamespaceOnly": host_only,
        "loopbackNodePorts": loopback,
        "noAllowedBackend": if *refuse_excluded { "refuse" } else { "timeout" },
        "terminatePodConnections": end_orphans,
    })
}

/// The cluster that is followed; files by their names alone.
fn kubernetes(config: &KubernetesConfig) -> Value {
    let KubernetesConfig {
        credentials,
        servers,
        tls_server_name,
        node,
        classes,
        default_mode,
        healthz,
        health_check_node_ports,
        events,
    } = config;
    let mut value = match credentials {
        Credentials::Kubeconfig { path, context } => {
            json!({"kubeconfig": path, "context": context})
        }
        Credentials::ServiceAccount => json!({"inCluster": true}),
        Credentials::Files { token, authority, certificate } => json!({
            "tokenFile": token,
            "caFile": authority,
            "clientCertificate": certificate.as_ref().map(|(certificate, _)| certificate),
            "clientKey": certificate.as_ref().map(|(_, key)| key),
        }),
    };
    let (on_node, name) = match node {
        NodeIdentity::Node(name) => (true, name.as_ref()),
        NodeIdentity::None => (false, None),
    };
    value["apiServers"] = json!(servers);
    value["tlsServerName"] = json!(tls_server_name);
    value["onNode"] = json!(on_node);
    value["nodeName"] = json!(name);
    value["loadBalancerClass"] = match classes {
        Classes::All => Value::Null,
        Classes::Only(classes) => {
            classes.iter().map(|one| one.as_deref().unwrap_or_default()).collect()
        }
    };
    value["defaultMode"] = json!(default_mode.to_string());
    value["healthz"] = healthz.iter().map(ToString::to_string).collect();
    value["healthCheckNodePorts"] = json!(health_check_node_ports);
    value["events"] = json!(events);
    value
}
