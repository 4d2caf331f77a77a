//! The flows of mode `snat`, swept: each keeps a source port as long as it is there.

use aya::maps::{HashMap, Map, MapData, MapError};
use xdp_lb_abi::{FlowKey, Forward, Reverse, names};
use xdp_lb_plan::nat_sweep::{Fate, forward_fate, reverse_fate};

use super::{open, operation};
use crate::{maps::TableError, pins::Pins};

/// Both directions of the flows of mode `snat`.
pub struct NatFlows {
    forward: HashMap<MapData, FlowKey, Forward>,
    reverse: HashMap<MapData, FlowKey, Reverse>,
    capacity: usize,
}

/// What a sweep came to, in flows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Flows that are there
    pub kept: usize,
    /// Flows that were over
    pub ended: usize,
    /// Most flows at one time
    pub capacity: usize,
}

impl NatFlows {
    /// Opens the flows of a data path that is pinned.
    ///
    /// # Errors
    ///
    /// Where they are not there, or may not be opened.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let data = MapData::from_pin(pins.map(names::NAT_FORWARD))
            .map_err(|source| operation(names::NAT_FORWARD, "open", source))?;
        let info = data.info();
        let info = info.map_err(|source| operation(names::NAT_FORWARD, "inspect", source))?;
        Ok(Self {
            capacity: info.max_entries() as usize,
            forward: open(pins, names::NAT_FORWARD, Map::HashMap)?,
            reverse: open(pins, names::NAT_REVERSE, Map::HashMap)?,
        })
    }

    /// Deletes the flows that are over at `now`, in nanoseconds of the kernel's coarse clock: some ten
    /// microseconds for each flow.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read or write a map.
    pub fn sweep(&mut self, now: u64) -> Result<Swept, TableError> {
        let mut swept = Swept { capacity: self.capacity, ..Swept::default() };
        // Keys first: a key that is deleted under an iterator sends it back to the start.
        for key in keys(&self.forward, names::NAT_FORWARD)? {
            let Some(forward) = get(&self.forward, names::NAT_FORWARD, &key)? else { continue };
            let other = forward.reverse_key(key.protocol(), key.is_v6());
            let reverse = get(&self.reverse, names::NAT_REVERSE, &other)?;
            match forward_fate(&key, &forward, reverse.as_ref(), now) {
                Fate::Keep => swept.kept += 1,
                Fate::DeletePair { forward, reverse } => {
                    remove(&mut self.forward, names::NAT_FORWARD, &forward)?;
                    remove(&mut self.reverse, names::NAT_REVERSE, &reverse)?;
                    swept.ended += 1;
                }
                Fate::DeleteHalf => {
                    remove(&mut self.forward, names::NAT_FORWARD, &key)?;
                    swept.ended += 1;
                }
            }
        }
        // What is left without the other half.
        for key in keys(&self.reverse, names::NAT_REVERSE)? {
            let Some(reverse) = get(&self.reverse, names::NAT_REVERSE, &key)? else { continue };
            let other = reverse.forward_key(key.protocol(), key.is_v6());
            let forward = get(&self.forward, names::NAT_FORWARD, &other)?;
            if reverse_fate(&key, &reverse, forward.as_ref(), now) == Fate::DeleteHalf {
                remove(&mut self.reverse, names::NAT_REVERSE, &key)?;
            }
        }
        Ok(swept)
    }
}

fn keys<V: aya::Pod>(
    map: &HashMap<MapData, FlowKey, V>,
    name: &'static str,
) -> Result<Vec<FlowKey>, TableError> {
    let keys: Result<Vec<FlowKey>, MapError> = map.keys().collect();
    keys.map_err(|source| operation(name, "read", source))
}

fn get<V: aya::Pod>(
    map: &HashMap<MapData, FlowKey, V>,
    name: &'static str,
    key: &FlowKey,
) -> Result<Option<V>, TableError> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(operation(name, "read", source)),
    }
}

fn remove<V: aya::Pod>(
    map: &mut HashMap<MapData, FlowKey, V>,
    name: &'static str,
    key: &FlowKey,
) -> Result<(), TableError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        // A packet was faster.
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(source) => Err(operation(name, "write", source)),
    }
}
