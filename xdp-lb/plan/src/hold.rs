//! Frontends that stay as an earlier run left them, until all who may want them have spoken.

use std::collections::BTreeSet;

use xdp_lb_abi::FrontendKey;

use crate::{backends::BackendKey, planner::Planner};

impl Planner {
    /// Keeps every frontend that is installed now, though no service names it, until
    /// [`Self::let_go`]: for a source of services that has not said yet what it wants. One that a
    /// service names is that service's from then on.
    pub fn hold(&mut self) {
        self.held = self.installed_keys().collect();
    }

    /// Lets go of what no service names; the next [`Self::apply`] removes it.
    pub fn let_go(&mut self) {
        self.unknown |= !self.held.is_empty();
        self.held.clear();
    }

    /// The frontends that are kept, though no service names them.
    pub fn held(&self) -> &BTreeSet<FrontendKey> {
        &self.held
    }

    /// The backends of the frontends that are kept: their paths must go on being known.
    pub fn held_backends(&self) -> impl Iterator<Item = &BackendKey> {
        let frontends = self.frontends().filter(|one| self.held.contains(&one.key));
        let ids = frontends.flat_map(|one| {
            [one.ids, one.draining, one.previous_ids].into_iter().flatten().copied()
        });
        ids.filter_map(|id| self.backend(id))
    }
}
