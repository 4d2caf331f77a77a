//! What is asked about a packet, and what becomes of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A packet to trace: by its ends, or as a whole frame.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceRequest {
    /// Device that it comes in by; may be left out where there is only one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// An Ethernet frame in hexadecimal digits, instead of everything below
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Its source: `198.51.100.7:40000`, `[2001:db8::7]:40000`; for ICMP an address
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its destination, in the same form
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `TCP` where nothing is said, `UDP`, `SCTP`, or `ICMP` for an echo request
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Of TCP, separated by commas: `syn` (where nothing is said), `ack`, `fin`, `rst`, `psh`, `urg`,
    /// or `none`; of SCTP `init` (where nothing is said) or `data`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Length of the IP packet in bytes; the shortest one where nothing is said
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 28, maximum = 65535)]
    pub length: Option<u32>,
    /// TTL or hop limit; 64 where nothing is said
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It goes to a backend, or back to the client
    Forwarded,
    /// The kernel gets it, unwrapped or rewritten for a pod on this host
    Delivered,
    /// It is an echo request, and answered
    Answered,
    /// It is none of ours, and the kernel gets it as it came
    Passed,
    /// Its sender is told why it is not forwarded
    Refused,
    /// It is dropped
    Dropped,
}

impl Outcome {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Delivered => "delivered",
            Self::Answered => "answered",
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// A frame.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrameView {
    /// Its headers in one line
    pub headers: String,
    /// Its bytes, Ethernet header included
    pub length: usize,
    /// These bytes, hexadecimal
    pub frame: String,
}

/// Where a packet leaves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeavesView {
    /// Name of the device, or `#` and its index where it is not one of those with a program
    pub device: String,
    /// MAC address of the next hop
    pub next_hop: String,
    /// MAC address of the device
    pub source: String,
    /// Largest packet of the device (layer 3, in bytes)
    pub mtu: u32,
}

/// One thing that the packet path did.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// What it is about: `parse`, `frontend`, `source`, `slot`, `flow`, `backend`, `device` …
    pub step: String,
    /// What was found
    pub found: String,
}

/// What would become of a packet now. Nothing is sent, counted or recorded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceView {
    /// Device that it would come in by
    pub device: String,
    /// The packet
    pub packet: FrameView,
    /// What becomes of it
    pub outcome: Outcome,
    /// What the program returned: `XDP_PASS`, `XDP_DROP`, `XDP_TX` or `XDP_REDIRECT`
    pub verdict: String,
    /// Why it is not simply forwarded, as the counters name it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What that means, and what to do
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The frontend that it is for, like `203.0.113.10:80/TCP`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    /// The backend that it goes to, or would if it could
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// How packets get to that backend
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Where it leaves
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<LeavesView>,
    /// What it is then; none where nobody gets it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<FrameView>,
    /// What the packet path did, in order
    pub steps: Vec<StepView>,
    /// What must be known to read this
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the kernel's program and the same code run beside it differ: then do not trust the steps,
    /// and report it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
}
