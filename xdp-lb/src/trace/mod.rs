//! What would happen to a packet now: the kernel runs the programs on a copy of it, over the live
//! tables, and nothing of it stays ([`crate::dataplane::TraceSet`]).
//!
//! What is told is what the kernel's program asked of the tables and what it returned. The same code
//! runs once more beside it (`replay`), fed with the same answers, and puts that in words
//! (`story`); where both come to different ends, that is told too.

mod advice;
mod capture;
mod packet;
mod replay;
mod story;

use std::collections::BTreeMap;

use xdp_lb_abi::{Disposition, Reason};
use xdp_lb_api::trace::{FrameView, LeavesView, Outcome, TraceRequest, TraceView};
use xdp_lb_datapath::Verdict;

pub(crate) use self::packet::hexadecimal;
use self::{
    advice::advice,
    replay::{Replayed, replay},
    story::{Story, mac},
};
pub use self::{
    capture::{CaptureError, Packet, read},
    packet::Wrong,
};
use crate::{
    dataplane::{DataplaneError, Ran, TraceSet, devices},
    lab::{Detail, describe_with},
    maps::TableError,
    pins::{PinError, Pins},
};

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No data path.
    #[error("no data path is pinned in {0}; start one with `xdp-lb run --config FILE`")]
    None(std::path::PathBuf),
    /// The request cannot be used.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// The programs cannot be loaded or run.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A map cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The pin directory cannot be read.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel does not run the program as if for this device.
    #[error(
        "device {0} is not in this network namespace: run the command in the daemon's (nsenter, \
         ip netns exec)"
    )]
    Elsewhere(String),
}

/// The tracing programs, loaded over a data path.
pub struct Tracer {
    set: TraceSet,
    pins: Pins,
}

impl Tracer {
    /// Loads the programs over the data path that is pinned.
    ///
    /// # Errors
    ///
    /// Where there is none, or the kernel refuses.
    pub fn open(pins: &Pins) -> Result<Self, TraceError> {
        if !pins.exists()? {
            pins.check()?;
            return Err(TraceError::None(pins.root().to_owned()));
        }
        Ok(Self { set: TraceSet::open(pins)?, pins: pins.clone() })
    }

    /// What would happen to the packet that is described.
    ///
    /// # Errors
    ///
    /// Where the request cannot be used, or the kernel refuses.
    pub fn trace(&mut self, request: &TraceRequest) -> Result<TraceView, TraceError> {
        let device = self.device(request.device.as_deref())?;
        let frame = packet::frame(request, device.mac)?;
        self.run(&frame, &device)
    }

    /// What would happen to a frame that came in by a device, which may be left out where there is
    /// only one.
    ///
    /// # Errors
    ///
    /// As [`Self::trace`].
    pub fn trace_frame(
        &mut self,
        frame: &[u8],
        device: Option<&str>,
    ) -> Result<TraceView, TraceError> {
        let device = self.device(device)?;
        self.run(&packet::check(frame.to_vec())?, &device)
    }

    /// The same by the index of a device of this network namespace, which need not have a program.
    ///
    /// # Errors
    ///
    /// As [`Self::trace`].
    pub fn trace_by(&mut self, frame: &[u8], ifindex: u32) -> Result<TraceView, TraceError> {
        let name = format!("#{ifindex}");
        let device = In { name, ifindex, mac: [2; 6], names: BTreeMap::new() };
        self.run(&packet::check(frame.to_vec())?, &device)
    }

    fn run(&mut self, frame: &[u8], device: &In) -> Result<TraceView, TraceError> {
        let ran = self.set.run(frame, device.ifindex).map_err(|error| match error {
            error if is_no_device(&error) => TraceError::Elsewhere(device.name.clone()),
            error => error.into(),
        })?;
        let story = Story::new(frame, device.ifindex, device.names.clone());
        let replayed = replay(frame, device.ifindex, &ran.notes, story);
        Ok(view(frame, device, &ran, replayed))
    }

    /// The device that a packet comes in by.
    fn device(&self, wanted: Option<&str>) -> Result<In, TraceError> {
        let links = self.pins.links()?;
        let mut known: Vec<&str> = links.iter().map(|link| link.device.as_str()).collect();
        known.sort_unstable();
        let refused = |problem: String| Wrong { key: "device", problem };
        let name = match (wanted, known.as_slice()) {
            (Some(name), _) => name,
            (None, [only]) => *only,
            (None, []) => return Err(refused("the program is attached to none".into()).into()),
            (None, many) => {
                let problem = format!("choose the one that it comes in by: {}", many.join(", "));
                return Err(refused(problem).into());
            }
        };
        let link = links.iter().find(|link| link.device == name).ok_or_else(|| {
            refused(format!("{name} has no program; these have: {}", known.join(", ")))
        })?;
        let records = devices(&self.pins)?;
        let record = records.iter().find(|one| one.ifindex() == link.ifindex && one.tags() == 0);
        if !is_here(name, link.ifindex, record.map(|one| one.mac())) {
            return Err(TraceError::Elsewhere(name.to_owned()));
        }
        Ok(In {
            name: name.to_owned(),
            ifindex: link.ifindex,
            mac: record.map_or([2; 6], |one| one.mac()),
            names: links.iter().map(|link| (link.ifindex, link.device.clone())).collect(),
        })
    }
}

/// A device that packets come in by.
struct In {
    name: String,
    ifindex: u32,
    mac: [u8; 6],
    /// Of all such devices, by index
    names: BTreeMap<u32, String>,
}

/// Whether the device is in this network namespace: another may have one of the same name and index,
/// and then the kernel would look up its routes there.
fn is_here(name: &str, ifindex: u32, mac: Option<[u8; 6]>) -> bool {
    let Ok(mut all) = nix::ifaddrs::getifaddrs() else { return false };
    if nix::net::if_::if_nametoindex(name) != Ok(ifindex) {
        return false;
    }
    let has = |one: &nix::ifaddrs::InterfaceAddress| {
        let address = one.address.as_ref().and_then(|address| address.as_link_addr());
        one.interface_name == name && address.and_then(|address| address.addr()) == mac
    };
    mac.is_none() || all.any(|one| has(&one))
}

fn is_no_device(error: &DataplaneError) -> bool {
    let mut error: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = error {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return io.raw_os_error() == Some(libc::ENODEV);
        }
        error = one.source();
    }
    false
}

/// `enum xdp_action`
const ACTIONS: [&str; 5] = ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"];
const DROP: u32 = 1;
const PASS: u32 = 2;
const TRANSMIT: u32 = 3;
const REDIRECT: u32 = 4;

fn view(frame: &[u8], device: &In, ran: &Ran, replayed: Replayed) -> TraceView {
    let difference = difference(ran, &replayed);
    let story = replayed.story;
    let reason = story.reasons.last().copied();
    let outcome = outcome_of(ran.action, reason);
    let sent = matches!(ran.action, TRANSMIT | REDIRECT);
    let leaves = sent.then(|| leaves(ran, device, &story)).flatten();
    let gone = matches!(outcome, Outcome::Dropped | Outcome::Passed);
    let (backend, mode) = story.chosen().unzip();
    TraceView {
        device: device.name.clone(),
        packet: frame_view(frame),
        outcome,
        verdict: verdict_of(ran.action).to_owned(),
        reason: reason.map(|reason| reason.as_str().to_owned()),
        advice: reason.map(|reason| advice(reason).to_owned()),
        frontend: story.frontend,
        backend,
        mode: mode.flatten().map(str::to_owned),
        leaves,
        result: (!gone).then(|| frame_view(&ran.frame)),
        steps: story.steps,
        warnings: Vec::new(),
        difference,
    }
}

fn frame_view(frame: &[u8]) -> FrameView {
    let detail = Detail { macs: true, ttl: true };
    let headers = describe_with(frame, detail);
    FrameView { headers, length: frame.len(), frame: hexadecimal(frame) }
}

/// The name of what the program on the way in returned.
pub(crate) fn verdict_of(action: u32) -> &'static str {
    ACTIONS.get(action as usize).copied().unwrap_or("unknown")
}

/// What that means for the packet.
pub(crate) fn outcome_of(action: u32, reason: Option<Reason>) -> Outcome {
    match (action, reason) {
        (PASS, Some(reason)) if reason.disposition() == Disposition::Deliver => Outcome::Delivered,
        (PASS, _) => Outcome::Passed,
        (TRANSMIT | REDIRECT, Some(Reason::Echo)) => Outcome::Answered,
        (TRANSMIT | REDIRECT, Some(reason)) if reason.disposition() == Disposition::Answer => {
            Outcome::Refused
        }
        (TRANSMIT | REDIRECT, _) => Outcome::Forwarded,
        _ => Outcome::Dropped,
    }
}

/// Where the kernel's frame leaves; its MAC addresses are those of the frame itself.
fn leaves(ran: &Ran, device: &In, story: &Story) -> Option<LeavesView> {
    let [destination, source] = [0, 6].map(|at| {
        let bytes = ran.frame.get(at..at + 6)?;
        bytes.try_into().ok()
    });
    let record = story.device;
    let ifindex = match ran.action {
        TRANSMIT => device.ifindex,
        _ => record?.ifindex(),
    };
    let mtu = record.filter(|one| one.ifindex() == ifindex).map_or(0, |one| one.mtu());
    Some(LeavesView {
        device: story.device_name(ifindex),
        next_hop: mac(destination?),
        source: mac(source?),
        mtu,
    })
}

/// Where the kernel and the same code beside it came to different ends.
fn difference(ran: &Ran, replayed: &Replayed) -> Option<String> {
    let action = match replayed.verdict {
        Verdict::Drop => DROP,
        Verdict::Pass => PASS,
        Verdict::Transmit => TRANSMIT,
        Verdict::Redirect(_) => REDIRECT,
        Verdict::Next(_) => u32::MAX,
    };
    if ran.cut {
        return Some("the program asked more than there was room to write down".to_owned());
    }
    if let Some(difference) = &replayed.difference {
        return Some(difference.clone());
    }
    if action != ran.action {
        return Some(format!(
            "the kernel returned {}, and the code beside it {action}",
            ran.action
        ));
    }
    // What is dropped may be half written.
    if action != DROP && replayed.frame != ran.frame {
        let ours = hexadecimal(&replayed.frame);
        return Some(format!("the frames differ; the code beside the kernel made {ours}"));
    }
    None
}
