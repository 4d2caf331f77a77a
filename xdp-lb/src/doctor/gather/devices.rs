//! Devices: links over rtnetlink, queues and offloads over ethtool's netlink, what their drivers can do
//! over the family `netdev`.

use std::collections::BTreeMap;

use ethtool::{EthtoolAttr, EthtoolChannelAttr, EthtoolFeatureAttr, EthtoolHandle};
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp};

use super::super::facts::{Channels, Device, Xdp};
use crate::pins::Pins;

/// All devices of this network namespace by name; none where the kernel does not answer.
pub(super) async fn gather(pins: &Pins) -> BTreeMap<String, Device> {
    let mut devices = links().await.unwrap_or_default();
    for link in pins.links().unwrap_or_default() {
        if let Some(device) = devices.get_mut(&link.device) {
            device.ours |= device.index == link.ifindex;
        }
    }
    let features = features().await.unwrap_or_default();
    let ethtool = ethtool::new_connection().map(|(connection, handle, _)| {
        tokio::spawn(connection);
        handle
    });
    let mut ethtool = ethtool.ok();
    for (name, device) in &mut devices {
        device.features = features.get(&device.index).copied();
        let driver = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        device.driver = driver;
        if let Some(ethtool) = &mut ethtool {
            device.offloads = offloads(ethtool, name).await;
            device.channels = channels(ethtool, name).await;
        }
    }
    devices
}

async fn links() -> Option<BTreeMap<String, Device>> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let all: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.ok()?;
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    let mut on: Vec<(u32, String)> = Vec::new();
    for message in &all {
        let Some((name, device, parent)) = link(message) else { continue };
        if device.kind == "vlan" {
            on.extend(parent.map(|parent| (parent, name.clone())));
        }
        devices.insert(name, device);
    }
    for (parent, vlan) in on {
        let below = devices.values_mut().find(|device| device.index == parent);
        below.into_iter().for_each(|device| device.vlans.push(vlan.clone()));
    }
    Some(devices)
}

/// Name, facts and the device below.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other attributes are no business of ours")]
fn link(message: &LinkMessage) -> Option<(String, Device, Option<u32>)> {
    let flags = message.header.flags;
    let up = flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp);
    let mut device = Device { index: message.header.index, up, ..Device::default() };
    let (mut name, mut parent) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        device.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => device.xdp = xdp(attributes),
            _ => {}
        }
    }
    Some((name?, device, parent))
}

/// The kernel names a single program's mode apart from its id.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other attributes are no business of ours")]
fn xdp(attributes: &[LinkXdp]) -> Xdp {
    use netlink_packet_route::link::XdpAttached;
    let mut found = Xdp::default();
    let (mut mode, mut single) = (None, None);
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(attached) => mode = Some(*attached),
            LinkXdp::ProgId(id) => single = Some(*id),
            LinkXdp::DrvProgId(id) => found.native = Some(*id),
            LinkXdp::SkbProgId(id) => found.generic = Some(*id),
            _ => {}
        }
    }
    match mode {
        Some(XdpAttached::Driver | XdpAttached::Hardware) => found.native = single.or(found.native),
        Some(XdpAttached::SocketBuffer) => found.generic = single.or(found.generic),
        _ => {}
    }
    found
}

async fn offloads(ethtool: &mut EthtoolHandle, name: &str) -> Option<BTreeMap<String, bool>> {
    let mut answers = ethtool.feature().get(Some(name)).execute().await.ok()?;
    let mut found = None;
    while let Some(Ok(answer)) = answers.next().await {
        for attribute in answer.payload.nlas {
            if let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute {
                let bits = bits.into_iter().map(|bit| (bit.name, bit.value));
                found.get_or_insert_with(BTreeMap::new).extend(bits);
            }
        }
    }
    found
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other attributes are no business of ours")]
async fn channels(ethtool: &mut EthtoolHandle, name: &str) -> Option<Channels> {
    let mut answers = ethtool.channel().get(Some(name)).execute().await.ok()?;
    let mut found = None;
    while let Some(Ok(answer)) = answers.next().await {
        let (mut rx, mut combined) = ((0, 0), (0, 0));
        for attribute in answer.payload.nlas {
            let EthtoolAttr::Channel(attribute) = attribute else { continue };
            match attribute {
                EthtoolChannelAttr::RxCount(count) => rx.0 = count,
                EthtoolChannelAttr::RxMax(count) => rx.1 = count,
                EthtoolChannelAttr::CombinedCount(count) => combined.0 = count,
                EthtoolChannelAttr::CombinedMax(count) => combined.1 = count,
                _ => {}
            }
        }
        let is_combined = combined.1 > 0;
        let rx = if is_combined { combined } else { rx };
        found = Some(Channels { rx, combined: is_combined });
    }
    found
}

/// A message of the family `netdev` (uapi/linux/netdev.h, Linux 6.3): the request for all devices, and
/// what is said of one.
#[derive(Clone, Copy, Debug, Default)]
struct Netdev {
    ifindex: u32,
    features: u64,
}

impl Netdev {
    const DEV_GET: u8 = 1;
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        Self::DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        0
    }

    fn emit(&self, _: &mut [u8]) {}
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut found = Self::default();
        for attribute in NlasIterator::new(buffer) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                Self::IFINDEX => found.ifindex = number(value) as u32,
                Self::XDP_FEATURES => found.features = number(value),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A number of four or eight bytes.
fn number(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    if bytes.len() < 8 && cfg!(target_endian = "big") {
        return u64::from_ne_bytes(all) >> (64 - 8 * bytes.len());
    }
    u64::from_ne_bytes(all)
}

/// What drivers can do, by interface index.
async fn features() -> Option<BTreeMap<u32, u64>> {
    let (connection, mut handle, _) = genetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let mut message = NetlinkMessage::from(GenlMessage::from_payload(Netdev::default()));
    // The kernel does not mark the parts of this list as such; asked for an acknowledgement, the library
    // goes on until that comes.
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP | NLM_F_ACK;
    let mut answers = std::pin::pin!(handle.request(message).await.ok()?);
    let mut found = BTreeMap::new();
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::InnerMessage(one) = answer.ok()?.payload {
            found.insert(one.payload.ifindex, one.payload.features);
        }
    }
    Some(found)
}
