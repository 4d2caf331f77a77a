//! The chains of nftables, read over netlink: iptables-nft makes its own there too.

use std::collections::BTreeSet;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator, parse_string,
};
use rtnetlink::sys::Socket;

/// `NETLINK_NETFILTER`
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_GETCHAIN`
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`
const TABLE: u16 = 1;
const NAME: u16 = 3;
/// Length of `struct nlmsghdr`, and of `struct nfgenmsg` behind it
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// All chains by table and name; none where the kernel does not say, which it does to root.
pub(crate) fn chains() -> Option<BTreeSet<(String, String)>> {
    let mut socket = Socket::new(NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    let mut request = Vec::new();
    request.extend(((HEADER + FAMILY) as u32).to_ne_bytes());
    request.extend(GET_CHAIN.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    // Of all families.
    request.extend([0; FAMILY]);
    socket.send(&request, 0).ok()?;
    let mut found = BTreeSet::new();
    loop {
        let (answer, _) = socket.recv_from_full().ok()?;
        let mut rest = answer.as_slice();
        while let Some((header, _)) = rest.split_at_checked(HEADER) {
            let length = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
            let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
            let message = rest.get(HEADER..length)?;
            match kind {
                NLMSG_DONE => return Some(found),
                NLMSG_ERROR => return None,
                _ => found.extend(chain(message)),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn chain(message: &[u8]) -> Option<(String, String)> {
    let (mut table, mut name) = (None, None);
    for attribute in NlasIterator::new(message.get(FAMILY..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            TABLE => table = parse_string(attribute.value()).ok(),
            NAME => name = parse_string(attribute.value()).ok(),
            _ => {}
        }
    }
    Some((table?, name?))
}
