//! What iptables-save(8) prints, and what kube-proxy serves by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    Family,
    served::{Answer, At, Chains, NodeAddresses, Served, Step, protocol},
};

/// All tables of one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Save {
    pub(super) tables: BTreeMap<String, Table>,
}

/// A table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Table {
    /// Chains in their order; whether the kernel has them by itself
    pub(super) chains: Vec<(String, bool)>,
    /// Rules in their order
    pub(super) rules: Vec<Rule>,
    /// Whether what no rule of FORWARD decides is dropped
    pub(super) drops_forwarded: bool,
}

/// A rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    /// Its chain
    pub(super) chain: String,
    /// All behind the chain's name, as it was printed
    pub(super) text: String,
    /// The same as single words
    words: Vec<String>,
}

impl Save {
    /// Reads what iptables-save(8) printed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut save = Self::default();
        let mut table: Option<(String, Table)> = None;
        for line in text.lines() {
            let wrong = || format!("there is no rule in {line:?}");
            match (line.split_at_checked(1), &mut table) {
                (None | Some(("#", _)), _) => {}
                (Some(("*", name)), None) => table = Some((name.to_owned(), Table::default())),
                (Some((":", rest)), Some((_, table))) => {
                    let (name, rest) = rest.split_once(' ').ok_or_else(wrong)?;
                    table.drops_forwarded |= name == "FORWARD" && rest.starts_with("DROP");
                    table.chains.push((name.to_owned(), !rest.starts_with('-')));
                }
                (Some(("-", rest)), Some((_, table))) => {
                    let rest = rest.strip_prefix("A ").ok_or_else(wrong)?;
                    let (chain, text) = rest.split_once(' ').unwrap_or((rest, ""));
                    let words = words(text).ok_or_else(wrong)?;
                    table.rules.push(Rule {
                        chain: chain.to_owned(),
                        text: text.to_owned(),
                        words,
                    });
                }
                (Some(_), _) if line == "COMMIT" => {
                    let (name, table) = table.take().ok_or_else(wrong)?;
                    save.tables.insert(name, table);
                }
                (Some(_), _) => return Err(wrong()),
            }
        }
        match table {
            None => Ok(save),
            Some((name, _)) => Err(format!("table {name} has no end")),
        }
    }

    fn rules<'a>(&'a self, table: &str, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        let rules = self.tables.get(table).into_iter().flat_map(|table| &table.rules);
        rules.filter(move |rule| rule.chain == chain)
    }

    /// What kube-proxy serves by these rules.
    pub(super) fn served(&self, family: Family) -> Vec<Served> {
        let chains = self.chains();
        let on_node = self.node_addresses(family);
        let mut all = Vec::new();
        for rule in self.rules("nat", "KUBE-SERVICES") {
            let (Some(to), Some(chain)) = (rule.destination(), rule.target()) else { continue };
            let kind = rule.kind();
            all.extend(served(rule, At::Address(to), kind, chains.answer(chain)));
        }
        for rule in self.rules("nat", "KUBE-NODEPORTS") {
            // Those of 127.0.0.0/8 are counted, and go the way of the others.
            let (false, Some(chain)) = (rule.value("-d").is_some(), rule.target()) else {
                continue;
            };
            let at = At::NodePort(on_node.clone());
            all.extend(served(rule, at, "NodePort", chains.answer(chain)));
        }
        for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"] {
            for rule in self.rules("filter", chain) {
                let answer = match rule.target() {
                    Some("REJECT") => Answer::Refused,
                    Some("DROP") => Answer::Dropped,
                    _ => continue,
                };
                let (at, kind) = match rule.destination() {
                    Some(to) if chain == "KUBE-SERVICES" => (At::Address(to), "ClusterIP"),
                    Some(to) => (At::Address(to), "LoadBalancer"),
                    None => (At::NodePort(on_node.clone()), "NodePort"),
                };
                let Some(one) = served(rule, at, kind, (answer, None)) else { continue };
                // It may be led to endpoints elsewhere for those inside.
                match all.iter_mut().find(|other| one.is_at_the_same(other)) {
                    Some(other) => other.answer = one.answer,
                    None => all.push(one),
                }
            }
        }
        all
    }

    /// On which addresses node ports are: all, or those that rules name.
    fn node_addresses(&self, family: Family) -> NodeAddresses {
        let jumps = self.rules("nat", "KUBE-SERVICES");
        let jumps = jumps.filter(|rule| rule.target() == Some("KUBE-NODEPORTS"));
        let mut named = BTreeSet::new();
        for rule in jumps {
            match rule.destination().filter(|_| !rule.words.iter().any(|word| word == "!")) {
                Some(address) => named.insert(address),
                None => {
                    let loopback = family == Family::V4 && rule.value("-d").is_none();
                    return NodeAddresses::All { family, loopback };
                }
            };
        }
        NodeAddresses::These(named)
    }

    fn chains(&self) -> Chains {
        let mut chains = Chains::default();
        for rule in self.tables.get("nat").into_iter().flat_map(|table| &table.rules) {
            let Some(target) = rule.target() else { continue };
            // A firewall chain has a rule for each range that is let through.
            let some = !rule.chain.starts_with("KUBE-FW-")
                && (rule.value("-s").is_some() || rule.value("--src-type").is_some());
            let step = match (target, rule.value("--to-destination")) {
                ("DNAT", Some(to)) => to.parse().ok().map(|to: SocketAddr| Step::Endpoint(to)),
                (chain, _) if some => Some(Step::ChainForSome(chain.to_owned())),
                (chain, _) => Some(Step::Chain(chain.to_owned())),
            };
            chains.0.entry(rule.chain.clone()).or_default().extend(step);
        }
        chains
    }
}

impl Served {
    fn is_at_the_same(&self, other: &Self) -> bool {
        self.at == other.at && self.port == other.port && self.protocol == other.protocol
    }
}

fn served(
    rule: &Rule,
    at: At,
    kind: &'static str,
    (answer, inside): (Answer, Option<BTreeSet<SocketAddr>>),
) -> Option<Served> {
    let port = rule.value("--dport")?.parse().ok()?;
    let protocol = protocol(rule.value("-p")?);
    let comment = rule.value("--comment").unwrap_or_default();
    let service = comment.split(' ').next().unwrap_or_default().to_owned();
    Some(Served { at, port, protocol, kind, service, answer, inside })
}

impl Rule {
    /// What stands behind an option.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == option)?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Where it jumps or goes to.
    pub(super) fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// Whether it has this option with this value.
    pub(super) fn has(&self, option: &str, value: &str) -> bool {
        self.words.windows(2).any(|pair| pair[0] == option && pair[1] == value)
    }

    /// The one address that it is for.
    fn destination(&self) -> Option<IpAddr> {
        let (address, length) = self.value("-d")?.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let whole = if address.is_ipv4() { "32" } else { "128" };
        (length == whole).then_some(address)
    }

    fn kind(&self) -> &'static str {
        let comment = self.value("--comment").unwrap_or_default();
        if comment.ends_with("cluster IP") {
            "ClusterIP"
        } else if comment.ends_with("external IP") {
            "ExternalIP"
        } else {
            "LoadBalancer"
        }
    }
}

/// Words as a shell would see them; nothing where a quotation has no end.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().push(letters.next()?),
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}
