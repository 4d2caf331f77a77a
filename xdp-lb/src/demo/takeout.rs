//! A backend is taken out of a service while connections are open.

use std::{
    io::Write,
    net::SocketAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{
    DemoError,
    network::{self, BALANCER, Change, Host, NEAR, PORT, SERVICES, Service},
    report::{Report, Side, Table, number},
    stage::Stage,
};
use crate::{lab::Held, stats::Stats};

/// Client ports of the connections that are held, to each frontend.
const HELD: RangeInclusive<u16> = 30_000..=30_029;
/// How many new connections each step makes to each frontend, from ports of its own.
const NEW: u16 = 150;

/// Once so many connections of those that should go on have not, no more are tried.
const SILENT: usize = 3;

/// A connection that is held, and who serves it.
#[derive(Debug)]
struct Open {
    connection: Held,
    backend: String,
}

/// What was seen after one change.
#[derive(Debug)]
struct Seen {
    /// Held connections to the other backends: those that went on, and all
    others: (usize, usize),
    /// The same of the backend that changes
    own: (usize, usize),
    /// New connections that it served, and all that were answered
    new: (usize, usize),
}

/// The section.
pub(super) fn report<W: Write>(report: &mut Report<W>, stage: &mut Stage) -> Result<(), DemoError> {
    let [service, ..] = SERVICES;
    let [_, out, _] = NEAR;
    report.section("A backend is taken out")?;
    let client = stage.client()?;
    let mut open = Vec::new();
    for frontend in service.frontends() {
        for mut connection in client.hold_each(frontend, HELD)? {
            let backend = connection.ask()?.backend;
            open.push(Open { connection, backend });
        }
    }
    report.text(&format!(
        "{} connections to {} are held open, over IPv4 and IPv6. Then {} is rewritten, three \
         times; the daemon finds out by itself.",
        open.len(),
        service.name,
        stage.places.config(BALANCER).display()
    ))?;
    report.gap()?;

    let mut table = Table::new(&[
        ("change", Side::Left),
        ("in force after", Side::Right),
        ("others' connections", Side::Right),
        ("its own", Side::Right),
        ("new ones to it", Side::Right),
    ]);
    let steps = [
        (Change::Drained(out), format!("{}: weight 0", out.node)),
        (Change::Removed(out), format!("{}: removed", out.node)),
        (Change::None, format!("{}: put back", out.node)),
    ];
    let mut all = Vec::new();
    for (number, (change, name)) in (1_u16..).zip(&steps) {
        let took = apply(stage, &service, out, *change)?;
        let ports = HELD.end() + number * NEW..=HELD.end() + number * NEW + NEW - 1;
        let seen = look(stage, &service, out, &mut open, ports)?;
        let of = |(part, whole): (usize, usize)| match whole {
            0 => "none left".to_owned(),
            _ => format!("{part} of {whole}"),
        };
        table.row([
            name,
            &format!("{:.1} s", took.as_secs_f64()),
            &of(seen.others),
            &of(seen.own),
            &of(seen.new),
        ]);
        all.push(seen);
    }
    report.table(&table)?;
    report.gap()?;
    claims(report, out, &all)
}

fn claims<W: Write>(report: &mut Report<W>, out: Host, all: &[Seen]) -> Result<(), DemoError> {
    let [drained, removed, back] = all else { return Ok(()) };
    let node = out.node;
    let expected = 2 * usize::from(NEW);
    report.check(
        drained.own.0 == drained.own.1 && drained.own.1 > 0 && drained.others.0 == drained.others.1,
        &format!(
            "weight 0: connections to {node} itself went on, {} of {}, and so did {} of {} to the \
             others",
            drained.own.0, drained.own.1, drained.others.0, drained.others.1
        ),
    )?;
    report.check(
        removed.others.0 == removed.others.1 && removed.others.1 > 0,
        &format!(
            "removed: connections to the other backends went on, {} of {}",
            removed.others.0, removed.others.1
        ),
    )?;
    report.check(
        drained.new == (0, expected) && removed.new == (0, expected),
        &format!(
            "{} of {} new connections went to {node} while it was out, and all were answered",
            drained.new.0 + removed.new.0,
            number(drained.new.1 + removed.new.1)
        ),
    )?;
    report.check(
        back.others.0 == back.others.1 && back.new.0 > 0 && back.new.1 == expected,
        &format!(
            "put back: {} of {} new connections went to {node}, and {} of {} old ones to the \
             others went on",
            back.new.0, back.new.1, back.others.0, back.others.1
        ),
    )?;
    Ok(())
}

/// Rewrites the file and waits until the tables say the same.
fn apply(
    stage: &mut Stage,
    service: &Service,
    out: Host,
    change: Change,
) -> Result<Duration, DemoError> {
    let started = Instant::now();
    stage.configure(BALANCER, &network::balancer(change))?;
    stage.wait_for("the daemon to take the new configuration", |stage| {
        let stats = stage.stats(BALANCER).ok()?;
        let there = service.frontends().map(|one| state(&stats, service, one, out));
        let want = match change {
            Change::None => State::Serves,
            Change::Drained(_) => State::Drained,
            Change::Removed(_) => State::Gone,
        };
        (there == [want, want]).then_some(())
    })?;
    Ok(started.elapsed())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Serves,
    Drained,
    Gone,
}

/// How a backend stands in a frontend's tables.
fn state(stats: &Stats, service: &Service, frontend: SocketAddr, host: Host) -> State {
    let name = format!("{frontend}/TCP");
    let backend = SocketAddr::new(service.address(&host), PORT).to_string();
    let mut shares = stats
        .frontends
        .iter()
        .filter(|one| one.frontend == name)
        .flat_map(|one| &one.backends)
        .filter(|one| one.backend == backend);
    match shares.next().map(|one| one.slots) {
        None => State::Gone,
        Some(0) => State::Drained,
        Some(_) => State::Serves,
    }
}

/// Asks on all connections that are held, and on new ones.
fn look(
    stage: &Stage,
    service: &Service,
    out: Host,
    open: &mut Vec<Open>,
    ports: RangeInclusive<u16>,
) -> Result<Seen, DemoError> {
    let mut seen = Seen { others: (0, 0), own: (0, 0), new: (0, 0) };
    // One that has ended is not asked again.
    open.retain_mut(|one| {
        let count = if one.backend == out.node { &mut seen.own } else { &mut seen.others };
        // Silence takes long, and some of it is enough.
        let went_on = count.1 - count.0 < SILENT || one.backend == out.node;
        let went_on =
            went_on && one.connection.ask().is_ok_and(|answer| answer.backend == one.backend);
        count.0 += usize::from(went_on);
        count.1 += 1;
        went_on
    });
    for frontend in service.frontends() {
        for outcome in stage.ask_each(frontend, ports.clone())? {
            if let Ok(answer) = outcome.answer {
                seen.new.0 += usize::from(answer.backend == out.node);
                seen.new.1 += 1;
            }
        }
    }
    Ok(seen)
}
