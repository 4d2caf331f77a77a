//! The programs in the kernel, with the tables of the packet path's tests and many recorded flows.

use std::{io, net::IpAddr, os::fd::OwnedFd};

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunOptions,
    maps::{
        Array, HashMap, Map, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
        xdp::DevMap,
    },
    programs::{ProgramError, SchedClassifier, Xdp},
    sys::{Stats, enable_stats},
};
use nix::sched::{CloneFlags, unshare};
use xdp_lb::{
    dataplane::{Stages, load_programs},
    object::OBJECT,
};
use xdp_lb_abi::{
    Address, AddressFlags, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, PeerKey,
    Reason, Reverse, Service, Settings, Traffic, names,
};
use xdp_lb_datapath::{
    Tables as _,
    testing::{MemoryTables, world, world::*},
};

use super::{
    Error, Scale,
    cases::{Case, LOOKED_UP, not_ip},
    flows::{NAT_PORTS, Order, answer, nat},
};

/// ICMP errors and resets a second: more than are measured.
const ANSWER_RATE: u32 = 1 << 30;
/// Entries of tables that are not measured.
const SMALL: u32 = 4096;
const TCP: u8 = 6;

/// The programs, their stages, and the kernel's counting of their time, as long as this is there.
pub(super) struct Kernel {
    ebpf: Ebpf,
    _stages: Stages,
    _statistics: OwnedFd,
    /// Id and generation of the backend of mode `snat`
    backend: (u32, u32),
    answers: u32,
}

/// A network namespace with nothing but a loopback device, whose index the tables know.
pub(super) fn isolate() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Error::Setup(error.into()))
}

impl Kernel {
    /// Loads the programs, and fills the tables but for the flows.
    pub(super) fn load(scale: &Scale) -> Result<Self, Error> {
        let tables = tables();
        let answers = scale.answers.last().copied().unwrap_or_default();
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            (names::FRONTENDS, tables.buckets.len() as u32),
            (names::SERVICES, tables.services.len() as u32),
            (names::ARENA, tables.arena.len() as u32),
            (names::BACKENDS, tables.backends.len() as u32),
            (names::ADDRESSES, tables.addresses.len() as u32),
            (names::FLOWS, SMALL),
            (names::CLIENTS, SMALL),
            // Each CPU keeps some free entries for itself.
            (names::ANSWERS, answers + answers / 16 + SMALL),
            (names::TRANSLATIONS, SMALL),
            (names::FRAGMENTS, SMALL),
            (names::ANSWER_FRAGMENTS, SMALL),
            (names::NAT_FORWARD, 2 * scale.nat_flows),
            (names::NAT_REVERSE, 2 * scale.nat_flows),
            (names::FRONTEND_STATS, tables.services.len() as u32),
            (names::BACKEND_STATS, tables.backends.len() as u32),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let stages = load_programs(&mut ebpf)?;
        load_floor(&mut ebpf)?;
        let target: Address = server(false, port::SNAT).0.into();
        let id = tables.backends.iter().position(|one| one.address() == target).unwrap_or_default();
        let mut kernel = Self {
            ebpf,
            _stages: stages,
            _statistics: enable_stats(Stats::RunTime)?,
            backend: (id as u32, tables.backends[id].generation()),
            answers: 0,
        };
        kernel.fill(&tables)?;
        Ok(kernel)
    }

    fn fill(&mut self, tables: &MemoryTables) -> Result<(), Error> {
        self.fill_array::<Bucket>(names::FRONTENDS, &tables.buckets)?;
        self.fill_array::<Service>(names::SERVICES, &tables.services)?;
        self.fill_array::<u64>(names::ARENA, &tables.arena)?;
        self.fill_array::<Backend>(names::BACKENDS, &tables.backends)?;
        self.fill_array::<Device>(names::DEVICES, &tables.devices)?;
        self.fill_array::<Settings>(names::SETTINGS, &[tables.settings])?;
        self.fill_array::<u64>(names::ADDRESS_FILTER, &tables.address_filter)?;
        self.fill_array::<u64>(names::PORT_FILTER, &tables.port_filter)?;
        let addresses = tables.addresses.iter().map(|(key, flags)| (*key, *flags));
        self.fill_hash::<Address, u32>(names::ADDRESSES, addresses)?;
        let flows: Vec<_> = tables.flows.borrow().iter().map(|(key, flow)| (*key, *flow)).collect();
        self.fill_hash::<FlowKey, Flow>(names::FLOWS, flows.into_iter())?;
        let device: u32 = tables.device_of(INGRESS).into();
        self.fill_hash::<u32, u32>(names::DEVICE_OF, [(INGRESS, device)].into_iter())?;
        for (name, networks) in [(names::PEERS, &tables.peers), (names::PODS, &tables.pods)] {
            let failed = |source| Error::Map { map: name, source };
            let mut trie: LpmTrie<_, PeerKey, u32> = self.map(name)?;
            for (network, length) in networks {
                let key = PeerKey::new(network);
                let key = Key::new(key.prefix_length(*length), key);
                trie.insert(&key, 1, 0).map_err(failed)?;
            }
        }
        let word = Answer::filter(&LOCAL_POD_V4.into(), POD_PORT, TCP);
        let mut filter: Array<_, u64> = self.map(names::ANSWER_FILTER)?;
        let failed = |source| Error::Map { map: names::ANSWER_FILTER, source };
        filter.set(word, 1, 0).map_err(failed)?;
        // A test run only reports where a packet leaves, so the one device that always exists will do.
        let mut devices: DevMap<_> = self.map(names::DEVMAP)?;
        devices
            .set(device::UNTAGGED.into(), INGRESS, None, 0)
            .map_err(|error| Error::Wrong { case: names::DEVMAP, what: error.to_string() })
    }

    /// Records flows to the pod on this host until there are so many.
    pub(super) fn record_answers(&mut self, count: u32) -> Result<(), Error> {
        let new = self.answers..count;
        self.answers = count;
        self.fill_hash::<FlowKey, Answer>(names::ANSWERS, new.map(answer))
    }

    /// Records flows of mode `snat`.
    pub(super) fn record_nat(&mut self, count: u32) -> Result<(), Error> {
        let backend = self.backend;
        let both = move |flow| nat(flow, backend);
        self.fill_hash::<FlowKey, Forward>(names::NAT_FORWARD, (0..count).map(|n| both(n).0))?;
        self.fill_hash::<FlowKey, Reverse>(names::NAT_REVERSE, (0..count).map(|n| both(n).1))
    }

    /// Nanoseconds that a packet of the case takes, over so many.
    pub(super) fn time(
        &mut self,
        case: &Case,
        order: &mut Order,
        packets: u32,
    ) -> Result<f64, Error> {
        let before = self.clock(case.program)?;
        for _ in 0..packets {
            case.expect(self.run(case.program, &case.packet(order.next()))?)?;
        }
        self.since(case.program, before, packets)
    }

    /// Nanoseconds that as many packets take where nothing is done with them.
    pub(super) fn time_floor(
        &mut self,
        case: &Case,
        order: &mut Order,
        packets: u32,
    ) -> Result<f64, Error> {
        let out = case.program == names::EGRESS;
        let program = if out { names::EGRESS } else { names::XDP_PASS };
        let idle = not_ip();
        let before = self.clock(program)?;
        for _ in 0..packets {
            // What user space does between two packets is the same as in the case.
            let packet = case.packet(order.next());
            self.run(program, if out { &idle } else { &packet })?;
        }
        self.since(program, before, packets)
    }

    fn since(&self, program: &'static str, before: (u64, u64), packets: u32) -> Result<f64, Error> {
        let after = self.clock(program)?;
        let runs = after.1 - before.1;
        if runs != u64::from(packets) {
            let what = format!("the kernel counted {runs} runs instead of {packets}");
            return Err(Error::Wrong { case: program, what });
        }
        Ok((after.0 - before.0) as f64 / runs as f64)
    }

    /// Nanoseconds that a program ran, and how often.
    fn clock(&self, name: &'static str) -> Result<(u64, u64), Error> {
        let failed = |source| Error::Program { program: name, source };
        let program = self.ebpf.program(name).ok_or_else(|| failed(missing()))?;
        let info = program.info().map_err(failed)?;
        Ok((info.run_time().as_nanos() as u64, info.run_count()))
    }

    /// Runs a program on a packet; what it returns.
    fn run(&self, name: &'static str, packet: &[u8]) -> Result<u32, Error> {
        let failed = |source| Error::Program { program: name, source };
        let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::default() };
        let program = self.ebpf.program(name).ok_or_else(|| failed(missing()))?;
        let result = if name == names::EGRESS {
            <&SchedClassifier>::try_from(program).map_err(failed)?.test_run(options)
        } else {
            <&Xdp>::try_from(program).map_err(failed)?.test_run(options)
        };
        Ok(result.map_err(failed)?.return_value)
    }

    /// Packets that were counted, by reason.
    pub(super) fn counted(&mut self) -> Result<Vec<u64>, Error> {
        let failed = |source| Error::Map { map: names::REASON_STATS, source };
        let stats: PerCpuArray<_, Traffic> = self.map(names::REASON_STATS)?;
        (0..Reason::COUNT as u32)
            .map(|index| {
                let values = stats.get(&index, 0).map_err(failed)?;
                Ok(values.iter().map(|traffic| traffic.packets).sum())
            })
            .collect()
    }

    fn fill_array<V: Pod>(&mut self, name: &'static str, values: &[V]) -> Result<(), Error> {
        let mut array: Array<_, V> = self.map(name)?;
        for (index, value) in (0..).zip(values) {
            array.set(index, value, 0).map_err(|source| Error::Map { map: name, source })?;
        }
        Ok(())
    }

    fn fill_hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        let mut map: HashMap<_, K, V> = self.map(name)?;
        for (key, value) in entries {
            map.insert(key, value, 0).map_err(|source| Error::Map { map: name, source })?;
        }
        Ok(())
    }

    fn map<'a, M>(&'a mut self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut Map, Error = MapError>,
    {
        let failed = |source| Error::Map { map: name, source };
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| failed(MapError::IoError(io::Error::from(io::ErrorKind::NotFound))))?;
        M::try_from(map).map_err(failed)
    }
}

fn missing() -> ProgramError {
    ProgramError::IOError(io::Error::from(io::ErrorKind::NotFound))
}

fn load_floor(ebpf: &mut Ebpf) -> Result<(), Error> {
    let failed = |source| Error::Program { program: names::XDP_PASS, source };
    let program = ebpf.program_mut(names::XDP_PASS).ok_or_else(|| failed(missing()))?;
    <&mut Xdp>::try_from(program).and_then(Xdp::load).map_err(failed)
}

/// The tables of the packet path's tests, with the usual ports of mode `snat`, no limit of answers, and
/// an address that is looked up.
fn tables() -> MemoryTables {
    let mut tables = world();
    let settings = tables.settings;
    let mut own = [0; 4];
    if let IpAddr::V4(v4) = HOST_V4 {
        own = v4.octets();
    }
    tables.settings = Settings::new(
        settings.flow_key(),
        settings.frontend_seed(),
        settings.buckets(),
        ANSWER_RATE,
    )
    .with_own(own, HOST_V6.into())
    .with_nat_ports(NAT_PORTS.0, NAT_PORTS.1)
    .with_terminate(true);
    tables.add_address(LOOKED_UP, AddressFlags::LOCAL);
    let (word, bit) = AddressFlags::filter(&LOOKED_UP.into());
    tables.address_filter[word as usize] |= bit;
    tables
}
