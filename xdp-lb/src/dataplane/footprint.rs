//! How much memory the tables take.

use xdp_lb_abi::{
    Address, Answer, Backend, Bucket, Flow, FlowKey, Forward, Fragment, Reverse, Service,
    SocketFrontend, SocketKey, Traffic, Translation, names,
};

use super::sizes::Sizes;
use crate::config::Limits;

/// What the kernel takes for an entry of a hash table beside key and value: its head (48 bytes) and its
/// bucket (16), of which there are up to twice as many as entries.
const ENTRY: u64 = 48 + 2 * 16;

/// Bytes of kernel memory that the tables take with these limits, to within some percent: all of it is
/// allocated when the data path is made.
pub(crate) fn footprint(limits: &Limits, cpus: usize) -> u64 {
    let of = |map: &str| -> u64 {
        let rounded = |size: usize| size.next_multiple_of(8) as u64;
        let hash = |value: usize| rounded(size_of::<FlowKey>()) + rounded(value) + ENTRY;
        match map {
            names::FRONTENDS => rounded(size_of::<Bucket>()),
            names::SERVICES => rounded(size_of::<Service>()),
            names::ARENA => 8,
            names::BACKENDS => rounded(size_of::<Backend>()),
            names::ADDRESSES => rounded(size_of::<Address>()) + 8 + ENTRY,
            names::FLOWS | names::CLIENTS => hash(size_of::<Flow>()),
            names::ANSWERS | names::ANSWER_FRAGMENTS => hash(size_of::<Answer>()),
            names::TRANSLATIONS => hash(size_of::<Translation>()),
            names::FRAGMENTS => hash(size_of::<Fragment>()),
            names::NAT_FORWARD => hash(size_of::<Forward>()),
            names::NAT_REVERSE => hash(size_of::<Reverse>()),
            names::SOCKETS => (size_of::<SocketKey>() + size_of::<SocketFrontend>()) as u64 + ENTRY,
            names::FRONTEND_STATS | names::BACKEND_STATS => {
                rounded(size_of::<Traffic>()) * cpus as u64
            }
            _ => 0,
        }
    };
    Sizes::of(limits).iter().map(|(map, entries)| u64::from(entries) * of(map)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_whose_size_is_configured_counts() {
        let small = Limits {
            frontends: 1,
            backends: 1,
            slots: 1,
            flows: 1,
            clients: 1,
            answers: 1,
            nat_flows: 1,
            sockets: 1,
        };
        let base = footprint(&small, 1);
        let more = |change: fn(&mut Limits)| {
            let mut limits = small;
            change(&mut limits);
            footprint(&limits, 1) - base
        };
        assert!(more(|one| one.backends = 1001) >= 1000 * (72 + 24));
        assert!(more(|one| one.slots = 4001) >= 8000);
        for change in [
            |one: &mut Limits| one.flows = 1001,
            |one: &mut Limits| one.clients = 1001,
            |one: &mut Limits| one.answers = 1001,
            |one: &mut Limits| one.nat_flows = 1001,
            |one: &mut Limits| one.sockets = 1001,
            |one: &mut Limits| one.frontends = 100_001,
        ] {
            assert!(more(change) > 100_000, "a thousand flows of more than a hundred bytes");
        }
        let default = footprint(&Limits::default(), 4) >> 20;
        assert!((100..400).contains(&default), "{default} MiB");
    }
}
