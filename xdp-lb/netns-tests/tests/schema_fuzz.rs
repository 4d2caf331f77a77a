//! Requests that the served OpenAPI document describes, and others, made up by schemathesis (PyPI): the
//! daemon answers each as the document says, and never with a fault of its own.
//!
//! `XDP_LB_FUZZ_SECONDS` says how long, 30 where it is not set.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use xdp_lb_netns_tests::{Net, Service, V4, config, near, network, without_root};

const VERSION: &str = "4.32.5";
/// How long installing it may take.
const PATIENCE: Duration = Duration::from_secs(120);
const LISTEN: &str = "127.0.0.1:9870";

/// Runs a command to its end, within bounds; what went wrong.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{shown}: {error}"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().unwrap() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{shown}: {status}")),
            None if Instant::now() > end => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err(format!("{shown}: not done within {PATIENCE:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The program, installed into a virtual environment beside what cargo builds.
fn schemathesis() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-{VERSION}"));
    let program = place.join("bin/schemathesis");
    let ready = place.join("ready");
    if !ready.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
        let wanted = format!("schemathesis=={VERSION}");
        run(Command::new(place.join("bin/pip"))
            .args(["install", "--quiet", "--timeout", "15", "--retries", "1", "--prefer-binary"])
            .arg(wanted))?;
        run(Command::new(&program).arg("--version"))?;
        std::fs::write(ready, "").unwrap();
    }
    Ok(program)
}

#[test]
fn every_answer_is_one_that_the_document_knows_and_none_is_a_fault() {
    if without_root() {
        return;
    }
    let program = match schemathesis() {
        Ok(program) => program,
        Err(why) => {
            let _ =
                writeln!(std::io::stderr(), "skipped: schemathesis {VERSION} is not here: {why}");
            return;
        }
    };
    let seconds = std::env::var("XDP_LB_FUZZ_SECONDS").unwrap_or_else(|_| "30".to_owned());
    let net = Net::up("xlbnfuz", network(2, 0));
    let web = Service::new("web", "l2").tcp(SocketAddr::new(V4, 80)).backends([near(1), near(2)]);
    let daemon = net.balance(&format!("{}\napi: {{listen: \"{LISTEN}\"}}\n", config(&[web])));
    let mut command = Command::new(program);
    let url = format!("http://{LISTEN}");
    command
        .current_dir(net.scratch().file("").parent().unwrap())
        .args(["run", &format!("{url}/api/v1/openapi.json"), "--url", &url])
        .args(["--wait-for-schema", "10", "--max-time", &seconds])
        // In threads, CPython 3.11 now and then fails in its own parser.
        .args(["--workers", "1"])
        // Below the rate that one address may have, so that not all answers are 429.
        .args(["--rate-limit", "90/s", "--continue-on-failure"])
        .args(["--suppress-health-check", "all", "--no-color", "--warnings", "off"])
        // What breaks rules that a schema cannot tell is refused, and without tokens none is needed.
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance,ignored_auth"])
        // They never end.
        .args(["--exclude-path", "/api/v1/stream", "--exclude-path", "/api/v1/monitor"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut process = net.ns("balancer").spawn(command).unwrap();
    let mut said = String::new();
    let mut stdout = process.child().unwrap().stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut said).unwrap();
    let status = process.child().unwrap().wait().unwrap();
    assert!(status.success(), "{said}");
    let cases = said.lines().find(|line| line.contains("generated"));
    let cases = cases.unwrap_or_else(|| panic!("nothing was tried: {said}"));
    let _ = writeln!(std::io::stderr(), "schemathesis:{cases}");
    // And it goes on as before.
    assert_eq!(daemon.stats().frontends[0].frontend, format!("{}/TCP", SocketAddr::new(V4, 80)));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
