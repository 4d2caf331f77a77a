//! Connections that the balancer's own sockets open: those that `socketLB` leads to a backend, beside
//! direct ones, and beside those that rules translate packet by packet.

use std::net::{Ipv4Addr, SocketAddr};

use xdp_lb::lab::Cgroup;
use xdp_lb_api::benchmark::PathCase;

use super::{Bench, Error, PORT, Scale, VIP, config, endpoints, latency};

/// Directly to an endpoint, before anything else is here.
pub(super) fn direct(bench: &Bench, scale: &Scale) -> Result<PathCase, Error> {
    connections(bench, "own-direct", endpoint()?, scale)
}

/// To the frontend, as it is served now.
pub(super) fn served(bench: &Bench, name: &str, scale: &Scale) -> Result<PathCase, Error> {
    connections(bench, &format!("own-{name}"), VIP, scale)
}

/// To the frontend, and to what is no service, where the daemon serves sockets: those of this process
/// and of what it starts. Nothing where this machine's sockets cannot be served; `skipped` is told why.
pub(super) fn sockets(
    bench: &Bench,
    scale: &Scale,
    services: u32,
    skipped: &mut impl FnMut(&str),
) -> Result<Vec<PathCase>, Error> {
    let cgroup = match Cgroup::enter("xlbbench-") {
        Ok(cgroup) => cgroup,
        Err(error) => {
            skipped(&format!("own sockets: no cgroup of version 2 for them: {error}"));
            return Ok(Vec::new());
        }
    };
    let root = cgroup.path().display();
    let section = format!("socketLB: {{enabled: true, cgroupRoot: {root}}}\n");
    let daemon = bench.daemon(scale, &(section + &config("snat", services)))?;
    bench.wait_until_ready(&format!("own-xdp-lb-sockets-{services}"))?;
    let cases = vec![
        connections(bench, &format!("own-xdp-lb-sockets-{services}"), VIP, scale)?,
        connections(bench, &format!("own-no-service-{services}"), endpoint()?, scale)?,
    ];
    daemon.stop(super::STOPPING)?;
    Ok(cases)
}

fn endpoint() -> Result<Ipv4Addr, Error> {
    endpoints(0).next().ok_or(Error::Missing("address of an endpoint"))
}

fn connections(bench: &Bench, name: &str, to: Ipv4Addr, scale: &Scale) -> Result<PathCase, Error> {
    let space = bench.lab.ns("balancer")?;
    let to = SocketAddr::from((to, PORT));
    let measured = latency::measure(space, to, scale.connections)?;
    let call_ns = Some(latency::calls(space, to, scale.connections)?);
    Ok(PathCase { name: name.to_owned(), call_ns, ..measured.case() })
}
