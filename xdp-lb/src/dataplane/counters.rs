//! The counters of the data path: per-CPU values, added up when they are read.

use aya::{
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use xdp_lb_abi::{Reason, Traffic, names};
use xdp_lb_plan::Op;

use super::{open, operation};
use crate::{maps::TableError, pins::Pins};

/// The counters of the data path.
pub struct Counters {
    pub(super) frontends: PerCpuArray<MapData, Traffic>,
    pub(super) backends: PerCpuArray<MapData, Traffic>,
    pub(super) reasons: PerCpuArray<MapData, Traffic>,
}

impl Counters {
    /// What was forwarded for a frontend.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn frontend(&self, stats: u32) -> Result<Traffic, TableError> {
        total(&self.frontends, names::FRONTEND_STATS, stats)
    }

    /// What was forwarded to a backend.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn backend(&self, id: u32) -> Result<Traffic, TableError> {
        total(&self.backends, names::BACKEND_STATS, id)
    }

    /// What was not simply forwarded, for this reason.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn reason(&self, reason: Reason) -> Result<Traffic, TableError> {
        total(&self.reasons, names::REASON_STATS, reason as u32)
    }

    /// Opens the counters of a data path that is pinned, without touching it.
    ///
    /// # Errors
    ///
    /// Where they are not there, or may not be opened.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            frontends: open(pins, names::FRONTEND_STATS, Map::PerCpuArray)?,
            backends: open(pins, names::BACKEND_STATS, Map::PerCpuArray)?,
            reasons: open(pins, names::REASON_STATS, Map::PerCpuArray)?,
        })
    }

    /// Number of frontends that can be counted.
    pub fn frontend_count(&self) -> u32 {
        self.frontends.len()
    }

    /// Sets the counters to zero that an operation gives to a new owner.
    pub(super) fn reset(&mut self, op: &Op) -> Result<(), TableError> {
        match op {
            Op::ResetFrontend { stats } => zero(&mut self.frontends, names::FRONTEND_STATS, *stats),
            Op::Backend { id, new: true, .. } => {
                zero(&mut self.backends, names::BACKEND_STATS, *id)
            }
            Op::Backend { .. }
            | Op::Arena { .. }
            | Op::Service { .. }
            | Op::Publish { .. }
            | Op::Grace => Ok(()),
        }
    }
}

fn total(
    map: &PerCpuArray<MapData, Traffic>,
    name: &'static str,
    index: u32,
) -> Result<Traffic, TableError> {
    let values = map.get(&index, 0).map_err(|source| operation(name, "read", source))?;
    Ok(values.iter().fold(Traffic::default(), Traffic::plus))
}

fn zero(
    map: &mut PerCpuArray<MapData, Traffic>,
    name: &'static str,
    index: u32,
) -> Result<(), TableError> {
    let cpus =
        nr_cpus().map_err(|(_, error)| operation(name, "reset", MapError::IoError(error)))?;
    PerCpuValues::try_from(vec![Traffic::default(); cpus])
        .map_err(MapError::IoError)
        .and_then(|values| map.set(index, values, 0))
        .map_err(|source| operation(name, "reset", source))
}
