//! Attaches the program on the way out, which answers of pods pass: by a TCX link (Linux 6.6), which
//! is pinned as the XDP links are; on older kernels as a filter of the clsact qdisc, which stays
//! without the daemon by itself.

use std::path::Path;

use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};

use super::{Dataplane, DataplaneError, programs::load_egress};
use crate::error::chain;

/// Priority and handle of our filter: fixed, so that the next run finds it.
const PRIORITY: u16 = 16_076;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Why answers of pods cannot be rewritten on a device.
#[derive(Debug, thiserror::Error)]
#[error(
    "{device}: answers of pods on this host cannot leave by it: {}; is CONFIG_NET_CLS_ACT there, and \
     nothing else at priority {PRIORITY} of its clsact qdisc?", chain(.why)
)]
pub struct EgressError {
    /// The device
    pub device: String,
    /// The reason
    #[source]
    pub why: EgressProblem,
}

/// The reason of an [`EgressError`].
#[derive(Debug, thiserror::Error)]
pub enum EgressProblem {
    /// The kernel refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The clsact qdisc cannot be made, or its filter not be replaced.
    #[error(transparent)]
    Qdisc(#[from] tc::TcError),
    /// The link cannot be used.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link cannot be pinned.
    #[error("cannot pin the link: {0}")]
    Pin(#[from] PinError),
    /// The object has no program.
    #[error(transparent)]
    Load(#[from] Box<DataplaneError>),
}

impl Dataplane {
    /// Attaches the program on the way out to a device, or replaces the one that is attached there;
    /// whether there was none.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn attach_egress(&mut self, device: &str, ifindex: u32) -> Result<bool, EgressError> {
        let path = self.pins.egress(device, ifindex);
        let attached = load_egress(self.running())
            .map_err(|error| EgressProblem::from(Box::new(error)))
            .and_then(|program| match attach_link(program, device, &path) {
                Err(EgressProblem::Program(error)) if is_unknown(&error) => {
                    attach_filter(program, device, &path)
                }
                result => result,
            });
        attached.map_err(|why| EgressError { device: device.to_owned(), why })
    }
}

/// Whether the kernel does not know the kind of link that was asked for.
fn is_unknown(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error() == Some(libc::EINVAL)
}

fn attach_link(
    program: &mut SchedClassifier,
    device: &str,
    path: &Path,
) -> Result<bool, EgressProblem> {
    if let Ok(pinned) = PinnedLink::from_pin(path) {
        let replaced = SchedClassifierLink::try_from(FdLink::from(pinned))
            .map_err(EgressProblem::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = replaced {
            // The pin keeps it; this process's descriptor is not needed.
            drop(program.take_link(id)?);
            return Ok(false);
        }
        // Its device is gone, or somebody detached it.
        let _ = std::fs::remove_file(path);
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(device, TcAttachType::Egress, order)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(path)?;
    Ok(true)
}

fn attach_filter(
    program: &mut SchedClassifier,
    device: &str,
    path: &Path,
) -> Result<bool, EgressProblem> {
    // It fails where the qdisc is there already; if not, the filter says so.
    let _ = tc::qdisc_add_clsact(device);
    let have = SchedClassifierLink::attached(device, TcAttachType::Egress, PRIORITY, HANDLE, None);
    let replaced = have.map_err(tc::TcError::IoError)?;
    let (id, new) = match program.attach_to_link(replaced) {
        Ok(id) => (id, false),
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            let options = TcAttachOptions::Netlink(options);
            (program.attach_with_options(device, TcAttachType::Egress, options)?, true)
        }
    };
    // The kernel keeps the filter; dropping the link would remove it.
    std::mem::forget(program.take_link(id)?);
    // What tells `clean` that there is a filter to remove.
    if !path.exists() {
        program.pin(path)?;
    }
    Ok(new)
}

/// Removes the filter of a kernel without TCX from a device.
pub(crate) fn remove_filter(device: &str) {
    // It went with its device, or was removed by hand: nothing is left to do.
    let ours = SchedClassifierLink::attached(device, TcAttachType::Egress, PRIORITY, HANDLE, None);
    drop(ours);
}
