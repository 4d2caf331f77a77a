//! The eBPF objects, as the build made them: sets of the same programs over the same maps.

/// The programs that devices run, and the definitions of the maps.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp-lb.o"));

/// The programs that change no map and write down what they ask, for test runs.
pub static TRACE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/trace.o"));

/// The programs that tell those who watch what becomes of packets.
pub static MONITOR: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/monitor.o"));

/// What benchmarks load beside the programs ([`xdp_lb_abi::bench`]).
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.o"));
