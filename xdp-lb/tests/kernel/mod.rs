//! The program and its maps in the kernel, filled from the tables in memory.

mod stack;

use std::time::Duration;

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{
        Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf,
        lpm_trie::{Key, LpmTrie},
        xdp::DevMap,
    },
    programs::{SchedClassifier, Xdp},
    util::nr_cpus,
};
use nix::time::{ClockId, clock_gettime};
use xdp_lb::{
    dataplane::{Stages, load_programs, next_event},
    object::{MONITOR, OBJECT},
    pins::Pins,
    trace::Tracer,
};
use xdp_lb_abi::{
    Address, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Limiter, PeerKey, Reason,
    Reverse, Service, Settings, SourceKey, Traffic,
    monitor::{CAPTURE, Event, Filter, Place, Watch},
    names,
};
use xdp_lb_datapath::{
    Tables as _, Verdict,
    egress::Outgoing,
    testing::{Fixture, MemoryTables, world::INGRESS},
};
use zerocopy::FromBytes;

/// Frames up to here are linear in a test run: a page less headroom and trailer, rounded down.
const LINEAR: usize = 3072;

/// The programs, the stages that the first one reaches as long as this is there, and what runs over the
/// same maps.
pub(crate) struct Kernel(
    Ebpf,
    #[expect(dead_code, reason = "kept for its descriptor")] Stages,
    Beside,
);

/// What else looks at each packet.
enum Beside {
    /// The tracing programs, before the plain ones
    Tracer(Box<Tracer>),
    /// Somebody who watches what the monitoring programs tell
    Watcher(Box<RingBuf<MapData>>),
}

impl Kernel {
    /// Loads the plain programs with maps as large as the tables are, and fills none.
    pub(crate) fn load(tables: &MemoryTables) -> Self {
        let (object, stages) = load(OBJECT, tables);
        let pins = Pins::new(format!("/sys/fs/bpf/xdp-lb-fixtures-{}", std::process::id()));
        pins.create().unwrap();
        // Constants have a map whose name the file system does not take.
        for (name, map) in object.maps().filter(|(name, _)| !name.contains('.')) {
            map.pin(pins.map(name)).unwrap();
        }
        let tracer = Tracer::open(&pins);
        pins.clear().unwrap();
        Self(object, stages, Beside::Tracer(Box::new(tracer.unwrap())))
    }

    /// The same with the monitoring programs, and somebody who watches everything.
    pub(crate) fn load_monitored(tables: &MemoryTables) -> Self {
        let (mut object, stages) = load(MONITOR, tables);
        let events = object.take_map(names::EVENTS).unwrap().try_into().unwrap();
        let mut kernel = Self(object, stages, Beside::Watcher(Box::new(events)));
        let watch = Watch { until: u64::MAX, capture: CAPTURE as u32, reserved: 0 };
        kernel.fill_array(names::WATCH, &[watch]);
        let flags = Filter::WATCHES | Filter::ALL | Filter::AFTER;
        let all = Filter { flags, sample: u32::MAX, ..Filter::default() };
        kernel.fill_array(names::FILTERS, &[all]);
        kernel
    }

    /// What the verifier and the JIT made of each program, and their stacks: a line each.
    pub(crate) fn figures(&self) -> String {
        let count = |number: Option<u32>| number.map_or("?".into(), |number| number.to_string());
        let mut lines = Vec::new();
        for (name, program) in self.0.programs() {
            let Ok(info) = program.info() else { continue };
            lines.push(format!(
                "{name}: {} instructions verified, {} long, {} bytes jited",
                count(info.verified_instruction_count()),
                count(info.size_translated().map(|bytes| bytes / 8)),
                info.size_jitted(),
            ));
        }
        let stack = stack::stack_depths();
        lines.extend(stack.iter().map(|(function, bytes)| format!("stack: {bytes} {function}")));
        lines.join("\n")
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
        // A client's record must not be too old, and this kernel may run for long.
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap());
        let mut clients = self.hash::<FlowKey, Flow>(names::CLIENTS);
        for (key, one) in &*tables.clients.borrow() {
            let one = Flow::new(one.backend(), one.generation(), now.as_nanos() as u64);
            clients.insert(key, one, 0).unwrap();
        }
        for (name, networks) in [(names::PEERS, &tables.peers), (names::PODS, &tables.pods)] {
            let map = self.0.map_mut(name).unwrap();
            let mut trie = LpmTrie::<_, PeerKey, u32>::try_from(map).unwrap();
            for (network, length) in networks {
                let key = PeerKey::new(network);
                trie.insert(&Key::new(key.prefix_length(*length), key), 1, 0).unwrap();
            }
        }
        let mut answers = self.hash::<FlowKey, Answer>(names::ANSWERS);
        for (key, answer) in &*tables.answers.borrow() {
            answers.insert(key, answer, 0).unwrap();
        }
        let mut forward = self.hash::<FlowKey, Forward>(names::NAT_FORWARD);
        for (key, flow) in &*tables.nat_forward.borrow() {
            forward.insert(key, flow, 0).unwrap();
        }
        let mut reverse = self.hash::<FlowKey, Reverse>(names::NAT_REVERSE);
        for (key, flow) in &*tables.nat_reverse.borrow() {
            reverse.insert(key, flow, 0).unwrap();
        }
        for &word in &*tables.answer_filter.borrow() {
            let map = self.0.map_mut(names::ANSWER_FILTER).unwrap();
            Array::<_, u64>::try_from(map).unwrap().set(word, 1, 0).unwrap();
        }
        let map = self.0.map_mut(names::SOURCES).unwrap();
        let mut sources = LpmTrie::<_, SourceKey, u32>::try_from(map).unwrap();
        for (number, network, length) in &tables.sources {
            let key = SourceKey::new(*number, network);
            sources.insert(&Key::new(key.prefix_length(*length), key), 1, 0).unwrap();
        }
        self.fill_array::<u64>(names::ADDRESS_FILTER, &tables.address_filter);
        self.fill_array::<u64>(names::PORT_FILTER, &tables.port_filter);
        let device: u32 = tables.device_of(INGRESS).into();
        self.hash::<u32, u32>(names::DEVICE_OF).insert(INGRESS, device, 0).unwrap();
        // A test run only reports the redirect, so the one device that always exists will do.
        let map = self.0.map_mut(names::DEVMAP).unwrap();
        let mut devices = DevMap::try_from(map).unwrap();
        for index in (1..tables.devices.len() as u16).filter(|one| !tables.absent.contains(one)) {
            devices.set(index.into(), INGRESS, None, 0).unwrap();
        }
    }

    /// Asks what would become of a fixture; what is wrong, or nothing.
    fn trace(&mut self, fixture: &Fixture) -> Result<(), String> {
        let Beside::Tracer(tracer) = &mut self.2 else { return Ok(()) };
        let view = tracer.trace_by(&fixture.packet, INGRESS).map_err(|error| error.to_string())?;
        if let Some(difference) = view.difference {
            return Err(format!("traced: {difference}"));
        }
        let actions = ["", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"];
        let expected = actions[action(fixture.verdict) as usize];
        let reason = fixture.reason.map(|reason| reason.as_str().to_owned());
        if view.verdict != expected || view.reason != reason {
            let (verdict, reason) = (view.verdict, view.reason);
            return Err(format!("traced as {verdict} for {reason:?} instead of {expected}"));
        }
        let hexadecimal: String = fixture.output.iter().map(|b| format!("{b:02x}")).collect();
        match view.result {
            Some(result) if result.frame != hexadecimal => {
                Err(format!("traced frame is\n  {}\ninstead of\n  {hexadecimal}", result.frame))
            }
            _ => Ok(()),
        }
    }

    /// Runs a fixture; what is wrong, or nothing. It is traced before, which must change nothing.
    pub(crate) fn run(&mut self, fixture: &Fixture) -> Result<(), String> {
        self.set_limiter(fixture.limited);
        if fixture.outgoing.is_none() {
            self.trace(fixture)?;
        }
        let before = self.reasons();
        let mut output = vec![0; fixture.packet.len().max(fixture.output.len()) + 256];
        let options = TestRunOptions {
            data_in: Some(&fixture.packet),
            data_out: Some(&mut output),
            ..TestRunOptions::new()
        };
        let result = match fixture.outgoing {
            None => self.program().test_run(options),
            Some(_) => self.egress().test_run(options),
        };
        let result = result.map_err(|error| format!("{error:?}"))?;
        output.truncate(result.data_size_out as usize);
        let counted = Reason::ALL
            .iter()
            .zip(before.iter().zip(self.reasons()))
            .filter(|(_, (before, after))| *before != after)
            .map(|(reason, (before, after))| {
                (*reason, after.packets - before.packets, after.bytes - before.bytes)
            })
            .collect::<Vec<_>>();
        let expected = fixture.outgoing.map_or_else(|| action(fixture.verdict), egress_action);
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
        self.expect_events(fixture, result.return_value)
    }

    /// Compares what the monitoring programs told of a fixture with what became of it.
    fn expect_events(&mut self, fixture: &Fixture, action: u32) -> Result<(), String> {
        let Beside::Watcher(ring) = &mut self.2 else { return Ok(()) };
        let events: Vec<_> = std::iter::from_fn(|| next_event(ring)).collect();
        let out = fixture.outgoing.is_some();
        let dropped = if out { action == 2 } else { action == 1 };
        let mut expected = vec![(if out { Place::Out } else { Place::In }, &fixture.packet)];
        if !dropped {
            expected.push((if out { Place::OutAfter } else { Place::InAfter }, &fixture.output));
        }
        let told = |(event, bytes): &(Event, Vec<u8>)| {
            let Event { action, length, place, .. } = *event;
            (place, action, event.reason(), length as usize, bytes.clone())
        };
        let right = |(place, frame): (Place, &Vec<u8>)| {
            let bytes = frame[..frame.len().min(CAPTURE)].to_vec();
            (place as u8, action, fixture.reason, frame.len(), bytes)
        };
        let told: Vec<_> = events.iter().map(told).collect();
        let right: Vec<_> = expected.into_iter().map(right).collect();
        if told == right { Ok(()) } else { Err(format!("told\n  {told:02x?}\nof\n  {right:02x?}")) }
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
        for (name, host) in [(names::FLOWS, &tables.flows), (names::CLIENTS, &tables.clients)] {
            let map = self.hash::<FlowKey, Flow>(name);
            let mut recorded: Vec<_> = map
                .iter()
                .map(|entry| entry.map(|(key, flow)| (key, owner(&flow))).unwrap())
                .collect();
            recorded.sort_unstable();
            let host: Vec<_> =
                host.borrow().iter().map(|(key, flow)| (*key, owner(flow))).collect();
            assert_eq!(recorded, host, "{name}");
        }
        self.expect_same_answers(tables);
    }

    /// Compares how answers leave, whenever they were recorded.
    fn expect_same_answers(&mut self, tables: &MemoryTables) {
        let timeless = |answer: &Answer| answer.at(0);
        let answers = self.hash::<FlowKey, Answer>(names::ANSWERS);
        let mut recorded: Vec<_> = answers
            .iter()
            .map(|entry| entry.map(|(key, answer)| (key, timeless(&answer))).unwrap())
            .collect();
        recorded.sort_unstable_by_key(|(key, _)| *key);
        let host: Vec<_> =
            tables.answers.borrow().iter().map(|(key, one)| (*key, timeless(one))).collect();
        assert_eq!(recorded, host);
    }

    fn program(&self) -> &Xdp {
        let name = match self.2 {
            Beside::Tracer(_) => names::XDP,
            Beside::Watcher(_) => names::WATCH_XDP,
        };
        self.0.program(name).unwrap().try_into().unwrap()
    }

    fn egress(&self) -> &SchedClassifier {
        self.0.program(names::EGRESS).unwrap().try_into().unwrap()
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
        values.iter().fold(Traffic::default(), Traffic::plus)
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

/// What the program on the way out returns (`TC_ACT_*`).
fn egress_action(outgoing: Outgoing) -> u32 {
    match outgoing {
        Outgoing::Untouched | Outgoing::Rewritten => u32::MAX,
        Outgoing::Drop => 2,
        Outgoing::BackIn => 7,
    }
}

/// What the program returns for a verdict (`enum xdp_action`).
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
        Verdict::Next(stage) => panic!("{stage:?} is to come"),
    }
}

/// Loads an object with maps as large as the tables are.
fn load(object: &[u8], tables: &MemoryTables) -> (Ebpf, Stages) {
    let mut loader = EbpfLoader::new();
    for (name, length) in [
        (names::FRONTENDS, tables.buckets.len()),
        (names::SERVICES, tables.services.len()),
        (names::ARENA, tables.arena.len()),
        (names::BACKENDS, tables.backends.len()),
        (names::ADDRESSES, tables.addresses.len()),
        (names::FLOWS, 4096),
        (names::CLIENTS, 4096),
        (names::ANSWERS, 4096),
        (names::TRANSLATIONS, 4096),
        (names::FRAGMENTS, 4096),
        (names::ANSWER_FRAGMENTS, 4096),
        (names::NAT_FORWARD, tables.nat_room.get()),
        (names::NAT_REVERSE, tables.nat_room.get()),
        (names::FRONTEND_STATS, tables.services.len()),
        (names::BACKEND_STATS, tables.backends.len()),
    ] {
        loader.map_max_entries(name, length as u32);
    }
    let mut object = loader.load(object).unwrap();
    let stages = load_programs(&mut object).unwrap();
    (object, stages)
}
