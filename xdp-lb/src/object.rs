//! The eBPF object, as the build made it.

/// The ELF file with the programs and the definitions of the maps.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp-lb.o"));
