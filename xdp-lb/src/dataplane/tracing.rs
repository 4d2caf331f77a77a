//! The tracing programs: what the packet path would do with a packet, with no trace of it in any map.

use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, MapData, MapError},
    programs::Xdp,
};
use xdp_lb_abi::{
    FlowKey, Forward, Reverse,
    asked::{ANSWERED, Asked, NOTES, Note, noted},
    names,
};

use super::{DataplaneError, Stages, load_beside, operation, programs::load_way_in, take};
use crate::{maps::TableError, object::TRACE, pins::Pins};

/// Bytes that the packet path may put in front of a frame, and more.
const GROWTH: usize = 256;

/// A second set of the programs over the live maps, for test runs: they write into no map but their
/// own.
pub struct TraceSet {
    ebpf: Ebpf,
    _stages: Stages,
    notes: Array<MapData, Note>,
    noted: Array<MapData, u64>,
}

/// What the kernel did with a frame.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What the program returned (`enum xdp_action`)
    pub action: u32,
    /// The frame as it is then
    pub frame: Vec<u8>,
    /// What it asked of the tables, in order
    pub notes: Vec<Note>,
    /// Whether it asked more than there was room for
    pub cut: bool,
}

impl TraceSet {
    /// Loads the programs over the data path that is pinned; takes about a second.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or the data path is another build's.
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        let mut ebpf = load_beside(TRACE, pins)?;
        let stages = load_way_in(&mut ebpf)?;
        let notes = take(&mut ebpf, names::NOTES)?;
        let noted = take(&mut ebpf, names::NOTED)?;
        Ok(Self { ebpf, _stages: stages, notes, noted })
    }

    /// Runs the program once over a frame that came by the device with this index, of this network
    /// namespace.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses: the device is not there (ENODEV), or the frame too long.
    pub fn run(&mut self, frame: &[u8], ingress: u32) -> Result<Ran, DataplaneError> {
        let full = [noted::FORWARD_FULL, noted::REVERSE_FULL];
        self.set_full(full.map(|word| (word, false)))?;
        let ran = self.run_once(frame, ingress)?;
        let opens =
            ran.notes.iter().any(|note| note[0] == Asked::ClaimNatForward as u64 | ANSWERED);
        if !opens {
            return Ok(ran);
        }
        // Only an insertion could tell, and there must be none.
        let forward = is_full::<Forward>(&mut self.ebpf, names::NAT_FORWARD)?;
        let reverse = is_full::<Reverse>(&mut self.ebpf, names::NAT_REVERSE)?;
        if !forward && !reverse {
            return Ok(ran);
        }
        self.set_full([(full[0], forward), (full[1], reverse)])?;
        self.run_once(frame, ingress)
    }

    fn set_full(&mut self, full: [(u32, bool); 2]) -> Result<(), TableError> {
        for (word, full) in full {
            self.noted
                .set(word, u64::from(full), 0)
                .map_err(|source| operation(names::NOTED, "write", source))?;
        }
        Ok(())
    }

    fn run_once(&mut self, frame: &[u8], ingress: u32) -> Result<Ran, DataplaneError> {
        for name in names::OPENED {
            clear(&mut self.ebpf, name)?;
        }
        self.noted
            .set(noted::COUNT, 0, 0)
            .map_err(|source| operation(names::NOTED, "write", source))?;
        let mut output = vec![0; frame.len() + GROWTH];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, ingress, 0, 0].map(u32::to_ne_bytes).concat();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let failed = |source| DataplaneError::Program { program: names::XDP, source };
        let program = self.ebpf.program(names::XDP).ok_or(DataplaneError::NoProgram(names::XDP))?;
        let program: &Xdp = program.try_into().map_err(failed)?;
        let result = program.test_run(options).map_err(failed)?;
        output.truncate(result.data_size_out as usize);
        let read = |source| operation(names::NOTED, "read", source);
        let count = self.noted.get(&noted::COUNT, 0).map_err(read)?;
        let have = count.min(NOTES as u64) as u32;
        let notes: Result<Vec<Note>, MapError> =
            (0..have).map(|number| self.notes.get(&number, 0)).collect();
        let notes = notes.map_err(|source| operation(names::NOTES, "read", source))?;
        let cut = count > u64::from(have);
        Ok(Ran { action: result.return_value, frame: output, notes, cut })
    }
}

/// Whether a table of `snat`'s flows has no room: it is counted, since the kernel does not tell.
fn is_full<V: aya::Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<bool, TableError> {
    let map = ebpf.map(name).ok_or(TableError::Missing(name))?;
    let failed = |source| operation(name, "read", source);
    let aya::maps::Map::HashMap(data) = map else { return Err(TableError::Missing(name)) };
    let entries = data.info().map_err(failed)?.max_entries() as usize;
    let map = HashMap::<_, FlowKey, V>::try_from(map).map_err(failed)?;
    // Keys that go meanwhile may start the round again.
    Ok(map.keys().take(2 * entries).filter(Result::is_ok).count() >= entries)
}

/// Empties one of the tables of what a packet opened.
fn clear(ebpf: &mut Ebpf, name: &'static str) -> Result<(), TableError> {
    fn all<V: aya::Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<(), MapError> {
        let Some(map) = ebpf.map_mut(name) else { return Ok(()) };
        let mut map = HashMap::<_, FlowKey, V>::try_from(map)?;
        let keys: Vec<FlowKey> = map.keys().filter_map(Result::ok).collect();
        keys.iter().try_for_each(|key| map.remove(key))
    }
    let [forward, reverse, ..] = names::OPENED;
    let cleared = if name == forward {
        all::<Forward>(ebpf, name)
    } else if name == reverse {
        all::<Reverse>(ebpf, name)
    } else {
        all::<u32>(ebpf, name)
    };
    cleared.map_err(|source| operation(name, "write", source))
}
