//! How many entries each map has.

use aya::maps::MapData;
use xdp_lb_abi::names;
use xdp_lb_plan::{Layout, record_count};

use super::operation;
use crate::{config::Limits, maps::TableError, pins::Pins};

/// Addresses of this host that may need an entry in `ADDRESSES`, beside the frontends': those twice,
/// since new ones are written before old ones are removed.
const OWN_ADDRESSES: u32 = 4096;

/// Clients that use two frontends on one pod from one port: rare.
const TRANSLATIONS: u32 = 16_384;
/// Packets of which fragments are on their way.
const FRAGMENTS: u32 = 16_384;

/// Every map of the object that outlives the daemon.
pub(super) const ALL_MAPS: [&str; 30] = [
    names::FRONTENDS,
    names::PORT_FILTER,
    names::SERVICES,
    names::ARENA,
    names::BACKENDS,
    names::DEVICES,
    names::DEVMAP,
    names::DEVICE_OF,
    names::ADDRESSES,
    names::PEERS,
    names::ADDRESS_FILTER,
    names::PODS,
    names::SOURCES,
    names::ANSWERS,
    names::ANSWER_FILTER,
    names::TRANSLATIONS,
    names::FRAGMENTS,
    names::ANSWER_FRAGMENTS,
    names::NAT_FORWARD,
    names::NAT_REVERSE,
    names::CLIENTS,
    names::FLOWS,
    names::SETTINGS,
    names::FRONTEND_STATS,
    names::BACKEND_STATS,
    names::REASON_STATS,
    names::LIMITER,
    names::SOCKETS,
    names::SOCKET_SETTINGS,
    names::SOCKET_STATS,
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
            (names::CLIENTS, limits.clients),
            (names::ANSWERS, limits.answers),
            (names::TRANSLATIONS, TRANSLATIONS),
            (names::FRAGMENTS, FRAGMENTS),
            (names::ANSWER_FRAGMENTS, FRAGMENTS),
            (names::NAT_FORWARD, limits.nat_flows),
            (names::NAT_REVERSE, limits.nat_flows),
            (names::SOCKETS, limits.sockets),
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

    /// Entries of a map; 0 where its size is not a matter of limits.
    pub(super) fn entries(&self, map: &str) -> u32 {
        self.iter().find(|(name, _)| *name == map).map_or(0, |(_, size)| size)
    }

    /// The tables' layout; `seed` as in [`Layout`].
    pub(super) fn layout(&self, seed: u64) -> Layout {
        Layout {
            frontends: self.entries(names::FRONTEND_STATS),
            backends: self.entries(names::BACKENDS),
            words: self.entries(names::ARENA),
            buckets: self.entries(names::FRONTENDS),
            seed,
        }
    }
}
