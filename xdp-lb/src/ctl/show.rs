//! The daemon's answers as tables.

use std::fmt::Write as _;

use xdp_lb_api::view::{
    BackendHealth, BackendState, BackendView, ClusterServer, DeviceView, FeatureView, FlowCount,
    FlowView, FrontendState, FrontendView, HealthState, HealthView, ReplacementView, StatusView,
    Wellness,
};

use super::table::{Cell, Table, Tone};

const fn tone(state: BackendState) -> Tone {
    match state {
        BackendState::Active => Tone::Good,
        BackendState::Draining | BackendState::Drained | BackendState::Terminating => Tone::Warning,
        BackendState::Down | BackendState::Unreachable => Tone::Bad,
    }
}

fn served(state: FrontendState) -> Cell {
    match state {
        FrontendState::Served => Cell::toned("served", Tone::Good),
        FrontendState::Pending => Cell::toned("pending", Tone::Warning),
        FrontendState::Refused => Cell::toned("refused", Tone::Bad),
        FrontendState::Elsewhere => "elsewhere".into(),
    }
}

/// One row for each frontend, and one more for each further backend.
pub(super) fn frontends(frontends: &[FrontendView], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&["ID", "Name", "Owner", "Mode", "State", "Frontend", "Service Type", "Backend"])
    } else {
        Table::new(&["ID", "Frontend", "Service Type", "Backend"])
    };
    for one in frontends {
        let id: Cell = one.id.map_or_else(|| "-".into(), Cell::from);
        let mut first = if wide {
            let (name, owner, mode) = (&one.service, one.owner, &one.mode);
            vec![id, name.into(), owner.into(), mode.into(), served(one.state)]
        } else {
            vec![id]
        };
        first.extend([Cell::from(&one.frontend), Cell::from(&one.kind)]);
        let blank = vec![Cell::default(); first.len()];
        let mut before = Some(first);
        let protocol = one.frontend.split('/').nth(1).unwrap_or_default();
        for (number, backend) in (1..).zip(&one.backends) {
            let text = format!("{number} => {}/{protocol} ({})", backend.backend, backend.state);
            let last = Cell::toned(text, tone(backend.state));
            table.row(before.take().unwrap_or_else(|| blank.clone()).into_iter().chain([last]));
        }
        if let Some(first) = before {
            table.row(first);
        }
        if let Some(reason) = &one.reason {
            let last = match one.state {
                FrontendState::Refused => Cell::toned(format!("refused: {reason}"), Tone::Bad),
                FrontendState::Elsewhere => reason.into(),
                FrontendState::Served | FrontendState::Pending => {
                    Cell::toned(reason.clone(), Tone::Warning)
                }
            };
            table.row(blank.into_iter().chain([last]));
        }
    }
    table
}

pub(super) fn backends(backends: &[BackendView], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&[
            "Service", "Backend", "Weight", "State", "Flows", "Health", "Owner", "Drained",
            "Reason",
        ])
    } else {
        Table::new(&["Service", "Backend", "Weight", "State", "Flows", "Health"])
    };
    for one in backends {
        let state = Cell::toned(one.state, tone(one.state));
        let mut row =
            vec![Cell::from(&one.service), Cell::from(&one.backend), one.weight.into(), state];
        // At rest nobody counts.
        row.push(if one.flows > 0 { one.flows.into() } else { "-".into() });
        row.push(health(one.health.as_ref()));
        if wide {
            let drained = match (one.drained, one.removing) {
                (false, _) => "no",
                (true, false) => "yes",
                (true, true) => "yes, then removed",
            };
            let health = one.health.as_ref();
            let health = health.and_then(|one| one.error.as_deref().or(one.note.as_deref()));
            let reason = one.reason.as_deref().or(health).unwrap_or_default();
            row.extend([one.owner.into(), drained.into(), reason.into()]);
        }
        table.row(row);
    }
    table
}

/// Whether it is well, and since when; `-` where nobody asks.
fn health(health: Option<&BackendHealth>) -> Cell {
    let Some(health) = health else { return "-".into() };
    let text = match &health.since {
        Some(since) => format!("{} since {since}", health.state),
        None => health.state.to_string(),
    };
    Cell::toned(
        text,
        match health.state {
            Wellness::Unknown => Tone::Warning,
            Wellness::Up => Tone::Good,
            Wellness::Down => Tone::Bad,
        },
    )
}

pub(super) fn devices(devices: &[DeviceView]) -> Table {
    let mut table = Table::new(&["Device", "Index", "XDP", "Wanted"]);
    for one in devices {
        let index = one.ifindex.map_or_else(|| "-".into(), Cell::from);
        let xdp = match &one.xdp {
            Some(xdp) => Cell::toned(xdp, Tone::Good),
            None => Cell::toned("none", Tone::Bad),
        };
        table.row([Cell::from(&one.name), index, xdp, Cell::from(&one.wanted)]);
    }
    table
}

pub(super) fn count(count: FlowCount) -> Table {
    let mut table = Table::new(&["Flows"]);
    table.row([count.flows.into()]);
    table
}

pub(super) fn flows(flows: &[FlowView]) -> Table {
    let mut table = Table::new(&["Protocol", "Client", "Frontend", "Backend"]);
    for one in flows {
        let backend = match &one.backend {
            Some(backend) => backend.into(),
            None => Cell::toned("gone", Tone::Warning),
        };
        table.row([(&one.protocol).into(), (&one.client).into(), (&one.frontend).into(), backend]);
    }
    table
}

/// What of kube-proxy's work is done, in the lines of `cilium status --verbose`.
pub(super) fn replacement(view: &ReplacementView) -> String {
    let state = |one: &FeatureView| {
        let on = if one.enabled { "Enabled" } else { "Disabled" };
        match &one.detail {
            Some(detail) => format!("{on} ({detail})"),
            None => on.to_owned(),
        }
    };
    let mut text = "\nKubeProxyReplacement Details:\n".to_owned();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {:<23} {value}", format!("{name}:"));
    };
    line("Status", &view.status);
    line("Socket LB", &state(&view.socket_lb));
    line("Socket LB Coverage", &view.coverage);
    line("Devices", &view.devices.join(", "));
    line("Mode", &view.mode);
    line("Backend Selection", "Maglev");
    line("Session Affinity", "Enabled");
    line("Graceful Termination", "Enabled");
    line("XDP Acceleration", &view.xdp_acceleration);
    line("Services", "");
    for one in &view.services {
        let _ = writeln!(text, "  - {:<15} {}", format!("{}:", one.name), state(one));
    }
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

pub(super) fn status(status: &StatusView, health: &HealthView) -> Table {
    let mut table = Table::new(&["What", "State", "Detail"]);
    let frontends = format!(
        "{}, {} refused, {} in handover",
        status.frontends, status.refused, status.handovers
    );
    let backends = format!("{}, {} unreachable", status.backends, status.unreachable);
    let arena = format!("{} of {} words", status.arena_used, status.arena_size);
    let full = if status.flows.full { ", full: the oldest give way" } else { "" };
    let flows = format!("{} of {}{full}", status.flows.used, status.flows.size);
    for (what, detail) in [
        ("version", status.version.clone()),
        ("started", status.started.clone()),
        ("services", status.services.to_string()),
        ("frontends", frontends),
        ("backends", backends),
        ("devices", status.devices.to_string()),
        ("Maglev tables", arena),
        ("recorded flows", flows),
    ] {
        table.row([what.into(), Cell::default(), detail.into()]);
    }
    for ClusterServer { url, learnt, in_use, error } in &status.api_servers {
        let state = match (in_use, error) {
            (true, None) => Cell::toned("in use", Tone::Good),
            (true, Some(_)) => Cell::toned("in use", Tone::Warning),
            (false, None) => "known".into(),
            (false, Some(_)) => Cell::toned("failed", Tone::Bad),
        };
        let origin = if *learnt { " (told by the cluster)" } else { "" };
        let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        table.row(["API server".into(), state, format!("{url}{origin}{error}").into()]);
    }
    for check in &health.checks {
        let state = match check.state {
            HealthState::Ok => Cell::toned("ok", Tone::Good),
            HealthState::Degraded => Cell::toned("degraded", Tone::Bad),
        };
        let mut lines = check.detail.lines();
        let first = lines.next().unwrap_or_default();
        table.row([format!("check: {}", check.name).into(), state, first.into()]);
        for line in lines {
            table.row([Cell::default(), Cell::default(), line.into()]);
        }
    }
    table
}
