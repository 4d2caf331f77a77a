//! Objects in few words.
//!
//! `service` is Service `shop/web`, `services` are others by name; their keys are those of `spec`,
//! besides `labels`, `annotations`, `created` and `metadata`, and `lb` for the status' addresses. A
//! port may be `NAME=PORT:NODEPORT/PROTOCOL`, of which only PORT must be there.
//!
//! `slices` are lists of endpoints, or objects with `ports` and `endpoints`; an endpoint may be
//! `ADDRESS NODE WORD…`, the words as in [`endpoint`]. Nodes `a` (zone `z1`), `b` and `c` (`z2`) are
//! always there, unless `nodes` says something else; this balancer is on `a`, unless `rules` does.
#![expect(clippy::wildcard_enum_match_arm, reason = "JSON of another kind stays what it is")]

use serde_json::{Map, Value, from_value, json};
use xdp_lb_plan::kubernetes::{Classes, Index, Rules, Serves};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

/// The objects of a case.
#[derive(Debug)]
pub(crate) struct Objects {
    rules: Rules,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
    nodes: Vec<Node>,
}

impl Objects {
    pub(crate) fn read(given: &Value) -> Result<Self, String> {
        let mut objects =
            Self { rules: rules(&given["rules"]), services: vec![], slices: vec![], nodes: vec![] };
        for key in given.as_object().into_iter().flat_map(Map::keys) {
            if !["rules", "service", "services", "slices", "nodes"].contains(&key.as_str()) {
                return Err(format!("unknown key {key}"));
            }
        }
        let mut nodes = json!({
            "a": {"addresses": ["10.0.0.1", "2001:db8::a"], "zone": "z1"},
            "b": {"addresses": ["10.0.0.2", "2001:db8::b"], "zone": "z2"},
            "c": {"addresses": ["10.0.0.3", "2001:db8::c"], "zone": "z2"},
        });
        if given["nodes"] != Value::Null {
            merge(&mut nodes, &given["nodes"]);
        }
        for (name, given) in nodes.as_object().unwrap().iter().filter(|(_, node)| !node.is_null()) {
            objects.nodes.push(parse(node(name, given))?);
        }
        if given["service"] != Value::Null {
            objects.services.push(parse(service("shop/web", 1, &given["service"]))?);
        }
        let others = given["services"].as_object().into_iter().flatten();
        for (index, (name, given)) in others.enumerate() {
            objects.services.push(parse(service(name, index + 2, given))?);
        }
        for (index, given) in given["slices"].as_array().into_iter().flatten().enumerate() {
            objects.slices.push(parse(slice(index, given))?);
        }
        Ok(objects)
    }

    pub(crate) fn index(&self) -> Index {
        let mut index = Index::new(self.rules.clone());
        index.replace_nodes(&self.nodes);
        index.replace_services(&self.services);
        assert_eq!(index.changes(), [], "nothing is desired before all lists are in");
        index.replace_slices(&self.slices);
        assert_eq!(index.changes().len(), index.states().count());
        index
    }

    /// The same, one by one, the last object first.
    pub(crate) fn index_backwards(&self) -> Index {
        let mut index = Index::new(self.rules.clone());
        index.replace_nodes([]);
        index.replace_services([]);
        index.replace_slices([]);
        for slice in self.slices.iter().rev() {
            index.apply_slice(slice);
            index.changes();
        }
        for service in self.services.iter().rev() {
            index.apply_service(service);
            index.changes();
        }
        for node in self.nodes.iter().rev() {
            index.apply_node(node);
            index.changes();
        }
        index
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    from_value(value.clone()).map_err(|error| format!("{error}: {value}"))
}

fn rules(given: &Value) -> Rules {
    let mut rules = Rules { node: Some("a".into()), ..Rules::default() };
    for (key, value) in given.as_object().into_iter().flatten() {
        match key.as_str() {
            "node" => rules.node = value.as_str().map(Box::from),
            "mode" => rules.mode = value.as_str().unwrap().parse().unwrap(),
            "classes" => {
                let classes = value.as_array().unwrap().iter();
                rules.classes =
                    Classes::Only(classes.map(|one| one.as_str().map(Box::from)).collect());
            }
            "serves" => {
                let has = |name: &str| value.as_array().unwrap().iter().any(|one| one == name);
                rules.serves = Serves {
                    sockets: has("sockets"),
                    node_ports: has("nodePorts"),
                    external_ips: has("externalIPs"),
                    load_balancers: has("loadBalancers"),
                };
            }
            "snatPorts" => {
                let ports = value.as_array().unwrap();
                let port = |index: usize| u16::try_from(ports[index].as_u64().unwrap()).unwrap();
                rules.snat_ports = Some(port(0)..=port(1));
            }
            other => panic!("unknown rule {other}"),
        }
    }
    rules
}

fn node(name: &str, given: &Value) -> Value {
    let addresses = given["addresses"].as_array().cloned().unwrap_or_default().into_iter();
    let addresses: Vec<Value> = addresses
        .map(|one| match one {
            Value::String(address) => json!({"type": "InternalIP", "address": address}),
            other => other,
        })
        .collect();
    let labels = match &given["zone"] {
        Value::Null => json!({}),
        zone => json!({"topology.kubernetes.io/zone": zone}),
    };
    json!({
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": addresses},
    })
}

fn service(name: &str, number: usize, given: &Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    let cluster_ip = format!("10.96.0.{number}");
    let mut object = json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{number}")},
        "spec": {
            "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80}],
        },
    });
    for (key, value) in given.as_object().into_iter().flatten() {
        match key.as_str() {
            "metadata" => merge(&mut object["metadata"], value),
            "labels" | "annotations" => object["metadata"][key] = value.clone(),
            "created" => object["metadata"]["creationTimestamp"] = value.clone(),
            "dual" => {
                let v6 = format!("2001:db8:96::{number}");
                object["spec"]["clusterIPs"] = json!([cluster_ip, v6]);
                object["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
            }
            "lb" => {
                let ingress = value.as_array().unwrap().iter().map(|one| match one {
                    Value::String(ip) => json!({"ip": ip}),
                    other => other.clone(),
                });
                let ingress: Vec<Value> = ingress.collect();
                object["status"] = json!({"loadBalancer": {"ingress": ingress}});
            }
            "ports" => {
                let ports: Vec<Value> = value.as_array().unwrap().iter().map(port).collect();
                object["spec"]["ports"] = json!(ports);
            }
            _ => object["spec"][key] = value.clone(),
        }
    }
    object
}

/// `NAME=PORT:NODEPORT/PROTOCOL`
fn port(given: &Value) -> Value {
    let text = match given {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => return other.clone(),
    };
    let (text, protocol) = text.rsplit_once('/').unwrap_or((&text, "TCP"));
    let (name, numbers) = text.split_once('=').unwrap_or(("", text));
    let (number, node_port) = numbers.split_once(':').unwrap_or((numbers, "0"));
    let [number, node_port] = [number, node_port].map(|text| text.parse::<i32>().unwrap());
    json!({"name": name, "port": number, "nodePort": node_port, "protocol": protocol})
}

fn slice(index: usize, given: &Value) -> Value {
    let (endpoints, rest) = match given {
        Value::Array(list) => (list.clone(), json!({})),
        other => (other["endpoints"].as_array().cloned().unwrap_or_default(), other.clone()),
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let is_v6 = endpoints
        .first()
        .is_some_and(|one| one["addresses"][0].as_str().is_some_and(|a| a.contains(':')));
    let mut object = json!({
        "metadata": {
            "namespace": "shop", "name": format!("web-{}", index + 1),
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    for (key, value) in rest.as_object().unwrap() {
        match key.as_str() {
            "endpoints" => {}
            "of" => object["metadata"]["labels"]["kubernetes.io/service-name"] = value.clone(),
            "metadata" => merge(&mut object["metadata"], value),
            "ports" => {
                let ports: Vec<Value> = value.as_array().unwrap().iter().map(port).collect();
                object["ports"] = json!(ports);
            }
            _ => object[key] = value.clone(),
        }
    }
    object
}

/// `ADDRESS NODE WORD…`; a word is a state, or `zone=Z`, `for=Z,Z` (zones), `forNode=N,N` or
/// `pod=NAME`. Node `-` is none.
fn endpoint(given: &Value) -> Value {
    let Value::String(text) = given else { return given.clone() };
    let mut words = text.split_whitespace();
    let mut object = json!({"addresses": [words.next().unwrap()]});
    let names = |names: &str| -> Vec<Value> {
        names.split(',').map(|name| json!({"name": name})).collect()
    };
    if let Some(node) = words.next().filter(|node| *node != "-") {
        object["nodeName"] = json!(node);
    }
    let mut conditions = [true, true, false];
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("ready", _) => conditions = [true, true, false],
            ("notready", _) => conditions = [false, false, false],
            ("terminating", _) => conditions = [false, true, true],
            ("dying", _) => conditions = [false, false, true],
            ("readyTerminating", _) => conditions = [true, true, true],
            ("zone", zone) => object["zone"] = json!(zone),
            ("for", zones) => object["hints"]["forZones"] = json!(names(zones)),
            ("forNode", nodes) => object["hints"]["forNodes"] = json!(names(nodes)),
            ("pod", name) => object["targetRef"] = json!({"kind": "Pod", "name": name}),
            (other, _) => panic!("unknown word {other}"),
        }
    }
    let [ready, serving, terminating] = conditions;
    object["conditions"] = json!({"ready": ready, "serving": serving, "terminating": terminating});
    object
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
