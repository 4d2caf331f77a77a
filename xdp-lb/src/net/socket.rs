//! Netlink requests and events, each on a socket of its own: a storm of events must not crowd out
//! the answers.

use std::{future::Future, io, net::IpAddr, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage},
};
use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, SocketAddr},
};
use tokio::task::JoinHandle;

use super::{Hop, tables::Tables};

/// An answer that takes longer was lost: the kernel builds it while the request is being sent.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A list has many parts, and the kernel waits for us to read them.
const LIST_WITHIN: Duration = Duration::from_secs(20);
/// A list that changed while it was read may lack entries; after this many attempts it has to do,
/// until the next regular one.
const LIST_ATTEMPTS: u32 = 3;
/// In bytes; what the system's `net.core.rmem_max` allows of it.
const EVENT_BUFFER: libc::c_int = 8 << 20;

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket.
    #[error("cannot open a netlink socket to follow links, routes and neighbours")]
    Open(#[source] io::Error),
    /// The kernel answered with an error.
    #[error("the kernel refuses to {what}")]
    Refused {
        /// What was asked of it
        what: &'static str,
        /// Its errno
        #[source]
        source: io::Error,
    },
    /// The answer was lost.
    #[error("the kernel did not answer within {} s when asked to {what}", .within.as_secs())]
    Timeout {
        /// What was asked of it
        what: &'static str,
        /// How long the answer was waited for
        within: Duration,
    },
    /// The kernel's answer is about something else.
    #[error("the kernel gave no usable answer when asked to {what}")]
    NoAnswer {
        /// What was asked of it
        what: &'static str,
    },
    /// The socket failed; a new one is needed.
    #[error("the netlink socket closed while the kernel was asked to {what}")]
    Closed {
        /// What was asked of it
        what: &'static str,
    },
}

/// A task that ends with its owner.
struct Owned(JoinHandle<()>);

impl Owned {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// What the kernel says unasked.
pub(super) struct Events {
    messages: Pin<Box<dyn Stream<Item = (Message, SocketAddr)> + Send>>,
    _connection: Owned,
}

pub(super) enum Event {
    Message(RouteNetlinkMessage),
    /// Messages were lost, so that everything has to be read anew.
    Overrun,
    /// The socket is of no use any more.
    Closed,
}

impl Events {
    /// Subscribed in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, NetError> {
        let (mut connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(NetError::Open)?;
        // A small buffer is no error: it overruns sooner, and then everything is read anew.
        if let Err(error) = connection.socket_mut().socket_mut().set_rx_buf_sz(EVENT_BUFFER) {
            tracing::debug!(%error, "the netlink event buffer keeps its default size");
        }
        Ok(Self { messages: Box::pin(messages), _connection: Owned::spawn(connection) })
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let Some((message, _)) = self.messages.next().await else { return Event::Closed };
            match message.payload {
                NetlinkPayload::InnerMessage(message) => return Event::Message(message),
                NetlinkPayload::Overrun(_) => return Event::Overrun,
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) | NetlinkPayload::Noop | _ => {}
            }
        }
    }
}

/// Questions to the kernel.
pub(super) struct Requests {
    handle: rtnetlink::Handle,
    _connection: Owned,
}

impl Requests {
    /// Asks in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, NetError> {
        // Nothing comes unasked on this socket, so that the third part is dropped.
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Open)?;
        // So that the end of an answer differs from the end of the connection.
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        Ok(Self { handle, _connection: Owned::spawn(connection) })
    }

    /// Reads all links, addresses and neighbours.
    pub(super) async fn tables(&self) -> Result<Tables, NetError> {
        let mut links = LinkMessage::default();
        links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let lists = [
            (RouteNetlinkMessage::GetLink(links), "list the links"),
            (RouteNetlinkMessage::GetAddress(AddressMessage::default()), "list the addresses"),
            (RouteNetlinkMessage::GetNeighbour(neighbours(AddressFamily::Inet)), "list neighbours"),
            (
                RouteNetlinkMessage::GetNeighbour(neighbours(AddressFamily::Inet6)),
                "list IPv6 neighbours",
            ),
        ];
        let mut tables = Tables::default();
        for (question, what) in lists {
            for message in self.list(&question, what).await? {
                tables.apply(&message);
            }
        }
        Ok(tables)
    }

    async fn list(
        &self,
        question: &RouteNetlinkMessage,
        what: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let answers =
                exchange(self.handle.clone(), question.clone(), flags, what, LIST_WITHIN).await?;
            if !answers.interrupted || attempts == LIST_ATTEMPTS {
                return Ok(answers.messages);
            }
        }
    }

    /// Makes the kernel treat `hop` as if a packet were to be sent to it: resolve it, or confirm a
    /// stale MAC address. Not for permanent entries, which would lose their permanence. The future
    /// does not borrow from `self`.
    pub(super) fn use_neighbour(
        &self,
        hop: Hop,
    ) -> impl Future<Output = Result<(), NetError>> + Send + use<> {
        let handle = self.handle.clone();
        let mut message = neighbours(match hop.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        });
        message.header.ifindex = hop.device;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(hop.address.into()));
        async move {
            let question = RouteNetlinkMessage::NewNeighbour(message);
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
            exchange(handle, question, flags, "resolve a neighbour", ANSWER_WITHIN).await?;
            Ok(())
        }
    }
}

fn neighbours(family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message
}

struct Answers {
    messages: Vec<RouteNetlinkMessage>,
    /// The kernel says that its list changed while we read it.
    interrupted: bool,
}

/// Bounded in time, because an answer that does not fit the socket, or that the library cannot
/// decode, never comes.
async fn exchange(
    mut handle: rtnetlink::Handle,
    question: RouteNetlinkMessage,
    flags: u16,
    what: &'static str,
    within: Duration,
) -> Result<Answers, NetError> {
    let mut question = NetlinkMessage::from(question);
    question.header.flags = flags;
    let mut stream = handle.request(question).map_err(|_| NetError::Closed { what })?;
    let mut answers = Answers { messages: Vec::new(), interrupted: false };
    let read = async {
        while let Some(message) = stream.next().await {
            answers.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    answers.messages.push(message);
                    if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                        return Ok(());
                    }
                }
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetError::Refused { what, source: error.to_io() });
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    let source = io::Error::from_raw_os_error(-done.code);
                    return Err(NetError::Refused { what, source });
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Overrun(_) | NetlinkPayload::Noop | _ => {}
            }
        }
        Err(NetError::Closed { what })
    };
    tokio::time::timeout(within, read).await.map_err(|_| NetError::Timeout { what, within })??;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading alone needs neither root nor addresses.
    #[tokio::test]
    async fn a_list_that_is_cut_short_is_not_taken_for_an_empty_one() {
        let requests = Requests::open().unwrap();
        let mut whole = Box::pin(requests.tables());
        // Polled once: the request is queued, and the connection has not run yet.
        tokio::select! {
            biased;
            _ = &mut whole => panic!("nothing can have answered"),
            () = std::future::ready(()) => {}
        }
        requests._connection.0.abort();
        assert!(matches!(whole.await, Err(NetError::Closed { .. })));
    }

    #[tokio::test]
    async fn links_are_listed() {
        let tables = Requests::open().unwrap().tables().await.unwrap();
        assert!(tables.links().values().any(|link| link.name == "lo"));
    }
}
