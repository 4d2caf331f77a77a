//! Ends connected UDP sockets, in whatever network namespace: by sock_diag(7), which tells applications
//! by ECONNABORTED.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    sys::time::{TimeVal, TimeValLike as _},
};
use xdp_lb_abi::{Address, SocketKey};

/// Where tools keep namespaces that no process is in.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

// linux/sock_diag.h, linux/netlink.h
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Of a UDP socket: it is connected.
const ESTABLISHED: u32 = 1 << 1;
const HEADER: usize = 16;
/// `struct inet_diag_sockid`, behind four bytes of an answer and eight of a question
const ID: usize = 48;

/// How many sockets were ended, and how many namespaces could not be looked into.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ended {
    /// Sockets
    pub(crate) sockets: usize,
    /// Namespaces
    pub(crate) unreached: usize,
}

/// Ends these sockets where they are connected to that backend still; each by its own cookie, so that
/// no other one of the same address is touched.
///
/// Network namespaces are found by the processes in them and by the names that they have; one that has
/// neither, or that may not be entered (CAP_SYS_ADMIN), cannot be reached.
///
/// # Errors
///
/// Where the kernel cannot do it (CONFIG_INET_DIAG_DESTROY); what is possible elsewhere is done.
pub(crate) fn end(keys: &BTreeSet<SocketKey>) -> io::Result<Ended> {
    // A thread of its own, which ends with the namespaces that it went to.
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            let (spaces, mut unreached) = namespaces();
            // This one needs no leave to enter.
            let mut result = end_here(keys);
            for space in spaces.values() {
                if setns(space, CloneFlags::CLONE_NEWNET).is_err() {
                    unreached += 1;
                    continue;
                }
                let count = end_here(keys);
                result = result.and_then(|before| Ok(before + count?));
            }
            result.map(|sockets| Ended { sockets, unreached })
        });
        work.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that ends sockets panicked")))
    })
}

/// Whether the kernel can do it: asked about a socket that does not exist.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn is_possible() -> io::Result<()> {
    let fd = open()?;
    // Without udp_diag this fails, while the next answer would be the same.
    ask(fd.as_raw_fd(), BY_FAMILY, REQUEST | DUMP, libc::AF_INET as u8, &[0; ID])?;
    answers(fd.as_raw_fd(), |_| {})?;
    let mut nobody = [0; ID];
    // No socket has this cookie.
    nobody[40..].fill(0xff);
    ask(fd.as_raw_fd(), DESTROY, REQUEST | ACK, libc::AF_INET as u8, &nobody)?;
    match answers(fd.as_raw_fd(), |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::seconds(5))?;
    Ok(netlink)
}

/// All other network namespaces that can be found, by their inodes, and how many could not be opened.
fn namespaces() -> (BTreeMap<u64, File>, usize) {
    let mut found = BTreeMap::new();
    let mut missed = 0;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"));
    let named = NAMED.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    let inode = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.ino());
    let own = inode(Path::new("/proc/self/ns/net"));
    for path in processes.chain(named) {
        // Most processes share one.
        let id = inode(&path);
        if id == own || found.contains_key(&id) {
            continue;
        }
        match File::open(&path) {
            Ok(file) => drop(found.insert(id, file)),
            // The process went.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => missed += 1,
        }
    }
    (found, missed)
}

/// Ends those of this namespace; how many.
fn end_here(keys: &BTreeSet<SocketKey>) -> io::Result<usize> {
    let netlink = open()?;
    let fd = netlink.as_raw_fd();
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = family as u8;
        let mut wanted = Vec::new();
        ask(fd, BY_FAMILY, REQUEST | DUMP, family, &[0; ID])?;
        answers(fd, |answer| {
            if let Some(id) = identity(answer)
                && keys.contains(&key(family, &id))
            {
                wanted.push(id);
            }
        })?;
        for id in wanted {
            ask(fd, DESTROY, REQUEST | ACK, family, &id)?;
            match answers(fd, |_| {}) {
                Ok(()) => ended += 1,
                // It ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// `struct inet_diag_req_v2` behind a netlink header.
fn ask(fd: i32, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    let length = (HEADER + 8 + ID) as u32;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
    message.extend(ESTABLISHED.to_ne_bytes());
    message.extend(id);
    send(fd, &message, MsgFlags::empty())?;
    Ok(())
}

/// Reads until the answer is complete; `each` gets what follows the header of every part.
fn answers(fd: i32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(fd, &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let [a, b, c, d, e, f, ..] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let Some(payload) = rest.get(HEADER..length) else { break };
            match u16::from_ne_bytes([e, f]) {
                DONE | ERROR => {
                    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => each(payload),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The socket that an answer (`struct inet_diag_msg`) is about.
fn identity(answer: &[u8]) -> Option<[u8; ID]> {
    answer.get(4..4 + ID)?.try_into().ok()
}

/// The record's key: ports, source, destination, interface and cookie of `struct inet_diag_sockid`.
fn key(family: u8, id: &[u8; ID]) -> SocketKey {
    let at = |from: usize| id.get(from..).and_then(|rest| rest.first_chunk::<4>()).copied();
    let word = |from| at(from).unwrap_or_default();
    let [_, _, high, low] = word(0);
    let mut octets = [0; 16];
    octets.copy_from_slice(id.get(20..36).unwrap_or(&[0; 16]));
    let address = if i32::from(family) == libc::AF_INET {
        Address::v4(word(20))
    } else {
        Address::v6(octets).unmapped()
    };
    let cookie =
        u64::from(u32::from_ne_bytes(word(40))) | u64::from(u32::from_ne_bytes(word(44))) << 32;
    SocketKey::new(cookie, address, u16::from_be_bytes([high, low]), libc::IPPROTO_UDP as u8)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn cookie(socket: &UdpSocket) -> u64 {
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: pointer and length are those of one live number.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(done, 0);
        cookie
    }

    #[test]
    fn the_named_socket_is_ended_and_no_other() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let connected = || {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(("127.0.0.1", port)).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        };
        let (one, other) = (connected(), connected());
        let key = |socket| SocketKey::new(cookie(socket), Address::v4([127, 0, 0, 1]), port, 17);
        let elsewhere = SocketKey::new(cookie(&other), Address::v4([127, 0, 0, 2]), port, 17);
        let ended = end(&[key(&one), elsewhere].into()).unwrap();
        assert_eq!(ended.sockets, 1);
        let error = |socket: &UdpSocket| socket.recv(&mut [0]).unwrap_err().kind();
        assert_eq!(error(&one), io::ErrorKind::ConnectionAborted);
        assert_eq!(error(&other), io::ErrorKind::WouldBlock);
    }
}
