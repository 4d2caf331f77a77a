//! Packet sockets: whole frames to and from one device.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};

/// Frames that may wait in the kernel while nobody reads, in bytes of memory.
const BUFFER: usize = 256 << 20;
/// How long [`receive`] waits, so that its caller can look whether it is to stop.
const TURN: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
/// How long [`send`] waits for room at the other end.
const ROOM: Duration = Duration::from_secs(5);
/// Longest frame: 64 KiB of IP and room for tags.
pub(super) const LONGEST: usize = 65_536 + 64;

/// One frame, complete from its destination MAC address on, VLAN tags included.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Captured {
    /// When it passed
    pub at: SystemTime,
    /// Sent by the device; otherwise received
    pub sent: bool,
    /// Its bytes, without the Ethernet check sequence
    pub bytes: Vec<u8>,
}

/// A socket that hears every frame of `device`, in the thread's namespace.
pub(super) fn open(device: &str) -> io::Result<OwnedFd> {
    let socket = unbound()?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1_i32)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &TURN)?;
    bind(&socket, device, libc::ETH_P_ALL as u16)?;
    Ok(socket)
}

/// A socket that hears nothing, to send frames out of `device`.
pub(super) fn sender(device: &str) -> io::Result<OwnedFd> {
    let socket = unbound()?;
    bind(&socket, device, 0)?;
    Ok(socket)
}

/// With protocol 0 it hears nothing until it is bound to a device.
fn unbound() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, device: &str, protocol: u16) -> io::Result<()> {
    let index = if_nametoindex(device)?;
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    let length = size_of_val(&address) as u32;
    // SAFETY: the pointer and the length are those of one live `sockaddr_ll`.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer and the length are those of one live `T`, plain data for the kernel.
    let done = unsafe {
        libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as u32)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for the control messages, aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// The next frame; [`io::ErrorKind::WouldBlock`] when none comes in time, or none is there with
/// `drain`.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8], drain: bool) -> io::Result<Captured> {
    let mut control = Control([0; 256]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are valid for both structures.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = if drain { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: every pointer in `message` is to a live buffer of the length beside it.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut bytes = buffer[..length.min(buffer.len())].to_vec();
    let mut at = SystemTime::now();
    // SAFETY: the kernel has filled `message` and `control`, which is still live.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` give null or a whole header inside `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: the header is one of `message`; its data follows it.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: the kernel writes one `tpacket_auxdata` in a message of this type.
                let aux: libc::tpacket_auxdata =
                    unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                put_tag_back(&mut bytes, &aux);
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: the kernel writes one `timespec` in a message of this type.
                let time: libc::timespec =
                    unsafe { data.cast::<libc::timespec>().read_unaligned() };
                at = UNIX_EPOCH + Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            }
            _ => {}
        }
        // SAFETY: as for `CMSG_FIRSTHDR`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(Captured { at, sent: from.sll_pkttype == libc::PACKET_OUTGOING, bytes })
}

/// The kernel takes the outer VLAN tag out of a received frame and hands it over beside it.
fn put_tag_back(bytes: &mut Vec<u8>, aux: &libc::tpacket_auxdata) {
    if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 || bytes.len() < 12 {
        return;
    }
    let protocol = if aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        aux.tp_vlan_tpid
    } else {
        0x8100
    };
    let [a, b] = protocol.to_be_bytes();
    let [c, d] = aux.tp_vlan_tci.to_be_bytes();
    bytes.splice(12..12, [a, b, c, d]);
}

/// Sends a whole frame out of the socket's device; waits while the other end has no room for it.
///
/// A veth device that finds its peer's ring full drops the frame and says so (`ENOBUFS`).
pub(super) fn send(socket: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        // SAFETY: the pointer and the length are those of one live slice.
        let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENOBUFS) || begun.elapsed() > ROOM {
            return Err(error);
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// How many frames found no room in the socket's buffer.
pub(super) fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&statistics) as u32;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut statistics).cast());
    // SAFETY: the pointer and the length are those of one live `tpacket_stats`.
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_back_behind_the_addresses() {
        // SAFETY: all-zero bytes are a valid `tpacket_auxdata`.
        let mut aux: libc::tpacket_auxdata = unsafe { mem::zeroed() };
        let frame: Vec<u8> = (0..16).collect();
        let mut bytes = frame.clone();
        put_tag_back(&mut bytes, &aux);
        assert_eq!(bytes, frame);
        aux.tp_status = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        aux.tp_vlan_tpid = 0x88a8;
        aux.tp_vlan_tci = 0x2064;
        put_tag_back(&mut bytes, &aux);
        assert_eq!(bytes[12..], [0x88, 0xa8, 0x20, 0x64, 12, 13, 14, 15]);
    }
}
