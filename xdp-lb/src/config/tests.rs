use std::{fmt::Write as _, net::IpAddr, num::NonZeroU16};

use proptest::prelude::*;
use xdp_lb_plan::model::{Backend, Frontend, Protocol};

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
    let [web, dns] = &config.services[..] else { panic!("two services") };
    assert_eq!((web.name.as_str(), web.mode, web.table_size), ("web", Mode::L2, None));
    assert_eq!(web.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!((dns.name.as_str(), dns.mode, dns.table_size), ("dns", Mode::Ipip, Some(65_537)));
    let port = NonZeroU16::new(53).unwrap();
    let address: IpAddr = [203, 0, 113, 53].into();
    assert_eq!(dns.frontends, [Frontend { address, port, protocol: Protocol::Udp }]);
    let address: IpAddr = [10, 0, 2, 21].into();
    assert_eq!(dns.backends[0], Backend { address, port: Some(port), weight: 1 });
}

#[test]
fn the_examples_limits_are_the_defaults() {
    let example = parse(EXAMPLE).unwrap();
    let bare = parse(HEAD).unwrap();
    assert_eq!(example.limits, bare.limits);
    assert_eq!(example.icmp_errors_per_second, bare.icmp_errors_per_second);
    assert_eq!(example.handover, bare.handover);
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
               `defaultMode`, `tunnel`, `terminate`, `limits`, `icmpErrorsPerSecond`, `handover`",
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
               `defaultMode`, `tunnel`, `terminate`, `limits`, `icmpErrorsPerSecond`, `handover`"],
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
               `flows`"],
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
        ("defaultMode: [l2]\n", &["3:14: defaultMode: found a list: write `l2` or `ipip`"]),
        ("defaultMode: L2\n", &["3:14: defaultMode: found the text \"L2\": write `l2`"]),
        (
            "defaultMode: dsr\n",
            &["3:14: defaultMode: found the text \"dsr\": write one of `l2`, `ipip`"],
        ),
        (
            "defaultMode: snat\n",
            &["3:14: defaultMode: mode snat is not in this version: write `l2` or `ipip`"],
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
                             `name`, `mode`, `tableSize`, `frontends`, `backends`"],
        ),
    ]);
    for mode in ["geneve", "local", "snat", "hybrid"] {
        let text = service(FRONTEND, "").replace("name: s,", &format!("name: s, mode: {mode},"));
        assert_eq!(
            mistakes(&text),
            [format!(
                "3:28: services[0].mode: mode {mode} is not in this version: write `l2` or `ipip`"
            )]
        );
    }
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
         `weight`",
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
            &["3:20: terminate.peers: there is no peer: add a prefix, or remove `terminate`"],
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
