//! Services to plan for, few and small enough that they often meet.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    time::Duration,
};

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};
use xdp_lb_plan::model::{Backend, Frontend, Mode, Protocol, Service};

/// How many services there are at most.
pub(crate) const SERVICES: usize = 4;

/// A service, or that there is none.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    exists: bool,
    frontends: BTreeSet<usize>,
    mode: Mode,
    table_size: Option<u32>,
    backends: Vec<Backend>,
}

/// One change of what is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Service by number, and what becomes of it
    pub(crate) change: (usize, Draft),
    /// Time since the last step
    pub(crate) wait: Duration,
    /// Which way leads to the backends
    pub(crate) way: u8,
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn address(number: u8) -> IpAddr {
    if number.is_multiple_of(3) {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, number.into()).into()
    } else {
        Ipv4Addr::new(10, 1, 0, number).into()
    }
}

/// The frontends that services share among them; some have equal ports and protocols.
pub(crate) fn frontend(number: usize) -> Frontend {
    let v4 = |last| Ipv4Addr::new(192, 0, 2, last).into();
    let (address, number, protocol) = [
        (v4(1), 80, Protocol::Tcp),
        (v4(1), 80, Protocol::Udp),
        (v4(1), 443, Protocol::Tcp),
        (v4(2), 80, Protocol::Tcp),
        (v4(3), 53, Protocol::Sctp),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 80, Protocol::Tcp),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into(), 443, Protocol::Tcp),
    ][number];
    Frontend { address, port: port(number), protocol }
}

fn backend() -> impl Strategy<Value = Backend> {
    let weight = select(vec![0, 1, 1, 1, 1, 2, 100]);
    (0_u8..7, option::weighted(0.2, Just(port(8080))), weight).prop_map(|(number, port, weight)| {
        Backend { port, weight, ..Backend::new(address(number)) }
    })
}

fn backends() -> impl Strategy<Value = Vec<Backend>> {
    let drained = vec(backend(), 0..3).prop_map(|mut backends| {
        backends.iter_mut().for_each(|backend| backend.weight = 0);
        backends
    });
    prop_oneof![6 => vec(backend(), 0..6), 1 => drained]
}

fn draft() -> impl Strategy<Value = Draft> {
    let sizes = select(vec![None, None, None, Some(1), Some(251), Some(1021)]);
    let mode = select(vec![Mode::L2, Mode::L2, Mode::Ipip]);
    (prop::bool::weighted(0.85), btree_set(0_usize..7, 1..4), mode, sizes, backends()).prop_map(
        |(exists, frontends, mode, table_size, backends)| Draft {
            exists,
            frontends,
            mode,
            table_size,
            backends,
        },
    )
}

/// What users change, one service at a time.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let wait = select(vec![0, 0, 4, 9, 10, 30]).prop_map(Duration::from_secs);
    vec(((0..SERVICES, draft()), wait, 1_u8..3), 1..length).prop_map(|steps| {
        steps.into_iter().map(|(change, wait, way)| Step { change, wait, way }).collect()
    })
}

/// The services after some steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted([Option<Draft>; SERVICES]);

impl Wanted {
    pub(crate) fn change(&mut self, (number, draft): &(usize, Draft)) {
        self.0[*number] = draft.exists.then(|| draft.clone());
    }

    /// A frontend that two drafts name is the first one's; a backend that one names twice counts
    /// once.
    pub(crate) fn services(&self) -> Vec<Service> {
        let mut taken = BTreeSet::new();
        let mut services = Vec::new();
        for (number, draft) in self.0.iter().enumerate() {
            let Some(draft) = draft else { continue };
            let own: Vec<usize> =
                draft.frontends.iter().copied().filter(|one| taken.insert(*one)).collect();
            if own.is_empty() {
                continue;
            }
            services.push(Service {
                name: format!("service-{number}"),
                frontends: own.into_iter().map(frontend).collect(),
                mode: draft.mode,
                table_size: draft.table_size,
                backends: distinct(&draft.backends),
                ..Service::default()
            });
        }
        services
    }
}

/// Each address once.
fn distinct(backends: &[Backend]) -> Vec<Backend> {
    let mut seen = BTreeSet::new();
    backends.iter().filter(|backend| seen.insert(backend.address)).copied().collect()
}
