//! What the kernel says of the programs, and how full the tables are that packets fill.

use std::time::Duration;

use aya::{
    Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError},
};
use xdp_lb_abi::{
    Address, Answer, Flow, FlowKey, Forward, Fragment, PeerKey, Reverse, SocketFrontend, SocketKey,
    SourceKey, Translation, names,
};

use super::{Dataplane, open, operation};
use crate::{maps::TableError, pins::Pins};

/// What the kernel says of a program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProgramFigures {
    /// Name in the object
    pub name: String,
    /// Instructions that the verifier looked at to accept it (Linux 5.16)
    pub verified: Option<u32>,
    /// How often it ran, tail calls not counted, while `kernel.bpf_stats_enabled` was 1
    pub runs: u64,
    /// How long these runs took, tail calls included
    pub time: Duration,
}

/// How full a table is, in entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fill {
    /// Name of the map
    pub map: &'static str,
    /// Entries that are there
    pub used: u64,
    /// Most entries
    pub size: u64,
}

impl Dataplane {
    /// The programs that are loaded. Reads by descriptors, which needs no `CAP_SYS_ADMIN`.
    pub fn programs(&self) -> Vec<ProgramFigures> {
        let loaded = self.ebpf.programs().filter_map(|(name, program)| {
            let info = program.info().ok()?;
            Some(ProgramFigures {
                name: name.to_owned(),
                verified: info.verified_instruction_count(),
                runs: info.run_count(),
                time: info.run_time(),
            })
        });
        loaded.collect()
    }
}

/// How full the hash tables are of a data path that is pinned: a system call for each entry, some tenths
/// of a second for a million.
///
/// # Errors
///
/// Where one may not be opened or read.
pub fn fill(pins: &Pins) -> Result<Vec<Fill>, TableError> {
    Ok(vec![
        hash::<Address, u32>(pins, names::ADDRESSES, Map::HashMap)?,
        trie::<PeerKey>(pins, names::PEERS)?,
        trie::<PeerKey>(pins, names::PODS)?,
        trie::<SourceKey>(pins, names::SOURCES)?,
        hash::<FlowKey, Flow>(pins, names::FLOWS, Map::LruHashMap)?,
        hash::<FlowKey, Flow>(pins, names::CLIENTS, Map::LruHashMap)?,
        hash::<FlowKey, Answer>(pins, names::ANSWERS, Map::LruHashMap)?,
        hash::<FlowKey, Translation>(pins, names::TRANSLATIONS, Map::LruHashMap)?,
        hash::<FlowKey, Fragment>(pins, names::FRAGMENTS, Map::LruHashMap)?,
        hash::<FlowKey, Answer>(pins, names::ANSWER_FRAGMENTS, Map::LruHashMap)?,
        hash::<FlowKey, Forward>(pins, names::NAT_FORWARD, Map::HashMap)?,
        hash::<FlowKey, Reverse>(pins, names::NAT_REVERSE, Map::HashMap)?,
        hash::<SocketKey, SocketFrontend>(pins, names::SOCKETS, Map::LruHashMap)?,
    ])
}

fn hash<K: Pod, V: Pod>(
    pins: &Pins,
    name: &'static str,
    wrap: impl FnOnce(MapData) -> Map,
) -> Result<Fill, TableError> {
    let size = size(pins, name)?;
    let map: HashMap<MapData, K, V> = open(pins, name, wrap)?;
    count(name, size, map.keys())
}

fn trie<K: Pod>(pins: &Pins, name: &'static str) -> Result<Fill, TableError> {
    let size = size(pins, name)?;
    let map: LpmTrie<MapData, K, u32> = open(pins, name, Map::LpmTrie)?;
    count(name, size, map.keys())
}

fn size(pins: &Pins, name: &'static str) -> Result<u64, TableError> {
    let data = MapData::from_pin(pins.map(name)).map_err(|error| operation(name, "open", error))?;
    let info = data.info().map_err(|error| operation(name, "inspect", error))?;
    Ok(info.max_entries().into())
}

/// Counts keys. Where one goes while it is the last one read, the kernel begins again, so there may be
/// more than there are entries.
fn count<K>(
    map: &'static str,
    size: u64,
    keys: impl Iterator<Item = Result<K, MapError>>,
) -> Result<Fill, TableError> {
    let mut used = 0;
    for key in keys.take(usize::try_from(size).unwrap_or(usize::MAX)) {
        key.map_err(|source| operation(map, "read", source))?;
        used += 1;
    }
    Ok(Fill { map, used, size })
}
