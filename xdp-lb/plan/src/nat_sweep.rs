//! Which flows of mode `snat` are over.
//!
//! A flow has a record in `NAT_FORWARD` and one in `NAT_REVERSE`, which lead to each other
//! ([`Forward::reverse_key`], [`Reverse::forward_key`]). The sweep walks both tables; for each record
//! it looks up the other half *at that moment*, not in a copy of the table, and asks here.
//!
//! Of a pair, the half in `NAT_FORWARD` is to be deleted first: while it is there, the port must not
//! have another owner.

use xdp_lb_abi::{FlowKey, Forward, Idle, Reverse};

/// What is to become of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// Its flow is over: delete the pair, this key of `NAT_FORWARD` first.
    DeletePair {
        /// Key in `NAT_FORWARD`
        forward: FlowKey,
        /// Key in `NAT_REVERSE`
        reverse: FlowKey,
    },
    /// It has no other half: delete it alone.
    DeleteHalf,
}

/// How long a half without the other stays, in nanoseconds. A flow that is being opened has one half
/// for some microseconds; such a half is never written again, so any time beyond that is enough.
pub const HALF: u64 = 10_000_000_000;

/// The fate of a record of `NAT_FORWARD`; `reverse` is what `NAT_REVERSE` has under
/// [`Forward::reverse_key`], `now` the time in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
pub fn forward_fate(key: &FlowKey, forward: &Forward, reverse: Option<&Reverse>, now: u64) -> Fate {
    let (protocol, v6) = (key.protocol(), key.is_v6());
    match reverse {
        Some(reverse) if reverse.forward_key(protocol, v6) == *key => {
            pair_fate((*key, forward), (forward.reverse_key(protocol, v6), reverse), now)
        }
        Some(_) | None => half_fate(forward.seen, now),
    }
}

/// The fate of a record of `NAT_REVERSE`; `forward` is what `NAT_FORWARD` has under
/// [`Reverse::forward_key`], `now` the time in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
pub fn reverse_fate(key: &FlowKey, reverse: &Reverse, forward: Option<&Forward>, now: u64) -> Fate {
    let (protocol, v6) = (key.protocol(), key.is_v6());
    match forward {
        Some(forward) if forward.reverse_key(protocol, v6) == *key => {
            pair_fate((reverse.forward_key(protocol, v6), forward), (*key, reverse), now)
        }
        Some(_) | None => half_fate(reverse.seen, now),
    }
}

fn pair_fate(forward: (FlowKey, &Forward), reverse: (FlowKey, &Reverse), now: u64) -> Fate {
    if Idle::is_over(forward.0.protocol(), forward.1, reverse.1, now) {
        Fate::DeletePair { forward: forward.0, reverse: reverse.0 }
    } else {
        Fate::Keep
    }
}

const fn half_fate(seen: u64, now: u64) -> Fate {
    if now.saturating_sub(seen) > HALF { Fate::DeleteHalf } else { Fate::Keep }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};
    use xdp_lb_abi::{Address, Hop, Seen};

    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const START: u64 = 1 << 50;

    fn address(v6: bool, n: u8) -> Address {
        if v6 { Address::v6([n; 16]) } else { Address::v4([10, 0, 0, n]) }
    }

    /// Both halves of a flow of client `n`, which has our port `ours`.
    fn pair(
        v6: bool,
        protocol: u8,
        n: u16,
        ours: u16,
        seen: u64,
    ) -> ((FlowKey, Forward), (FlowKey, Reverse)) {
        let [client, frontend, source, target] =
            [(1, n), (2, 80), (3, ours), (4, 8080)].map(|(host, port)| (address(v6, host), port));
        let forward = Forward::new((1, 1), source, target, seen);
        let reverse = Reverse::new(client, frontend, Hop::UNKNOWN, seen);
        let keys = (reverse.forward_key(protocol, v6), forward.reverse_key(protocol, v6));
        ((keys.0, forward), (keys.1, reverse))
    }

    #[test]
    fn a_pair_ends_when_both_directions_are_silent() {
        for v6 in [false, true] {
            let ((f_key, forward), (r_key, mut reverse)) = pair(v6, UDP, 9, 61_000, START);
            let ended = Fate::DeletePair { forward: f_key, reverse: r_key };
            for (now, fate) in [
                (0, Fate::Keep),
                (START + Idle::DATAGRAM, Fate::Keep),
                (START + Idle::DATAGRAM + 1, ended),
            ] {
                assert_eq!(forward_fate(&f_key, &forward, Some(&reverse), now), fate);
                assert_eq!(reverse_fate(&r_key, &reverse, Some(&forward), now), fate);
            }
            reverse.seen += 1;
            let now = START + Idle::DATAGRAM + 1;
            assert_eq!(forward_fate(&f_key, &forward, Some(&reverse), now), Fate::Keep);
        }
    }

    #[test]
    fn what_both_directions_did_decides_how_long() {
        let ((f_key, mut forward), (r_key, mut reverse)) = pair(false, TCP, 9, 61_000, START);
        let mut ends_after = |f_state, r_state, limit| {
            (forward.state, reverse.state) = (f_state, r_state);
            let at = |now| reverse_fate(&r_key, &reverse, Some(&forward), now);
            assert_eq!(at(START + limit), Fate::Keep);
            let ended = Fate::DeletePair { forward: f_key, reverse: r_key };
            assert_eq!(at(START + limit + 1), ended);
        };
        ends_after(0, Seen::DATA, Idle::TRANSITORY);
        ends_after(Seen::DATA, Seen::DATA, Idle::ESTABLISHED);
        ends_after(Seen::DATA | Seen::FIN, Seen::DATA | Seen::FIN, Idle::TRANSITORY);
    }

    #[test]
    fn a_half_without_the_other_goes_alone() {
        let ((f_key, forward), (r_key, reverse)) = pair(true, TCP, 9, 61_000, START);
        // Halves of other flows: our port has another owner, the client has another port of ours.
        let (_, (_, stranger)) = pair(true, TCP, 10, 61_000, START);
        let ((_, elsewhere), _) = pair(true, TCP, 9, 61_001, START);
        for (now, fate) in [(START + HALF, Fate::Keep), (START + HALF + 1, Fate::DeleteHalf)] {
            assert_eq!(forward_fate(&f_key, &forward, None, now), fate);
            assert_eq!(forward_fate(&f_key, &forward, Some(&stranger), now), fate);
            assert_eq!(reverse_fate(&r_key, &reverse, None, now), fate);
            assert_eq!(reverse_fate(&r_key, &reverse, Some(&elsewhere), now), fate);
        }
    }

    proptest! {
        /// After a sweep with as much time as there is, only pairs are left, none of which is over.
        #[test]
        fn a_sweep_leaves_whole_pairs(
            flows in vec((0..20_u16, 0..20_u16, 0..1000_u64, 0..3_u8), 0..40),
            now in 0..1000_u64,
        ) {
            let minute = 60_000_000_000;
            let (mut forwards, mut reverses) = (BTreeMap::new(), BTreeMap::new());
            for (client, ours, seen, halves) in flows {
                let (forward, reverse) = pair(false, UDP, client, ours, seen * minute / 10);
                if halves != 1 {
                    forwards.insert(forward.0, forward.1);
                }
                if halves != 2 {
                    reverses.insert(reverse.0, reverse.1);
                }
            }
            let now = now * minute;
            let delete = |forwards: &mut BTreeMap<_, _>, reverses: &mut BTreeMap<_, _>, fate, half: &dyn Fn(&mut BTreeMap<_, _>, &mut BTreeMap<_, _>)| match fate {
                Fate::Keep => {}
                Fate::DeletePair { forward, reverse } => {
                    forwards.remove(&forward);
                    reverses.remove(&reverse);
                }
                Fate::DeleteHalf => half(forwards, reverses),
            };
            for (key, forward) in forwards.clone() {
                let other: Option<&Reverse> = reverses.get(&forward.reverse_key(UDP, false));
                let fate = forward_fate(&key, &forward, other, now);
                delete(&mut forwards, &mut reverses, fate, &|forwards, _| { forwards.remove(&key); });
            }
            for (key, reverse) in reverses.clone() {
                if !reverses.contains_key(&key) {
                    continue;
                }
                let other = forwards.get(&reverse.forward_key(UDP, false));
                let fate = reverse_fate(&key, &reverse, other, now);
                delete(&mut forwards, &mut reverses, fate, &|_, reverses| { reverses.remove(&key); });
            }
            let recent = |seen: u64, limit| now.saturating_sub(seen) <= limit;
            for (key, forward) in &forwards {
                let other = reverses.get(&forward.reverse_key(UDP, false));
                match other.filter(|reverse| reverse.forward_key(UDP, false) == *key) {
                    Some(reverse) => {
                        prop_assert!(recent(forward.seen.max(reverse.seen), Idle::DATAGRAM));
                    }
                    None => prop_assert!(recent(forward.seen, HALF)),
                }
            }
            for (key, reverse) in &reverses {
                let other = forwards.get(&reverse.forward_key(UDP, false));
                if other.is_none_or(|forward| forward.reverse_key(UDP, false) != *key) {
                    prop_assert!(recent(reverse.seen, HALF));
                }
            }
        }
    }
}
