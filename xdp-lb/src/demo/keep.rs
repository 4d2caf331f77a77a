//! What to do in a lab that stays up.

use std::{env, io::Write, net::SocketAddr};

use super::{
    DemoError,
    network::{self, BALANCER, BALANCER_PORT, FAR, NEAR, PORT, SERVICES, SWITCH},
    report::Report,
    stage::Stage,
};

/// The section.
pub(super) fn report<W: Write>(
    report: &mut Report<W>,
    stage: &Stage,
    prefix: &str,
) -> Result<(), DemoError> {
    let program = env::current_exe().map_err(DemoError::Program)?;
    let program = program.display();
    let [web, api, api6] = SERVICES.map(|service| service.frontends());
    let [b1, ..] = NEAR;
    let [t1, ..] = FAR;
    let inside = |node: &str| format!("ip netns exec {prefix}-{node}");
    let curl = |[v4, v6]: [SocketAddr; 2]| {
        let inside = inside("client");
        format!("{inside} curl -s 'http://{}/' 'http://[{}]/'", v4.ip(), v6.ip())
    };
    let config = stage.places.config(BALANCER);
    let pins = stage.places.pins(BALANCER);
    let log = stage.places.log(BALANCER);
    let clean = if prefix == super::PREFIX { String::new() } else { format!(" --prefix {prefix}") };
    let router = inside("router");
    let (near, far) = (network::near_device(), network::far_device());
    let tunnels = "'ip proto 4 or ip proto 41 or ip6 proto 4 or ip6 proto 41'";
    let blocks = [
        ("Ask each service", vec![curl(web), curl(api), curl(api6)]),
        (
            "Watch the router, and the balancer's wire: at the switch, since what XDP sends back \
             passes no capture on its own device",
            vec![
                format!("{router} tcpdump -nei {near} tcp"),
                format!("{} tcpdump -nei {BALANCER_PORT}", inside(SWITCH)),
            ],
        ),
        (
            "Watch backends: packets in tunnels on the router, unwrapped on t1",
            vec![
                format!("{} tcpdump -ni eth0 port {PORT}", inside(b1.node)),
                format!("{router} tcpdump -ni {far} {tunnels}"),
                format!("{} tcpdump -ni eth0 port {PORT}", inside(t1.node)),
            ],
        ),
        (
            "See counters, shares and next hops",
            vec![format!("{program} stats --pin-dir {}", pins.display())],
        ),
        (
            "Change the services: the daemon looks at its file every second, and logs",
            vec![
                format!("${{EDITOR:-vi}} {}", config.display()),
                format!("tail {}", log.display()),
            ],
        ),
        ("Remove it all", vec![format!("{program} demo --clean{clean}")]),
    ];
    report.section("The lab stays up")?;
    for (title, commands) in blocks {
        report.text(&format!("{title}:"))?;
        report.commands(&commands)?;
    }
    Ok(())
}
