//! Health checks: whom to ask, what follows from the answers, and what is told about them.

use std::collections::BTreeSet;

use tracing::{info, warn};
use xdp_lb_api::{
    rfc3339,
    view::{BackendHealth, EventKind, Wellness},
};
use xdp_lb_plan::{
    health::{AllDown, State},
    model::{Backend, Service},
};

use super::{Daemon, sources::backend_name};
use crate::{
    health::{Found, Key, Status, Targets, targets},
    net::View,
};

impl Daemon {
    /// Has those backends asked that are to be asked now.
    pub(super) fn retarget(&self, view: &View) {
        if self.config.services.iter().all(|one| one.health_check.is_none()) {
            return self.checks.aim(Targets::new());
        }
        let ids = self.planner.backends().map(|(id, key, _)| (id, key));
        self.checks.aim(targets(&self.config, view, ids, backend_name));
    }

    /// Takes in what was found out. Only weights follow from it, so it counts at once.
    pub(super) fn recheck(&mut self) {
        let found = self.checks.found();
        let before = std::mem::replace(&mut self.sources.health, found);
        self.tell(&before);
        let services = self.sources.services();
        if let Some(next) = &mut self.next {
            // In force in a moment, and what is there until then is about to go.
            next.config.services = services;
        } else if services != self.config.services {
            self.config.services = services;
            self.applied = None;
        }
        self.stale = true;
    }

    /// Says who fell and who came up.
    fn tell(&self, before: &Found) {
        let down = |found: &Found| -> BTreeSet<Key> {
            let down = found.iter().filter(|(_, one)| one.health.state() == State::Down);
            down.map(|(key, _)| key.clone()).collect()
        };
        let (was, is) = (down(before), down(&self.sources.health));
        for key @ (service, backend) in is.difference(&was) {
            let error = self.sources.health.get(key).and_then(|one| one.error.as_deref());
            let why = error.unwrap_or_default();
            let text = format!("{backend} of service {service} is down: {why}");
            warn!("{text}");
            self.desk.journal.push(EventKind::BackendDown, text);
        }
        for key @ (service, backend) in was.difference(&is) {
            // Others are not asked any more.
            if self.sources.health.contains_key(key) {
                let text = format!("{backend} of service {service} is up again");
                info!("{text}");
                self.desk.journal.push(EventKind::BackendUp, text);
            }
        }
        self.memory.send_replace(self.sources.health.clone());
    }

    fn status(&self, service: &Service, backend: &Backend) -> Option<&Status> {
        service.health_check.as_ref()?;
        self.sources.health.get(&(service.name.clone(), backend_name(backend)))
    }

    /// Whether a backend takes no new flows since it is down.
    pub(super) fn is_down(&self, service: &Service, backend: &Backend) -> bool {
        let down = |one: &Status| one.health.state() == State::Down;
        backend.weight == 0 && self.status(service, backend).is_some_and(down)
    }

    /// What is known of a backend's health, where it is asked.
    pub(super) fn wellness(&self, service: &Service, backend: &Backend) -> Option<BackendHealth> {
        let check = service.health_check.as_ref()?;
        let key = (service.name.clone(), backend_name(backend));
        let aimed = self.checks.aimed();
        let target = aimed.get(&key).and_then(Option::as_ref);
        let note = match target {
            Some(target) => {
                target.note.as_ref().map(|why| format!("asked at its own address: {why}"))
            }
            None => Some("not asked: the way to it is not known yet".to_owned()),
        };
        let Some(status) = self.sources.health.get(&key) else {
            return Some(BackendHealth { note, ..BackendHealth::default() });
        };
        let state = match status.health.state() {
            State::Unchecked => Wellness::Unknown,
            State::Up => Wellness::Up,
            State::Down => Wellness::Down,
        };
        let held = status.health.is_held(check);
        let held =
            held.then(|| "it answers, but fell often: it is kept down for a while".to_owned());
        Some(BackendHealth {
            state,
            since: Some(rfc3339(status.since)),
            changes: status.health.changes(),
            error: status.error.clone(),
            note: held.or(note),
            weight: status.health.weight(),
        })
    }

    /// What is not as it should be with backends that are asked.
    pub(super) fn unwell(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let checked =
            self.config.services.iter().filter_map(|one| Some((one, one.health_check.as_ref()?)));
        for (service, check) in checked {
            let name = &service.name;
            let mut up = service.backends.is_empty();
            for backend in &service.backends {
                let Some(health) = self.wellness(service, backend) else { continue };
                up |= health.state != Wellness::Down;
                if health.state == Wellness::Down {
                    let why = health.error.unwrap_or_default();
                    wrong.push(format!(
                        "{} of service {name} is down: {why}",
                        backend_name(backend)
                    ));
                }
                if let Some(note) = health.note {
                    wrong.push(format!("{} of service {name}: {note}", backend_name(backend)));
                }
            }
            if !up {
                let then = match check.all_down {
                    AllDown::Keep => "those that were up last go on",
                    AllDown::Reject => "it takes no new flows",
                };
                wrong.insert(0, format!("no backend of service {name} is up: {then}"));
            }
        }
        wrong
    }
}
