//! What the packet path asks of the maps.

use xdp_lb_abi::{
    Address, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment, Hop, Reason,
    Reverse, Service, Settings, SocketFrontend, SocketKey, SocketReason, SocketSettings,
    Translation,
};

use crate::{Hand, parse::Facts};

/// What choosing a backend needs: the frontend table, the arena, and the records of handovers.
///
/// Any type of program can offer it, not only one that has a packet in its hands.
///
/// Look-ups that the control plane must never let fail still return an `Option`: a missing entry is
/// [`Reason::Inconsistent`], not a panic.
pub trait Lookup {
    /// What holds for the whole instance; nothing before the control plane has set it.
    fn settings(&self) -> Option<&Settings>;
    /// Whether `PORT_FILTER` has the port: if not, no frontend has it.
    fn may_be_served(&self, port: u16) -> bool;
    /// A bucket of the frontend table.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// A service's record.
    fn service(&self, index: u32) -> Option<&Service>;
    /// A word of the arena.
    fn arena(&self, word: u32) -> Option<u64>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The record of a flow that a handover moved.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// Records which backend a flow belongs to.
    fn record_flow(&self, key: &FlowKey, backend: u32, generation: u32);
    /// Notes that a recorded flow was seen just now; nothing where its record is gone.
    fn touch_flow(&self, key: &FlowKey);
    /// A coarse clock, in nanoseconds of the kernel's monotonic one: it steps every few
    /// milliseconds, and is the one that records are dated by.
    fn clock(&self) -> u64;
    /// Which backend a client has, of a service with session affinity.
    fn client(&self, key: &FlowKey) -> Option<Flow>;
    /// Records which backend a client has, in place of what was recorded.
    fn record_client(&self, key: &FlowKey, backend: u32, generation: u32);
    /// Whether a client may use a service with these networks of `SOURCES`.
    fn is_allowed(&self, sources: u32, client: &Address) -> bool;
}

/// The maps, as calls of sockets see them: in the kernel the real ones, in tests memory.
pub trait Sockets: Lookup {
    /// What holds for sockets; nothing before the control plane has set it.
    fn socket_settings(&self) -> Option<&SocketSettings>;
    /// A random number.
    fn random(&self) -> u32;
    /// Which frontend the application named when it was led to this peer.
    fn named(&self, key: &SocketKey) -> Option<SocketFrontend>;
    /// Records which frontend the application named; whether that could be done.
    fn record_named(&self, key: &SocketKey, frontend: &SocketFrontend) -> bool;
    /// Forgets it.
    fn forget_named(&self, key: &SocketKey);
    /// Counts what became of a call.
    fn count_call(&self, reason: SocketReason);
    /// Counts a connection for a frontend, by [`Service::stats`], and for its backend.
    fn count_opened(&self, stats: u32, backend: u32);
}

/// The maps, as the packet path sees them: in the kernel the real ones, in tests memory.
pub trait Tables: Lookup {
    /// A device.
    fn device(&self, index: u16) -> Option<&Device>;
    /// The [`xdp_lb_abi::AddressFlags`] of an address; 0 where it is not ours.
    fn address_flags(&self, address: &Address) -> u32;
    /// Whether tunnel packets from this address are accepted.
    fn is_peer(&self, address: &Address) -> bool;
    /// Writes what the next stage is to know over what was left for this one.
    fn hand_on(&self, write: impl FnOnce(&mut Hand));
    /// Whether `ADDRESS_FILTER` has the address: if not, it is no frontend's.
    fn may_be_frontend(&self, address: &Address) -> bool;
    /// Whether a pod with this address is on this host.
    fn is_pod(&self, address: &Address) -> bool;
    /// How the answers of a delivered flow leave.
    fn answer(&self, key: &FlowKey) -> Option<Answer>;
    /// Records how the answers of a delivered flow leave, in place of what was recorded.
    fn record_answer(&self, key: &FlowKey, answer: &Answer);
    /// Records it only where nothing is recorded under this key; whether it did.
    fn claim_answer(&self, key: &FlowKey, answer: &Answer) -> bool;
    /// Forgets how the answers of a flow leave.
    fn forget_answer(&self, key: &FlowKey);
    /// Whether flows were recorded whose answers come from this pod's port: false for most traffic.
    fn may_be_answer(&self, pod: &Address, port: u16, protocol: u8) -> bool;
    /// Lets [`Self::may_be_answer`] be true.
    fn expect_answers(&self, pod: &Address, port: u16, protocol: u8);
    /// The port under which a pod sees a client.
    fn translation(&self, key: &FlowKey) -> Option<Translation>;
    /// Records the port under which a pod sees a client.
    fn record_translation(&self, key: &FlowKey, translation: &Translation);
    /// Where the first fragment of a client's packet went; key by [`xdp_lb_abi::fragment_key`].
    fn fragment(&self, key: &FlowKey) -> Option<Fragment>;
    /// Records where the first fragment went.
    fn record_fragment(&self, key: &FlowKey, fragment: &Fragment);
    /// How the first fragment of an answer left; key by [`xdp_lb_abi::fragment_key`].
    fn answer_fragment(&self, key: &FlowKey) -> Option<Answer>;
    /// Records how the first fragment of an answer left.
    fn record_answer_fragment(&self, key: &FlowKey, answer: &Answer);
    /// A flow of mode `snat`, by its client's packets.
    fn nat_forward(&self, key: &FlowKey) -> Option<Forward>;
    /// Records it only where nothing is recorded under this key.
    fn claim_nat_forward(&self, key: &FlowKey, flow: &Forward) -> Claim;
    /// Writes when and how its client was seen into a record that is there, and nothing else: another
    /// CPU may have put another flow in its place.
    fn see_nat_forward(&self, key: &FlowKey, seen: u64, state: u8);
    /// Forgets it; whether it was there.
    fn remove_nat_forward(&self, key: &FlowKey) -> bool;
    /// A flow of mode `snat`, by its backend's answers.
    fn nat_reverse(&self, key: &FlowKey) -> Option<Reverse>;
    /// Records it only where nothing is recorded under this key.
    fn claim_nat_reverse(&self, key: &FlowKey, flow: &Reverse) -> Claim;
    /// Writes when and how its backend was seen into a record that is there, and nothing else.
    fn see_nat_reverse(&self, key: &FlowKey, seen: u64, state: u8);
    /// Forgets it.
    fn remove_nat_reverse(&self, key: &FlowKey);
    /// Asks the kernel's routing table for the next hop from one of our addresses to a client;
    /// [`Hop::UNKNOWN`] where it has none, or its device is none of ours.
    fn route_back(&self, facts: &Facts, from: &Address, to: &Address) -> Hop;
    /// Index in `DEVICES` of the device that the packet came by without VLAN tags; 0 for none.
    fn device_of(&self, ifindex: u32) -> u16;
    /// Whether one more ICMP error may be sent now, at `rate` a second.
    fn may_send_icmp(&self, rate: u32) -> bool;
    /// Asks the kernel's routing table: the next hop towards a backend that has none yet;
    /// [`Hop::UNKNOWN`] where it has none either.
    fn route(&self, facts: &Facts, backend: &Backend) -> Hop;
    /// Makes this device of `DEVICES` the one that the frame leaves by, where it still exists.
    fn redirect(&self, device: u16) -> bool;
    /// Counts a forwarded packet for a frontend: its length in layer 3, and whether it begins a flow.
    fn count_frontend(&self, stats: u32, facts: &Facts);
    /// Counts a forwarded packet for a backend, likewise.
    fn count_backend(&self, id: u32, facts: &Facts);
    /// Counts a packet that was not simply forwarded.
    fn count_reason(&self, reason: Reason, bytes: usize);
}

/// Whether a key could be recorded that must be new.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// It is recorded.
    New,
    /// The key is taken.
    Taken,
    /// The table is full.
    Full,
}
