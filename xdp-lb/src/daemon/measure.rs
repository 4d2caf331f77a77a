//! What only the daemon's writer knows, for metrics.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use xdp_lb_abi::{MAX_DEVICES, names};

use super::{Daemon, metrics::Measured};
use crate::dataplane::Fill;

impl Daemon {
    /// Figures of this moment.
    pub(super) fn measure(&self) -> Measured {
        let layout = self.dataplane.layout();
        let (words, free) = self.planner.words();
        let fill = |map, used: usize, size: u32| Fill { map, used: used as u64, size: size.into() };
        let used = words.saturating_sub(free) as usize;
        let tables = vec![
            fill(names::FRONTENDS, self.planner.frontends().count(), layout.frontends),
            fill(names::BACKENDS, self.planner.backends().count(), layout.backends),
            fill(names::ARENA, used, words),
            fill(names::DEVICES, self.slots.of.len(), MAX_DEVICES - 1),
        ];
        let flows = self.sweeper.found().clone();
        let recorded: BTreeMap<String, u64> = flows
            .counts
            .flows
            .iter()
            .map(|(frontend, flows)| (self.frontend_name(frontend), flows.values().sum()))
            .collect();
        let (programs, times_full) = (self.dataplane.programs(), flows.times_full);
        let sockets_ended = self.sockets.ended.load(Ordering::Relaxed);
        Measured { programs, tables, recorded, times_full, sockets_ended }
    }
}
