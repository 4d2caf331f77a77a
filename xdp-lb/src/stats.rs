//! What the data path counted, read from its pinned maps: it works with and without a daemon, and
//! changes nothing.

use std::{fmt::Write as _, thread, time::Duration};

use serde::Serialize;
use xdp_lb_abi::{FrontendKey, Phase, Reason, Settings, SocketReason, Traffic, names};
use xdp_lb_plan::{
    BackendKey, FlowCounts, FrontendState, IdleTimes, Judge, Layout, Planner, maglev::HashKey,
    model::Protocol,
};

use crate::{
    clock,
    dataplane::{Counters, Flows, SocketCounters, open_arrays},
    maps::TableError,
    pins::{PinError, Pins},
};

/// How often tables are read that do not fit together, and the time in between.
const READINGS: u32 = 5;
const BETWEEN_READINGS: Duration = Duration::from_millis(20);

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
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// By frontend, in the order of their addresses
    pub frontends: Vec<FrontendStats>,
    /// By backend
    pub backends: Vec<BackendStats>,
    /// By reason; those that never happened are left out
    pub reasons: Vec<ReasonStats>,
    /// What became of calls of sockets; results that never happened are left out
    pub socket_calls: Vec<SocketStats>,
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
    /// TCP SYN and SCTP INIT packets among them; UDP has no first packet
    pub new_flows: u64,
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
    /// Forwarding mode
    pub mode: &'static str,
    /// `active`, or `draining` where it takes no new flows
    pub state: &'static str,
    /// Slots that name it
    pub slots: usize,
    /// Flows that are recorded for it. At rest none is, since the hash alone decides; while the
    /// frontend hands over there may be more, which sent nothing since the change.
    pub recorded_flows: u64,
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
    /// TCP SYN and SCTP INIT packets among them
    pub new_flows: u64,
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

/// How often this became of calls of sockets.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketStats {
    /// Name
    pub result: &'static str,
    /// Calls
    pub calls: u64,
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
    require(pins)?;
    let counters = Counters::open(pins)?;
    let (planner, settings) = tables(pins, &counters)?;
    let flows = count(&planner, &settings, &Flows::open(pins, names::FLOWS)?)?;
    read_counters(pins, &counters, &planner, &flows)
}

/// Reads all counters, but counts no recorded flows: of many, that takes a while.
///
/// # Errors
///
/// As [`read`].
pub fn read_traffic(pins: &Pins) -> Result<Stats, StatsError> {
    require(pins)?;
    let counters = Counters::open(pins)?;
    let (planner, _) = tables(pins, &counters)?;
    read_counters(pins, &counters, &planner, &FlowCounts::default())
}

fn read_counters(
    pins: &Pins,
    counters: &Counters,
    planner: &Planner,
    flows: &FlowCounts,
) -> Result<Stats, StatsError> {
    let mut stats = Stats::default();
    for state in planner.frontends() {
        let traffic = counters.frontend(state.stats)?;
        stats.frontends.push(frontend(planner, &state, flows, traffic));
    }
    for (id, key, record) in planner.backends() {
        let Traffic { packets, bytes, flows: new_flows } = counters.backend(id)?;
        let next_hop = (record.hop().device() != 0).then(|| mac(record.hop().mac()));
        let mode = mode(key.mode);
        stats.backends.push(BackendStats {
            id,
            backend: name(key),
            mode,
            next_hop,
            packets,
            bytes,
            new_flows,
        });
    }
    for reason in Reason::ALL {
        let Traffic { packets, bytes, flows: _ } = counters.reason(*reason)?;
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
    let sockets = SocketCounters::open(pins)?;
    for result in SocketReason::ALL {
        let calls = sockets.get(*result)?;
        if calls > 0 {
            stats.socket_calls.push(SocketStats { result: result.as_str(), calls });
        }
    }
    for link in pins.links()? {
        let xdp = if link.native { "native" } else { "generic" };
        stats.devices.push(DeviceStats { device: link.device, ifindex: link.ifindex, xdp });
    }
    Ok(stats)
}

/// Refuses a pin directory without a data path of this version.
pub(crate) fn require(pins: &Pins) -> Result<(), StatsError> {
    if pins.exists()? {
        return Ok(());
    }
    pins.check()?;
    Err(StatsError::None(pins.root().to_owned()))
}

/// What the pinned tables hold, and the settings beside them. The daemon may be writing them: what does not
/// fit together is read again some times.
pub(crate) fn tables(pins: &Pins, counters: &Counters) -> Result<(Planner, Settings), StatsError> {
    let (arrays, settings) = open_arrays(pins)?;
    let layout = Layout {
        frontends: counters.frontend_count(),
        backends: arrays.backends.entries(),
        words: arrays.arena.entries(),
        buckets: arrays.frontends.entries(),
        seed: settings.frontend_seed(),
    };
    let mut readings = 0;
    loop {
        // No table is built here, so the key does not matter.
        let mut planner = Planner::new(&layout, HashKey::from([0; 16]), Duration::ZERO);
        readings += 1;
        match planner.adopt(&arrays, Duration::ZERO) {
            Err(_) if readings < READINGS => thread::sleep(BETWEEN_READINGS),
            adopted => {
                adopted?;
                return Ok((planner, settings));
            }
        }
    }
}

/// Counts the recorded flows that belong somewhere. How long they may be silent is the daemon's.
fn count(planner: &Planner, settings: &Settings, flows: &Flows) -> Result<FlowCounts, TableError> {
    let idle = IdleTimes { tcp: Duration::MAX, udp: Duration::MAX };
    let mut judge = Judge::new(planner, settings.flow_key(), idle, clock::now());
    let mut counts = FlowCounts::default();
    for (key, flow) in flows.read()?.records {
        counts.add(judge.judge(&key, &flow));
    }
    Ok(counts)
}

fn frontend(
    planner: &Planner,
    state: &FrontendState<'_>,
    flows: &FlowCounts,
    traffic: Traffic,
) -> FrontendStats {
    let mut slots = vec![0; state.ids.len()];
    state.slots.iter().for_each(|&slot| slots[usize::from(slot)] += 1);
    // Behind those that the table names, those that flows know from before a change of the mode.
    let former = state.draining.iter().filter(|id| !state.ids.contains(id)).map(|&id| (id, 0));
    let shares = state.ids.iter().copied().zip(slots).chain(former).map(|(id, slots)| Share {
        id,
        backend: planner.backend(id).map(name).unwrap_or_default(),
        mode: planner.backend(id).map(|key| mode(key.mode)).unwrap_or_default(),
        state: if state.draining.binary_search(&id).is_ok() { "draining" } else { "active" },
        slots,
        recorded_flows: flows.of(&state.key, id),
    });
    FrontendStats {
        frontend: frontend_name(planner, &state.key),
        phase: match state.phase {
            Phase::Rest => "rest",
            Phase::Handover => "handover",
            Phase::Exceptions => "exceptions",
        },
        table_size: state.slots.len(),
        packets: traffic.packets,
        bytes: traffic.bytes,
        new_flows: traffic.flows,
        backends: shares.collect(),
    }
}

/// A frontend as people write it. What sockets inside meet in place of one for packets has `/i` behind.
pub(crate) fn frontend_name(planner: &Planner, key: &FrontendKey) -> String {
    let protocol = Protocol::from_number(key.protocol());
    let protocol = protocol.map(|one| one.to_string()).unwrap_or_default();
    let inside = if planner.has_twin(key) { "/i" } else { "" };
    let socket = std::net::SocketAddr::new(key.address().to_ip(), key.port());
    format!("{socket}/{protocol}{inside}")
}

/// A backend as people write it.
pub(crate) fn name(key: &BackendKey) -> String {
    std::net::SocketAddr::new(key.identity.address, key.identity.port).to_string()
}

fn mode(mode: xdp_lb_abi::Mode) -> &'static str {
    match mode {
        xdp_lb_abi::Mode::L2 => "l2",
        xdp_lb_abi::Mode::Ipip => "ipip",
        xdp_lb_abi::Mode::Geneve => "geneve",
        xdp_lb_abi::Mode::Local => "local",
        xdp_lb_abi::Mode::Snat => "snat",
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

impl FrontendStats {
    /// A number of recorded flows: `7+` where it is a lower bound, nothing where none is recorded.
    fn flows(&self, count: u64) -> String {
        match self.phase {
            "rest" => String::new(),
            "handover" => format!("{count}+"),
            _ => count.to_string(),
        }
    }
}

impl Stats {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut rows = vec![
            [
                "FRONTEND / BACKEND",
                "STATE",
                "MODE",
                "SHARE",
                "FLOWS",
                "PACKETS",
                "BYTES",
                "NEW FLOWS",
                "NEXT HOP",
            ]
            .map(str::to_owned),
        ];
        for frontend in &self.frontends {
            rows.push([
                frontend.frontend.clone(),
                frontend.phase.to_owned(),
                String::new(),
                frontend.table_size.to_string(),
                frontend.flows(frontend.backends.iter().map(|share| share.recorded_flows).sum()),
                frontend.packets.to_string(),
                frontend.bytes.to_string(),
                frontend.new_flows.to_string(),
                String::new(),
            ]);
            for share in &frontend.backends {
                let Some(backend) = self.backends.iter().find(|one| one.id == share.id) else {
                    continue;
                };
                let percent = share.slots as f64 * 100.0 / (frontend.table_size.max(1)) as f64;
                rows.push([
                    format!("  -> {}", share.backend),
                    share.state.to_owned(),
                    share.mode.to_owned(),
                    format!("{percent:.1}%"),
                    frontend.flows(share.recorded_flows),
                    backend.packets.to_string(),
                    backend.bytes.to_string(),
                    backend.new_flows.to_string(),
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
        if !self.socket_calls.is_empty() {
            let mut rows = vec![["CALLS OF SOCKETS", "CALLS"].map(str::to_owned)];
            let calls = self.socket_calls.iter();
            rows.extend(calls.map(|one| [one.result.to_owned(), one.calls.to_string()]));
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
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
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
