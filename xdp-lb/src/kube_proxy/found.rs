//! What of kube-proxy is here: read in one place, and nothing is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use super::{
    Error, Family, ModeFrom, Process,
    iptables::Save,
    ipvs, keeper, manifest, nftables, owner, process,
    served::Served,
    tools::{self, line},
};
use crate::doctor::nftables_chains;

/// What of kube-proxy is here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// The processes in this network namespace
    pub processes: Vec<Process>,
    /// Manifests of static pods
    pub manifests: Vec<PathBuf>,
    /// Its mode
    pub mode: Option<String>,
    /// How that is known
    pub mode_from: Option<ModeFrom>,
    /// Whether its port answers, be there a process of its name or not
    pub answers: bool,
    /// Rules of each kind and family
    pub rules: Vec<RuleSet>,
}

/// Rules of one kind and family.
#[derive(Debug, Serialize)]
pub struct RuleSet {
    /// `nftables`, `iptables-nft`, `iptables-legacy` or `IPVS`
    pub kind: &'static str,
    /// The family
    pub family: Family,
    /// What is there
    #[serde(flatten)]
    pub state: RulesState,
    #[serde(skip)]
    pub(super) content: Content,
}

/// What of kube-proxy's rules is there.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum RulesState {
    /// None
    None,
    /// So many
    Present {
        /// Chains; virtual servers of IPVS
        chains: usize,
        /// Rules; destinations of IPVS
        rules: usize,
        /// Sets and maps
        sets: usize,
        /// Frontends that they serve
        frontends: usize,
        /// Chains that stay in spite of their names, and why
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        kept: BTreeMap<String, String>,
    },
    /// It cannot be told
    Unreadable {
        /// Why, and what to do
        why: String,
    },
}

/// The rules themselves.
#[derive(Debug, Default)]
pub(super) enum Content {
    #[default]
    Nothing,
    Nftables {
        table: nftables::Table,
        /// As nft(8) reads it again
        text: String,
    },
    Iptables(Iptables),
    Ipvs(Ipvs),
}

/// Rules of iptables, of one family.
#[derive(Debug)]
pub(super) struct Iptables {
    pub(super) save: Save,
    /// As it was printed
    pub(super) text: String,
    /// The program that writes them
    pub(super) restore: String,
}

/// IPVS, of one family.
#[derive(Debug)]
pub(super) struct Ipvs {
    pub(super) own: Vec<ipvs::Virtual>,
    /// Addresses of kube-proxy's device
    pub(super) device: BTreeSet<IpAddr>,
    /// kube-proxy's sets, as `ipset save` printed them
    pub(super) sets: String,
}

impl Found {
    /// Looks for it; static pods' manifests in `manifests`.
    ///
    /// # Errors
    ///
    /// Without root, and where the kernel or a tool refuses.
    pub fn look(manifests: &Path) -> Result<Self, Error> {
        let processes = process::find();
        let said = process::mode_by_port();
        let answers = said.is_some();
        let rules = rules()?;
        let by_rules = || {
            let present = |one: &&RuleSet| matches!(one.state, RulesState::Present { .. });
            // Mode ipvs has rules of iptables, too.
            let found = rules.iter().filter(present);
            let name = found.map(|one| one.kind).max_by_key(|kind| *kind == "IPVS")?;
            Some((name.split('-').next()?.to_ascii_lowercase(), ModeFrom::Rules))
        };
        let mode = said.map(|mode| (mode, ModeFrom::Port));
        let mode = mode.or_else(|| processes.iter().find_map(Process::mode)).or_else(by_rules);
        let (mode, mode_from) = mode.unzip();
        let manifests = manifest::find(manifests)?;
        Ok(Self { processes, manifests, mode, mode_from, answers, rules })
    }

    /// Whether one runs.
    pub fn runs(&self) -> bool {
        self.answers || !self.processes.is_empty()
    }

    /// Whether it left rules.
    pub fn has_rules(&self) -> bool {
        self.rules.iter().any(|one| one.state != RulesState::None)
    }

    /// What it serves by its rules.
    ///
    /// # Errors
    ///
    /// Where some of them cannot be read.
    pub(super) fn served(&self) -> Result<Vec<Served>, Error> {
        self.readable()?;
        Ok(self.rules.iter().flat_map(RuleSet::served).collect())
    }

    /// An error where rules are there that nobody can read.
    pub(super) fn readable(&self) -> Result<(), Error> {
        for one in &self.rules {
            if let RulesState::Unreadable { why } = &one.state {
                let command = format!("{} of {}", one.kind, one.family);
                return Err(Error::Format { command, message: why.clone() });
            }
        }
        Ok(())
    }

    /// Whether what is left of a family's rules lets connections break that kube-proxy translated.
    pub(super) fn needs_keeper(&self, family: Family) -> bool {
        let of_family = self.rules.iter().filter(|one| one.family == family);
        let saves = of_family.filter_map(|one| match &one.content {
            Content::Iptables(iptables) => Some(&iptables.save),
            Content::Nothing | Content::Nftables { .. } | Content::Ipvs(_) => None,
        });
        let saves: Vec<&Save> = saves.collect();
        // Where nobody says what is there, nothing may hold them.
        let ruleset = tools::run("nft", &["-j", "list", "ruleset"], "").unwrap_or_default();
        let ruleset: Value = serde_json::from_str(&ruleset).unwrap_or_default();
        keeper::is_needed(family, &saves, &ruleset)
    }
}

impl RuleSet {
    fn served(&self) -> Vec<Served> {
        match &self.content {
            Content::Nothing => Vec::new(),
            Content::Nftables { table, .. } => table.served(self.family),
            Content::Iptables(one) => one.save.served(self.family),
            Content::Ipvs(one) => ipvs::served(&one.own, &one.device),
        }
    }
}

fn rules() -> Result<Vec<RuleSet>, Error> {
    let chains = nftables_chains().ok_or(Error::Permission)?;
    let mut all = Vec::new();
    for family in Family::ALL {
        all.push(nftables(family, &chains)?);
        all.push(iptables(family, Variant::Nft, &chains)?);
        all.push(iptables(family, Variant::Legacy, &chains)?);
        all.push(ipvs_rules(family)?);
    }
    Ok(all)
}

/// Its table of nftables. The kernel tells whether it is there, without any program.
fn nftables(family: Family, chains: &BTreeSet<(String, String)>) -> Result<RuleSet, Error> {
    let kind = "nftables";
    let nothing = RuleSet { kind, family, state: RulesState::None, content: Content::Nothing };
    if !chains.iter().any(|(table, _)| table == nftables::TABLE) {
        return Ok(nothing);
    }
    let words = ["-j", "list", "table", family.nft(), nftables::TABLE];
    let Some(ran) = tools::try_run("nft", &words, "")? else {
        let why = unreadable("the table kube-proxy of nftables", "nft (package nftables)");
        return Ok(RuleSet { state: why, ..nothing });
    };
    if !ran.success {
        // It may be the other family's alone.
        if ran.stderr.contains("No such file") {
            return Ok(nothing);
        }
        return Err(Error::Tool { command: line("nft", &words), message: ran.stderr });
    }
    let wrong = |error: serde_json::Error| Error::Format {
        command: line("nft", &words),
        message: error.to_string(),
    };
    let table = nftables::Table::parse(&ran.stdout).map_err(wrong)?;
    // Without times and counters, which nobody wants back.
    let text = tools::run("nft", &["-s", "list", "table", family.nft(), nftables::TABLE], "")?;
    let [chains, rules, sets] = table.counts();
    let frontends = table.served(family).len();
    let state = RulesState::Present { chains, rules, sets, frontends, kept: BTreeMap::new() };
    Ok(RuleSet { kind, family, state, content: Content::Nftables { table, text } })
}

/// The two that iptables is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

fn iptables(
    family: Family,
    variant: Variant,
    chains: &BTreeSet<(String, String)>,
) -> Result<RuleSet, Error> {
    let kind = match variant {
        Variant::Nft => "iptables-nft",
        Variant::Legacy => "iptables-legacy",
    };
    let nothing = RuleSet { kind, family, state: RulesState::None, content: Content::Nothing };
    // What the kernel says by itself.
    let there = match variant {
        Variant::Nft => chains.iter().any(|(table, _)| {
            ["nat", "filter", "mangle", "raw", "security"].contains(&table.as_str())
        }),
        Variant::Legacy => {
            let names = match family {
                Family::V4 => "/proc/net/ip_tables_names",
                Family::V6 => "/proc/net/ip6_tables_names",
            };
            fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
        }
    };
    if !there {
        return Ok(nothing);
    }
    let Some((save, restore)) = programs(family, variant)? else {
        // Without a chain of its own, it has none there.
        let none = variant == Variant::Nft
            && !chains.iter().any(|(table, chain)| owner::is_of_kube_proxy(table, chain));
        let what = format!("tables of {kind} ({family})");
        let tool = format!("{}-{}-save", family.iptables(), variant.name());
        let state =
            if none { RulesState::None } else { unreadable(&what, &format!("{tool} (iptables)")) };
        return Ok(RuleSet { state, ..nothing });
    };
    let text = tools::run(&save, &[], "")?;
    let wrong = |message| Error::Format { command: save.clone(), message };
    let save = Save::parse(&text).map_err(wrong)?;
    let own = owner::own(&save);
    let frontends = save.served(family).len();
    let mut kept = BTreeMap::new();
    for (name, table) in &save.tables {
        kept.extend(owner::Own::of(name, table).kept);
    }
    let state = if own.is_empty() {
        RulesState::None
    } else {
        RulesState::Present {
            chains: own.values().map(|one| one.chains.len()).sum(),
            rules: own.values().map(|one| one.rules.len() + one.jumps.len()).sum(),
            sets: 0,
            frontends,
            kept,
        }
    };
    Ok(RuleSet {
        kind,
        family,
        state,
        content: Content::Iptables(Iptables { save, text, restore }),
    })
}

/// The programs that save and restore a variant: by its own name, or by the common one.
fn programs(family: Family, variant: Variant) -> Result<Option<(String, String)>, Error> {
    let (name, variant) = (family.iptables(), variant.name());
    let save = format!("{name}-{variant}-save");
    if tools::is_here(&save) {
        return Ok(Some((save, format!("{name}-{variant}-restore"))));
    }
    let save = format!("{name}-save");
    let Some(ran) = tools::try_run(&save, &["--version"], "")? else { return Ok(None) };
    // Before 1.8 there was but the older one, and it did not say so.
    let is_nft = ran.stdout.contains("nf_tables");
    Ok((is_nft == (variant == "nft")).then(|| (save, format!("{name}-restore"))))
}

fn unreadable(what: &str, tool: &str) -> RulesState {
    let error = Error::NoTool { what: what.to_owned(), tool: tool.to_owned() };
    RulesState::Unreadable { why: error.to_string() }
}

fn ipvs_rules(family: Family) -> Result<RuleSet, Error> {
    let kind = "IPVS";
    let nothing = RuleSet { kind, family, state: RulesState::None, content: Content::Nothing };
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let device: BTreeSet<IpAddr> =
        addresses(Some(ipvs::DEVICE)).into_iter().filter(of_family).collect();
    // No such file: the kernel has no IPVS, or nobody uses it.
    let text = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
    let wrong = |message| Error::Format { command: "cat /proc/net/ip_vs".to_owned(), message };
    let mut all = ipvs::parse(&text).map_err(wrong)?;
    all.retain(|one| of_family(&one.at.ip()));
    let sets = tools::try_run("ipset", &["save"], "")?;
    // kube-proxy has its device wherever it has virtual servers.
    if !device.is_empty() && (sets.is_none() || !tools::is_here("ipvsadm")) {
        let tool = "ipset and ipvsadm";
        return Ok(RuleSet { state: unreadable("virtual servers of IPVS", tool), ..nothing });
    }
    let sets = sets.map(|ran| ran.stdout).unwrap_or_default();
    let is_own =
        |line: &&str| line.split(' ').nth(1).is_some_and(|name| ipvs::is_set(family, name));
    let sets: String = sets.lines().filter(is_own).flat_map(|one| [one, "\n"]).collect();
    let own = ipvs::own(&all, &device, &ipvs::node_ports(&sets));
    if own.is_empty() && device.is_empty() && sets.is_empty() {
        return Ok(nothing);
    }
    let frontends = ipvs::served(&own, &device).len();
    let state = RulesState::Present {
        chains: own.len(),
        rules: own.iter().map(|one| one.real.len()).sum(),
        sets: sets.lines().filter(|line| line.starts_with("create ")).count(),
        frontends,
        kept: BTreeMap::new(),
    };
    Ok(RuleSet { kind, family, state, content: Content::Ipvs(Ipvs { own, device, sets }) })
}

/// Addresses of this host, of one device or of all; not what the kernel gives each device for its link.
pub(super) fn addresses(device: Option<&str>) -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let of = all.filter(|one| device.is_none_or(|name| one.interface_name == name));
    let ip = |one: nix::ifaddrs::InterfaceAddress| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|one| IpAddr::from(one.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|one| IpAddr::from(one.ip())))
    };
    let link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    of.filter_map(ip).filter(|ip| !link_local(ip)).collect()
}
