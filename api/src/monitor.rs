//! Which packets somebody wants to watch, and what is told of each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::trace::Outcome;

/// Bytes that are captured of each packet where nothing is said.
pub const CAPTURE: u32 = 256;
/// The most that can be.
pub const MOST: u32 = 1536;

/// Which packets are wanted: those for which everything holds that is said. Without a word all with
/// which the data path has to do.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MonitorRequest {
    /// Source or destination address of the outermost IP header
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub host: Option<IpAddr>,
    /// Source or destination port
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1)]
    pub port: Option<u16>,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or an IP protocol number
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Frontend, like `203.0.113.10:80/TCP`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    /// Backend, like `10.0.1.11:80`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why it is not simply forwarded, as the counters name it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only packets that are dropped
    #[serde(default)]
    pub dropped: bool,
    /// Packets, too, that are none of ours
    #[serde(default)]
    pub all: bool,
    /// Each packet twice: as it came, and as it left
    #[serde(default)]
    pub after: bool,
    /// One of so many, at random; each where nothing is said
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1)]
    pub sample: Option<u32>,
    /// Bytes of each packet, 256 where nothing is said
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 64, maximum = 1536)]
    pub capture: Option<u32>,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It comes in by the device
    In,
    /// It leaves by the device: answers of pods on this host
    Out,
}

/// A packet that was seen, and what became of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PacketView {
    /// When, in seconds since 1970
    pub seconds: u64,
    /// And nanoseconds
    pub nanoseconds: u32,
    /// Name of the device, or `#` and its index where nothing is known of it
    pub device: String,
    /// Which way it goes there
    pub direction: Direction,
    /// Whether this is the packet as it left, and not as it came
    pub after: bool,
    /// Length of the frame in bytes
    pub length: u32,
    /// The first bytes of it, hexadecimal
    pub frame: String,
    /// Its headers in one line
    pub headers: String,
    /// What became of it
    pub outcome: Outcome,
    /// What the program returned: `XDP_TX`, `TC_ACT_SHOT` …
    pub verdict: String,
    /// Why it was not simply forwarded, as the counters name it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The frontend that it is for
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    /// The backend that it went to
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// What those who watch are told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A packet
    Packet(Box<PacketView>),
    /// How many more there were that could not be told
    Lost(u64),
}
