//! Keeps the program attached to the devices of the configuration.

use tracing::{debug, error, info, warn};
use xdp_lb_api::view::EventKind;

use super::Daemon;
use crate::{config::Attach, dataplane::EgressError, net::View, pins::LinkName, topology};

impl Daemon {
    /// Attaches to devices that came, forgets those that went.
    pub(super) fn follow_devices(&mut self, view: &View) {
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let ifindex = link.map(|link| link.index);
            let have = self.attached.get(&device.name).map(|name| name.ifindex);
            if have.is_some() && ifindex != have {
                warn!("device {} is gone", device.name);
                let text = format!("device {} is gone", device.name);
                self.desk.journal.push(EventKind::Detached, text);
                if let Some(name) = self.attached.remove(&device.name)
                    && let Err(error) = self.dataplane.detach(&name)
                {
                    error!("{error}");
                }
            }
            let Some(ifindex) = ifindex else { continue };
            let native = self.attached.get(&device.name).map(|name| name.native);
            let satisfied = native.is_some_and(|native| device.xdp.modes().contains(&native));
            // Each try interrupts the traffic of a device that runs in another mode: one is enough.
            let refused = native.is_some() && self.refused.get(&device.name) == Some(&device.xdp);
            if satisfied || refused {
                continue;
            }
            self.attach(&device.name, ifindex, device.xdp, native);
        }
        self.detach_unwanted();
    }

    /// Forgets links that somebody else detached, so that they are attached again; puts the program on
    /// the way out back where it is missing.
    pub(super) fn keep_attached(&mut self) {
        let links: Vec<LinkName> = self.attached.values().cloned().collect();
        for name in links {
            if let Ok(true) = self.attach_egress(&name.device, name.ifindex) {
                let text = format!(
                    "somebody detached the program on the way out of {}; it is attached again",
                    name.device
                );
                warn!("{text}");
                self.desk.journal.push(EventKind::Attached, text);
            }
            if self.dataplane.is_attached(&name) {
                continue;
            }
            warn!("somebody detached the program from {}; it is attached again", name.device);
            self.attached.remove(&name.device);
        }
    }

    /// Attaches to a device. Where it runs in another mode and the wanted one fails, it runs on as
    /// before: the kernel takes only one of them at a time.
    fn attach(&mut self, device: &str, ifindex: u32, wanted: Attach, before: Option<bool>) {
        let error = match self.dataplane.attach(device, ifindex, wanted) {
            Ok(name) => {
                // What is wrong is told, and tried again.
                let _ = self.attach_egress(device, ifindex);
                self.say_attached(&name);
                self.attached.insert(device.to_owned(), name);
                self.told.attached(device);
                self.refused.remove(device);
                return;
            }
            Err(error) => error,
        };
        self.told.device(device, error.to_string());
        self.refused.insert(device.to_owned(), wanted);
        let before = before.map(|native| if native { Attach::Native } else { Attach::Generic });
        if let Some(before) = before
            && let Err(error) = self.dataplane.attach(device, ifindex, before)
        {
            self.attached.remove(device);
            error!("cannot attach to {error}");
        }
    }

    /// Detaches from devices that the configuration does not name any more.
    pub(super) fn detach_unwanted(&mut self) {
        let wanted = |name: &str| self.config.devices.iter().any(|device| device.name == name);
        let links = match self.dataplane.links() {
            Ok(links) => links,
            Err(error) => return error!("{error}"),
        };
        for name in links.into_iter().filter(|name| !wanted(&name.device)) {
            match self.dataplane.detach(&name) {
                Ok(()) => info!("detached from {}", name.device),
                Err(error) => error!("{error}"),
            }
        }
        let devices = &self.config.devices;
        let wanted = |name: &str| devices.iter().any(|device| device.name == name);
        self.attached.retain(|name, _| wanted(name));
        self.mute.retain(|name, _| wanted(name));
    }

    /// Attaches the program on the way out, where it is not; whether it had to. Where nothing needs it,
    /// a kernel without it will do.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, and pods on this host would not be answered.
    pub(super) fn attach_egress(
        &mut self,
        device: &str,
        ifindex: u32,
    ) -> Result<bool, EgressError> {
        let error = match self.dataplane.attach_egress(device, ifindex) {
            Ok(new) => {
                self.mute.remove(device);
                return Ok(new);
            }
            Err(error) => error,
        };
        if !topology::needs_egress(&self.config) {
            debug!("{error}");
            return Ok(false);
        }
        let text = error.to_string();
        if self.mute.get(device) != Some(&text) {
            error!("{text}");
            self.desk.journal.push(EventKind::Detached, &*text);
            self.mute.insert(device.to_owned(), text);
        }
        Err(error)
    }

    /// Says how the program runs on a device.
    pub(super) fn say_attached(&self, name: &LinkName) {
        let mode = if name.native { "native XDP" } else { "generic XDP (slow)" };
        info!("{} runs in {mode}", name.device);
        let text = format!("{} runs in {mode}", name.device);
        self.desk.journal.push(EventKind::Attached, text);
    }
}
