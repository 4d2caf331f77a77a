//! The page over states that are made up: what is on it, and that its size has bounds.

use std::collections::BTreeMap;

use xdp_lb_abi::{Reason, Traffic};
use xdp_lb_api::view::{
    BackendHealth, BackendState, BackendView, FrontendBackend, FrontendState, FrontendView, Owner,
    Phase, State,
};

use super::{
    choice::{Choice, PER_BACKEND, PER_FRONTEND, PER_MEMBER, PER_SERVICE, choose},
    describe::{self, Counted},
    page::{Page, tests::text},
};
use crate::config::MetricsConfig;

/// Services of one frontend each, with the same so many backends.
fn state(services: u8, backends: u8) -> State {
    let mut state = State::default();
    for s in 0..services {
        let service = format!("s{s}");
        let member = |b: u8| FrontendBackend {
            id: Some(u32::from(b) + 1),
            backend: format!("10.0.0.{b}:80"),
            state: BackendState::Active,
        };
        let frontend = FrontendView {
            policy: None,
            id: Some(u32::from(s) + 1),
            frontend: format!("203.0.113.{s}:80/TCP"),
            kind: "LoadBalancer".to_owned(),
            service: service.clone(),
            owner: Owner::File,
            mode: "l2".to_owned(),
            state: FrontendState::Served,
            reason: None,
            phase: Some(Phase::Rest),
            table_size: 1,
            backends: (0..backends).map(member).collect(),
        };
        state.frontends.insert(frontend.frontend.clone(), frontend);
        for b in 0..backends {
            let view = BackendView {
                removing: false,
                flows: 0,
                service: service.clone(),
                owner: Owner::File,
                // Declared without its port.
                backend: format!("10.0.0.{b}"),
                weight: 1,
                drained: false,
                state: if b == 0 { BackendState::Down } else { BackendState::Active },
                reason: None,
                health: Some(BackendHealth { changes: 3, ..BackendHealth::default() }),
            };
            state.backends.insert((service.clone(), view.backend.clone()), view);
        }
    }
    state
}

fn page(state: &State, choice: &Choice<'_>) -> String {
    let traffic = |n: usize| Traffic { packets: n as u64, bytes: 10, flows: 1 };
    let counted = Counted {
        frontends: (0..choice.frontends.len()).map(traffic).collect(),
        backends: (0..choice.backends.len()).map(traffic).collect(),
        reasons: vec![(Reason::NotIp, traffic(5))],
        calls: vec![],
    };
    let mut page = Page::default();
    describe::traffic(&mut page, choice, &counted, &BTreeMap::new());
    describe::states(&mut page, state, choice);
    text(page)
}

/// Series with a frontend, a service or a backend in their labels.
fn bounded(page: &str) -> u32 {
    let named = |line: &&str| {
        ["frontend=", "service=", "backend="].iter().any(|label| line.contains(label))
    };
    page.lines().filter(|line| !line.starts_with('#')).filter(named).count() as u32
}

#[test]
fn there_are_never_more_series_than_configured_and_what_is_missing_is_counted() {
    let state = state(3, 5);
    let whole = 3 * PER_FRONTEND + 3 * PER_SERVICE + 5 * PER_BACKEND + 15 * PER_MEMBER;
    for max_series in 0..whole + 10 {
        let choice = choose(&state, MetricsConfig { per_backend: true, max_series });
        let page = page(&state, &choice);
        let count = bounded(&page);
        assert!(count <= max_series, "{count} of {max_series}:\n{page}");
        let there = choice.frontends.len() + choice.services.len() + choice.backends.len();
        let missing: u64 = choice.left_out.iter().sum();
        assert_eq!(there as u64 + missing, 11, "with {max_series}");
        for (kind, count) in ["frontend", "service", "backend"].into_iter().zip(choice.left_out) {
            let line = format!("xdp_lb_metrics_left_out{{kind=\"{kind}\"}} {count}\n");
            assert!(page.contains(&line), "{line} in {page}");
        }
        if max_series >= whole {
            assert_eq!((count, missing), (whole, 0));
        }
    }
}

#[test]
fn without_series_for_backends_there_are_none() {
    let state = state(2, 3);
    let choice = choose(&state, MetricsConfig { per_backend: false, max_series: 1000 });
    let page = page(&state, &choice);
    assert!(!page.contains("backend=\""), "{page}");
    assert_eq!(choice.left_out, [0, 0, 3]);
    assert!(page.contains("xdp_lb_service_backends{service=\"s1\",state=\"down\"} 1\n"), "{page}");
}

#[test]
fn what_is_added_takes_no_others_series() {
    let config = MetricsConfig { per_backend: true, max_series: 10 };
    let mut state = state(2, 0);
    let before: Vec<String> =
        choose(&state, config).frontends.iter().map(|one| one.frontend.clone()).collect();
    // Its name comes first, its number last.
    let mut new = state.frontends["203.0.113.0:80/TCP"].clone();
    (new.frontend, new.id) = ("1.1.1.1:80/TCP".to_owned(), Some(9));
    state.frontends.insert(new.frontend.clone(), new);
    let after: Vec<String> =
        choose(&state, config).frontends.iter().map(|one| one.frontend.clone()).collect();
    assert_eq!(before, after);
}

#[test]
fn backends_are_named_alike_however_their_service_declares_them() {
    let state = state(1, 2);
    let choice = choose(&state, MetricsConfig::default());
    let page = page(&state, &choice);
    for line in [
        "xdp_lb_frontend_packets_total{frontend=\"203.0.113.0:80/TCP\",service=\"s0\"} 0",
        "xdp_lb_frontend_bytes_total{frontend=\"203.0.113.0:80/TCP\",service=\"s0\"} 10",
        "xdp_lb_backend_new_flows_total{backend=\"10.0.0.1:80\",protocol=\"TCP\"} 1",
        "xdp_lb_backend_up{service=\"s0\",backend=\"10.0.0.1:80\",protocol=\"TCP\"} 1",
        "xdp_lb_backend_health_changes_total{service=\"s0\",backend=\"10.0.0.1:80\",protocol=\"TCP\"} 3",
        "xdp_lb_reason_packets_total{reason=\"not_ip\",disposition=\"pass\"} 5",
        "xdp_lb_frontend_phases{phase=\"rest\"} 1",
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} in {page}");
    }
}
