//! Attaches the program to devices; the links are pinned, so that they outlive the daemon.

use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};

use super::{Dataplane, programs::load_xdp};
use crate::{
    config::Attach,
    error::chain,
    pins::{LinkName, PinError},
};

impl Dataplane {
    /// Attaches the program to a device, or replaces the one that an earlier run attached there.
    ///
    /// Returns how it runs.
    ///
    /// # Errors
    ///
    /// Where the device allows neither of the modes that are wanted.
    pub fn attach(
        &mut self,
        device: &str,
        ifindex: u32,
        wanted: Attach,
    ) -> Result<LinkName, AttachError> {
        let failed = |why| AttachError { device: device.to_owned(), why };
        let modes = wanted.modes();
        let have = self.pins.links().map_err(|error| failed(error.into()))?;
        for name in have.into_iter().filter(|name| name.device == device) {
            if name.ifindex == ifindex
                && modes.contains(&name.native)
                && self.replace(&name).is_ok()
            {
                return Ok(name);
            }
            // Of a device that is gone, or in a mode that is not wanted any more.
            self.pins.remove(&self.pins.link(&name)).map_err(|error| failed(error.into()))?;
        }
        let mut last = None;
        for &native in modes {
            let name = LinkName { device: device.to_owned(), ifindex, native };
            match self.attach_new(&name) {
                Ok(()) => return Ok(name),
                Err(why) => {
                    // The first mode's answer is the one that the user must see.
                    last.get_or_insert(why);
                }
            }
        }
        Err(failed(last.unwrap_or(AttachProblem::Nothing)))
    }

    /// Whether a link still has its device: one that was detached takes no program (ENOLINK).
    pub fn is_attached(&mut self, name: &LinkName) -> bool {
        self.replace(name).is_ok()
    }

    /// Replaces the program of a pinned link (`bpf_link` update, Linux 5.9).
    fn replace(&mut self, name: &LinkName) -> Result<(), AttachProblem> {
        let pinned = PinnedLink::from_pin(self.pins.link(name))?;
        let link = XdpLink::try_from(FdLink::from(pinned))?;
        let program = self.way_in();
        let xdp = load_xdp(self.running(), program).map_err(|_| AttachProblem::Nothing)?;
        let id = xdp.attach_to_link(link)?;
        // The pin keeps it; this process's descriptor is not needed.
        drop(xdp.take_link(id)?);
        Ok(())
    }

    fn attach_new(&mut self, name: &LinkName) -> Result<(), AttachProblem> {
        let path = self.pins.link(name);
        let mode = if name.native { XdpMode::Driver } else { XdpMode::Skb };
        let program = self.way_in();
        let xdp = load_xdp(self.running(), program).map_err(|_| AttachProblem::Nothing)?;
        let id = xdp.attach_to_if_index(name.ifindex, mode)?;
        let link = xdp.take_link(id)?;
        // A link that is not a descriptor would end with this process: it is detached by the drop.
        let link = FdLink::try_from(link)?;
        link.pin(&path).map_err(|source| AttachProblem::Pin(Box::new(source)))?;
        Ok(())
    }

    /// Detaches from a device that is not wanted any more, or is gone.
    ///
    /// # Errors
    ///
    /// Where the pin cannot be removed.
    pub fn detach(&self, name: &LinkName) -> Result<(), PinError> {
        self.pins.remove(&self.pins.egress(&name.device, name.ifindex))?;
        self.pins.remove(&self.pins.link(name))
    }

    /// The links that are pinned.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn links(&self) -> Result<Vec<LinkName>, PinError> {
        self.pins.links()
    }
}

/// A device that the program cannot be attached to.
#[derive(Debug, thiserror::Error)]
#[error("device {device}: {why}")]
pub struct AttachError {
    /// Its name
    pub device: String,
    /// The reason
    pub why: AttachProblem,
}

/// Why the program cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachProblem {
    /// The kernel refused.
    #[error("{}", explain_attach(.0))]
    Program(#[from] ProgramError),
    /// The link cannot be used.
    #[error("the kernel's XDP link cannot be used: {}", chain(.0))]
    Link(#[from] LinkError),
    /// The link cannot be pinned.
    #[error("cannot pin its link: {0}")]
    Pin(Box<dyn std::error::Error + Send + Sync>),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The object has no program.
    #[error("there is no program to attach")]
    Nothing,
}

/// The kernel's answer to attaching, and what to do about it.
fn explain_attach(error: &ProgramError) -> String {
    let errno = if let ProgramError::SyscallError(error) = error {
        error.io_error.raw_os_error()
    } else {
        None
    };
    match errno {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP; set `xdp: native-or-generic` for \
             this device to run in the slower generic mode"
            .to_owned(),
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is attached already (see `bpftool net`): if it is xdp-lb's \
             with another pin directory, run `xdp-lb clean --pin-dir DIR`; otherwise detach it with \
             `ip link set dev DEVICE xdp off`, or `bpftool link detach id N` where it has a link"
                .to_owned()
        }
        Some(libc::ERANGE | libc::EMSGSIZE) => {
            "its MTU is too large for XDP in this driver; lower it".to_owned()
        }
        Some(libc::EPERM) => {
            "not permitted; run as root, or with CAP_NET_ADMIN and CAP_BPF".to_owned()
        }
        _ => chain(error),
    }
}
