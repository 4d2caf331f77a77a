//! How many requests a client may send.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Requests a second that one address may send in the long run.
const RATE: f64 = 100.0;
/// Requests that it may send at once.
const BURST: f64 = 400.0;
/// Addresses that are remembered.
const ADDRESSES: usize = 4096;

/// A bucket of tokens for each address: one a request, refilled at a constant rate.
#[derive(Clone, Default)]
pub(super) struct Rates(Arc<Mutex<HashMap<IpAddr, (f64, Instant)>>>);

impl Rates {
    /// Whether an address may send another request now.
    pub(super) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |(level, at): (f64, Instant)| {
            (level + now.saturating_duration_since(at).as_secs_f64() * RATE).min(BURST)
        };
        if buckets.len() >= ADDRESSES && !buckets.contains_key(&address) {
            // A full bucket says no more than none.
            buckets.retain(|_, bucket| filled(*bucket) < BURST);
            if buckets.len() >= ADDRESSES {
                return false;
            }
        }
        let level = buckets.get(&address).map_or(BURST, |bucket| filled(*bucket));
        let admitted = level >= 1.0;
        buckets.insert(address, (if admitted { level - 1.0 } else { level }, now));
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_may_burst_and_then_keep_to_the_rate() {
        let rates = Rates::default();
        let start = Instant::now();
        let address = IpAddr::from([192, 0, 2, 1]);
        let admitted = |at| (0..1000).filter(|_| rates.admit(address, at)).count();
        assert_eq!(admitted(start), 400);
        assert_eq!(admitted(start), 0);
        assert_eq!(admitted(start + Duration::from_secs(1)), 100);
        assert!(rates.admit([192, 0, 2, 2].into(), start), "another address has its own bucket");
    }

    #[test]
    fn many_addresses_take_bounded_memory() {
        let rates = Rates::default();
        let start = Instant::now();
        let many =
            |at| (0..10_000_u32).filter(|n| rates.admit(IpAddr::from(n.to_be_bytes()), at)).count();
        assert_eq!(many(start), ADDRESSES);
        assert!(rates.admit([255, 0, 0, 1].into(), start + Duration::from_secs(10)));
    }
}
