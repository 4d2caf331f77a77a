//! Keeps the resilience bench alive, on a small scale, and its figures honest.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use xdp_lb_bench::resilience::{Figure, Scale, csv, measure, svg, text};

fn small() -> Figure {
    let scale = Scale {
        backends: 50,
        sizes: vec![4093],
        flow_size: 4093,
        failures: vec![0, 1, 5],
        seeds: 3,
        flows: 3000,
    };
    measure(&scale).unwrap()
}

#[test]
fn flows_move_as_slots_do_and_not_at_all_with_a_handover() {
    let figure = small();
    let [slots, without, with] = &figure.curves[..] else { panic!("{:?}", figure.curves) };
    for curve in [slots, without, with] {
        assert_eq!(curve.points[0].max, 0.0, "{}: without a failure nothing moves", curve.name);
    }
    for at in [1, 2] {
        let (slots, without) = (slots.points[at], without.points[at]);
        assert!(slots.min > 0.0 && slots.max < 0.2, "{slots:?}");
        assert!(slots.min <= slots.mean && slots.mean <= slots.max, "{slots:?}");
        // 9000 flows are a sample of the same tables' slots.
        assert!((slots.mean - without.mean).abs() < 0.3 * slots.mean, "{slots:?} {without:?}");
        assert_eq!(with.points[at].max, 0.0, "a handover keeps every flow");
    }
    assert!(slots.points[1].mean < slots.points[2].mean, "more failures move more");
}

#[test]
fn every_curve_is_in_every_report() {
    let figure = small();
    let (text, csv, svg) = (text(&figure), csv(&figure), svg(&figure));
    for curve in &figure.curves {
        assert!(text.contains(&curve.name), "{text}");
        assert_eq!(csv.matches(&format!("\"{}\",50,", curve.name)).count(), 3, "{csv}");
        assert!(svg.contains(&format!(">{}</text>", curve.name)), "{svg}");
    }
    assert_eq!(text.lines().count(), 2 + 3);
    assert_eq!(svg.matches("<polyline").count(), 3);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
