//! The control plane: Maglev tables, and services planned and installed.

use std::{
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use maglev::Maglev;
use xdp_lb::{
    bench::Sample,
    config::Limits,
    dataplane::{Dataplane, DataplaneError},
};
use xdp_lb_abi::{Address, Hop};
use xdp_lb_api::benchmark::ControlCase;
use xdp_lb_plan::{
    BackendKey, Path, Planner,
    maglev::{Candidate, HashKey, Identity, build},
    model::{Backend, Frontend, Mode, Protocol, Service},
};

const KEY: [u8; 16] = *b"a key of a bench";
/// Most memory that the crate may ask for: it writes out every permutation.
const CRATE_BYTES: u64 = 1_100_000_000;
/// Backends of each service.
const BACKENDS: u32 = 10;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Sizes of tables
    pub sizes: Vec<u32>,
    /// Numbers of backends of a table
    pub backends: Vec<u32>,
    /// How often each table is built
    pub builds: u32,
    /// How often the crate builds it
    pub crate_builds: u32,
    /// Services of ten backends
    pub services: u32,
    /// How often they are planned and installed
    pub rounds: u32,
}

/// Maglev tables of equal and of different weights, and those of the `maglev` crate.
pub fn tables(scale: &Scale) -> Vec<ControlCase> {
    let key = HashKey::from(KEY);
    let mut cases = Vec::new();
    for &size in &scale.sizes {
        for &backends in scale.backends.iter().filter(|backends| **backends <= size) {
            for (name, weights) in [("equal", 1), ("weighted", 10)] {
                let input = candidates(backends, weights);
                let times = timed(scale.builds, || {
                    // The sizes are of the ladder, and so many backends fit.
                    let _ = black_box(build(&key, black_box(&input), size));
                });
                cases.push(case(format!("maglev-{size}-{backends}-{name}"), &times));
            }
            if u64::from(size) * u64::from(backends) * 8 <= CRATE_BYTES {
                let input: Vec<Identity> =
                    candidates(backends, 1).into_iter().map(|one| one.identity).collect();
                let times = timed(scale.crate_builds, || {
                    black_box(Maglev::with_capacity(black_box(input.clone()), size as usize));
                });
                cases.push(case(format!("maglev-crate-{size}-{backends}"), &times));
            }
        }
    }
    cases
}

/// All services planned and installed from nothing, and with one endpoint changed.
///
/// # Errors
///
/// Where the kernel refuses the tables.
pub fn services(scale: &Scale) -> Result<Vec<ControlCase>, DataplaneError> {
    let count = scale.services;
    let [mut plan, mut install, mut plan_one, mut install_one] = [const { Sample::new() }; 4];
    let mut bytes = 0;
    for _ in 0..scale.rounds {
        let limits = Limits {
            flows: 1024,
            clients: 1024,
            answers: 1024,
            nat_flows: 1024,
            ..Limits::default()
        };
        let mut dataplane = Dataplane::apart(&limits)?;
        dataplane.configure(KEY, 100, false, |settings| settings)?;
        let mut services: Vec<Service> = (0..count).map(service).collect();
        let before = resident();
        let mut planner = Planner::new(dataplane.layout(), HashKey::from(KEY), Duration::ZERO);
        let began = Instant::now();
        let outcome = planner.apply(&services, &path, Duration::ZERO);
        plan.push(milliseconds(began));
        let began = Instant::now();
        dataplane.run(&outcome.ops)?;
        install.push(milliseconds(began));
        drop(outcome);
        bytes = resident().saturating_sub(before);
        for (round, index) in (0..20_u32).map(|round| (round, round * 7919 % count)) {
            let address = Ipv4Addr::from_bits(0x0c00_0000 + round);
            services[index as usize].backends[0] = Backend::new(address.into());
            let began = Instant::now();
            let outcome = planner.apply_over_known_paths(&services, &path, Duration::ZERO);
            plan_one.push(milliseconds(began));
            let began = Instant::now();
            dataplane.run(&outcome.ops)?;
            install_one.push(milliseconds(began));
        }
    }
    let all = format!("{count}x{BACKENDS}");
    Ok(vec![
        ControlCase { bytes: Some(bytes), ..case(format!("plan-{all}-from-nothing"), &plan) },
        case(format!("install-{all}-from-nothing"), &install),
        case(format!("plan-{all}-one-endpoint"), &plan_one),
        case(format!("install-{all}-one-endpoint"), &install_one),
    ])
}

fn case(name: String, times: &Sample) -> ControlCase {
    ControlCase {
        name,
        median_ms: times.median(),
        min_ms: times.min(),
        max_ms: times.max(),
        bytes: None,
    }
}

/// Milliseconds of each run, after one that is not counted.
fn timed(times: u32, mut work: impl FnMut()) -> Sample {
    work();
    let mut sample = Sample::new();
    for _ in 0..times {
        let began = Instant::now();
        work();
        sample.push(milliseconds(began));
    }
    sample
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Backends with weights from 1 to `weights`.
fn candidates(count: u32, weights: u32) -> Vec<Candidate> {
    let candidate = |number| {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
        let identity = Identity { address, port: 8080, protocol: Protocol::Tcp };
        Candidate { identity, weight: (number % weights) as u16 + 1 }
    };
    (0..count).map(candidate).collect()
}

fn service(number: u32) -> Service {
    let address = |base: u32, number: u32| IpAddr::from(Ipv4Addr::from_bits(base + number));
    let port = NonZeroU16::MIN.saturating_add(79);
    let frontend =
        Frontend { address: address(0x6440_0000, number), port, protocol: Protocol::Tcp };
    let first = number * BACKENDS;
    let backends = (first..first + BACKENDS).map(|one| Backend::new(address(0x0a00_0000, one)));
    Service::new(format!("service-{number}"), Mode::L2, vec![frontend], backends.collect())
}

fn path(_: &BackendKey) -> Option<Path> {
    let source = Address::v4([10, 0, 0, 1]);
    Some(Path { hop: Hop::new([2, 0, 0, 0, 0, 9], 1), mtu: 1500, source, source_bits: 0 })
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    pages * 4096
}
