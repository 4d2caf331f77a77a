//! Calls of this host's own sockets: connect(2), sendmsg(2), recvmsg(2), getpeername(2), bind(2).
//!
//! A call that names a frontend is led to one of its backends, and later calls are answered with the
//! frontend again. What is written here is the socket's peer: no packet is ever rewritten.
//!
//! Frontends are looked up for sockets first, then those that packets use, too ([`Scope`]).

use xdp_lb_abi::{
    Address, Backend, FlowKey, FrontendKey, Mode, Scope, Service, Settings, SocketFrontend,
    SocketKey, SocketReason, SocketSettings, probed_backend,
};

use crate::{
    Sockets,
    decide::{NOBODY, REFRESH, drains, named, slot},
    parse::protocol,
};

/// A socket, and the peer that its call is about.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The socket's cookie (`SO_COOKIE`)
    pub cookie: u64,
    /// The cookie of its network namespace (`SO_NETNS_COOKIE`)
    pub netns: u64,
    /// The peer's address; of bind(2), the socket's own. IPv4-mapped ones count as IPv4.
    pub address: Address,
    /// The peer's port in host order; of bind(2), the socket's own
    pub port: u16,
    /// IP protocol number
    pub protocol: u8,
    /// The socket's mark (`SO_MARK`)
    pub mark: u32,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It goes on as it is.
    Unchanged,
    /// It goes on with this peer; the port in host order. Of the call's family: where that was
    /// IPv4-mapped, so must this be.
    Peer(Address, u16),
    /// It fails with this error number (errno(3)).
    Refused(i32),
}

/// Error numbers; the same on all of Linux's platforms that this is built for.
pub mod errno {
    /// Address already in use
    pub const EADDRINUSE: i32 = 98;
    /// Connection timed out
    pub const ETIMEDOUT: i32 = 110;
    /// Connection refused
    pub const ECONNREFUSED: i32 = 111;
}

/// connect(2), of any kind of socket. Each call chooses by chance.
#[inline(always)]
pub fn connect<T: Sockets>(call: &Call, tables: &T) -> Outcome {
    lead(call, tables, SocketReason::Connected)
}

/// sendmsg(2) to an address. All datagrams of a socket to one frontend go to one backend while the
/// service stays as it is: a protocol above may count on that.
#[inline(always)]
pub fn sendmsg<T: Sockets>(call: &Call, tables: &T) -> Outcome {
    lead(call, tables, SocketReason::Sent)
}

/// recvmsg(2) that tells the sender: the frontend in place of its backend.
#[inline(always)]
pub fn recvmsg<T: Sockets>(call: &Call, tables: &T) -> Outcome {
    name(call, tables, SocketReason::Received)
}

/// getpeername(2): the frontend in place of its backend.
#[inline(always)]
pub fn getpeername<T: Sockets>(call: &Call, tables: &T) -> Outcome {
    name(call, tables, SocketReason::Named)
}

/// bind(2): not to a node port of this host, whose clients would reach the socket by chance.
#[inline(always)]
pub fn bind<T: Sockets>(call: &Call, tables: &T) -> Outcome {
    if is_node_port(call, tables) {
        tables.count_call(SocketReason::BindRefused);
        return Outcome::Refused(errno::EADDRINUSE);
    }
    Outcome::Unchanged
}

/// The socket's end.
#[inline(always)]
pub fn release<T: Sockets>(call: &Call, tables: &T) {
    if call.port != 0 && is_served(call.protocol) {
        tables.forget_named(&peer(call));
    }
}

#[inline(always)]
fn is_served(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

#[inline(always)]
fn peer(call: &Call) -> SocketKey {
    SocketKey::new(call.cookie, call.address.unmapped(), call.port, call.protocol)
}

#[inline(always)]
fn name<T: Sockets>(call: &Call, tables: &T, reason: SocketReason) -> Outcome {
    if !is_served(call.protocol) {
        return Outcome::Unchanged;
    }
    let Some(frontend) = tables.named(&peer(call)) else { return Outcome::Unchanged };
    tables.count_call(reason);
    answer(call, frontend.address(), frontend.port())
}

/// The peer in the form that the call had.
#[inline(always)]
fn answer(call: &Call, address: Address, port: u16) -> Outcome {
    let address = if call.address.is_v6() { address.mapped() } else { address };
    Outcome::Peer(address, port)
}

#[inline(always)]
fn lead<T: Sockets>(call: &Call, tables: &T, reason: SocketReason) -> Outcome {
    // The daemon's questions name a frontend, and are for one backend alone.
    if !is_served(call.protocol) || probed_backend(call.mark).is_some() {
        return Outcome::Unchanged;
    }
    let (Some(settings), Some(own)) = (tables.settings(), tables.socket_settings()) else {
        return Outcome::Unchanged;
    };
    if own.host_only() && call.netns != own.netns() {
        return Outcome::Unchanged;
    }
    let named = call.address.unmapped();
    let Some(address) = looked_up(&named, call, own) else { return Outcome::Unchanged };
    let key = FrontendKey::new(address, call.port, call.protocol);
    let Some((scope, service)) = find(tables, settings, &key) else { return Outcome::Unchanged };
    if service.current().size() == 0 {
        return refuse(tables, service, own);
    }
    let id = choose(call, tables, settings, service, &key.with_scope(scope), reason);
    let backend = tables.backend(id).filter(|one| one.address().is_v6() == named.is_v6());
    let Some((backend, mode)) = backend.and_then(|one| Some((one, one.mode()?))) else {
        tables.count_call(SocketReason::Inconsistent);
        return Outcome::Unchanged;
    };
    if matches!(mode, Mode::L2 | Mode::Ipip) {
        tables.count_call(SocketReason::KeepsAddress);
        return Outcome::Unchanged;
    }
    record(call, tables, backend, &SocketFrontend::new(named, call.port));
    tables.count_opened(service.stats(), id);
    tables.count_call(reason);
    answer(call, backend.address(), backend.port())
}

/// The address by which frontends are looked up: node ports on the host's own loopback addresses, and
/// on the unspecified one, which connect(2) takes for loopback, lie under the latter. Nothing where
/// there is none.
#[inline(always)]
fn looked_up(address: &Address, call: &Call, own: &SocketSettings) -> Option<Address> {
    if !address.is_loopback() && !address.is_unspecified() {
        return Some(*address);
    }
    (own.loopback() && call.netns == own.netns()).then(|| address.unspecified())
}

/// The service of a frontend: of the one for sockets alone, if there is one.
#[inline(always)]
fn find<'a, T: Sockets>(
    tables: &'a T,
    settings: &Settings,
    key: &FrontendKey,
) -> Option<(Scope, &'a Service)> {
    for scope in [Scope::Sockets, Scope::All] {
        let index = index(tables, settings, &key.with_scope(scope));
        if index != 0 {
            return tables.service(index).map(|service| (scope, service));
        }
    }
    None
}

#[inline(always)]
fn index<T: Sockets>(tables: &T, settings: &Settings, key: &FrontendKey) -> u32 {
    let [first, second] = key.buckets(settings.frontend_seed(), settings.buckets());
    let found = tables.bucket(first).map_or(0, |bucket| bucket.find(key));
    if found != 0 {
        return found;
    }
    tables.bucket(second).map_or(0, |bucket| bucket.find(key))
}

/// No backend at all: the application is to know. None that the policy allows: what kube-proxy drops
/// would end with this error, too, but much later.
#[inline(always)]
fn refuse<T: Sockets>(tables: &T, service: &Service, own: &SocketSettings) -> Outcome {
    if service.reject() {
        tables.count_call(SocketReason::NoBackend);
        return Outcome::Refused(errno::ECONNREFUSED);
    }
    tables.count_call(SocketReason::Excluded);
    Outcome::Refused(if own.refuses_excluded() { errno::ECONNREFUSED } else { errno::ETIMEDOUT })
}

/// The backend's id; [`NOBODY`] where the tables are inconsistent.
#[inline(always)]
fn choose<T: Sockets>(
    call: &Call,
    tables: &T,
    settings: &Settings,
    service: &Service,
    key: &FrontendKey,
    reason: SocketReason,
) -> u32 {
    let flow = |cookie| {
        let source = Address::of_cookie(cookie);
        let flow = FlowKey::new(source, key.address(), (0, key.port()), key.protocol());
        flow.with_scope(key.scope())
    };
    if service.affinity() != 0 {
        return stick(tables, settings, service, &flow(call.netns));
    }
    let hash = if reason == SocketReason::Sent {
        flow(call.cookie).hash(settings.flow_key())
    } else {
        tables.random()
    };
    at(tables, service, hash)
}

/// The backend that the current table has for a hash.
#[inline(always)]
fn at<T: Sockets>(tables: &T, service: &Service, hash: u32) -> u32 {
    let Ok(slot) = slot(tables, service.current(), hash) else { return NOBODY };
    named(tables, service.current(), slot).unwrap_or(NOBODY)
}

/// Session affinity: the network namespace is the client. It keeps its backend until it was silent for
/// the service's time, or the backend takes no new flows.
#[inline(always)]
fn stick<T: Sockets>(tables: &T, settings: &Settings, service: &Service, client: &FlowKey) -> u32 {
    let now = tables.clock();
    let lifetime = u64::from(service.affinity()) * 1_000_000_000;
    let mut id = NOBODY;
    if let Some(record) = tables.client(client)
        && now.saturating_sub(record.seen()) <= lifetime
        && tables
            .backend(record.backend())
            .is_some_and(|backend| backend.generation() == record.generation() && backend.serving())
        && !drains(tables, service, record.backend())
    {
        if now.saturating_sub(record.seen()) < REFRESH {
            return record.backend();
        }
        id = record.backend();
    }
    if id == NOBODY {
        id = at(tables, service, client.client().hash(settings.flow_key()));
    }
    let Some(backend) = tables.backend(id) else { return NOBODY };
    tables.record_client(client, id, backend.generation());
    id
}

/// Keeps what the application named, for what it asks later.
#[inline(always)]
fn record<T: Sockets>(call: &Call, tables: &T, backend: &Backend, frontend: &SocketFrontend) {
    let key = SocketKey::new(call.cookie, backend.address(), backend.port(), call.protocol);
    // A look-up costs a fifth of an update, and a socket that sends again finds its record.
    if tables.named(&key) != Some(*frontend) && !tables.record_named(&key, frontend) {
        tables.count_call(SocketReason::Unrecorded);
    }
}

/// Whether bind(2) asks for a node port of this host.
#[inline(always)]
fn is_node_port<T: Sockets>(call: &Call, tables: &T) -> bool {
    let (Some(settings), Some(own)) = (tables.settings(), tables.socket_settings()) else {
        return false;
    };
    if !own.protects() || call.netns != own.netns() || call.port == 0 {
        return false;
    }
    let address = call.address.unmapped();
    let everywhere = FrontendKey::new(address.unspecified(), call.port, call.protocol);
    let everywhere = everywhere.with_scope(Scope::Sockets);
    let mut found = index(tables, settings, &everywhere) != 0;
    // A socket on `::` has IPv4's ports as well.
    if !found && call.address.is_v6() && address.is_unspecified() {
        let v4 = FrontendKey::new(Address::v4([0; 4]), call.port, call.protocol);
        found = index(tables, settings, &v4.with_scope(Scope::Sockets)) != 0;
    }
    if !found || address.is_unspecified() || address.is_loopback() {
        return found;
    }
    find(tables, settings, &FrontendKey::new(address, call.port, call.protocol)).is_some()
}
