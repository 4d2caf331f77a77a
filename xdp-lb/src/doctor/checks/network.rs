//! Paths, sysctls and others who take the same traffic.

use std::{collections::BTreeMap, net::IpAddr};

use xdp_lb_plan::model::{Mode, Service};

use super::{
    super::facts::{BASIC, Facts, XMIT},
    Finding, error, ok, unknown, warning,
};
use crate::{
    config::Config,
    net::{Path, View},
};

/// Smallest MTU of IPv6.
const IPV6: u32 = 1280;
/// Beyond this part of the neighbour table entries are lost now and then.
const NEIGHBOURS: f64 = 0.7;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = paths(facts);
    findings.extend(path_mtu(facts));
    findings.extend(redirect(facts));
    findings.extend(forwarding(facts));
    findings.extend(rp_filter(facts));
    findings.extend(snat_ports(facts));
    findings.extend(neighbours(facts));
    findings.extend(kube_proxy(facts));
    findings
}

/// Whether there is a path to each backend.
fn paths(facts: &Facts) -> Vec<Finding> {
    let Some(view) = &facts.view else {
        return vec![unknown("paths", "the kernel's routes cannot be read")];
    };
    let blocked: Vec<Finding> = view
        .paths
        .iter()
        .filter_map(|(to, path)| match path {
            Path::Unresolved { why } => {
                let mend = format!("see `ip route get {to}` and `ip neigh show {to}`");
                Some(error(format!("path to {to}"), why.to_string(), mend))
            }
            Path::Ready { .. } | Path::Local => None,
        })
        .collect();
    if blocked.is_empty() && !view.paths.is_empty() {
        return vec![ok(
            "paths",
            format!("there is one to each of {} addresses", view.paths.len()),
        )];
    }
    blocked
}

/// What each mode puts in front of a client's packet towards this address, at most.
fn overhead(service: &Service, to: IpAddr) -> Option<u32> {
    let v6 =
        service.frontends.iter().any(|one| one.address.is_ipv6()) || !service.node_ports.is_empty();
    match service.mode {
        Mode::Ipip => Some(if to.is_ipv6() { 40 } else { 20 }),
        Mode::Geneve | Mode::Hybrid => Some(match (to.is_ipv6(), v6) {
            (false, false) => 48,
            (true, false) => 68,
            (false, true) => 60,
            (true, true) => 80,
        }),
        Mode::L2 | Mode::Local | Mode::Snat => None,
    }
}

/// Where a service's packets go: the tunnels' ends.
fn ends(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.backends.iter().filter_map(|backend| match service.mode {
        Mode::Ipip => Some(backend.address),
        Mode::Geneve | Mode::Hybrid => backend.node,
        Mode::L2 | Mode::Local | Mode::Snat => None,
    })
}

/// Whether paths carry the clients' MTU and the tunnel's headers: by device, the largest figure that is
/// needed and the smallest that is there.
fn path_mtu(facts: &Facts) -> Vec<Finding> {
    let (Some(config), Some(view)) = (facts.config(), &facts.view) else { return Vec::new() };
    let mtus = config.devices.iter().filter_map(|one| Some(facts.devices.get(&one.name)?.mtu));
    let Some(clients) = mtus.max() else { return Vec::new() };
    // By device: headers, what is there, to whom.
    let mut found: BTreeMap<u32, (u32, u32, IpAddr)> = BTreeMap::new();
    for service in &config.services {
        for to in ends(service) {
            let Some(Path::Ready { device, mtu, .. }) = view.paths.get(&to) else { continue };
            let Some(headers) = overhead(service, to) else { continue };
            let one = found.entry(*device).or_insert((headers, *mtu, to));
            if headers > one.0 || *mtu < one.1 {
                *one = (headers.max(one.0), (*mtu).min(one.1), to);
            }
        }
    }
    let judge = |(device, (headers, there, to)): (u32, (u32, u32, IpAddr))| {
        let name = device_name(view, device);
        let check = format!("path MTU by {name}");
        let needed = clients + headers;
        let mend = format!(
            "ip link set dev {name} mtu {needed}, and the same on every hop; or lower the clients' side \
             to {}",
            there.saturating_sub(headers)
        );
        if there < IPV6 + headers && has_v6(config) {
            let detail = format!(
                "{there} to {to}: IPv6 packets of {IPV6} bytes do not fit with {headers} bytes of tunnel \
                 headers, and are dropped"
            );
            return error(check, detail, mend);
        }
        if there < needed {
            let detail = format!(
                "{there} to {to}, but clients' packets may have {clients} bytes and the tunnel adds \
                 {headers}: clients learn the smaller MTU by ICMP, packet by packet"
            );
            return warning(check, detail, mend);
        }
        ok(check, format!("{there} carries {clients} bytes and {headers} of tunnel headers"))
    };
    found.into_iter().map(judge).collect()
}

fn has_v6(config: &Config) -> bool {
    let mut frontends = config.services.iter().flat_map(|one| &one.frontends);
    frontends.any(|one| one.address.is_ipv6())
}

fn device_name(view: &View, index: u32) -> String {
    view.links.get(&index).map_or_else(|| index.to_string(), |link| link.name.clone())
}

/// Whether frames can be redirected to the devices that backends are reached by.
fn redirect(facts: &Facts) -> Vec<Finding> {
    let Some(view) = &facts.view else { return Vec::new() };
    let mut names: Vec<String> = view
        .paths
        .values()
        .filter_map(|path| match path {
            Path::Ready { device, .. } => Some(device_name(view, *device)),
            Path::Local | Path::Unresolved { .. } => None,
        })
        .collect();
    names.sort();
    names.dedup();
    let cannot = |name: &String| {
        let device = facts.devices.get(name)?;
        let below = device.kind == "vlan" || device.kind == "bond";
        let cannot = !below && device.features? & (BASIC | XMIT) == BASIC;
        cannot.then(|| {
            let detail = "backends are reached by it, but its driver takes no redirected frames now";
            let mend = format!("attach xdp-lb to {name} too (`devices`): some drivers need a program of their own for it");
            warning(format!("{name}: redirect"), detail, mend)
        })
    };
    names.iter().filter_map(cannot).collect()
}

/// Whether the kernel must route what it is handed.
fn delivers(config: &Config) -> bool {
    let to_pods = |one: &Service| matches!(one.mode, Mode::Local | Mode::Geneve | Mode::Hybrid);
    config.terminate.as_ref().is_some_and(|one| !one.pods.is_empty())
        || config.services.iter().any(to_pods)
}

/// Packets for pods on this host go through the kernel's routing.
fn forwarding(facts: &Facts) -> Vec<Finding> {
    let check = "forwarding";
    let Some(config) = facts.config() else { return Vec::new() };
    if !delivers(config) {
        return vec![ok(check, "not needed: the kernel routes nothing for these modes")];
    }
    let mut findings = Vec::new();
    for (name, family) in
        [("net.ipv4.ip_forward", "IPv4"), ("net.ipv6.conf.all.forwarding", "IPv6")]
    {
        let check = format!("{check} {family}");
        findings.push(match facts.sysctl(name) {
            Some("0") if family == "IPv6" && !has_v6(config) => ok(check, "off, and not needed"),
            Some("0") => {
                let detail = "off: what is for pods on this host is dropped by the kernel";
                error(check, detail, format!("sysctl -w {name}=1"))
            }
            Some(_) => ok(check, "on"),
            None => unknown(check, format!("{name} cannot be read")),
        });
    }
    findings
}

/// The kernel drops what comes by another device than its answer would leave by.
fn rp_filter(facts: &Facts) -> Vec<Finding> {
    let Some(config) = facts.config() else { return Vec::new() };
    let direct = |one: &Service| one.mode.keeps_destination() && one.health_check.is_some();
    let checked = config.services.iter().any(direct);
    let unwraps = config.terminate.is_some();
    let number = |name: &str| facts.sysctl(name).and_then(|value| value.parse::<u8>().ok());
    let all = number("net.ipv4.conf.all.rp_filter");
    let mut findings = Vec::new();
    for device in &config.devices {
        let check = format!("{}: rp_filter", device.name);
        let name = format!("net.ipv4.conf.{}.rp_filter", device.name);
        // The kernel takes the larger of the two.
        let Some(value) = all.max(number(&name)) else {
            findings.push(unknown(check, format!("{name} cannot be read")));
            continue;
        };
        if value != 1 || !(checked || unwraps) {
            findings.push(ok(check, format!("{value}")));
            continue;
        }
        let what = if unwraps {
            "unwrapped packets whose clients are not reached by this device are dropped"
        } else {
            "answers to health checks that come by another device than the route to the frontend are \
             dropped"
        };
        let mend = format!("sysctl -w {name}=2 net.ipv4.conf.all.rp_filter=0");
        findings.push(warning(check, format!("1 (strict): {what}"), mend));
    }
    findings
}

/// The host's own connections must not take ports that flows of mode `snat` use.
fn snat_ports(facts: &Facts) -> Option<Finding> {
    let check = "snat.ports";
    let config = facts.config()?;
    let uses = |one: &Service| matches!(one.mode, Mode::Snat | Mode::Hybrid);
    if !config.services.iter().any(uses) {
        return None;
    }
    let (first, last) = (*config.snat.ports.start(), *config.snat.ports.end());
    let name = "net.ipv4.ip_local_port_range";
    let range = facts.sysctl(name).and_then(|text| {
        let mut ends = text.split_whitespace().map(str::parse::<u16>);
        Some((ends.next()?.ok()?, ends.next()?.ok()?))
    });
    let Some((low, high)) = range else {
        return Some(unknown(check, format!("{name} cannot be read")));
    };
    let reserved = facts.sysctl("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
    let taken = (first.max(low), last.min(high));
    if taken.0 > taken.1 || is_reserved(reserved, taken) {
        return Some(ok(
            check,
            format!("{first}-{last}, which the host's own connections leave alone"),
        ));
    }
    let detail = format!(
        "the host's own connections use {low} to {high}, and snat {first} to {last}: where both use one \
         port towards one backend, answers go astray"
    );
    let mend = format!("sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}");
    Some(error(check, detail, mend))
}

/// Whether a list like `80,61000-65535` has all ports of a range.
fn is_reserved(list: &str, (first, last): (u16, u16)) -> bool {
    let mut ranges: Vec<(u16, u16)> = list
        .split(',')
        .filter_map(|one| {
            let (low, high) = one.trim().split_once('-').unwrap_or((one.trim(), one.trim()));
            Some((low.parse().ok()?, high.parse().ok()?))
        })
        .collect();
    ranges.sort_unstable();
    let mut next = u32::from(first);
    for (low, high) in ranges {
        if u32::from(low) <= next {
            next = next.max(u32::from(high) + 1);
        }
    }
    next > u32::from(last)
}

/// Each backend on a segment takes an entry.
fn neighbours(facts: &Facts) -> Vec<Finding> {
    let Some(view) = &facts.view else { return Vec::new() };
    let mut findings = Vec::new();
    for (v6, name) in
        [(false, "net.ipv4.neigh.default.gc_thresh3"), (true, "net.ipv6.neigh.default.gc_thresh3")]
    {
        let direct = view.paths.iter().filter(|(to, path)| {
            to.is_ipv6() == v6 && matches!(path, Path::Ready { neighbour, .. } if neighbour == *to)
        });
        let count = direct.count();
        let most: Option<u32> = facts.sysctl(name).and_then(|value| value.parse().ok());
        let Some(most) = most.filter(|_| count > 0) else { continue };
        let check = format!("neighbours IPv{}", if v6 { 6 } else { 4 });
        if count as f64 > f64::from(most) * NEIGHBOURS {
            let detail =
                format!("{count} backends on segments, and the kernel knows {most} at most");
            findings.push(warning(check, detail, format!("sysctl -w {name}={}", count * 4)));
        } else {
            findings.push(ok(check, format!("{count} of at most {most}")));
        }
    }
    findings
}

/// Whether somebody else balances the same services.
fn kube_proxy(facts: &Facts) -> Vec<Finding> {
    let check = "kube-proxy";
    let marks = |(table, chain): &&(String, String)| {
        table.starts_with("kube-proxy") || chain.starts_with("KUBE-S") || chain == "KUBE-NODEPORTS"
    };
    let rules = facts.chains.as_ref().map(|chains| chains.iter().filter(marks).count());
    if let Some(id) = facts.kube_proxy.first() {
        let detail = format!(
            "it runs (process {id}). Its rules see only what xdp-lb hands to the kernel, so both may \
             run; services that both have are then served twice over"
        );
        let mend =
            "leave it for cluster addresses, or take over from it: xdp-lb kube-proxy takeover";
        return vec![warning(check, detail, mend)];
    }
    match rules {
        Some(0) if facts.legacy_tables.is_empty() => {
            vec![ok(check, "it does not run, and left no rules")]
        }
        Some(0) => {
            let detail = format!(
                "it does not run; the older iptables is in use (tables {}), whose chains are not looked at",
                facts.legacy_tables.join(", ")
            );
            vec![ok(check, detail)]
        }
        Some(count) => {
            let detail = format!(
                "it does not run, but {count} of its chains are left, and still take traffic"
            );
            vec![warning(check, detail, "xdp-lb kube-proxy remove --yes")]
        }
        None => vec![unknown(check, "it does not run; whether it left rules is told to root only")],
    }
}
