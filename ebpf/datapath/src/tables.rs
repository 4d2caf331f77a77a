//! What the packet path asks of the maps.

use xdp_lb_abi::{Address, Backend, Bucket, Device, Flow, FlowKey, Hop, Reason, Service, Settings};

use crate::parse::Facts;

/// The maps, as the packet path sees them: in the kernel the real ones, in tests memory.
///
/// Look-ups that the control plane must never let fail still return an `Option`: a missing entry is
/// [`Reason::Inconsistent`], not a panic.
pub trait Tables {
    /// What holds for the whole instance; nothing before the control plane has set it.
    fn settings(&self) -> Option<&Settings>;
    /// A bucket of the frontend table.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// A service's record.
    fn service(&self, index: u32) -> Option<&Service>;
    /// A word of the arena.
    fn arena(&self, word: u32) -> Option<u64>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// A device.
    fn device(&self, index: u16) -> Option<&Device>;
    /// The [`xdp_lb_abi::AddressFlags`] of an address; 0 where it is not ours.
    fn address_flags(&self, address: &Address) -> u32;
    /// Whether tunnel packets from this address are accepted.
    fn is_peer(&self, address: &Address) -> bool;
    /// The record of a flow that a handover moved.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// Records which backend a flow belongs to.
    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32);
    /// Whether one more ICMP error may be sent now, at `rate` a second.
    fn may_send_icmp(&self, rate: u32) -> bool;
    /// Asks the kernel's routing table: the next hop towards a backend that has none yet;
    /// [`Hop::UNKNOWN`] where it has none either.
    fn route(&self, facts: &Facts, backend: &Backend) -> Hop;
    /// Makes this device of `DEVICES` the one that the frame leaves by, where it still exists.
    fn redirect(&self, device: u16) -> bool;
    /// Counts a forwarded packet of `bytes` (layer 3) for a frontend.
    fn count_frontend(&self, stats: u32, bytes: usize);
    /// Counts a forwarded packet of `bytes` (layer 3) for a backend.
    fn count_backend(&self, id: u32, bytes: usize);
    /// Counts a packet that was not simply forwarded.
    fn count_reason(&self, reason: Reason, bytes: usize);
}
