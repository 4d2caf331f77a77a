//! The end of a handover: the last exceptions are gone, and the service is at rest again.

use std::{collections::BTreeSet, time::Duration};

use xdp_lb_abi::{FrontendKey, Phase};

use super::{Installed, Planner, Retired, change::publish, draining};
use crate::{backends::Use, op::Op, target::Picks};

impl Installed {
    /// Whether a client may have a backend that takes no new flows: its next flow goes elsewhere, and
    /// only a record tells that from the others.
    fn tells_flows_apart(&self) -> bool {
        let drains = |id| self.current.draining().binary_search(id).is_ok();
        self.traits.picks() == Picks::Client && self.current.ids().iter().any(drains)
    }
}

impl Planner {
    /// Brings frontends to rest whose handover is over and of whose flows none is an exception any
    /// more; frees their previous tables. With session affinity, none that has a backend that takes no
    /// new flows.
    ///
    /// `exceptions` are the frontends that have such flows, by a look at all recorded flows that
    /// `began` then: one that began before the handover was over may have missed some, so it says
    /// nothing about that frontend. The same look twice gives no operation the second time.
    pub fn settle(&mut self, exceptions: &BTreeSet<FrontendKey>, began: Duration) -> Vec<Op> {
        let mut ops = Vec::new();
        let quiet: Vec<FrontendKey> = self
            .installed
            .iter()
            .filter(|(key, one)| {
                one.phase == Phase::Exceptions
                    && one.phase_since < began
                    && !exceptions.contains(key)
                    && !one.tells_flows_apart()
            })
            .map(|(key, _)| *key)
            .collect();
        for key in quiet {
            // Without a free record it is tried again after the next look.
            let Some(record) = self.records.take() else { break };
            let Some(before) = self.installed.remove(&key) else { continue };
            let mut one = before.clone();
            one.record = record;
            one.phase = Phase::Rest;
            one.phase_since = began;
            one.previous = None;
            // No flow knows a backend by its former mode any more.
            let ids = before.current.ids().to_vec();
            let draining = draining(&before.current.table.items, &ids, &[]);
            if let Some(current) = self.assign(&before.current.table.items, ids, draining, &mut ops)
            {
                self.backends.acquire(current.ids(), Use::Current);
                self.backends.acquire(current.draining(), Use::Draining);
                self.release_current(&before.current);
                one.current = current;
            }
            publish(key, &one, &mut ops);
            self.release_previous(&before);
            self.retired.push(Retired::Record(before.record));
            self.installed.insert(key, one);
        }
        if !ops.is_empty() {
            self.refresh(&|_| None, &mut ops);
            self.reuse_retired(&mut ops);
        }
        ops
    }
}
