use super::super::frames::{self, bytes};
use super::*;

#[test]
fn each_kind_of_frame_reads_as_people_say_it() {
    let tcp = "198.51.100.2:42050 > 198.51.100.1:80 TCP SYN";
    let tcp6 = "[2001:db8::2]:38892 > [2001:db8::1]:80 TCP SYN";
    let udp = "198.51.100.2:55906 > 198.51.100.1:53 UDP";
    let udp6 = "[2001:db8::2]:43209 > [2001:db8::1]:53 UDP";
    let cases = [
        (frames::TCP4, tcp.to_owned()),
        (frames::TCP6, tcp6.to_owned()),
        (frames::UDP4, format!("{udp}, 5 bytes")),
        (frames::EXTENDED, format!("{udp6}, 6 bytes")),
        (frames::PING4, "198.51.100.2 > 198.51.100.1 ICMP echo request".into()),
        (frames::PING6, "2001:db8::2 > 2001:db8::1 ICMPv6 echo request".into()),
        (
            frames::UNREACHABLE4,
            format!("198.51.100.1 > 198.51.100.2 ICMP unreachable (code 3), about {udp}, 5 bytes"),
        ),
        (
            frames::TOO_BIG4,
            "10.0.1.1 > 198.51.100.2 ICMP fragmentation needed, mtu 1400, about \
             198.51.100.2:42050 > 198.51.100.1:80 TCP"
                .into(),
        ),
        (
            frames::TOO_BIG6,
            format!("2001:db8:5::1 > 2001:db8::2 ICMPv6 packet too big, mtu 1280, about {tcp6}"),
        ),
        (frames::SOLICITATION, "2001:db8::2 > ff02::1:ff00:1 ICMPv6 neighbour solicitation".into()),
        (frames::TAGGED, format!("service vlan 100 | vlan 7 | {tcp}")),
        (frames::IPIP, format!("10.9.0.7 > 10.0.2.11 IPIP | {tcp}, ttl 64")),
        (frames::SIX_IN_FOUR, format!("10.9.0.7 > 10.0.2.11 6in4 | {tcp6}, ttl 64")),
        (
            frames::FOUR_IN_SIX,
            format!("2001:db8:9::7 > 2001:db8:2::11 4in6 | {udp}, 5 bytes, ttl 64"),
        ),
        (
            frames::GENEVE4,
            "10.0.0.1:50001 > 10.0.0.2 Geneve for 203.0.113.80:80 | 198.51.100.2:42050 > \
             10.244.2.2:8080 TCP SYN, ttl 63"
                .into(),
        ),
        (
            frames::GENEVE6,
            "[2001:db8:10::1]:50001 > 2001:db8:10::2 Geneve for [2001:db8:80::80]:80 | \
             [2001:db8:1::2]:42050 > [fd00:244:2::2]:8080 TCP SYN, ttl 63"
                .into(),
        ),
        (frames::FRAGMENT4, "198.51.100.2 > 198.51.100.1 UDP fragment 1480..1504 and more".into()),
        (frames::FRAGMENT6, "2001:db8::2 > 2001:db8::1 UDP fragment 1448..1464".into()),
        (frames::ARP, "ARP who has 198.51.100.1, asks 198.51.100.2".into()),
    ];
    for (hex, line) in cases {
        assert_eq!(describe(&bytes(hex)), line);
    }
}

#[test]
fn details_are_given_on_request() {
    let line = describe_with(&bytes(frames::TCP4), Detail { macs: true, ttl: true });
    assert_eq!(
        line,
        "02:00:00:00:00:0a > 02:00:00:00:00:0b | \
         198.51.100.2:42050 > 198.51.100.1:80 TCP SYN, ttl 64"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let line = describe(&bytes(frames::IPIP)[..60]);
    assert_eq!(
        line,
        "60 bytes that cannot be read: IPv4 header 0: it states 80 bytes, and 46 are there"
    );
    assert!(describe(&[]).contains("shorter than 14 bytes"));
}
