//! The benchmark that a daemon runs beside its data path.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{fs, net::SocketAddr, thread, time::Duration};

use serde_json::{Value, json};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, config, near, network, wait_for, wait_until, without_root,
};

const WEB: SocketAddr = SocketAddr::new(V4, 80);
/// Longer than a small run takes on a machine with other work.
const LONG: Duration = Duration::from_secs(240);

fn daemon(net: &Net) -> Daemon {
    let daemon =
        net.balance(&config(&[Service::new("web", "l2").tcp(WEB).backends([near(1), near(2)])]));
    wait_until("the API is served", || daemon.socket().exists());
    daemon
}

/// The answer to a request: status and body.
fn api(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let client = xdp_lb_api::client::Client::new(daemon.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let method = method.parse().unwrap();
    match runtime.block_on(client.send(method, path, Some(body), &[])) {
        Ok(response) => (response.status.as_u16(), serde_json::from_slice(&response.body).unwrap()),
        Err(xdp_lb_api::client::ClientError::Refused(problem)) => (problem.status, json!(problem)),
        Err(error) => panic!("{error}"),
    }
}

/// The processes of benchmarks that this daemon has started.
fn processes(daemon: &Daemon) -> Vec<u32> {
    let parent = format!("PPid:\t{}\n", daemon.id());
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
        (status.contains(&parent) && line.contains("bench-run")).then_some(id)
    });
    all.collect()
}

#[test]
fn a_run_agrees_with_the_command_and_touches_neither_counters_nor_flows() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnben", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[WEB]);
    let daemon = daemon(&net);
    for _ in 0..20 {
        net.client().ask(WEB, None).unwrap();
    }
    // The last segments of those connections are still on their way.
    thread::sleep(Duration::from_millis(500));
    let counted = || api(&daemon, "GET", "/counters", &json!({})).1;
    let (before, flows) = (counted(), daemon.told_json(&["flow", "count"]));
    let wanted = json!({"scale": "quick", "filter": "ipv4-tcp-l2-rest-1k"});
    let (code, run) = api(&daemon, "POST", "/benchmarks", &wanted);
    assert_eq!((code, &run["state"]), (202, &json!("running")), "{run}");
    let path = format!("/benchmarks/{}", run["id"].as_str().unwrap());

    // Nobody else gets in between, and traffic goes on.
    let (code, problem) = api(&daemon, "POST", "/benchmarks", &json!({}));
    assert_eq!(code, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("benchmark 1 runs"), "{problem}");
    assert_eq!(processes(&daemon).len(), 1);
    let get = || api(&daemon, "GET", &path, &json!({})).1;
    wait_for(LONG, "the run is done", || get()["state"] != "running");
    let run = get();
    assert_eq!((&run["state"], &run["progress"]), (&json!("done"), &json!(1.0)), "{run}");
    assert_eq!(counted()["frontends"], before["frontends"]);
    assert_eq!(counted()["backends"], before["backends"]);
    assert_eq!(daemon.told_json(&["flow", "count"]), flows);
    assert!(processes(&daemon).is_empty());
    assert!(net.client().ask(WEB, None).is_ok());

    // The command measures the same cases by the same method.
    let own = daemon.told_json(&["bench", "--filter", "ipv4-tcp-l2-rest-1k"]);
    let names = |report: &Value| -> Vec<Value> {
        let cases = report["cases"].as_array().unwrap().iter();
        cases.map(|case| case["name"].clone()).collect()
    };
    assert_eq!(names(&own), [json!("ipv4-tcp-l2-rest-1k")]);
    assert_eq!((names(&own), &own["method"]), (names(&run["report"]), &run["report"]["method"]));
    assert_eq!(own["machine"]["kernel"], run["report"]["machine"]["kernel"]);

    // A list has the run without its report; what no case has is refused at once.
    let (_, page) = api(&daemon, "GET", "/benchmarks", &json!({}));
    assert_eq!((&page["total"], page["items"][0].get("report")), (&json!(1), None), "{page}");
    let (code, problem) = api(&daemon, "POST", "/benchmarks", &json!({"filter": "nothing"}));
    assert_eq!(code, 400);
    assert!(problem["detail"].as_str().unwrap().contains("nothing"), "{problem}");
}

#[test]
fn a_run_ends_when_it_is_ended_and_when_the_daemon_ends() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnbec", network(2, 0));
    let daemon = daemon(&net);
    let begin = || {
        let (code, run) = api(&daemon, "POST", "/benchmarks", &json!({"scale": "full"}));
        assert_eq!(code, 202, "{run}");
        wait_until("its process is there", || processes(&daemon).len() == 1);
        (format!("/benchmarks/{}", run["id"].as_str().unwrap()), processes(&daemon)[0])
    };
    let (path, process) = begin();
    let path = format!("{path}/cancel");
    let (code, run) = api(&daemon, "POST", &path, &json!({}));
    assert_eq!((code, &run["state"]), (200, &json!("cancelled")), "{run}");
    assert!(!fs::exists(format!("/proc/{process}")).unwrap(), "it is left");
    let (_, again) = api(&daemon, "POST", &path, &json!({}));
    assert_eq!(again, run, "what has ended stays as it is");

    let (_, process) = begin();
    daemon.kill();
    wait_until("the run ends with the daemon", || {
        let status = fs::read_to_string(format!("/proc/{process}/status"));
        status.is_ok_and(|text| text.contains("State:\tZ"))
            || !fs::exists(format!("/proc/{process}")).unwrap()
    });
}
