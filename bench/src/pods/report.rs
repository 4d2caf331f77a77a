//! What was measured, for people.

use std::fmt::Write as _;

use super::{Figures, MapMemory, Row, median};

/// The figures as a table.
pub fn text(figures: &Figures) -> String {
    let scale = &figures.scale;
    let lookup = median(&figures.lookup);
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{args}");
    };
    line(format_args!(
        "ns a packet, each a test run of its own; over {} loads of {} turns of {} packets",
        scale.loads, scale.turns, scale.packets
    ));
    line(format_args!(
        "{:<40} {:>7} {:>12} {:>7} {:>7} {:>9}",
        "case", "floor", "above floor", "min", "max", "look-ups"
    ));
    for Row { name, floor, above } in &figures.rows {
        let (least, most) = range(above);
        let (floor, above) = (median(floor), median(above));
        let units = if lookup > 0.0 { format!("{:.1}", above / lookup) } else { "?".to_owned() };
        line(format_args!(
            "{name:<40} {floor:>7.0} {above:>12.0} {least:>7.0} {most:>7.0} {units:>9}"
        ));
    }
    let (least, most) = range(&figures.lookup);
    line(format_args!("a hash look-up: {lookup:.0} ns ({least:.0} to {most:.0})"));
    text
}

/// What maps take with room for so many flows each.
pub fn memory_text(flows: u32, maps: &[MapMemory]) -> String {
    let mut text = format!("memory of maps with room for {flows} flows\n");
    for MapMemory { map, bytes } in maps {
        let (megabytes, each) = (*bytes as f64 / 1e6, *bytes as f64 / f64::from(flows));
        let _ = writeln!(text, "{map:<16} {megabytes:>8.1} MB {each:>6.0} bytes a flow");
    }
    text
}

fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().min_by(f64::total_cmp);
    let most = values.iter().copied().max_by(f64::total_cmp);
    (least.unwrap_or_default(), most.unwrap_or_default())
}
