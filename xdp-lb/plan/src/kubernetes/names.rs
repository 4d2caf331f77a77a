//! Names that many objects repeat, kept once.

use std::{collections::HashSet, sync::Arc};

/// Names that many objects repeat, kept once: those of Nodes, zones and ports.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<Arc<str>>);

impl Names {
    pub(super) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.0.insert(new.clone());
        new
    }

    /// Forgets those that nobody has any more.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|name| Arc::strong_count(name) > 1);
    }
}
