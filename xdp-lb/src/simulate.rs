//! What a change of a service's backends would do to its Maglev tables; pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use serde::Serialize;
use xdp_lb_plan::{
    maglev::{BuildError, HashKey, Identity, Table},
    model::{Backend, Frontend, Service},
    table,
};

use crate::stats::columns;

/// A backend as people write it: `10.0.1.14`, `10.0.1.14:8080` or `[2001:db8::14]:8080`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Name {
    address: IpAddr,
    /// The frontend's where there is none
    port: Option<NonZeroU16>,
}

/// A backend and its weight: `10.0.1.14=2`; 1 where none is said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Weighted {
    name: Name,
    weight: u16,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port.get()).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let wrong =
            "write an address, and a port where the backend has its own, like 10.0.1.14:8080";
        let socket: SocketAddr = text.parse().map_err(|_| wrong)?;
        let port = NonZeroU16::new(socket.port()).ok_or(wrong)?;
        Ok(Self { address: socket.ip(), port: Some(port) })
    }
}

impl FromStr for Weighted {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, weight) = text.split_once('=').unwrap_or((text, "1"));
        let wrong = "the weight is a whole number from 0 to 65535";
        Ok(Self { name: name.parse()?, weight: weight.parse().map_err(|_| wrong)? })
    }
}

impl Name {
    fn is(&self, backend: &Backend) -> bool {
        (self.address, self.port) == (backend.address, backend.port)
    }
}

/// What to do with the backends.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Changes {
    /// Add a backend: ADDRESS, ADDRESS:PORT, with a weight ADDRESS=WEIGHT
    #[arg(long, value_name = "BACKEND[=WEIGHT]")]
    add: Vec<Weighted>,
    /// Remove a backend
    #[arg(long, value_name = "BACKEND")]
    remove: Vec<Name>,
    /// Give a backend another weight; 0 drains it
    #[arg(long, value_name = "BACKEND=WEIGHT")]
    weight: Vec<Weighted>,
}

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateError {
    /// No such backend.
    #[error("service {service} has no backend {name}; it has {known}")]
    Unknown { service: String, name: Name, known: String },
    /// It is there already.
    #[error("service {service} has the backend {name} already: use --weight to change its weight")]
    Known { service: String, name: Name },
    /// No table can be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Changes {
    /// The service after the changes: removals first, then new weights, then what is added.
    fn make(&self, service: &Service) -> Result<Service, SimulateError> {
        let mut service = service.clone();
        let place = |service: &Service, name: Name| {
            let found = service.backends.iter().position(|one| name.is(one));
            found.ok_or_else(|| {
                let port =
                    |one: &Backend| Name { address: one.address, port: one.port }.to_string();
                let known: Vec<String> = service.backends.iter().map(port).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                SimulateError::Unknown { service: service.name.clone(), name, known }
            })
        };
        for name in &self.remove {
            let place = place(&service, *name)?;
            service.backends.remove(place);
        }
        for Weighted { name, weight } in &self.weight {
            let place = place(&service, *name)?;
            if let Some(backend) = service.backends.get_mut(place) {
                backend.weight = *weight;
            }
        }
        for Weighted { name, weight } in &self.add {
            if service.backends.iter().any(|one| name.is(one)) {
                return Err(SimulateError::Known { service: service.name, name: *name });
            }
            let Name { address, port } = *name;
            service.backends.push(Backend { port, weight: *weight, ..Backend::new(address) });
        }
        Ok(service)
    }
}

/// What a change would do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// Name of the service
    pub(crate) service: String,
    /// What to know about it
    pub(crate) notes: Vec<String>,
    /// One for all frontends that share it
    pub(crate) tables: Vec<Comparison>,
}

/// A table before and after.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Comparison {
    /// Frontends that have this table
    pub(crate) frontends: Vec<String>,
    /// Slots: before and after
    pub(crate) table_size: [usize; 2],
    /// Digests, as `maglev digest` prints them
    pub(crate) digest: [String; 2],
    /// Slots that lead to another backend; none where the tables have other sizes
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slots_moved: Option<usize>,
    /// Part of all flows' hashes that lead to another backend, from 0 to 1
    pub(crate) moved: f64,
    /// The least part that any table would have to move
    pub(crate) least: f64,
    /// By backend
    pub(crate) backends: Vec<Share>,
}

/// A backend's part, before and after.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Share {
    /// Address and port
    pub(crate) backend: String,
    /// None where it is not there
    pub(crate) weight: [Option<u16>; 2],
    /// Slots
    pub(crate) slots: [u32; 2],
    /// Part of all slots, from 0 to 1
    pub(crate) share: [f64; 2],
}

/// Compares the tables of a service before and after the changes.
///
/// # Errors
///
/// Where the changes do not fit the service, or no table can be built.
pub(crate) fn simulate(
    key: &HashKey,
    service: &Service,
    changes: &Changes,
) -> Result<Outcome, SimulateError> {
    let after = changes.make(service)?;
    let mut tables: Vec<Comparison> = Vec::new();
    for (name, frontend) in frontends(service) {
        let (old, new) = (table(key, service, frontend)?, table(key, &after, frontend)?);
        if old.backends().is_empty() && new.backends().is_empty() {
            // Of the family that no backend has.
            continue;
        }
        let new = compare(name, &old, &new);
        match tables.iter_mut().find(|one| one.digest == new.digest) {
            Some(same) => same.frontends.extend(new.frontends),
            None => tables.push(new),
        }
    }
    let mut notes = Vec::new();
    for one in &tables {
        let [before, after] = one.table_size;
        if before > 1 && after > 1 && before != after {
            let largest = before.max(after);
            let note = format!(
                "tables of {before} and {after} slots have little in common: with `tableSize: {largest}` \
                 set beforehand, this change moves less"
            );
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(Outcome { service: service.name.clone(), notes, tables })
}

/// Frontends with their names; a node port is one of each family.
fn frontends(service: &Service) -> Vec<(String, Frontend)> {
    let mut all: Vec<(String, Frontend)> =
        service.frontends.iter().map(|one| (one.to_string(), *one)).collect();
    for one in &service.node_ports {
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let frontend = Frontend { address, port: one.port, protocol: one.protocol };
            all.push((format!("{one} ({family})"), frontend));
        }
    }
    all
}

fn compare(frontend: String, before: &Table, after: &Table) -> Comparison {
    let (old, new) = (shares(before), shares(after));
    let all: BTreeSet<&Identity> = old.keys().chain(new.keys()).collect();
    let backends: Vec<Share> = all
        .into_iter()
        .map(|one| {
            let part = |shares: &BTreeMap<Identity, (u16, u32)>, table: &Table| {
                let (weight, slots) = shares.get(one).copied().unzip();
                let slots = slots.unwrap_or(0);
                (weight, slots, f64::from(slots) / table.slots().len().max(1) as f64)
            };
            let (was, is) = (part(&old, before), part(&new, after));
            Share {
                backend: SocketAddr::new(one.address, one.port).to_string(),
                weight: [was.0, is.0],
                slots: [was.1, is.1],
                share: [was.2, is.2],
            }
        })
        .collect();
    let lost = |one: &Share| (one.share[0] - one.share[1]).max(0.0);
    let least = backends.iter().map(lost).fold(0.0, std::ops::Add::add);
    let won = |one: &Share| (one.share[1] - one.share[0]).max(0.0);
    let gained: f64 = backends.iter().map(won).fold(0.0, std::ops::Add::add);
    let (moved, slots_moved) = moved(before, after);
    Comparison {
        frontends: vec![frontend],
        table_size: [before.slots().len(), after.slots().len()],
        digest: [before, after].map(|one| crate::maglev_cli::hexadecimal(one.digest())),
        slots_moved,
        moved,
        // Without backends there is nobody to lose or to gain.
        least: least.max(gained),
        backends,
    }
}

/// Weight and slots of each backend.
fn shares(table: &Table) -> BTreeMap<Identity, (u16, u32)> {
    let shares = table.shares();
    let backends = table.backends().iter().zip(shares);
    backends.map(|(one, slots)| (one.identity, (one.weight, slots))).collect()
}

/// Part of the hashes that lead elsewhere, and the slots where both have as many. A flow's slot is its
/// hash times the size, so that each slot stands for a piece of all hashes: pieces of both tables are
/// laid side by side.
fn moved(before: &Table, after: &Table) -> (f64, Option<usize>) {
    let owner = |table: &Table, slot: usize| -> Option<Identity> {
        let index = table.slots().get(slot)?;
        Some(table.backends().get(usize::from(*index))?.identity)
    };
    let (a, b) = (before.slots().len(), after.slots().len());
    if a == 0 || b == 0 {
        return (if a == b { 0.0 } else { 1.0 }, None);
    }
    // In pieces of one part in a × b.
    let (mut at, mut elsewhere) = (0, 0);
    while at < a * b {
        let (i, j) = (at / b, at / a);
        let end = ((i + 1) * b).min((j + 1) * a);
        if owner(before, i) != owner(after, j) {
            elsewhere += end - at;
        }
        at = end;
    }
    let slots = (a == b).then(|| elsewhere / a);
    (elsewhere as f64 / (a * b) as f64, slots)
}

impl Outcome {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for one in &self.tables {
            let percent = |part: f64| format!("{:.2}%", part * 100.0);
            let [before, after] = one.table_size;
            text.push_str(&format!("{}: {}\n", self.service, one.frontends.join(", ")));
            let moved = match one.slots_moved {
                Some(slots) => format!("{slots} slots ({} of all hashes)", percent(one.moved)),
                None => format!("{} of all hashes", percent(one.moved)),
            };
            text.push_str(&format!(
                "{before} -> {after} slots; {moved} lead to another backend (at least {} must)\n\n",
                percent(one.least)
            ));
            let head = ["BACKEND", "WEIGHT", "AFTER", "SLOTS", "AFTER", "SHARE", "AFTER"];
            let mut rows = vec![head.map(str::to_owned)];
            let weight =
                |weight: Option<u16>| weight.map_or_else(|| "-".to_owned(), |one| one.to_string());
            rows.extend(one.backends.iter().map(|share| {
                [
                    share.backend.clone(),
                    weight(share.weight[0]),
                    weight(share.weight[1]),
                    share.slots[0].to_string(),
                    share.slots[1].to_string(),
                    percent(share.share[0]),
                    percent(share.share[1]),
                ]
            }));
            text.push_str(&columns(&rows));
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::service_from_json;

    const KEY: [u8; 16] = [7; 16];

    fn service(backends: u8) -> Service {
        let backends: Vec<_> =
            (1..=backends).map(|n| serde_json::json!({"address": format!("10.0.0.{n}")})).collect();
        let value = serde_json::json!({
            "name": "web",
            "frontends": [
                {"address": "203.0.113.1", "port": 80},
                {"address": "203.0.113.2", "port": 80},
                {"address": "203.0.113.1", "port": 443},
            ],
            "backends": backends,
        });
        service_from_json(&value, Default::default(), &[]).unwrap()
    }

    fn changes(add: &[&str], remove: &[&str], weight: &[&str]) -> Changes {
        let weighted = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let remove = remove.iter().map(|text| text.parse().unwrap()).collect();
        Changes { add: weighted(add), remove, weight: weighted(weight) }
    }

    fn outcome(backends: u8, changes: &Changes) -> Outcome {
        simulate(&HashKey::from(KEY), &service(backends), changes).unwrap()
    }

    #[test]
    fn a_removed_backend_moves_its_own_slots_and_few_more() {
        let outcome = outcome(5, &changes(&[], &["10.0.0.3"], &[]));
        // Port 443 has backends, and so a table, of its own.
        assert_eq!(outcome.tables.len(), 2);
        let one = &outcome.tables[0];
        assert_eq!(one.frontends, ["203.0.113.1:80/TCP", "203.0.113.2:80/TCP"]);
        assert_eq!(one.table_size, [1021, 1021]);
        let gone = one.backends.iter().find(|one| one.backend == "10.0.0.3:80").unwrap();
        assert_eq!((gone.weight, gone.slots[1]), ([Some(1), None], 0));
        let moved = one.slots_moved.unwrap();
        assert!(moved >= gone.slots[0] as usize && moved < 2 * gone.slots[0] as usize, "{one:?}");
        assert!((one.least - gone.share[0]).abs() < 1e-9 && one.moved >= one.least - 1e-9);
        assert!(
            outcome.text().contains("10.0.0.3:80       1  -        204      0  19.98%   0.00%"),
            "{}",
            outcome.text()
        );
    }

    #[test]
    fn the_table_after_is_the_one_that_the_changed_service_has() {
        let changed = outcome(3, &changes(&["10.0.0.4=2"], &["10.0.0.1"], &["10.0.0.2=0"]));
        let mut after = service(4);
        after.backends.remove(0);
        (after.backends[0].weight, after.backends[2].weight) = (0, 2);
        let table = table(&HashKey::from(KEY), &after, after.frontends[0]).unwrap();
        assert_eq!(changed.tables[0].digest[1], crate::maglev_cli::hexadecimal(table.digest()));
    }

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let refused = |changes: &Changes| {
            simulate(&HashKey::from(KEY), &service(2), changes).unwrap_err().to_string()
        };
        let said = refused(&changes(&[], &["10.0.0.9"], &[]));
        assert_eq!(said, "service web has no backend 10.0.0.9; it has 10.0.0.1, 10.0.0.2");
        assert!(refused(&changes(&["10.0.0.1"], &[], &[])).contains("already"));
        assert!(refused(&changes(&[], &["10.0.0.1"], &["10.0.0.1=3"])).contains("no backend"));
        for text in ["", "a", "10.0.0.1=x", "10.0.0.1:0", "10.0.0.1=70000", "::1:80:x"] {
            assert!(text.parse::<Weighted>().is_err(), "{text}");
        }
        let name: Name = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(name.to_string(), "[2001:db8::1]:80");
    }

    proptest! {
        #[test]
        fn what_moves_is_what_any_hash_sees(before in 0_u8..9, more in 0_u8..9, hash: u32) {
            let key = HashKey::from(KEY);
            let (old, new) = (service(before), service(before + more));
            let tables = [&old, &new].map(|one| table(&key, one, one.frontends[0]).unwrap());
            let (part, _) = moved(&tables[0], &tables[1]);
            let owner = |table: &Table, hash: u32| {
                let slot = (u64::from(hash) * table.slots().len() as u64) >> 32;
                let index = table.slots().get(slot as usize)?;
                Some(table.backends()[usize::from(*index)].identity)
            };
            // Evenly spread hashes, as many as tell the difference.
            let all = 20_000_u32;
            let step = u32::MAX / all;
            let hashes = (0..all).map(|n| (n * step).wrapping_add(hash));
            let count = hashes.filter(|h| owner(&tables[0], *h) != owner(&tables[1], *h)).count();
            prop_assert!((count as f64 / f64::from(all) - part).abs() < 0.02, "{count} {part}");
        }
    }
}
