//! Lets one end of a cable receive what an XDP program at the other end sends back.
//!
//! A veth device looks at such frames (`XDP_TX`) at once only if it has an XDP program of its own;
//! otherwise they wait until some other packet comes along (drivers/net/veth.c, `veth_xdp_flush`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{Ebpf, programs::Xdp};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use xdp_lb_abi::names;

use super::{LabError, Namespace};
use crate::object::OBJECT;

/// Attributes of a link message (linux/if_link.h).
const IFLA_XDP: u16 = 43 | NESTED;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const NESTED: u16 = 0x8000;
/// In the driver (`XDP_FLAGS_DRV_MODE`).
const DRIVER: u32 = 1 << 2;

/// Attaches a program that passes everything to these devices; it stays as long as they do.
pub(super) fn pass(space: &Namespace, devices: &[String]) -> Result<(), LabError> {
    if devices.is_empty() {
        return Ok(());
    }
    let failed = || LabError::system(format!("attach a passing XDP program in {}", space.name()));
    let mut ebpf = Ebpf::load(OBJECT).map_err(io::Error::other).map_err(failed())?;
    let program = passing(&mut ebpf).map_err(failed())?;
    space.run(|| devices.iter().try_for_each(|device| attach(device, &program)))?.map_err(failed())
}

fn passing(ebpf: &mut Ebpf) -> io::Result<OwnedFd> {
    let program = ebpf.program_mut(names::XDP_PASS);
    let program = program.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let program: &mut Xdp = program.try_into().map_err(io::Error::other)?;
    program.load().map_err(io::Error::other)?;
    program.fd().map_err(io::Error::other)?.as_fd().try_clone_to_owned()
}

/// Attaches by netlink: a BPF link would end with this process, but a kept lab does not.
fn attach(device: &str, program: &OwnedFd) -> io::Result<()> {
    let index = if_nametoindex(device)?;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &request(index, program.as_raw_fd()), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // A message's header, then an error number, 0 for success.
    let code = answer[..length].get(16..20).and_then(|bytes| bytes.first_chunk::<4>());
    match code.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// RTM_SETLINK with an XDP program (rtnetlink(7)).
fn request(index: u32, program: i32) -> Vec<u8> {
    let attribute = |kind: u16, value: &[u8]| {
        let length = value.len() as u16 + 4;
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    let xdp = [
        attribute(IFLA_XDP_FD, &program.to_ne_bytes()),
        attribute(IFLA_XDP_FLAGS, &DRIVER.to_ne_bytes()),
    ]
    .concat();
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let body = [&[0; 4], &index.to_ne_bytes()[..], &[0; 8], &attribute(IFLA_XDP, &xdp)].concat();
    // struct nlmsghdr: length, type, flags, sequence, port.
    let length = body.len() as u32 + 16;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let head = [
        &length.to_ne_bytes()[..],
        &libc::RTM_SETLINK.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &[0; 8],
    ];
    [head.concat(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_states_its_own_lengths() {
        let bytes = request(7, 5);
        assert_eq!(bytes.len(), 16 + 16 + 4 + 8 + 8);
        assert_eq!(bytes[..4], 52_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes());
        assert_eq!(bytes[32..36], [20_u16.to_ne_bytes(), 0x802b_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[40..44], 5_u32.to_ne_bytes());
        assert_eq!(bytes[48..], 4_u32.to_ne_bytes());
    }
}
