//! Traceroute: who answers a packet whose TTL or hop limit ends on the way.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
        connect, send, setsockopt, shutdown, socket,
        sockopt::{Ipv4Ttl, Ipv6Ttl, ReuseAddr},
    },
};

use super::{
    Capture, Captured, LabError, Namespace,
    layers::{self, Body, Ip},
    verify::{fold, sum},
};

/// How long each probe waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Identification of echo requests.
const ECHO: u16 = 0x4c42;

/// What probes are made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// Datagrams
    Udp,
    /// Attempts to connect
    Tcp,
    /// ICMP or ICMPv6 echo requests
    Echo,
}

/// What became of a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hop {
    /// TTL or hop limit with which it was sent
    pub ttl: u8,
    /// What came back, if anything
    pub answer: Option<HopAnswer>,
}

/// What came back for a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HopAnswer {
    /// Source of the answer; its port is 0 in ICMP
    pub from: SocketAddr,
    /// Type and code of an ICMP error; none where the destination answered
    pub error: Option<(u8, u8)>,
    /// Source and destination of the packet that the error quotes; ports are 0 in ICMP
    pub quoted: Option<[SocketAddr; 2]>,
    /// The whole frame
    pub frame: Vec<u8>,
}

impl HopAnswer {
    /// Whether this is "time exceeded in transit".
    pub fn is_time_exceeded(&self) -> bool {
        let kind = if self.from.is_ipv4() { 11 } else { 3 };
        self.error == Some((kind, 0))
    }
}

/// Sends one probe with each TTL from 1 up to `farthest`, all from the same port, so that a balancer
/// sees one flow, and ends with the first that the destination itself answers. `port` is the source
/// port of UDP and TCP, `device` where the answers come in.
pub fn trace(
    space: &Namespace,
    device: &str,
    probe: Probe,
    (port, server): (u16, SocketAddr),
    farthest: u8,
) -> Result<Vec<Hop>, LabError> {
    let failed = || LabError::system(format!("trace the way to {server} from {}", space.name()));
    let mut hops = Vec::new();
    for ttl in 1..=farthest {
        let capture = Capture::start(space, device)?;
        let sent = space.run(|| Sent::send(probe, port, server, ttl))?.map_err(failed())?;
        let found = capture.wait_for(PATIENCE, |frame| sent.answer(frame).is_some());
        let answer = found.and_then(|frame| sent.answer(&frame));
        let reached = answer.as_ref().is_some_and(|answer| answer.error.is_none());
        hops.push(Hop { ttl, answer });
        if reached {
            break;
        }
    }
    Ok(hops)
}

/// A probe on its way. Its socket stays open, so that the kernel does not answer in its place.
struct Sent {
    probe: Probe,
    local: SocketAddr,
    ttl: u8,
    socket: OwnedFd,
}

impl Drop for Sent {
    fn drop(&mut self) {
        // A child between fork and exec may have the socket, too: closed here alone, its connection would
        // be in the next probe's way.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

impl Sent {
    fn send(probe: Probe, port: u16, server: SocketAddr, ttl: u8) -> io::Result<Self> {
        let v4 = server.is_ipv4();
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (kind, protocol) = match probe {
            Probe::Udp => (SockType::Datagram, None),
            Probe::Tcp => (SockType::Stream, None),
            Probe::Echo if v4 => (SockType::Raw, Some(SockProtocol::Icmp)),
            Probe::Echo => (SockType::Raw, Some(SockProtocol::IcmpV6)),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, kind, flags, protocol)?;
        if v4 {
            setsockopt(&fd, Ipv4Ttl, &i32::from(ttl))?;
        } else {
            setsockopt(&fd, Ipv6Ttl, &i32::from(ttl))?;
        }
        let local = match probe {
            Probe::Udp | Probe::Tcp => {
                setsockopt(&fd, ReuseAddr, &true)?;
                let any = if v4 { "0.0.0.0" } else { "::" };
                let any = any.parse().map_err(io::Error::other)?;
                bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
                reach(&fd, server)?;
                name(&fd, probe)?
            }
            Probe::Echo => {
                reach(&fd, SocketAddr::new(server.ip(), 0))?;
                SocketAddr::new(name(&fd, probe)?.ip(), 0)
            }
        };
        let message = match probe {
            Probe::Udp => b"which way?".to_vec(),
            Probe::Echo => echo_request(v4, ttl),
            Probe::Tcp => return Ok(Self { probe, local, ttl, socket: fd }),
        };
        send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(Self { probe, local, ttl, socket: fd })
    }

    /// What a received frame says about this probe.
    fn answer(&self, captured: &Captured) -> Option<HopAnswer> {
        let frame = layers::frame(&captured.bytes).ok().filter(|_| !captured.sent)?;
        let ip = frame.headers.last().filter(|ip| ip.destination == self.local.ip())?;
        let (error, quoted) = match (frame.body, self.probe) {
            (Body::Udp(start), Probe::Udp) | (Body::Tcp(start), Probe::Tcp) => {
                let [from, to] = ends(ip, start)?;
                let answer = HopAnswer { from, error: None, quoted: None, frame: Vec::new() };
                let own = to == self.local;
                return own.then(|| HopAnswer { frame: captured.bytes.clone(), ..answer });
            }
            (Body::Icmp(message) | Body::Icmpv6(message), Probe::Echo) if self.reply(message) => {
                (None, None)
            }
            (Body::Icmp([kind @ (3 | 11 | 12), code, _, _, _, _, _, _, quote @ ..]), _)
            | (Body::Icmpv6([kind @ 1..=4, code, _, _, _, _, _, _, quote @ ..]), _) => {
                (Some((*kind, *code)), Some(self.quoted(quote)?))
            }
            (
                Body::Udp(_)
                | Body::Tcp(_)
                | Body::Icmp(_)
                | Body::Icmpv6(_)
                | Body::Arp(_)
                | Body::Fragment(_)
                | Body::Other(_),
                _,
            ) => return None,
        };
        let from = SocketAddr::new(ip.source, 0);
        Some(HopAnswer { from, error, quoted, frame: captured.bytes.clone() })
    }

    /// Source and destination of a quoted packet, if its source is this probe's.
    fn quoted(&self, quote: &[u8]) -> Option<[SocketAddr; 2]> {
        let (headers, body) = layers::quoted(quote).ok()?;
        let ip = headers.last()?;
        let ends = match (body, self.probe) {
            (Body::Udp(start), Probe::Udp) | (Body::Tcp(start), Probe::Tcp) => ends(ip, start)?,
            (Body::Icmp(message) | Body::Icmpv6(message), Probe::Echo) if self.own(message) => {
                [SocketAddr::new(ip.source, 0), SocketAddr::new(ip.destination, 0)]
            }
            (
                Body::Udp(_)
                | Body::Tcp(_)
                | Body::Icmp(_)
                | Body::Icmpv6(_)
                | Body::Arp(_)
                | Body::Fragment(_)
                | Body::Other(_),
                _,
            ) => return None,
        };
        (ends[0] == self.local).then_some(ends)
    }

    fn reply(&self, message: &[u8]) -> bool {
        matches!(message.first(), Some(0 | 129)) && self.own(message)
    }

    /// Whether an echo request or reply is this probe's.
    fn own(&self, message: &[u8]) -> bool {
        message.get(4..8) == Some(&[ECHO.to_be_bytes(), u16::from(self.ttl).to_be_bytes()].concat())
    }
}

fn reach(fd: &OwnedFd, server: SocketAddr) -> io::Result<()> {
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn name(fd: &OwnedFd, probe: Probe) -> io::Result<SocketAddr> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    match probe {
        Probe::Tcp => TcpStream::from(fd).local_addr(),
        Probe::Udp | Probe::Echo => UdpSocket::from(fd).local_addr(),
    }
}

/// An echo request; the kernel sums up ICMPv6 itself.
fn echo_request(v4: bool, ttl: u8) -> Vec<u8> {
    let kind = if v4 { 8 } else { 128 };
    let sequence = u16::from(ttl).to_be_bytes();
    let mut message = [&[kind, 0, 0, 0], &ECHO.to_be_bytes()[..], &sequence, b"way?"].concat();
    if v4 {
        let right = !fold(sum(&message));
        message[2..4].copy_from_slice(&right.to_be_bytes());
    }
    message
}

/// Source and destination of a packet with ports.
fn ends(ip: &Ip<'_>, start: &[u8]) -> Option<[SocketAddr; 2]> {
    let (ports, _) = start.split_first_chunk::<4>()?;
    Some([
        SocketAddr::new(ip.source, u16::from_be_bytes([ports[0], ports[1]])),
        SocketAddr::new(ip.destination, u16::from_be_bytes([ports[2], ports[3]])),
    ])
}
