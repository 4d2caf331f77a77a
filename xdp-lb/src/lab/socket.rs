//! Sockets with the options that std's constructors do not offer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
            setsockopt, socket,
            sockopt::{Ipv6V6Only, RcvBufForce, ReuseAddr, SendTimeout, TcpNoDelay},
        },
        time::TimeVal,
    },
};

/// Connections that may wait to be accepted: -1 is as many as the namespace allows, which the lab
/// has raised.
const BACKLOG: i32 = -1;
/// Bytes of datagrams that may wait to be read.
const DATAGRAMS: usize = 16 << 20;
/// How long an answer may take at least, of a server that may not run at once.
const LEAST_FOR_ANSWERS: Duration = Duration::from_secs(2);

pub(super) fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, SockType::Stream)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub(super) fn datagrams_on(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, SockType::Datagram)?;
    setsockopt(&socket, RcvBufForce, &DATAGRAMS)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let socket = UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Connects to `server` from `address` and `port`, as far as they are given. A connection that is there is
/// given more time: an answer needs a thread of the server's.
pub(super) fn connect_from(
    address: Option<IpAddr>,
    port: Option<u16>,
    server: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = open(server, SockType::Stream)?;
    setsockopt(&socket, TcpNoDelay, &true)?;
    if address.is_some() || port.is_some() {
        setsockopt(&socket, ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local(address, port, server)))?;
    }
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let wait = TimeVal::new(seconds, i64::from(timeout.subsec_micros()));
    setsockopt(&socket, SendTimeout, &wait)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
        // What connect(2) says when the send timeout ends it.
        Err(Errno::EINPROGRESS) => return Err(io::ErrorKind::TimedOut.into()),
        result => result?,
    }
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(timeout.max(LEAST_FOR_ANSWERS)))?;
    Ok(stream)
}

/// Begins to connect to `server` from `port`, and does not wait for it.
pub(super) fn connect_at_once(port: u16, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(server, SockType::Stream)?;
    setsockopt(&socket, TcpNoDelay, &true)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local(None, Some(port), server)))?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// A UDP socket that hears `server` alone. Others may use the same port towards other servers.
pub(super) fn datagrams_to(
    address: Option<IpAddr>,
    port: Option<u16>,
    server: SocketAddr,
    timeout: Duration,
) -> io::Result<UdpSocket> {
    let socket = open(server, SockType::Datagram)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, RcvBufForce, &DATAGRAMS)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local(address, port, server)))?;
    let socket = UdpSocket::from(socket);
    socket.connect(server)?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

/// The MTU of the path to the peer of a connected socket, as far as the kernel knows it.
pub(super) fn path_mtu(socket: &impl AsRawFd, peer: SocketAddr) -> io::Result<u32> {
    let (level, name) = match peer {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu = 0_i32;
    let mut length = size_of_val(&mtu) as u32;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut mtu).cast());
    // SAFETY: the pointer and the length are those of one live `i32`.
    let done = unsafe { libc::getsockopt(fd, level, name, value, &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(mtu.unsigned_abs()) }
}

fn open(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        // So that the same port can be had for IPv4 beside it.
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    Ok(socket)
}

fn local(address: Option<IpAddr>, port: Option<u16>, server: SocketAddr) -> SocketAddr {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(address.unwrap_or(any), port.unwrap_or_default())
}
