//! Entry points on a cgroup: calls of sockets.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use xdp_lb_abi::Address;
use xdp_lb_datapath::socket::{self, Call, Outcome};

use crate::tables::Maps;

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails, with EPERM where no other error is set.
const REFUSE: i32 = 0;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $hook:ident, $family:ident, $what:ident;)*) => {$(
        $(#[$doc])*
        #[cgroup_sock_addr($hook)]
        pub(crate) fn $name(context: SockAddrContext) -> i32 {
            let call = $family::read(&context);
            let outcome = socket::$what(&call, &Maps::new(&context));
            if let Outcome::Peer(address, port) = outcome {
                $family::write(context.sock_addr, &address, port);
            }
            allow(outcome)
        }
    )*};
}

calls! {
    /// connect(2) to an IPv4 address
    xdp_lb_connect4 = connect4, v4, connect;
    /// connect(2) to an IPv6 address, also an IPv4-mapped one
    xdp_lb_connect6 = connect6, v6, connect;
    /// sendmsg(2) to an IPv4 address, also of an IPv6 socket to an IPv4-mapped one
    xdp_lb_sendmsg4 = sendmsg4, v4, sendmsg;
    /// sendmsg(2) to an IPv6 address
    xdp_lb_sendmsg6 = sendmsg6, v6, sendmsg;
}

/// The kernel takes no refusal from these.
macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident = $hook:ident, $family:ident, $what:ident;)*) => {$(
        $(#[$doc])*
        #[cgroup_sock_addr($hook)]
        pub(crate) fn $name(context: SockAddrContext) -> i32 {
            let call = $family::read(&context);
            if let Outcome::Peer(address, port) = socket::$what(&call, &Maps::new(&context)) {
                $family::write(context.sock_addr, &address, port);
            }
            ALLOW
        }
    )*};
}

answers! {
    /// recvmsg(2) of an IPv4 socket
    xdp_lb_recvmsg4 = recvmsg4, v4, recvmsg;
    /// recvmsg(2) of an IPv6 socket
    xdp_lb_recvmsg6 = recvmsg6, v6, recvmsg;
    /// getpeername(2) of an IPv4 socket
    xdp_lb_getpeername4 = getpeername4, v4, getpeername;
    /// getpeername(2) of an IPv6 socket
    xdp_lb_getpeername6 = getpeername6, v6, getpeername;
}

/// bind(2) of an IPv4 socket
#[cgroup_sock(post_bind4)]
pub(crate) fn xdp_lb_post_bind4(context: SockContext) -> i32 {
    // SAFETY: the context is the one that the kernel handed in; each field is read as a whole.
    let address = unsafe { v4_of((&raw const (*context.sock).src_ip4).read_volatile()) };
    bind(&context, address)
}

/// bind(2) of an IPv6 socket
#[cgroup_sock(post_bind6)]
pub(crate) fn xdp_lb_post_bind6(context: SockContext) -> i32 {
    // SAFETY: as above.
    let address = unsafe { v6_of((&raw const (*context.sock).src_ip6).cast()) };
    bind(&context, address)
}

#[inline(always)]
fn bind(context: &SockContext, address: Address) -> i32 {
    // SAFETY: as above. The socket's own port is in host order.
    let port = unsafe { (&raw const (*context.sock).src_port).read_volatile() } as u16;
    allow(socket::bind(&call_of(context, address, port), &Maps::new(context)))
}

/// The end of a socket
#[cgroup_sock(sock_release)]
pub(crate) fn xdp_lb_sock_release(context: SockContext) -> i32 {
    const AF_INET: u32 = 2;
    let sock: *mut bpf_sock = context.sock;
    // SAFETY: as above.
    let (family, port) = unsafe {
        ((&raw const (*sock).family).read_volatile(), (&raw const (*sock).dst_port).read_volatile())
    };
    let address = if family == AF_INET {
        // SAFETY: as above.
        unsafe { v4_of((&raw const (*sock).dst_ip4).read_volatile()) }
    } else {
        // SAFETY: as above.
        unsafe { v6_of((&raw const (*sock).dst_ip6).cast()) }
    };
    let call = call_of(&context, address, u16::from_be(port));
    socket::release(&call, &Maps::new(&context));
    ALLOW
}

/// A call of a socket without a peer's address.
#[inline(always)]
fn call_of(context: &SockContext, address: Address, port: u16) -> Call {
    // SAFETY: the helpers take the program's context; the protocol is read as a whole.
    unsafe {
        Call {
            cookie: bpf_get_socket_cookie(context.as_ptr()),
            netns: bpf_get_netns_cookie(context.as_ptr()),
            address,
            port,
            protocol: (&raw const (*context.sock).protocol).read_volatile() as u8,
            mark: 0,
        }
    }
}

/// The kernel's name for an outcome.
#[inline(always)]
fn allow(outcome: Outcome) -> i32 {
    match outcome {
        Outcome::Unchanged | Outcome::Peer(..) => ALLOW,
        Outcome::Refused(errno) => {
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_set_retval(-errno) };
            REFUSE
        }
    }
}

/// An IPv4 address as the context has it.
#[inline(always)]
const fn v4_of(word: u32) -> Address {
    Address::v4(word.to_ne_bytes())
}

/// An IPv6 address as the context has it.
///
/// # Safety
///
/// Four words of the program's context.
#[inline(always)]
unsafe fn v6_of(words: *const u32) -> Address {
    // The kernel refuses some loads that are wider than a word.
    // SAFETY: the caller's.
    let word = |index| unsafe { words.add(index).read_volatile() }.to_ne_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (word(0), word(1));
    let ([i, j, k, l], [m, n, o, p]) = (word(2), word(3));
    Address::v6([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

/// The parts of a call that both families have alike.
#[inline(always)]
fn read(context: &SockAddrContext, address: Address) -> Call {
    let call: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: the helpers take the program's context; each field is read as a whole.
    unsafe {
        Call {
            cookie: bpf_get_socket_cookie(context.as_ptr()),
            netns: bpf_get_netns_cookie(context.as_ptr()),
            address,
            port: u16::from_be((&raw const (*call).user_port).read_volatile() as u16),
            protocol: (&raw const (*call).protocol).read_volatile() as u8,
            mark: mark(call),
        }
    }
}

/// The mark of a call's socket.
#[inline(always)]
fn mark(call: *mut bpf_sock_addr) -> u32 {
    // SAFETY: the context is the one that the kernel handed in; each field is read as a whole.
    unsafe {
        let sock = (&raw const (*call).__bindgen_anon_1.sk).read_volatile();
        if sock.is_null() { 0 } else { (&raw const (*sock).mark).read_volatile() }
    }
}

#[inline(always)]
fn write_port(call: *mut bpf_sock_addr, port: u16) {
    // SAFETY: the context is the one that the kernel handed in, and the field may be written.
    unsafe { (&raw mut (*call).user_port).write_volatile(port.to_be().into()) };
}

mod v4 {
    use super::{Address, Call, SockAddrContext, bpf_sock_addr, v4_of, write_port};

    #[inline(always)]
    pub(super) fn read(context: &SockAddrContext) -> Call {
        // SAFETY: the context is the one that the kernel handed in; the field is read as a whole.
        let word = unsafe { (&raw const (*context.sock_addr).user_ip4).read_volatile() };
        super::read(context, v4_of(word))
    }

    #[inline(always)]
    pub(super) fn write(call: *mut bpf_sock_addr, address: &Address, port: u16) {
        let word = u32::from_ne_bytes(address.v4_octets());
        // SAFETY: as above, and the field may be written.
        unsafe { (&raw mut (*call).user_ip4).write_volatile(word) };
        write_port(call, port);
    }
}

mod v6 {
    use super::{Address, Call, SockAddrContext, bpf_sock_addr, v6_of, write_port};

    #[inline(always)]
    pub(super) fn read(context: &SockAddrContext) -> Call {
        // SAFETY: the context is the one that the kernel handed in.
        let address = unsafe { v6_of((&raw const (*context.sock_addr).user_ip6).cast()) };
        super::read(context, address)
    }

    #[inline(always)]
    pub(super) fn write(call: *mut bpf_sock_addr, address: &Address, port: u16) {
        let octets = address.octets();
        let (words, _) = octets.as_chunks::<4>();
        for (index, word) in words.iter().enumerate() {
            let word = u32::from_ne_bytes(*word);
            // SAFETY: the context is the one that the kernel handed in; its four words may be written.
            unsafe { (&raw mut (*call).user_ip6).cast::<u32>().add(index).write_volatile(word) };
        }
        write_port(call, port);
    }
}
