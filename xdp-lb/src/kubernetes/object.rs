//! Objects as the server sends them: one that is malformed must not hide the others.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use xdp_lb_plan::kubernetes::{Key, ObjectKind};

/// The kinds that are followed.
pub(super) const KINDS: [ObjectKind; 3] =
    [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node];

/// What another proxy has been chosen for, as kube-proxy leaves it out.
const OTHER_PROXY: &str = "!service.kubernetes.io/service-proxy-name";
/// Endpoints of Services that have no address.
const HEADLESS: &str = "!service.kubernetes.io/headless";

/// Which objects of a kind the server is to send.
pub(super) const fn selector(kind: ObjectKind) -> Option<&'static str> {
    match kind {
        ObjectKind::Service => Some(OTHER_PROXY),
        ObjectKind::EndpointSlice => Some(HEADLESS),
        ObjectKind::Node => None,
    }
}

/// The name of a kind in URLs and in rules of a role.
pub(super) const fn plural(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Service => "services",
        ObjectKind::EndpointSlice => "endpointslices",
        ObjectKind::Node => "nodes",
    }
}

/// An object of whatever contents.
///
/// It is read in two steps: what the watch itself needs cannot fail, the rest can for one object
/// alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw {
    metadata: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |key: &str| Some(value.get("metadata")?.get(key)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, value })
    }
}

impl Resource for Raw {
    type DynamicType = ObjectKind;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &ObjectKind) -> Cow<'_, str> {
        kind.to_string().into()
    }

    fn group(kind: &ObjectKind) -> Cow<'_, str> {
        match kind {
            ObjectKind::EndpointSlice => "discovery.k8s.io",
            ObjectKind::Service | ObjectKind::Node => "",
        }
        .into()
    }

    fn version(_: &ObjectKind) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(kind: &ObjectKind) -> Cow<'_, str> {
        plural(*kind).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Why an object is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Garbage {
    /// Its name, where it has one
    pub(super) key: Option<Key>,
    /// Its unique id; empty where it has none
    pub(super) uid: String,
    /// What is wrong
    pub(super) why: String,
}

impl Raw {
    /// Namespace and name; none where it has no name.
    pub(super) fn key(&self) -> Option<Key> {
        let name = self.metadata.name.as_deref().filter(|name| !name.is_empty())?;
        Some(Key::new(self.metadata.namespace.as_deref().unwrap_or_default(), name))
    }

    /// The object as its kind has it.
    ///
    /// # Errors
    ///
    /// Where it is malformed.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, Garbage> {
        let key = self.key();
        let uid = self.metadata.uid.unwrap_or_default();
        if key.is_none() {
            let why = "it has no name".to_owned();
            return Err(Garbage { key, uid, why });
        }
        serde_json::from_value(self.value).map_err(|error| Garbage {
            key,
            uid,
            why: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_of_any_shape_can_be_held_and_only_reading_it_fails() {
        for (value, key, right) in [
            (json!({"metadata": {"name": "a", "namespace": "b"}}), Some("b/a"), true),
            (json!({"metadata": {"name": "a"}, "spec": {"ports": 7}}), Some("a"), false),
            (json!({"metadata": {"name": "a", "labels": 3}}), Some("a"), false),
            (json!({"metadata": {"name": ""}}), None, false),
            (json!({"metadata": null}), None, false),
            (json!({"metadata": [1]}), None, false),
            (json!(null), None, false),
            (json!("text"), None, false),
        ] {
            let raw: Raw = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(raw.key().map(|key| key.to_string()).as_deref(), key, "{value}");
            assert_eq!(raw.read::<Service>().is_ok(), right, "{value}");
        }
    }
}
