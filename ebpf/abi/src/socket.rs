//! Sockets whose calls were led to a backend, and what the programs on the cgroup count.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// A socket, and a backend that it speaks to: key of `SOCKETS`, 32 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    PartialEq,
    Ord,
    PartialOrd,
    Hash,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
)]
#[repr(C)]
pub struct SocketKey {
    cookie: u64,
    backend: [u64; 2],
    rest: u32,
    zero: u32,
}
const _: () = assert!(size_of::<SocketKey>() == 32);

impl SocketKey {
    /// The key of a socket by its cookie (`SO_COOKIE`), with its peer as the kernel knows it; `port` in
    /// host order.
    #[inline(always)]
    pub const fn new(cookie: u64, backend: Address, port: u16, protocol: u8) -> Self {
        let family = backend.family() as u32;
        let rest = (port as u32) << 16 | (protocol as u32) << 8 | family;
        Self { cookie, backend: backend.words(), rest, zero: 0 }
    }

    /// The socket's cookie.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The peer's address.
    pub const fn backend(&self) -> Address {
        Address::from_words(self.backend, self.rest as u8 == 6)
    }

    /// The peer's port, in host order.
    pub const fn port(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        (self.rest >> 8) as u8
    }
}

/// The frontend that an application named: value of `SOCKETS`, 24 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SocketFrontend {
    address: [u64; 2],
    family: u32,
    port: u32,
}
const _: () = assert!(size_of::<SocketFrontend>() == 24);

impl SocketFrontend {
    /// A frontend; `port` in host order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address: address.words(), family: address.family() as u32, port: port as u32 }
    }

    /// The address that the application named.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_words(self.address, self.family == 6)
    }

    /// The port that it named, in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port as u16
    }
}

/// What holds for sockets, 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SocketSettings {
    netns: u64,
    flags: u32,
    zero: u32,
}
const _: () = assert!(size_of::<SocketSettings>() == 16);

impl SocketSettings {
    const LOOPBACK: u32 = 1;
    const PROTECT: u32 = 2;
    const HOST_ONLY: u32 = 4;
    const REFUSE: u32 = 8;

    /// Settings with all switches off; `netns` is the cookie of the host's network namespace
    /// (`SO_NETNS_COOKIE`), which is never 0.
    pub const fn new(netns: u64) -> Self {
        Self { netns, flags: 0, zero: 0 }
    }

    const fn with(mut self, flag: u32, on: bool) -> Self {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
        self
    }

    /// The same settings; node ports are served on the host's loopback addresses, too.
    #[must_use]
    pub const fn with_loopback(self, on: bool) -> Self {
        self.with(Self::LOOPBACK, on)
    }

    /// The same settings; the host's sockets may not be bound to node ports.
    #[must_use]
    pub const fn with_bind_protection(self, on: bool) -> Self {
        self.with(Self::PROTECT, on)
    }

    /// The same settings; only sockets of the host's own network namespace are served.
    #[must_use]
    pub const fn with_host_only(self, on: bool) -> Self {
        self.with(Self::HOST_ONLY, on)
    }

    /// The same settings; where only the policy leaves no backend, calls are refused instead of timed
    /// out.
    #[must_use]
    pub const fn with_refuse_excluded(self, on: bool) -> Self {
        self.with(Self::REFUSE, on)
    }

    /// Cookie of the host's network namespace; 0 before anybody wrote the settings.
    #[inline(always)]
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// Whether node ports are served on loopback addresses.
    #[inline(always)]
    pub const fn loopback(&self) -> bool {
        self.flags & Self::LOOPBACK != 0
    }

    /// Whether binding to node ports is refused.
    #[inline(always)]
    pub const fn protects(&self) -> bool {
        self.flags & Self::PROTECT != 0
    }

    /// Whether only the host's own sockets are served.
    #[inline(always)]
    pub const fn host_only(&self) -> bool {
        self.flags & Self::HOST_ONLY != 0
    }

    /// Whether calls are refused where the policy leaves no backend.
    #[inline(always)]
    pub const fn refuses_excluded(&self) -> bool {
        self.flags & Self::REFUSE != 0
    }
}

macro_rules! socket_reasons {
    ($($(#[$doc:meta])* $variant:ident = $index:literal, $name:literal;)*) => {
        /// What became of a socket's call: the index of its counter in `SOCKET_STATS`. Calls that are
        /// about no service are not counted.
        #[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
        #[repr(u8)]
        pub enum SocketReason {
            $($(#[$doc])* $variant = $index,)*
        }

        impl SocketReason {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics, the API and the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

socket_reasons! {
    /// A connect(2) that was led to a backend.
    Connected = 0, "connected";
    /// A datagram of an unconnected socket that was led to a backend.
    Sent = 1, "sent";
    /// A received datagram, whose sender is shown as the frontend.
    Received = 2, "received";
    /// A getpeername(2) that was answered with the frontend.
    Named = 3, "peer_named";
    /// The service has no backend: ECONNREFUSED.
    NoBackend = 4, "no_backend";
    /// The service has backends, but the policy allows none: ETIMEDOUT, or ECONNREFUSED.
    Excluded = 5, "no_allowed_backend";
    /// A bind(2) to a node port: EADDRINUSE.
    BindRefused = 6, "bind_refused";
    /// The service's backends have its address (modes `l2` and `ipip`): left to the packets.
    KeepsAddress = 7, "mode_keeps_address";
    /// Led to a backend, but not recorded, for want of memory: the application sees the backend's
    /// address.
    Unrecorded = 8, "unrecorded";
    /// A table names something that does not exist; never with a sound control plane.
    Inconsistent = 9, "inconsistent_tables";
}

impl SocketReason {
    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_what_it_was_made_of() {
        for address in [Address::v4([10, 0, 0, 1]), Address::v6([7; 16])] {
            let key = SocketKey::new(9, address, 53, 17);
            let parts = (key.cookie(), key.backend(), key.port(), key.protocol());
            assert_eq!(parts, (9, address, 53, 17));
            let frontend = SocketFrontend::new(address, 65535);
            assert_eq!((frontend.address(), frontend.port()), (address, 65535));
        }
    }

    #[test]
    fn switches_do_not_touch_each_other() {
        let all = SocketSettings::new(5)
            .with_loopback(true)
            .with_bind_protection(true)
            .with_host_only(true)
            .with_refuse_excluded(true);
        assert!(all.loopback() && all.protects() && all.host_only() && all.refuses_excluded());
        let one = all.with_loopback(false);
        assert!(!one.loopback() && one.protects() && one.netns() == 5);
    }

    #[test]
    fn names_are_unique_and_counters_are_dense() {
        let mut names: Vec<_> = SocketReason::ALL.iter().map(|one| one.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SocketReason::COUNT);
        for (index, reason) in SocketReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
