//! Whether somebody wants to see a packet.

use xdp_lb_abi::{
    Disposition, Reason,
    monitor::{Event, Filter, Headers},
};

use crate::parse::Facts;

/// The outermost headers, as filters compare them.
#[inline(always)]
pub fn headers(facts: &Facts) -> Headers {
    let (from, to) = facts.ports.0;
    Headers {
        source: facts.source.raw(),
        destination: facts.destination.raw(),
        from,
        to,
        protocol: u16::from(facts.protocol.0) + 1,
        reserved: 0,
    }
}

/// Whether a packet is wanted that went this way. `lost` says that nobody gets it, `draw` is a random
/// number.
#[inline(always)]
pub fn wants(filter: &Filter, headers: &Headers, event: &Event, lost: bool, draw: u32) -> bool {
    let is = |wanted: u32, is: u32| wanted == 0 || wanted == is;
    let host = || filter.host == headers.source || filter.host == headers.destination;
    filter.has(Filter::WATCHES)
        && (filter.has(Filter::ALL) || is_ours(event))
        && (!filter.has(Filter::LOST) || lost)
        && is(filter.frontend, event.frontend)
        && is(filter.backend, event.backend)
        && is(filter.reason.into(), event.reason.into())
        && is(filter.protocol.into(), headers.protocol.into())
        && (filter.port == 0 || filter.port == headers.from || filter.port == headers.to)
        && (!filter.has(Filter::HOST) || host())
        && draw <= filter.sample
}

/// Whether the program had to do with a packet: it was a frontend's, or rewritten, or not let through.
#[inline(always)]
fn is_ours(event: &Event) -> bool {
    event.frontend | event.backend != 0
        || event.rewritten != 0
        || event.reason != 0 && !is_passed(event.reason)
}

/// Whether the number, and 1, is of a reason to hand a packet to the kernel as it came.
#[inline(always)]
const fn is_passed(reason: u16) -> bool {
    PASSED >> (reason as u32 - 1) & 1 != 0
}

/// Bits of those reasons.
const PASSED: u64 = {
    let (mut bits, mut index) = (0, 0);
    while index < Reason::COUNT {
        if matches!(Reason::ALL[index].disposition(), Disposition::Pass) {
            bits |= 1 << index;
        }
        index += 1;
    }
    bits
};
const _: () = assert!(Reason::COUNT <= 64);

#[cfg(test)]
mod tests {
    use xdp_lb_abi::Address;

    use super::*;

    const ANY: Filter = Filter {
        host: [0; 3],
        frontend: 0,
        backend: 0,
        sample: u32::MAX,
        flags: Filter::WATCHES,
        port: 0,
        protocol: 0,
        reason: 0,
        reserved: 0,
    };

    fn packet() -> Headers {
        Headers {
            source: Address::v4([198, 51, 100, 7]).raw(),
            destination: Address::v4([203, 0, 113, 10]).raw(),
            from: 40_000,
            to: 80,
            protocol: 6 + 1,
            reserved: 0,
        }
    }

    fn forwarded() -> Event {
        Event { frontend: 3, backend: 9, ..Event::default() }
    }

    fn shows(filter: Filter, event: Event) -> bool {
        wants(&filter, &packet(), &event, false, 1 << 31)
    }

    #[test]
    fn what_is_not_said_lets_everything_of_ours_through() {
        assert!(shows(ANY, forwarded()));
        assert!(!shows(Filter { flags: 0, ..ANY }, forwarded()));
    }

    #[test]
    fn what_is_not_ours_is_shown_on_demand_only() {
        let all = Filter { flags: Filter::WATCHES | Filter::ALL, ..ANY };
        for reason in Reason::ALL {
            let event = Event { reason: *reason as u16 + 1, ..Event::default() };
            let passes = reason.disposition() == Disposition::Pass;
            assert_eq!(shows(ANY, event), !passes, "{reason:?}");
            assert!(shows(all, event), "{reason:?}");
        }
        assert!(!shows(ANY, Event::default()));
        assert!(shows(ANY, Event { rewritten: 1, ..Event::default() }));
    }

    #[test]
    fn each_condition_must_hold() {
        let other = Address::v4([192, 0, 2, 1]).raw();
        let host = |host| Filter { host, flags: Filter::WATCHES | Filter::HOST, ..ANY };
        let cases = [
            (host(packet().source), host(other)),
            (host(packet().destination), host(Address::v6([0; 16]).raw())),
            (Filter { port: 80, ..ANY }, Filter { port: 81, ..ANY }),
            (Filter { port: 40_000, ..ANY }, Filter { port: 40_001, ..ANY }),
            (Filter { protocol: 7, ..ANY }, Filter { protocol: 18, ..ANY }),
            (Filter { frontend: 3, ..ANY }, Filter { frontend: 4, ..ANY }),
            (Filter { backend: 9, ..ANY }, Filter { backend: 3, ..ANY }),
            (Filter { sample: 1 << 31, ..ANY }, Filter { sample: (1 << 31) - 1, ..ANY }),
            (ANY, Filter { reason: 1, ..ANY }),
            (ANY, Filter { flags: Filter::WATCHES | Filter::LOST, ..ANY }),
        ];
        for (yes, no) in cases {
            assert!(shows(yes, forwarded()), "{yes:?}");
            assert!(!shows(no, forwarded()), "{no:?}");
        }
        let lost = Filter { flags: Filter::WATCHES | Filter::LOST, ..ANY };
        assert!(wants(&lost, &packet(), &forwarded(), true, 0));
    }
}
