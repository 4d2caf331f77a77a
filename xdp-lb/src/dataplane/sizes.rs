//! How many entries each map has.

use aya::maps::MapData;
use xdp_lb_abi::names;
use xdp_lb_plan::{Layout, record_count};

use super::operation;
use crate::{config::Limits, maps::TableError, pins::Pins};

/// Addresses of this host that may need an entry in `ADDRESSES`, beside the frontends': those twice,
/// since new ones are written before old ones are removed.
const OWN_ADDRESSES: u32 = 4096;

/// Every map of the object.
pub(super) const ALL_MAPS: [&str; 15] = [
    names::FRONTENDS,
    names::SERVICES,
    names::ARENA,
    names::BACKENDS,
    names::DEVICES,
    names::DEVMAP,
    names::DEVICE_OF,
    names::ADDRESSES,
    names::PEERS,
    names::FLOWS,
    names::SETTINGS,
    names::FRONTEND_STATS,
    names::BACKEND_STATS,
    names::REASON_STATS,
    names::LIMITER,
];

/// How many entries each map has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Sizes(Vec<(&'static str, u32)>);

impl Sizes {
    /// The sizes for the configured limits.
    pub(super) fn of(limits: &Limits) -> Self {
        let buckets = xdp_lb_plan::buckets(limits.frontends);
        let words = limits.slots.div_ceil(xdp_lb_abi::SLOTS_PER_WORD);
        let layout = Layout {
            frontends: limits.frontends,
            backends: limits.backends,
            words,
            buckets,
            seed: 0,
        };
        Self(vec![
            (names::FRONTENDS, buckets),
            (names::SERVICES, record_count(&layout)),
            (names::ARENA, words),
            (names::BACKENDS, limits.backends),
            (names::ADDRESSES, limits.frontends.saturating_mul(2).saturating_add(OWN_ADDRESSES)),
            (names::FLOWS, limits.flows),
            (names::FRONTEND_STATS, limits.frontends),
            (names::BACKEND_STATS, limits.backends),
        ])
    }

    /// The same maps with the sizes that they have where they are pinned already.
    pub(super) fn with_pinned(mut self, pins: &Pins) -> Result<Self, TableError> {
        for (name, entries) in &mut self.0 {
            let map = MapData::from_pin(pins.map(name))
                .map_err(|error| operation(name, "open", error))?;
            let info = map.info().map_err(|error| operation(name, "inspect", error))?;
            *entries = info.max_entries();
        }
        Ok(self)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.0.iter().copied()
    }

    /// The tables' layout; `seed` as in [`Layout`].
    pub(super) fn layout(&self, seed: u64) -> Layout {
        let size =
            |wanted| self.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, size)| size);
        Layout {
            frontends: size(names::FRONTEND_STATS),
            backends: size(names::BACKENDS),
            words: size(names::ARENA),
            buckets: size(names::FRONTENDS),
            seed,
        }
    }
}
