//! Keeps the program attached to the devices of the configuration.

use tracing::{error, info, warn};

use super::Daemon;
use crate::{config::Attach, net::View, pins::LinkName};

impl Daemon {
    /// Attaches to devices that came, forgets those that went.
    pub(super) fn follow_devices(&mut self, view: &View) {
        for device in self.config.devices.clone() {
            let link = view.links.values().find(|link| link.name == device.name);
            let ifindex = link.map(|link| link.index);
            let have = self.attached.get(&device.name).map(|name| name.ifindex);
            if have.is_some() && ifindex != have {
                warn!("device {} is gone", device.name);
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

    /// Forgets links that somebody else detached, so that they are attached again.
    pub(super) fn drop_dead_links(&mut self) {
        let links: Vec<LinkName> = self.attached.values().cloned().collect();
        for name in links {
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
                Self::say_attached(&name);
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
        self.attached
            .retain(|name, _| self.config.devices.iter().any(|device| device.name == *name));
    }

    /// Says how the program runs on a device.
    pub(super) fn say_attached(name: &LinkName) {
        let mode = if name.native { "native XDP" } else { "generic XDP (slow)" };
        info!("{} runs in {mode}", name.device);
    }
}
