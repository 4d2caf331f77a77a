//! Numbers for the sets of networks that may use a service.
//!
//! A set's number is computed from the set, so that the next run of the daemon gives it the same one
//! and no packet meets a number whose networks are another set's.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::model::Service;

/// The sets of all services, each sorted and without doubles, with their numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sources(BTreeMap<Vec<IpNet>, u32>);

impl Sources {
    /// The sets of these services.
    pub fn of(services: &[Service]) -> Self {
        let sets: BTreeSet<Vec<IpNet>> = services.iter().map(set).collect();
        let mut numbers = BTreeMap::new();
        let mut taken = BTreeSet::from([0]);
        for set in sets.into_iter().filter(|set| !set.is_empty()) {
            let mut number = number(&set);
            while !taken.insert(number) {
                number = number.wrapping_add(1);
            }
            numbers.insert(set, number);
        }
        Self(numbers)
    }

    /// The number of a service's set for one family; 0 where all clients of that family may use it.
    pub(crate) fn number(&self, service: &Service, v6: bool) -> u32 {
        let filtered = service.sources.iter().any(|net| net.addr().is_ipv6() == v6);
        if filtered { self.0.get(&set(service)).copied().unwrap_or(0) } else { 0 }
    }

    /// Every network with the number of its set.
    pub fn networks(&self) -> impl Iterator<Item = (u32, IpNet)> {
        self.0.iter().flat_map(|(set, number)| set.iter().map(|net| (*number, *net)))
    }
}

fn set(service: &Service) -> Vec<IpNet> {
    let mut set: Vec<IpNet> = service.sources.iter().map(IpNet::trunc).collect();
    set.sort_unstable();
    set.dedup();
    set
}

/// FNV-1a (Fowler, Noll, Vo) over the networks; not 0.
fn number(set: &[IpNet]) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for net in set {
        for byte in net.to_string().bytes().chain([b' ']) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(sources: &[&str]) -> Service {
        let sources = sources.iter().map(|net| net.parse().unwrap()).collect();
        Service { sources, ..Service::default() }
    }

    #[test]
    fn the_same_set_has_one_number_in_any_order_and_in_any_company() {
        let (a, b) = (["10.0.0.0/8", "2001:db8::/32"], ["2001:db8::/32", "10.1.2.3/8"]);
        let alone = Sources::of(&[service(&a)]);
        let both = Sources::of(&[service(&["192.0.2.0/24"]), service(&b)]);
        assert_ne!(alone.number(&service(&a), false), 0);
        assert_eq!(alone.number(&service(&a), false), both.number(&service(&b), true));
        assert_eq!(both.networks().count(), 3);
    }

    #[test]
    fn a_family_without_a_network_is_not_filtered() {
        let one = service(&["10.0.0.0/8"]);
        let sources = Sources::of(std::slice::from_ref(&one));
        assert_ne!(sources.number(&one, false), 0);
        assert_eq!(sources.number(&one, true), 0);
        assert_eq!(sources.number(&service(&[]), false), 0);
    }
}
