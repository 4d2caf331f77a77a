//! The data path in the kernel: loads it or takes over the one that runs, writes its tables, attaches
//! it to devices.

mod attach;
mod counters;
mod sizes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{
        Array, DevMap, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key, xdp::XdpMapError,
    },
    programs::{ProgramError, Xdp},
};
use xdp_lb_abi::{Address, Backend, Bucket, Device, PeerKey, Service, Settings, names};
use xdp_lb_plan::{Layout, Op, record_count};

use self::sizes::{ALL_MAPS, Sizes};
pub use self::{
    attach::{AttachError, AttachProblem},
    counters::Counters,
};
use crate::{
    config::Limits,
    error::chain,
    maps::{Arrays, Mapped, TableError},
    object::OBJECT,
    pins::{PinError, Pins},
};

/// Why the data path cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel refused the object.
    #[error("cannot load the eBPF programs: {}", chain(.0))]
    Load(#[source] EbpfError),
    /// The kernel refused the program.
    #[error("the kernel refuses program {program}: {}", chain(.source))]
    Program {
        /// The program
        program: &'static str,
        /// The kernel's answer
        #[source]
        source: ProgramError,
    },
    /// The object has no such program.
    #[error("the eBPF object has no program {0}")]
    NoProgram(&'static str),
    /// A map cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// The data path in the kernel.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: Pins,
    layout: Layout,
    sizes: Sizes,
    adopted: bool,
    /// Of the data path that was taken over
    flow_key: Option<[u64; 2]>,
    /// The planner's arrays
    pub arrays: Arrays,
    settings: Array<MapData, Settings>,
    devices: Array<MapData, Device>,
    devmap: DevMap<MapData>,
    device_of: HashMap<MapData, u32, u32>,
    addresses: HashMap<MapData, Address, u32>,
    peers: LpmTrie<MapData, PeerKey, u32>,
    /// Counters
    pub counters: Counters,
}

fn operation(map: &'static str, operation: &'static str, source: MapError) -> TableError {
    TableError::Operation { map, operation, source }
}

impl Dataplane {
    /// Takes over the data path that is pinned, or makes a new one.
    ///
    /// The kernel's programs are this binary's either way; what is attached runs on with the older
    /// one until [`Dataplane::attach`] replaces it.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses; nothing is changed then, and nothing left behind.
    pub fn open(pins: Pins, limits: &Limits) -> Result<Self, DataplaneError> {
        let existed = pins.exists()?;
        pins.create()?;
        match Self::load(pins.clone(), limits, existed) {
            Err(error) if !existed => {
                pins.clear()?;
                Err(error)
            }
            result => result,
        }
    }

    fn load(pins: Pins, limits: &Limits, existed: bool) -> Result<Self, DataplaneError> {
        let mut sizes = Sizes::of(limits);
        if existed {
            sizes = sizes.with_pinned(&pins)?;
        }
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (name, entries) in sizes.iter() {
            loader.map_max_entries(name, entries);
        }
        for name in ALL_MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(DataplaneError::Load)?;
        program(&mut ebpf, names::XDP)?
            .load()
            .map_err(|source| DataplaneError::Program { program: names::XDP, source })?;

        let arrays = Arrays {
            frontends: mapped::<Bucket>(&mut ebpf, names::FRONTENDS)?,
            services: mapped::<Service>(&mut ebpf, names::SERVICES)?,
            arena: mapped::<u64>(&mut ebpf, names::ARENA)?,
            backends: mapped::<Backend>(&mut ebpf, names::BACKENDS)?,
        };
        let settings: Array<MapData, Settings> = take(&mut ebpf, names::SETTINGS)?;
        let counters = Counters {
            frontends: take(&mut ebpf, names::FRONTEND_STATS)?,
            backends: take(&mut ebpf, names::BACKEND_STATS)?,
            reasons: take(&mut ebpf, names::REASON_STATS)?,
        };
        let had =
            settings.get(&0, 0).map_err(|source| operation(names::SETTINGS, "read", source))?;
        let adopted = existed && had.buckets() != 0;
        let layout = sizes.layout(if adopted { had.frontend_seed() } else { random() });
        if arrays.services.entries() < record_count(&layout) {
            return Err(TableError::Unsound("SERVICES is too small".to_owned()).into());
        }
        Ok(Self {
            pins,
            layout,
            sizes,
            adopted,
            flow_key: adopted.then(|| had.flow_key()),
            arrays,
            settings,
            devices: take(&mut ebpf, names::DEVICES)?,
            devmap: take(&mut ebpf, names::DEVMAP)?,
            device_of: take(&mut ebpf, names::DEVICE_OF)?,
            addresses: take(&mut ebpf, names::ADDRESSES)?,
            peers: take(&mut ebpf, names::PEERS)?,
            counters,
            ebpf,
        })
    }

    /// Sizes and seed of the tables.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether an earlier run's tables were taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether these limits are those of the tables; if not, they hold from the next data path on.
    pub fn fits(&self, limits: &Limits) -> bool {
        Sizes::of(limits) == self.sizes
    }

    /// Whether the data path that was taken over hashes flows with another key.
    pub fn rekeyed(&self, hash_key: [u8; 16]) -> bool {
        self.flow_key.is_some_and(|had| had != flow_key(hash_key))
    }

    /// The index of each interface in `DEVICES`, as an earlier run left it.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn device_slots(&self) -> Result<BTreeMap<u32, u16>, TableError> {
        let have: Result<BTreeMap<u32, u32>, MapError> = self.device_of.iter().collect();
        let have = have.map_err(|source| operation(names::DEVICE_OF, "read", source))?;
        Ok(have.into_iter().map(|(ifindex, slot)| (ifindex, slot as u16)).collect())
    }

    /// Carries out the planner's operations.
    ///
    /// # Errors
    ///
    /// Where a counter cannot be reset; everything else is done.
    pub fn run(&mut self, ops: &[Op]) -> Result<(), TableError> {
        let mut result = Ok(());
        for op in ops {
            result = result.and(self.counters.reset(op));
            self.arrays.write(op);
        }
        result
    }

    /// Writes what holds for the whole instance.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn configure(&mut self, hash_key: [u8; 16], icmp_rate: u32) -> Result<(), TableError> {
        let settings =
            Settings::new(flow_key(hash_key), self.layout.seed, self.layout.buckets, icmp_rate);
        self.settings
            .set(0, settings, 0)
            .map_err(|source| operation(names::SETTINGS, "write", source))
    }

    /// Makes the device tables hold exactly this.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_devices(
        &mut self,
        want: &BTreeMap<u32, Device>,
        of: &BTreeMap<u32, u16>,
    ) -> Result<(), TableError> {
        for index in 1..xdp_lb_abi::MAX_DEVICES {
            let have = self.devices.get(&index, 0);
            let have = have.map_err(|source| operation(names::DEVICES, "read", source))?;
            let want = want.get(&index).copied().unwrap_or_default();
            // The device map empties itself when a device goes, so it is compared as well.
            let target = self.devmap.get(index, 0).ok().map_or(0, |value| value.if_index);
            if want.ifindex() != 0 && target != want.ifindex() {
                self.devmap.set(index, want.ifindex(), None, 0).map_err(|error| match error {
                    XdpMapError::MapError(source) => operation(names::DEVMAP, "write", source),
                    XdpMapError::ChainedProgramNotSupported => TableError::Missing(names::DEVMAP),
                })?;
            }
            if have != want {
                self.devices
                    .set(index, want, 0)
                    .map_err(|source| operation(names::DEVICES, "write", source))?;
            }
        }
        let want: BTreeMap<u32, u32> =
            of.iter().map(|(&ifindex, &slot)| (ifindex, slot.into())).collect();
        sync(&mut self.device_of, names::DEVICE_OF, &want)
    }

    /// Makes the table of addresses hold exactly this.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_addresses(&mut self, want: &BTreeMap<Address, u32>) -> Result<(), TableError> {
        sync(&mut self.addresses, names::ADDRESSES, want)
    }

    /// Makes the table of peers hold exactly these.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_peers(&mut self, want: &BTreeSet<(u32, PeerKey)>) -> Result<(), TableError> {
        let error = |what| move |source| operation(names::PEERS, what, source);
        let have: Result<BTreeSet<(u32, PeerKey)>, MapError> =
            self.peers.keys().map(|key| key.map(|key| (key.prefix_len(), key.data()))).collect();
        let have = have.map_err(error("read"))?;
        for &(length, key) in want.difference(&have) {
            self.peers.insert(&Key::new(length, key), 1, 0).map_err(error("write"))?;
        }
        for &(length, key) in have.difference(want) {
            self.peers.remove(&Key::new(length, key)).map_err(error("write"))?;
        }
        Ok(())
    }

    /// A program of the object, loaded: for test runs.
    ///
    /// # Errors
    ///
    /// Where the object has no such program, or the kernel refuses it.
    pub fn program(&mut self, name: &'static str) -> Result<&mut Xdp, DataplaneError> {
        let program = program(&mut self.ebpf, name)?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(source) => Err(DataplaneError::Program { program: name, source }),
        }
    }

    /// Detaches from everything and removes every trace.
    ///
    /// # Errors
    ///
    /// Where a pin cannot be removed.
    pub fn remove(self) -> Result<(), PinError> {
        self.pins.clear()
    }
}

/// The key of the hash of flows: the halves of the cluster's key, as little-endian numbers.
fn flow_key(hash_key: [u8; 16]) -> [u64; 2] {
    let key = u128::from_le_bytes(hash_key);
    [key as u64, (key >> 64) as u64]
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DataplaneError> {
    let program = ebpf.program_mut(name).ok_or(DataplaneError::NoProgram(name))?;
    program.try_into().map_err(|source| DataplaneError::Program { program: name, source })
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, TableError> {
    let map = ebpf.take_map(name).ok_or(TableError::Missing(name))?;
    M::try_from(map).map_err(|source| operation(name, "open", source))
}

fn mapped<V>(ebpf: &mut Ebpf, name: &'static str) -> Result<Mapped, TableError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => map_memory::<V>(&data, name),
        _ => Err(TableError::Missing(name)),
    }
}

fn map_memory<V>(data: &MapData, name: &'static str) -> Result<Mapped, TableError> {
    let info = data.info().map_err(|source| operation(name, "inspect", source))?;
    Mapped::new::<V>(data.fd(), info.max_entries())
        .map_err(|source| TableError::Mmap { map: name, source })
}

fn open<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
    wrap: impl FnOnce(MapData) -> Map,
) -> Result<M, TableError> {
    let data =
        MapData::from_pin(pins.map(name)).map_err(|source| operation(name, "open", source))?;
    M::try_from(wrap(data)).map_err(|source| operation(name, "open", source))
}

/// The planner's arrays of a data path that is pinned, and its settings.
///
/// # Errors
///
/// Where they are not there, or may not be opened.
pub fn open_arrays(pins: &Pins) -> Result<(Arrays, Settings), TableError> {
    fn array<V>(pins: &Pins, name: &'static str) -> Result<Mapped, TableError> {
        let path = pins.map(name);
        let data = MapData::from_pin(path).map_err(|source| operation(name, "open", source))?;
        map_memory::<V>(&data, name)
    }
    let arrays = Arrays {
        frontends: array::<Bucket>(pins, names::FRONTENDS)?,
        services: array::<Service>(pins, names::SERVICES)?,
        arena: array::<u64>(pins, names::ARENA)?,
        backends: array::<Backend>(pins, names::BACKENDS)?,
    };
    let settings: Array<MapData, Settings> = open(pins, names::SETTINGS, Map::Array)?;
    let settings =
        settings.get(&0, 0).map_err(|source| operation(names::SETTINGS, "read", source))?;
    Ok((arrays, settings))
}

/// Makes a hash map hold exactly this; what is new comes before what is old goes.
fn sync<K: aya::Pod + Ord>(
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

/// 64 bits that nobody outside knows.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is as long as said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { u64::from_ne_bytes(bytes) } else { u64::from(std::process::id()) }
}

/// Raises the limit of locked memory, which kernels before 5.11 count maps against.
pub fn raise_memory_limit() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).map_err(io::Error::from)
}
