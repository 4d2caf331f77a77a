//! Packets as they pass: what a watcher asks for as the kernel's filter, and what the kernel tells as
//! people read it.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use xdp_lb_abi::{
    Address, Reason,
    monitor::{Event, Filter, Place},
};
use xdp_lb_api::{
    ApiError,
    monitor::{CAPTURE, Direction, MonitorRequest, PacketView},
    trace::Outcome,
    view::State,
};

use crate::{
    lab::{Detail, describe_with},
    trace::{hexadecimal, outcome_of, verdict_of},
};

/// `TC_ACT_SHOT`
const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`
const BACK_IN: u32 = 7;

/// Names of what events name by number, which is 1 more than the kernel's index.
#[derive(Default)]
pub struct Known {
    frontends: HashMap<u32, String>,
    backends: HashMap<u32, String>,
    devices: HashMap<u32, String>,
}

impl Known {
    /// As the data path has them now.
    pub fn of(state: &State) -> Self {
        let frontends = state.frontends.values();
        let name = |one: &xdp_lb_api::view::FrontendView| Some((one.id?, one.frontend.clone()));
        let of = frontends.clone().flat_map(|one| &one.backends);
        let devices = state.devices.iter().filter_map(|one| Some((one.ifindex?, one.name.clone())));
        Self {
            frontends: frontends.filter_map(name).collect(),
            backends: of.filter_map(|one| Some((one.id? + 1, one.backend.clone()))).collect(),
            devices: devices.collect(),
        }
    }

    /// What people read of an event.
    pub fn view(&self, event: &Event, bytes: &[u8], time: SystemTime) -> PacketView {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let out = event.place >= Place::Out as u8;
        // Zeros stand for what was not captured.
        let mut whole = bytes.to_vec();
        whole.resize((event.length as usize).max(bytes.len()), 0);
        let named = |names: &HashMap<u32, String>, id: u32| {
            (id != 0).then(|| names.get(&id).cloned().unwrap_or_else(|| format!("#{}", id - 1)))
        };
        let device = self.devices.get(&event.ifindex).cloned();
        PacketView {
            seconds: since.as_secs(),
            nanoseconds: since.subsec_nanos(),
            device: device.unwrap_or_else(|| format!("#{}", event.ifindex)),
            direction: if out { Direction::Out } else { Direction::In },
            after: event.place == Place::InAfter as u8 || event.place == Place::OutAfter as u8,
            length: event.length,
            frame: hexadecimal(bytes),
            headers: describe_with(&whole, Detail { macs: false, ttl: false }),
            outcome: outcome(event, out),
            verdict: if out { sent_verdict(event.action) } else { verdict_of(event.action) }.into(),
            reason: event.reason().map(|reason| reason.as_str().to_owned()),
            frontend: named(&self.frontends, event.frontend),
            backend: named(&self.backends, event.backend),
        }
    }
}

fn outcome(event: &Event, out: bool) -> Outcome {
    match (out, event.action) {
        (false, action) => outcome_of(action, event.reason()),
        (true, SHOT) => Outcome::Dropped,
        (true, _) if event.rewritten != 0 => Outcome::Forwarded,
        (true, _) => Outcome::Passed,
    }
}

/// The name of what the program on the way out returns.
const fn sent_verdict(action: u32) -> &'static str {
    match action {
        u32::MAX => "TC_ACT_UNSPEC",
        0 => "TC_ACT_OK",
        SHOT => "TC_ACT_SHOT",
        BACK_IN => "TC_ACT_REDIRECT",
        _ => "unknown",
    }
}

/// What a watcher asks for, made ready.
pub struct Wanted {
    request: MonitorRequest,
    /// But for frontend and backend, whose numbers may change
    filter: Filter,
}

impl Wanted {
    /// Makes a request ready.
    ///
    /// # Errors
    ///
    /// Where it names a protocol or a reason that there is not, or a frontend or backend that the data
    /// path does not have now.
    pub fn new(request: MonitorRequest, known: &Known) -> Result<Self, ApiError> {
        let mut filter = Filter { flags: Filter::WATCHES, ..Filter::default() };
        let flags = [
            (request.dropped, Filter::LOST),
            (request.all, Filter::ALL),
            (request.after, Filter::AFTER),
            (request.host.is_some(), Filter::HOST),
        ];
        filter.flags |= flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum::<u32>();
        if let Some(host) = request.host {
            filter.host = Address::from(host).raw();
        }
        filter.port = request.port.unwrap_or(0);
        if let Some(text) = &request.protocol {
            filter.protocol = u16::from(protocol(text)?) + 1;
        }
        if let Some(text) = &request.reason {
            filter.reason = reason(text)? as u16 + 1;
        }
        filter.sample = u32::MAX / request.sample.unwrap_or(1).max(1);
        let wanted = Self { request, filter };
        for (what, name, ids) in [
            ("frontend", &wanted.request.frontend, &known.frontends),
            ("backend", &wanted.request.backend, &known.backends),
        ] {
            if let Some(name) = name
                && !ids.values().any(|one| one == name)
            {
                return Err(ApiError::Unknown { what, name: name.clone() });
            }
        }
        Ok(wanted)
    }

    /// What the kernel is told.
    pub fn filter(&self, known: &Known) -> Filter {
        Filter {
            frontend: only(&known.frontends, self.request.frontend.as_deref()),
            backend: only(&known.backends, self.request.backend.as_deref()),
            ..self.filter
        }
    }

    /// What the kernel's filter cannot tell: one backend has several numbers where several modes reach
    /// it.
    pub fn lets_through(&self, packet: &PacketView) -> bool {
        let is = |wanted: &Option<String>, is: &Option<String>| wanted.is_none() || wanted == is;
        is(&self.request.frontend, &packet.frontend) && is(&self.request.backend, &packet.backend)
    }

    /// Bytes that are wanted of each packet.
    pub fn capture(&self) -> u32 {
        self.request.capture.unwrap_or(CAPTURE)
    }
}

/// The only number that a name has; 0, which is any, where it has several, or there is no name. One that
/// nothing has where it has none: what was watched is gone.
fn only(names: &HashMap<u32, String>, name: Option<&str>) -> u32 {
    let Some(name) = name else { return 0 };
    let mut ids = names.iter().filter(|(_, one)| *one == name).map(|(id, _)| *id);
    match (ids.next(), ids.next()) {
        (Some(id), None) => id,
        (Some(_), Some(_)) => 0,
        (None, _) => u32::MAX,
    }
}

/// An IP protocol number.
fn protocol(text: &str) -> Result<u8, ApiError> {
    let number = match text.to_ascii_uppercase().as_str() {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        "ICMP" => Some(1),
        "ICMPV6" => Some(58),
        number => number.parse().ok(),
    };
    number.ok_or_else(|| {
        ApiError::Parameter(format!(
            "protocol: {text} is none of TCP, UDP, SCTP, ICMP, ICMPv6 and 0 to 255"
        ))
    })
}

fn reason(text: &str) -> Result<Reason, ApiError> {
    Reason::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
        ApiError::Parameter(format!("reason: there is no {text}; /counters names those that count"))
    })
}

/// What to add to the kernel's monotonic clock for the time of day.
pub fn offset() -> Duration {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    now.saturating_sub(monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let names = |names: &[(u32, &str)]| {
            names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
        };
        Known {
            frontends: names(&[(1, "203.0.113.10:80/TCP"), (2, "203.0.113.10:53/UDP")]),
            backends: names(&[(1, "10.0.1.11:80"), (2, "10.0.1.12:80"), (3, "10.0.1.12:80")]),
            devices: names(&[(2, "eth0")]),
        }
    }

    #[test]
    fn names_become_the_numbers_that_the_data_path_has_for_them() {
        let request = MonitorRequest {
            frontend: Some("203.0.113.10:53/UDP".to_owned()),
            backend: Some("10.0.1.12:80".to_owned()),
            ..MonitorRequest::default()
        };
        let wanted = Wanted::new(request, &known()).unwrap();
        let filter = wanted.filter(&known());
        assert_eq!(
            (filter.frontend, filter.backend),
            (2, 0),
            "two numbers: any, and looked at later"
        );
        let packet = |frontend, backend| {
            let event = Event { frontend, backend, ..Event::default() };
            known().view(&event, &[], UNIX_EPOCH)
        };
        assert!(wanted.lets_through(&packet(2, 3)));
        assert!(!wanted.lets_through(&packet(2, 1)));
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let refused = |request| Wanted::new(request, &known()).err().map(|error| error.to_string());
        let none = MonitorRequest::default();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(refused(none.clone()), None);
        let unknown = refused(MonitorRequest { frontend: text("192.0.2.1:1/TCP"), ..none.clone() });
        assert_eq!(unknown.as_deref(), Some("there is no frontend 192.0.2.1:1/TCP"));
        assert!(refused(MonitorRequest { backend: text("x"), ..none.clone() }).is_some());
        assert!(refused(MonitorRequest { protocol: text("TPC"), ..none.clone() }).is_some());
        assert_eq!(refused(MonitorRequest { protocol: text("47"), ..none.clone() }), None);
        assert!(refused(MonitorRequest { reason: text("because"), ..none.clone() }).is_some());
        assert_eq!(refused(MonitorRequest { reason: text("no_backend"), ..none }), None);
    }

    #[test]
    fn one_of_so_many_is_that_part_of_all_random_numbers() {
        let sample = |one_of| {
            let request = MonitorRequest { sample: Some(one_of), ..MonitorRequest::default() };
            Wanted::new(request, &known()).unwrap().filter(&known()).sample
        };
        assert_eq!((sample(1), sample(2), sample(u32::MAX)), (u32::MAX, u32::MAX / 2, 1));
    }
}
