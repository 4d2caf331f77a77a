//! The data path in the kernel: loads it or takes over the one that runs, writes its tables, attaches
//! it to devices.

mod attach;
mod counters;
pub(crate) mod egress;
mod figures;
mod flows;
mod footprint;
mod monitoring;
mod nat;
mod networks;
mod programs;
mod sizes;
mod sockets;
mod tracing;

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Array, DevMap, HashMap, Map, MapData, MapError, xdp::XdpMapError},
    pin::PinError as AyaPinError,
    programs::{ProgramError, SchedClassifier, Xdp},
};
use xdp_lb_abi::{Backend, Bucket, Device, Service, Settings, SocketSettings, names};
use xdp_lb_plan::{Layout, Op, record_count};

pub(crate) use self::footprint::footprint;
pub use self::{
    attach::{AttachError, AttachProblem},
    counters::Counters,
    egress::{EgressError, EgressProblem},
    figures::{Fill, ProgramFigures, fill},
    flows::{Flows, Snapshot},
    monitoring::{MonitorSet, Monitored, next_event},
    nat::{NatFlows, Swept},
    programs::{Stages, load_programs, load_way_in},
    sockets::{SocketCounters, SocketError, SocketRecords, cgroup_root, try_hooks},
    tracing::{Ran, TraceSet},
};
use self::{
    networks::{Networks, sync},
    programs::load_xdp,
    sizes::{ALL_MAPS, Sizes},
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
    /// The stages cannot be pinned.
    #[error("cannot pin the stages of the program: {}", chain(.0))]
    PinStages(#[source] AyaPinError),
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
    stages: Stages,
    /// What is attached instead, while somebody watches
    monitor: Option<Box<MonitorSet>>,
    /// Why the programs for sockets cannot be used
    no_sockets: Option<String>,
    pins: Pins,
    layout: Layout,
    sizes: Sizes,
    adopted: bool,
    /// Of the data path that was taken over
    flow_key: Option<[u64; 2]>,
    /// The planner's arrays
    pub arrays: Arrays,
    settings: Array<MapData, Settings>,
    socket_settings: Array<MapData, SocketSettings>,
    devices: Array<MapData, Device>,
    devmap: DevMap<MapData>,
    device_of: HashMap<MapData, u32, u32>,
    networks: Networks,
    /// Recorded flows
    pub flows: Flows,
    /// Clients of services with session affinity
    pub clients: Flows,
    /// Counters
    pub counters: Counters,
}

/// What a data path begins with.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Start {
    /// Maps that are pinned
    Adopt,
    /// New maps, which are pinned
    New,
    /// New maps, which end with the process
    Apart,
}

fn operation(map: &'static str, operation: &'static str, source: MapError) -> TableError {
    TableError::Operation { map, operation, source }
}

/// Whether somebody was killed who made the first maps: some are missing, or none was ever filled, and
/// nothing runs on them.
fn is_half_made(pins: &Pins) -> Result<bool, DataplaneError> {
    if !pins.links()?.is_empty() {
        return Ok(false);
    }
    if ALL_MAPS.iter().any(|name| !pins.map(name).exists()) {
        return Ok(true);
    }
    let settings: Array<MapData, Settings> = open(pins, names::SETTINGS, Map::Array)?;
    let settings =
        settings.get(&0, 0).map_err(|source| operation(names::SETTINGS, "read", source))?;
    Ok(settings.buckets() == 0)
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
        let mut existed = pins.exists()?;
        if existed && is_half_made(&pins)? {
            pins.clear()?;
            existed = false;
        }
        pins.create()?;
        let start = if existed { Start::Adopt } else { Start::New };
        match Self::load(pins.clone(), limits, start) {
            Err(error) if !existed => {
                pins.clear()?;
                Err(error)
            }
            result => result,
        }
    }

    /// Makes a data path that is nobody else's: nothing is pinned, so it ends with this value. It can
    /// run packets ([`Dataplane::program`]), and attaches to no device.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn apart(limits: &Limits) -> Result<Self, DataplaneError> {
        Self::load(Pins::new(""), limits, Start::Apart)
    }

    fn load(pins: Pins, limits: &Limits, start: Start) -> Result<Self, DataplaneError> {
        let mut sizes = Sizes::of(limits);
        if start == Start::Adopt {
            sizes = sizes.with_pinned(&pins)?;
        }
        let own = (start != Start::Apart).then_some(&pins);
        let mut ebpf = load_object(OBJECT, own, &sizes)?;
        let stages = load_programs(&mut ebpf)?;
        let no_sockets = sockets::load_all(&mut ebpf);

        let arrays = Arrays {
            frontends: mapped::<Bucket>(&mut ebpf, names::FRONTENDS)?,
            ports: mapped::<u64>(&mut ebpf, names::PORT_FILTER)?,
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
        let adopted = start == Start::Adopt && had.buckets() != 0;
        let layout = sizes.layout(if adopted { had.frontend_seed() } else { random() });
        if arrays.services.entries() < record_count(&layout) {
            return Err(TableError::Unsound("SERVICES is too small".to_owned()).into());
        }
        if start != Start::Apart {
            stages.pin(&pins)?;
        }
        Ok(Self {
            stages,
            monitor: None,
            no_sockets,
            pins,
            layout,
            adopted,
            flow_key: adopted.then(|| had.flow_key()),
            arrays,
            settings,
            socket_settings: take(&mut ebpf, names::SOCKET_SETTINGS)?,
            devices: take(&mut ebpf, names::DEVICES)?,
            devmap: take(&mut ebpf, names::DEVMAP)?,
            device_of: take(&mut ebpf, names::DEVICE_OF)?,
            networks: Networks {
                known: None,
                addresses: take(&mut ebpf, names::ADDRESSES)?,
                filter: take(&mut ebpf, names::ADDRESS_FILTER)?,
                peers: take(&mut ebpf, names::PEERS)?,
                pods: take(&mut ebpf, names::PODS)?,
                sources: take(&mut ebpf, names::SOURCES)?,
            },
            flows: Flows::new(
                names::FLOWS,
                take(&mut ebpf, names::FLOWS)?,
                sizes.entries(names::FLOWS),
            ),
            clients: Flows::new(
                names::CLIENTS,
                take(&mut ebpf, names::CLIENTS)?,
                sizes.entries(names::CLIENTS),
            ),
            counters,
            sizes,
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

    /// Writes what holds for the whole instance; `with` adds what is neither key nor size. Where flows of
    /// mode `snat` may be left, `keep_nat`, their answers are looked up as before.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn configure(
        &mut self,
        hash_key: [u8; 16],
        icmp_rate: u32,
        keep_nat: bool,
        with: impl FnOnce(Settings) -> Settings,
    ) -> Result<(), TableError> {
        let had = self.settings.get(&0, 0);
        let had = had.map_err(|source| operation(names::SETTINGS, "read", source))?;
        let settings =
            Settings::new(flow_key(hash_key), self.layout.seed, self.layout.buckets, icmp_rate);
        let settings = with(settings);
        let settings = if keep_nat { settings.with_answers_of(&had) } else { settings };
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

    /// Forgets the programs that earlier runs left, and those that told who watched; once every device
    /// runs this run's plain ones.
    ///
    /// # Errors
    ///
    /// Where a pin cannot be removed.
    pub fn retire_programs(&self) -> Result<(), DataplaneError> {
        self.stages.retire_others(&self.pins)
    }

    /// A program of the object, loaded: for test runs.
    ///
    /// # Errors
    ///
    /// Where the object has no such program, or the kernel refuses it.
    pub fn program(&mut self, name: &'static str) -> Result<&mut Xdp, DataplaneError> {
        load_xdp(&mut self.ebpf, name)
    }

    /// The program on the way out, loaded: for test runs.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::program`].
    pub fn program_out(&mut self) -> Result<&mut SchedClassifier, DataplaneError> {
        programs::load_egress(&mut self.ebpf)
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

/// Loads an object over the maps that are pinned, or makes and pins them; without pins, over maps of its
/// own.
fn load_object(object: &[u8], pins: Option<&Pins>, sizes: &Sizes) -> Result<Ebpf, DataplaneError> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for (name, entries) in sizes.iter() {
        loader.map_max_entries(name, entries);
    }
    if let Some(pins) = pins {
        for name in ALL_MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(object).map_err(DataplaneError::Load)
}

/// Loads another set of the programs over the maps of a data path that runs; makes no map that is
/// missing.
fn load_beside(object: &[u8], pins: &Pins) -> Result<Ebpf, DataplaneError> {
    if let Some(missing) = ALL_MAPS.into_iter().find(|name| !pins.map(name).exists()) {
        return Err(TableError::NotPinned(missing).into());
    }
    let sizes = Sizes::of(&Limits::default()).with_pinned(pins)?;
    load_object(object, Some(pins), &sizes)
}

/// The key of the hash of flows: the halves of the cluster's key, as little-endian numbers.
pub(crate) fn flow_key(hash_key: [u8; 16]) -> [u64; 2] {
    let key = u128::from_le_bytes(hash_key);
    [key as u64, (key >> 64) as u64]
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
        ports: array::<u64>(pins, names::PORT_FILTER)?,
        services: array::<Service>(pins, names::SERVICES)?,
        arena: array::<u64>(pins, names::ARENA)?,
        backends: array::<Backend>(pins, names::BACKENDS)?,
    };
    let settings: Array<MapData, Settings> = open(pins, names::SETTINGS, Map::Array)?;
    let settings =
        settings.get(&0, 0).map_err(|source| operation(names::SETTINGS, "read", source))?;
    Ok((arrays, settings))
}

/// The cluster's key, as a data path that is pinned has it.
///
/// # Errors
///
/// Where its settings may not be read.
pub(crate) fn hash_key(pins: &Pins) -> Result<[u8; 16], TableError> {
    let settings: Array<MapData, Settings> = open(pins, names::SETTINGS, Map::Array)?;
    let settings =
        settings.get(&0, 0).map_err(|source| operation(names::SETTINGS, "read", source))?;
    let [low, high] = settings.flow_key();
    Ok((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
}

/// The devices that packets leave by, of a data path that is pinned.
///
/// # Errors
///
/// Where they are not there, or may not be read.
pub fn devices(pins: &Pins) -> Result<Vec<Device>, TableError> {
    let map: Array<MapData, Device> = open(pins, names::DEVICES, Map::Array)?;
    let all: Result<Vec<Device>, MapError> = map.iter().collect();
    let all = all.map_err(|source| operation(names::DEVICES, "read", source))?;
    Ok(all.into_iter().filter(|device| device.ifindex() != 0).collect())
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
