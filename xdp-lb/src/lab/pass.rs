//! An XDP program that passes everything, for devices whose other end sends by XDP.
//!
//! A veth device takes what XDP at its other end sends back (`XDP_TX`) into a queue, and is woken
//! to look there only if it has an XDP program itself (drivers/net/veth.c, `veth_xdp_flush`); GRO
//! makes the queue, but does not wake.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// bpf(2): the command, the type of program, and the flag that lets it onto devices with a large
/// MTU.
const PROG_LOAD: libc::c_int = 5;
const TYPE_XDP: u32 = 6;
const HAS_FRAGS: u32 = 1 << 5;
/// `r0 = XDP_PASS; exit`, as linux/bpf.h encodes it.
const PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// linux/if_link.h: the attribute of a link that holds its program, and what is in it.
const IFLA_XDP: u16 = 43;
const NESTED: u16 = 1 << 15;
const XDP_FD: u16 = 1;
const XDP_FLAGS: u16 = 3;
const DRIVER_MODE: u32 = 1 << 2;

/// The start of bpf(2)'s argument for loading; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
}

/// Attaches the program to `device` of the thread's namespace, until the device is removed.
pub(super) fn attach(device: &str) -> io::Result<()> {
    let program = load()?;
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

fn load() -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: TYPE_XDP,
        count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 4],
        kernel: 0,
        flags: HAS_FRAGS,
    };
    let size = size_of_val(&attributes);
    // SAFETY: the pointer and the size are those of one live structure, and the pointers in it are
    // to constants.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size) };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// RTM_SETLINK with a program.
fn request(index: u32, program: i32) -> Vec<u8> {
    let attribute = |kind: u16, value: &[u8]| {
        let length = (4 + value.len()) as u16;
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    let inside = [
        attribute(XDP_FD, &program.to_ne_bytes()),
        attribute(XDP_FLAGS, &DRIVER_MODE.to_ne_bytes()),
    ]
    .concat();
    let family = [0_u8; mem::offset_of!(libc::ifinfomsg, ifi_index)];
    let device = [&family[..], &index.to_ne_bytes(), &[0; 8]].concat();
    let body = [device, attribute(IFLA_XDP | NESTED, &inside)].concat();
    let length = (16 + body.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_states_its_lengths() {
        let message = request(7, 3);
        assert_eq!(message.len(), 16 + 16 + 4 + 8 + 8);
        assert_eq!(message[..4], 52_u32.to_ne_bytes());
        assert_eq!(message[20..24], 7_u32.to_ne_bytes());
        assert_eq!(message[32..34], 20_u16.to_ne_bytes());
    }
}
