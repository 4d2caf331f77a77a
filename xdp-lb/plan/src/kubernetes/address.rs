//! Addresses and prefixes, in every spelling that a cluster may have stored.
//!
//! Kubernetes keeps what was valid once: numbers with leading zeros, which count as decimal, and IPv4
//! addresses written as IPv6 ones. kube-proxy reads both (`ParseIPSloppy`), so both are read here.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use xdp_lb_abi::Family;

/// The address that a text spells, if a host can have it.
pub(super) fn host(text: &str) -> Option<IpAddr> {
    parse(text).filter(|address| is_host(*address))
}

/// The network that a text spells, its host bits cleared.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let written: IpAddr = plain(address)?;
    let net = match (written, written.to_canonical()) {
        (IpAddr::V6(_), IpAddr::V4(v4)) => IpNet::new(v4.into(), length.checked_sub(96)?),
        (written, _) => IpNet::new(written, length),
    };
    Some(net.ok()?.trunc())
}

/// An address's family.
pub(super) const fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

fn parse(text: &str) -> Option<IpAddr> {
    plain(text).map(|address| address.to_canonical())
}

fn plain(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| without_zeros(text)?.parse().ok())
}

/// The same text without leading zeros; none where it has a part that is no number.
fn without_zeros(text: &str) -> Option<String> {
    let (groups, dotted) = match text.rsplit_once(':') {
        Some((groups, last)) if last.contains('.') => (Some(groups), Some(last)),
        Some(_) => (Some(text), None),
        None => (None, Some(text)),
    };
    let mut out = String::with_capacity(text.len());
    if let Some(groups) = groups {
        join(&mut out, ':', groups.split(':').map(trim));
    }
    if let Some(dotted) = dotted {
        if groups.is_some() {
            out.push(':');
        }
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !dotted.split('.').all(is_number) {
            return None;
        }
        join(&mut out, '.', dotted.split('.').map(trim));
    }
    Some(out)
}

fn join<'a>(out: &mut String, separator: char, parts: impl Iterator<Item = &'a str>) {
    for (index, part) in parts.enumerate() {
        if index > 0 {
            out.push(separator);
        }
        out.push_str(part);
    }
}

fn trim(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" if !digits.is_empty() => "0",
        trimmed => trimmed,
    }
}

/// Whether one host can have the address, and packets can be routed to it.
fn is_host(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => v4 != Ipv4Addr::BROADCAST && v4.octets()[0] != 0,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_every_spelling_that_kube_proxy_reads() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.000.002.010", "192.0.2.10"),
            ("0000192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.010", "192.0.2.10"),
            ("::ffff:c000:201", "192.0.2.1"),
            ("2001:0db8:0000::0001", "2001:db8::1"),
            ("2001:00db8::00001", "2001:db8::1"),
            ("2001:DB8::1", "2001:db8::1"),
        ] {
            assert_eq!(host(text), Some(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_no_host_can_have_is_no_address() {
        for text in [
            "",
            " ",
            "x",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.-4",
            "1.2.3.+4",
            "1..2.3",
            "1.2.3.4 ",
            "0x1.2.3.4",
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fe80::1%eth0",
            "ff02::1",
            "::ffff:127.0.0.1",
            "1:2:3",
            "1::2::3",
            "2001:db8::12345",
            "[2001:db8::1]",
            "192.0.2.1:80",
            "٣.1.1.1",
        ] {
            assert_eq!(host(text), None, "{text}");
        }
    }

    #[test]
    fn a_network_is_read_likewise_and_its_host_bits_are_cleared() {
        for (text, expected) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            (" 192.0.2.0/24\t", "192.0.2.0/24"),
            ("010.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text), Some(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "2001:db8::/129",
            "/8",
            "x/8",
            "::ffff:10.0.0.0/64",
        ] {
            assert_eq!(network(text), None, "{text}");
        }
    }
}
