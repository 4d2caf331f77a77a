//! The metrics of a daemon that serves, and what Grafana and Prometheus are told to make of them.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod promql;

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use serde_json::{Value, json};
use xdp_lb::config::yaml_to_json;
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, binary, config, near, network, vip_at, wait_until, without_root,
};

const WEB: SocketAddr = SocketAddr::new(V4, 80);

/// The page, in the format of this media type.
fn page(daemon: &Daemon, accept: &str) -> String {
    wait_until("the API is served", || daemon.socket().exists());
    let output = Command::new("curl")
        .args(["-sS", "--fail-with-body", "-H", &format!("Accept: {accept}"), "--unix-socket"])
        .arg(daemon.socket())
        .arg("http://localhost/metrics")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The value of a sample; `sample` is its name with its labels.
fn value(page: &str, sample: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {sample} in {page}")).parse().unwrap()
}

fn document(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../docs/monitoring").join(name)
}

/// All values under a key, wherever they are.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                if name == key {
                    found.extend(value.as_str());
                }
                under(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| under(item, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Grafana puts these in before it asks.
fn without_variables(expression: &str) -> String {
    expression.replace("$__rate_interval", "5m").replace("$instance", "x").replace("$service", "x")
}

#[test]
fn the_page_says_what_happened_and_has_all_that_the_dashboard_and_the_alerts_ask_for() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmet", network(3, 0));
    let _servers = net.serve(["b1", "b2"], &[WEB]);
    let _checked = net.serve(["b3"], &[SocketAddr::new(near(3), 80)]);
    let daemon =
        net.balance(&config(&[Service::new("web", "l2").tcp(WEB).backends([near(1), near(2)])]));
    // Health checks have metrics of their own.
    let checked = json!({
        "name": "checked",
        "mode": "snat",
        "frontends": [{"address": WEB.ip(), "port": 8080}],
        "backends": [{"address": near(3), "port": 80}, {"address": near(3), "port": 9}],
        "healthCheck": {"type": "tcp", "interval": "1s", "timeout": "1s"},
    });
    let file = net.scratch().file("checked.json");
    fs::write(&file, checked.to_string()).unwrap();
    wait_until("the API is served", || daemon.socket().exists());
    let applied = Command::new(binary())
        .args(["service", "apply", "-f"])
        .arg(&file)
        .arg("--socket")
        .arg(daemon.socket())
        .status()
        .unwrap();
    assert!(applied.success());
    for port in 20_000..20_020 {
        net.client().ask_each(WEB, port..=port).unwrap();
    }
    let down = "xdp_lb_service_backends{service=\"checked\",state=\"down\"}";
    wait_until("the dead backend is down", || {
        let page = page(&daemon, "text/plain");
        page.contains(&format!("{down} 1\n")) && page.contains("up{service=\"checked\"")
    });

    let page = page(&daemon, "text/plain");
    let frontend = format!("{{frontend=\"{WEB}/TCP\",service=\"web\"}}");
    let stats = daemon.stats();
    let counted = stats.frontends.iter().find(|one| one.frontend == format!("{WEB}/TCP")).unwrap();
    let of = |name: &str| value(&page, &format!("xdp_lb_frontend_{name}_total{frontend}"));
    assert_eq!(of("packets"), counted.packets as f64);
    assert_eq!(of("bytes"), counted.bytes as f64);
    assert_eq!((of("new_flows"), counted.new_flows), (20.0, 20));
    let backend = |n, name: &str| {
        let labels = format!("{{backend=\"{}\",protocol=\"TCP\"}}", SocketAddr::new(near(n), 80));
        value(&page, &format!("xdp_lb_backend_{name}_total{labels}"))
    };
    assert_eq!(backend(1, "packets") + backend(2, "packets"), counted.packets as f64);
    assert_eq!(backend(1, "new_flows") + backend(2, "new_flows"), 20.0);
    let size = |map: &str| value(&page, &format!("xdp_lb_map_max_entries{{map=\"{map}\"}}"));
    assert_eq!((size("FRONTENDS"), size("FLOWS")), (64.0, 65_536.0));
    assert_eq!(value(&page, "xdp_lb_map_entries{map=\"FRONTENDS\"}"), 2.0);
    assert_eq!(value(&page, "xdp_lb_device_attached{device=\"eth0\",mode=\"native\"}"), 1.0);
    assert!(value(&page, "xdp_lb_program_verified_instructions{program=\"xdp_lb\"}") > 1000.0);
    assert!(value(&page, "xdp_lb_sync_duration_seconds_count{step=\"write\"}") >= 2.0);
    assert!(value(&page, "process_resident_memory_bytes") > 1e6);

    let dashboard = fs::read_to_string(document("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let rules = fs::read_to_string(document("alerts.yaml")).unwrap();
    let rules = yaml_to_json(&rules).unwrap();
    let mut expressions = Vec::new();
    under(&dashboard, "expr", &mut expressions);
    under(&rules, "expr", &mut expressions);
    assert!(expressions.len() > 50, "{expressions:?}");
    let (mut wrong, mut asked) = (Vec::new(), String::new());
    for expression in expressions.into_iter().map(without_variables) {
        // Other services and codes are there at other times.
        let missing = promql::missing(&expression, &page, &["service", "code"]);
        wrong.extend(missing.into_iter().map(|one| format!("{one}: {expression}")));
        asked.push_str(&expression);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // And what nobody looks at need not be served.
    for name in promql::samples(&page).into_keys().filter(|name| name.starts_with("xdp_lb_")) {
        let base = name.trim_end_matches("_sum").trim_end_matches("_count");
        assert!(asked.contains(base), "{name} is on no panel and in no alert");
    }
}

#[test]
fn what_is_left_out_is_counted_and_said() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmeb", network(2, 0));
    let services =
        [Service::new("a", "l2").tcp(WEB).tcp(vip_at(WEB.ip(), 81)).backends([near(1), near(2)])];
    let text = config(&services);
    let mut daemon =
        net.balance(&format!("{text}\nmetrics: {{perBackend: false, maxSeries: 9}}\n"));
    let page = page(&daemon, "application/openmetrics-text");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let left_out = |kind| value(&page, &format!("xdp_lb_metrics_left_out{{kind=\"{kind}\"}}"));
    assert_eq!((left_out("frontend"), left_out("service"), left_out("backend")), (0.0, 1.0, 4.0));
    assert!(!page.contains("backend=\""), "{page}");
    daemon.wait_for(0, "raise metrics.maxSeries");
}
