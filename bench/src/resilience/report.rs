//! The figure's numbers, for readers and for programs.

use std::fmt::Write as _;

use super::Figure;

/// A table: a line for each number of failed backends, mean and range in per cent for each curve.
pub fn text(figure: &Figure) -> String {
    let scale = &figure.scale;
    let mut text = format!(
        "Moved although their backend is still there, in % (mean, min-max), {} backends, {} seeds\n",
        scale.backends, scale.seeds
    );
    let widths: Vec<usize> = figure.curves.iter().map(|one| one.name.len().max(20)).collect();
    text.push_str("failed");
    for (curve, width) in figure.curves.iter().zip(&widths) {
        text.push_str(&format!("  {:>width$}", curve.name));
    }
    text.push('\n');
    for (at, failed) in scale.failures.iter().enumerate() {
        text.push_str(&format!("{failed:>6}"));
        for (curve, width) in figure.curves.iter().zip(&widths) {
            let [min, mean, max] = curve.points[at].percent();
            let cell = format!("{mean:.3} ({min:.3}-{max:.3})");
            text.push_str(&format!("  {cell:>width$}"));
        }
        text.push('\n');
    }
    text
}

/// Comma-separated values: curve, backends, failed, seeds, and the shares (0 to 1) min, mean, max.
pub fn csv(figure: &Figure) -> String {
    let scale = &figure.scale;
    let mut csv = String::from("curve,backends,failed,seeds,min,mean,max\n");
    for curve in &figure.curves {
        // Names hold commas.
        for (failed, point) in scale.failures.iter().zip(&curve.points) {
            // Writing to a String does not fail.
            let _ = writeln!(
                csv,
                "\"{}\",{},{failed},{},{:.6},{:.6},{:.6}",
                curve.name, scale.backends, scale.seeds, point.min, point.mean, point.max
            );
        }
    }
    csv
}
