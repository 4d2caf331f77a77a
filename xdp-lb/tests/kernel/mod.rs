//! The program and its maps in the kernel, filled from the tables in memory.

mod stack;

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{
        Array, HashMap, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
        xdp::DevMap,
    },
    programs::Xdp,
    util::nr_cpus,
};
use xdp_lb::object::OBJECT;
use xdp_lb_abi::{
    Address, Backend, Bucket, Device, Flow, FlowKey, Limiter, PeerKey, Reason, Service, Settings,
    Traffic, names,
};
use xdp_lb_datapath::{
    Verdict,
    testing::{Fixture, MemoryTables, world::INGRESS},
};
use zerocopy::FromBytes;

/// Frames up to here are linear in a test run: a page less headroom and trailer, rounded down.
const LINEAR: usize = 3072;

pub(crate) struct Kernel(Ebpf);

impl Kernel {
    /// Loads the object with maps as large as the tables are, and fills none.
    pub(crate) fn load(tables: &MemoryTables) -> Self {
        let mut loader = EbpfLoader::new();
        for (name, length) in [
            (names::FRONTENDS, tables.buckets.len()),
            (names::SERVICES, tables.services.len()),
            (names::ARENA, tables.arena.len()),
            (names::BACKENDS, tables.backends.len()),
            (names::ADDRESSES, tables.addresses.len()),
            (names::FLOWS, 4096),
            (names::FRONTEND_STATS, tables.services.len()),
            (names::BACKEND_STATS, tables.backends.len()),
        ] {
            loader.map_max_entries(name, length as u32);
        }
        let mut object = loader.load(OBJECT).unwrap();
        let program: &mut Xdp = object.program_mut(names::XDP).unwrap().try_into().unwrap();
        program.load().unwrap();
        Self(object)
    }

    /// What the verifier and the JIT made of the program, and its stack, in one line.
    pub(crate) fn figures(&self) -> String {
        let info = self.program().info().unwrap();
        let count = |number: Option<u32>| number.map_or("?".into(), |number| number.to_string());
        let stack: Vec<_> = stack::stack_depths()
            .iter()
            .map(|(function, bytes)| format!("{bytes} {function}"))
            .collect();
        format!(
            "verifier: {} instructions processed; program: {} instructions, {} bytes jited; \
             stack: {}",
            count(info.verified_instruction_count()),
            count(info.size_translated().map(|bytes| bytes / 8)),
            info.size_jitted(),
            stack.join(", "),
        )
    }

    /// Writes the tables into the maps.
    pub(crate) fn fill(&mut self, tables: &MemoryTables) {
        // What ran before the first write is not the fixtures'.
        for index in 0..Reason::COUNT {
            self.set_on_all_cpus(names::REASON_STATS, index as u32, Traffic::default());
        }
        self.fill_array::<Bucket>(names::FRONTENDS, &tables.buckets);
        self.fill_array::<Service>(names::SERVICES, &tables.services);
        self.fill_array::<u64>(names::ARENA, &tables.arena);
        self.fill_array::<Backend>(names::BACKENDS, &tables.backends);
        self.fill_array::<Device>(names::DEVICES, &tables.devices);
        self.fill_array::<Settings>(names::SETTINGS, &[tables.settings]);
        let mut addresses = self.hash::<Address, u32>(names::ADDRESSES);
        for (address, flags) in &tables.addresses {
            addresses.insert(address, flags, 0).unwrap();
        }
        let mut flows = self.hash::<FlowKey, Flow>(names::FLOWS);
        for (key, flow) in &*tables.flows.borrow() {
            flows.insert(key, flow, 0).unwrap();
        }
        let map = self.0.map_mut(names::PEERS).unwrap();
        let mut peers = LpmTrie::<_, PeerKey, u32>::try_from(map).unwrap();
        for (network, length) in &tables.peers {
            let key = PeerKey::new(network);
            peers.insert(&Key::new(key.prefix_length(*length), key), 1, 0).unwrap();
        }
        // A test run only reports the redirect, so the one device that always exists will do.
        let map = self.0.map_mut(names::DEVMAP).unwrap();
        let mut devices = DevMap::try_from(map).unwrap();
        for index in (1..tables.devices.len() as u16).filter(|one| !tables.absent.contains(one)) {
            devices.set(index.into(), INGRESS, None, 0).unwrap();
        }
    }

    /// Runs a fixture; what is wrong, or nothing.
    pub(crate) fn run(&mut self, fixture: &Fixture) -> Result<(), String> {
        self.set_limiter(fixture.limited);
        let before = self.reasons();
        let mut output = vec![0; fixture.packet.len().max(fixture.output.len()) + 256];
        let result = self
            .program()
            .test_run(TestRunOptions {
                data_in: Some(&fixture.packet),
                data_out: Some(&mut output),
                ..TestRunOptions::new()
            })
            .map_err(|error| format!("{error:?}"))?;
        output.truncate(result.data_size_out as usize);
        let counted = Reason::ALL
            .iter()
            .zip(before.iter().zip(self.reasons()))
            .filter(|(_, (before, after))| *before != after)
            .map(|(reason, (before, after))| {
                (*reason, after.packets - before.packets, after.bytes - before.bytes)
            })
            .collect::<Vec<_>>();
        let expected = action(fixture.verdict);
        if result.return_value != expected {
            let action = result.return_value;
            return Err(format!("action {action} instead of {expected}, {counted:?}"));
        }
        let length = fixture.output.len() as u64;
        let right = match (fixture.reason, &counted[..]) {
            (None, []) => true,
            (Some(reason), [(counted, 1, bytes)]) => {
                reason == *counted && (*bytes == length || fixture.output.len() > LINEAR)
            }
            _ => false,
        };
        if !right {
            return Err(format!("{counted:?} instead of {:?}, {length} bytes", fixture.reason));
        }
        if output != fixture.output {
            let right = &fixture.output;
            return Err(format!("the frame is\n  {output:02x?}\ninstead of\n  {right:02x?}"));
        }
        Ok(())
    }

    /// Compares counters and recorded flows with those of the tables in memory.
    pub(crate) fn expect_same_state(&mut self, tables: &MemoryTables) {
        for index in 0..tables.services.len() as u32 {
            let host = tables.frontend_stats.borrow().get(&index).copied().unwrap_or_default();
            assert_eq!(self.counter(names::FRONTEND_STATS, index), host, "service {index}");
        }
        for id in 0..tables.backends.len() as u32 {
            let host = tables.backend_stats.borrow().get(&id).copied().unwrap_or_default();
            assert_eq!(self.counter(names::BACKEND_STATS, id), host, "backend {id}");
        }
        let owner = |flow: &Flow| (flow.backend(), flow.generation());
        let flows = self.hash::<FlowKey, Flow>(names::FLOWS);
        let mut recorded: Vec<_> = flows
            .iter()
            .map(|entry| entry.map(|(key, flow)| (key, owner(&flow))).unwrap())
            .collect();
        recorded.sort_unstable();
        let host: Vec<_> =
            tables.flows.borrow().iter().map(|(key, flow)| (*key, owner(flow))).collect();
        assert_eq!(recorded, host);
    }

    fn program(&self) -> &Xdp {
        self.0.program(names::XDP).unwrap().try_into().unwrap()
    }

    /// Fills the bucket of ICMP errors, or empties it for a long time.
    fn set_limiter(&mut self, used_up: bool) {
        // The last error lies in the future, and the credit is 0.
        let (last, credit) = (if used_up { u64::MAX } else { 0 }, 0_u64);
        let bytes = [last.to_ne_bytes(), credit.to_ne_bytes()].concat();
        let limiter = Limiter::read_from_bytes(&bytes).unwrap();
        self.set_on_all_cpus(names::LIMITER, 0, limiter);
    }

    fn reasons(&mut self) -> Vec<Traffic> {
        (0..Reason::COUNT as u32).map(|index| self.counter(names::REASON_STATS, index)).collect()
    }

    /// A counter, summed over all CPUs.
    fn counter(&mut self, name: &str, index: u32) -> Traffic {
        let values = self.per_cpu::<Traffic>(name).get(&index, 0).unwrap();
        values.iter().fold(Traffic::default(), |sum, traffic| Traffic {
            packets: sum.packets + traffic.packets,
            bytes: sum.bytes + traffic.bytes,
        })
    }

    fn set_on_all_cpus<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let values = PerCpuValues::try_from(vec![value; nr_cpus().unwrap()]).unwrap();
        self.per_cpu::<V>(name).set(index, values, 0).unwrap();
    }

    fn fill_array<V: Pod>(&mut self, name: &str, values: &[V]) {
        let mut array = Array::<_, V>::try_from(self.0.map_mut(name).unwrap()).unwrap();
        for (index, value) in values.iter().enumerate() {
            array.set(index as u32, value, 0).unwrap();
        }
    }

    fn per_cpu<V: Pod>(&mut self, name: &str) -> PerCpuArray<&mut MapData, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }
}

/// What the program returns for a verdict (`enum xdp_action`).
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    }
}
