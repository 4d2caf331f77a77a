use std::{fmt::Write as _, net::IpAddr, num::NonZeroU16};

use proptest::prelude::*;
use xdp_lb_plan::{
    health::{AllDown, HealthCheck, Http, Probe, Udp},
    kubernetes::Serves,
    model::{Backend, Frontend, NoBackends, Protocol},
};

use super::*;

const EXAMPLE: &str = include_str!("../../../docs/example.yaml");
const PAGE: &str = include_str!("../../../docs/configuration.md");

/// A valid file without services, on two lines; what a test adds begins on line 3.
const HEAD: &str = "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{name: eth0}]\n";

/// The mistakes of `text`, without the file's name.
fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(Mistakes(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

fn with_head(rest: &str) -> String {
    format!("{HEAD}{rest}")
}

/// One service `s` with the given frontends and backends, in flow style on lines 3 to 5.
fn service(frontends: &str, backends: &str) -> String {
    with_head(&format!(
        "services: [{{name: s,\n  frontends: [{frontends}],\n  backends: [{backends}]}}]\n"
    ))
}

const FRONTEND: &str = "{address: 203.0.113.10, port: 80}";

/// Checks a table of (what follows the head, the mistakes).
fn check(table: &[(&str, &[&str])]) {
    for (rest, expected) in table {
        assert_eq!(mistakes(&with_head(rest)), *expected, "of {rest:?}");
    }
}

#[test]
fn the_example_says_what_its_comments_say() {
    let config = parse(EXAMPLE).unwrap_or_else(|m| panic!("{}", m.in_file("example.yaml")));
    assert_eq!(
        config.devices,
        [
            Device { name: "eth0".to_owned(), xdp: Attach::Native },
            Device { name: "eth1".to_owned(), xdp: Attach::NativeOrGeneric },
        ]
    );
    assert_eq!(config.hash_key[..4], [0x6a, 0x1f, 0x0c, 0x93]);
    assert_eq!(config.tunnel.source_v4, Some("10.200.0.0/24".parse().unwrap()));
    assert_eq!(config.tunnel.source_v6, Some("fd00:200::/96".parse().unwrap()));
    assert_eq!(config.terminate.unwrap().peers.len(), 2);
    let [web, dns, ..] = &config.services[..] else { panic!("two services") };
    assert_eq!((web.name.as_str(), web.mode, web.table_size), ("web", Mode::L2, None));
    assert_eq!(web.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!((dns.name.as_str(), dns.mode, dns.table_size), ("dns", Mode::Ipip, Some(65_537)));
    let port = NonZeroU16::new(53).unwrap();
    let address: IpAddr = [203, 0, 113, 53].into();
    assert_eq!(dns.frontends, [Frontend { address, port, protocol: Protocol::Udp }]);
    let address: IpAddr = [10, 0, 2, 21].into();
    assert_eq!(dns.backends[0], Backend { port: Some(port), ..Backend::new(address) });
}

#[test]
fn the_examples_limits_are_the_defaults() {
    let example = parse(EXAMPLE).unwrap();
    let bare = parse(HEAD).unwrap();
    assert_eq!(example.limits, bare.limits);
    assert_eq!(example.icmp_errors_per_second, bare.icmp_errors_per_second);
    assert_eq!(example.handover, bare.handover);
    assert_eq!((example.idle, bare.idle), (IdleTimes::default(), IdleTimes::default()));
    assert_eq!(bare.handover, Duration::from_secs(300));
    assert_eq!((bare.tunnel, bare.terminate, bare.services), (Tunnel::default(), None, vec![]));
}

#[test]
fn the_page_shows_the_example() {
    let (_, rest) = PAGE.split_once("```yaml\n").unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    assert_eq!(shown, EXAMPLE);
}

#[test]
fn mistakes_are_shown_with_file_and_place() {
    let text = "hashKey: 1\nservices:\n  - nam: x\n";
    let shown = parse(text).unwrap_err().in_file("lb.yaml").to_string();
    assert_eq!(
        shown,
        "lb.yaml:1:1: devices: is missing: add `devices: [{name: eth0}]`\n\
         lb.yaml:1:10: hashKey: YAML takes this for a number or a truth value: put it in quotes\n\
         lb.yaml:3:5: services[0].nam: unknown key: did you mean `name`?\n\
         lb.yaml:3:5: services[0].name: is missing: add `name: web`\n\
         lb.yaml:3:5: services[0].frontends: is missing: add `frontends: [{address: 203.0.113.10, \
         port: 80}]`\n\
         lb.yaml:3:5: services[0].backends: is missing: add `backends: []`"
    );
}

#[test]
fn the_key_is_not_shown() {
    let shown = format!("{:?}", parse(HEAD).unwrap());
    assert!(!shown.contains("17, 34"), "{shown}");
    assert!(!shown.contains("1122"), "{shown}");
    assert!(shown.contains("eth0"), "{shown}");
    let bad = "hashKey: \"00112233445566778899aabbccddeef\"\ndevices: [{name: eth0}]\n";
    assert!(!mistakes(bad)[0].contains("1122"));
}

#[test]
fn files_that_are_no_document() {
    let empty = "1:1: the file is empty: it needs at least `hashKey` and `devices`";
    let table: &[(&str, &[&str])] = &[
        ("", &[empty]),
        ("# nothing\n\n", &[empty]),
        ("---\n", &[empty]),
        ("~", &[empty]),
        (
            "[]",
            &[
                "1:1: found a list: write a mapping with the keys `hashKey`, `devices`, `services`, \
               `defaultMode`, `tunnel`, `terminate`, `snat`, `nodePortAddresses`, `unknownPorts`, \
               `limits`, `icmpErrorsPerSecond`, `handover`, `tcpIdle`, `udpIdle`, `api`, `kubernetes`, \
               `kubeProxyReplacement`, `socketLB`, `nodePort`, `externalIPs`, `loadBalancer`, \
               `metrics`",
            ],
        ),
        ("a: [1\nb: 2\n", &["2:2: not valid YAML: illegal placement of ':' indicator"]),
        ("devices: *x\n", &["1:10: not valid YAML: while parsing node, found unknown anchor"]),
        ("a: &x [*x]\n", &["1:8: this alias stands for something that it is part of"]),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(text), *expected, "of {text:?}");
    }
    let two = with_head("---\nservices: 1\n");
    assert_eq!(
        mistakes(&two),
        ["3:1: a second document begins here: write everything into one, without `---`"]
    );
    assert_eq!(mistakes(&format!("---\n{HEAD}...\n")), [""; 0]);
    assert_eq!(mistakes(&format!("\u{feff}{HEAD}")), [""; 0]);
    assert_eq!(mistakes(&HEAD.replace('\n', "\r\n")), [""; 0]);
}

#[test]
fn keys_at_the_top() {
    check(&[
        ("defaultMode: ipip\n", &[]),
        ("service: []\n", &["3:1: service: unknown key: did you mean `services`?"]),
        ("default_mode: l2\n", &["3:1: default_mode: unknown key: did you mean `defaultMode`?"]),
        (
            "x: 1\n",
            &["3:1: x: unknown key: the keys here are `hashKey`, `devices`, `services`, \
               `defaultMode`, `tunnel`, `terminate`, `snat`, `nodePortAddresses`, `unknownPorts`, \
               `limits`, `icmpErrorsPerSecond`, `handover`, `tcpIdle`, `udpIdle`, `api`, `kubernetes`, \
               `kubeProxyReplacement`, `socketLB`, `nodePort`, `externalIPs`, `loadBalancer`, \
               `metrics`"],
        ),
        (
            "handover: 1s\nhandover: 2s\nhandover: 3s\n",
            &[
                "4:1: handover: the key is already on line 3: remove one of the two",
                "5:1: handover: the key is already on line 3: remove one of the two",
            ],
        ),
        (
            "limits: {[a]: 1}\n",
            &["3:10: limits: the key is a list: write one of `frontends`, `backends`, `slots`, \
               `flows`, `clients`, `answers`, `natFlows`, `sockets`"],
        ),
        ("services:\n", &["3:1: services: has no value: write one, or remove the key"]),
        (
            "services: {}\n",
            &[
                "3:11: services: found a mapping: write a list of services; `[]` where there is none",
            ],
        ),
        ("services: []\n", &[]),
        ("services: !all []\n", &["3:11: tags (`!…`) mean nothing here: remove the tag"]),
        (
            "defaultMode: [l2]\n",
            &[
                "3:14: defaultMode: found a list: write one of `l2`, `ipip`, `geneve`, `local`, `snat`, `hybrid`",
            ],
        ),
        ("defaultMode: L2\n", &["3:14: defaultMode: found the text \"L2\": write `l2`"]),
        (
            "defaultMode: dsr\n",
            &[
                "3:14: defaultMode: found the text \"dsr\": write one of `l2`, `ipip`, `geneve`, `local`, `snat`, `hybrid`",
            ],
        ),
    ]);
}

#[test]
fn hash_keys() {
    let of = |key: &str| mistakes(&format!("hashKey: {key}\ndevices: [{{name: eth0}}]\n"));
    let wanted = "write 32 hexadecimal digits in quotes, for example the output of `openssl rand \
                  -hex 16`";
    let others = |n| format!("1:10: hashKey: not a key, but {n} other characters: {wanted}");
    assert_eq!(of("\"00112233445566778899AABBCCDDEEFF\""), [""; 0]);
    assert_eq!(of("00112233445566778899aabbccddeeff"), [""; 0]);
    assert_eq!(of("\"00112233445566778899aabbccddeef\""), [others(31)]);
    assert_eq!(of("\"0x112233445566778899aabbccddeeff\""), [others(32)]);
    assert_eq!(of("\"+0112233445566778899aabbccddeeff\""), [others(32)]);
    assert_eq!(of("\"éééééééééééééééé\""), [others(16)]);
    assert_eq!(
        of("\"00000000000000000000000000000000\""),
        [format!("1:10: hashKey: a key of zeros lets clients choose their backend: {wanted}")]
    );
    assert_eq!(
        of("00112233445566778899001122334455"),
        ["1:10: hashKey: YAML takes this for a number or a truth value: put it in quotes"]
    );
    assert_eq!(of(""), ["1:1: hashKey: has no value: write one, or remove the key"]);
}

#[test]
fn device_lists() {
    let of = |devices: &str| {
        mistakes(&format!("hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{devices}]\n"))
    };
    let name = |name: &str| of(&format!("{{name: {name}}}"));
    let wanted = "write the name of a network interface, like `eth0`";
    assert_eq!(of("{name: eth0, xdp: generic}, {name: eth0.5}"), [""; 0]);
    assert_eq!(of(""), ["2:10: devices: there is no device: add one, like `{name: eth0}`"]);
    assert_eq!(
        of("eth0"),
        ["2:11: devices[0]: found the text \"eth0\": write a mapping with the keys `name`, `xdp`"]
    );
    assert_eq!(of("{xdp: native}"), ["2:11: devices[0].name: is missing: add `name: eth0`"]);
    assert_eq!(
        of("{name: a}, {name: b}, {name: a}"),
        ["2:40: devices[2].name: a is already on line 2: remove one"]
    );
    assert_eq!(name("abcdefghijklmno"), [""; 0]);
    for (bad, why) in [
        ("abcdefghijklmnop", "is longer than 15 bytes"),
        ("\"\"", "is empty"),
        ("..", "is the name of a directory"),
        ("a/b", "contains `/` or `:`"),
        ("\"a:b\"", "contains `/` or `:`"),
        ("a b", "contains a space"),
    ] {
        let quoted = bad.trim_matches('"');
        let expected = format!("2:18: devices[0].name: \"{quoted}\" {why}: {wanted}");
        assert_eq!(name(bad), [expected]);
    }
    assert_eq!(
        name("12"),
        ["2:18: devices[0].name: YAML takes this for a number or a truth value: put it in quotes"]
    );
    assert_eq!(
        of("{name: a, xdp: nativ}"),
        ["2:26: devices[0].xdp: found the text \"nativ\": write `native`"]
    );
    let many: String = (0..256).map(|i| format!("{{name: d{i}}}, ")).collect();
    assert_eq!(
        of(&many),
        ["2:10: devices: 256 devices are too many: one instance serves at most 255"]
    );
}

#[test]
fn service_rules() {
    check(&[
        (
            "services: [{name: a b, frontends: [], backends: []}]",
            &[
                "3:19: services[0].name: not a name: write 1 to 253 of the characters a-z, A-Z, \
                 0-9, `.`, `_`, `/`, `-`",
                "3:35: services[0].frontends: there is no frontend: add one, like `{address: \
                 203.0.113.10, port: 80}`",
            ],
        ),
        (
            "services:\n- {name: a, frontends: [{address: 1.1.1.1, port: 1}], backends: []}\n\
             - {name: a, frontends: [{address: 1.1.1.2, port: 1}], backends: []}\n",
            &["5:10: services[1].name: the service on line 4 has the same name: write another"],
        ),
        (
            "services:\n- {name: a, frontends: [{address: 1.1.1.1, port: 1}], backends: []}\n\
             - {name: b, frontends: [{address: 1.1.1.1, port: 1, protocol: udp}], backends: []}\n\
             - {name: c, frontends: [{address: 1.1.1.1, port: 1, protocol: tcp}], backends: []}\n",
            &["6:25: services[2].frontends[0]: 1.1.1.1:1/TCP is already services[0].frontends[0] \
               on line 4: remove one of the two"],
        ),
        (
            "limits: {frontends: 1}\nservices: [\n \
             {name: a, frontends: [{address: 1.1.1.1, port: 1}], backends: []},\n \
             {name: b, frontends: [{address: 1.1.1.2, port: 1}], backends: []}]\n",
            &["4:11: services: 2 frontends are more than `limits.frontends`, 1: raise that limit"],
        ),
        (
            "services: [3]",
            &["3:12: services[0]: found the number 3: write a mapping with the keys \
                             `name`, `mode`, `tableSize`, `sessionAffinity`, `sourceRanges`, \
                             `noBackends`, `healthCheck`, `frontends`, `backends`"],
        ),
    ]);
}

#[test]
fn frontend_rules() {
    let of = |frontends: &str| mistakes(&service(frontends, ""));
    assert_eq!(of(FRONTEND), [""; 0]);
    assert_eq!(
        of(&format!("{FRONTEND}, {FRONTEND}")),
        [
            "4:50: services[0].frontends[1]: 203.0.113.10:80/TCP is already services[0].frontends[0] \
         on line 4: remove one of the two"
        ]
    );
    assert_eq!(
        of("{}"),
        [
            "4:15: services[0].frontends[0].address: is missing: add `address: 203.0.113.10`",
            "4:15: services[0].frontends[0].port: is missing: add `port: 80`",
        ]
    );
    let at = "4:44: services[0].frontends[0].port:";
    let port = |port: &str| of(&format!("{{address: 203.0.113.1, port: {port}}}"));
    let range = "write a whole number from 1 to 65535";
    assert_eq!(port("65535"), [""; 0]);
    assert_eq!(port("65536"), [format!("{at} 65536 is out of range: {range}")]);
    assert_eq!(port("0"), [format!("{at} 0 is out of range: {range}")]);
    assert_eq!(port("-1"), [format!("{at} -1 is out of range: {range}")]);
    assert_eq!(port("\"80\""), [format!("{at} the number is a text: write 80 without quotes")]);
    for (bad, found) in [
        ("8.0", "the number 8.0"),
        ("0x50", "the number 0x50"),
        ("080", "the number 080"),
        ("http", "the text \"http\""),
        ("true", "the truth value true"),
        ("[80]", "a list"),
    ] {
        let digits = if bad == "[80]" { "" } else { ", in decimal digits" };
        assert_eq!(port(bad), [format!("{at} found {found}: {range}{digits}")]);
    }
    let protocol = |p: &str| of(&format!("{{address: 203.0.113.1, port: 1, protocol: {p}}}"));
    for good in ["TCP", "tcp", "UDP", "udp", "SCTP", "\"sctp\""] {
        assert_eq!(protocol(good), [""; 0]);
    }
    assert_eq!(
        protocol("icmp"),
        ["4:57: services[0].frontends[0].protocol: found the text \"icmp\": write `TCP`, \
         `UDP` or `SCTP`"]
    );
}

#[test]
fn addresses() {
    let route = ": write an address that can be routed to";
    for (bad, message) in [
        ("0.0.0.0", format!("0.0.0.0 is the unspecified address{route}")),
        ("0.1.2.3", format!("0.1.2.3 is in 0.0.0.0/8, which no host can have{route}")),
        (
            "127.0.0.1",
            format!("127.0.0.1 is a loopback address, which never leaves its host{route}"),
        ),
        (
            "224.0.0.1",
            format!("224.0.0.1 is a multicast address, which is no single host's{route}"),
        ),
        ("255.255.255.255", format!("255.255.255.255 is the broadcast address{route}")),
        ("\"::\"", format!(":: is the unspecified address{route}")),
        ("\"::1\"", format!("::1 is a loopback address, which never leaves its host{route}")),
        (
            "\"ff02::1\"",
            format!("ff02::1 is a multicast address, which is no single host's{route}"),
        ),
        (
            "\"febf::1\"",
            format!(
                "febf::1 is a link-local address, and there is no interface that it belongs \
                 to{route}"
            ),
        ),
        (
            "\"::ffff:192.0.2.1\"",
            "::ffff:192.0.2.1 is an IPv4 address in IPv6 form: write 192.0.2.1".to_owned(),
        ),
        (
            "010.0.0.1",
            "010.0.0.1 has leading zeros, which some programs take for octal: remove them"
                .to_owned(),
        ),
        ("10.0.0.1/32", "10.0.0.1/32 is a prefix: write one address".to_owned()),
        ("\"fe80::1%eth0\"", "fe80::1%eth0 names an interface: leave `%…` out".to_owned()),
        (
            "example.org",
            "found the text \"example.org\": write an IPv4 or IPv6 address, like `203.0.113.10` \
             or `\"2001:db8::10\"`"
                .to_owned(),
        ),
        (
            "10.1",
            "found the number 10.1: write an IPv4 or IPv6 address, like `203.0.113.10` or \
             `\"2001:db8::10\"`"
                .to_owned(),
        ),
    ] {
        let text = service(&format!("{{address: {bad}, port: 80}}"), "");
        assert_eq!(mistakes(&text), [format!("4:25: services[0].frontends[0].address: {message}")]);
        let text = service(FRONTEND, &format!("{{address: {bad}}}"));
        assert_eq!(mistakes(&text), [format!("5:24: services[0].backends[0].address: {message}")]);
    }
    for good in ["169.254.20.10", "240.0.0.1", "\"fd00::1\"", "\"fec0::1\"", "2001:db8::1"] {
        assert_eq!(mistakes(&service(FRONTEND, &format!("{{address: {good}}}"))), [""; 0]);
    }
}

#[test]
fn backend_rules() {
    let of = |backends: &str| mistakes(&service(FRONTEND, backends));
    let other = "{address: 203.0.113.10, port: 443}";
    let two = |backends: &str| mistakes(&service(&format!("{FRONTEND}, {other}"), backends));
    assert_eq!(of("{address: 10.0.0.1}, {address: 10.0.0.2, port: 80, weight: 65535}"), [""; 0]);
    assert_eq!(of("{address: 10.0.0.1, weight: 0}"), [""; 0]);
    assert_eq!(
        of("{address: 10.0.0.1, weight: 65536}"),
        [
            "5:42: services[0].backends[0].weight: 65536 is out of range: write a whole number from 0 \
         to 65535"
        ]
    );
    assert_eq!(
        of("{address: 10.0.0.1, port: 8080}"),
        [
            "5:40: services[0].backends[0].port: mode l2 changes no port: write the frontend's, 80, or \
         leave it out"
        ]
    );
    assert_eq!(two("{address: 10.0.0.1}"), [""; 0]);
    assert_eq!(
        two("{address: 10.0.0.1, port: 80}"),
        ["5:40: services[0].backends[0].port: mode l2 changes no port, and the frontends have \
         different ones: leave it out"]
    );
    assert_eq!(
        of("{address: 203.0.113.10}"),
        ["5:24: services[0].backends[0].address: 203.0.113.10 is a frontend of this service, so \
         packets would come back again and again: write the server's own address"]
    );
    for second in ["{address: 10.0.0.1}", "{address: 10.0.0.1, port: 80, weight: 3}"] {
        assert_eq!(
            of(&format!("{{address: 10.0.0.1}},\n {second}")),
            [
                "6:2: services[0].backends[1]: the backend is already on line 5: remove one, or give \
             it more `weight`"
            ]
        );
    }
    assert_eq!(
        of("{addr: 10.0.0.1, weight: x}"),
        [
            "5:14: services[0].backends[0].address: is missing: add `address: 10.0.1.11`",
            "5:15: services[0].backends[0].addr: unknown key: the keys here are `address`, `port`, \
         `weight`, `node`",
            "5:39: services[0].backends[0].weight: found the text \"x\": write a whole number from 0 \
         to 65535, in decimal digits",
        ]
    );
    let count = |count: usize| {
        let list = (0..count).map(|i| format!("{{address: 10.0.{}.{}}}, ", i >> 8, i & 255));
        of(&list.collect::<String>())
    };
    assert_eq!(count(xdp_lb_abi::MAX_SERVICE_BACKENDS), [""; 0]);
    assert_eq!(
        count(xdp_lb_abi::MAX_SERVICE_BACKENDS + 1),
        ["5:13: services[0].backends: 32768 backends are too many: a service has at most 32767"]
    );
}

#[test]
fn a_broken_frontend_brings_no_further_mistakes() {
    let text = service("{address: 203.0.113.10, port: x}", "{address: 10.0.0.1, port: 8080}");
    assert_eq!(mistakes(&text).len(), 1);
    let text = service(FRONTEND, "{address: 10.0.0.1, port: 8080}")
        .replace("name: s,", "name: s, mode: hybrid,");
    assert_eq!(mistakes(&text).len(), 1);
}

#[test]
fn table_sizes() {
    let of = |size: &str, count: usize| {
        let list: String = (1..=count).map(|i| format!("{{address: 10.0.0.{i}}}, ")).collect();
        let size = format!("name: s, tableSize: {size},");
        mistakes(&service(FRONTEND, &list).replace("name: s,", &size))
    };
    let at = "3:33: services[0].tableSize:";
    assert_eq!(of("251", 2), [""; 0]);
    assert_eq!(of("131071", 2), [""; 0]);
    assert_eq!(of("1", 0), [""; 0]);
    assert_eq!(
        of("251", 3),
        [format!("{at} 251 is too small for 3 backends: write at least 1021, or leave it out")]
    );
    let sizes = "1, 251, 1021, 4093, 16381, 65537, 131071";
    assert_eq!(of("65536", 3), [format!("{at} 65536 is none of the sizes {sizes}: write 65537")]);
    assert_eq!(
        of("200000", 3),
        [format!("{at} 200000 is none of the sizes {sizes}: write 131071")]
    );
}

#[test]
fn tunnels_and_peers() {
    let v4 = "write an IPv4 prefix, like `10.200.0.0/24`";
    check(&[
        ("tunnel: {}\n", &[]),
        ("tunnel: {sourceIPv4: 10.0.0.1/32}\n", &[]),
        ("tunnel: {sourceIPv6: \"fd00::/64\"}\n", &[]),
        (
            "tunnel: {sourceIPv4: 10.0.0.1/24}\n",
            &["3:22: tunnel.sourceIPv4: 10.0.0.1/24 has bits set behind the prefix: write \
               10.0.0.0/24"],
        ),
        (
            "tunnel: {sourceIPv4: \"fd00::/64\"}\n",
            &["3:22: tunnel.sourceIPv4: fd00::/64 is of the other family: write an IPv4 prefix, \
               like `10.200.0.0/24`"],
        ),
        (
            "tunnel: {sourceIPv6: 10.0.0.0/24}\n",
            &[
                "3:22: tunnel.sourceIPv6: 10.0.0.0/24 is of the other family: write an IPv6 prefix, \
               like `\"fd00:200::/96\"`",
            ],
        ),
        (
            "tunnel: {sourceIPv4: 0.0.0.0/0}\n",
            &[&format!("3:22: tunnel.sourceIPv4: 0.0.0.0 is the unspecified address: {v4}")],
        ),
        (
            "tunnel: {sourceIPv4: 010.0.0.0/24}\n",
            &[
                "3:22: tunnel.sourceIPv4: 010.0.0.0 has leading zeros, which some programs take for \
               octal: remove them",
            ],
        ),
        ("terminate: {peers: [10.0.0.0/24, \"fd00::/64\", 0.0.0.0/0]}\n", &[]),
        ("terminate: {}\n", &["3:12: terminate.peers: is missing: add `peers: [10.0.0.0/24]`"]),
        (
            "terminate: {peers: []}\n",
            &["3:20: terminate.peers: there is no prefix: add one, or remove the key"],
        ),
        (
            "terminate: {peers: 10.0.0.0/8}\n",
            &["3:20: terminate.peers: found the text \"10.0.0.0/8\": write a list of prefixes, \
               like `[10.0.0.0/24]`"],
        ),
        (
            "terminate:\n  peers:\n  - 10.0.0.5\n  - 10.0.0.0/33\n  - 10.0.0.0/08\n  - x\n  \
             - 224.0.0.0/8\n  - \"::ffff:0:0/96\"\n  - 10.0.0.0/8\n  - 10.0.0.0/8\n",
            &[
                "5:5: terminate.peers[0]: the prefix has no length: write `10.0.0.5/32` for this \
                 one address",
                "6:5: terminate.peers[1]: \"33\" is no length from 0 to 32",
                "7:5: terminate.peers[2]: \"08\" is no length from 0 to 32",
                "8:5: terminate.peers[3]: found the text \"x\": write a prefix, like \
                 `10.0.0.0/24` or `\"fd00::/64\"`",
                "9:5: terminate.peers[4]: 224.0.0.0/8 holds multicast addresses: write a prefix of \
                 hosts",
                "10:5: terminate.peers[5]: ::ffff:0.0.0.0 is an IPv4 address in IPv6 form: write \
                 0.0.0.0",
                "12:5: terminate.peers[7]: 10.0.0.0/8 is already on line 11: remove one",
            ],
        ),
    ]);
}

#[test]
fn numbers_and_durations() {
    check(&[
        ("limits: {frontends: 1, backends: 1, slots: 1, flows: 1}\n", &[]),
        (
            "limits: {frontends: 0, backends: 8388609, slots: 536870913, flows: 99999999999}\n",
            &[
                "3:21: limits.frontends: 0 is out of range: write a whole number from 1 to 1048576",
                "3:34: limits.backends: 8388609 is out of range: write a whole number from 1 to \
                 8388608",
                "3:50: limits.slots: 536870913 is out of range: write a whole number from 1 to \
                 536870912",
                "3:68: limits.flows: 99999999999 is out of range: write a whole number from 1 to \
                 8388608",
            ],
        ),
        ("icmpErrorsPerSecond: 0\n", &[]),
        (
            "icmpErrorsPerSecond: many\n",
            &[
                "3:22: icmpErrorsPerSecond: found the text \"many\": write a whole number from 0 to \
               1000000, in decimal digits",
            ],
        ),
        ("handover: 0s\n", &[]),
        ("handover: 24h\n", &[]),
        ("tcpIdle: 10s\nudpIdle: 24h\n", &[]),
        ("tcpIdle: 9s\n", &["3:10: tcpIdle: 9s is too short: write at least `10s`"]),
        ("udpIdle: 25h\n", &["3:10: udpIdle: 25h is too long: write at most `24h`"]),
        ("handover: 300\n", &["3:11: handover: the unit is missing: write `300s` for seconds"]),
        ("handover: 25h\n", &["3:11: handover: 25h is too long: write at most `24h`"]),
        (
            "handover: 99999999999999999999h\n",
            &["3:11: handover: 99999999999999999999h is too long: write at most `24h`"],
        ),
        (
            "handover: 1.5h\n",
            &["3:11: handover: found the text \"1.5h\": write a duration in seconds, minutes or \
               hours, like `90s`, `5m` or `1h`"],
        ),
        (
            "handover: s\n",
            &["3:11: handover: found the text \"s\": write a duration in seconds, minutes or \
               hours, like `90s`, `5m` or `1h`"],
        ),
    ]);
    let handover = |text| parse(&with_head(text)).unwrap().handover.as_secs();
    assert_eq!(handover("handover: 90s"), 90);
    assert_eq!(handover("handover: 5m"), 300);
    assert_eq!(handover("handover: 1h"), 3600);
    assert_eq!(handover("handover: 0s"), 0);
}

#[test]
fn aliases_share_lists() {
    let text = with_head(
        "services:\n- {name: a, frontends: [{address: 1.1.1.1, port: 1}], backends: &pool \
         [{address: 10.0.0.1}]}\n- {name: b, frontends: [{address: 1.1.1.2, port: 1}], backends: \
         *pool}\n",
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.services[0].backends, config.services[1].backends);
    assert_eq!(config.services[1].backends.len(), 1);
}

#[test]
fn aliases_cannot_blow_up() {
    let mut text = with_head("services:\n- &l0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*l{}, ", level - 1).repeat(10);
        writeln!(text, "- &l{level} [{below}]").unwrap();
    }
    let found = mistakes(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].ends_with("stand for more than 10000000 values: use fewer"), "{found:?}");

    // Each level holds the one before: deep without being large.
    let mut text = with_head("services:\n- &l0 [x]\n");
    for level in 1..1000 {
        writeln!(text, "- &l{level} [*l{}]", level - 1).unwrap();
    }
    assert!(mistakes(&text)[0].ends_with("nested more than 16 levels deep; the format needs 5"));
}

#[test]
fn depth_and_size_are_bounded() {
    for open in ["[", "{a: ", "- ", "? "] {
        let found = mistakes(&open.repeat(1_000_000));
        assert_eq!(found.len(), 1, "{open}: {found:?}");
    }
    let large = format!("{HEAD}{}", "#\n".repeat(MAX_FILE / 2));
    assert_eq!(
        mistakes(&large),
        ["1:1: the file is larger than 64 MiB: split it among several instances"]
    );
    assert_eq!(mistakes(&with_head(&" \n".repeat(1_000_000))), [""; 0]);
}

#[test]
fn a_file_of_nothing_but_mistakes_ends_with_their_number() {
    let found = mistakes(&with_head(&format!("services: [{}]", "1, ".repeat(20_000))));
    assert_eq!(found.len(), 10_001);
    assert!(found[10_000].ends_with("10000 more mistakes are not listed: correct these first"));
    let long = mistakes(&with_head(&format!("{}: 1\n\"\\e[1m\": 1\n", "k".repeat(1000))));
    assert!(long[0].len() < 500, "{long:?}");
    assert!(long[1].contains("\\u{1b}[1m"), "{long:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_yaml_makes_it_panic(text in "[-:{}\\[\\]&*!|>'\"%@#, \n\ta0x~?\u{1}\u{feff}]{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mutation_of_a_good_file_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, ".{0,3}"), 1..6),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (start, length, with) in edits {
            let start = start.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, with.chars());
        }
        let _ = parse(&String::from_iter(text));
    }

    #[test]
    fn removing_a_line_gives_a_config_or_places_inside_the_file(
        line in 0..EXAMPLE.lines().count(),
    ) {
        let kept = EXAMPLE.lines().enumerate().filter(|(index, _)| *index != line);
        let text: String = kept.map(|(_, line)| format!("{line}\n")).collect();
        if let Err(Mistakes(mistakes)) = parse(&text) {
            prop_assert!(!mistakes.is_empty());
            for mistake in mistakes {
                prop_assert!((1..=text.lines().count()).contains(&(mistake.line as usize)), "{mistake}");
                prop_assert!(!mistake.message.is_empty());
            }
        }
    }

    #[test]
    fn what_is_declared_is_what_is_read(
        backends in prop::collection::btree_map(0x0a00_0000_u32..0x0aff_ffff, any::<u16>(), 0..50),
    ) {
        let list: String = backends
            .iter()
            .map(|(a, w)| format!("{{address: {}, weight: {w}}}, ", std::net::Ipv4Addr::from(*a)))
            .collect();
        let config = parse(&service(FRONTEND, &list)).unwrap();
        let read = config.services[0].backends.iter().map(|b| (b.address, b.weight));
        let wrote = backends.iter().map(|(a, w)| (std::net::Ipv4Addr::from(*a).into(), *w));
        prop_assert_eq!(read.collect::<Vec<_>>(), wrote.collect::<Vec<_>>());
    }
}

#[test]
fn the_section_kubernetes() {
    let ways = "add `kubeconfig: FILE`, `inCluster: true` in a pod, or `apiServers: [HOST:PORT]`";
    let nowhere = format!("3:13: kubernetes: it does not say where the cluster is: {ways}");
    check(&[
        ("kubernetes: {inCluster: true}\n", &[]),
        ("kubernetes: {kubeconfig: /k, context: c, apiServers: [10.0.0.1:6443]}\n", &[]),
        ("kubernetes: {k8sServiceHost: \"2001:db8::1\", k8sServicePort: 6443}\n", &[]),
        ("kubernetes: {apiServers: [\"http://127.0.0.1:8001\"], healthz: []}\n", &[]),
        ("kubernetes: {inCluster: true, loadBalancerClass: [\"\", a.b/c], onNode: false}\n", &[]),
        ("kubernetes: {nodeName: n1}\n", &[&nowhere]),
        (
            "kubernetes: {apiServers: [\"http://10.0.0.1:8001\"], inCluster: true}\n",
            &["3:27: kubernetes.apiServers[0]: `http` is for this host alone (`kubectl proxy`): \
               write `https://…`"],
        ),
        (
            "kubernetes: {k8sServiceHost: api.example.org, inCluster: true}\n",
            &["3:30: kubernetes.k8sServiceHost: the port is missing: add `k8sServicePort: 6443`"],
        ),
        (
            "kubernetes: {inCluster: true, nodeName: n1, onNode: false}\n",
            &[
                "3:41: kubernetes.nodeName: with `onNode: false` this host is no node: remove one of \
               the two",
            ],
        ),
        (
            "kubernetes: {inCluster: true, defaultMode: l2}\n",
            &[
                "3:44: kubernetes.defaultMode: found the text \"l2\": write one of `geneve`, `snat`, \
               `hybrid`",
            ],
        ),
    ]);
    let config = parse(&with_head("kubernetes: {apiServers: [10.0.0.1:6443, \"[::1]:6443\"]}\n"));
    let kubernetes = config.unwrap().kubernetes.unwrap();
    assert_eq!(kubernetes.servers, ["https://10.0.0.1:6443", "https://[::1]:6443"]);
    assert_eq!(kubernetes.credentials, Credentials::ServiceAccount);
    assert_eq!(kubernetes.node, NodeIdentity::Node(None));
    let listens: Vec<String> = kubernetes.healthz.iter().map(ToString::to_string).collect();
    assert_eq!(listens, ["0.0.0.0:10256", "[::]:10256"]);
}

#[test]
fn the_section_api() {
    let remote = "api: {listen: \"0.0.0.0:9870\", readTokenFile: /r, \
                  tls: {certificate: /c, key: /k}}\n";
    check(&[
        ("api: {listen: 127.0.0.1:9870, group: admin, socket: /run/x}\n", &[]),
        ("api: {listen: \"[::1]:9870\"}\n", &[]),
        (remote, &[]),
        (
            "api: {listen: 192.0.2.1:9870, readTokenFile: /r}\n",
            &["3:15: api.listen: 192.0.2.1 is no loopback address, so the API needs \
               `readTokenFile` or `writeTokenFile`, and `tls`"],
        ),
        (
            "api: {listen: 9870}\n",
            &["3:15: api.listen: YAML takes this for a number or a truth value: put it in quotes"],
        ),
        (
            "api: {socket: api.sock, tls: {key: /k}}\n",
            &[
                "3:15: api.socket: \"api.sock\" is no absolute path: begin it with `/`",
                "3:30: api.tls.certificate: is missing: add \
                 `certificate: /etc/xdp-lb/tls.crt`",
            ],
        ),
    ]);
    let config = parse(&with_head(remote)).unwrap();
    assert_eq!(config.api.socket, std::path::Path::new(SOCKET));
    assert_eq!(config.api.tls, Some(("/c".into(), "/k".into())));
}

#[test]
fn a_service_as_json_has_its_mistakes_at_pointers() {
    let value = serde_json::json!({
        "name": "a",
        "mode": "l3",
        "frontends": [
            {"address": "203.0.113.10", "port": 80},
            {"address": "203.0.113.10", "port": 80},
            {"address": "203.0.113.10", "port": "81"},
        ],
        "backends": [{"address": null}, {"address": "10.0.0.1", "a/b~c": 1}],
    });
    let mut found: Vec<String> = service_from_json(&value, Mode::L2, &[])
        .unwrap_err()
        .0
        .into_iter()
        .map(|one| format!("{} {}", one.path, one.message))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "/backends/0/address has no value: write one, or remove the key",
            "/backends/1/a~1b~0c unknown key: the keys here are `address`, `port`, `weight`, `node`",
            "/frontends/1 203.0.113.10:80/TCP is already frontends[0]: remove one of the \
             two",
            "/frontends/2/port the number is a text: write 81 without quotes",
            "/mode found the text \"l3\": write one of `l2`, `ipip`, `geneve`, `local`, `snat`, `hybrid`",
        ]
    );
}

#[test]
fn services_are_written_as_they_are_read() {
    for service in parse(EXAMPLE).unwrap().services {
        let value = service_to_json(&service);
        assert_eq!(service_from_json(&value, Mode::L2, &[]).unwrap(), service);
        assert_eq!(service_from_json(&value, Mode::Ipip, &[]).unwrap(), service);
    }
    let yaml = yaml_to_json(EXAMPLE).unwrap();
    let read = |value| service_from_json(value, Mode::L2, &[]).unwrap();
    let services: Vec<_> = yaml["services"].as_array().unwrap().iter().map(read).collect();
    assert_eq!(services, parse(EXAMPLE).unwrap().services);
}

#[test]
fn the_section_metrics() {
    check(&[
        ("metrics: {perBackend: false, maxSeries: 0}\n", &[]),
        (
            "metrics: {perBackend: no, series: 5}\n",
            &[
                "3:23: metrics.perBackend: found the text \"no\": write one of `true`, `false`",
                "3:27: metrics.series: unknown key: did you mean `maxSeries`?",
            ],
        ),
    ]);
    let config = parse(&with_head("metrics: {perBackend: false, maxSeries: 7}\n")).unwrap();
    assert_eq!(config.metrics, MetricsConfig { per_backend: false, max_series: 7 });
    assert_eq!(settings_to_json(&config)["metrics"]["maxSeries"], 7);
}

#[test]
fn what_is_shown_of_the_configuration_has_no_secret() {
    let shown = settings_to_json(&parse(EXAMPLE).unwrap()).to_string();
    assert!(!shown.contains("6a1f0c93") && !shown.contains("hashKey"), "{shown}");
    assert!(shown.contains("10.200.0.0/24"), "{shown}");
}

#[test]
fn pods_and_node_ports() {
    let text = "hashKey: \"00112233445566778899aabbccddeeff\"
devices: [{name: eth0}]
terminate: {peers: [10.0.0.0/24], pods: [10.244.1.0/24]}
snat: {sourceIPv4: 10.0.0.9, ports: 50000-50999}
nodePortAddresses: [10.0.0.0/8]
unknownPorts: pass
limits: {answers: 1000000, natFlows: 1000}
services:
  - name: shop
    mode: geneve
    sessionAffinity: 3h
    sourceRanges: [198.51.100.0/24, \"2001:db8::/32\"]
    noBackends: drop
    frontends:
      - {address: 203.0.113.80, port: 80}
      - {nodePort: 30080, protocol: UDP}
    backends:
      - {address: 10.244.2.2, port: 8080, node: 10.0.0.2}
      - {address: 10.244.1.2, port: 8080}
      - {address: \"fd00::2\", port: 8080, node: 10.0.0.2}
";
    let config = parse(text).unwrap();
    let shop = &config.services[0];
    assert_eq!((shop.frontends.len(), shop.node_ports.len()), (1, 1));
    assert_eq!((shop.mode, shop.no_backends), (Mode::Geneve, NoBackends::Drop));
    assert_eq!(shop.affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(shop.sources.len(), 2);
    assert_eq!(shop.backends[0].node, Some("10.0.0.2".parse().unwrap()));
    assert_eq!(config.snat.ports, 50_000..=50_999);
    assert_eq!(config.unknown_ports, UnknownPorts::Pass);
    assert_eq!((config.limits.answers, config.limits.nat_flows), (1_000_000, 1000));
    let networks = NodePortAddresses::In(vec!["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(config.node_port_addresses, networks);
}

#[test]
fn pod_rules() {
    for (from, to, expected) in [
        ("", "", None),
        (
            "pods: [10.244.1.0/24]",
            "pods: []",
            Some("4:41: terminate.pods: there is no prefix: add one, or remove the key"),
        ),
        (
            "3h",
            "0s",
            Some(
                "9:22: services[0].sessionAffinity: a client would keep its backend for no time: \
                 write `3h`, or remove the key",
            ),
        ),
        (
            ", node: 10.0.0.2",
            "",
            Some(
                "14:7: services[0].backends[0]: the pod's node is missing: add `node: ADDRESS`; pods \
                 on this host need none where `terminate.pods` has their network",
            ),
        ),
        (
            "10.244.2.2",
            "\"fd00::2\"",
            Some(
                "14:7: services[0].backends[0]: no frontend is of this address's family, and this \
                 mode cannot rewrite one to the other: add a frontend of this family, or remove the \
                 backend",
            ),
        ),
        (
            "nodePort: 30080",
            "nodePort: 30080, port: 80",
            Some(
                "12:31: services[0].frontends[1].port: a frontend with a nodePort is on the node's \
                 own addresses: remove this key, or nodePort",
            ),
        ),
        (
            "50000-50999",
            "80-90",
            Some(
                "5:15: snat.ports: found the text \"80-90\": write a range of ports from 1024 to \
                 65535, like `61000-65535`",
            ),
        ),
        (
            "primary",
            "all",
            Some(
                "6:20: nodePortAddresses: found the text \"all\": write `primary`, or a list of \
                 prefixes like `[10.0.0.0/8]`",
            ),
        ),
    ] {
        let text = "hashKey: \"00112233445566778899aabbccddeeff\"
devices: [{name: eth0}]
# the line above is not what is tested
terminate: {peers: [10.0.0.0/24], pods: [10.244.1.0/24]}
snat: {ports: 50000-50999}
nodePortAddresses: primary
services:
  - {name: shop, mode: geneve,
    sessionAffinity: 3h,
    frontends: [
      {address: 203.0.113.80, port: 80}WITHOUT
    ], backends: [
      # only one
      {address: 10.244.2.2, port: 8080, node: 10.0.0.2}]}
";
        let node_port =
            if from.starts_with("nodePort") { ",\n      {nodePort: 30080}" } else { "" };
        let text = text.replace("WITHOUT", node_port).replace(from, to);
        let found = mistakes(&text);
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(found, expected, "{from} -> {to}");
    }
}

#[test]
fn the_apis_document_knows_the_readers_keys() {
    let document = serde_json::to_value(xdp_lb_api::document()).unwrap();
    let keys = |schema: &str| {
        let path = format!("/components/schemas/{schema}/properties");
        let properties = document.pointer(&path).unwrap().as_object().unwrap();
        let mut keys: Vec<String> = properties.keys().map(|key| format!("`{key}`")).collect();
        keys.sort();
        keys
    };
    // The reader names its keys where it finds one that it does not know.
    let value = serde_json::json!({
        "name": "a",
        "frontends": [{"address": "203.0.113.10", "port": 80, "qqqqqqqqqqqqqqqq": 1}],
        "backends": [{"address": "10.0.0.1", "qqqqqqqqqqqqqqqq": 1}],
        "healthCheck": {"type": "tcp", "qqqqqqqqqqqqqqqq": 1},
        "qqqqqqqqqqqqqqqq": 1,
    });
    let known = |place: &str| {
        let mistakes = service_from_json(&value, Mode::L2, &[]).unwrap_err().0;
        let path = format!("{place}/qqqqqqqqqqqqqqqq");
        let mistake = mistakes.into_iter().find(|one| one.path == path).unwrap().message;
        let (_, list) = mistake.split_once("the keys here are ").unwrap();
        let mut keys: Vec<String> = list.split(", ").map(str::to_owned).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("ServiceSpec"), known(""));
    assert_eq!(keys("FrontendSpec"), known("/frontends/0"));
    assert_eq!(keys("BackendSpec"), known("/backends/0"));
    assert_eq!(keys("HealthCheckSpec"), known("/healthCheck"));
}

#[test]
fn services_with_every_key_are_written_as_they_are_read() {
    let value = serde_json::json!({
        "name": "shop",
        "mode": "geneve",
        "tableSize": 1021,
        "sessionAffinity": "10800s",
        "sourceRanges": ["198.51.100.0/24"],
        "noBackends": "drop",
        "frontends": [
            {"address": "203.0.113.80", "port": 80, "protocol": "TCP"},
            {"nodePort": 30080, "protocol": "UDP"},
        ],
        "backends": [{"address": "10.244.2.2", "port": 8080, "weight": 3, "node": "10.0.0.2"}],
    });
    let service = service_from_json(&value, Mode::L2, &[]).unwrap();
    assert_eq!(service_to_json(&service), value);
}

/// A service with this check, which begins on line 4.
fn checked(check: &str) -> String {
    with_head(&format!(
        "services: [{{name: s, frontends: [{FRONTEND}], backends: [], healthCheck:\n{check}}}]\n"
    ))
}

#[test]
fn health_checks_have_defaults_and_are_written_as_they_are_read() {
    let check = |text: &str| {
        let config = parse(&checked(text)).unwrap_or_else(|m| panic!("{}", m.in_file(text)));
        let service = &config.services[0];
        let value = service_to_json(service);
        assert_eq!(service_from_json(&value, Mode::Ipip, &[]).as_ref(), Ok(service), "{value}");
        service.health_check.clone().unwrap()
    };
    assert_eq!(check("{type: tcp}"), HealthCheck::new(Probe::Tcp));
    let quick = check("{type: tcp, interval: 1s, rise: 1, fall: 100, port: 81, allDown: reject}");
    assert_eq!((quick.interval, quick.timeout), (Duration::from_secs(1), Duration::from_secs(1)));
    assert_eq!((quick.rise, quick.fall, quick.all_down), (1, 100, AllDown::Reject));
    assert_eq!(quick.port, NonZeroU16::new(81));
    assert_eq!(check("{type: https}").probe, Probe::Http(Http::new(true)));
    let probe = check(
        "{type: http, path: /healthz?a=b, host: \"example.org:8080\", status: 204, weightHeader: true}",
    );
    assert_eq!(
        probe.probe,
        Probe::Http(Http {
            tls: false,
            path: "/healthz?a=b".to_owned(),
            host: Some("example.org:8080".to_owned()),
            status: 204..=204,
            weight: true,
        })
    );
    for (send, bytes) in [("ping", &b"ping"[..]), ("0x00fF", &[0, 255]), ("0x3078", b"0x")] {
        let udp = Udp { send: bytes.to_vec(), expect: Vec::new() };
        assert_eq!(check(&format!("{{type: udp, send: {send}}}")).probe, Probe::Udp(udp));
    }
    let Probe::Udp(udp) = check("{type: udp, send: a, expect: \"p o\"}").probe else { panic!() };
    assert_eq!(udp.expect, b"p o");
}

#[test]
fn mistakes_in_health_checks_are_found() {
    for (check, mistake) in [
        ("{}", "4:1: services[0].healthCheck.type: is missing: add `type: tcp`"),
        ("{type: icmp}", "4:8: services[0].healthCheck.type: found the text \"icmp\": write"),
        ("{type: tcp, path: /}", "healthCheck.path: only checks of type http and https have this"),
        ("{type: http, send: a}", "healthCheck.send: only checks of type udp have this key"),
        ("{type: tcp, interval: 0s}", "healthCheck.interval: out of range: write `1s` to `1h`"),
        ("{type: tcp, interval: 2h}", "healthCheck.interval: out of range"),
        ("{type: tcp, interval: 3s, timeout: 4s}", "healthCheck.timeout: out of range: write `1s`"),
        ("{type: tcp, interval: 1h, timeout: 31s}", "out of range: write `1s` to `30s`"),
        ("{type: tcp, rise: 0}", "healthCheck.rise: 0 is out of range"),
        ("{type: tcp, port: 0}", "healthCheck.port: 0 is out of range"),
        ("{type: http, path: healthz}", "healthCheck.path: \"healthz\" is none"),
        ("{type: http, path: \"/a b\"}", "healthCheck.path: \"/a b\" is none"),
        ("{type: http, host: \"a/b\"}", "healthCheck.host: \"a/b\" is none"),
        ("{type: http, status: 99}", "healthCheck.status: found the number 99: write a status"),
        ("{type: http, status: 299-200}", "healthCheck.status: found the text \"299-200\""),
        ("{type: http, weightHeader: 1}", "healthCheck.weightHeader: found the number 1: write"),
        ("{type: udp}", "healthCheck.send: is missing: add `send: ping`"),
        ("{type: udp, send: \"0x1\"}", "healthCheck.send: behind `0x` come pairs"),
        ("{type: udp, send: \"0x\"}", "healthCheck.send: 0 bytes: write 1 to 1024"),
    ] {
        let found = mistakes(&checked(check));
        assert!(found.len() == 1 && found[0].contains(mistake), "{check}: {found:?}");
    }
}

#[test]
fn node_ports_are_none_of_snats() {
    let of = |mode: &str| {
        mistakes(&with_head(&format!(
            "snat: {{ports: 30000-30100}}\nservices: [{{name: s, mode: {mode}, \
             frontends: [{{nodePort: 30080}}], backends: [{{address: 10.0.0.7, port: 80}}]}}]\n"
        )))
    };
    assert_eq!(
        of("snat"),
        [
            "4:11: services: nodePort 30080/TCP of service s is one of the ports that mode snat sends \
          from: choose another, or change `snat.ports`"
        ]
    );
    assert_eq!(of("local"), [""; 0]);
}

/// A file that follows a cluster.
fn following(more: &str) -> String {
    format!(
        "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{{name: eth0}}]\n\
         kubernetes: {{kubeconfig: /etc/kubeconfig}}\n{more}"
    )
}

#[test]
fn what_of_kube_proxy_is_replaced() {
    let serves = |more: &str| parse(&following(more)).unwrap().replacement.serves;
    let of = |sockets, node_ports, external_ips, load_balancers| Serves {
        sockets,
        node_ports,
        external_ips,
        load_balancers,
    };
    let all = of(true, true, true, true);
    let packets = of(false, true, true, true);
    for (more, expected) in [
        ("", packets),
        ("socketLB: {enabled: true}", all),
        ("nodePort: {enabled: false}", of(false, false, true, true)),
        ("kubeProxyReplacement: strict", all),
        ("kubeProxyReplacement: true", all),
        ("kubeProxyReplacement: \"true\"", all),
        ("kubeProxyReplacement: probe", all),
        ("kubeProxyReplacement: probe\nsocketLB: {enabled: false}", packets),
        ("kubeProxyReplacement: disabled", Serves::NOTHING),
        ("kubeProxyReplacement: false", Serves::NOTHING),
        (
            "kubeProxyReplacement: partial\nsocketLB: {enabled: true}\nexternalIPs: {enabled: true}",
            of(true, false, true, false),
        ),
    ] {
        assert_eq!(serves(more), expected, "{more}");
    }
    let config = parse(&following(
        "socketLB: {enabled: true, cgroupRoot: /c, hostNamespaceOnly: true, loopbackNodePorts: false, \
         noAllowedBackend: refuse, terminatePodConnections: false}\n\
         nodePort: {bindProtection: false, range: 31000-31999}",
    ))
    .unwrap();
    let wanted = SocketConfig {
        cgroup: Some("/c".into()),
        host_only: true,
        loopback: false,
        refuse_excluded: true,
        end_orphans: false,
    };
    let Replacement { sockets, bind_protection, node_ports, .. } = &config.replacement;
    assert_eq!((sockets, *bind_protection), (&wanted, false));
    assert_eq!(*node_ports, 31_000..=31_999);
    let shown = settings_to_json(&config);
    assert_eq!(shown["socketLB"]["noAllowedBackend"], "refuse");
    assert_eq!(shown["nodePort"]["range"], "31000-31999");
}

#[test]
fn contradictions_about_kube_proxy_are_mistakes() {
    let mistake = |text: &str, part: &str| {
        let mistakes = parse(text).unwrap_err().in_file("f").to_string();
        assert!(mistakes.contains(part), "{text}: {mistakes}");
    };
    for (more, part) in [
        ("kubeProxyReplacement: strict\nnodePort: {enabled: false}", "f:5:11"),
        ("kubeProxyReplacement: strict\nnodePort: {enabled: false}", "strict` needs all"),
        ("kubeProxyReplacement: disabled\nsocketLB: {enabled: true}", "disabled` serves nothing"),
        ("kubeProxyReplacement: partial", "nothing is"),
        ("kubeProxyReplacement: partial\nsocketLB: {enabled: false}", "nothing is"),
        ("kubeProxyReplacement: strictly", "`strict`"),
        ("socketLB: {enable: true}", "did you mean `enabled`"),
        ("socketLB: {cgroupRoot: sys}", "no absolute path"),
        ("socketLB: {noAllowedBackend: drop}", "timeout"),
        ("nodePort: {range: 1-2}", "a range of ports"),
        ("externalIPs: true", "found"),
    ] {
        mistake(&following(more), part);
    }
    let alone = "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{name: eth0}]\n";
    mistake(&format!("{alone}kubeProxyReplacement: strict"), "no cluster is followed");
    assert!(parse(&format!("{alone}socketLB: {{enabled: true}}")).is_ok());
}
