//! The monitoring programs: the packet path that tells those who watch what becomes of packets. They
//! are attached only while somebody watches.

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use xdp_lb_abi::{
    monitor::{Event, Filter, WATCHERS, Watch},
    names,
};
use zerocopy::FromBytes as _;

use super::{Dataplane, DataplaneError, Stages, load_beside, operation, programs, take};
use crate::{maps::TableError, object::MONITOR, pins::Pins};

/// The programs, loaded over a data path.
pub struct MonitorSet {
    pub(super) ebpf: Ebpf,
    /// Their array empties itself when its last user goes
    _stages: Stages,
}

/// What the programs are told.
pub struct Monitored {
    watch: Array<MapData, Watch>,
    filters: Array<MapData, Filter>,
    untold: PerCpuArray<MapData, u64>,
}

impl MonitorSet {
    /// Loads the programs over the data path that is pinned; takes about a second. The ring buffer is
    /// readable once they have told something.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or the data path is another build's.
    pub fn open(pins: &Pins) -> Result<(Box<Self>, Monitored, RingBuf<MapData>), DataplaneError> {
        let mut ebpf = load_beside(MONITOR, pins)?;
        let stages = programs::load_programs(&mut ebpf)?;
        stages.pin(pins)?;
        let monitored = Monitored {
            watch: take(&mut ebpf, names::WATCH)?,
            filters: take(&mut ebpf, names::FILTERS)?,
            untold: take(&mut ebpf, names::UNTOLD)?,
        };
        let ring = take(&mut ebpf, names::EVENTS)?;
        Ok((Box::new(Self { ebpf, _stages: stages }), monitored, ring))
    }
}

impl Monitored {
    /// Has events told until a moment, in nanoseconds of CLOCK_MONOTONIC, with so many bytes of each
    /// packet.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn watch(&mut self, until: u64, capture: u32) -> Result<(), TableError> {
        let watch = Watch { until, capture, reserved: 0 };
        self.watch.set(0, watch, 0).map_err(|source| operation(names::WATCH, "write", source))
    }

    /// Says what a watcher wants to see; [`Filter::default`] is nothing.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn set_filter(&mut self, watcher: usize, filter: Filter) -> Result<(), TableError> {
        let failed = |source| operation(names::FILTERS, "write", source);
        self.filters.set(watcher as u32, filter, 0).map_err(failed)
    }

    /// How many events did not fit into the ring buffer, by watcher, since the start.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn untold(&self) -> Result<[u64; WATCHERS], TableError> {
        let mut all = [0; WATCHERS];
        for (index, count) in (0..).zip(&mut all) {
            let counts = self.untold.get(&index, 0);
            let counts = counts.map_err(|source| operation(names::UNTOLD, "read", source))?;
            *count = counts.iter().sum();
        }
        Ok(all)
    }
}

/// The next event, and the bytes of its packet; nothing where none waits.
pub fn next_event(ring: &mut RingBuf<MapData>) -> Option<(Event, Vec<u8>)> {
    loop {
        let item = ring.next()?;
        if let Ok((event, bytes)) = Event::read_from_prefix(&item) {
            return Some((event, bytes.to_vec()));
        }
    }
}

impl Dataplane {
    /// Has these programs attached from the next [`Dataplane::attach`] and [`Dataplane::attach_egress`]
    /// on, or the plain ones again; returns those before.
    pub fn monitor_with(&mut self, set: Option<Box<MonitorSet>>) -> Option<Box<MonitorSet>> {
        std::mem::replace(&mut self.monitor, set)
    }

    /// The programs that are attached, or to be attached.
    pub(super) fn running(&mut self) -> &mut Ebpf {
        self.monitor.as_mut().map_or(&mut self.ebpf, |set| &mut set.ebpf)
    }

    /// The one on the way in.
    pub(super) const fn way_in(&self) -> &'static str {
        if self.monitor.is_some() { names::WATCH_XDP } else { names::XDP }
    }
}
