//! What keeps connections alive that kube-proxy has translated.
//!
//! conntrack goes on translating them without any rule, but the kernel takes its hooks away with the last
//! rule that asks for conntrack, or the last chain of type nat, of a network namespace and family
//! (`nf_ct_netns_put`, `nf_nat_unregister_fn`; seen with Linux 6.18): from then on packets of established
//! connections pass untranslated. Where no other rule holds both, a table of our own does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Error, Family,
    iptables::{Rule, Save},
    nftables, owner, tools,
};

/// Name of our table.
pub(super) const TABLE: &str = "xdp-lb-conntrack";

/// Adds it; once more does no harm.
pub(super) fn add(family: Family) -> Result<(), Error> {
    let family = family.nft();
    let text = format!(
        "add table {family} {TABLE}\n\
         add chain {family} {TABLE} keep {{ type nat hook postrouting priority 300; policy accept; }}\n\
         flush chain {family} {TABLE} keep\n\
         add rule {family} {TABLE} keep ct status dnat accept comment \"keeps connections that kube-proxy translated\"\n"
    );
    match tools::try_run("nft", &["-f", "-"], &text)? {
        Some(ran) if ran.success => Ok(()),
        Some(ran) => Err(Error::Tool { command: "nft -f -".to_owned(), message: ran.stderr }),
        None => Err(Error::NoKeeper),
    }
}

/// Takes it away, if it is there.
pub(super) fn remove(family: Family) -> Result<(), Error> {
    let family = family.nft();
    let text = format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n");
    match tools::try_run("nft", &["-f", "-"], &text)? {
        Some(ran) if !ran.success => {
            Err(Error::Tool { command: "nft -f -".to_owned(), message: ran.stderr })
        }
        // It cannot be there without the program that adds it.
        Some(_) | None => Ok(()),
    }
}

/// Whether it is needed once kube-proxy's rules are gone from these, all of one family.
pub(super) fn is_needed(family: Family, saves: &[&Save], ruleset: &Value) -> bool {
    let mut holds = Holds::default();
    for save in saves {
        holds.see_save(save);
    }
    holds.see_ruleset(family, ruleset);
    !(holds.conntrack && holds.nat)
}

/// What other people's rules hold.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    conntrack: bool,
    nat: bool,
}

impl Holds {
    fn see_save(&mut self, save: &Save) {
        // Chains of the kernel stay.
        self.nat |= save.tables.contains_key("nat");
        for (name, table) in &save.tables {
            let own = owner::Own::of(name, table);
            let chains: BTreeSet<&String> = own.chains.iter().collect();
            let stays = |rule: &&Rule| {
                !chains.contains(&rule.chain) && !own.jumps.iter().any(|one| one.2 == rule.text)
            };
            self.conntrack |= table.rules.iter().filter(stays).any(|rule| {
                let targets = ["DNAT", "SNAT", "MASQUERADE", "REDIRECT"];
                rule.has("-m", "conntrack")
                    || rule.has("-m", "state")
                    || rule.target().is_some_and(|target| targets.contains(&target))
            });
        }
    }

    fn see_ruleset(&mut self, family: Family, ruleset: &Value) {
        // iptables' tables are seen as iptables shows them.
        let iptables = ["nat", "filter", "mangle", "raw", "security"];
        let own = [nftables::TABLE, TABLE];
        let is_foreign = |one: &Value, table: &str| {
            let name = one[table].as_str().unwrap_or_default();
            let of = one["family"].as_str().unwrap_or_default();
            let concerns = of == "inet" || of == family.nft();
            concerns && !own.contains(&name) && (of == "inet" || !iptables.contains(&name))
        };
        for one in ruleset["nftables"].as_array().into_iter().flatten() {
            let chain = &one["chain"];
            self.nat |= chain["type"] == "nat" && is_foreign(chain, "table");
            let rule = &one["rule"];
            self.conntrack |= is_foreign(rule, "table") && asks_for_conntrack(&rule["expr"]);
        }
    }
}

/// Whether an expression, or a part of it, asks for conntrack.
fn asks_for_conntrack(expression: &Value) -> bool {
    match expression {
        Value::Array(parts) => parts.iter().any(asks_for_conntrack),
        Value::Object(parts) => parts.iter().any(|(name, part)| {
            let name = name.as_str();
            matches!(name, "ct" | "masquerade" | "snat" | "dnat" | "redirect")
                || asks_for_conntrack(part)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
