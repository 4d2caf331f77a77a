//! The eBPF programs: entry points only.
//!
//! What they do is in `xdp-lb-datapath`; [`frame`] gives it the packet and [`tables`] the maps.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod tables;

/// The programs exist for the kernel; on the host this is an empty binary, so that the workspace
/// builds as a whole.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
