//! A lab that is up.

use std::{collections::BTreeMap, fs, process::Command, thread};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::geteuid,
};

use super::{
    LabError, Namespace,
    leftovers::{self, Claim, SEPARATOR},
    namespace::finish,
    receive,
    script::{Known, NodeScript, script},
    signals,
    topology::Item,
};

/// Offloads that would leave unfinished checksums, frames above the MTU or tags beside the frame;
/// and GRO, without which a veth device drops what XDP redirects to it.
const FEATURES: &str = "tx off txvlan off tx-vlan-stag-hw-insert off gso off tso off gro on";

/// Open files that 10,000 connections take when both ends are in one process, and some.
const OPEN_FILES: u64 = 65_536;

/// Namespaces, devices and addresses, removed when this is dropped.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    known: Known,
    nodes: BTreeMap<String, Namespace>,
    keep: bool,
    /// None where another process has built it
    claim: Option<Claim>,
}

impl Lab {
    /// Builds what the items say, in their order. `prefix` (lower-case letters and digits) begins
    /// the names of all namespaces; what an earlier run left under it is removed first.
    pub fn build(prefix: &str, items: impl AsRef<[Item]>) -> Result<Self, LabError> {
        let mut lab = Self::new(prefix)?;
        lab.add(items)?;
        Ok(lab)
    }

    /// An empty lab, to [`Lab::add`] to.
    pub fn new(prefix: &str) -> Result<Self, LabError> {
        let claim = may_work(prefix)?;
        leftovers::remove(prefix)?;
        raise_open_files();
        signals::arm(prefix).map_err(LabError::system("watch for signals"))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            known: Known::default(),
            nodes: BTreeMap::new(),
            keep: false,
            claim: Some(claim),
        })
    }

    /// Joins the lab that another process has built, to add to it and to remove what was added: it
    /// is the other one that removes it as a whole. `items` are those nodes of it that are used here.
    pub fn join(prefix: &str, items: impl AsRef<[Item]>) -> Result<Self, LabError> {
        leftovers::check_prefix(prefix)?;
        let mut known = Known::default();
        let name = |node: &str| format!("{prefix}{SEPARATOR}{node}");
        script(&mut known, items.as_ref(), name)?;
        let open = |node: &String| Ok((node.clone(), Namespace::open(name(node))?));
        let nodes = known.roles.keys().map(open).collect::<Result<_, LabError>>()?;
        Ok(Self { prefix: prefix.to_owned(), known, nodes, keep: false, claim: None })
    }

    /// Removes a node: ends its processes, and takes its namespace away. The devices of others that
    /// go with it, by node and name, may be made anew then.
    pub fn remove(&mut self, node: &str, devices: &[(&str, &str)]) -> Result<(), LabError> {
        let space =
            self.nodes.remove(node).ok_or_else(|| LabError::UnknownNode(node.to_owned()))?;
        self.known.forget(node, devices);
        leftovers::remove_one(space.name())
    }

    /// Adds to a lab that is up: nodes, links, routes. A topology that is refused as a whole
    /// changes nothing; after any other error the lab is good for nothing but being dropped.
    pub fn add(&mut self, items: impl AsRef<[Item]>) -> Result<(), LabError> {
        let mut known = self.known.clone();
        let prefix = &self.prefix;
        let name = |node: &str| format!("{prefix}{SEPARATOR}{node}");
        let script = script(&mut known, items.as_ref(), name)?;
        let names: Vec<_> = script.create.iter().map(|node| name(node)).collect();
        batch(Command::new("ip"), names.iter().map(|name| format!("netns add {name}")))?;
        for (node, name) in script.create.iter().zip(names) {
            self.nodes.insert(node.clone(), Namespace::open(name)?);
        }
        self.known = known;
        // Settings first: devices take their own from the namespace's defaults.
        for (node, inside) in &script.nodes {
            set(self.ns(node)?, &inside.before)?;
        }
        batch(Command::new("ip"), script.links.into_iter())?;
        let work = script
            .nodes
            .into_iter()
            .map(|(node, inside)| Ok((self.ns(&node)?, inside)))
            .collect::<Result<Vec<_>, LabError>>()?;
        // A veth device that is up learns of its peer's GRO only where that is up, too: all have it
        // before the first one is.
        side_by_side(&work, |space, inside| set_features(space, &inside.plain))?;
        side_by_side(&work, furnish)
    }

    /// What the names of its namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The namespace of a node.
    pub fn ns(&self, node: &str) -> Result<&Namespace, LabError> {
        self.nodes.get(node).ok_or_else(|| LabError::UnknownNode(node.to_owned()))
    }

    /// The namespace of a node that another process has added.
    pub fn joined(&self, node: &str) -> Result<Namespace, LabError> {
        Namespace::open(format!("{}{SEPARATOR}{node}", self.prefix))
    }

    /// The nodes' names and namespaces, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        self.nodes.iter().map(|(name, space)| (name.as_str(), space))
    }

    /// Has `work` done once the namespaces and the processes in them are gone: at the lab's drop,
    /// or when a signal ends the process. Never for a lab that is kept.
    pub fn afterwards(&self, work: impl FnOnce() + Send + 'static) {
        signals::afterwards(&self.prefix, work);
    }

    /// Leaves everything up, signals or not; [`Lab::clean`] removes it.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Removes what labs of `prefix` have left: processes in their namespaces, and these.
    pub fn clean(prefix: &str) -> Result<(), LabError> {
        let _claim = may_work(prefix)?;
        leftovers::remove(prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.claim.is_none() {
            // Another process removes it.
        } else if self.keep {
            signals::disarm(&self.prefix);
        } else {
            // Nobody can be told from here; the next run with this prefix tries again.
            let _ = leftovers::remove(&self.prefix);
            signals::finish(&self.prefix);
        }
    }
}

fn may_work(prefix: &str) -> Result<Claim, LabError> {
    leftovers::check_prefix(prefix)?;
    if !geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    Claim::take(prefix)
}

/// Raises the limit of open files as far as the system lets root go. Where that is not far enough,
/// the connection that is one too many shows it: at a client as an error, at a server in
/// [`super::Served::refused`].
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < OPEN_FILES
        && setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, hard.max(OPEN_FILES)).is_err()
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES), hard);
    }
}

/// Does this for all nodes at the same time.
fn side_by_side(
    nodes: &[(&Namespace, NodeScript)],
    work: impl Fn(&Namespace, &NodeScript) -> Result<(), LabError> + Copy + Send,
) -> Result<(), LabError> {
    thread::scope(|scope| {
        let workers: Vec<_> =
            nodes.iter().map(|(space, inside)| scope.spawn(move || work(space, inside))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn set_features(space: &Namespace, devices: &[String]) -> Result<(), LabError> {
    devices
        .iter()
        .try_for_each(|device| space.tool("ethtool", &format!("-K {device} {FEATURES}")).map(drop))
}

fn furnish(space: &Namespace, inside: &NodeScript) -> Result<(), LabError> {
    // With room for one byte GRO merges nothing, and captures show each frame as it came.
    let apart = inside.plain.iter().map(|dev| format!("link set dev {dev} gro_max_size 1"));
    batch(space.command("ip"), apart.chain(inside.ip.iter().cloned()))?;
    receive::pass(space, &inside.receive)?;
    set(space, &inside.after)
}

fn batch(mut ip: Command, lines: impl Iterator<Item = String>) -> Result<(), LabError> {
    let input: String = lines.map(|line| line + "\n").collect();
    if input.is_empty() {
        return Ok(());
    }
    ip.args(["-batch", "-"]);
    finish(ip, &input).map(drop)
}

fn set(space: &Namespace, values: &[(String, String)]) -> Result<(), LabError> {
    if values.is_empty() {
        return Ok(());
    }
    space.run(|| {
        values.iter().try_for_each(|(key, value)| {
            let path = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
            fs::write(format!("/proc/sys/{path}"), value)
                .map_err(LabError::system(format!("set {key} to {value} in {}", space.name())))
        })
    })?
}
