//! Asks the kernel for many routes at once: a hundred thousand backends are asked for whenever a link
//! changes, on CPUs that have packets to forward.

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{
    NetError,
    route::{self, Route},
};

/// Questions of one system call: their answers, at most a page each, fit the smallest buffer.
const AT_ONCE: usize = 32;
/// An answer that takes longer was lost: the kernel builds it while the request is being sent.
const WITHIN: Duration = Duration::from_secs(1);
/// Longest datagram of an answer.
const LONGEST: usize = 32 * 1024;
const WHAT: &str = "find a route";

/// A socket for questions of one kind, whose answers its user waits for.
#[derive(Debug)]
pub(super) struct Asker {
    socket: Socket,
    /// Of the next question
    sequence: u32,
}

impl Asker {
    /// Asks in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, NetError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            let within = TimeVal::new(WITHIN.as_secs() as libc::time_t, 0);
            setsockopt(&socket, ReceiveTimeout, &within)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetError::Open)?, sequence: 1 })
    }

    /// The kernel's answer for each destination, in their order. Blocks.
    pub(super) fn ask(&mut self, destinations: &[IpAddr]) -> Vec<Result<Route, NetError>> {
        destinations.chunks(AT_ONCE).flat_map(|some| self.ask_some(some)).collect()
    }

    fn ask_some(&mut self, destinations: &[IpAddr]) -> Vec<Result<Route, NetError>> {
        let first = self.sequence;
        // No late answer is taken for one of these.
        self.sequence = first.wrapping_add(destinations.len() as u32);
        let mut answers: Vec<Option<Result<Route, NetError>>> = Vec::new();
        answers.resize_with(destinations.len(), || None);
        let result = self.exchange(first, destinations, &mut answers);
        let missing = || match &result {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(NetError::Refused { what: WHAT, source: io::Error::from(error.kind()) })
            }
            _ => Err(NetError::Timeout { what: WHAT, within: WITHIN }),
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    /// Fills in the answers, until all are there or none comes any more.
    fn exchange(
        &self,
        first: u32,
        destinations: &[IpAddr],
        answers: &mut [Option<Result<Route, NetError>>],
    ) -> io::Result<()> {
        let questions = questions(first, destinations);
        self.socket.send(&questions, 0)?;
        let mut buffer = Vec::with_capacity(LONGEST);
        let mut missing = answers.len();
        while missing > 0 {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer) else {
                continue;
            };
            let index = message.header.sequence_number.wrapping_sub(first) as usize;
            if let (Some(answer @ None), Some(destination)) =
                (answers.get_mut(index), destinations.get(index))
            {
                *answer = Some(read(*destination, &message.payload));
                missing -= 1;
            }
        }
        Ok(())
    }
}

/// The questions, one behind the other, numbered from `first` on.
fn questions(first: u32, destinations: &[IpAddr]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, destination) in (0..).zip(destinations) {
        let question = RouteNetlinkMessage::GetRoute(route::question(*destination));
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = first.wrapping_add(number);
        message.finalize();
        let start = bytes.len();
        // Each begins on a boundary of four bytes.
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }
    bytes
}

fn read(
    destination: IpAddr,
    payload: &NetlinkPayload<RouteNetlinkMessage>,
) -> Result<Route, NetError> {
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(answer)) = payload {
        return Ok(route::answer(destination, answer));
    }
    if let NetlinkPayload::Error(error) = payload
        && error.code.is_some()
    {
        let source = error.to_io();
        return match source.raw_os_error() {
            Some(errno) => Ok(route::refusal(errno)),
            None => Err(NetError::Refused { what: WHAT, source }),
        };
    }
    Err(NetError::NoAnswer { what: WHAT })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading alone needs neither root nor addresses.
    #[test]
    fn each_destination_has_its_own_answer() {
        let mut asker = Asker::open().unwrap();
        let mut destinations: Vec<IpAddr> =
            (0..100).map(|n| IpAddr::from([127, 0, 1, n])).collect();
        // Asked for without a device, it has none.
        destinations.insert(50, "fe80::1".parse().unwrap());
        for _ in 0..3 {
            let answers = asker.ask(&destinations);
            assert_eq!(answers.len(), destinations.len());
            for (destination, answer) in destinations.iter().zip(answers) {
                let local = destination.to_string().starts_with("127.");
                assert_eq!(answer.unwrap() == Route::Local, local, "{destination}");
            }
        }
    }

    #[test]
    fn nothing_is_asked_of_nobody() {
        assert!(Asker::open().unwrap().ask(&[]).is_empty());
    }
}
