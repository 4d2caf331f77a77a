//! Whose a chain of iptables is, and what takes kube-proxy's out and puts them back.
//!
//! Its chains are those that its own clean-up removes, in the modes iptables and ipvs. KUBE-FIREWALL,
//! KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY and KUBE-MARK-DROP are kubelet's. What somebody else's rule
//! leads to stays, with all that it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::iptables::{Rule, Save, Table};

/// Chains by name.
const CHAINS: [(&str, &[&str]); 3] = [
    ("mangle", &["KUBE-PROXY-CANARY"]),
    (
        "nat",
        &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
        ],
    ),
    (
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ],
    ),
];
/// What chains of services and endpoints in `nat` begin with; `KUBE-XLB-` up to Kubernetes 1.23.
const SERVICES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];
/// By what comments kube-proxy's own jumps into its chains are known.
const JUMPS: [(&str, &str); 10] = [
    ("KUBE-SERVICES", "kubernetes service portals"),
    ("KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals"),
    ("KUBE-NODEPORTS", "kubernetes health check service ports"),
    ("KUBE-FORWARD", "kubernetes forwarding rules"),
    ("KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
    ("KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("KUBE-POSTROUTING", "kubernetes postrouting rules"),
    ("KUBE-NODE-PORT", "kubernetes health check rules"),
    ("KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    ("KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
];

/// Whether kube-proxy makes chains of this name.
pub(super) fn is_of_kube_proxy(table: &str, chain: &str) -> bool {
    let named = CHAINS.iter().any(|(name, chains)| *name == table && chains.contains(&chain));
    named || (table == "nat" && SERVICES.iter().any(|prefix| chain.starts_with(prefix)))
}

/// What of a table is kube-proxy's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Own {
    /// Its jumps in chains of the kernel: chain, place from 1 on, text
    pub(super) jumps: Vec<(String, usize, String)>,
    /// Its chains
    pub(super) chains: Vec<String>,
    /// Rules in these chains: chain, text
    pub(super) rules: Vec<(String, String)>,
    /// Chains of its names that stay, and why
    pub(super) kept: BTreeMap<String, String>,
}

impl Own {
    /// Finds it.
    pub(super) fn of(name: &str, table: &Table) -> Self {
        let candidates: BTreeSet<&str> = table
            .chains
            .iter()
            .filter(|(chain, builtin)| !builtin && is_of_kube_proxy(name, chain))
            .map(|(chain, _)| chain.as_str())
            .collect();
        let kept = kept(name, table, &candidates);
        let goes = |chain: &str| candidates.contains(chain) && !kept.contains_key(chain);
        let mut own = Self {
            chains: table.chains.iter().map(|one| one.0.clone()).filter(|one| goes(one)).collect(),
            kept: kept.clone(),
            ..Self::default()
        };
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for rule in &table.rules {
            let place = places.entry(&rule.chain).or_default();
            *place += 1;
            if goes(&rule.chain) {
                own.rules.push((rule.chain.clone(), rule.text.clone()));
            } else if rule.target().is_some_and(goes) {
                own.jumps.push((rule.chain.clone(), *place, rule.text.clone()));
            }
        }
        own
    }

    /// Whether nothing is there to be removed.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    /// Takes it out: one transaction of `iptables-restore --noflush`.
    pub(super) fn removal(&self, table: &str) -> String {
        let mut text = format!("*{table}\n");
        for chain in &self.chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (chain, _, rule) in &self.jumps {
            let _ = writeln!(text, "-D {chain} {rule}");
        }
        for chain in &self.chains {
            let _ = writeln!(text, "-X {chain}");
        }
        text + "COMMIT\n"
    }

    /// Puts it back into a table as it is `now`, whatever of it is there already: one transaction.
    pub(super) fn restoration(&self, table: &str, now: &Table) -> String {
        let there = Self::of(table, now);
        let mut text = format!("*{table}\n");
        for chain in &self.chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (chain, _, rule) in &there.jumps {
            let _ = writeln!(text, "-D {chain} {rule}");
        }
        let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
        for rule in &now.rules {
            *rules.entry(&rule.chain).or_default() += 1;
        }
        for (chain, _, _) in &there.jumps {
            rules.entry(chain).and_modify(|count| *count -= 1);
        }
        for (chain, place, rule) in &self.jumps {
            // As far down as before, or at the end.
            let count = rules.entry(chain).or_default();
            *count += 1;
            let _ = writeln!(text, "-I {chain} {} {rule}", place.min(count));
        }
        for (chain, rule) in &self.rules {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
        text + "COMMIT\n"
    }
}

/// kube-proxy's chains that must stay, and why.
fn kept(name: &str, table: &Table, candidates: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    let mut keep = |chain: &str, why: String| {
        kept.entry(chain.to_owned()).or_insert(why);
    };
    for rule in &table.rules {
        let Some(target) = rule.target().filter(|target| candidates.contains(target)) else {
            continue;
        };
        if !candidates.contains(rule.chain.as_str()) && !is_jump(table, rule, target) {
            keep(target, format!("a rule in {} leads to it", rule.chain));
        }
    }
    // Up to Kubernetes 1.27 kubelet made chains for masquerading, and this one with them.
    if name == "nat" && table.chains.iter().any(|(chain, _)| chain == "KUBE-MARK-DROP") {
        for chain in ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
            keep(chain, "it is kubelet's, as KUBE-MARK-DROP is".to_owned());
        }
    }
    kept.retain(|chain, _| candidates.contains(chain.as_str()));
    // What those lead to that stay.
    loop {
        let next = table.rules.iter().find_map(|rule| {
            let target = rule.target().filter(|target| candidates.contains(target))?;
            let new = kept.contains_key(&rule.chain) && !kept.contains_key(target);
            new.then(|| (target.to_owned(), format!("{} stays, which leads to it", rule.chain)))
        });
        let (masq, postrouting) = ("KUBE-MARK-MASQ", "KUBE-POSTROUTING");
        let masquerades = kept.contains_key(masq) && !kept.contains_key(postrouting);
        let next = next.or_else(|| {
            let why = format!("{masq} stays, whose marks it masquerades");
            (masquerades && candidates.contains(postrouting)).then(|| (postrouting.to_owned(), why))
        });
        match next {
            Some((chain, why)) => kept.insert(chain, why),
            None => return kept,
        };
    }
}

/// Whether a rule is one by which kube-proxy enters its chains.
fn is_jump(table: &Table, rule: &Rule, target: &str) -> bool {
    let builtin = table.chains.iter().any(|(chain, builtin)| *builtin && *chain == rule.chain);
    let known =
        |(chain, comment): &(&str, &str)| *chain == target && rule.has("--comment", comment);
    builtin && JUMPS.iter().any(known)
}

/// What of all tables is kube-proxy's; none where it is nothing.
pub(super) fn own(save: &Save) -> BTreeMap<String, Own> {
    let all = save.tables.iter().map(|(name, table)| (name.clone(), Own::of(name, table)));
    all.filter(|(_, own)| !own.is_empty()).collect()
}
