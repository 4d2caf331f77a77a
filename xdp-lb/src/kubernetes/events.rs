//! Kubernetes Events about what cannot be done for objects, each said once.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource as _, api::PostParams};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::debug;
use xdp_lb_plan::kubernetes::{Key, ObjectKind};

use super::{Pace, object::Raw, status::Status};

/// Who says it.
const CONTROLLER: &str = "xdp-lb";
/// Between two Events: many findings at once must not be a burden on the server.
const APART: Duration = Duration::from_millis(50);
/// How often one is tried.
const TRIES: u32 = 3;
/// Longest note that the server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// What is to be said of an object.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub(super) kind: ObjectKind,
    pub(super) key: Key,
    /// Empty where it is not known
    pub(super) uid: String,
    pub(super) reason: String,
    pub(super) action: &'static str,
    pub(super) note: String,
    /// Whether it is about this node alone: others say what is about all of them
    pub(super) here: bool,
}

/// Writes Events until nobody has any more.
pub(super) async fn write(
    enabled: bool,
    host: &str,
    pace: Pace,
    mut notices: mpsc::Receiver<Notice>,
    mut clients: watch::Receiver<Option<Client>>,
    status: Arc<Status>,
) {
    while let Some(notice) = notices.recv().await {
        if !enabled {
            continue;
        }
        let event = event(&notice, host);
        for _ in 0..TRIES {
            let client = clients.wait_for(Option::is_some).await;
            let Some(client) = client.ok().and_then(|client| client.clone()) else { return };
            let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
            let events: Api<Event> = Api::namespaced(client, namespace);
            let parameters = PostParams::default();
            match timeout(pace.answer, events.create(&parameters, &event)).await {
                Ok(Ok(_)) => {
                    status.trouble("Events", None);
                    break;
                }
                // It was said before, by an earlier run or another node.
                Ok(Err(kube::Error::Api(refusal))) if refusal.code == 409 => break,
                Ok(Err(kube::Error::Api(refusal))) if refusal.code == 403 => {
                    let why = format!("permission denied: {}", refusal.message);
                    status.trouble("Events", Some(why));
                    break;
                }
                Ok(Err(kube::Error::Api(refusal))) if refusal.code < 500 => {
                    debug!("an Event is not taken: {}", refusal.message);
                    break;
                }
                Ok(Err(error)) => debug!("an Event cannot be written: {error}"),
                Err(_) => debug!("an Event cannot be written in time"),
            }
            sleep(pace.least).await;
        }
        sleep(APART).await;
    }
}

/// The Event. Its name says what it is about, so that the server itself refuses to have it twice.
fn event(notice: &Notice, host: &str) -> Event {
    let Notice { kind, key, uid, reason, action, note, here } = notice;
    let mut hasher = DefaultHasher::new();
    (kind.to_string(), uid, reason, note, here.then_some(host)).hash(&mut hasher);
    let name: String = key.name.chars().take(200).collect();
    // Objects without a namespace have their Events in this one.
    let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
    let cut = note.floor_char_boundary(MAX_NOTE);
    Event {
        action: Some((*action).to_owned()),
        reason: Some(reason.clone()),
        note: Some(note[..cut].to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some("Warning".to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(Raw::api_version(kind).into_owned()),
            kind: Some(kind.to_string()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()).filter(|one| !one.is_empty()),
            uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(host.to_owned()),
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:016x}", hasher.finish())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(note: &str, here: bool) -> Notice {
        Notice {
            kind: ObjectKind::Service,
            key: Key::new("shop", "web"),
            uid: "u".to_owned(),
            reason: "InvalidAddress".to_owned(),
            action: "Serve",
            note: note.to_owned(),
            here,
        }
    }

    #[test]
    fn an_event_has_one_name_on_all_nodes_unless_it_is_about_one_of_them() {
        let name = |notice: &Notice, host| event(notice, host).metadata.name;
        assert_eq!(name(&notice("x", false), "a"), name(&notice("x", false), "b"));
        assert_ne!(name(&notice("x", true), "a"), name(&notice("x", true), "b"));
        assert_ne!(name(&notice("x", false), "a"), name(&notice("y", false), "a"));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let event = event(&notice(&"ä".repeat(2000), false), "a");
        assert!(event.note.unwrap().len() <= MAX_NOTE);
    }
}
