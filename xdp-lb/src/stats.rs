//! What the data path counted, read from its pinned maps: it works with and without a daemon, and
//! changes nothing.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;
use xdp_lb_abi::{Phase, Reason, Settings, Traffic};
use xdp_lb_plan::{BackendKey, FrontendState, Layout, Planner, maglev::HashKey, model::Protocol};

use crate::{
    dataplane::{Counters, open_arrays},
    maps::TableError,
    pins::{PinError, Pins},
};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No data path.
    #[error("no data path is pinned in {0}; start one with `xdp-lb run --config FILE`")]
    None(std::path::PathBuf),
    /// A map cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The pin directory cannot be read.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The tables contradict themselves.
    #[error("the tables are unsound: {0}")]
    Unsound(#[from] xdp_lb_plan::Unsound),
}

/// All counters at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// By frontend, in the order of their addresses
    pub frontends: Vec<FrontendStats>,
    /// By backend
    pub backends: Vec<BackendStats>,
    /// By reason; those that never happened are left out
    pub reasons: Vec<ReasonStats>,
    /// Where the program is attached
    pub devices: Vec<DeviceStats>,
}

/// A frontend's counters.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStats {
    /// Address, port and protocol
    pub frontend: String,
    /// `rest`, `handover` or `exceptions`
    pub phase: &'static str,
    /// Slots of its Maglev table
    pub table_size: usize,
    /// Packets forwarded
    pub packets: u64,
    /// Bytes of layer 3 forwarded
    pub bytes: u64,
    /// Its backends
    pub backends: Vec<Share>,
}

/// A backend's part of a frontend's Maglev table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Backend id
    pub id: u32,
    /// Address and port
    pub backend: String,
    /// Slots that name it
    pub slots: usize,
}

/// A backend's counters.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStats {
    /// Backend id
    pub id: u32,
    /// Address and port
    pub backend: String,
    /// Forwarding mode
    pub mode: &'static str,
    /// MAC address of the next hop; none where it is not known
    pub next_hop: Option<String>,
    /// Packets forwarded, of all frontends
    pub packets: u64,
    /// Bytes of layer 3 forwarded
    pub bytes: u64,
}

/// A reason's counters.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonStats {
    /// Name
    pub reason: &'static str,
    /// What becomes of such packets
    pub disposition: &'static str,
    /// Packets
    pub packets: u64,
    /// Bytes of the frames
    pub bytes: u64,
}

/// A device that the program is attached to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStats {
    /// Name
    pub device: String,
    /// Interface index
    pub ifindex: u32,
    /// `native` or `generic`
    pub xdp: &'static str,
}

/// Reads all counters.
///
/// # Errors
///
/// Where no data path is pinned, or its maps cannot be read.
pub fn read(pins: &Pins) -> Result<Stats, StatsError> {
    if !pins.exists()? {
        return Err(StatsError::None(pins.root().to_owned()));
    }
    let counters = Counters::open(pins)?;
    let (planner, _) = tables(pins, &counters)?;
    let mut stats = Stats { frontends: vec![], backends: vec![], reasons: vec![], devices: vec![] };
    for state in planner.frontends() {
        stats.frontends.push(frontend(&planner, &state, counters.frontend(state.stats)?));
    }
    for (id, key, record) in planner.backends() {
        let Traffic { packets, bytes } = counters.backend(id)?;
        let next_hop = (record.hop().device() != 0).then(|| mac(record.hop().mac()));
        let mode = mode(key.mode);
        stats.backends.push(BackendStats {
            id,
            backend: name(key),
            mode,
            next_hop,
            packets,
            bytes,
        });
    }
    for reason in Reason::ALL {
        let Traffic { packets, bytes } = counters.reason(*reason)?;
        if packets > 0 {
            let disposition = reason.disposition().as_str();
            stats.reasons.push(ReasonStats {
                reason: reason.as_str(),
                disposition,
                packets,
                bytes,
            });
        }
    }
    for link in pins.links()? {
        let xdp = if link.native { "native" } else { "generic" };
        stats.devices.push(DeviceStats { device: link.device, ifindex: link.ifindex, xdp });
    }
    Ok(stats)
}

/// What the pinned tables hold, and the settings beside them.
pub(crate) fn tables(pins: &Pins, counters: &Counters) -> Result<(Planner, Settings), StatsError> {
    let (arrays, settings) = open_arrays(pins)?;
    let layout = Layout {
        frontends: counters.frontend_count(),
        backends: arrays.backends.entries(),
        words: arrays.arena.entries(),
        buckets: arrays.frontends.entries(),
        seed: settings.frontend_seed(),
    };
    // No table is built here, so the key does not matter.
    let mut planner = Planner::new(&layout, HashKey::from([0; 16]), Duration::ZERO);
    planner.adopt(&arrays, Duration::ZERO)?;
    Ok((planner, settings))
}

fn frontend(planner: &Planner, state: &FrontendState<'_>, traffic: Traffic) -> FrontendStats {
    let shares = state.ids.iter().enumerate().map(|(index, &id)| Share {
        id,
        backend: planner.backend(id).map(name).unwrap_or_default(),
        slots: state.slots.iter().filter(|&&slot| usize::from(slot) == index).count(),
    });
    let protocol = Protocol::from_number(state.key.protocol());
    let protocol = protocol.map(|one| one.to_string()).unwrap_or_default();
    let socket = std::net::SocketAddr::new(state.key.address().to_ip(), state.key.port());
    FrontendStats {
        frontend: format!("{socket}/{protocol}"),
        phase: match state.phase {
            Phase::Rest => "rest",
            Phase::Handover => "handover",
            Phase::Exceptions => "exceptions",
        },
        table_size: state.slots.len(),
        packets: traffic.packets,
        bytes: traffic.bytes,
        backends: shares.collect(),
    }
}

fn name(key: &BackendKey) -> String {
    std::net::SocketAddr::new(key.identity.address, key.identity.port).to_string()
}

fn mode(mode: xdp_lb_abi::Mode) -> &'static str {
    match mode {
        xdp_lb_abi::Mode::L2 => "l2",
        xdp_lb_abi::Mode::Ipip => "ipip",
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

impl Stats {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ["FRONTEND / BACKEND", "MODE", "SHARE", "PACKETS", "BYTES", "NEXT HOP"]
                .map(str::to_owned),
        ];
        for frontend in &self.frontends {
            rows.push([
                frontend.frontend.clone(),
                frontend.phase.to_owned(),
                frontend.table_size.to_string(),
                frontend.packets.to_string(),
                frontend.bytes.to_string(),
                String::new(),
            ]);
            for share in &frontend.backends {
                let Some(backend) = self.backends.iter().find(|one| one.id == share.id) else {
                    continue;
                };
                let percent = share.slots as f64 * 100.0 / (frontend.table_size.max(1)) as f64;
                rows.push([
                    format!("  -> {}", share.backend),
                    backend.mode.to_owned(),
                    format!("{percent:.1}%"),
                    backend.packets.to_string(),
                    backend.bytes.to_string(),
                    backend.next_hop.clone().unwrap_or_else(|| "unknown".to_owned()),
                ]);
            }
        }
        let mut text = columns(&rows);
        if !self.reasons.is_empty() {
            let mut rows =
                vec![["NOT FORWARDED BECAUSE", "THEN", "PACKETS", "BYTES"].map(str::to_owned)];
            rows.extend(self.reasons.iter().map(|one| {
                let (packets, bytes) = (one.packets.to_string(), one.bytes.to_string());
                [one.reason.to_owned(), one.disposition.to_owned(), packets, bytes]
            }));
            let _ = write!(text, "\n{}", columns(&rows));
        }
        let mut rows = vec![["DEVICE", "INDEX", "XDP"].map(str::to_owned)];
        rows.extend(
            self.devices
                .iter()
                .map(|one| [one.device.clone(), one.ifindex.to_string(), one.xdp.to_owned()]),
        );
        let _ = write!(text, "\n{}", columns(&rows));
        text
    }
}

/// Rows with their columns aligned: numbers to the right, all else to the left.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for (line, row) in rows.iter().enumerate() {
        let mut out = String::new();
        for (column, cell) in row.iter().enumerate() {
            let numeric = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit());
            let right = if line == 0 {
                rows.get(1).is_some_and(|row| column > 0 && row[column].parse::<u64>().is_ok())
            } else {
                column > 0 && numeric(cell) && !cell.contains(':')
            };
            let width = widths[column];
            let _ = if right {
                write!(out, "{cell:>width$}  ")
            } else {
                write!(out, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "PACKETS"], ["a", "7"], ["long name", "1234"]]
            .map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "NAME       PACKETS\na                7\nlong name     1234\n");
    }
}
