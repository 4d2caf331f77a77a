//! Services as JSON, by the same reader as the file's.

use ipnet::IpNet;
use serde_json::Value;
use xdp_lb_plan::model::{Mode, Service};

use super::{Mistakes, mistake::Sink, read::At, service, tree};

/// The service that a JSON document describes, or everything that is wrong with it; paths are JSON
/// pointers (RFC 6901), lines and columns mean nothing. `pods` are the networks of pods on this host.
///
/// # Errors
///
/// All mistakes, where there are some.
pub fn service_from_json(
    value: &Value,
    default_mode: Mode,
    pods: &[IpNet],
) -> Result<Service, Mistakes> {
    let sink = Sink::with_pointers();
    let node = tree::Node::json(value);
    let service =
        service::Reader::new(Some(default_mode), pods.to_vec()).read(&At::root(&node, &sink), 0);
    match (service, sink.into_mistakes()) {
        (Some(service), None) => Ok(service),
        (_, Some(mistakes)) => Err(mistakes),
        (None, None) => unreachable!("every reader that returns nothing has reported a mistake"),
    }
}

/// A YAML document, which a JSON document is too, as JSON.
///
/// # Errors
///
/// Where it is none, or has what the configuration's YAML may not have.
pub fn yaml_to_json(text: &str) -> Result<Value, Mistakes> {
    let sink = Sink::default();
    let node = tree::load(text, &sink);
    match sink.into_mistakes() {
        Some(mistakes) => Err(mistakes),
        None => Ok(node.map_or(Value::Null, |node| node.to_json())),
    }
}
