//! How many entries each map has.

use xdp_lb_abi::names;
use xdp_lb_plan::{Layout, record_count};

use crate::config::Limits;

/// Addresses of this host that may need an entry in `ADDRESSES`, beside the frontends'.
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

/// Sizes of the maps for the configured limits.
pub(super) struct Sizes {
    pub(super) frontends: u32,
    pub(super) words: u32,
    pub(super) entries: Vec<(&'static str, u32)>,
}

impl Sizes {
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
        let entries = vec![
            (names::FRONTENDS, buckets),
            (names::SERVICES, record_count(&layout)),
            (names::ARENA, words),
            (names::BACKENDS, limits.backends),
            (names::ADDRESSES, limits.frontends.saturating_add(OWN_ADDRESSES)),
            (names::FLOWS, limits.flows),
            (names::FRONTEND_STATS, limits.frontends),
            (names::BACKEND_STATS, limits.backends),
        ];
        Self { frontends: limits.frontends, words, entries }
    }
}
