//! Keeps what the API declares: checks each change, stores it, and hands it to the daemon.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};
use xdp_lb_api::{
    ApiError, Change, Changed, Drain, FieldError, What, etag, merge,
    view::{EventKind, Owner, ServiceView, Services},
};
use xdp_lb_plan::{kubernetes::Key, model::Service};

use super::{
    journal::Journal,
    sources::{ApiSide, FileSide, backend_name},
};
use crate::{
    config::{Listen, Mistakes, service_from_json, service_to_json},
    kubernetes::Side,
    state::{ApiState, StateError, Store},
};

/// Changes that are stored together.
const BATCH: usize = 64;

/// A change, and where its result goes.
pub(super) type Request = (Change, oneshot::Sender<Result<Changed, ApiError>>);

/// Services and their backends that have no flow any more.
pub(super) type Gone = BTreeSet<(String, String)>;

/// What the API declares from now on: for the daemon, and for those who ask.
type Told = (watch::Receiver<Arc<ApiSide>>, watch::Receiver<Arc<Services>>);

/// What it must know of others.
pub(super) struct Inputs {
    /// What the file says
    pub(super) file: watch::Receiver<Arc<FileSide>>,
    /// What the cluster says
    pub(super) cluster: watch::Receiver<Arc<Side>>,
    /// Backends that have no flow any more, as the daemon sees it
    pub(super) drained: watch::Receiver<Arc<Gone>>,
}

/// The one writer of what the API declares.
pub(super) struct Keeper {
    store: Store,
    state: ApiState,
    side: ApiSide,
    /// The frontends of the API's services
    taken: HashMap<Listen, String>,
    /// Those of the file's
    taken_by_file: HashMap<Listen, String>,
    file: watch::Receiver<Arc<FileSide>>,
    /// Backends that have no flow any more, as the daemon sees it
    drained: watch::Receiver<Arc<Gone>>,
    known: Arc<FileSide>,
    /// Where each of the file's services is
    in_file: HashMap<String, usize>,
    cluster: watch::Receiver<Arc<Side>>,
    /// What the cluster said last
    said: Arc<Side>,
    views: BTreeMap<String, Arc<ServiceView>>,
    journal: Journal,
    to_daemon: watch::Sender<Arc<ApiSide>>,
    to_clients: watch::Sender<Arc<Services>>,
}

impl Keeper {
    /// A keeper of what the store has; the receivers get every change.
    ///
    /// # Errors
    ///
    /// As [`Store::load`].
    pub(super) fn new(
        store: Store,
        Inputs { file, cluster, drained }: Inputs,
        journal: Journal,
    ) -> Result<(Self, Told), StateError> {
        let (state, said) = store.load()?;
        for text in said {
            error!("{text}");
            journal.push(EventKind::Failed, text);
        }
        let (to_daemon, daemon) = watch::channel(Arc::default());
        let (to_clients, clients) = watch::channel(Arc::default());
        let (known, said) = (file.borrow().clone(), cluster.borrow().clone());
        let mut keeper = Self {
            store,
            state,
            side: ApiSide::default(),
            taken: HashMap::new(),
            taken_by_file: HashMap::new(),
            known,
            in_file: HashMap::new(),
            file,
            drained,
            cluster,
            said,
            views: BTreeMap::new(),
            journal,
            to_daemon,
            to_clients,
        };
        keeper.rebuild();
        keeper.publish();
        Ok((keeper, (daemon, clients)))
    }

    /// Serves until nobody can ask any more.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                // What the file says counts for the changes that come after it.
                biased;
                changed = self.file.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.known = self.file.borrow_and_update().clone();
                    self.rebuild();
                    self.publish();
                }
                changed = self.drained.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.remove_drained().await;
                }
                Ok(()) = self.cluster.changed() => self.follow_cluster().await,
                count = requests.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.serve(std::mem::take(&mut batch)).await;
                }
            }
        }
    }

    /// Carries out changes one after another, and stores them together.
    async fn serve(&mut self, batch: Vec<Request>) {
        let before = self.state.clone();
        let mut results = Vec::new();
        for (change, answer) in batch {
            results.push((self.change(&change), change, answer));
        }
        if let Err(text) = self.store(before).await {
            for (result, change, _) in &mut results {
                if result.is_ok() && !change.dry_run {
                    *result = Err(ApiError::Unavailable(text.clone()));
                }
            }
        }
        for (result, change, answer) in results {
            if result.is_ok() && !change.dry_run {
                self.journal.push(EventKind::Changed, described(&change.what));
            }
            // A client that went away has its change all the same.
            let _ = answer.send(result);
        }
    }

    /// Stores what changed and tells of it; where that fails, all is as before, and the text says why.
    async fn store(&mut self, before: ApiState) -> Result<(), String> {
        if self.state == before {
            return Ok(());
        }
        let result = self.save().await;
        if result.is_err() {
            self.state = before;
            self.rebuild();
        }
        self.publish();
        result
    }

    /// Writes what is to be kept, or says why that cannot be done.
    async fn save(&self) -> Result<(), String> {
        let (store, state) = (self.store.clone(), self.state.clone());
        let saved = tokio::task::spawn_blocking(move || store.save(&state)).await;
        let saved = saved.map_err(std::io::Error::other).and_then(|result| result);
        saved.map_err(|problem| {
            let text = format!("the change cannot be stored: {problem}");
            error!("{text}");
            self.journal.push(EventKind::Failed, &*text);
            text
        })
    }

    /// Removes the backends that wait for that, and have no flow any more. What cannot be stored is
    /// tried again when the daemon sees another change.
    async fn remove_drained(&mut self) {
        let gone = self.drained.borrow_and_update().clone();
        let before = self.state.clone();
        let mut removed = Vec::new();
        for (service, backend) in &*gone {
            let waits = self.state.removing.get(service).is_some_and(|one| one.contains(backend));
            if waits && self.remove_backend(service, backend).is_ok() {
                self.show(service);
                removed.push(format!(
                    "backend {backend} of service {service} was removed: its last flow is gone"
                ));
            }
        }
        if self.store(before).await.is_ok() {
            for text in removed {
                info!("{text}");
                self.journal.push(EventKind::Changed, text);
            }
        }
    }

    /// Takes a backend out of a service of the API.
    fn remove_backend(&mut self, service: &str, backend: &str) -> Result<(), ApiError> {
        let mut value = self.own(service)?.clone();
        let known = self.side.services.get(service).into_iter().flat_map(|one| &one.backends);
        let mut stays = known.map(|one| backend_name(one) != backend);
        if let Some(backends) = value["backends"].as_array_mut() {
            backends.retain(|_| stays.next().unwrap_or(true));
        }
        self.put(service, value)
    }

    /// Takes what the cluster says now. A pod that is gone is not drained any more: its address may
    /// soon be another one's.
    async fn follow_cluster(&mut self) {
        let now = self.cluster.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.said, now.clone());
        let mut touched = BTreeSet::new();
        for (key, state) in &before.states {
            if now.states.get(key).is_none_or(|one| !Arc::ptr_eq(one, state)) {
                touched.extend(state.services.iter().map(|one| one.name.clone()));
            }
        }
        for (key, state) in &now.states {
            if before.states.get(key).is_none_or(|one| !Arc::ptr_eq(one, state)) {
                touched.extend(state.services.iter().map(|one| one.name.clone()));
            }
        }
        let drained = self.state.drained.clone();
        for name in &touched {
            if self.state.drained.contains_key(name) && self.own(name).is_err() {
                let backends = self.find(name).map(|one| one.backends.clone()).unwrap_or_default();
                let there: BTreeSet<String> = backends.iter().map(backend_name).collect();
                self.set_drained(name, |names| names.retain(|one| there.contains(one)));
            }
            self.show(name);
        }
        if self.state.drained != drained {
            // What cannot be stored is forgotten again after the next start.
            let _ = self.save().await;
            self.to_daemon.send_replace(Arc::new(self.side.clone()));
        }
        if !touched.is_empty() {
            self.to_clients.send_replace(Arc::new(Services { by_name: self.views.clone() }));
        }
    }

    /// Reads everything anew: the file's services, or its default mode, changed.
    fn rebuild(&mut self) {
        self.side = ApiSide {
            drained: self.state.drained.clone(),
            removing: self.state.removing.clone(),
            ..ApiSide::default()
        };
        self.taken.clear();
        let of = |service: &Service| {
            let name = service.name.clone();
            Listen::of(service).map(move |one| (one, name.clone())).collect::<Vec<_>>()
        };
        self.taken_by_file = self.known.services.iter().flat_map(of).collect();
        let services = self.known.services.iter().enumerate();
        self.in_file = services.map(|(at, one)| (one.name.clone(), at)).collect();
        for (name, value) in &self.state.services {
            match self.read(value) {
                Ok(service) => {
                    let listens = Listen::of(&service);
                    self.taken.extend(listens.map(|one| (one, name.clone())));
                    self.side.services.insert(name.clone(), service);
                }
                Err(mistakes) => {
                    let first = mistakes.0.first().map(ToString::to_string).unwrap_or_default();
                    let text = format!("service {name} of the API cannot be used: {first}");
                    self.side.faults.push(text);
                }
            }
        }
        self.views.clear();
        let names: Vec<String> = self.state.services.keys().cloned().collect();
        names.iter().for_each(|name| self.show(name));
        let of_cluster = self.said.states.values().flat_map(|state| &state.services);
        let names = self.known.services.iter().chain(of_cluster);
        let names: Vec<String> = names.map(|one| one.name.clone()).collect();
        names.iter().for_each(|name| self.show(name));
    }

    fn read(&self, value: &Value) -> Result<Service, Mistakes> {
        service_from_json(value, self.known.default_mode, &self.known.pods)
    }

    fn publish(&self) {
        self.to_daemon.send_replace(Arc::new(self.side.clone()));
        self.to_clients.send_replace(Arc::new(Services { by_name: self.views.clone() }));
    }

    /// Brings the view of one service up to date.
    fn show(&mut self, name: &str) {
        match self.view(name) {
            Some(view) => self.views.insert(name.to_owned(), Arc::new(view)),
            None => self.views.remove(name),
        };
    }

    fn view(&self, name: &str) -> Option<ServiceView> {
        let (owner, service) = match (self.in_file(name), self.state.services.get(name)) {
            (Some(service), _) => (Owner::File, service_to_json(service)),
            (None, Some(service)) => (Owner::Api, service.clone()),
            (None, None) => (Owner::Kubernetes, service_to_json(self.in_cluster(name)?)),
        };
        let of = |sets: &BTreeMap<String, BTreeSet<String>>| {
            sets.get(name).into_iter().flatten().cloned().collect()
        };
        let (drained, removing) = (of(&self.state.drained), of(&self.state.removing));
        Some(ServiceView { name: name.to_owned(), owner, drained, removing, service })
    }

    fn in_file(&self, name: &str) -> Option<&Service> {
        self.in_file.get(name).and_then(|at| self.known.services.get(*at))
    }

    fn in_cluster(&self, name: &str) -> Option<&Service> {
        let state = self.said.states.get(&Key::of_service_name(name)?)?;
        state.services.iter().find(|service| service.name == name)
    }

    /// A service of whatever owner.
    fn find(&self, name: &str) -> Option<&Service> {
        let known = self.in_file(name).or_else(|| self.side.services.get(name));
        known.or_else(|| self.in_cluster(name))
    }

    /// Makes a change in memory, or only finds out whether it could be made.
    fn change(&mut self, change: &Change) -> Result<Changed, ApiError> {
        let (What::Put { name, .. }
        | What::Patch { name, .. }
        | What::Delete { name }
        | What::Drain { service: name, .. }) = &change.what;
        let before = self.views.get(name).cloned();
        let tag = before.as_ref().map(|view| etag(&**view));
        change.precondition.check(name, tag.as_deref())?;
        let undo =
            change.dry_run.then(|| (self.state.clone(), self.side.clone(), self.taken.clone()));
        let result = match &change.what {
            What::Put { name, service } => self.put(name, service.clone()),
            What::Patch { name, patch } => {
                let service = self.own(name)?.clone();
                self.put(name, merge(service, patch.clone()))
            }
            What::Delete { name } => self.delete(name),
            What::Drain { service, backend, drain } => self.drain(service, backend, *drain),
        };
        let after = result.is_ok().then(|| self.view(name)).flatten().map(Arc::new);
        if let Some(undo) = undo {
            (self.state, self.side, self.taken) = undo;
        } else if result.is_ok() {
            self.show(name);
        }
        result.map(|()| Changed { created: before.is_none(), service: after })
    }

    /// A service that the API may change.
    fn own(&self, name: &str) -> Result<&Value, ApiError> {
        if self.in_file(name).is_some() {
            return Err(ApiError::ReadOnly { name: name.to_owned(), owner: Owner::File });
        }
        let found = self.state.services.get(name);
        if found.is_none() && self.in_cluster(name).is_some() {
            return Err(ApiError::ReadOnly { name: name.to_owned(), owner: Owner::Kubernetes });
        }
        found.ok_or_else(|| ApiError::Unknown { what: "service", name: name.to_owned() })
    }

    fn put(&mut self, name: &str, mut value: Value) -> Result<(), ApiError> {
        match self.own(name) {
            Ok(_) | Err(ApiError::Unknown { .. }) => {}
            Err(error) => return Err(error),
        }
        if let Value::Object(keys) = &mut value {
            match keys.get("name") {
                None => drop(keys.insert("name".to_owned(), name.into())),
                Some(said) if said != name => {
                    let detail = format!("is another name than that of the path, {name}");
                    return Err(invalid("/name", detail));
                }
                Some(_) => {}
            }
        }
        let service = self.read(&value).map_err(|mistakes| {
            let error =
                |one: crate::config::Mistake| FieldError { pointer: one.path, detail: one.message };
            ApiError::Invalid(mistakes.0.into_iter().map(error).collect())
        })?;
        let conflicts: Vec<FieldError> = Listen::of(&service)
            .filter_map(|one| self.conflict(name, &value, &service, one))
            .collect();
        if !conflicts.is_empty() {
            return Err(ApiError::Conflict(conflicts));
        }
        let backends: Vec<String> = service.backends.iter().map(backend_name).collect();
        self.forget(name);
        self.taken.extend(Listen::of(&service).map(|one| (one, name.to_owned())));
        self.side.services.insert(name.to_owned(), service);
        self.state.services.insert(name.to_owned(), value);
        // Backends that are gone are not drained should they come again.
        self.set_drained(name, |drained| drained.retain(|one| backends.contains(one)));
        Ok(())
    }

    /// Another service that has the frontend.
    fn conflict(
        &self,
        name: &str,
        value: &Value,
        service: &Service,
        frontend: Listen,
    ) -> Option<FieldError> {
        let (other, owner) = match (self.taken_by_file.get(&frontend), self.taken.get(&frontend)) {
            (Some(other), _) => (other, Owner::File),
            (None, Some(other)) if other != name => (other, Owner::Api),
            (None, _) => return None,
        };
        let detail = format!("{frontend} belongs to service {other} (owner: {owner}): use another");
        let pointer = format!("/frontends/{}", place(value, service, frontend));
        Some(FieldError { pointer, detail })
    }

    fn delete(&mut self, name: &str) -> Result<(), ApiError> {
        self.own(name)?;
        self.forget(name);
        self.state.services.remove(name);
        self.set_drained(name, BTreeSet::clear);
        Ok(())
    }

    /// Drops what is known of one of the API's services.
    fn forget(&mut self, name: &str) {
        if let Some(service) = self.side.services.remove(name) {
            Listen::of(&service).for_each(|one| drop(self.taken.remove(&one)));
        }
    }

    fn drain(&mut self, service: &str, backend: &str, drain: Drain) -> Result<(), ApiError> {
        let found = self.find(service);
        let unknown = |what, name| Err(ApiError::Unknown { what, name });
        let Some(found) = found else { return unknown("service", service.to_owned()) };
        let is_there = found.backends.iter().any(|one| backend_name(one) == backend);
        let was_there = self.state.drained.get(service).is_some_and(|one| one.contains(backend));
        // What the file does not name any more may still be forgotten.
        let forget = was_there && drain == Drain::Undo;
        if !is_there && !forget {
            return unknown("backend", format!("{backend} of service {service}"));
        }
        if drain == Drain::ThenRemove {
            self.own(service)?;
        }
        self.set_drained(service, |names| set(names, backend, drain != Drain::Undo));
        let removing = self.state.removing.entry(service.to_owned()).or_default();
        set(removing, backend, drain == Drain::ThenRemove);
        self.tidy(service);
        Ok(())
    }

    fn set_drained(&mut self, service: &str, change: impl FnOnce(&mut BTreeSet<String>)) {
        change(self.state.drained.entry(service.to_owned()).or_default());
        self.tidy(service);
    }

    /// Drops empty sets and what is not drained any more, and hands the rest on.
    fn tidy(&mut self, service: &str) {
        let ApiState { drained, removing, .. } = &mut self.state;
        if drained.get(service).is_some_and(BTreeSet::is_empty) {
            drained.remove(service);
        }
        if let Some(names) = removing.get_mut(service) {
            let still = drained.get(service);
            names.retain(|name| still.is_some_and(|still| still.contains(name)));
            if names.is_empty() {
                removing.remove(service);
            }
        }
        self.side.drained = drained.clone();
        self.side.removing = removing.clone();
    }
}

fn set(names: &mut BTreeSet<String>, name: &str, there: bool) {
    if there {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}

/// Where a service in JSON has one of its frontends.
fn place(value: &Value, service: &Service, frontend: Listen) -> usize {
    let is_port = |one: &Listen| matches!(one, Listen::NodePort(_));
    let alike = Listen::of(service).filter(|one| is_port(one) == is_port(&frontend));
    let number = alike.take_while(|one| *one != frontend).count();
    let items = value["frontends"].as_array().into_iter().flatten().enumerate();
    let mut alike = items.filter(|(_, item)| item.get("nodePort").is_some() == is_port(&frontend));
    alike.nth(number).map_or(0, |(index, _)| index)
}

fn invalid(pointer: &str, detail: String) -> ApiError {
    ApiError::Invalid(vec![FieldError { pointer: pointer.to_owned(), detail }])
}

fn described(what: &What) -> String {
    match what {
        What::Put { name, .. } | What::Patch { name, .. } => format!("service {name} was set"),
        What::Delete { name } => format!("service {name} was removed"),
        What::Drain { service, backend, drain: Drain::Keep } => {
            format!("backend {backend} of service {service} was drained")
        }
        What::Drain { service, backend, drain: Drain::ThenRemove } => {
            format!(
                "backend {backend} of service {service} was drained, to be removed without flows"
            )
        }
        What::Drain { service, backend, drain: Drain::Undo } => {
            format!("backend {backend} of service {service} is no longer drained")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use serde_json::json;
    use xdp_lb_api::Precondition;
    use xdp_lb_plan::kubernetes::{Index, Rules};

    use super::*;

    /// A keeper at work, and a directory that is removed with it.
    struct World {
        directory: PathBuf,
        file: watch::Sender<Arc<FileSide>>,
        drained: watch::Sender<Arc<Gone>>,
        cluster: watch::Sender<Arc<Side>>,
        ask: mpsc::Sender<Request>,
        daemon: watch::Receiver<Arc<ApiSide>>,
        clients: watch::Receiver<Arc<Services>>,
    }

    impl World {
        fn new(name: &str) -> Self {
            let name = format!("xlbkeeper-{}-{name}", std::process::id());
            Self::over(std::env::temp_dir().join(name))
        }

        fn over(directory: PathBuf) -> Self {
            let file = watch::Sender::new(Arc::new(FileSide::default()));
            let cluster = watch::Sender::new(Arc::new(Side::default()));
            let store = Store::new(directory.clone());
            let drained = watch::Sender::default();
            let inputs = Inputs {
                file: file.subscribe(),
                cluster: cluster.subscribe(),
                drained: drained.subscribe(),
            };
            let (keeper, (daemon, clients)) =
                Keeper::new(store, inputs, Journal::default()).unwrap();
            let (ask, asked) = mpsc::channel(8);
            tokio::spawn(keeper.run(asked));
            Self { directory, file, drained, cluster, ask, daemon, clients }
        }

        async fn change(&self, what: What, dry_run: bool) -> Result<Changed, ApiError> {
            let (answer, result) = oneshot::channel();
            let change = Change { what, precondition: Precondition::default(), dry_run };
            self.ask.send((change, answer)).await.unwrap();
            result.await.unwrap()
        }

        async fn put(&self, name: &str, service: Value) -> Result<Changed, ApiError> {
            self.change(What::Put { name: name.to_owned(), service }, false).await
        }

        async fn drain(&self, service: &str, backend: &str, drained: bool) -> Result<(), ApiError> {
            let drain = if drained { Drain::Keep } else { Drain::Undo };
            self.drain_so(service, backend, drain).await
        }

        async fn drain_so(
            &self,
            service: &str,
            backend: &str,
            drain: Drain,
        ) -> Result<(), ApiError> {
            let (service, backend) = (service.to_owned(), backend.to_owned());
            self.change(What::Drain { service, backend, drain }, false).await.map(drop)
        }

        fn names(&self) -> Vec<String> {
            self.clients.borrow().by_name.keys().cloned().collect()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
            let _ = fs::remove_file(&self.directory);
        }
    }

    fn service(n: u8) -> Value {
        json!({
            "frontends": [{"nodePort": 30000 + u32::from(n)}, {"address": format!("203.0.113.{n}"), "port": 80}],
            "backends": [{"address": "10.0.0.1", "port": 80}, {"address": "10.0.0.2", "port": 80}],
            "mode": "snat",
        })
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_there_after_a_restart() {
        let world = World::new("restart");
        assert!(world.put("a", service(1)).await.unwrap().created);
        assert!(!world.put("a", service(1)).await.unwrap().created);
        world.drain("a", "10.0.0.1:80", true).await.unwrap();
        let next = World::over(world.directory.clone());
        assert_eq!(next.names(), ["a"]);
        assert_eq!(*next.daemon.borrow(), *world.daemon.borrow());
        assert_eq!(next.daemon.borrow().drained["a"], ["10.0.0.1:80".to_owned()].into());
        next.change(What::Delete { name: "a".to_owned() }, false).await.unwrap();
        assert_eq!(World::over(world.directory.clone()).daemon.borrow().drained.len(), 0);
    }

    #[tokio::test]
    async fn contradictions_are_refused_at_their_place() {
        let world = World::new("conflict");
        world.put("a", service(1)).await.unwrap();
        let mut other = service(2);
        other["frontends"][1] = service(1)["frontends"][1].clone();
        let Err(ApiError::Conflict(errors)) = world.put("b", other).await else { panic!() };
        assert_eq!((errors.len(), errors[0].pointer.as_str()), (1, "/frontends/1"));
        let mut named = service(2);
        named["name"] = json!("c");
        let Err(ApiError::Invalid(errors)) = world.put("b", named).await else { panic!() };
        assert_eq!(errors[0].pointer, "/name");
        let Err(ApiError::Invalid(errors)) = world.put("b", json!([])).await else { panic!() };
        assert_eq!(errors[0].pointer, "");
        // A frontend that was given up may be taken.
        world.put("a", service(3)).await.unwrap();
        world.put("b", service(1)).await.unwrap();
    }

    #[tokio::test]
    async fn a_dry_run_answers_alike_and_changes_nothing() {
        let world = World::new("dry");
        let put = What::Put { name: "a".to_owned(), service: service(1) };
        let tried = world.change(put.clone(), true).await.unwrap();
        assert!(tried.created && world.names().is_empty() && !world.directory.exists());
        let done = world.change(put, false).await.unwrap();
        assert_eq!(tried.service, done.service);
    }

    #[tokio::test]
    async fn what_cannot_be_stored_is_not_done() {
        let world = World::new("full");
        fs::write(&world.directory, "in the way").unwrap();
        let result = world.put("a", service(1)).await;
        assert!(matches!(result, Err(ApiError::Unavailable(_))), "{result:?}");
        assert!(world.names().is_empty() && world.daemon.borrow().services.is_empty());
        fs::remove_file(&world.directory).unwrap();
        assert!(world.put("a", service(1)).await.unwrap().created);
    }

    #[tokio::test]
    async fn a_drained_backend_is_removed_once_its_last_flow_is_gone() {
        let mut world = World::new("remove");
        world.put("a", service(1)).await.unwrap();
        let named = |name: &str| ("a".to_owned(), name.to_owned());
        let all = Arc::new(Gone::from([named("10.0.0.1:80"), named("10.0.0.2:80")]));
        world.drain_so("a", "10.0.0.2:80", Drain::Keep).await.unwrap();
        world.drain_so("a", "10.0.0.1:80", Drain::ThenRemove).await.unwrap();
        let view = world.clients.borrow().by_name["a"].clone();
        assert_eq!((view.drained.len(), &view.removing[..]), (2, &["10.0.0.1:80".to_owned()][..]));
        // A restart does not forget what waits.
        let next = World::over(world.directory.clone());
        assert_eq!(next.daemon.borrow().removing, world.daemon.borrow().removing);
        drop(next);
        world.put("a", service(1)).await.unwrap();
        world.drained.send_replace(all.clone());
        let left = |view: &ServiceView| view.service["backends"].as_array().unwrap().len();
        world.clients.wait_for(|now| left(&now.by_name["a"]) == 1).await.unwrap();
        let view = world.clients.borrow().by_name["a"].clone();
        assert_eq!(view.service["backends"][0]["address"], "10.0.0.2");
        assert_eq!((&view.drained[..], view.removing.len()), (&["10.0.0.2:80".to_owned()][..], 0));
        // Who changes his mind in time keeps it.
        world.drain_so("a", "10.0.0.2:80", Drain::ThenRemove).await.unwrap();
        world.drain_so("a", "10.0.0.2:80", Drain::Keep).await.unwrap();
        world.drained.send_replace(all);
        world.put("b", service(2)).await.unwrap();
        assert_eq!(left(&world.clients.borrow().by_name["a"]), 1);
    }

    #[tokio::test]
    async fn the_files_services_can_be_drained_and_nothing_else() {
        let mut world = World::new("file");
        let mut value = service(1);
        value["name"] = json!("web");
        let services = vec![service_from_json(&value, Default::default(), &[]).unwrap()];
        world.file.send_replace(Arc::new(FileSide { services, ..FileSide::default() }));
        world.clients.wait_for(|now| now.by_name.contains_key("web")).await.unwrap();
        let refused = Err(ApiError::ReadOnly { name: "web".to_owned(), owner: Owner::File });
        assert_eq!(world.put("web", service(2)).await.map(drop), refused);
        assert!(matches!(world.put("b", service(1)).await, Err(ApiError::Conflict(_))));
        world.drain("web", "10.0.0.2:80", true).await.unwrap();
        let removed = world.drain_so("web", "10.0.0.2:80", Drain::ThenRemove).await;
        assert!(matches!(removed, Err(ApiError::ReadOnly { .. })), "{removed:?}");
        let unknown = world.drain("web", "10.0.0.3:80", true).await;
        assert!(matches!(unknown, Err(ApiError::Unknown { what: "backend", .. })), "{unknown:?}");
        let view = world.clients.borrow().by_name["web"].clone();
        assert_eq!((view.owner, &view.drained[..]), (Owner::File, &["10.0.0.2:80".to_owned()][..]));
        world.drain("web", "10.0.0.2:80", false).await.unwrap();
        assert!(world.daemon.borrow().drained.is_empty());
    }

    /// What a cluster says that has a Service `shop/web` with these pods.
    fn of_cluster(pods: &[u8]) -> Arc<Side> {
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1"],
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.77"}]}},
        });
        let endpoint = |pod: &u8| json!({"addresses": [format!("10.244.1.{pod}")], "conditions": {"ready": true}});
        let slice = json!({
            "metadata": {
                "name": "web-x",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        });
        let mut index = Index::new(Rules::default());
        index.replace_services([&serde_json::from_value(service).unwrap()]);
        index.replace_slices([&serde_json::from_value(slice).unwrap()]);
        index.replace_nodes([]);
        let changes = index.changes().into_iter();
        let states = changes.filter_map(|one| Some((one.key, one.state?))).collect();
        Arc::new(Side { complete: true, states, ..Side::default() })
    }

    #[tokio::test]
    async fn the_clusters_services_can_be_drained_and_nothing_else() {
        let mut world = World::new("cluster");
        let name = "shop/web/80-tcp-ipv4";
        world.cluster.send_replace(of_cluster(&[1, 2]));
        world.clients.wait_for(|now| now.by_name.contains_key(name)).await.unwrap();
        let owner = world.clients.borrow().by_name[name].owner;
        assert_eq!(owner, Owner::Kubernetes);
        let refused = Err(ApiError::ReadOnly { name: name.to_owned(), owner });
        assert_eq!(world.put(name, service(2)).await.map(drop), refused);
        let delete = What::Delete { name: name.to_owned() };
        assert_eq!(world.change(delete, false).await.map(drop), refused);
        world.drain(name, "10.244.1.2:80", true).await.unwrap();
        assert!(world.daemon.borrow().drained[name].contains("10.244.1.2:80"));

        // What the API declares counts before the cluster, so it may take its frontends.
        let mut taker = service(3);
        taker["frontends"][1] = json!({"address": "203.0.113.77", "port": 80});
        world.put("taker", taker).await.unwrap();

        // The drained pod is gone: a new one with its address is not drained.
        world.cluster.send_replace(of_cluster(&[1]));
        world.daemon.wait_for(|side| side.drained.is_empty()).await.unwrap();
        let next = World::over(world.directory.clone());
        assert_eq!(next.daemon.borrow().drained.len(), 0, "nor after a restart");
        world.cluster.send_replace(Arc::new(Side { complete: true, ..Side::default() }));
        world.clients.wait_for(|now| !now.by_name.contains_key(name)).await.unwrap();
    }
}
