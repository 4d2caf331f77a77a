//! What the maps take that record flows.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{EbpfLoader, maps::Map};
use xdp_lb::object::OBJECT;
use xdp_lb_abi::names;

use super::Error;

/// A map's memory.
#[derive(Clone, Copy, Debug)]
pub struct MapMemory {
    /// The map
    pub map: &'static str,
    /// Bytes that the kernel accounts for it
    pub bytes: u64,
}

/// The maps that record flows, with room for so many each; the kernel takes all memory at once.
///
/// # Errors
///
/// Where the kernel refuses the maps, or does not tell.
pub fn memory(flows: u32) -> Result<Vec<MapMemory>, Error> {
    let recording =
        [names::ANSWERS, names::NAT_FORWARD, names::NAT_REVERSE, names::FLOWS, names::CLIENTS];
    let mut loader = EbpfLoader::new();
    for name in recording {
        loader.map_max_entries(name, flows);
    }
    let mut ebpf = loader.load(OBJECT)?;
    let mut list = Vec::new();
    for map in recording {
        let bytes = match ebpf.take_map(map) {
            Some(Map::HashMap(data) | Map::LruHashMap(data)) => {
                locked(data.fd().as_fd().as_raw_fd())?
            }
            _ => None,
        };
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no memlock of {map}"));
        list.push(MapMemory { map, bytes: bytes.ok_or_else(unknown)? });
    }
    Ok(list)
}

/// The bytes that the kernel says to account for a map's descriptor.
fn locked(descriptor: i32) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}
