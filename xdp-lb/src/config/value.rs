//! Single values of the format: names, keys, durations, addresses, prefixes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{mistake::quote, read::At};

/// Longest handover, in seconds: tables and recorded flows are kept that long.
const MAX_DURATION: u64 = 24 * 3600;

/// Shortest time after which a silent flow counts as over.
const MIN_IDLE: Duration = Duration::from_secs(10);

/// The cluster's key. Messages never repeat it.
pub(super) fn hash_key(at: &At<'_>) -> Option<[u8; 16]> {
    let wanted =
        "32 hexadecimal digits in quotes, for example the output of `openssl rand -hex 16`";
    let text = at.text(wanted)?;
    let mut key = [0; 16];
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits {
        let count = text.chars().count();
        at.mistake(format_args!("not a key, but {count} other characters: write {wanted}"));
        return None;
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    if key == [0; 16] {
        at.mistake(format_args!(
            "a key of zeros lets clients choose their backend: write {wanted}"
        ));
        return None;
    }
    Some(key)
}

/// A name that the kernel accepts for a network interface.
pub(super) fn device_name<'a>(at: &At<'a>) -> Option<&'a str> {
    let wanted = "the name of a network interface, like `eth0`";
    let name = at.text(wanted)?;
    let why = match name {
        "" => "is empty",
        "." | ".." => "is the name of a directory",
        _ if name.len() > 15 => "is longer than 15 bytes",
        _ if name.contains(|c: char| c.is_whitespace() || c.is_control()) => "contains a space",
        _ if name.contains(['/', ':']) => "contains `/` or `:`",
        _ => return Some(name),
    };
    at.mistake(format_args!("\"{}\" {why}: write {wanted}", quote(name)));
    None
}

/// A service's name.
pub(super) fn service_name<'a>(at: &At<'a>) -> Option<&'a str> {
    let name = at.text("a name, like `web`")?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
        at.mistake(
            "not a name: write 1 to 253 of the characters a-z, A-Z, 0-9, `.`, `_`, `/`, `-`",
        );
        return None;
    }
    Some(name)
}

/// A duration like `90s`, `5m`, `1h`.
pub(super) fn duration(at: &At<'_>) -> Option<Duration> {
    let wanted = "a duration in seconds, minutes or hours, like `90s`, `5m` or `1h`";
    let text = at.scalar(wanted)?;
    let unit = match text.bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => 0,
    };
    let digits = text.strip_suffix(['s', 'm', 'h']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        at.expected(wanted);
        return None;
    }
    if unit == 0 {
        at.mistake(format_args!("the unit is missing: write `{}s` for seconds", quote(digits)));
        return None;
    }
    let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds <= MAX_DURATION);
    if seconds.is_none() {
        at.mistake(format_args!("{} is too long: write at most `24h`", quote(text)));
    }
    seconds.map(Duration::from_secs)
}

/// How long a flow may be silent: records are dated to the second, and swept every few seconds.
pub(super) fn idle_time(at: &At<'_>) -> Option<Duration> {
    let time = duration(at)?;
    if time < MIN_IDLE {
        let text = at.scalar("a duration")?;
        at.mistake(format_args!("{} is too short: write at least `10s`", quote(text)));
        return None;
    }
    Some(time)
}

/// An address that one host can have and that packets can be routed to.
pub(super) fn host_address(at: &At<'_>) -> Option<IpAddr> {
    let address = address(at, at.scalar("an IPv4 or IPv6 address, like `203.0.113.10`")?)?;
    match not_routable(address) {
        None => Some(address),
        Some(why) => {
            at.mistake(format_args!("{address} {why}: write an address that can be routed to"));
            None
        }
    }
}

/// Why no packet on the network can be for `address`, where that is so.
fn not_routable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("is the unspecified address"),
        _ if address.is_loopback() => Some("is a loopback address, which never leaves its host"),
        _ if address.is_multicast() => Some("is a multicast address, which is no single host's"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("is in 0.0.0.0/8, which no host can have"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("is a link-local address, and there is no interface that it belongs to")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The address that `text` spells, IPv4-mapped ones refused.
fn address(at: &At<'_>, text: &str) -> Option<IpAddr> {
    let Ok(address) = text.parse::<IpAddr>() else {
        if has_leading_zero(text) {
            at.mistake(format_args!(
                "{} has leading zeros, which some programs take for octal: remove them",
                quote(text)
            ));
        } else if text.contains('/') {
            at.mistake(format_args!("{} is a prefix: write one address", quote(text)));
        } else if text.contains('%') {
            at.mistake(format_args!("{} names an interface: leave `%…` out", quote(text)));
        } else {
            at.expected("an IPv4 or IPv6 address, like `203.0.113.10` or `\"2001:db8::10\"`");
        }
        return None;
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        at.mistake(format_args!("{v6} is an IPv4 address in IPv6 form: write {v4}"));
        return None;
    }
    Some(address)
}

/// Whether `text` is an IPv4 address but for leading zeros.
fn has_leading_zero(text: &str) -> bool {
    let number =
        |part: &str| (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    text.split('.').count() == 4
        && text.split('.').all(number)
        && text.split('.').any(|part| part.len() > 1 && part.starts_with('0'))
}

/// A prefix of either family, without host bits.
pub(super) fn prefix(at: &At<'_>) -> Option<IpNet> {
    let wanted = "a prefix, like `10.0.0.0/24` or `\"fd00::/64\"`";
    let text = at.scalar(wanted)?;
    let Some((before, length)) = text.split_once('/') else {
        match text.parse::<IpAddr>() {
            Ok(single) => at.mistake(format_args!(
                "the prefix has no length: write `{}` for this one address",
                IpNet::from(single)
            )),
            Err(_) => at.expected(wanted),
        }
        return None;
    };
    let address = address(at, before)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let decimal = !length.is_empty()
        && length.bytes().all(|b| b.is_ascii_digit())
        && (length == "0" || !length.starts_with('0'));
    let net = decimal.then(|| length.parse().ok()).flatten();
    let Some(net) = net.and_then(|length| IpNet::new(address, length).ok()) else {
        at.mistake(format_args!("\"{}\" is no length from 0 to {most}", quote(length)));
        return None;
    };
    if net != net.trunc() {
        at.mistake(format_args!("{net} has bits set behind the prefix: write {}", net.trunc()));
        return None;
    }
    if address.is_multicast() {
        at.mistake(format_args!("{net} holds multicast addresses: write a prefix of hosts"));
        return None;
    }
    Some(net)
}

/// A prefix of IPv4 addresses that packets may have as their source.
pub(super) fn source_v4(at: &At<'_>) -> Option<Ipv4Net> {
    let net = prefix(at)?;
    let found = match net {
        IpNet::V4(v4) => Ok(v4),
        IpNet::V6(v6) => Err(v6),
    };
    source(at, net, found, "an IPv4 prefix, like `10.200.0.0/24`")
}

/// A prefix of IPv6 addresses that packets may have as their source.
pub(super) fn source_v6(at: &At<'_>) -> Option<Ipv6Net> {
    let net = prefix(at)?;
    let found = match net {
        IpNet::V4(v4) => Err(v4),
        IpNet::V6(v6) => Ok(v6),
    };
    source(at, net, found, "an IPv6 prefix, like `\"fd00:200::/96\"`")
}

fn source<T>(
    at: &At<'_>,
    net: IpNet,
    found: Result<T, impl fmt::Display>,
    wanted: &str,
) -> Option<T> {
    match (found, not_routable(net.addr())) {
        (Ok(found), None) => Some(found),
        (Ok(_), Some(why)) => {
            at.mistake(format_args!("{} {why}: write {wanted}", net.addr()));
            None
        }
        (Err(other), _) => {
            at.mistake(format_args!("{other} is of the other family: write {wanted}"));
            None
        }
    }
}
