//! Which records of flows a sweep deletes, and how a service comes to rest.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use xdp_lb_abi::{Address, Flow, FlowKey, FrontendKey, Phase, Table};
use xdp_lb_plan::{
    IdleTimes, Judge, Layout, Verdict,
    model::{Backend, Mode, Service},
};

use crate::common::{
    HANDOVER, Run,
    input::{address, frontend},
};

const ROOM: Layout = Layout { frontends: 3, backends: 64, words: 8_000, buckets: 8, seed: 3 };
const IDLE: IdleTimes = IdleTimes { tcp: Duration::from_secs(600), udp: Duration::from_secs(60) };
const SECOND: Duration = Duration::from_secs(1);

/// A service of TCP (0) or UDP (1) with these backends and weights.
fn service(number: usize, backends: &[(u8, u16)]) -> Service {
    let backend =
        |&(number, weight): &(u8, u16)| Backend { weight, ..Backend::new(address(number)) };
    Service {
        name: format!("service-{number}"),
        frontends: vec![frontend(number)],
        mode: Mode::L2,
        backends: backends.iter().map(backend).collect(),
        ..Service::default()
    }
}

fn key(service: &Service) -> FrontendKey {
    service.frontends[0].key()
}

fn flow(service: &Service, port: u16) -> FlowKey {
    let to = service.frontends[0];
    let client = Address::v4([198, 51, 100, 7]);
    FlowKey::new(client, to.address.into(), (port, to.port.get()), to.protocol.number())
}

/// The id of a backend.
fn id(run: &Run, service: &Service, number: u8) -> u32 {
    let state = run.planner.frontends().find(|state| state.key == key(service)).unwrap();
    let named = |id: &&u32| {
        run.planner.backend(**id).is_some_and(|key| key.identity.address == address(number))
    };
    *state.ids.iter().find(named).unwrap()
}

/// Records a flow for a backend, and returns it.
fn record(run: &Run, service: &Service, port: u16, backend: u32) -> FlowKey {
    let (key, generation) =
        (flow(service, port), run.world.backends[backend as usize].generation());
    let seen = run.world.now.get();
    run.world.flows.borrow_mut().insert(key, Flow::new(backend, generation, seen));
    key
}

fn judge(run: &Run, key: &FlowKey) -> Verdict {
    let flow = run.world.flows.borrow()[key];
    Judge::new(&run.planner, run.world.settings.flow_key(), IDLE, run.now).judge(key, &flow)
}

fn needed(service: &Service, backend: u32) -> Verdict {
    Verdict::Needed { frontend: key(service), backend }
}

fn phase(run: &Run, service: &Service) -> Phase {
    run.world.record(&key(service)).unwrap().phase()
}

/// A port whose slot is this backend's in the current table.
fn port_of(run: &Run, service: &Service, backend: u32) -> u16 {
    let state = run.planner.frontends().find(|state| state.key == key(service)).unwrap();
    let table = Table::new(0, state.slots.len() as u32, 0, 0);
    let owner = |port: u16| {
        let slot = table.slot(flow(service, port).hash(run.world.settings.flow_key()));
        state.ids[usize::from(state.slots[slot as usize])]
    };
    (1024..).find(|port| owner(*port) == backend).unwrap()
}

/// A service that is handing over, since one of its backends has come to drain.
fn draining(number: usize) -> (Run, Service) {
    let mut run = Run::new(ROOM, HANDOVER);
    run.apply(&[service(number, &[(1, 1), (2, 1), (4, 1)])]);
    run.wait(SECOND);
    let service = service(number, &[(1, 0), (2, 1), (4, 1)]);
    run.apply(std::slice::from_ref(&service));
    assert_eq!(phase(&run, &service), Phase::Handover);
    (run, service)
}

/// Time passes until the handover is over.
fn end(run: &mut Run, service: &Service) {
    run.wait(HANDOVER);
    run.apply(std::slice::from_ref(service));
    assert_eq!(phase(run, service), Phase::Exceptions);
    run.wait(SECOND);
}

#[test]
fn what_the_current_table_says_too_is_an_exception_during_the_handover_only() {
    let (mut run, service) = draining(0);
    let drained = id(&run, &service, 1);
    let other = id(&run, &service, 2);
    let same = record(&run, &service, port_of(&run, &service, other), other);
    let exception = record(&run, &service, 1, drained);
    assert_eq!(judge(&run, &same), needed(&service, other));
    assert_eq!(judge(&run, &exception), needed(&service, drained));
    end(&mut run, &service);
    assert_eq!(judge(&run, &same), Verdict::Delete);
    assert_eq!(judge(&run, &exception), needed(&service, drained));
    let counts = run.sweep(IDLE);
    assert_eq!((counts.records, counts.of(&key(&service), drained)), (1, 1));
    assert_eq!((counts.of_backend(drained), counts.of_backend(other)), (1, 0));
}

#[test]
fn silent_flows_are_over_after_their_protocols_time() {
    for (number, idle) in [(0, IDLE.tcp), (1, IDLE.udp)] {
        let (mut run, service) = draining(number);
        let drained = id(&run, &service, 1);
        let silent = record(&run, &service, 1, drained);
        run.wait(idle);
        assert_eq!(judge(&run, &silent), needed(&service, drained));
        run.wait(SECOND);
        assert_eq!(judge(&run, &silent), Verdict::Delete);
    }
}

#[test]
fn a_record_that_says_nothing_stays_while_a_packet_may_overwrite_it() {
    let (mut run, service) = draining(0);
    let drained = id(&run, &service, 1);
    let gone = record(&run, &service, 1, drained);
    let generation = run.world.backends[drained as usize].generation();
    let older = Flow::new(drained, generation.wrapping_sub(1), run.world.now.get());
    run.world.flows.borrow_mut().insert(gone, older);
    assert_eq!(judge(&run, &gone), Verdict::Spent);
    end(&mut run, &service);
    assert_eq!(judge(&run, &gone), Verdict::Delete);
}

#[test]
fn a_backend_that_serves_another_service_loses_the_flows_of_the_one_that_removed_it() {
    let mut run = Run::new(ROOM, HANDOVER);
    let backends = [(1, 1), (2, 1)];
    // Frontends 0 and 3 have the same port, so their backends are the same.
    let (mut first, second) = (service(0, &backends), service(3, &backends));
    run.apply(&[first.clone(), second.clone()]);
    let shared = id(&run, &first, 1);
    assert_eq!(shared, id(&run, &second, 1));
    run.wait(SECOND);
    first.backends.remove(0);
    run.apply(&[first.clone(), second.clone()]);
    let removed = record(&run, &first, 1, shared);
    assert!(run.world.backends[shared as usize].serving());
    assert_eq!(judge(&run, &removed), Verdict::Delete);
}

#[test]
fn a_service_without_exceptions_comes_to_rest_once() {
    let (mut run, service) = draining(0);
    let (_, during) = run.planner.words();
    let drained = id(&run, &service, 1);
    let exception = record(&run, &service, 1, drained);
    end(&mut run, &service);
    run.sweep(IDLE);
    assert_eq!(phase(&run, &service), Phase::Exceptions, "one flow is left");
    run.world.flows.borrow_mut().remove(&exception);
    // A look that began while flows could still be recorded may have missed some.
    let too_early = run.now - SECOND;
    assert_eq!(run.planner.settle(&BTreeSet::new(), too_early), vec![]);
    run.sweep(IDLE);
    assert_eq!(phase(&run, &service), Phase::Rest);
    assert!(run.planner.words().1 > during, "the previous table is free");
    assert_eq!(run.planner.settle(&BTreeSet::new(), run.now), vec![]);
    assert_eq!(run.planner.drift(&run.world), vec![]);
    assert_eq!(run.apply(std::slice::from_ref(&service)).ops, vec![]);
    run.restart();
    assert_eq!(run.apply(std::slice::from_ref(&service)).ops, vec![]);
}

#[test]
fn a_record_of_an_earlier_handover_says_nothing_in_the_next() {
    let (mut run, mut service) = draining(0);
    let drained = id(&run, &service, 1);
    end(&mut run, &service);
    run.sweep(IDLE);
    assert_eq!(phase(&run, &service), Phase::Rest);
    // As if a packet that was under way had written it.
    let late = record(&run, &service, 1, drained);
    assert_eq!(judge(&run, &late), Verdict::Delete);
    run.wait(SECOND);
    service.backends[2].weight = 3;
    run.apply(std::slice::from_ref(&service));
    assert_eq!(phase(&run, &service), Phase::Handover);
    assert_eq!(judge(&run, &late), Verdict::Spent);
    assert!(
        run.world.flows.borrow()[&late].seen()
            < run.world.record(&key(&service)).unwrap().started()
    );
}

#[test]
fn a_backend_goes_on_in_its_former_mode_until_its_flows_are_over() {
    let mut run = Run::new(ROOM, HANDOVER);
    let mut service = service(0, &[(1, 1), (2, 1)]);
    run.apply(std::slice::from_ref(&service));
    run.wait(SECOND);
    let former = id(&run, &service, 1);
    service.mode = Mode::Ipip;
    run.apply(std::slice::from_ref(&service));
    let moved = record(&run, &service, 1, former);
    assert_ne!(id(&run, &service, 1), former);
    end(&mut run, &service);
    assert_eq!(judge(&run, &moved), needed(&service, former));
    run.restart();
    run.apply(std::slice::from_ref(&service));
    assert_eq!(judge(&run, &moved), needed(&service, former));
    run.wait(SECOND);
    run.sweep(IDLE);
    assert_eq!(run.planner.backends().count(), 4);
    run.world.flows.borrow_mut().clear();
    run.sweep(IDLE);
    assert_eq!(phase(&run, &service), Phase::Rest);
    assert_eq!(run.planner.backends().count(), 2);
}
