//! The small tables of addresses and networks, made to hold exactly what is wanted: what is new comes
//! before what is old goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use xdp_lb_abi::{Address, AddressFlags, PeerKey, SourceKey, names};

use super::{Dataplane, operation};
use crate::maps::TableError;

/// The small tables of addresses and networks.
pub(super) struct Networks {
    pub(super) addresses: HashMap<MapData, Address, u32>,
    /// What `addresses` and `filter` hold, unless somebody else wrote to them
    pub(super) known: Option<BTreeMap<Address, u32>>,
    pub(super) filter: Array<MapData, u64>,
    pub(super) peers: LpmTrie<MapData, PeerKey, u32>,
    pub(super) pods: LpmTrie<MapData, PeerKey, u32>,
    pub(super) sources: LpmTrie<MapData, SourceKey, u32>,
}

impl Dataplane {
    /// Makes the table of addresses hold exactly this, and its filter.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_addresses(&mut self, want: BTreeMap<Address, u32>) -> Result<(), TableError> {
        if self.networks.known.as_ref() == Some(&want) {
            return Ok(());
        }
        self.networks.known = None;
        let mut filter = vec![0_u64; AddressFlags::FILTER_WORDS as usize];
        let frontends = want.iter().filter(|(_, flags)| **flags & AddressFlags::FRONTEND != 0);
        for (address, _) in frontends {
            let (word, bit) = AddressFlags::filter(address);
            filter[word as usize] |= bit;
        }
        let networks = &mut self.networks;
        let error = |what| move |source| operation(names::ADDRESS_FILTER, what, source);
        for (index, &want) in (0..).zip(&filter) {
            if networks.filter.get(&index, 0).map_err(error("read"))? != want {
                networks.filter.set(index, want, 0).map_err(error("write"))?;
            }
        }
        sync(&mut networks.addresses, names::ADDRESSES, &want)?;
        networks.known = Some(want);
        Ok(())
    }

    /// Has [`Self::set_addresses`] compare with what the kernel has, the next time.
    pub fn distrust_addresses(&mut self) {
        self.networks.known = None;
    }

    /// Makes the table of peers hold exactly these: prefix lengths and keys.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_peers(&mut self, want: &BTreeSet<(u32, PeerKey)>) -> Result<(), TableError> {
        sync_trie(&mut self.networks.peers, names::PEERS, want)
    }

    /// Makes the table of pods' networks hold exactly these: prefix lengths and keys.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_pods(&mut self, want: &BTreeSet<(u32, PeerKey)>) -> Result<(), TableError> {
        sync_trie(&mut self.networks.pods, names::PODS, want)
    }

    /// Adds networks that may use services: before the services that name their numbers.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn add_sources(&mut self, want: &BTreeSet<(u32, SourceKey)>) -> Result<(), TableError> {
        add_to_trie(&mut self.networks.sources, names::SOURCES, want).map(drop)
    }

    /// Makes the table of networks that may use services hold exactly these: after the services.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_sources(&mut self, want: &BTreeSet<(u32, SourceKey)>) -> Result<(), TableError> {
        sync_trie(&mut self.networks.sources, names::SOURCES, want)
    }
}

/// Adds keys to a trie; what it has.
fn add_to_trie<K: Pod + Ord>(
    trie: &mut LpmTrie<MapData, K, u32>,
    name: &'static str,
    want: &BTreeSet<(u32, K)>,
) -> Result<BTreeSet<(u32, K)>, TableError> {
    let have: Result<BTreeSet<(u32, K)>, MapError> =
        trie.keys().map(|key| key.map(|key| (key.prefix_len(), key.data()))).collect();
    let have = have.map_err(|source| operation(name, "read", source))?;
    for &(length, key) in want.difference(&have) {
        trie.insert(&Key::new(length, key), 1, 0)
            .map_err(|source| operation(name, "write", source))?;
    }
    Ok(have)
}

fn sync_trie<K: Pod + Ord>(
    trie: &mut LpmTrie<MapData, K, u32>,
    name: &'static str,
    want: &BTreeSet<(u32, K)>,
) -> Result<(), TableError> {
    let have = add_to_trie(trie, name, want)?;
    for &(length, key) in have.difference(want) {
        trie.remove(&Key::new(length, key)).map_err(|source| operation(name, "write", source))?;
    }
    Ok(())
}

/// Makes a hash map hold exactly this.
pub(super) fn sync<K: Pod + Ord + Debug>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    want: &BTreeMap<K, u32>,
) -> Result<(), TableError> {
    let have: Result<BTreeMap<K, u32>, MapError> = map.iter().collect();
    let have = have.map_err(|source| operation(name, "read", source))?;
    for (key, value) in want {
        if have.get(key) != Some(value) {
            map.insert(key, value, 0).map_err(|source| operation(name, "write", source))?;
        }
    }
    for key in have.keys().filter(|key| !want.contains_key(key)) {
        map.remove(key).map_err(|source| operation(name, "write", source))?;
    }
    Ok(())
}
