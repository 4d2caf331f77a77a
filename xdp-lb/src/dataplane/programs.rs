//! The programs: loaded, and the first one able to reach its stages.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, ProgramArray},
    programs::{ProgramError, SchedClassifier, Xdp},
};
use xdp_lb_abi::names;

use super::{DataplaneError, operation};
use crate::{maps::TableError, pins::Pins};

/// The stages of the first program. Their array empties itself when its last user goes, so it is
/// pinned beside what runs on without the daemon.
pub struct Stages {
    _array: ProgramArray<MapData>,
    data: MapData,
    id: u32,
}

/// Loads all programs, and lets the first one go on in its stages.
///
/// # Errors
///
/// Where the kernel refuses one.
pub fn load_programs(ebpf: &mut Ebpf) -> Result<Stages, DataplaneError> {
    let stages = load_way_in(ebpf)?;
    load_egress(ebpf)?;
    Ok(stages)
}

/// The same without the program on the way out.
///
/// # Errors
///
/// Where the kernel refuses one.
pub fn load_way_in(ebpf: &mut Ebpf) -> Result<Stages, DataplaneError> {
    let map = ebpf.take_map(names::STAGES).ok_or(TableError::Missing(names::STAGES))?;
    let Map::ProgramArray(data) = &map else {
        return Err(TableError::Missing(names::STAGES).into());
    };
    let info = data.info().map_err(|source| operation(names::STAGES, "inspect", source))?;
    let failed = |source| operation(names::STAGES, "open", source);
    // A second descriptor: opening the map by its id needs CAP_SYS_ADMIN.
    let descriptor = data.fd().as_fd().try_clone_to_owned();
    let descriptor = descriptor.map_err(|error| failed(MapError::IoError(error)))?;
    let pinned = MapData::from_fd(descriptor).map_err(failed)?;
    let mut array: ProgramArray<MapData> = map.try_into().map_err(failed)?;
    for (index, name) in (0..).zip(names::STAGE_PROGRAMS) {
        place(&mut array, index, load_xdp(ebpf, name)?, name)?;
    }
    load_xdp(ebpf, names::XDP)?;
    if ebpf.program(names::WATCH_XDP).is_some() {
        load_xdp(ebpf, names::WATCH_XDP)?;
        for (index, name) in [(names::MONITOR_XDP, names::XDP), (names::MONITOR_TELL, names::TELL)]
        {
            place(&mut array, index, load_xdp(ebpf, name)?, name)?;
        }
    }
    Ok(Stages { _array: array, data: pinned, id: info.id() })
}

/// Puts a program where others go on with it.
fn place(
    array: &mut ProgramArray<MapData>,
    index: u32,
    program: &Xdp,
    name: &'static str,
) -> Result<(), DataplaneError> {
    let fd = program.fd().map_err(|source| DataplaneError::Program { program: name, source })?;
    Ok(array.set(index, fd, 0).map_err(|source| operation(names::STAGES, "write", source))?)
}

/// An XDP program of the object, loaded.
pub(super) fn load_xdp<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Xdp, DataplaneError> {
    let failed = |source| DataplaneError::Program { program: name, source };
    let program = ebpf.program_mut(name).ok_or(DataplaneError::NoProgram(name))?;
    let program: &mut Xdp = program.try_into().map_err(failed)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(source) => Err(failed(source)),
    }
}

/// The program on the way out, loaded.
pub(super) fn load_egress(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DataplaneError> {
    let failed = |source| DataplaneError::Program { program: names::EGRESS, source };
    let program =
        ebpf.program_mut(names::EGRESS).ok_or(DataplaneError::NoProgram(names::EGRESS))?;
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(source) => Err(failed(source)),
    }
}

impl Stages {
    /// Pins the array, before any device runs the program.
    ///
    /// # Errors
    ///
    /// Where it cannot be pinned.
    pub(super) fn pin(&self, pins: &Pins) -> Result<(), DataplaneError> {
        self.data.pin(pins.stages(self.id)).map_err(DataplaneError::PinStages)
    }

    /// Unpins the arrays of programs that no device runs any more.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read, or a pin removed.
    pub(super) fn retire_others(&self, pins: &Pins) -> Result<(), DataplaneError> {
        Ok(pins.remove_other_stages(self.id)?)
    }
}
