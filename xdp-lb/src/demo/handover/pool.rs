//! The services, their backends, and what happens to these.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use xdp_lb_plan::{
    maglev::{self, BuildError, Candidate, HashKey, Identity, table_size},
    model::Protocol,
};

use crate::demo::network::{self, Host, PORT};

/// A backend's weight in the file; nothing where the file does not name it.
type Weight = Option<u16>;

/// Highest weight.
const HEAVIEST: u16 = 5;

/// A service and the hosts that may serve it.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) name: &'static str,
    pub(super) mode: &'static str,
    number: u8,
    hosts: Vec<(Host, Weight)>,
    /// The first so many are never taken out: what happens to their connections is what counts
    stay: usize,
}

/// What may happen to a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Weigh,
    Drain,
    Add,
    Replace,
    Remove,
    Restore,
}

/// The order in which they take turns. Afterwards as many serve as before; what is not possible just
/// then gives way to a new weight.
const TURNS: [Kind; 10] = [
    Kind::Weigh,
    Kind::Replace,
    Kind::Drain,
    Kind::Add,
    Kind::Remove,
    Kind::Replace,
    Kind::Drain,
    Kind::Restore,
    Kind::Remove,
    Kind::Add,
];

/// A change of one service's backends.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) pool: usize,
    /// Position and new weight of each host that it is about
    pub(super) edits: Vec<(usize, Weight)>,
    /// In a few words
    pub(super) text: String,
    /// Frontends of the service
    pub(super) frontends: [SocketAddr; 2],
    /// Backends that the file does not name any more
    pub(super) removed: Vec<&'static str>,
    /// Backends that it names again
    pub(super) added: Vec<&'static str>,
}

impl Pool {
    pub(super) fn frontends(&self) -> [SocketAddr; 2] {
        network::frontends(self.number)
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = Host> {
        self.hosts.iter().map(|(host, _)| *host)
    }

    /// Positions whose weight is so.
    fn with(&self, wanted: impl Fn(Weight) -> bool) -> Vec<usize> {
        let hosts = self.hosts.iter().enumerate();
        hosts.filter(|(_, (_, weight))| wanted(*weight)).map(|(index, _)| index).collect()
    }

    /// One change of a kind, if it is possible and leaves two backends that take new connections.
    fn edits(&self, kind: Kind, random: &mut Random) -> Option<Vec<(usize, Weight)>> {
        let serving = self.with(|weight| weight > Some(0));
        let out = self.with(|weight| weight.is_none());
        let drained = self.with(|weight| weight == Some(0));
        let enough = serving.len() > 2;
        let leaves = |from: &[usize]| -> Vec<usize> {
            from.iter().copied().filter(|index| *index >= self.stay).collect()
        };
        Some(match kind {
            Kind::Weigh => {
                let index = random.of(&serving)?;
                let (_, have) = self.hosts.get(index)?;
                let other: Vec<u16> = (1..=HEAVIEST).filter(|new| Some(*new) != *have).collect();
                vec![(index, random.of(&other))]
            }
            Kind::Add => vec![(random.of(&out)?, Some(1))],
            Kind::Drain if enough => vec![(random.of(&serving)?, Some(0))],
            Kind::Restore => vec![(random.of(&drained)?, Some(1))],
            Kind::Replace => {
                vec![(random.of(&leaves(&serving))?, None), (random.of(&out)?, Some(1))]
            }
            // First those that were drained, as people do.
            Kind::Remove if !leaves(&drained).is_empty() => {
                vec![(random.of(&leaves(&drained))?, None)]
            }
            Kind::Remove if enough => vec![(random.of(&leaves(&serving))?, None)],
            Kind::Drain | Kind::Remove => return None,
        })
    }

    fn describe(&self, index: usize, new: Weight) -> String {
        let Some((host, old)) = self.hosts.get(index) else { return String::new() };
        let name = host.node;
        match (old, new) {
            (None, _) => format!("{name} added"),
            (Some(_), None) => format!("{name} removed"),
            (Some(_), Some(0)) => format!("{name} drains"),
            (Some(0), Some(_)) => format!("{name} serves again"),
            (Some(old), Some(new)) => format!("{name} has weight {new}, not {old}"),
        }
    }
}

/// All services.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pub(super) all: Vec<Pool>,
    random: Random,
    turns: usize,
    handover: bool,
}

impl Pools {
    pub(super) fn new(handover: bool) -> Self {
        let near = [("b1", 11), ("b2", 12), ("b3", 13), ("b4", 14), ("b5", 15), ("b6", 16)];
        let far = [("t1", 21), ("t2", 22), ("t3", 23), ("t4", 24)];
        let some = |host, index, serving| (host, (index < serving).then_some(1));
        let near = near.into_iter().enumerate();
        let far = far.into_iter().enumerate();
        let all = vec![
            Pool {
                name: "web",
                mode: "l2",
                number: 10,
                hosts: near.map(|(i, (node, n))| some(network::beside(node, n), i, 5)).collect(),
                stay: 3,
            },
            Pool {
                name: "api",
                mode: "ipip",
                number: 20,
                hosts: far.map(|(i, (node, n))| some(network::behind(node, n), i, 3)).collect(),
                stay: 2,
            },
        ];
        // The same changes in every run.
        Self { all, random: Random(0x5eed), turns: 0, handover }
    }

    /// The next change; it is not made yet.
    pub(super) fn next(&mut self) -> Change {
        let index = self.turns % self.all.len();
        let kind = TURNS[self.turns / self.all.len() % TURNS.len()];
        self.turns += 1;
        let pool = &self.all[index];
        let edits = pool.edits(kind, &mut self.random);
        let edits = edits.or_else(|| pool.edits(Kind::Weigh, &mut self.random)).unwrap_or_default();
        let texts: Vec<String> =
            edits.iter().map(|(index, new)| pool.describe(*index, *new)).collect();
        let names = |wanted: fn(Weight, Weight) -> bool| {
            let of = |(index, new): &(usize, Weight)| {
                let (host, old) = pool.hosts.get(*index)?;
                wanted(*old, *new).then_some(host.node)
            };
            edits.iter().filter_map(of).collect()
        };
        Change {
            pool: index,
            text: format!("{}: {}", pool.name, texts.join(", ")),
            frontends: pool.frontends(),
            removed: names(|old, new| old.is_some() && new.is_none()),
            added: names(|old, new| old.is_none() && new.is_some()),
            edits,
        }
    }

    pub(super) fn make(&mut self, change: &Change) {
        let Some(pool) = self.all.get_mut(change.pool) else { return };
        for (index, weight) in &change.edits {
            if let Some(host) = pool.hosts.get_mut(*index) {
                host.1 = *weight;
            }
        }
    }

    /// What the tables must hold: for each frontend the slots of each backend.
    pub(super) fn tables(
        &self,
        key: &HashKey,
    ) -> Result<BTreeMap<SocketAddr, BTreeMap<String, usize>>, BuildError> {
        let mut tables = BTreeMap::new();
        for pool in &self.all {
            let named = pool.hosts.iter().filter_map(|(host, weight)| Some((host, (*weight)?)));
            let candidates: Vec<Candidate> = named
                .map(|(host, weight)| Candidate {
                    identity: Identity { address: host.v4(), port: PORT, protocol: Protocol::Tcp },
                    weight,
                })
                .collect();
            let serving = candidates.iter().filter(|one| one.weight > 0).count();
            let table = maglev::build(key, &candidates, table_size(serving))?;
            let name = |address: IpAddr| SocketAddr::new(address, PORT).to_string();
            let slots: BTreeMap<String, usize> = table
                .backends()
                .iter()
                .map(|one| name(one.identity.address))
                .zip(table.shares().into_iter().map(|slots| slots as usize))
                .collect();
            tables.extend(pool.frontends().map(|frontend| (frontend, slots.clone())));
        }
        Ok(tables)
    }
}

/// The balancer's configuration.
impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = network::head();
        if !self.handover {
            text.push_str("handover: 0s\n");
        }
        text.push_str("services:\n");
        for pool in &self.all {
            writeln!(text, "  - name: {}\n    mode: {}\n    frontends:", pool.name, pool.mode)?;
            for frontend in pool.frontends() {
                let address = network::quoted(frontend.ip());
                writeln!(text, "      - {{address: {address}, port: {PORT}}}")?;
            }
            text.push_str("    backends:\n");
            for (host, weight) in &pool.hosts {
                let Some(weight) = weight else { continue };
                let (address, node) = (host.v4(), host.node);
                writeln!(text, "      - {{address: {address}, weight: {weight}}}  # {node}")?;
            }
        }
        f.write_str(&text)
    }
}

/// Numbers that look random and are the same in every run (xorshift64, Marsaglia 2003).
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn of<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let index = self.0.checked_rem(choices.len() as u64)?;
        choices.get(usize::try_from(index).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn every_kind_of_change_comes_and_two_backends_always_serve() {
        let mut pools = Pools::new(true);
        let mut texts = String::new();
        let mut changed = 0;
        for _ in 0..100 {
            let before = pools.to_string();
            let change = pools.next();
            pools.make(&change);
            changed += usize::from(pools.to_string() != before);
            texts.push_str(&change.text);
            for pool in &pools.all {
                assert!(pool.with(|weight| weight > Some(0)).len() >= 2, "{}", change.text);
                assert!(pool.hosts.iter().take(pool.stay).all(|(_, weight)| weight.is_some()));
            }
            let file = config::parse(&pools.to_string()).unwrap();
            assert_eq!(file.services.len(), 2);
        }
        assert_eq!(changed, 100);
        for part in ["added", "removed", "drains", "serves again", "has weight", "removed, b"] {
            assert!(texts.contains(part), "{part}: {texts}");
        }
    }

    #[test]
    fn without_a_handover_the_file_says_so() {
        let with = config::parse(&Pools::new(true).to_string()).unwrap();
        let without = config::parse(&Pools::new(false).to_string()).unwrap();
        assert!(without.handover.is_zero() && !with.handover.is_zero());
    }

    #[test]
    fn drained_backends_are_in_the_tables_without_a_slot() {
        let mut pools = Pools::new(true);
        pools.all[0].hosts[1].1 = Some(0);
        pools.all[0].hosts[2].1 = None;
        let tables = pools.tables(&HashKey::from([7; 16])).unwrap();
        let [four, six] = pools.all[0].frontends();
        assert_eq!(tables[&four], tables[&six]);
        assert_eq!(tables[&four].values().sum::<usize>(), 1021);
        assert_eq!(tables[&four]["10.0.1.12:80"], 0);
        assert!(!tables[&four].contains_key("10.0.1.13:80"));
        assert_eq!(tables[&four].len(), 4);
    }
}
