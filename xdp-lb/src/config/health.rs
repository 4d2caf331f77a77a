//! Health checks.

use std::{ops::RangeInclusive, time::Duration};

use xdp_lb_plan::health::{AllDown, HealthCheck, Http, Probe, Udp};

use super::{
    mistake::quote,
    read::{At, Fields},
    service::port,
    value,
};

/// Longest datagram that asks, and longest beginning of an answer, in bytes.
const MAX_PAYLOAD: usize = 1024;
/// Shortest and longest time between two questions.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Longest time for an answer: whoever is silent holds up other questions for as long.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Tcp,
    Http,
    Https,
    Udp,
}

const KINDS: [(&str, Kind); 4] =
    [("tcp", Kind::Tcp), ("http", Kind::Http), ("https", Kind::Https), ("udp", Kind::Udp)];

/// The check at `at`.
pub(super) fn health_check(at: &At<'_>) -> Option<HealthCheck> {
    let fields = at.fields(&[
        "type",
        "interval",
        "timeout",
        "rise",
        "fall",
        "port",
        "allDown",
        "path",
        "host",
        "status",
        "weightHeader",
        "send",
        "expect",
    ])?;
    let kind = fields.required("type", "type: tcp").and_then(|at| at.choice(&KINDS));
    let fits = kind.is_none_or(|kind| only_fitting(&fields, kind));
    let probe = kind.and_then(|kind| match kind {
        Kind::Tcp => Some(Probe::Tcp),
        Kind::Http => http(&fields, false).map(Probe::Http),
        Kind::Https => http(&fields, true).map(Probe::Http),
        Kind::Udp => udp(&fields).map(Probe::Udp),
    });
    let defaults = HealthCheck::new(Probe::Tcp);
    let interval = fields.optional("interval").map_or(Some(defaults.interval), |at| interval(&at));
    let timeout = match (fields.optional("timeout"), interval) {
        (Some(at), _) => timeout(&at, interval),
        (None, interval) => interval.map(|interval| interval.min(defaults.timeout)),
    };
    let count = |key, default| fields.optional(key).map_or(Some(default), |at| at.number(1..=100));
    let (rise, fall) = (count("rise", defaults.rise), count("fall", defaults.fall));
    let port = match fields.optional("port") {
        Some(at) => Some(port(&at)?),
        None => None,
    };
    let all_down = fields.optional("allDown").map_or(Some(AllDown::Keep), |at| {
        at.choice(&[("keep", AllDown::Keep), ("reject", AllDown::Reject)])
    });
    let check = HealthCheck {
        probe: probe?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        port,
        all_down: all_down?,
    };
    fits.then_some(check)
}

/// Whether there is no key of another kind of check.
fn only_fitting(fields: &Fields<'_>, kind: Kind) -> bool {
    let of_http = ["path", "host", "status", "weightHeader"].map(|key| (key, "http and https"));
    let of_udp = ["send", "expect"].map(|key| (key, "udp"));
    let foreign: &[(&'static str, &str)] = match kind {
        Kind::Tcp => &[of_http.as_slice(), of_udp.as_slice()].concat(),
        Kind::Http | Kind::Https => &of_udp,
        Kind::Udp => &of_http,
    };
    let mut fits = true;
    for (key, kinds) in foreign {
        if let Some(at) = fields.optional(key) {
            at.mistake(format_args!("only checks of type {kinds} have this key: remove it"));
            fits = false;
        }
    }
    fits
}

fn interval(at: &At<'_>) -> Option<Duration> {
    let time = value::duration(at)?;
    if time < INTERVAL.0 || time > INTERVAL.1 {
        at.mistake("out of range: write `1s` to `1h`");
        return None;
    }
    Some(time)
}

fn timeout(at: &At<'_>, interval: Option<Duration>) -> Option<Duration> {
    let time = value::duration(at)?;
    let longest = interval.unwrap_or(INTERVAL.1).min(LONGEST_TIMEOUT);
    if time.is_zero() || time > longest {
        let longest = longest.as_secs();
        at.mistake(format_args!(
            "out of range: write `1s` to `{longest}s` (the interval, and never more than 30 s)"
        ));
        return None;
    }
    Some(time)
}

fn http(fields: &Fields<'_>, tls: bool) -> Option<Http> {
    let defaults = Http::new(tls);
    let path = fields.optional("path").map_or(Some(defaults.path), |at| path(&at));
    let host = match fields.optional("host") {
        Some(at) => Some(host(&at)?),
        None => None,
    };
    let status = fields.optional("status").map_or(Some(defaults.status), |at| status(&at));
    let weight = fields.optional("weightHeader").map_or(Some(false), |at| at.truth());
    Some(Http { tls, path: path?, host, status: status?, weight: weight? })
}

fn path(at: &At<'_>) -> Option<String> {
    let wanted = "a path of printable ASCII characters without spaces, like `/healthz`";
    let text = at.text(wanted)?;
    let fits = text.starts_with('/') && text.len() <= 1024;
    if !fits || !text.bytes().all(|b| b.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&b)) {
        at.mistake(format_args!("\"{}\" is none: write {wanted}", quote(text)));
        return None;
    }
    Some(text.to_owned())
}

fn host(at: &At<'_>) -> Option<String> {
    let wanted = "a name or an address, with a port or not, like `example.org`";
    let text = at.scalar(wanted)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
        at.mistake(format_args!("\"{}\" is none: write {wanted}", quote(text)));
        return None;
    }
    Some(text.to_owned())
}

/// One status code, or a range of them.
fn status(at: &At<'_>) -> Option<RangeInclusive<u16>> {
    let wanted = "a status code or a range of them from 100 to 599, like `204` or `200-299`";
    let text = at.scalar(wanted)?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten().filter(|code| (100..600).contains(code))
    };
    match (code(first), code(last)) {
        (Some(first), Some(last)) if first <= last => Some(first..=last),
        _ => {
            at.expected(wanted);
            None
        }
    }
}

fn udp(fields: &Fields<'_>) -> Option<Udp> {
    let send = fields.required("send", "send: ping").and_then(|at| payload(&at));
    let expect = fields.optional("expect").map_or(Some(Vec::new()), |at| payload(&at));
    Some(Udp { send: send?, expect: expect? })
}

/// Text, or bytes in hexadecimal behind `0x`.
fn payload(at: &At<'_>) -> Option<Vec<u8>> {
    let text = at.scalar("a text, or bytes like `\"0x0a1b\"`")?;
    let bytes = match text.strip_prefix("0x") {
        None => Some(text.as_bytes().to_vec()),
        Some(digits) => hexadecimal(digits),
    };
    let Some(bytes) = bytes else {
        at.mistake("behind `0x` come pairs of hexadecimal digits: write them, like `\"0x0a1b\"`");
        return None;
    };
    if bytes.is_empty() || bytes.len() > MAX_PAYLOAD {
        at.mistake(format_args!("{} bytes: write 1 to {MAX_PAYLOAD}", bytes.len()));
        return None;
    }
    Some(bytes)
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}
