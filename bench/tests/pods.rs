//! Keeps the bench of changing packets alive, on a small scale: each packet becomes what its case
//! says, or the measuring fails. Times are not judged.

use std::io::Write as _;

use xdp_lb_bench::pods::{Scale, measure, memory, memory_text, text};

#[test]
fn every_case_is_measured_and_reported() {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: the kernel loads programs for root only");
        return;
    }
    let scale = Scale { loads: 2, turns: 2, packets: 3, answers: vec![1, 64, 256], nat_flows: 64 };
    let figures = measure(&scale).unwrap();
    let text = text(&figures);
    for row in &figures.rows {
        assert_eq!((row.floor.len(), row.above.len()), (2, 2), "{}", row.name);
        assert!(row.floor.iter().all(|floor| *floor > 0.0), "{row:?}");
        assert!(text.contains(&row.name), "{text}");
    }
    assert_eq!(figures.lookup.len(), 2);
    for name in ["local, known flow", "terminate, known flow", "egress: answer"] {
        for flows in [1, 64, 256] {
            let name = format!("{name}, of {flows}");
            assert!(figures.rows.iter().any(|row| row.name == name), "{name}: {text}");
        }
    }
    assert!(figures.rows.iter().any(|row| row.name == "terminate, old record, of 256"), "{text}");
    assert!(figures.rows.iter().any(|row| row.name == "snat, answer, of 64"), "{text}");
}

#[test]
fn more_flows_take_more_memory() {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: the kernel makes maps for root only");
        return;
    }
    let (few, many) = (memory(1000).unwrap(), memory(10_000).unwrap());
    for (few, many) in few.iter().zip(&many) {
        // At least key and value of each.
        assert!(many.bytes >= few.bytes + 9000 * 56, "{few:?} {many:?}");
    }
    assert_eq!(memory_text(1000, &few).lines().count(), 1 + few.len());
}
