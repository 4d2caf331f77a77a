//! What stands on the page: every metric of the data path and of what the daemon knows.

use std::collections::BTreeMap;

use xdp_lb_abi::{Reason, SocketReason, Traffic, VERSION};
use xdp_lb_api::{
    prometheus_client::registry::Unit,
    view::{EventKind, FrontendState, HealthState, Phase, State},
};

use super::{
    choice::{Choice, STATES},
    page::{Labels, Page},
};
use crate::dataplane::{Fill, ProgramFigures};

/// Counters of the data path, of what was chosen.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// In the order of the choice's frontends
    pub(super) frontends: Vec<Traffic>,
    /// In the order of the choice's backends
    pub(super) backends: Vec<Traffic>,
    /// All reasons
    pub(super) reasons: Vec<(Reason, Traffic)>,
    /// What became of calls of sockets
    pub(super) calls: Vec<(SocketReason, u64)>,
}

/// Traffic of frontends, backends and reasons.
pub(super) fn traffic(
    page: &mut Page,
    choice: &Choice<'_>,
    counted: &Counted,
    recorded: &BTreeMap<String, u64>,
) {
    let of_frontends: Vec<(Labels, Traffic)> = choice
        .frontends
        .iter()
        .zip(&counted.frontends)
        .map(|(one, traffic)| {
            let labels = vec![("frontend", one.frontend.clone()), ("service", one.service.clone())];
            (labels, *traffic)
        })
        .collect();
    let flows = page.gauge("xdp_lb_frontend_recorded_flows", "Flows that a handover has recorded");
    for (labels, _) in &of_frontends {
        let count = labels.first().and_then(|(_, name)| recorded.get(name)).copied();
        flows.put(labels.clone(), count.unwrap_or(0));
    }
    let of_backends: Vec<(Labels, Traffic)> = choice
        .backends
        .keys()
        .zip(&counted.backends)
        .map(|((backend, protocol), traffic)| {
            let labels = vec![("backend", backend.clone()), ("protocol", protocol.clone())];
            (labels, *traffic)
        })
        .collect();
    forwarded(
        page,
        &of_frontends,
        [
            ("xdp_lb_frontend_packets", "Packets that were forwarded for a frontend"),
            ("xdp_lb_frontend", "Bytes of layer 3 that were forwarded for a frontend"),
            ("xdp_lb_frontend_new_flows", "TCP SYN and SCTP INIT packets that were forwarded"),
        ],
    );
    forwarded(
        page,
        &of_backends,
        [
            ("xdp_lb_backend_packets", "Packets that were forwarded to a backend"),
            ("xdp_lb_backend", "Bytes of layer 3 that were forwarded to a backend"),
            ("xdp_lb_backend_new_flows", "TCP SYN and SCTP INIT packets that were forwarded"),
        ],
    );
    for (reason, traffic) in &counted.reasons {
        let name = reason.as_str().to_owned();
        let disposition = reason.disposition().as_str().to_owned();
        let labels: Labels = vec![("reason", name), ("disposition", disposition)];
        page.counter("xdp_lb_reason_packets", "Packets that were not simply forwarded, by reason")
            .put(labels.clone(), traffic.packets);
        let help = "Bytes of frames that were not simply forwarded, by reason";
        page.counter_of("xdp_lb_reason", Unit::Bytes, help).put(labels, traffic.bytes);
    }
    for (result, calls) in &counted.calls {
        page.counter(
            "xdp_lb_socket_calls",
            "Calls of sockets that were about a service, by what became of them",
        )
        .put(vec![("result", result.as_str().to_owned())], *calls);
    }
}

/// UDP sockets that were ended.
pub(super) fn sockets_ended(page: &mut Page, count: u64) {
    let help = "Connected UDP sockets that were ended, since their backend was gone";
    page.counter("xdp_lb_sockets_ended", help).put(vec![], count);
}

/// Packets, bytes and new flows; names and helps in this order.
fn forwarded(
    page: &mut Page,
    all: &[(Labels, Traffic)],
    [packets, bytes, flows]: [(&'static str, &'static str); 3],
) {
    for (labels, traffic) in all {
        page.counter(packets.0, packets.1).put(labels.clone(), traffic.packets);
        page.counter_of(bytes.0, Unit::Bytes, bytes.1).put(labels.clone(), traffic.bytes);
        page.counter(flows.0, flows.1).put(labels.clone(), traffic.flows);
    }
}

/// States of frontends, services, backends and devices, and whether all is well.
pub(super) fn states(page: &mut Page, state: &State, choice: &Choice<'_>) {
    let frontends = page.gauge("xdp_lb_frontends", "Frontends by what becomes of their packets");
    for (kind, name) in [
        (FrontendState::Served, "served"),
        (FrontendState::Pending, "pending"),
        (FrontendState::Refused, "refused"),
    ] {
        let count = state.frontends.values().filter(|one| one.state == kind).count();
        frontends.put(vec![("state", name.to_owned())], count);
    }
    let help = "Frontends by where a change of their backends is";
    let phases = page.gauge("xdp_lb_frontend_phases", help);
    for (phase, name) in
        [(Phase::Rest, "rest"), (Phase::Handover, "handover"), (Phase::Exceptions, "exceptions")]
    {
        let count = state.frontends.values().filter(|one| one.phase == Some(phase)).count();
        phases.put(vec![("phase", name.to_owned())], count);
    }
    let backends = page.gauge("xdp_lb_service_backends", "Backends of a service by what they do");
    for (service, counts) in &choice.services {
        for (kind, count) in STATES.iter().zip(counts) {
            let labels = vec![("service", (*service).to_owned()), ("state", kind.to_string())];
            backends.put(labels, *count);
        }
    }
    for ((service, (backend, protocol)), member) in &choice.members {
        let labels: Labels = vec![
            ("service", (*service).to_owned()),
            ("backend", backend.clone()),
            ("protocol", protocol.clone()),
        ];
        page.gauge("xdp_lb_backend_up", "Whether a backend takes new flows of a service")
            .put(labels.clone(), member.active);
        if let Some(changes) = member.changes {
            let help = "How often a health check changed its mind about a backend";
            page.counter("xdp_lb_backend_health_changes", help).put(labels, changes);
        }
    }
    let devices =
        page.gauge("xdp_lb_device_attached", "Whether the program runs on a device, by mode");
    for one in &state.devices {
        for mode in ["native", "generic"] {
            let labels = vec![("device", one.name.clone()), ("mode", mode.to_owned())];
            devices.put(labels, one.xdp.as_deref() == Some(mode));
        }
    }
    let checks =
        page.gauge("xdp_lb_health_check", "Whether all is well, as `xdp-lb status` says it");
    for check in &state.checks {
        let well = check.state == HealthState::Ok;
        checks.put(vec![("check", check.name.clone())], well);
    }
    let left_out = page.gauge("xdp_lb_metrics_left_out", "What has no series of its own, to stay within `metrics.maxSeries` or for `metrics.perBackend`");
    for (kind, count) in ["frontend", "service", "backend"].into_iter().zip(choice.left_out) {
        left_out.put(vec![("kind", kind.to_owned())], count);
    }
}

/// How full the tables are.
pub(super) fn tables(page: &mut Page, tables: &[Fill]) {
    for Fill { map, used, size } in tables {
        let labels: Labels = vec![("map", (*map).to_owned())];
        page.gauge("xdp_lb_map_entries", "Entries of a table").put(labels.clone(), *used);
        page.gauge("xdp_lb_map_max_entries", "Most entries of a table").put(labels, *size);
    }
}

/// What the kernel says of the programs.
pub(super) fn programs(page: &mut Page, programs: &[ProgramFigures], measured: Option<bool>) {
    for one in programs {
        let labels: Labels = vec![("program", one.name.clone())];
        if let Some(count) = one.verified {
            let help = "Instructions that the verifier looked at to accept a program";
            page.gauge("xdp_lb_program_verified_instructions", help).put(labels.clone(), count);
        }
        let help = "How often a program ran while run-time statistics were on; tail calls are part of the program that began";
        page.counter("xdp_lb_program_runs", help).put(labels.clone(), one.runs);
        let help = "How long a program ran while run-time statistics were on";
        page.counter_of("xdp_lb_program_run_time", Unit::Seconds, help)
            .put(labels, one.time.as_secs_f64());
    }
    if let Some(measured) = measured {
        let help = "Whether the kernel keeps run-time statistics (kernel.bpf_stats_enabled)";
        page.gauge("xdp_lb_bpf_stats_enabled", help).put(vec![], measured);
    }
}

/// What happened, by kind.
pub(super) fn events(page: &mut Page, counts: impl Iterator<Item = (EventKind, u64)>) {
    let events = page.counter("xdp_lb_events", "What happened since the daemon's start, by kind");
    for (kind, count) in counts {
        events.put(vec![("kind", kind.as_str().to_owned())], count);
    }
}

/// What the program is.
pub(super) fn build(page: &mut Page) {
    let labels =
        vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("abi", VERSION.to_string())];
    page.gauge("xdp_lb_build_info", "Version of the program and of the data path's ABI")
        .put(labels, 1_u64);
}

/// How often the table of recorded flows was full.
pub(super) fn full(page: &mut Page, times: u64) {
    let help = "Looks at the table of recorded flows that found it full";
    page.counter("xdp_lb_flow_table_full", help).put(vec![], times);
}
