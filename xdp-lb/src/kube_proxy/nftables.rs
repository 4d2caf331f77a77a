//! kube-proxy's table of nftables, as `nft -j list table` prints it (libnftables-json(5)).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use super::{
    Family,
    served::{Answer, At, Chains, NodeAddresses, Served, Step, protocol},
};

/// Name of the table; all that is in it is kube-proxy's.
pub(super) const TABLE: &str = "kube-proxy";

/// The table as a list of objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Vec<Value>);

impl Table {
    /// Reads what `nft -j list table ip kube-proxy` prints.
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let mut value: Value = serde_json::from_str(text)?;
        Ok(match value["nftables"].take() {
            Value::Array(objects) => Self(objects),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_) => Self::default(),
        })
    }

    /// How many chains, rules, and sets and maps.
    pub(super) fn counts(&self) -> [usize; 3] {
        let count = |kind: &str| self.objects(kind).count();
        [count("chain"), count("rule"), count("set") + count("map")]
    }

    fn objects<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter_map(move |one| one.get(kind))
    }

    /// Elements of a set, or pairs of a map.
    fn elements<'a>(&'a self, kind: &'a str, name: &'a str) -> impl Iterator<Item = &'a Value> {
        let named = self.objects(kind).filter(move |one| one["name"] == name);
        named.flat_map(|one| one["elem"].as_array().into_iter().flatten())
    }

    /// What it serves.
    pub(super) fn served(&self, family: Family) -> Vec<Served> {
        let chains = self.chains();
        let cluster_ips: BTreeSet<IpAddr> =
            self.elements("set", "cluster-ips").filter_map(address).collect();
        let on_node = self.elements("set", "nodeport-ips").filter_map(address).collect();
        let on_node =
            At::NodePort(match self.objects("set").any(|one| one["name"] == "nodeport-ips") {
                true => NodeAddresses::These(on_node),
                false => NodeAddresses::All { family, loopback: false },
            });
        let mut all = Vec::new();
        for map in ["service-ips", "no-endpoint-services"] {
            for pair in self.elements("map", map) {
                let [to, proto, port] = key(pair);
                let (Some(ip), Some(port)) = (address(to), port_of(port)) else { continue };
                let kind = if cluster_ips.contains(&ip) { "ClusterIP" } else { "LoadBalancer" };
                all.extend(served(&chains, pair, (At::Address(ip), port, proto, kind)));
            }
        }
        for map in ["service-nodeports", "no-endpoint-nodeports"] {
            for pair in self.elements("map", map) {
                let [proto, port, _] = key(pair);
                let Some(port) = port_of(port) else { continue };
                all.extend(served(&chains, pair, (on_node.clone(), port, proto, "NodePort")));
            }
        }
        all
    }

    fn chains(&self) -> Chains {
        let mut chains = Chains::default();
        for rule in self.objects("rule") {
            let Some(chain) = rule["chain"].as_str() else { continue };
            let expressions: Vec<&Value> = rule["expr"].as_array().into_iter().flatten().collect();
            let some = expressions.iter().any(|one| is_for_some(one));
            let steps = chains.0.entry(chain.to_owned()).or_default();
            for one in expressions {
                steps.extend(endpoints(one).map(Step::Endpoint));
                let targets = targets(one).map(str::to_owned);
                let step = if some { Step::ChainForSome } else { Step::Chain };
                steps.extend(targets.map(step));
            }
        }
        chains
    }
}

fn served(
    chains: &Chains,
    pair: &Value,
    (at, port, proto, kind): (At, u16, &Value, &'static str),
) -> Option<Served> {
    let verdict = pair.get(1)?;
    let protocol = protocol(proto.as_str()?);
    let comment = pair[0]["elem"]["comment"].as_str().unwrap_or_default();
    let (service, (answer, inside)) = match verdict["goto"]["target"].as_str() {
        Some("reject-chain") => (comment.to_owned(), (Answer::Refused, None)),
        Some(chain) => (service_of(chain), chains.answer(chain)),
        None => (comment.to_owned(), (Answer::Dropped, None)),
    };
    Some(Served { at, port, protocol, kind, service, answer, inside })
}

/// `default/web:http` of `external-SUSTUHLJ-default/web/tcp/http`.
fn service_of(chain: &str) -> String {
    let name = chain.splitn(3, '-').nth(2).unwrap_or(chain);
    let parts: Vec<&str> = name.splitn(4, '/').collect();
    match parts.as_slice() {
        [namespace, name, _, ""] | [namespace, name] => format!("{namespace}/{name}"),
        [namespace, name, _, port] => format!("{namespace}/{name}:{port}"),
        _ => name.to_owned(),
    }
}

/// The parts of a pair's key: three, of which the last may be null.
fn key(pair: &Value) -> [&Value; 3] {
    let key = value(&pair[0]);
    [&key["concat"][0], &key["concat"][1], &key["concat"][2]]
}

/// An element without its comment, time-out or counter.
fn value(element: &Value) -> &Value {
    element.get("elem").map_or(element, |one| &one["val"])
}

fn address(element: &Value) -> Option<IpAddr> {
    value(element).as_str()?.parse().ok()
}

fn port_of(value: &Value) -> Option<u16> {
    value.as_u64()?.try_into().ok()
}

/// Whether a condition says from whom: an address, or that it is local.
fn is_for_some(expression: &Value) -> bool {
    let left = &expression["match"]["left"];
    left["payload"]["field"] == "saddr" || !left["fib"].is_null()
}

/// Where an expression translates to.
fn endpoints(expression: &Value) -> impl Iterator<Item = SocketAddr> {
    let dnat = &expression["dnat"];
    let direct = dnat["addr"]
        .as_str()
        .and_then(|ip| Some(SocketAddr::new(ip.parse().ok()?, port_of(&dnat["port"])?)));
    let mapped = dnat["addr"]["map"]["data"]["set"].as_array().into_iter().flatten();
    let mapped = mapped.filter_map(|pair| {
        let to = &value(&pair[1])["concat"];
        Some(SocketAddr::new(to[0].as_str()?.parse().ok()?, port_of(&to[1])?))
    });
    direct.into_iter().chain(mapped)
}

/// The chains that an expression goes to.
fn targets(expression: &Value) -> impl Iterator<Item = &str> {
    let set = expression["vmap"]["data"]["set"].as_array().into_iter().flatten();
    let all = std::iter::once(expression).chain(set.map(|pair| &pair[1]));
    all.filter_map(|one| one.get("goto").or_else(|| one.get("jump"))?["target"].as_str())
}
