//! The eBPF programs: entry points only.
//!
//! What they do is in `xdp-lb-datapath`; [`frame`] gives it the packet and [`tables`] the maps. The
//! feature `trace` makes a second set of the same programs, which change no map and write down what
//! they ask ([`trace`]), the feature `monitor` a third, which tells what becomes of packets
//! ([`monitor`]); what is attached while nobody monitors is built without them.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For `frame::opaque` and `tables::add`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(all(target_arch = "bpf", feature = "monitor"))]
mod monitor;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(all(target_arch = "bpf", feature = "trace"))]
mod trace;

/// The programs exist for the kernel; on the host this is an empty binary, so that the workspace
/// builds as a whole.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
