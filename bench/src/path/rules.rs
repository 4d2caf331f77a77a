//! nftables rules of the kind that kube-proxy writes: one verdict map from address, protocol and port
//! to a chain for each service, a random choice among a chain for each endpoint, DNAT, masquerade.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::SocketAddr,
    ops::Range,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use xdp_lb::{bench::Sample, lab::Lab};

use super::{ATTEMPT, ENDPOINTS, Error, PORT, VIP, address, endpoints, latency};

const TABLE: &str = "xlbbench";
/// Services of one file of rules.
const BATCH: u32 = 500;
/// How long a change may take to show.
const PATIENCE: Duration = Duration::from_secs(60);
const IN_A_ROW: u32 = 3;
const TURN: Duration = Duration::from_micros(200);

/// Whether the program is here.
pub(super) fn has_nft() -> bool {
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    quiet(Command::new("nft").arg("--version")).is_ok_and(|status| status.success())
}

/// Puts so many services into the balancer, some at a time: what nft does for one file grows with the
/// square of its length.
pub(super) fn install(lab: &Lab, services: u32) -> Result<(), Error> {
    nft(
        lab,
        &format!(
            "add table ip {TABLE}\n\
             add map ip {TABLE} services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n"
        ),
    )?;
    let mut first = 0;
    while first < services {
        let end = services.min(first + BATCH);
        nft(lab, &rules(first..end))?;
        first = end;
    }
    nft(
        lab,
        &format!(
            "add chain ip {TABLE} nat-prerouting {{ type nat hook prerouting priority dstnat; }}\n\
             add rule ip {TABLE} nat-prerouting ip daddr . meta l4proto . th dport vmap @services\n\
             add chain ip {TABLE} nat-output {{ type nat hook output priority -100; }}\n\
             add rule ip {TABLE} nat-output ip daddr . meta l4proto . th dport vmap @services\n\
             add chain ip {TABLE} nat-postrouting {{ type nat hook postrouting priority srcnat; }}\n\
             add rule ip {TABLE} nat-postrouting meta mark and 0x4000 != 0 masquerade fully-random\n"
        ),
    )
}

/// Takes them out again.
pub(super) fn remove(lab: &Lab) -> Result<(), Error> {
    nft(lab, &format!("delete table ip {TABLE}\n"))
}

fn rules(services: Range<u32>) -> String {
    let mut text = String::new();
    let mut map = String::new();
    for service in services {
        let mut choice = String::new();
        for (number, endpoint) in endpoints(service).enumerate() {
            let chain = format!("endpoint-{service}-{number}");
            for protocol in ["tcp", "udp"] {
                let _ = writeln!(
                    text,
                    "add chain ip {TABLE} {chain}-{protocol}\n\
                     add rule ip {TABLE} {chain}-{protocol} meta l4proto {protocol} dnat to {endpoint}:{PORT}"
                );
            }
            let _ = write!(choice, "{number} : goto {chain}-PROTOCOL, ");
        }
        for protocol in ["tcp", "udp"] {
            let (ip, chain) = (address(service), format!("service-{service}-{protocol}"));
            let _ = writeln!(
                text,
                "add chain ip {TABLE} {chain}\n\
                 add rule ip {TABLE} {chain} meta mark set meta mark or 0x4000\n\
                 add rule ip {TABLE} {chain} numgen random mod {ENDPOINTS} vmap {{ {} }}",
                choice.replace("PROTOCOL", protocol)
            );
            let _ = write!(map, "{ip} . {protocol} . {PORT} : goto {chain}, ");
        }
    }
    let _ = writeln!(text, "add element ip {TABLE} services {{ {map} }}");
    text
}

/// Milliseconds from an endpoint's change to its effect on new connections: median of so many. The
/// service's chain is replaced by one that refuses, and by the former.
pub(super) fn change(lab: &Lab, times: u32) -> Result<f64, Error> {
    let mut sample = Sample::default();
    let chain = "service-0-tcp";
    for _ in 0..times {
        let refuse = format!("insert rule ip {TABLE} {chain} reject with tcp reset\n");
        let began = Instant::now();
        nft(lab, &refuse)?;
        let shown = wait(lab, false)?;
        sample.push((shown - began).as_secs_f64() * 1e3);
        let mut service = String::new();
        for number in 0..ENDPOINTS {
            let _ = write!(service, "{number} : goto endpoint-0-{number}-tcp, ");
        }
        let rules = format!(
            "flush chain ip {TABLE} {chain}\n\
             add rule ip {TABLE} {chain} meta mark set meta mark or 0x4000\n\
             add rule ip {TABLE} {chain} numgen random mod {ENDPOINTS} vmap {{ {service} }}\n"
        );
        nft(lab, &rules)?;
        wait(lab, true)?;
    }
    Ok(sample.median())
}

/// Waits until connections succeed, or do not any more; when the first attempt began of those that
/// showed it, [`IN_A_ROW`]. A single one may have met what conntrack still knows of its port.
pub(super) fn wait(lab: &Lab, served: bool) -> Result<Instant, Error> {
    let frontend = SocketAddr::from((VIP, PORT));
    let end = Instant::now() + PATIENCE;
    let mut first = None;
    let mut shown = 0;
    lab.ns("client")?.run(|| {
        loop {
            let began = Instant::now();
            if latency::opens(frontend, ATTEMPT)? == served {
                let first = *first.get_or_insert(began);
                shown += 1;
                if shown == IN_A_ROW {
                    return Ok(first);
                }
            } else {
                first = None;
                shown = 0;
            }
            if began > end {
                return Err(Error::Unchanged(PATIENCE.as_secs()));
            }
            thread::sleep(TURN);
        }
    })?
}

fn nft(lab: &Lab, text: &str) -> Result<(), Error> {
    let mut command = lab.ns("balancer")?.command("nft");
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that gives up early says why.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).lines().take(3).collect::<String>();
    Err(Error::Tool { tool: "nft", message })
}
