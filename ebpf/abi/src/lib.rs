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
mod backend;
mod counter;
mod device;
mod flow;
mod frontend;
mod hash;
#[cfg(feature = "user")]
mod pod;
mod service;
mod settings;

pub use address::{Address, AddressFlags, Family, PeerKey};
pub use backend::{Backend, Hop, Mode};
pub use counter::{Disposition, Reason, Traffic};
pub use device::Device;
pub use flow::{Flow, FlowKey};
pub use frontend::{BUCKET_ENTRIES, Bucket, FrontendEntry, FrontendKey};
pub use service::{Phase, Service, Table};
pub use settings::{Limiter, Settings};

/// Version of everything in this crate.
pub const VERSION: u32 = 1;

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
    /// An XDP program that passes everything: for the peers of veth devices in labs.
    pub const XDP_PASS: &str = "xdp_lb_pass";
    /// Array of [`super::Bucket`]: frontends by address, port and protocol.
    pub const FRONTENDS: &str = "FRONTENDS";
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
    /// Per-CPU [`super::Limiter`] of the ICMP errors that the program sends.
    pub const LIMITER: &str = "LIMITER";
}
