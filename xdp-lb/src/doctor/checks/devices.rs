//! Devices: whether XDP works on them, and what keeps it from working well.

use std::collections::BTreeMap;

use super::{
    super::facts::{BASIC, Device, Facts, REDIRECT, SEVERAL_BUFFERS},
    Finding, error, ok, unknown, warning,
};
use crate::config::Attach;

/// Largest MTU of a packet in one buffer: a page of 4096 bytes less the headroom (256), what the kernel
/// keeps behind the packet (320), and the Ethernet header with two tags (22).
const ONE_BUFFER: u32 = 4096 - 256 - 320 - 22;

/// Kinds that pass frames on to devices below, whose drivers then run the program.
const PASSED_ON: [&str; 1] = ["bond"];

/// Offloads that hurt, by the kernel's name: how ethtool(8) calls each, and why.
const HARMFUL: [(&str, &str, &str); 2] = [
    (
        "rx-lro",
        "lro",
        "the card puts packets together, which cannot be forwarded; most drivers then refuse XDP",
    ),
    (
        "rx-gro-hw",
        "rx-gro-hw",
        "the card puts packets together, and they would not fit the way to the backend",
    ),
];

/// The configuration's devices, or all that may carry traffic.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, wanted) in wanted(facts) {
        match facts.devices.get(&name) {
            Some(device) => findings.extend(one(facts, &name, device, wanted)),
            None => {
                let detail = "there is no such device";
                findings.push(error(
                    name,
                    detail,
                    "correct `devices`; `ip link` shows which there are",
                ));
            }
        }
    }
    findings
}

fn wanted(facts: &Facts) -> BTreeMap<String, Option<Attach>> {
    if let Some(config) = facts.config() {
        return config.devices.iter().map(|one| (one.name.clone(), Some(one.xdp))).collect();
    }
    let carries = |device: &Device| device.up && !["ifb", "dummy", "vlan"].contains(&&*device.kind);
    let names = facts.devices.iter().filter(|(name, device)| *name != "lo" && carries(device));
    names.map(|(name, _)| (name.clone(), None)).collect()
}

fn one(facts: &Facts, name: &str, device: &Device, wanted: Option<Attach>) -> Vec<Finding> {
    let mut findings = vec![link(name, device), driver(name, device, wanted)];
    findings.extend(program(name, device, wanted));
    findings.extend(mtu(name, device));
    findings.extend(offloads(name, device));
    findings.extend(queues(facts, name, device));
    findings.extend(pair(name, device));
    findings
}

fn link(name: &str, device: &Device) -> Finding {
    let check = format!("{name}: link");
    if device.up {
        return ok(check, "up");
    }
    let mend = format!("ip link set dev {name} up");
    error(check, "down, or without a carrier: no packet comes in", mend)
}

/// What the driver can do.
fn driver(name: &str, device: &Device, wanted: Option<Attach>) -> Finding {
    let check = format!("{name}: driver");
    let who = match (&device.driver, device.kind.as_str()) {
        (Some(driver), _) => driver.as_str(),
        (None, "") => "unknown",
        (None, kind) => kind,
    };
    if wanted == Some(Attach::Generic) {
        let detail =
            format!("{who}; generic XDP is wanted, which is several times slower than native");
        return warning(check, detail, "write `xdp: native` where the driver can do it");
    }
    if device.xdp.native.is_some() {
        return ok(check, format!("{who} runs a program in the driver now"));
    }
    if device.kind == "vlan" {
        let detail = "a VLAN device runs no program in the driver";
        return error(check, detail, "name the device below it: VLAN tags are parsed");
    }
    let Some(features) = device.features else {
        let detail =
            format!("{who}; the kernel does not say whether it has native XDP (Linux 6.3 does)");
        return unknown(check, detail);
    };
    if PASSED_ON.contains(&device.kind.as_str()) {
        return ok(check, format!("{who}: the drivers of its members run the program"));
    }
    if features & BASIC == 0 {
        let detail = format!("{who} has no native XDP");
        let mend = "write `xdp: native-or-generic`, or use another network card";
        return match wanted {
            Some(Attach::Native) => error(check, detail, mend),
            _ => warning(check, format!("{detail}: generic XDP is several times slower"), mend),
        };
    }
    if features & REDIRECT == 0 {
        let detail = format!("{who} has native XDP, but cannot redirect to other devices");
        return warning(check, detail, "reach all backends by this device, or use another card");
    }
    ok(check, format!("{who} has native XDP"))
}

/// Whether somebody else's program is there.
fn program(name: &str, device: &Device, wanted: Option<Attach>) -> Option<Finding> {
    let check = format!("{name}: program");
    let (native, generic) = (device.xdp.native, device.xdp.generic);
    if !device.ours {
        let (id, mode) = match (native, generic) {
            (Some(id), _) => (id, "xdpdrv"),
            (None, Some(id)) => (id, "xdpgeneric"),
            (None, None) => return Some(ok(check, "no XDP program is there")),
        };
        let detail = format!(
            "another XDP program is attached (id {id}; `bpftool prog show id {id}` says whose), and a \
             device takes only one"
        );
        return Some(error(check, detail, format!("ip link set dev {name} {mode} off")));
    }
    if native.is_none() && generic.is_some() && wanted != Some(Attach::Generic) {
        let detail = "xdp-lb runs in generic mode, which is slow, since the driver refused";
        let mend = "see the driver's message in `dmesg`, and the lines about this device";
        return Some(warning(check, detail, mend));
    }
    Some(ok(check, "xdp-lb is attached"))
}

fn mtu(name: &str, device: &Device) -> Option<Finding> {
    let check = format!("{name}: MTU");
    let features = device.features?;
    if features & BASIC == 0 || PASSED_ON.contains(&device.kind.as_str()) {
        return None;
    }
    if features & SEVERAL_BUFFERS == 0 && device.mtu > ONE_BUFFER {
        let detail = format!(
            "{}, but the driver gives programs packets of one buffer only, and refuses native XDP",
            device.mtu
        );
        return Some(error(check, detail, format!("ip link set dev {name} mtu {ONE_BUFFER}")));
    }
    Some(ok(check, device.mtu.to_string()))
}

fn offloads(name: &str, device: &Device) -> Vec<Finding> {
    let check = |what: &str| format!("{name}: {what}");
    let Some(offloads) = &device.offloads else {
        return vec![unknown(check("offloads"), "ethtool does not tell")];
    };
    let on = |name: &str| offloads.get(name).copied().unwrap_or(false);
    let mut findings: Vec<Finding> = HARMFUL
        .iter()
        .filter(|(feature, _, _)| on(feature))
        .map(|(_, short, why)| {
            warning(check(short), *why, format!("ethtool -K {name} {short} off"))
        })
        .collect();
    if on("rx-vlan-hw-parse") && device.kind != "veth" && !device.vlans.is_empty() {
        let detail = format!(
            "the card takes VLAN tags off before the program sees them, and there are VLANs ({}): \
             packets of different VLANs look alike",
            device.vlans.join(", ")
        );
        findings.push(warning(check("rxvlan"), detail, format!("ethtool -K {name} rxvlan off")));
    }
    if findings.is_empty() {
        findings.push(ok(check("offloads"), "none that hurts"));
    }
    findings
}

/// One queue is one CPU.
fn queues(facts: &Facts, name: &str, device: &Device) -> Option<Finding> {
    let check = format!("{name}: queues");
    let channels = device.channels?;
    let (now, most) = channels.rx;
    let useful = most.min(u32::try_from(facts.cpus).unwrap_or(u32::MAX));
    if now >= useful || useful <= 1 {
        return Some(ok(check, format!("{now} for {} CPUs", facts.cpus)));
    }
    let detail = format!(
        "packets come in by {now} of at most {most} queues, so on {now} of {} CPUs",
        facts.cpus
    );
    let which = if channels.combined { "combined" } else { "rx" };
    Some(warning(check, detail, format!("ethtool -L {name} {which} {useful}")))
}

/// What XDP sends back by a veth device lies at the other end until that end polls.
fn pair(name: &str, device: &Device) -> Option<Finding> {
    if device.kind != "veth" {
        return None;
    }
    let check = format!("{name}: veth");
    let detail = "what the program sends back the way it came is dropped unless the other end has an \
                  XDP program of its own, or GRO";
    Some(warning(
        check,
        detail,
        "at the other end: ethtool -K DEVICE gro on, or any XDP program that passes",
    ))
}
