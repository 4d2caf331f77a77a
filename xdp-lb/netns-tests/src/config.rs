//! Configuration files.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// `hashKey` of every configuration here.
pub const HASH_KEY_TEXT: &str = "6a1f0c93d24be8705b9e47d1c80f36a2";
/// The same as bytes.
pub const HASH_KEY: [u8; 16] = 0x6a1f_0c93_d24b_e870_5b9e_47d1_c80f_36a2_u128.to_be_bytes();
/// `tunnel.sourceIPv4`: the first three bytes are fixed.
pub const SOURCE_V4: &str = "10.200.0.0/24";
/// `tunnel.sourceIPv6`: all but the last four bytes are fixed.
pub const SOURCE_V6: &str = "fd00:200::/96";

/// A service of a configuration file.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    mode: &'static str,
    affinity: Option<&'static str>,
    frontends: Vec<(SocketAddr, &'static str)>,
    backends: Vec<(IpAddr, u16)>,
}

impl Service {
    /// A service in mode `l2` or `ipip`.
    pub fn new(name: &str, mode: &'static str) -> Self {
        let name = name.to_owned();
        Self { name, mode, affinity: None, frontends: Vec::new(), backends: Vec::new() }
    }

    /// The same service with session affinity for this time.
    pub fn affinity(mut self, time: &'static str) -> Self {
        self.affinity = Some(time);
        self
    }

    /// Adds a frontend for TCP.
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        self.frontends.push((address, "TCP"));
        self
    }

    /// Adds a frontend for UDP.
    pub fn udp(mut self, address: SocketAddr) -> Self {
        self.frontends.push((address, "UDP"));
        self
    }

    /// Adds frontends for TCP and UDP.
    pub fn both(self, address: SocketAddr) -> Self {
        self.tcp(address).udp(address)
    }

    /// Adds a backend.
    pub fn backend(self, address: IpAddr) -> Self {
        self.weighted(address, 1)
    }

    /// Adds backends.
    pub fn backends(self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        addresses.into_iter().fold(self, Self::backend)
    }

    /// Adds a backend with a weight.
    pub fn weighted(mut self, address: IpAddr, weight: u16) -> Self {
        self.backends.push((address, weight));
        self
    }

    /// The same service, written from the last backend to the first.
    pub fn reversed(mut self) -> Self {
        self.backends.reverse();
        self
    }

    /// Backends and their weights.
    pub(crate) fn candidates(&self) -> &[(IpAddr, u16)] {
        &self.backends
    }
}

/// A configuration with one device, `eth0` in native mode.
pub fn config(services: &[Service]) -> String {
    config_with(&[("eth0", "native")], services, "handover: 300s")
}

/// A configuration with devices (name and mode) and further lines.
pub fn config_with(devices: &[(&str, &str)], services: &[Service], more: &str) -> String {
    let mut text = format!("hashKey: \"{HASH_KEY_TEXT}\"\ndevices:\n");
    for (name, mode) in devices {
        let _ = writeln!(text, "  - {{name: {name}, xdp: {mode}}}");
    }
    let _ = writeln!(text, "tunnel: {{sourceIPv4: {SOURCE_V4}, sourceIPv6: \"{SOURCE_V6}\"}}");
    // Small tables: a test loads several data paths at once.
    let _ = writeln!(
        text,
        "limits: {{frontends: 64, backends: 256, slots: 1048576, flows: 65536}}\n{more}\nservices:"
    );
    if services.is_empty() {
        text.truncate(text.len() - "services:\n".len());
    }
    for service in services {
        let _ = writeln!(text, "  - name: {}\n    mode: {}", service.name, service.mode);
        if let Some(time) = service.affinity {
            let _ = writeln!(text, "    sessionAffinity: {time}");
        }
        let _ = writeln!(text, "    frontends:");
        for (address, protocol) in &service.frontends {
            let (ip, port) = (address.ip(), address.port());
            let _ =
                writeln!(text, "      - {{address: \"{ip}\", port: {port}, protocol: {protocol}}}");
        }
        let _ = writeln!(text, "    backends:");
        for (address, weight) in &service.backends {
            let _ = writeln!(text, "      - {{address: \"{address}\", weight: {weight}}}");
        }
    }
    text
}
