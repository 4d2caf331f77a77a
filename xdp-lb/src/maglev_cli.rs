//! `xdp-lb maglev`: the Maglev tables that are installed, read from the pinned maps. It works with
//! and without a daemon, and changes nothing.

use std::{fmt::Write as _, net::SocketAddr, num::NonZeroU16, str::FromStr};

use serde::Serialize;
use xdp_lb_abi::{FrontendKey, Scope};
use xdp_lb_plan::{
    FrontendState, Planner,
    model::{Frontend, Protocol},
};

use crate::{
    dataplane::Counters,
    pins::Pins,
    stats::{self, StatsError, columns},
};

/// Why there is no table to show.
#[derive(Debug, thiserror::Error)]
pub enum MaglevError {
    /// The data path cannot be read.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// No such frontend.
    #[error("there is no frontend {0}; `xdp-lb maglev digest` lists those that there are")]
    Unknown(Frontend),
}

/// A frontend as people write it: `203.0.113.10:80` or `[2001:db8::10]:53/UDP`.
#[derive(Clone, Copy, Debug)]
pub struct Name(pub Frontend);

/// A text that names no frontend.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("write address, port and protocol, like 203.0.113.10:80/TCP or [2001:db8::10]:53/UDP")]
pub struct NoName;

impl FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let (socket, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let socket: SocketAddr = socket.parse().map_err(|_| NoName)?;
        let port = NonZeroU16::new(socket.port()).ok_or(NoName)?;
        let protocol: Protocol = protocol.parse().map_err(|_| NoName)?;
        Ok(Self(Frontend { address: socket.ip(), port, protocol }))
    }
}

/// The digests of all tables, to be compared with those of other instances.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Digests {
    /// By frontend
    pub frontends: Vec<Digest>,
    /// Of all frontends together, whatever was asked for
    pub all: String,
}

/// The digest of one frontend's table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Digest {
    /// Address, port and protocol
    pub frontend: String,
    /// Slots of the table
    pub slots: usize,
    /// Backends, those that take no new flows included
    pub backends: usize,
    /// 16 hexadecimal digits
    pub digest: String,
}

/// One frontend's table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Its digest
    #[serde(flatten)]
    pub digest: Digest,
    /// The backends, in the table's order
    pub members: Vec<Member>,
    /// For each slot the index of its backend
    pub table: Vec<u16>,
}

/// A backend's part of a table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Address and port
    pub backend: String,
    /// Slots that name it
    pub slots: usize,
}

/// Reads the digests of all frontends, or of one.
///
/// # Errors
///
/// Where the data path cannot be read, or has no such frontend.
pub fn digests(pins: &Pins, only: Option<Name>) -> Result<Digests, MaglevError> {
    let planner = open(pins)?;
    let frontends: Vec<Digest> = planner
        .frontends()
        .filter(|state| only.is_none_or(|only| is_named(&planner, &state.key, only)))
        .map(|state| digest(&planner, &state))
        .collect();
    match only {
        Some(only) if frontends.is_empty() => Err(MaglevError::Unknown(only.0)),
        _ => Ok(Digests { frontends, all: hexadecimal(planner.digest_of_all()) }),
    }
}

/// Reads a frontend's table.
///
/// # Errors
///
/// Where the data path cannot be read, or has no such frontend.
pub fn table(pins: &Pins, name: Name) -> Result<Table, MaglevError> {
    let planner = open(pins)?;
    let state = planner.frontends().find(|state| is_named(&planner, &state.key, name));
    let state = state.ok_or(MaglevError::Unknown(name.0))?;
    let mut slots = vec![0; state.ids.len()];
    for slot in state.slots {
        slots[usize::from(*slot)] += 1;
    }
    let members = state.ids.iter().zip(slots).map(|(id, slots)| Member {
        backend: planner.backend(*id).map(stats::name).unwrap_or_default(),
        slots,
    });
    let digest = digest(&planner, &state);
    Ok(Table { digest, members: members.collect(), table: state.slots.to_vec() })
}

/// Whether a name means this frontend: one for sockets alone only where packets have none there.
fn is_named(planner: &Planner, key: &FrontendKey, name: Name) -> bool {
    key.with_scope(Scope::All) == name.0.key() && !planner.has_twin(key)
}

fn open(pins: &Pins) -> Result<Planner, StatsError> {
    stats::require(pins)?;
    Ok(stats::tables(pins, &Counters::open(pins)?)?.0)
}

fn digest(planner: &Planner, state: &FrontendState<'_>) -> Digest {
    Digest {
        frontend: stats::frontend_name(planner, &state.key),
        slots: state.slots.len(),
        backends: state.ids.len(),
        digest: hexadecimal(planner.digest(state)),
    }
}

pub(crate) fn hexadecimal(digest: u64) -> String {
    format!("{digest:016x}")
}

impl Digests {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut rows = vec![["FRONTEND", "SLOTS", "BACKENDS", "DIGEST"].map(str::to_owned)];
        rows.extend(self.frontends.iter().map(|one| {
            let (slots, backends) = (one.slots.to_string(), one.backends.to_string());
            [one.frontend.clone(), slots, backends, one.digest.clone()]
        }));
        format!("{}\nall tables: {}\n", columns(&rows), self.all)
    }
}

impl Table {
    /// A table for people; with `slots`, each slot on a line of its own.
    pub fn table(&self, slots: bool) -> String {
        let Digest { frontend, slots: size, digest, .. } = &self.digest;
        let mut text = format!("{frontend}: {size} slots, digest {digest}\n\n");
        let mut rows = vec![["BACKEND", "SLOTS", "SHARE"].map(str::to_owned)];
        rows.extend(self.members.iter().map(|one| {
            let percent = one.slots as f64 * 100.0 / (*size).max(1) as f64;
            [one.backend.clone(), one.slots.to_string(), format!("{percent:.2}%")]
        }));
        text.push_str(&columns(&rows));
        if slots {
            text.push('\n');
            for (slot, index) in self.table.iter().enumerate() {
                let backend = self.members.get(usize::from(*index)).map_or("", |one| &one.backend);
                let _ = writeln!(text, "{slot:>6}  {backend}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_named_as_stats_shows_them() {
        for text in ["203.0.113.10:80/TCP", "[2001:db8::10]:53/UDP", "192.0.2.1:9/SCTP"] {
            assert_eq!(text.parse::<Name>().unwrap().0.to_string(), text);
        }
        assert_eq!("192.0.2.1:80".parse::<Name>().unwrap().0.protocol, Protocol::Tcp);
        for text in ["", "web", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:80/ICMP", "::1:80"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
