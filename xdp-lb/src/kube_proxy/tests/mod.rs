//! Fixtures that a real kube-proxy made, and what is read from them.

mod compare;
mod owner;

use std::collections::BTreeSet;

use super::{
    Family, RuleSet, RulesState,
    found::{Content, Iptables},
    iptables::Save,
    ipvs, keeper, nftables,
    served::{Answer, At, NodeAddresses, Served},
};

pub(super) const NFTABLES: &str = include_str!("../fixtures/nftables.json");
pub(super) const IPTABLES: &str = include_str!("../fixtures/iptables.save");
pub(super) const IP6TABLES: &str = include_str!("../fixtures/ip6tables.save");

/// A line for each: where, what becomes of connections, and of those from inside where it differs.
fn lines(served: &[Served]) -> Vec<String> {
    let list = |all: &BTreeSet<std::net::SocketAddr>| {
        let all: Vec<String> = all.iter().map(|one| one.to_string()).collect();
        all.join(" ")
    };
    let line = |one: &Served| {
        let answer = match &one.answer {
            Answer::Endpoints(all) => list(all),
            Answer::Refused => "refused".to_owned(),
            Answer::Dropped => "dropped".to_owned(),
        };
        let inside = one.inside.as_ref().map(|all| format!(", inside {}", list(all)));
        format!("{one} {} {} -> {answer}{}", one.kind, one.service, inside.unwrap_or_default())
    };
    let mut lines: Vec<String> = served.iter().map(line).collect();
    lines.sort();
    lines
}

/// The table of one family: nft(8) prints but that.
fn table(family: Family) -> nftables::Table {
    let mut all: serde_json::Value = serde_json::from_str(NFTABLES).unwrap();
    all["nftables"]
        .as_array_mut()
        .unwrap()
        .retain(|one| one.as_object().unwrap().values().all(|one| one["family"] == family.nft()));
    nftables::Table::parse(&all.to_string()).unwrap()
}

const V4: [&str; 14] = [
    "10.96.0.10:53/UDP ClusterIP default/web:dns -> 10.244.1.1:5353 10.244.1.2:5353",
    "10.96.0.10:80/TCP ClusterIP default/web:http -> 10.244.1.1:8080 10.244.1.2:8080",
    "10.96.0.11:80/TCP ClusterIP default/local -> 10.244.1.1:8080 10.244.2.1:8080",
    "10.96.0.12:80/TCP ClusterIP default/empty -> refused",
    "10.96.0.13:7/SCTP ClusterIP default/inner -> dropped",
    "10.96.0.1:443/TCP ClusterIP default/kubernetes:https -> 10.0.0.1:6443",
    "198.51.100.7:53/UDP ExternalIP default/web:dns -> 10.244.1.1:5353 10.244.1.2:5353",
    "198.51.100.7:80/TCP ExternalIP default/web:http -> 10.244.1.1:8080 10.244.1.2:8080",
    "203.0.113.80:53/UDP LoadBalancer default/web:dns -> 10.244.1.1:5353 10.244.1.2:5353",
    "203.0.113.80:80/TCP LoadBalancer default/web:http -> 10.244.1.1:8080 10.244.1.2:8080",
    "203.0.113.81:80/TCP LoadBalancer default/local -> 10.244.1.1:8080, inside 10.244.1.1:8080 10.244.2.1:8080",
    "nodePort 30053/UDP NodePort default/web:dns -> 10.244.1.1:5353 10.244.1.2:5353",
    "nodePort 30080/TCP NodePort default/web:http -> 10.244.1.1:8080 10.244.1.2:8080",
    "nodePort 30081/TCP NodePort default/local -> 10.244.1.1:8080, inside 10.244.1.1:8080 10.244.2.1:8080",
];
const EMPTY_NODE_PORT: &str = "nodePort 30082/TCP NodePort default/empty -> refused";
const V6: [&str; 8] = [
    "[2001:db8:51::7]:53/UDP ExternalIP default/web:dns -> [2001:db8:244:1::1]:5353",
    "[2001:db8:51::7]:80/TCP ExternalIP default/web:http -> [2001:db8:244:1::1]:8080",
    "[2001:db8:80::80]:53/UDP LoadBalancer default/web:dns -> [2001:db8:244:1::1]:5353",
    "[2001:db8:80::80]:80/TCP LoadBalancer default/web:http -> [2001:db8:244:1::1]:8080",
    "[fd00:96::10]:53/UDP ClusterIP default/web:dns -> [2001:db8:244:1::1]:5353",
    "[fd00:96::10]:80/TCP ClusterIP default/web:http -> [2001:db8:244:1::1]:8080",
    "nodePort 30053/UDP NodePort default/web:dns -> [2001:db8:244:1::1]:5353",
    "nodePort 30080/TCP NodePort default/web:http -> [2001:db8:244:1::1]:8080",
];

fn sorted(lines: impl IntoIterator<Item = &'static str>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn both_modes_say_the_same_of_what_is_served() {
    let save = |text| Save::parse(text).unwrap();
    let v4 = || sorted(V4.into_iter().chain([EMPTY_NODE_PORT]));
    assert_eq!(lines(&save(IPTABLES).served(Family::V4)), v4());
    assert_eq!(lines(&save(IP6TABLES).served(Family::V6)), sorted(V6));
    // nftables does not tell external IPs from addresses of load balancers.
    let plain = |lines: Vec<String>| -> Vec<String> {
        lines.iter().map(|line| line.replace("ExternalIP", "LoadBalancer")).collect()
    };
    assert_eq!(lines(&table(Family::V4).served(Family::V4)), plain(v4()));
    assert_eq!(lines(&table(Family::V6).served(Family::V6)), plain(sorted(V6)));
}

#[test]
fn rules_tell_on_which_addresses_node_ports_are() {
    let addresses = |served: Vec<Served>| {
        let mut all = served.into_iter().filter_map(|one| match one.at {
            At::NodePort(addresses) => Some(addresses),
            At::Address(_) => None,
        });
        let first = all.next().unwrap();
        assert!(all.all(|one| one == first));
        first
    };
    let one = ["10.0.0.1".parse().unwrap()].into();
    assert_eq!(addresses(table(Family::V4).served(Family::V4)), NodeAddresses::These(one));
    let all = |family, loopback| NodeAddresses::All { family, loopback };
    let save = |text| Save::parse(text).unwrap();
    assert_eq!(addresses(save(IPTABLES).served(Family::V4)), all(Family::V4, true));
    assert_eq!(addresses(save(IP6TABLES).served(Family::V6)), all(Family::V6, false));
    let named = IPTABLES.replace(
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "-d 10.0.0.1/32 -j KUBE-NODEPORTS",
    );
    let one = ["10.0.0.1".parse().unwrap()].into();
    assert_eq!(addresses(save(&named).served(Family::V4)), NodeAddresses::These(one));
}

#[test]
fn what_is_no_save_is_refused() {
    for wrong in ["*nat\n", "-A INPUT\n", "*nat\n:X\nCOMMIT\n", "*nat\nword\nCOMMIT\n", "COMMIT\n"]
    {
        assert!(Save::parse(wrong).is_err(), "{wrong:?}");
    }
    let open = "*nat\n-A X -m comment --comment \"open\nCOMMIT\n";
    assert!(Save::parse(open).is_err());
    assert_eq!(Save::parse("# nothing\n\n"), Ok(Save::default()));
}

#[test]
fn connections_are_kept_unless_others_hold_conntrack_and_nat() {
    let save = |text: &str| Save::parse(text).unwrap();
    let needed = |family, text: &str, ruleset: &str| {
        let ruleset = serde_json::from_str(ruleset).unwrap();
        keeper::is_needed(family, &[&save(text)], &ruleset)
    };
    let nothing = r#"{"nftables": []}"#;
    // MASQUERADE of a CNI, and KUBE-FIREWALL.
    assert!(!needed(Family::V4, IPTABLES, nothing));
    // Of IPv6, all that asks for conntrack is kube-proxy's.
    assert!(needed(Family::V6, IP6TABLES, nothing));
    assert!(needed(Family::V4, "", nothing));
    let chain = r#"{"chain": {"family": "FAMILY", "table": "mine", "name": "a", "type": "nat", "hook": "output", "prio": 0}}"#;
    let rule = r#"{"rule": {"family": "FAMILY", "table": "mine", "chain": "a", "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}]}}"#;
    let both = format!(r#"{{"nftables": [{chain}, {rule}]}}"#);
    for (family, needed_by_v4) in [("ip", false), ("inet", false), ("ip6", true)] {
        let ruleset = both.replace("FAMILY", family);
        assert_eq!(needed(Family::V4, "", &ruleset), needed_by_v4, "{family}");
    }
    for half in [chain, rule] {
        let ruleset = format!(r#"{{"nftables": [{half}]}}"#).replace("FAMILY", "ip");
        assert!(needed(Family::V4, "", &ruleset), "{half}");
    }
    // kube-proxy's own table holds nothing once it is gone, nor does ours.
    for own in ["kube-proxy", keeper::TABLE] {
        let ruleset = both.replace("FAMILY", "ip").replace("mine", own);
        assert!(needed(Family::V4, "", &ruleset), "{own}");
    }
}

#[test]
fn what_may_be_missed_is_told_before_it_goes() {
    let of = |text: &str| {
        let (save, text) = (Save::parse(text).unwrap(), text.to_owned());
        let restore = "iptables-restore".to_owned();
        let content = Content::Iptables(Iptables { save, text, restore });
        let (kind, family, state) = ("iptables-nft", Family::V4, RulesState::None);
        RuleSet { kind, family, state, content }.warning()
    };
    assert_eq!(of(IPTABLES), None);
    let drops = IPTABLES.replace(":FORWARD ACCEPT", ":FORWARD DROP");
    assert!(of(&drops).unwrap().contains("FORWARD of iptables-nft (IPv4) drops"));
    assert_eq!(of(&drops.replace("KUBE-FORWARD", "OTHER")), None);
}

/// In the form of Linux's `ip_vs_info_seq_show`.
const IPVS: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr persistent 10800 FFFFFFFF
  -> 0AF40101:1F90      Masq    1      0          0         
  -> 0AF40102:1F90      Masq    0      0          0         
UDP  0A60000A:0035 rr  
TCP  0A000001:7580 rr  
  -> 0AF40101:1F90      Masq    1      0          0         
TCP  0A000002:7580 rr  
  -> 0AF40101:1F90      Masq    1      0          0         
TCP  C0000201:0050 wlc  
  -> C0000202:0050      Route   1      0          0         
TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:0050 rr  
  -> [2001:0db8:0244:0001:0000:0000:0000:0001]:1F90      Masq    1      0          0         
FWM  00000001 rr  
";
const SETS: &str = "\
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-NODE-PORT-SCTP-HASH hash:ip,port family inet
add KUBE-NODE-PORT-SCTP-HASH 10.0.0.1,sctp:30007
create KUBE-CLUSTER-IP hash:ip,port family inet
add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
create KUBEOWN hash:ip
";

#[test]
fn virtual_servers_are_kube_proxys_by_its_device_and_its_sets() {
    let all = ipvs::parse(IPVS).unwrap();
    assert_eq!(all.len(), 7);
    let device = ["10.96.0.10", "fd00:96::10"].map(|ip| ip.parse().unwrap()).into();
    let ports = ipvs::node_ports(SETS);
    let port = |protocol: &str, port| (protocol.to_owned(), port);
    assert_eq!(ports, [port("SCTP", 30007), port("TCP", 30080)].into());
    let own = ipvs::own(&all, &device, &ports);
    assert_eq!(
        lines(&ipvs::served(&own, &device)),
        [
            "10.96.0.10:53/UDP Service  -> refused",
            "10.96.0.10:80/TCP Service  -> 10.244.1.1:8080",
            "[fd00:96::10]:80/TCP Service  -> [2001:db8:244:1::1]:8080",
            "nodePort 30080/TCP NodePort  -> 10.244.1.1:8080",
        ]
    );
    let removal: Vec<String> = ipvs::removal(&own).iter().map(|words| words.join(" ")).collect();
    assert_eq!(
        removal,
        [
            "-D -t 10.96.0.10:80",
            "-D -u 10.96.0.10:53",
            "-D -t 10.0.0.1:30080",
            "-D -t 10.0.0.2:30080",
            "-D -t [fd00:96::10]:80",
        ]
    );
    assert!(ipvs::restoration(&own).starts_with(
        "-A -t 10.96.0.10:80 -s rr -p 10800\n\
         -a -t 10.96.0.10:80 -r 10.244.1.1:8080 -m -w 1\n\
         -a -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 0\n\
         -A -u 10.96.0.10:53 -s rr\n"
    ));
    assert!(ipvs::is_set(Family::V4, "KUBE-CLUSTER-IP"));
    assert!(ipvs::is_set(Family::V6, "KUBE-6-CLUSTER-IP"));
    for (family, name) in [
        (Family::V4, "KUBE-6-CLUSTER-IP"),
        (Family::V6, "KUBE-CLUSTER-IP"),
        (Family::V4, "KUBEOWN"),
    ] {
        assert!(!ipvs::is_set(family, name), "{name}");
    }
    assert!(ipvs::parse("a\nb\nc\nnonsense\n").is_err());
    assert_eq!(ipvs::parse(""), Ok(vec![]));
}
