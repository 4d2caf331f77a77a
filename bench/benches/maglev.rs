//! How long a Maglev table takes to build, beside the `maglev` crate on the same sizes.
//!
//! The crate is handed equal weights (it has no others) and left its own hash, whose share of the
//! time is too small to see. It writes out every permutation, so what would take more than
//! [`CRATE_BYTES`] of memory is left out, with a line that says so.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main,
    measurement::WallTime,
};
use maglev::Maglev;
use xdp_lb_plan::{
    maglev::{Candidate, HashKey, Identity, build},
    model::Protocol,
};

const SIZES: [u32; 3] = [16_381, 65_537, 131_071];
const BACKENDS: [u32; 4] = [10, 100, 1000, 10_000];
/// Most memory that the crate may ask for.
const CRATE_BYTES: u64 = 2_000_000_000;

fn candidates(backends: u32, weight: impl Fn(u32) -> u16) -> Vec<Candidate> {
    (0..backends)
        .map(|number| {
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number));
            let identity = Identity { address, port: 8080, protocol: Protocol::Tcp };
            Candidate { identity, weight: weight(number) }
        })
        .collect()
}

fn ours(group: &mut BenchmarkGroup<'_, WallTime>, size: u32) {
    let key = HashKey::from(*b"a key of a bench");
    group.sample_size(40).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    for backends in BACKENDS.into_iter().filter(|&backends| backends <= size) {
        for (name, input) in [
            ("equal", candidates(backends, |_| 1)),
            ("weights 1 to 10", candidates(backends, |number| (number % 10) as u16 + 1)),
        ] {
            group.bench_with_input(BenchmarkId::new(name, backends), &input, |bencher, input| {
                bencher.iter(|| build(&key, black_box(input), size));
            });
        }
    }
}

fn the_crate(group: &mut BenchmarkGroup<'_, WallTime>, size: u32) {
    // It takes up to seconds a table: ten of them have to do.
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(100));
    for backends in BACKENDS.into_iter().filter(|&backends| backends <= size) {
        let bytes = u64::from(size) * u64::from(backends) * 8;
        if bytes > CRATE_BYTES {
            eprintln!("maglev crate, {backends} backends: left out, it would need {bytes} bytes");
            continue;
        }
        let input: Vec<Identity> =
            candidates(backends, |_| 1).into_iter().map(|candidate| candidate.identity).collect();
        group.bench_with_input(BenchmarkId::new("crate", backends), &input, |bencher, input| {
            bencher.iter(|| Maglev::with_capacity(black_box(input.clone()), size as usize));
        });
    }
}

fn tables(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("{size} slots"));
        ours(&mut group, size);
        the_crate(&mut group, size);
        group.finish();
    }
}

criterion_group!(benches, tables);
criterion_main!(benches);
