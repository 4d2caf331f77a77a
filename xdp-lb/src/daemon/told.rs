//! Says in the log what stands, once, and that it is over.

use std::{collections::BTreeMap, net::IpAddr};

use tracing::{error, info, warn};
use xdp_lb_abi::FrontendKey;
use xdp_lb_api::view::EventKind;
use xdp_lb_plan::Refused;

use super::journal::Journal;

/// Messages that stand, by what they are about.
pub(super) struct Told {
    journal: Journal,
    refused: Vec<Refused>,
    /// Why, by frontend
    refusals: BTreeMap<FrontendKey, String>,
    unreachable: BTreeMap<IpAddr, String>,
    devices: BTreeMap<String, String>,
}

impl Told {
    /// Nothing was told yet; all that is goes into the journal too.
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            refused: Vec::new(),
            refusals: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            devices: BTreeMap::new(),
        }
    }

    /// Why frontends cannot be served.
    pub(super) fn refusals(&self) -> &BTreeMap<FrontendKey, String> {
        &self.refusals
    }

    /// Why a backend cannot be reached.
    pub(super) fn obstacle(&self, address: IpAddr) -> Option<&str> {
        self.unreachable.get(&address).map(String::as_str)
    }

    /// Frontends that cannot be served: those that are news.
    pub(super) fn refused(&mut self, refused: Vec<Refused>) {
        for one in refused.iter().filter(|one| !self.refused.contains(one)) {
            error!(service = one.service, frontend = %one.frontend, "cannot be served: {}", one.refusal);
            let text = format!("{} of service {}: {}", one.frontend, one.service, one.refusal);
            self.journal.push(EventKind::FrontendRefused, text);
        }
        let why = refused.iter().map(|one| (one.key, one.refusal.to_string()));
        self.refusals = why.collect();
        self.refused = refused;
    }

    /// What is in the way of each backend, or nothing: those that are news.
    pub(super) fn paths(&mut self, now: BTreeMap<IpAddr, Option<String>>) {
        let mut blocked = BTreeMap::new();
        let mut news = Vec::new();
        let mut again = Vec::new();
        for (address, why) in now {
            let before = self.unreachable.get(&address);
            match why {
                Some(why) => {
                    if before != Some(&why) {
                        news.push(format!("{address}: {why}"));
                    }
                    blocked.insert(address, why);
                }
                None if before.is_some() => again.push(address),
                None => {}
            }
        }
        let (some, more) = first(news);
        for text in some {
            warn!("no path to {text}");
            self.journal.push(EventKind::Unreachable, format!("no path to {text}"));
        }
        if more > 0 {
            warn!("no path to {more} more backends either");
        }
        let (some, more) = first(again);
        for address in some {
            info!("there is a path to {address} again");
            let text = format!("there is a path to {address} again");
            self.journal.push(EventKind::Reachable, text);
        }
        if more > 0 {
            info!("there are paths to {more} more backends again");
        }
        self.unreachable = blocked;
    }

    /// A device that cannot be attached to.
    pub(super) fn device(&mut self, device: &str, text: String) {
        if self.devices.get(device) != Some(&text) {
            error!("cannot attach to {text}");
            self.journal.push(EventKind::Detached, format!("cannot attach to {text}"));
            self.devices.insert(device.to_owned(), text);
        }
    }

    /// A device that was attached to.
    pub(super) fn attached(&mut self, device: &str) {
        self.devices.remove(device);
    }
}

/// The first of many messages, and how many more there are: a log is for people.
fn first<T>(mut all: Vec<T>) -> (Vec<T>, usize) {
    const MANY: usize = 20;
    let more = all.len().saturating_sub(MANY);
    all.truncate(MANY);
    (all, more)
}
