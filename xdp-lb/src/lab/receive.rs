//! Lets one end of a cable receive what an XDP program at the other end sends back.
//!
//! A veth device looks at such frames (`XDP_TX`) at once only if it has an XDP program of its own;
//! otherwise they wait until some other packet comes along (drivers/net/veth.c, `veth_xdp_flush`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use aya::{Ebpf, programs::Xdp};
use nix::net::if_::if_nametoindex;
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
    // SAFETY: a system call without pointers.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = request(index, program.as_raw_fd());
    // SAFETY: the pointer and the length are those of one live buffer.
    let sent = unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel's answer: a header of 16 bytes, then 0 or the negative errno.
    let mut answer = [0_u8; 256];
    // SAFETY: the pointer and the length are those of one live buffer.
    let got = unsafe {
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), size_of_val(&answer), 0)
    };
    if got < 20 {
        return Err(io::Error::last_os_error());
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
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
