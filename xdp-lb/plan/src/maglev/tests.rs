use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::{Ipv4Addr, Ipv6Addr},
};

use maglev::{ConsistentHasher, Maglev};
use proptest::{collection::vec, prelude::*};

use super::{fill::fill, quota::quotas, *};

const KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn candidate(number: u32, weight: u16) -> Candidate {
    let address = Ipv4Addr::from(0x0a00_0000 + number).into();
    Candidate { identity: Identity { address, port: 8080, protocol: Protocol::Tcp }, weight }
}

fn candidates(weights: &[u16]) -> Vec<Candidate> {
    (0..).zip(weights).map(|(number, &weight)| candidate(number, weight)).collect()
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    (any::<IpAddr>(), any::<u16>(), protocol).prop_map(|(address, port, protocol)| Identity {
        address,
        port,
        protocol,
    })
}

/// The seeds by which the `maglev` crate asks for a node's first and second hash.
const FIRST: u32 = 0xdead_babe;
const SECOND: u32 = 0xdead_beef;

/// A node of the oracle that brings its hashes along.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
struct Hashed(u64, u64);

#[derive(Clone, Copy, Default)]
struct Unhashed;

#[derive(Default)]
struct Replay {
    seed: u32,
    values: Vec<u64>,
}

impl BuildHasher for Unhashed {
    type Hasher = Replay;
    fn build_hasher(&self) -> Replay {
        Replay::default()
    }
}

impl Hasher for Replay {
    fn write(&mut self, _: &[u8]) {
        unreachable!("the oracle hashes a seed and two numbers")
    }
    fn write_u32(&mut self, seed: u32) {
        self.seed = seed;
    }
    fn write_u64(&mut self, value: u64) {
        self.values.push(value);
    }
    fn finish(&self) -> u64 {
        match self.seed {
            FIRST => self.values[0],
            SECOND => self.values[1],
            seed => unreachable!("the oracle has no seed {seed:#x}"),
        }
    }
}

/// The oracle's table: indices into `nodes`.
fn oracle(nodes: &[Hashed], size: u32) -> Vec<u16> {
    let table = Maglev::with_capacity_and_hasher(nodes.iter().copied(), size as usize, Unhashed);
    assert_eq!(table.capacity(), size as usize);
    (0..u64::from(size))
        .map(|slot| {
            let node = table.get(&Hashed(slot, 0)).unwrap();
            nodes.iter().position(|other| other == node).unwrap() as u16
        })
        .collect()
}

/// Weighted Maglev word for word: rounds, accumulators, permutations written out, no shortcut.
fn slow(walks: &[Walk], size: u32) -> Vec<u16> {
    let permutation = |walk: &Walk| {
        let (offset, skip) = (u64::from(walk.offset), u64::from(walk.skip));
        (0..u64::from(size)).map(move |i| ((offset + i * skip) % u64::from(size)) as usize)
    };
    let mut permutations: Vec<_> = walks.iter().map(permutation).collect();
    let weights: Vec<u16> = walks.iter().map(|walk| walk.weight).collect();
    let mut quotas = quotas(&weights, size);
    let heaviest = u32::from(*weights.iter().max().unwrap());
    let mut credits = vec![0; walks.len()];
    let mut slots = vec![None; size as usize];
    while quotas.iter().any(|&quota| quota > 0) {
        for (index, &weight) in weights.iter().enumerate() {
            credits[index] += u32::from(weight);
            if credits[index] >= heaviest {
                credits[index] -= heaviest;
                if quotas[index] > 0 {
                    quotas[index] -= 1;
                    let slot = permutations[index].find(|&slot| slots[slot].is_none()).unwrap();
                    slots[slot] = Some(index as u16);
                }
            }
        }
    }
    slots.into_iter().map(|slot| slot.unwrap()).collect()
}

#[test]
fn table_sizes_follow_the_number_of_backends() {
    let expected = [
        (0, 1),
        (1, 1),
        (2, 251),
        (3, 1021),
        (10, 1021),
        (11, 4093),
        (40, 4093),
        (41, 16_381),
        (163, 16_381),
        (164, 65_537),
        (655, 65_537),
        (656, 131_071),
        (1310, 131_071),
        (1311, 131_071),
        (usize::MAX, 131_071),
    ];
    for (backends, size) in expected {
        assert_eq!(table_size(backends), size, "{backends} backends");
    }
}

#[test]
fn the_ladder_is_made_of_primes() {
    for size in &LADDER[1..] {
        assert!((2..=size.isqrt()).all(|divisor| size % divisor != 0), "{size}");
    }
}

#[test]
fn the_papers_example() {
    let walks = |middle| {
        [
            Walk { offset: 3, skip: 4, weight: 1 },
            Walk { offset: 0, skip: 2, weight: middle },
            Walk { offset: 3, skip: 1, weight: 1 },
        ]
    };
    assert_eq!(fill(&walks(1), 7), [1, 0, 1, 0, 2, 2, 0]);
    assert_eq!(fill(&walks(0), 7), [0, 0, 0, 0, 2, 2, 2]);
}

/// Expected hashes by OpenSSL: `openssl mac -macopt hexkey:000102…0f -macopt size:16 SIPHASH`.
#[test]
fn hashes_agree_with_another_implementation() {
    let key = HashKey::from(KEY);
    let identity = |address, port, protocol| Identity { address, port, protocol };
    let v4 = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
    assert_eq!(
        identity(v4(10, 0, 0, 1), 80, Protocol::Tcp).hashes(&key),
        (0x572e_bf94_fef7_a50b, 0x60e6_3862_91d1_1163)
    );
    assert_eq!(
        identity(v6, 443, Protocol::Udp).hashes(&key),
        (0x18b6_a4e3_ebb4_f431, 0x9288_2b54_2c48_edbd)
    );
    assert_eq!(
        identity(v4(192, 0, 2, 255), 65535, Protocol::Sctp).hashes(&key),
        (0xd3fc_9bf2_2745_fd7c, 0xf447_f66c_119a_fb6a)
    );
}

/// Computed by another implementation in another language.
///
/// Instances of different versions must agree: these numbers may only change together with the
/// ABI's version and a note to everyone who upgrades one instance after another.
#[test]
fn golden_tables() {
    let key = HashKey::from(KEY);
    let equal = build(&key, &candidates(&[1; 5]), 251).unwrap();
    assert_eq!(equal.slots()[..16], GOLDEN_SLOTS);
    assert_eq!(equal.digest(), GOLDEN_EQUAL);
    let weighted = build(&key, &candidates(&[1, 2, 3, 0, 500]), 1021).unwrap();
    assert_eq!(weighted.digest(), GOLDEN_WEIGHTED);
}

const GOLDEN_SLOTS: [u16; 16] = [4, 1, 1, 4, 2, 1, 4, 2, 1, 1, 2, 0, 1, 2, 4, 0];
const GOLDEN_EQUAL: u64 = 0x2b19_ee4b_9bf1_220e;
const GOLDEN_WEIGHTED: u64 = 0xe55f_6cc6_3206_78fb;

#[test]
fn digests_tell_tables_apart() {
    let key = HashKey::from(KEY);
    let table = |weights: &[u16], size| build(&key, &candidates(weights), size).unwrap().digest();
    let base = table(&[1, 1, 1], 251);
    assert_eq!(base, table(&[7, 7, 7], 251), "the same slots for the same backends");
    assert_ne!(base, table(&[1, 1, 1], 1021), "size");
    assert_ne!(base, table(&[1, 1, 1, 0], 251), "backends");
    assert_ne!(base, table(&[1, 1, 2], 251), "slots");
    let other_key = HashKey::from([1; 16]);
    assert_ne!(base, build(&other_key, &candidates(&[1, 1, 1]), 251).unwrap().digest(), "key");
}

#[test]
fn the_key_is_not_printed() {
    assert_eq!(format!("{:?}", HashKey::from([171; 16])), "HashKey(secret)");
}

#[test]
fn without_a_weight_there_are_no_slots() {
    let key = HashKey::from(KEY);
    for weights in [&[][..], &[0, 0]] {
        let table = build(&key, &candidates(weights), 251).unwrap();
        assert_eq!(table.slots(), [0_u16; 0]);
        assert_eq!(table.backends().len(), weights.len());
        assert_eq!(table.shares(), vec![0; weights.len()]);
    }
}

#[test]
fn one_slot_goes_to_the_heaviest() {
    let key = HashKey::from(KEY);
    let slots = |weights: &[u16]| build(&key, &candidates(weights), 1).unwrap().slots().to_vec();
    assert_eq!(slots(&[5]), [0]);
    assert_eq!(slots(&[0, 3]), [1]);
    assert_eq!(slots(&[2, 3, 3, 1]), [1]);
    assert_eq!(slots(&[9, 9]), [0]);
}

#[test]
fn impossible_tables_are_refused() {
    let key = HashKey::from(KEY);
    let error = build(&key, &candidates(&[1]), 250).unwrap_err();
    assert_eq!(error, BuildError::Size(250));
    assert!(error.to_string().contains("1021"), "{error}");
    let most = vec![candidate(0, 0); MAX_SERVICE_BACKENDS];
    assert!(build(&key, &most, 1).is_ok());
    let too_many = vec![candidate(0, 0); MAX_SERVICE_BACKENDS + 1];
    assert_eq!(build(&key, &too_many, 1).unwrap_err(), BuildError::Backends(32_768));
}

/// The largest table with as many backends as a service can have, and the most uneven weights.
#[test]
fn extremes_are_served() {
    let key = HashKey::from(KEY);
    let mut weights = vec![1; MAX_SERVICE_BACKENDS];
    weights[77] = u16::MAX;
    let shares = build(&key, &candidates(&weights), 131_071).unwrap().shares();
    // The weights add up to 98301: 1.33 slots for the light ones, 87382.04 for the heavy one.
    assert!(shares.iter().enumerate().all(|(i, &share)| i == 77 || (1..=2).contains(&share)));
    assert!((87_382..=87_383).contains(&shares[77]), "{}", shares[77]);

    let shares = build(&key, &candidates(&[1, u16::MAX, 1]), 251).unwrap().shares();
    assert_eq!(shares, [1, 249, 1]);
}

#[test]
fn more_backends_than_slots_share_by_weight() {
    let shares = quotas(&[vec![1; 300], vec![300; 1]].concat(), 251);
    assert_eq!(shares[300], 126, "125.5 exactly, and the largest fractions round up");
    assert_eq!(shares.iter().sum::<u32>(), 251);
    assert!(shares[..300].iter().all(|&share| share <= 1));
}

/// Maglev trades a little disruption for even shares. Taking away one of N backends gives every
/// other one more turns, which shifts who is first at a slot.
#[test]
fn removing_a_backend_moves_its_slots_and_few_others() {
    let key = HashKey::from(KEY);
    for (backends, size) in [(3, 1021), (10, 1021), (10, 16_381), (100, 16_381), (500, 65_537)] {
        let all = candidates(&vec![1; backends]);
        let full = build(&key, &all, size).unwrap();
        let gone = backends / 2;
        let mut rest = all;
        rest[gone].weight = 0;
        let drained = build(&key, &rest, size).unwrap();
        rest.remove(gone);
        let removed = build(&key, &rest, size).unwrap();

        let owners = |table: &Table| -> Vec<Identity> {
            let owner = |&slot: &u16| table.backends()[usize::from(slot)].identity;
            table.slots().iter().map(owner).collect()
        };
        let (before, after) = (owners(&full), owners(&removed));
        assert_eq!(owners(&drained), after, "draining and removing give the same owners");
        let gone = full.backends()[gone].identity;
        assert!(!after.contains(&gone));
        let others = before.iter().filter(|&&owner| owner != gone).count();
        let moved =
            before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
        let percent = 100.0 * moved as f64 / others as f64;
        println!("{backends} backends, {size} slots: {percent:.2} % of the others' slots moved");
        // Hashing modulo N would move (N - 1) / N of them. The paper (figure 12) has a few per
        // cent at 100 slots per backend; 8 % leaves room for small tables, where one slot weighs.
        assert!(percent < 8.0, "{percent}");
    }
}

/// Sizes at which a slow second implementation is still quick.
fn small_size() -> impl Strategy<Value = u32> {
    prop_oneof![Just(251_u32), Just(1021), Just(4093)]
}

fn some_weight() -> impl Strategy<Value = u16> {
    prop_oneof![1..4_u16, 1..=100_u16, Just(u16::MAX), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn equal_weights_are_plain_maglev(
        hashes in vec(any::<(u64, u64)>(), 1..80),
        size in prop_oneof![
            8 => small_size(), 2 => Just(16_381), 1 => Just(65_537), 1 => Just(131_071)
        ],
        weight in 1..=u16::MAX,
    ) {
        let nodes: Vec<Hashed> = hashes.iter().map(|&(h1, h2)| Hashed(h1, h2)).collect();
        let m = u64::from(size);
        let walks: Vec<Walk> = hashes
            .iter()
            .map(|&(h1, h2)| Walk {
                offset: (h1 % m) as u32,
                skip: (h2 % (m - 1)) as u32 + 1,
                weight,
            })
            .collect();
        prop_assert_eq!(fill(&walks, size), oracle(&nodes, size));
    }

    #[test]
    fn a_built_table_is_the_oracles(
        identities in vec(any_identity(), 1..40), key in any::<[u8; 16]>(), size in small_size(),
    ) {
        let key = HashKey::from(key);
        let input: Vec<Candidate> =
            identities.iter().map(|&identity| Candidate { identity, weight: 1 }).collect();
        let table = build(&key, &input, size).unwrap();
        let hashed = |backend: &Candidate| {
            let (h1, h2) = backend.identity.hashes(&key);
            Hashed(h1, h2)
        };
        let nodes: Vec<Hashed> = table.backends().iter().map(hashed).collect();
        prop_assert_eq!(table.slots(), oracle(&nodes, size));
    }

    #[test]
    fn weighted_tables_follow_the_rounds(
        walks in vec((any::<u32>(), any::<u32>(), some_weight()), 1..60), size in small_size(),
    ) {
        let walks: Vec<Walk> = walks
            .into_iter()
            .map(|(offset, skip, weight)| Walk {
                offset: offset % size,
                skip: skip % (size - 1) + 1,
                weight,
            })
            .collect();
        prop_assert_eq!(fill(&walks, size), slow(&walks, size));
    }

    #[test]
    fn shares_are_the_quotas(
        weights in vec(prop_oneof![1 => Just(0), 8 => some_weight()], 1..300),
        size in prop_oneof![Just(251_u32), Just(1021), Just(16_381), Just(65_537)],
    ) {
        let positive: Vec<u16> = weights.iter().copied().filter(|&weight| weight > 0).collect();
        prop_assume!(!positive.is_empty());
        let table = build(&HashKey::from(KEY), &candidates(&weights), size).unwrap();
        prop_assert_eq!(table.slots().len(), size as usize);
        let shares = table.shares();
        prop_assert_eq!(shares.iter().sum::<u32>(), size);
        for (share, weight) in shares.iter().zip(&weights) {
            prop_assert!(*weight > 0 || *share == 0);
        }
        let shares: Vec<u32> = shares
            .into_iter()
            .zip(&weights)
            .filter_map(|(share, &weight)| (weight > 0).then_some(share))
            .collect();
        prop_assert_eq!(shares, quotas(&positive, size));
    }

    #[test]
    fn equal_weights_differ_by_at_most_a_slot(
        backends in 1..2000_usize, weight in 1..=u16::MAX, size in prop::sample::select(&LADDER[..]),
    ) {
        let shares =
            build(&HashKey::from(KEY), &candidates(&vec![weight; backends]), size).unwrap().shares();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{least} to {most}");
    }

    #[test]
    fn quotas_are_within_a_slot_of_the_exact_share(
        weights in prop_oneof![vec(1..=50_u16, 1..500), vec(some_weight(), 1..500)],
        size in prop::sample::select(&LADDER[..]),
    ) {
        let quotas = quotas(&weights, size);
        prop_assert_eq!(quotas.iter().sum::<u32>(), size);
        if size as usize >= weights.len() {
            prop_assert!(quotas.iter().all(|&quota| quota > 0));
        }
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let scaled = |weight: u16| u64::from(size) * u64::from(weight);
        if weights.iter().all(|&weight| scaled(weight) >= total) || (size as usize) < weights.len() {
            for (&quota, &weight) in quotas.iter().zip(&weights) {
                let distance = (u64::from(quota) * total).abs_diff(scaled(weight));
                prop_assert!(distance < total, "{quota} slots for {weight} of {total}");
            }
        }
        // A heavier backend never has fewer slots than a lighter one.
        let mut pairs: Vec<_> = weights.iter().zip(&quotas).collect();
        pairs.sort();
        prop_assert!(pairs.is_sorted_by(|a, b| a.0 == b.0 || a.1 <= b.1));
    }

    #[test]
    fn input_order_does_not_matter(
        (input, shuffled) in vec((any_identity(), 0..5_u16), 0..40).prop_flat_map(|input| {
            (Just(input.clone()), Just(input).prop_shuffle())
        }),
        size in small_size(),
    ) {
        let table = |list: &[(Identity, u16)]| {
            let list: Vec<Candidate> =
                list.iter().map(|&(identity, weight)| Candidate { identity, weight }).collect();
            build(&HashKey::from(KEY), &list, size).unwrap()
        };
        prop_assert_eq!(table(&input), table(&shuffled));
    }

    #[test]
    fn identities_sort_as_their_bytes(a in any_identity(), b in any_identity()) {
        prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
    }
}
