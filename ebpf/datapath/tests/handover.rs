//! Flows through a handover, compared with a simple model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use xdp_lb_abi::{
    Address, Backend, Device, FrontendKey, Hop, Mode, Phase, Service, Settings, Table,
};
use xdp_lb_datapath::{
    Verdict,
    testing::{
        MemoryFrame, MemoryTables,
        packet::{ACK, SYN, ip, link},
        world::*,
    },
};

const BACKENDS: u16 = 4;
const PORT: u16 = 443;

/// A slot of the previous table: its backend if it still takes packets, and whether its flows may
/// be recorded.
type Before = (Option<u16>, bool);

#[derive(Clone, Debug)]
enum Step {
    /// A packet of a flow; whether it is a SYN.
    Packet(u16, bool),
    /// A backend serves no more.
    Stop(u16),
    /// Unknown flows belong to the current table from now on.
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..12_u16, any::<bool>()).prop_map(|(flow, opens)| Step::Packet(flow, opens)),
        1 => (0..BACKENDS).prop_map(Step::Stop),
        1 => Just(Step::End),
    ]
}

/// What the packet path should do, in the plainest words.
struct Model<'a> {
    current: &'a [u16],
    previous: &'a [Before],
    serving: Vec<bool>,
    ended: bool,
    recorded: BTreeMap<u16, u16>,
}

impl Model<'_> {
    fn backend_of(&mut self, flow: u16, opens: bool) -> u16 {
        let hash = u128::from(hash(CLIENT_V4, VIP_V4, (flow, PORT), 6));
        let slot = |size: usize| (hash * size as u128 / (1 << 32)) as usize;
        let current = self.current[slot(self.current.len())];
        let (previous, may_be_recorded) = self.previous[slot(self.previous.len())];
        if previous == Some(current) && !may_be_recorded {
            return current;
        }
        if let Some(owner) = self.recorded.get(&flow)
            && self.serving[usize::from(*owner)]
        {
            return *owner;
        }
        if self.ended {
            return current;
        }
        let owner = match previous {
            Some(previous) if !opens && self.serving[usize::from(previous)] => previous,
            _ => current,
        };
        self.recorded.insert(flow, owner);
        owner
    }
}

/// One service in handover; returns the tables, the service's index and the ids of its backends.
fn tables(current: &[u16], previous: &[Before]) -> (MemoryTables, u32, Vec<u32>) {
    let mut tables = MemoryTables::new(Settings::new(FLOW_KEY, 1, 4, ICMP_RATE));
    let device = tables.add_device(Device::new(INGRESS, OUR_MAC, 1500));
    let ids: Vec<u32> = (0..BACKENDS)
        .map(|index| {
            let backend = Backend::new(Address::v4([10, 0, 0, 1]), 443, 6, Mode::L2, 5);
            let hop = Hop::new(next_hop(index), device);
            tables.add_backend(backend.with_path(hop, 0, Address::v4([0; 4]), 0))
        })
        .collect();
    let slots: Vec<u16> = previous
        .iter()
        .map(|(backend, may_be_recorded)| {
            backend.unwrap_or(Table::GONE) | if *may_be_recorded { Table::LOOK_UP } else { 0 }
        })
        .collect();
    let current = tables.add_table(current, &ids);
    let previous = tables.add_table(&slots, &ids);
    let service = tables.add_service(current, previous, Phase::Handover);
    tables.add_frontend(FrontendKey::new(VIP_V4.into(), PORT, 6), service);
    (tables, service, ids)
}

/// The backend that gets a packet, by the MAC address that it leaves with.
fn send(tables: &MemoryTables, flow: u16, opens: bool) -> u16 {
    let flags = if opens { SYN } else { ACK };
    let packet = ip(CLIENT_V4, VIP_V4).tcp((flow, PORT), flags, 0);
    let mut frame = MemoryFrame::new(&link(ROUTER_MAC, OUR_MAC).holds(packet), INGRESS);
    assert_eq!(tables.run(&mut frame), Verdict::Transmit);
    (0..BACKENDS).find(|index| frame.bytes()[..6] == next_hop(*index)).unwrap()
}

proptest! {
    #[test]
    fn a_flow_never_moves_while_its_backend_serves(
        current in vec(0..BACKENDS, 1..9),
        previous in vec((proptest::option::weighted(0.8, 0..BACKENDS), any::<bool>()), 1..9),
        steps in vec(step(), 1..120),
    ) {
        let (mut tables, service, ids) = tables(&current, &previous);
        let mut model = Model {
            current: &current,
            previous: &previous,
            serving: vec![true; BACKENDS.into()],
            ended: false,
            recorded: BTreeMap::new(),
        };
        let mut last: BTreeMap<u16, u16> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Packet(flow, opens) => {
                    let backend = send(&tables, flow, opens);
                    prop_assert_eq!(backend, model.backend_of(flow, opens));
                    if let Some(before) = last.insert(flow, backend) {
                        let stopped = !model.serving[usize::from(before)];
                        prop_assert!(before == backend || stopped, "flow {} moved", flow);
                    }
                }
                Step::Stop(index) => {
                    model.serving[usize::from(index)] = false;
                    let id = ids[usize::from(index)] as usize;
                    tables.backends[id] = tables.backends[id].with_serving(false);
                }
                Step::End => {
                    model.ended = true;
                    let record = &mut tables.services[service as usize];
                    *record = Service::new(
                        *record.current(),
                        *record.previous(),
                        Phase::Exceptions,
                        service,
                    );
                }
            }
        }
        prop_assert_eq!(tables.flows.borrow().len(), model.recorded.len());
    }
}

#[test]
fn a_record_is_dated_again_only_now_and_then() {
    let (tables, ..) = tables(&[1], &[(Some(0), false)]);
    let seen = || tables.flows.borrow().values().next().map(|flow| flow.seen());
    let at = |millis: u64| {
        tables.now.set(millis * 1_000_000);
        send(&tables, 4000, false);
        seen().unwrap() / 1_000_000
    };
    assert_eq!(at(5_000), 5_000);
    assert_eq!(at(5_999), 5_000);
    assert_eq!(at(6_000), 6_000);
    assert_eq!(at(6_001), 6_000);
    // A clock that went back dates nothing back.
    assert_eq!(at(3_000), 6_000);
}
