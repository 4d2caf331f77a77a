//! Lets user space hand these types to aya's maps.

#![expect(unsafe_code, reason = "`Pod` is aya's promise that any bytes of that size are a value")]

use aya::Pod;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    Address, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment, Limiter, PeerKey,
    Reverse, Service, Settings, SocketFrontend, SocketKey, SocketSettings, SourceKey, Traffic,
    Translation,
    bench::Template,
    monitor::{Filter, Watch},
};

/// What aya asks of a `Pod`, in zerocopy's words: it refuses padding and invalid bytes.
const fn plain<T: FromBytes + Immutable + IntoBytes + Copy + 'static>() {}

macro_rules! pods {
    ($($type:ty),* $(,)?) => {$(
        const _: () = plain::<$type>();
        // SAFETY: `plain` holds for the type, so it has neither padding nor invalid byte patterns.
        unsafe impl Pod for $type {}
    )*};
}

pods!(
    Address,
    Answer,
    Backend,
    Bucket,
    Device,
    Filter,
    Flow,
    FlowKey,
    Forward,
    Fragment,
    Limiter,
    PeerKey,
    Reverse,
    Service,
    Settings,
    SocketFrontend,
    SocketKey,
    SocketSettings,
    SourceKey,
    Template,
    Traffic,
    Translation,
    Watch
);
