//! How the backends of a service are asked.

use std::{num::NonZeroU16, ops::RangeInclusive, time::Duration};

/// How the backends of a service are asked whether they are well.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// The question
    pub probe: Probe,
    /// From one question to the next
    pub interval: Duration,
    /// How long an answer may take; at most `interval`
    pub timeout: Duration,
    /// Good answers in a row until a backend is up; at least 1
    pub rise: u32,
    /// Bad answers in a row until it is down; at least 1
    pub fall: u32,
    /// The port that is asked; the backend's where there is none
    pub port: Option<NonZeroU16>,
    /// What happens where no backend is up
    pub all_down: AllDown,
}

impl HealthCheck {
    /// A check with its defaults.
    pub const fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            port: None,
            all_down: AllDown::Keep,
        }
    }

    /// How long it takes to come up.
    pub const fn rise_time(&self) -> Duration {
        self.interval.saturating_mul(self.rise)
    }
}

/// What a backend is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Probe {
    /// Whether it takes a connection
    Tcp,
    /// What it answers to a request
    Http(Http),
    /// What it answers to a datagram
    Udp(Udp),
}

/// A request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Http {
    /// Over TLS, whatever certificate the server has
    pub tls: bool,
    /// Path and query, from `/` on
    pub path: String,
    /// `Host`, and the name asked for in TLS; the address where there is none
    pub host: Option<String>,
    /// Good status codes
    pub status: RangeInclusive<u16>,
    /// Whether the answer may set the backend's weight
    pub weight: bool,
}

impl Http {
    /// A request with its defaults.
    pub fn new(tls: bool) -> Self {
        Self { tls, path: "/".to_owned(), host: None, status: 200..=399, weight: false }
    }
}

/// A datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Udp {
    /// Its payload
    pub send: Vec<u8>,
    /// What the answer's payload begins with; empty where any will do
    pub expect: Vec<u8>,
}

/// What happens where no backend of a service is up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AllDown {
    /// Those that were up last go on: the check may be what is wrong.
    #[default]
    Keep,
    /// New flows are refused, as the service's `no_backends` says.
    Reject,
}
