//! DNS (RFC 1035): a server that answers by UDP and TCP, and questions in the ways in which resolvers ask
//! them.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, SimpleDnsError, TYPE,
    rdata::{A, AAAA, RData},
};

use super::socket::{datagrams_on, listen_on};

/// Port of DNS servers.
pub const PORT: u16 = 53;
/// Largest datagram without EDNS.
const DATAGRAM: usize = 512;
/// Seconds for which an answer counts.
const TTL: u32 = 5;
/// How long a client of TCP may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The addresses of a name, which is in small letters and without a dot at its end; nothing where there
/// is no such name.
pub type Names = Arc<dyn Fn(&str) -> Option<Vec<IpAddr>> + Send + Sync>;

/// Serves at these addresses in the calling thread's namespace, until the process ends. It listens when
/// this returns.
///
/// # Errors
///
/// Where it cannot listen.
pub fn serve(addresses: &[SocketAddr], names: &Names) -> io::Result<()> {
    for address in addresses {
        let (datagrams, listener) = (datagrams_on(*address)?, listen_on(*address)?);
        datagrams.set_nonblocking(false)?;
        listener.set_nonblocking(false)?;
        let known = names.clone();
        thread::spawn(move || serve_datagrams(&datagrams, &known));
        let known = names.clone();
        thread::spawn(move || {
            loop {
                // Errors are those of clients that are gone already.
                let Ok((stream, _)) = listener.accept() else { continue };
                let known = known.clone();
                thread::spawn(move || serve_stream(stream, &known));
            }
        });
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket, names: &Names) {
    let mut buffer = [0; DATAGRAM];
    loop {
        // Errors here are ICMP's news about earlier answers.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(answer) = answer(&buffer[..length], names) {
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// Each message has its length before it (RFC 1035, 4.2.2).
fn serve_stream(mut stream: TcpStream, names: &Names) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        let question = receive(&mut stream)?;
        let Some(answer) = answer(&question, names) else { return Ok(()) };
        send(&mut stream, &answer)?;
    }
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

/// The answer to a question; nothing to what is none.
fn answer(question: &[u8], names: &Names) -> Option<Vec<u8>> {
    let packet = Packet::parse(question).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    match packet.questions.first() {
        Some(asked) => {
            match names(&asked.qname.to_string().to_ascii_lowercase()) {
                Some(addresses) => {
                    let records = addresses.into_iter().map(|one| record(asked.qname.clone(), one));
                    reply.answers.extend(records.filter(|one| one.match_qtype(asked.qtype)));
                }
                None => *reply.rcode_mut() = RCODE::NameError,
            }
            reply.questions.push(asked.clone());
        }
        None => *reply.rcode_mut() = RCODE::FormatError,
    }
    reply.build_bytes_vec_compressed().ok()
}

fn record(name: Name<'_>, address: IpAddr) -> ResourceRecord<'_> {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A { address: v4.to_bits() }),
        IpAddr::V6(v6) => RData::AAAA(AAAA { address: v6.to_bits() }),
    };
    ResourceRecord::new(name, CLASS::IN, TTL, data)
}

/// How a resolver asks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// By a UDP socket that is not connected, as musl's resolver does
    Unconnected,
    /// By one that is, as glibc's does
    Connected,
    /// By TCP, as both do where an answer is too long
    Tcp,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// The sockets.
    #[error("asking {server}: {source}")]
    Ask {
        /// Whom
        server: SocketAddr,
        /// The system's answer
        source: io::Error,
    },
    /// Somebody else answered than was asked, as far as the socket tells.
    #[error("{server} was asked, and {peer} seems to answer")]
    Stranger {
        /// Who was asked
        server: SocketAddr,
        /// What the socket tells
        peer: SocketAddr,
    },
    /// It is the answer to another question.
    #[error("{0} answers another question")]
    Other(SocketAddr),
    /// It is no name, or no answer.
    #[error("no DNS message: {0}")]
    Message(#[from] SimpleDnsError),
    /// The server says so.
    #[error("the server says {0:?}")]
    Refused(RCODE),
}

/// Asks a server for the addresses of a name, of IPv6 or of IPv4. The socket must say that it is this
/// server that answers.
///
/// # Errors
///
/// Where no answer comes in time, or another one than addresses.
pub fn look_up(
    server: SocketAddr,
    name: &str,
    v6: bool,
    way: Way,
    patience: Duration,
) -> Result<Vec<IpAddr>, LookUpError> {
    let kind = if v6 { TYPE::AAAA } else { TYPE::A };
    let mut query = Packet::new_query(std::process::id() as u16);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(
        Name::new(name)?,
        QTYPE::TYPE(kind),
        CLASS::IN.into(),
        false,
    ));
    let question = query.build_bytes_vec()?;
    let (answer, peer) = exchange(server, &question, way, patience)
        .map_err(|source| LookUpError::Ask { server, source })?;
    if peer != server {
        return Err(LookUpError::Stranger { server, peer });
    }
    let answer = Packet::parse(&answer)?;
    if answer.id() != query.id() {
        return Err(LookUpError::Other(server));
    }
    if answer.rcode() != RCODE::NoError {
        return Err(LookUpError::Refused(answer.rcode()));
    }
    let address = |one: &ResourceRecord<'_>| {
        if let RData::A(A { address }) = one.rdata {
            Some(Ipv4Addr::from_bits(address).into())
        } else if let RData::AAAA(AAAA { address }) = one.rdata {
            Some(Ipv6Addr::from_bits(address).into())
        } else {
            None
        }
    };
    Ok(answer.answers.iter().filter_map(address).collect())
}

/// The answer, and from whom the socket says that it is.
fn exchange(
    server: SocketAddr,
    question: &[u8],
    way: Way,
    patience: Duration,
) -> io::Result<(Vec<u8>, SocketAddr)> {
    if way == Way::Tcp {
        let mut stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        send(&mut stream, question)?;
        return Ok((receive(&mut stream)?, stream.peer_addr()?));
    }
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = [0; DATAGRAM];
    let (length, peer) = if way == Way::Connected {
        socket.connect(server)?;
        socket.send(question)?;
        (socket.recv(&mut buffer)?, socket.peer_addr()?)
    } else {
        socket.send_to(question, server)?;
        socket.recv_from(&mut buffer)?
    };
    Ok((buffer[..length].to_vec(), peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_answered_in_every_way_and_unknown_ones_refused() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let addresses = ["10.96.0.1", "10.96.0.2", "fd00:96::1"].map(|one| one.parse().unwrap());
        let names: Names =
            Arc::new(move |name| (name == "web.shop.example").then(|| addresses.to_vec()));
        serve(&[free], &names).unwrap();
        for way in [Way::Unconnected, Way::Connected, Way::Tcp] {
            let ask = |name, v6| look_up(free, name, v6, way, PATIENCE);
            assert_eq!(ask("web.shop.example", false).unwrap(), addresses[..2], "{way:?}");
            assert_eq!(ask("Web.Shop.EXAMPLE", true).unwrap(), addresses[2..], "{way:?}");
            let refused = ask("cart.shop.example", false);
            assert!(matches!(refused, Err(LookUpError::Refused(RCODE::NameError))), "{refused:?}");
        }
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let names: Names = Arc::new(|_| None);
        assert_eq!(answer(b"hello", &names), None);
        let mut reply = Packet::new_reply(7).build_bytes_vec().unwrap();
        assert_eq!(answer(&reply, &names), None);
        reply = Packet::new_query(7).build_bytes_vec().unwrap();
        let answer = answer(&reply, &names).unwrap();
        assert_eq!(Packet::parse(&answer).unwrap().rcode(), RCODE::FormatError);
    }
}
