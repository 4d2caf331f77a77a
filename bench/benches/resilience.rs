//! The Maglev paper's resilience figure for our tables, and for our handover: a table on standard
//! output, and `resilience.svg` and `resilience.csv` in `target/bench/`.

use std::{error::Error, fs, io::Write as _, path::Path};

use xdp_lb_bench::resilience::{Scale, csv, measure, svg, text};

fn main() -> Result<(), Box<dyn Error>> {
    let figure = measure(&Scale {
        backends: 1000,
        sizes: vec![16_381, 65_537, 131_071],
        flow_size: 65_537,
        failures: vec![1, 2, 5, 10, 15, 20, 25, 30, 40, 50],
        seeds: 10,
        flows: 50_000,
    })?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&directory)?;
    let picture = directory.join("resilience.svg");
    fs::write(&picture, svg(&figure))?;
    fs::write(picture.with_extension("csv"), csv(&figure))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}\nThe picture: {}", text(&figure), picture.display())?;
    Ok(())
}
