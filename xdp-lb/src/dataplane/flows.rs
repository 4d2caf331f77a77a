//! The records of flows that handovers moved.

use std::collections::BTreeMap;

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    util::nr_cpus,
};
use xdp_lb_abi::{Flow, FlowKey};

use super::{open, operation};
use crate::{maps::TableError, pins::Pins};

/// Entries that each CPU keeps at hand of an LRU map: a map of `n` entries may evict some once
/// `n - CPUs × this` are used (`LOCAL_FREE_TARGET` in kernel/bpf/bpf_lru_list.c).
const AT_HAND: usize = 128;

/// A map of flows, or of clients.
pub struct Flows {
    name: &'static str,
    map: HashMap<MapData, FlowKey, Flow>,
    capacity: u32,
}

/// The records at about one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All records that were found
    pub records: BTreeMap<FlowKey, Flow>,
    /// Whether none can have been missed that was there all the time
    pub complete: bool,
}

impl Flows {
    pub(super) fn new(
        name: &'static str,
        map: HashMap<MapData, FlowKey, Flow>,
        capacity: u32,
    ) -> Self {
        Self { name, map, capacity }
    }

    /// Opens the records of a data path that is pinned, without touching it: [`FLOWS`](xdp_lb_abi::names::FLOWS)
    /// or [`CLIENTS`](xdp_lb_abi::names::CLIENTS).
    ///
    /// # Errors
    ///
    /// Where they are not there, or may not be opened.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        let data =
            MapData::from_pin(pins.map(name)).map_err(|source| operation(name, "open", source))?;
        let info = data.info().map_err(|source| operation(name, "inspect", source))?;
        let capacity = info.max_entries();
        Ok(Self::new(name, open(pins, name, Map::LruHashMap)?, capacity))
    }

    /// Most records at one time.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether older records give way to new ones where there are so many.
    pub fn is_full(&self, records: usize) -> bool {
        let cpus = nr_cpus().unwrap_or(1);
        // Small maps keep less at hand; half of one is never full.
        let at_hand = (cpus * AT_HAND).min(self.capacity as usize / 2);
        records + at_hand >= self.capacity as usize
    }

    /// Reads all records: two system calls for each, about half a second for 262,144.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn read(&self) -> Result<Snapshot, TableError> {
        let mut snapshot = Snapshot::default();
        // A record that goes while it is the last one read starts the round again.
        let mut left = 4 * u64::from(self.capacity);
        for key in self.map.keys() {
            let key = key.map_err(|source| operation(self.name, "read", source))?;
            if let Some(flow) = self.get(&key)? {
                snapshot.records.insert(key, flow);
            }
            left -= 1;
            if left == 0 {
                return Ok(snapshot);
            }
        }
        snapshot.complete = true;
        Ok(snapshot)
    }

    /// A flow's record.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn get(&self, key: &FlowKey) -> Result<Option<Flow>, TableError> {
        match self.map.get(key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(operation(self.name, "read", source)),
        }
    }

    /// Deletes a flow's record, where there is one.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn remove(&mut self, key: &FlowKey) -> Result<(), TableError> {
        match self.map.remove(key) {
            // The kernel has evicted it: the state we want.
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(operation(self.name, "write", source)),
        }
    }
}
