//! Takes kube-proxy and its rules out.
//!
//! Each step is recorded before it is made, and does no harm when it is made twice: whatever interrupts
//! it, the same command goes on, and `restore` takes it back.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Error, Family, Found, Journal, Process, RuleSet, RulesState, RunsAs, Stage,
    found::{Content, Ipvs, addresses},
    ipvs,
    journal::{Backup, SavedRules},
    keeper, nftables, owner, process, tools,
};
use crate::files;

/// How often it is looked whether kube-proxy is gone.
const TURN: Duration = Duration::from_millis(100);
/// How long it must have been gone.
const SETTLE: Duration = Duration::from_millis(500);

/// What a removal does, in its order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Plan {
    /// The steps
    pub steps: Vec<PlanStep>,
}

/// A step of a removal.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PlanStep {
    /// `move`, `stop`, `add`, `remove`, `keep` or `look at`
    pub action: &'static str,
    /// What kind of thing
    pub what: String,
    /// Its name
    pub name: String,
    /// What to know about it
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Plan {
    /// What a removal would do now.
    pub fn of(found: &Found, backup: &Path) -> Self {
        let mut plan = Self::default();
        let mut add = |action, what: String, name: &str, note: String| {
            plan.steps.push(PlanStep { action, what, name: name.to_owned(), note });
        };
        let aside = backup.join("manifests");
        for path in &found.manifests {
            let note = format!("to {}", aside.display());
            add("move", "manifest".to_owned(), &path.display().to_string(), note);
        }
        for one in &found.processes {
            let note = advice(found, one);
            add("stop", "process".to_owned(), &format!("{} {}", one.id, one.command[0]), note);
        }
        for family in keepers(found) {
            let note = "keeps connections that kube-proxy has translated".to_owned();
            let name = format!("{} {}", family.nft(), keeper::TABLE);
            add("add", "table of nftables".to_owned(), &name, note);
        }
        for one in &found.rules {
            one.plan(&mut add);
            if let Some(warning) = one.warning() {
                add("look at", one.kind.to_owned(), "connections", warning);
            }
        }
        plan
    }
}

impl RuleSet {
    /// What may be missed once it is gone.
    pub(super) fn warning(&self) -> Option<String> {
        let iptables = match &self.content {
            Content::Iptables(iptables) => iptables,
            Content::Ipvs(one) if !one.own.is_empty() => {
                return Some(format!(
                    "connections of {} through virtual servers of IPVS end with them: the kernel drops their \
                     packets",
                    self.family
                ));
            }
            Content::Nothing | Content::Nftables { .. } | Content::Ipvs(_) => return None,
        };
        let filter = iptables.save.tables.get("filter")?;
        let goes = owner::Own::of("filter", filter).chains.iter().any(|one| one == "KUBE-FORWARD");
        (filter.drops_forwarded && goes).then(|| {
            format!(
                "FORWARD of {} ({}) drops what no rule accepts, and KUBE-FORWARD has accepted what conntrack \
                 knows: see that rules of your own or of your CNI accept the traffic of pods",
                self.kind, self.family
            )
        })
    }

    /// Adds each chain, set, table and device that goes, or stays in spite of its name.
    fn plan(&self, add: &mut impl FnMut(&'static str, String, &str, String)) {
        let RulesState::Present { chains, rules, sets, .. } = &self.state else { return };
        match &self.content {
            Content::Nothing => {}
            Content::Nftables { .. } => {
                let name = format!("{} {}", self.family.nft(), nftables::TABLE);
                let note = format!("{chains} chains, {rules} rules, {sets} sets and maps");
                add("remove", "table of nftables".to_owned(), &name, note);
            }
            Content::Iptables(iptables) => {
                for (table, rules) in &iptables.save.tables {
                    let own = owner::Own::of(table, rules);
                    let what =
                        |thing| format!("{thing} of {} ({}, {table})", self.kind, self.family);
                    for (chain, _, rule) in &own.jumps {
                        add("remove", what("rule"), &format!("{chain} {rule}"), String::new());
                    }
                    for chain in &own.chains {
                        add("remove", what("chain"), chain, String::new());
                    }
                    for (chain, why) in own.kept {
                        add("keep", what("chain"), &chain, why);
                    }
                }
            }
            Content::Ipvs(Ipvs { own, device, sets }) => {
                for one in own {
                    let name = format!("{}/{}", one.at, one.protocol);
                    add("remove", "virtual server of IPVS".to_owned(), &name, String::new());
                }
                if !device.is_empty() {
                    add("remove", "device".to_owned(), ipvs::DEVICE, String::new());
                }
                for set in set_names(sets) {
                    add("remove", "ipset".to_owned(), set, String::new());
                }
            }
        }
    }

    fn is_present(&self) -> bool {
        matches!(self.state, RulesState::Present { .. })
    }

    /// As it is written to a file.
    fn saved(&self) -> Option<(SavedRules, String)> {
        let ending = match self.kind {
            "nftables" => "nft",
            _ => "save",
        };
        let file = format!("{}-{}.{ending}", self.kind.to_lowercase(), self.family.nft());
        let text = match &self.content {
            Content::Nothing => return None,
            Content::Nftables { text, .. } => text.clone(),
            Content::Iptables(iptables) => iptables.text.clone(),
            Content::Ipvs(one) => one.text(),
        };
        let saved = SavedRules { kind: self.kind.to_owned(), family: self.family, file };
        self.is_present().then_some((saved, text))
    }

    /// Removes it: nftables and each table of iptables in one transaction.
    fn take_out(&self) -> Result<(), Error> {
        match &self.content {
            Content::Nothing => Ok(()),
            Content::Nftables { .. } => {
                let table = format!("{} {}", self.family.nft(), nftables::TABLE);
                tools::run("nft", &["-f", "-"], &format!("delete table {table}\n")).map(drop)
            }
            Content::Iptables(iptables) => {
                let own = owner::own(&iptables.save);
                let text: String = own.iter().map(|(table, own)| own.removal(table)).collect();
                if own.is_empty() {
                    return Ok(());
                }
                tools::run(&iptables.restore, &RESTORE, &text).map(drop)
            }
            Content::Ipvs(one) => one.take_out(),
        }
    }
}

/// Words of iptables-restore(8): leave all else, and wait for who else writes.
pub(super) const RESTORE: [&str; 3] = ["--noflush", "-w", "10"];

impl Ipvs {
    fn take_out(&self) -> Result<(), Error> {
        for words in ipvs::removal(&self.own) {
            tools::run("ipvsadm", &words.each_ref().map(String::as_str), "")?;
        }
        let device = ipvs::DEVICE;
        if !self.device.is_empty() {
            let batch = ipvs::batch("delete", self.device.iter().copied());
            tools::run("ip", &["-batch", "-"], &batch)?;
        }
        // The other family's virtual servers are known by its addresses there.
        if addresses(Some(device)).is_empty() {
            // It may be gone already.
            tools::try_run("ip", &["link", "delete", device], "")?;
        }
        for set in set_names(&self.sets) {
            tools::run("ipset", &["destroy", set], "")?;
        }
        Ok(())
    }
}

fn set_names(sets: &str) -> impl Iterator<Item = &str> {
    sets.lines().filter_map(|line| line.strip_prefix("create ")?.split(' ').next())
}

/// Families whose established connections would lose their translation.
fn keepers(found: &Found) -> Vec<Family> {
    let concerned = |family: &Family| {
        let mut all = found.rules.iter();
        all.any(|one| one.family == *family && one.is_present()) && found.needs_keeper(*family)
    };
    Family::ALL.into_iter().filter(concerned).collect()
}

/// What ends a process.
fn advice(found: &Found, process: &Process) -> String {
    let node = process.node();
    match &process.runs_as {
        RunsAs::DaemonSet => format!(
            "it is a DaemonSet's. Once for the cluster, run: kubectl -n kube-system patch daemonset \
             kube-proxy --type merge -p '{PATCH}'; and for this node: kubectl label node {node} {LABEL}=removed"
        ),
        RunsAs::Unit(unit) => format!("run: systemctl disable --now {unit}"),
        RunsAs::StaticPod | RunsAs::Program if !found.manifests.is_empty() => {
            "kubelet ends it once its manifest is gone".to_owned()
        }
        RunsAs::StaticPod => {
            "it is a static pod, but its manifest is not here: name kubelet's directory by --manifests"
                .to_owned()
        }
        RunsAs::Program => "end it by what has started it".to_owned(),
    }
}

/// Marks nodes without kube-proxy.
pub(super) const LABEL: &str = "xdp-lb.dev/kube-proxy";
/// Lets a DaemonSet pass over them.
const PATCH: &str = "{\"spec\":{\"template\":{\"spec\":{\"affinity\":{\"nodeAffinity\":{\
                     \"requiredDuringSchedulingIgnoredDuringExecution\":{\"nodeSelectorTerms\":[{\
                     \"matchExpressions\":[{\"key\":\"xdp-lb.dev/kube-proxy\",\"operator\":\"NotIn\",\
                     \"values\":[\"removed\"]}]}]}}}}}}}";

/// A removal under way.
#[derive(Debug)]
pub struct Removal {
    backup: Backup,
    manifests: PathBuf,
    journal: Journal,
    found: Found,
    whole: bool,
}

impl Removal {
    /// Looks how far an earlier one has come; nothing is changed but that the directory is made.
    ///
    /// # Errors
    ///
    /// Where rules cannot be read, or somebody else is at it.
    pub fn prepare(backup: &Path, manifests: &Path) -> Result<Self, Error> {
        let backup = Backup::open(backup)?;
        let found = Found::look(manifests)?;
        found.readable()?;
        let before = backup.journal()?;
        // Rules that are partly gone are those of a kube-proxy that does not run.
        let whole = found.runs()
            || before.as_ref().is_none_or(|one| {
                matches!(one.stage, Stage::Stopping | Stage::RulesBack)
                    || (one.stage == Stage::Removed && found.has_rules())
            });
        let mut journal = before.unwrap_or_else(Journal::new);
        if whole {
            let manifests = std::mem::take(&mut journal.manifests);
            let keepers = std::mem::take(&mut journal.keepers);
            journal = Journal::new();
            journal.manifests =
                manifests.into_iter().filter(|one| backup.kept(one).exists()).collect();
            journal.keepers = keepers;
        }
        Ok(Self { backup, manifests: manifests.to_owned(), journal, found, whole })
    }

    /// What is here.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Whether nothing is taken out yet: what kube-proxy serves can be told.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        let settled = self.whole || self.journal.stage == Stage::Removed;
        settled && !self.found.runs() && self.found.manifests.is_empty() && !self.found.has_rules()
    }

    /// Moves manifests aside, and waits until no kube-proxy runs; `say` is told what to do meanwhile.
    ///
    /// # Errors
    ///
    /// Where it goes on running.
    pub fn stop(&mut self, timeout: Duration, mut say: impl FnMut(&str)) -> Result<(), Error> {
        for path in self.found.manifests.clone() {
            if !self.journal.manifests.contains(&path) {
                self.journal.manifests.push(path.clone());
            }
            self.backup.record(&self.journal)?;
            let kept = self.backup.kept(&path);
            files::move_to(&path, &kept).map_err(Error::file("move", &path))?;
            say(&format!("moved {} to {}", path.display(), kept.display()));
        }
        self.found.rules.iter().filter_map(RuleSet::warning).for_each(|one| say(&one));
        if !self.found.runs() {
            return Ok(());
        }
        let advice = self.advice();
        say(&format!("waiting for {} to end: {advice}", self.who()));
        let end = Instant::now() + timeout;
        loop {
            // Somebody may start it anew.
            if !self.look_whether_it_runs() {
                thread::sleep(SETTLE);
                if !self.look_whether_it_runs() {
                    return Ok(());
                }
            }
            if Instant::now() > end {
                let (who, seconds) = (self.who(), timeout.as_secs());
                return Err(Error::StillRuns { who, seconds, advice });
            }
            thread::sleep(TURN);
        }
    }

    fn look_whether_it_runs(&mut self) -> bool {
        self.found.processes = process::find();
        self.found.answers = process::mode_by_port().is_some();
        self.found.runs()
    }

    fn who(&self) -> String {
        let ids = self.found.processes.iter().map(|one| format!("process {}", one.id));
        let ids: Vec<String> = ids.collect();
        if ids.is_empty() { "kube-proxy's port 10249".to_owned() } else { ids.join(", ") }
    }

    fn advice(&self) -> String {
        let known = self.found.processes.first().map(|one| advice(&self.found, one));
        known.unwrap_or_else(|| {
            "it is no process of its own that is seen here: it is built into another program (k3s has \
             --disable-kube-proxy), or this command does not see the host's processes"
                .to_owned()
        })
    }

    /// Saves all rules, then removes them.
    ///
    /// # Errors
    ///
    /// Where a tool refuses; what it is called with is a whole transaction.
    pub fn take_out(&mut self) -> Result<(), Error> {
        self.found = Found::look(&self.manifests)?;
        self.found.readable()?;
        for one in &self.found.rules {
            let Some((saved, text)) = one.saved() else { continue };
            // What an interrupted removal has saved is more than what is there now.
            if self.whole || !self.journal.saved.contains(&saved) {
                self.backup.write(&saved.file, &text)?;
                self.journal.saved.retain(|other| *other != saved);
                self.journal.saved.push(saved);
            }
        }
        for family in keepers(&self.found) {
            if !self.journal.keepers.contains(&family) {
                self.journal.keepers.push(family);
            }
        }
        self.journal.stage = Stage::Saved;
        self.backup.record(&self.journal)?;
        self.whole = false;
        for family in &self.journal.keepers {
            keeper::add(*family)?;
        }
        for one in self.found.rules.iter().filter(|one| one.is_present()) {
            one.take_out()?;
        }
        self.journal.stage = Stage::Removed;
        self.backup.record(&self.journal)
    }

    /// Where all is kept.
    pub fn backup(&self) -> &Path {
        self.backup.directory()
    }
}
