//! What a Service's annotations say of its data path.

use std::{collections::BTreeMap, str::FromStr};

use crate::{
    kubernetes::{PodMode, Problem, finding::Flaw},
    maglev::LADDER,
};

const PREFIX: &str = "xdp-lb.dev/";
const KNOWN: &str = "the annotations are xdp-lb.dev/mode, xdp-lb.dev/table-size, \
                     xdp-lb.dev/node-weights and xdp-lb.dev/zone-weights";
const WEIGHTS: &str = "write names with weights from 0 to 65535, like `a=2,b=1`";

/// What a Service's annotations say of its data path.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Annotations {
    pub(super) mode: Option<PodMode>,
    pub(super) table_size: Option<u32>,
    /// By name of the Node
    pub(super) node_weights: BTreeMap<Box<str>, u16>,
    /// By name of the zone
    pub(super) zone_weights: BTreeMap<Box<str>, u16>,
}

impl Annotations {
    /// Reads them; one whose value is wrong does not count.
    pub(super) fn read(all: Option<&BTreeMap<String, String>>, flaws: &mut Vec<Flaw>) -> Self {
        let mut annotations = Self::default();
        for (key, value) in all.into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if let Err(expected) = annotations.set(name, value.trim()) {
                let problem = Problem::Value { value: value.clone(), expected };
                flaws.push(Flaw::new(format!("metadata.annotations[{key}]"), problem));
            }
        }
        annotations
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "mode" => {
                let mode = PodMode::from_str(value);
                self.mode = Some(mode.map_err(|_| "write geneve, snat or hybrid")?);
            }
            "table-size" => {
                let size = value.parse().ok().filter(|size| LADDER.contains(size));
                let expected = "write 1, 251, 1021, 4093, 16381, 65537 or 131071";
                self.table_size = Some(size.ok_or(expected)?);
            }
            "node-weights" => self.node_weights = weights(value).ok_or(WEIGHTS)?,
            "zone-weights" => self.zone_weights = weights(value).ok_or(WEIGHTS)?,
            _ => return Err(KNOWN),
        }
        Ok(())
    }

    /// The share of an endpoint: its Node's, or its zone's, or 1.
    pub(super) fn weight(&self, node: Option<&str>, zone: Option<&str>) -> u16 {
        let by_node = node.and_then(|node| self.node_weights.get(node));
        let by_zone = || zone.and_then(|zone| self.zone_weights.get(zone));
        by_node.or_else(by_zone).copied().unwrap_or(1)
    }
}

fn weights(text: &str) -> Option<BTreeMap<Box<str>, u16>> {
    let mut weights = BTreeMap::new();
    for item in text.split(',') {
        let (name, weight) = item.split_once('=')?;
        let (name, weight) = (name.trim(), weight.trim());
        let is_number = !weight.is_empty() && weight.bytes().all(|byte| byte.is_ascii_digit());
        let weight = weight.parse().ok().filter(|_| is_number)?;
        if name.is_empty() || weights.insert(name.into(), weight).is_some() {
            return None;
        }
    }
    Some(weights)
}
