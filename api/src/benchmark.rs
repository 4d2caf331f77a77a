//! Benchmarks: what is asked for, how a run goes, and what it found.
//!
//! The same document is in `target/bench/report.json`; docs/benchmarks.md says what each figure means.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Version of [`Report`]: a newer one may have more keys, a different one other meanings.
pub const REPORT_VERSION: u32 = 1;

/// How much is measured.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum BenchmarkScale {
    /// One of each kind, at most 65,536 flows and 1000 services
    #[default]
    Quick,
    /// All, up to 1,048,576 flows and 10,000 services; takes 1 GB of memory
    Full,
}

/// What to measure.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BenchmarkRequest {
    /// How much
    pub scale: BenchmarkScale,
    /// Only cases whose name contains this
    #[schema(max_length = 100)]
    pub filter: String,
}

/// How a run goes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BenchmarkState {
    /// It measures
    Running,
    /// The report is there
    Done,
    /// Somebody has ended it
    Cancelled,
    /// `message` says why
    Failed,
}

/// A run of the benchmark.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct BenchmarkView {
    /// Unique as long as the daemon runs
    pub id: String,
    /// How it goes
    pub state: BenchmarkState,
    /// What was asked for
    pub request: BenchmarkRequest,
    /// When it began (RFC 3339)
    #[schema(format = "date-time")]
    pub started: String,
    /// When it ended (RFC 3339)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = "date-time")]
    pub ended: Option<String>,
    /// How much of it is done, from 0 to 1
    pub progress: f64,
    /// Why it failed
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it found; lists of runs leave it out
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

/// What benchmarks found on one machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Report {
    /// Version of this document's form: 1
    pub version: u32,
    /// When it was measured (RFC 3339)
    #[schema(format = "date-time")]
    pub created: String,
    /// Version of xdp-lb
    pub xdp_lb: String,
    /// Where
    pub machine: Machine,
    /// How
    pub method: Method,
    /// Nanoseconds of one look-up in a kernel hash map above the floor: the unit of `hash_lookups`
    pub hash_lookup_ns: f64,
    /// What the packet path is compared with, in the same run
    pub floors: Vec<Case>,
    /// The packet path
    pub cases: Vec<Case>,
    /// The control plane, where it was measured
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_plane: Vec<ControlCase>,
    /// Whole paths, where they were measured
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathCase>,
}

/// What the figures depend on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Machine {
    /// Release of the kernel
    pub kernel: String,
    /// Model of the CPU
    pub cpu: String,
    /// CPUs that are online
    pub cpus: u32,
    /// Whether a hypervisor says that it is a virtual machine
    pub virtual_machine: bool,
    /// Whether eBPF programs are compiled (`net.core.bpf_jit_enable`)
    pub jit: bool,
    /// What the kernel does about the CPU's faults that makes indirect calls dear
    pub mitigations: Vec<String>,
    /// How packets reached the programs
    pub xdp_mode: String,
    /// Load average over a minute when it began: other work makes figures larger
    pub load: f64,
}

/// How the packet path was measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Method {
    /// Fresh loads of all programs and tables
    pub loads: u32,
    /// Turns of floor and case in each load
    pub turns: u32,
    /// Packets in each turn
    pub packets: u32,
}

/// A kind of packet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Case {
    /// Like `ipv4-tcp-ipip-rest-1`: family, protocol, mode, state, flows
    pub name: String,
    /// Nanoseconds a packet, the floor's included: the median over the loads
    pub median_ns: f64,
    /// The least of the loads
    pub min_ns: f64,
    /// The most of the loads
    pub max_ns: f64,
    /// Nanoseconds without the floor of the same load: the median over the loads
    pub above_floor_ns: f64,
    /// The least of the loads
    pub above_floor_min_ns: f64,
    /// The most of the loads
    pub above_floor_max_ns: f64,
    /// `above_floor_ns` in units of `hash_lookup_ns`
    pub hash_lookups: f64,
    /// Million packets a second on one core, by `median_ns`
    pub mpps: f64,
}

/// A step of the control plane.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ControlCase {
    /// Like `maglev-65537-1000-equal`
    pub name: String,
    /// Milliseconds: the median
    pub median_ms: f64,
    /// The least
    pub min_ms: f64,
    /// The most
    pub max_ms: f64,
    /// Bytes that stay allocated or resident, where that was measured
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A way from a generator of packets, or a client, to a sink or a server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct PathCase {
    /// Like `nftables-10000`: what balances, services
    pub name: String,
    /// Packets that were counted at the sink, a second
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_pps: Option<f64>,
    /// Share of the packets sent that the sink counted
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<f64>,
    /// CPU nanoseconds of the whole machine for a delivered packet, the generator's and the sink's
    /// included
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<f64>,
    /// Microseconds until a TCP connection is open: median
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_p50_us: Option<f64>,
    /// 99th percentile
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_p99_us: Option<f64>,
    /// 99.9th percentile
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_p999_us: Option<f64>,
    /// Microseconds from a request to its answer: median
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_p50_us: Option<f64>,
    /// 99th percentile
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_p99_us: Option<f64>,
    /// 99.9th percentile
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_p999_us: Option<f64>,
    /// Nanoseconds of a `connect` call of a UDP socket of the balancer's own: median
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_ns: Option<f64>,
    /// Milliseconds from the change of an endpoint at the API server, or of the rules, to the first
    /// packet that follows it: median
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_ms: Option<f64>,
}
