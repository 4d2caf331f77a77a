//! Each check over facts that are made up.

use std::collections::BTreeMap;

use super::{
    super::{
        facts::{BASIC, Channels, Device, Facts, REDIRECT, SEVERAL_BUFFERS, XMIT, Xdp},
        report,
    },
    *,
};
use crate::{
    config,
    net::{Link, Path, View, Why},
};

const HEAD: &str = "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{name: eth0}]\n";

/// A service in a mode, with a backend or a node at 10.0.0.9.
fn service(mode: &str) -> String {
    let backend = match mode {
        "geneve" | "hybrid" => "{address: 10.244.0.1, node: 10.0.0.9}",
        _ => "{address: 10.0.0.9}",
    };
    format!(
        "services: [{{name: a, mode: {mode}, frontends: [{{address: 203.0.113.1, port: 80}}], \
         backends: [{backend}]}}]\n"
    )
}

/// A host that is fit, balancing by eth0.
fn fit(more: &str) -> Facts {
    let eth0 = Device {
        index: 2,
        driver: Some("ice".to_owned()),
        mtu: 1500,
        up: true,
        features: Some(BASIC | REDIRECT | XMIT | SEVERAL_BUFFERS),
        offloads: Some(BTreeMap::from([("rx-gro".to_owned(), true), ("rx-lro".to_owned(), false)])),
        channels: Some(Channels { rx: (4, 8), combined: true }),
        ..Device::default()
    };
    let link = Link {
        index: 2,
        name: "eth0".to_owned(),
        mac: Some([2; 6]),
        mtu: 1500,
        up: true,
        parent: None,
        vlan: None,
        master: None,
        kind: String::new(),
    };
    let ready = Path::Ready {
        device: 2,
        neighbour: "10.0.0.9".parse().unwrap(),
        mac: [2; 6],
        mtu: 1600,
        source: "10.0.0.1".parse().unwrap(),
    };
    let options =
        ["BPF_SYSCALL", "BPF_JIT", "NET", "NET_CLS_ACT", "NET_CLS_BPF", "NET_SCH_INGRESS"]
            .into_iter()
            .chain(["CGROUP_BPF", "INET_DIAG_DESTROY"]);
    let sysctls = [
        ("net.core.bpf_jit_enable", "1"),
        ("net.core.bpf_jit_harden", "0"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.ip_local_port_range", "32768\t60999"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "0"),
        ("net.ipv4.neigh.default.gc_thresh3", "1024"),
    ];
    Facts {
        privileged: true,
        release: "6.12.9-amd64".to_owned(),
        options: Some(options.map(|name| (format!("CONFIG_{name}"), "y".to_owned())).collect()),
        btf: true,
        sysctls: sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        pin_dir: "/sys/fs/bpf/xdp-lb".to_owned(),
        bpffs: true,
        cgroup: Some(Ok("/sys/fs/cgroup".to_owned())),
        memory_available: Some(8 << 30),
        clock: Some("tsc".to_owned()),
        cpus: 4,
        devices: [("eth0".to_owned(), eth0)].into(),
        chains: Some([("filter".to_owned(), "INPUT".to_owned())].into()),
        config: Some(config::parse(&format!("{HEAD}{more}")).map_err(|error| format!("{error:?}"))),
        view: Some(View {
            links: [(2, link)].into(),
            paths: [("10.0.0.9".parse().unwrap(), ready)].into(),
            ..View::default()
        }),
        ..Facts::default()
    }
}

/// What is not as it should be: the checks, their states, and what mends them.
fn wrong(facts: &Facts) -> Vec<(String, State, String)> {
    let bad = all(facts).into_iter().filter(|one| one.state != State::Ok);
    bad.map(|one| (one.check, one.state, one.mend.unwrap_or_default())).collect()
}

/// Changes one thing of a fit host: exactly one check must say so.
#[track_caller]
fn expect(more: &str, change: impl FnOnce(&mut Facts), check: &str, state: State, mend: &str) {
    let mut facts = fit(more);
    assert_eq!(wrong(&facts), [], "before");
    change(&mut facts);
    let found = wrong(&facts);
    assert_eq!(found.len(), 1, "{check}: {found:?}");
    assert_eq!((found[0].0.as_str(), found[0].1), (check, state), "{found:?}");
    assert!(found[0].2.contains(mend), "{mend:?} is not in {found:?}");
}

fn eth0(facts: &mut Facts) -> &mut Device {
    facts.devices.get_mut("eth0").unwrap()
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.sysctls.insert(name.to_owned(), value.to_owned());
}

#[test]
fn a_fit_host_has_nothing_against_it_in_every_mode() {
    for mode in ["l2", "ipip", "geneve", "local", "snat", "hybrid"] {
        let facts = fit(&service(mode));
        assert!(facts.config().is_some(), "{:?}", facts.config);
        assert_eq!(wrong(&facts), [], "{mode}");
        assert!(report(&facts).is_good(true));
    }
}

#[test]
fn what_sockets_need_is_looked_at_where_they_are_served() {
    use State::{Error, Unknown, Warning};
    let served = "socketLB: {enabled: true}\n";
    let without = |name: &'static str| {
        move |facts: &mut Facts| drop(facts.options.as_mut().unwrap().remove(name))
    };
    let none = |facts: &mut Facts| facts.cgroup = Some(Err("no cgroup v2".to_owned()));
    expect(served, none, "socket LB", Error, "mount -t cgroup2");
    expect(served, |one| one.cgroup = None, "socket LB", Unknown, "");
    expect(served, without("CONFIG_CGROUP_BPF"), "socket LB", Error, "boot");
    expect(served, without("CONFIG_INET_DIAG_DESTROY"), "socket LB", Warning, "boot");
    let mut facts = fit("");
    none(&mut facts);
    assert_eq!(wrong(&facts), [], "nobody wants it");
}

#[test]
fn what_the_kernel_lacks_is_named() {
    use State::{Error, Unknown, Warning};
    let set = |name, value| move |facts: &mut Facts| set(facts, name, value);
    expect("", |one| one.privileged = false, "privileges", Warning, "sudo");
    expect("", |one| one.release = "5.15.0".to_owned(), "kernel", Error, "newer");
    expect("", |one| one.release = "next".to_owned(), "kernel", Unknown, "");
    expect("", |one| one.options = None, "kernel options", Unknown, "");
    expect(
        "",
        |one| drop(one.options.as_mut().unwrap().remove("CONFIG_BPF_JIT")),
        "kernel options",
        Error,
        "kernel",
    );
    expect("", |one| one.btf = false, "BTF", Warning, "DEBUG_INFO_BTF");
    expect("", set("net.core.bpf_jit_enable", "0"), "JIT", Error, "bpf_jit_enable=1");
    expect("", set("net.core.bpf_jit_harden", "2"), "JIT hardening", Warning, "bpf_jit_harden=1");
    expect("", |one| one.bpffs = false, "BPF file system", Error, "mount -t bpf bpf /sys/fs/bpf");
    expect("", |one| one.other_versions = vec!["v1".to_owned()], "data path", Error, "clean");
    expect("", |one| one.clock = Some("hpet".to_owned()), "clock", Warning, "clocksource");
    expect("", |one| one.memory_available = Some(1 << 20), "memory", Error, "limits");
    expect("", |one| one.memory_available = Some(300 << 20), "memory", Warning, "limits");
    expect(
        "",
        |one| one.config = Some(Err("1:1: bad".to_owned())),
        "configuration",
        Error,
        "check",
    );
}

#[test]
fn older_kernels_need_a_filter_for_pods_only_and_charge_locked_memory() {
    let old = |more: &str| {
        let mut facts = fit(more);
        facts.release = "6.1.0".to_owned();
        facts.options.as_mut().unwrap().remove("CONFIG_NET_CLS_BPF");
        wrong(&facts)
    };
    assert_eq!(old(&service("l2")), []);
    assert_eq!(old(&service("local"))[0].0, "kernel options");
    let mut facts = fit("");
    facts.locked_memory = Some(65536);
    assert_eq!(wrong(&facts), []);
    facts.release = "5.10.0".to_owned();
    let names: Vec<String> = wrong(&facts).into_iter().map(|one| one.0).collect();
    assert_eq!(names, ["kernel", "locked memory"]);
}

#[test]
fn what_is_wrong_with_a_device_is_named_with_the_command_that_mends_it() {
    use State::{Error, Unknown, Warning};
    expect("", |one| one.devices.clear(), "eth0", Error, "devices");
    expect("", |one| eth0(one).up = false, "eth0: link", Error, "ip link set dev eth0 up");
    expect("", |one| eth0(one).features = Some(0), "eth0: driver", Error, "native-or-generic");
    expect("", |one| eth0(one).features = None, "eth0: driver", Unknown, "");
    let limited = Some(BASIC | XMIT | SEVERAL_BUFFERS);
    expect("", |one| eth0(one).features = limited, "eth0: driver", Warning, "device");
    expect("", |one| eth0(one).kind = "vlan".to_owned(), "eth0: driver", Error, "below");
    let foreign = Xdp { native: Some(7), generic: None };
    expect(
        "",
        |one| eth0(one).xdp = foreign,
        "eth0: program",
        Error,
        "ip link set dev eth0 xdpdrv off",
    );
    let slow = |one: &mut Facts| {
        eth0(one).ours = true;
        eth0(one).xdp = Xdp { native: None, generic: Some(7) };
    };
    expect("", slow, "eth0: program", Warning, "dmesg");
    let jumbo = |one: &mut Facts| {
        eth0(one).mtu = 9000;
        eth0(one).features = Some(BASIC | REDIRECT | XMIT);
    };
    expect("", jumbo, "eth0: MTU", Error, "mtu 3498");
    let offload = |name: &'static str| {
        move |one: &mut Facts| {
            eth0(one).offloads.as_mut().unwrap().insert(name.to_owned(), true);
            eth0(one).vlans.push("eth0.5".to_owned());
        }
    };
    expect("", offload("rx-lro"), "eth0: lro", Warning, "ethtool -K eth0 lro off");
    expect("", offload("rx-gro-hw"), "eth0: rx-gro-hw", Warning, "ethtool -K eth0 rx-gro-hw off");
    expect("", offload("rx-vlan-hw-parse"), "eth0: rxvlan", Warning, "ethtool -K eth0 rxvlan off");
    let few = Some(Channels { rx: (1, 8), combined: true });
    expect(
        "",
        |one| eth0(one).channels = few,
        "eth0: queues",
        Warning,
        "ethtool -L eth0 combined 4",
    );
    let veth = |one: &mut Facts| eth0(one).kind = "veth".to_owned();
    expect("", veth, "eth0: veth", Warning, "gro on");
}

#[test]
fn without_a_configuration_all_devices_that_may_carry_traffic_are_looked_at() {
    let mut facts = fit("");
    facts.config = None;
    let dummy = Device { kind: "dummy".to_owned(), up: true, ..Device::default() };
    facts.devices.insert("dummy0".to_owned(), dummy);
    eth0(&mut facts).features = Some(0);
    assert_eq!(
        wrong(&facts),
        [(
            "eth0: driver".to_owned(),
            State::Warning,
            "write `xdp: native-or-generic`, or use another network card".to_owned()
        )]
    );
}

#[test]
fn the_figure_to_set_is_the_clients_mtu_and_the_tunnels_headers() {
    for (mode, needed) in [("ipip", 1520), ("geneve", 1548)] {
        let narrow = |one: &mut Facts| {
            for path in one.view.as_mut().unwrap().paths.values_mut() {
                if let Path::Ready { mtu, .. } = path {
                    *mtu = needed - 1;
                }
            }
        };
        let mend = format!("mtu {needed},");
        expect(&service(mode), narrow, "path MTU by eth0", State::Warning, &mend);
    }
}

#[test]
fn what_is_wrong_with_the_network_is_named() {
    use State::{Error, Unknown, Warning};
    let set = |name, value| move |facts: &mut Facts| set(facts, name, value);
    let blocked = |one: &mut Facts| {
        let paths = &mut one.view.as_mut().unwrap().paths;
        paths.values_mut().for_each(|path| *path = Path::Unresolved { why: Why::NoRoute });
    };
    expect("", blocked, "path to 10.0.0.9", Error, "ip route get 10.0.0.9");
    expect("", |one| one.view = None, "paths", Unknown, "");
    let local = service("local");
    expect(&local, set("net.ipv4.ip_forward", "0"), "forwarding IPv4", Error, "ip_forward=1");
    let mut l2 = fit(&service("l2"));
    set("net.ipv4.ip_forward", "0")(&mut l2);
    assert_eq!(wrong(&l2), [], "it routes nothing");
    let strict = set("net.ipv4.conf.all.rp_filter", "1");
    let terminate = "terminate: {peers: [10.0.0.0/24]}\n";
    expect(terminate, strict, "eth0: rp_filter", Warning, "rp_filter=2");
    let range = set("net.ipv4.ip_local_port_range", "32768 61000");
    expect(&service("snat"), range, "snat.ports", Error, "reserved_ports=61000-65535");
    let few = set("net.ipv4.neigh.default.gc_thresh3", "1");
    expect("", few, "neighbours IPv4", Warning, "gc_thresh3=4");
    let half = |one: &mut Facts| eth0(one).features = Some(BASIC | REDIRECT | SEVERAL_BUFFERS);
    expect("", half, "eth0: redirect", Warning, "devices");
    expect("", |one| one.kube_proxy = vec![42], "kube-proxy", Warning, "takeover");
    expect("", |one| one.chains = None, "kube-proxy", Unknown, "");
    let left = |one: &mut Facts| {
        one.chains.as_mut().unwrap().insert(("nat".to_owned(), "KUBE-SERVICES".to_owned()));
    };
    expect("", left, "kube-proxy", Warning, "remove --yes");
}

#[test]
fn reserved_ports_count_where_they_are_all_reserved() {
    for (reserved, fine) in [
        ("61000-65535", true),
        ("80,60000-62000,62001-65535", true),
        ("61000-65534", false),
        ("", false),
    ] {
        let mut facts = fit(&service("snat"));
        set(&mut facts, "net.ipv4.ip_local_port_range", "1024 65535");
        set(&mut facts, "net.ipv4.ip_local_reserved_ports", reserved);
        assert_eq!(wrong(&facts).is_empty(), fine, "{reserved}");
    }
}
