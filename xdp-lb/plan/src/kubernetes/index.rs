//! The cluster's objects, as far as the rules use them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::SystemTime,
};

use k8s_openapi::api::{core::v1, discovery::v1::EndpointSlice};

use crate::kubernetes::{
    Finding, Key, Object, ObjectKind, Rules, ServiceState,
    claims::{Claims, claims},
    names::Names,
    node::Node,
    resolve::{World, resolve},
    service::{Service, is_served},
    slice::{Slice, owner, triggered},
};

/// What changed for one Kubernetes Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The Service
    pub key: Key,
    /// What it comes to now; none where it is gone, or is none that is served
    pub state: Option<Arc<ServiceState>>,
    /// When the pods changed that made its slices change, from the slices' annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`
    pub triggered: Vec<SystemTime>,
}

/// The own Node, as a health check sees it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OwnNode {
    /// Whether there is an object of this name
    pub exists: bool,
    /// Whether it is being deleted
    pub deleting: bool,
    /// Whether the cluster autoscaler is about to delete it: taint `ToBeDeletedByClusterAutoscaler`
    pub scaling_down: bool,
}

impl OwnNode {
    /// Whether load balancers may send new connections to this node: `nodeEligible` in kube-proxy's
    /// answers.
    pub const fn eligible(self) -> bool {
        !self.deleting && !self.scaling_down
    }
}

/// The cluster's objects, as far as the rules use them.
///
/// Every call may be repeated, and calls about different objects may come in any order: what is
/// desired depends on the final objects alone.
#[derive(Debug, Default)]
pub struct Index {
    rules: Rules,
    names: Names,
    entries: BTreeMap<Key, Entry>,
    /// The Service that a slice belongs to
    owners: HashMap<Key, Key>,
    nodes: BTreeMap<Arc<str>, Node>,
    claims: Claims,
    /// Services whose state may differ from what was told last
    dirty: BTreeSet<Key>,
    listed: Listed,
}

/// All that is known of one Service. Slices may come before it, and stay when it is gone.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    slices: BTreeMap<Arc<str>, Slice>,
    triggered: Vec<SystemTime>,
    /// As it was told last
    state: Option<Arc<ServiceState>>,
}

/// Which lists are in.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    services: bool,
    slices: bool,
    nodes: bool,
}

impl Index {
    /// An index that knows no object.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The rules that hold.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Other rules, for the same objects.
    pub fn set_rules(&mut self, rules: Rules) {
        if self.rules == rules {
            return;
        }
        self.rules = rules;
        self.claims.clear();
        for (key, entry) in &self.entries {
            let Some(service) = &entry.service else { continue };
            for claim in claims(service, &self.rules) {
                self.claims.add(claim, service.created, key, |_| {});
            }
        }
        self.dirty.extend(self.entries.keys().cloned());
    }

    /// A Service is there, or has changed.
    pub fn apply_service(&mut self, service: &v1::Service) {
        let key = Key::of(&service.metadata);
        let new = is_served(service).then(|| Service::read(service));
        self.put_service(key, new);
    }

    /// A Service is gone.
    pub fn delete_service(&mut self, key: &Key) {
        self.put_service(key.clone(), None);
    }

    /// All Services that there are; any other is gone.
    pub fn replace_services<'a>(&mut self, services: impl IntoIterator<Item = &'a v1::Service>) {
        let mut seen = HashSet::new();
        for service in services {
            self.apply_service(service);
            seen.insert(Key::of(&service.metadata));
        }
        let known = self.entries.iter().filter(|(_, entry)| entry.service.is_some());
        let gone: Vec<Key> =
            known.map(|(key, _)| key).filter(|key| !seen.contains(*key)).cloned().collect();
        gone.into_iter().for_each(|key| self.put_service(key, None));
        self.listed.services = true;
    }

    fn put_service(&mut self, key: Key, new: Option<Service>) {
        let entry = match (self.entries.get_mut(&key), &new) {
            (Some(entry), _) => entry,
            (None, Some(_)) => self.entries.entry(key.clone()).or_default(),
            (None, None) => return,
        };
        if entry.service == new {
            return;
        }
        let old = mem::replace(&mut entry.service, new);
        let dirty = &mut self.dirty;
        let mut tell = |key: &Key| {
            dirty.insert(key.clone());
        };
        tell(&key);
        // First what stays or is new, so that nobody else gets it for a moment.
        if let Some(new) = &entry.service {
            for claim in claims(new, &self.rules) {
                self.claims.add(claim, new.created, &key, &mut tell);
            }
        }
        if let Some(old) = &old {
            let kept = entry.service.as_ref().filter(|new| new.created == old.created);
            let kept: HashSet<_> =
                kept.into_iter().flat_map(|new| claims(new, &self.rules)).collect();
            for claim in claims(old, &self.rules).filter(|claim| !kept.contains(claim)) {
                self.claims.remove(claim, old.created, &key, &mut tell);
            }
        }
    }

    /// An EndpointSlice is there, or has changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        let key = Key::of(&slice.metadata);
        let Some(service) = owner(&slice.metadata) else { return self.delete_slice(&key) };
        if self.owners.get(&key).is_some_and(|owner| *owner.name != *service) {
            self.delete_slice(&key);
        }
        let new = Slice::read(slice, &mut self.names);
        let owner = self
            .owners
            .entry(key.clone())
            .or_insert_with(|| Key { namespace: key.namespace.clone(), name: service.into() });
        let entry = self.entries.entry(owner.clone()).or_default();
        if entry.slices.get(&key.name) == Some(&new) {
            return;
        }
        entry.slices.insert(key.name, new);
        if self.listed.slices {
            entry.triggered.extend(triggered(slice.metadata.annotations.as_ref()));
        }
        self.dirty.insert(owner.clone());
    }

    /// An EndpointSlice is gone.
    pub fn delete_slice(&mut self, key: &Key) {
        let Some(owner) = self.owners.remove(key) else { return };
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.slices.remove(&key.name);
            // They would tell of an older change than this one.
            entry.triggered.clear();
        }
        self.dirty.insert(owner);
    }

    /// All EndpointSlices that there are; any other is gone.
    pub fn replace_slices<'a>(&mut self, slices: impl IntoIterator<Item = &'a EndpointSlice>) {
        let mut seen = HashSet::new();
        for slice in slices {
            self.apply_slice(slice);
            seen.insert(Key::of(&slice.metadata));
        }
        let gone: Vec<Key> =
            self.owners.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.delete_slice(key));
        self.names.tidy();
        self.listed.slices = true;
    }

    /// A Node is there, or has changed.
    pub fn apply_node(&mut self, node: &v1::Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.put_node(name, Some(Node::read(node)));
    }

    /// A Node is gone.
    pub fn delete_node(&mut self, name: &str) {
        self.put_node(name, None);
    }

    /// All Nodes that there are; any other is gone.
    pub fn replace_nodes<'a>(&mut self, nodes: impl IntoIterator<Item = &'a v1::Node>) {
        let mut seen = HashSet::new();
        for node in nodes {
            self.apply_node(node);
            seen.extend(node.metadata.name.as_deref());
        }
        let gone = self.nodes.keys().filter(|name| !seen.contains(&***name));
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        gone.iter().for_each(|name| self.delete_node(name));
        self.listed.nodes = true;
    }

    fn put_node(&mut self, name: &str, new: Option<Node>) {
        let old = match new.clone() {
            Some(new) => self.nodes.insert(self.names.get(name), new),
            None => self.nodes.remove(name),
        };
        if old.as_ref().map(Node::of_endpoints) != new.as_ref().map(Node::of_endpoints) {
            let mut on_it = self.entries.iter().filter(|(_, entry)| entry.is_on(name));
            on_it.by_ref().for_each(|(key, _)| {
                self.dirty.insert(key.clone());
            });
        }
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        if self.rules.node.as_deref() == Some(name) && zone(&old) != zone(&new) {
            self.dirty.extend(self.entries.keys().cloned());
        }
    }

    /// Whether all three kinds were listed at least once. Before, nothing is desired.
    pub fn is_complete(&self) -> bool {
        self.listed.services && self.listed.slices && self.listed.nodes
    }

    /// Whether [`Self::changes`] has something to look at.
    pub fn has_changes(&self) -> bool {
        self.is_complete() && !self.dirty.is_empty()
    }

    /// What changed since the last call, in the order of the Services' keys; nothing while the index
    /// is not complete.
    ///
    /// A Service whose state came out as it was is not in it. The cost is that of the Services
    /// concerned, not of all.
    pub fn changes(&mut self) -> Vec<Change> {
        if !self.is_complete() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for key in mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let world = World { rules: &self.rules, nodes: &self.nodes, claims: &self.claims };
            let service = entry.service.as_ref();
            let state = service.map(|service| resolve(&key, service, &entry.slices, world));
            let triggered = mem::take(&mut entry.triggered);
            let is_new = state.as_ref() != entry.state.as_deref();
            if is_new {
                entry.state = state.map(Arc::new);
            }
            let state = entry.state.clone();
            if entry.service.is_none() && entry.slices.is_empty() {
                self.entries.remove(&key);
            }
            if is_new {
                changes.push(Change { key, state, triggered });
            }
        }
        changes
    }

    /// What all Services come to, as of the last [`Self::changes`], in the order of their keys.
    pub fn states(&self) -> impl Iterator<Item = &Arc<ServiceState>> {
        self.entries.values().filter_map(|entry| entry.state.as_ref())
    }

    /// One Service's state, as of the last [`Self::changes`].
    pub fn state(&self, key: &Key) -> Option<&Arc<ServiceState>> {
        self.entries.get(key)?.state.as_ref()
    }

    /// What cannot be done for objects that belong to no Service: Nodes.
    pub fn findings(&self) -> Vec<Finding> {
        let flawed = self.nodes.iter().filter(|(_, node)| !node.flaws.is_empty());
        flawed
            .flat_map(|(name, node)| {
                let key = Key { namespace: "".into(), name: name.clone() };
                let uid = node.uid.as_ref().into();
                let object = Object { kind: ObjectKind::Node, key, uid };
                node.flaws.iter().map(move |flaw| flaw.of(&object))
            })
            .collect()
    }

    /// The own Node; none where [`Rules::node`] names none.
    pub fn own_node(&self) -> Option<OwnNode> {
        let node = self.nodes.get(self.rules.node.as_deref()?);
        Some(OwnNode {
            exists: node.is_some(),
            deleting: node.is_some_and(|node| node.deleting),
            scaling_down: node.is_some_and(|node| node.scaling_down),
        })
    }
}

impl Entry {
    fn is_on(&self, node: &str) -> bool {
        let mut endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| endpoint.node.as_deref() == Some(node))
    }
}
