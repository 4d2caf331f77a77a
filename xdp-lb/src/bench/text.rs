//! A report for people.

use std::fmt::Write as _;

use xdp_lb_api::benchmark::{Case, Machine, Report};

/// The report as tables.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write_report(&mut text, report);
    text
}

fn write_report(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "{}", place(&report.machine))?;
    writeln!(
        text,
        "ns a packet: median, least and most of {} loads, {} turns of {} packets each",
        report.method.loads, report.method.turns, report.method.packets
    )?;
    writeln!(
        text,
        "{:<44} {:>7} {:>7} {:>7} {:>7} {:>9} {:>7}",
        "case", "median", "min", "max", "above", "look-ups", "Mpps"
    )?;
    for Case { name, median_ns, min_ns, max_ns, above_floor_ns, hash_lookups, mpps, .. } in
        report.floors.iter().chain(&report.cases)
    {
        writeln!(
            text,
            "{name:<44} {median_ns:>7.1} {min_ns:>7.1} {max_ns:>7.1} {above_floor_ns:>7.1} \
             {hash_lookups:>9.2} {mpps:>7.2}"
        )?;
    }
    writeln!(text, "one look-up in a hash map: {} ns", report.hash_lookup_ns)?;
    if !report.control_plane.is_empty() {
        writeln!(
            text,
            "\n{:<44} {:>9} {:>9} {:>9} {:>9}",
            "control plane, ms", "median", "min", "max", "MB"
        )?;
        for one in &report.control_plane {
            let size =
                one.bytes.map_or(String::new(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
            let (name, median, min, max) = (&one.name, one.median_ms, one.min_ms, one.max_ms);
            writeln!(text, "{name:<44} {median:>9.3} {min:>9.3} {max:>9.3} {size:>9}")?;
        }
    }
    if report.paths.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n{:<30} {:>9} {:>6} {:>7}  {:>24}  {:>24} {:>6} {:>9}",
        "whole path",
        "delivered",
        "of",
        "CPU",
        "connect us 50/99/99.9 %",
        "request us 50/99/99.9 %",
        "call",
        "change"
    )?;
    for one in &report.paths {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let three = |values: [Option<f64>; 3]| values.map(|value| number(value, 0)).join("/");
        let kpps = one.delivered_pps.map(|pps| pps / 1000.0);
        let percent = one.delivered.map(|share| share * 100.0);
        writeln!(
            text,
            "{:<30} {:>9} {:>6} {:>7}  {:>24}  {:>24} {:>6} {:>9}",
            one.name,
            number(kpps, 1),
            number(percent, 1),
            number(one.cpu_ns, 0),
            three([one.connect_p50_us, one.connect_p99_us, one.connect_p999_us]),
            three([one.request_p50_us, one.request_p99_us, one.request_p999_us]),
            number(one.call_ns, 0),
            number(one.change_ms, 1),
        )?;
    }
    writeln!(
        text,
        "delivered: 1000 packets a second at the sink, and percent of those sent; CPU: ns a packet; \
         call: ns of connect() of a UDP socket; change: ms"
    )
}

/// Where it was measured, in a line.
pub(super) fn place(machine: &Machine) -> String {
    let virtual_machine = if machine.virtual_machine { ", virtual machine" } else { "" };
    let jit = if machine.jit { "JIT" } else { "no JIT" };
    format!(
        "{}, {} CPUs{virtual_machine}; Linux {}, {jit}; load {}; {}",
        machine.cpu,
        machine.cpus,
        machine.kernel,
        machine.load,
        machine.mitigations.join("; ")
    )
}
