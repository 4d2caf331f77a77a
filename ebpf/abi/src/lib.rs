//! Layout of the maps that the eBPF programs and the daemon share.
//!
//! Every type here is a map key or a map value: fixed size, no padding (zerocopy refuses it at
//! compile time), no Rust enum inside (an unknown byte must never be undefined behaviour).
//! Addresses and ports are kept in network byte order and handed out in host order; indices and
//! counts are native integers, since both sides run on the same machine.
//!
//! A change of any layout, of a map's name or of a hash below is a new [`VERSION`]. The version is
//! part of the path under which maps are pinned, so an old map never meets a new program.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

mod address;
mod answer;
pub mod asked;
mod backend;
pub mod bench;
mod counter;
mod device;
mod flow;
mod fragment;
mod frontend;
mod hash;
pub mod monitor;
mod nat;
#[cfg(feature = "user")]
mod pod;
mod probe;
mod service;
mod settings;
mod socket;

pub use address::{Address, AddressFlags, Family, PeerKey, SourceKey};
pub use answer::{Answer, Translation, fragment_key};
pub use backend::{Backend, Hop, Mode};
pub use counter::{Disposition, Reason, Traffic};
pub use device::Device;
pub use flow::{Flow, FlowKey};
pub use fragment::Fragment;
pub use frontend::{BUCKET_ENTRIES, Bucket, FrontendEntry, FrontendKey, Scope};
pub use nat::{Forward, Idle, Reverse, Seen};
pub use probe::{probe_mark, probed_backend};
pub use service::{Phase, Service, Table};
pub use settings::{Limiter, Settings};
pub use socket::{SocketFrontend, SocketKey, SocketReason, SocketSettings};

/// Version of everything in this crate.
pub const VERSION: u32 = 5;

/// Words of the arena are this many bytes; a word holds [`SLOTS_PER_WORD`] slots.
pub const ARENA_WORD: usize = 8;
/// Maglev slots (16 bits each) in a word of the arena.
pub const SLOTS_PER_WORD: u32 = 4;
/// Backend ids (32 bits each) in a word of the arena.
pub const IDS_PER_WORD: u32 = 2;
/// How many devices one instance can serve; index 0 means "no device".
pub const MAX_DEVICES: u32 = 256;
/// Largest number of backends of one service: a slot has 15 bits for the index, and one for
/// [`Table::LOOK_UP`].
pub const MAX_SERVICE_BACKENDS: usize = 0x7fff;

/// Names of programs and maps, as the object file and the pin directory spell them.
pub mod names {
    /// The program on the device's driver hook.
    pub const XDP: &str = "xdp_lb";
    /// The program on the way out, which answers of pods pass (tc or TCX).
    pub const EGRESS: &str = "xdp_lb_egress";
    /// Program array of the stages that [`XDP`] goes on with, by the stage's number.
    pub const STAGES: &str = "STAGES";
    /// The stages' programs, by their number.
    pub const STAGE_PROGRAMS: [&str; 12] = [
        "xdp_lb_pods",
        "xdp_lb_snat",
        "xdp_lb_unsnat",
        "xdp_lb_unwrap",
        "xdp_lb_icmp",
        "xdp_lb_fragment",
        "xdp_lb_refuse",
        "xdp_lb_deliver",
        "xdp_lb_forward",
        "xdp_lb_error",
        "xdp_lb_remember",
        "xdp_lb_open",
    ];
    /// The program that is attached while somebody monitors.
    pub const WATCH_XDP: &str = "xdp_lb_watch";
    /// The program that tells what became of a packet then.
    pub const TELL: &str = "xdp_lb_tell";
    /// Where [`STAGES`] of the monitoring programs has [`XDP`].
    pub const MONITOR_XDP: u32 = STAGE_PROGRAMS.len() as u32;
    /// Where it has [`TELL`].
    pub const MONITOR_TELL: u32 = MONITOR_XDP + 1;
    /// Per-CPU array of what one stage tells the next.
    pub const HAND: &str = "HAND";
    /// An XDP program that passes everything: for the peers of veth devices in labs.
    pub const XDP_PASS: &str = "xdp_lb_pass";
    /// Array of [`super::Bucket`]: frontends by address, port and protocol.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Array of `u64`: which ports frontends have ([`super::FrontendKey::filter`]).
    pub const PORT_FILTER: &str = "PORT_FILTER";
    /// Array of [`super::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// Array of `u64`: Maglev tables and backend lists.
    pub const ARENA: &str = "ARENA";
    /// Array of [`super::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// Array of [`super::Device`].
    pub const DEVICES: &str = "DEVICES";
    /// Device map with the same indices as [`DEVICES`].
    pub const DEVMAP: &str = "DEVMAP";
    /// Hash of interface index to index into [`DEVICES`].
    pub const DEVICE_OF: &str = "DEVICE_OF";
    /// Hash of [`super::Address`] to [`super::AddressFlags`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// LPM trie of [`super::PeerKey`] data: who may send us tunnel packets.
    pub const PEERS: &str = "PEERS";
    /// Array of `u64`: which addresses may be frontends' ([`super::AddressFlags::filter`]).
    pub const ADDRESS_FILTER: &str = "ADDRESS_FILTER";
    /// LPM trie of [`super::PeerKey`] data: addresses of pods on this host.
    pub const PODS: &str = "PODS";
    /// LPM trie of [`super::SourceKey`] data: who may use a service.
    pub const SOURCES: &str = "SOURCES";
    /// LRU hash of [`super::FlowKey`] (client to pod) to [`super::Answer`].
    pub const ANSWERS: &str = "ANSWERS";
    /// Array of `u64`: which pods' ports have answers ([`super::Answer::filter`]).
    pub const ANSWER_FILTER: &str = "ANSWER_FILTER";
    /// LRU hash of [`super::FlowKey`] (client to frontend) to [`super::Translation`].
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
    /// LRU hash of [`super::fragment_key`] to [`super::Fragment`]: where clients' fragments go.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// LRU hash of [`super::fragment_key`] to [`super::Answer`]: answers in fragments.
    pub const ANSWER_FRAGMENTS: &str = "ANSWER_FRAGMENTS";
    /// Hash of [`super::FlowKey`] (client to frontend) to [`super::Forward`].
    pub const NAT_FORWARD: &str = "NAT_FORWARD";
    /// Hash of [`super::FlowKey`] (backend to us) to [`super::Reverse`].
    pub const NAT_REVERSE: &str = "NAT_REVERSE";
    /// LRU hash of [`super::FlowKey`] without the client's port to [`super::Flow`]: which backend a
    /// client has, of services with session affinity.
    pub const CLIENTS: &str = "CLIENTS";
    /// LRU hash of [`super::FlowKey`] to [`super::Flow`]: the exceptions of handovers.
    pub const FLOWS: &str = "FLOWS";
    /// One [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Per-CPU array of [`super::Traffic`] by [`super::Service::stats`].
    pub const FRONTEND_STATS: &str = "FRONTEND_STATS";
    /// Per-CPU array of [`super::Traffic`] by backend id.
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    /// Per-CPU array of [`super::Traffic`] by [`super::Reason`].
    pub const REASON_STATS: &str = "REASON_STATS";
    /// The programs that sockets' calls pass, on a cgroup.
    pub const SOCKET_PROGRAMS: [&str; 11] = [
        "xdp_lb_connect4",
        "xdp_lb_connect6",
        "xdp_lb_sendmsg4",
        "xdp_lb_sendmsg6",
        "xdp_lb_recvmsg4",
        "xdp_lb_recvmsg6",
        "xdp_lb_getpeername4",
        "xdp_lb_getpeername6",
        "xdp_lb_post_bind4",
        "xdp_lb_post_bind6",
        "xdp_lb_sock_release",
    ];
    /// LRU hash of [`super::SocketKey`] to [`super::SocketFrontend`]: which frontend a socket's peer is
    /// to its application.
    pub const SOCKETS: &str = "SOCKETS";
    /// One [`super::SocketSettings`].
    pub const SOCKET_SETTINGS: &str = "SOCKET_SETTINGS";
    /// Per-CPU array of `u64` by [`super::SocketReason`].
    pub const SOCKET_STATS: &str = "SOCKET_STATS";
    /// Per-CPU [`super::Limiter`] of the ICMP errors that the program sends.
    pub const LIMITER: &str = "LIMITER";
    /// Array of [`super::asked::Note`], in the tracing programs only.
    pub const NOTES: &str = "NOTES";
    /// Array of [`super::asked::noted`], in the tracing programs only.
    pub const NOTED: &str = "NOTED";
    /// Hashes of what the packet that is traced would have changed in the tables of mode `snat`, in
    /// the tracing programs only.
    pub const OPENED: [&str; 4] =
        ["OPENED_FORWARD", "OPENED_REVERSE", "REMOVED_FORWARD", "REMOVED_REVERSE"];
    /// One [`super::monitor::Watch`], in the monitoring programs only, as the next ones.
    pub const WATCH: &str = "WATCH";
    /// Array of [`super::monitor::Filter`].
    pub const FILTERS: &str = "FILTERS";
    /// Ring buffer of [`super::monitor::Event`] with the packet's bytes behind it.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array: events that did not fit into it, by watcher.
    pub const UNTOLD: &str = "UNTOLD";
}
