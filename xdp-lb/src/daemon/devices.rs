//! Keeps the program attached to the devices of the configuration.

use tracing::{error, info, warn};

use super::Daemon;
use crate::{net::View, pins::LinkName};

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
            if self.attached.contains_key(&device.name) {
                continue;
            }
            match self.dataplane.attach(&device.name, ifindex, device.xdp) {
                Ok(name) => {
                    Self::say_attached(&name);
                    self.attached.insert(device.name.clone(), name);
                    self.told.attached(&device.name);
                }
                Err(error) => {
                    self.told.device(&device.name, error.to_string());
                }
            }
        }
        self.detach_unwanted();
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
