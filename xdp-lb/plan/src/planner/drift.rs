//! Compares the tables with what they should hold, and says what to write again.
//!
//! Only somebody else's writes make them differ; nothing of this runs where a packet waits.

use std::collections::BTreeMap;

use xdp_lb_abi::FrontendEntry;

use super::{Assignment, Planner, change::publish};
use crate::{
    adopt::Image,
    frontends::Place,
    op::Op,
    shared::{id_words, slot_words},
};

impl Planner {
    /// What must be written so that the tables hold what they should; nothing where they do.
    ///
    /// Tables, lists and records come before the entries that lead to them.
    pub fn drift(&self, image: &impl Image) -> Vec<Op> {
        let mut ops = Vec::new();
        for (id, _, record) in self.backends.iter() {
            if image.backend(id) != Some(*record) {
                ops.push(Op::Backend { id, backend: *record, new: false });
            }
        }
        for one in self.installed.values() {
            for assignment in one.assignments() {
                ops.extend(content_drift(assignment, image));
            }
        }
        let mut entries = BTreeMap::new();
        for (key, one) in &self.installed {
            let mut right = Vec::new();
            publish(*key, one, &mut right);
            ops.extend(right.into_iter().filter(|op| match op {
                Op::Service { index, service } => image.service(*index) != Some(*service),
                Op::Publish { .. }
                | Op::Arena { .. }
                | Op::Backend { .. }
                | Op::ResetFrontend { .. }
                | Op::Grace => false,
            }));
            entries.insert(one.place, FrontendEntry::new(*key, one.record));
        }
        ops.extend(entry_drift(&entries, image));
        ops
    }
}

fn content_drift(assignment: &Assignment, image: &impl Image) -> Vec<Op> {
    let Assignment { table, list, members: _ } = assignment;
    let contents =
        [(table.range.start, slot_words(&table.items)), (list.range.start, id_words(&list.items))];
    let wrong = contents.into_iter().filter(|(start, words)| {
        (*start..).zip(words).any(|(index, word)| image.word(index) != Some(*word))
    });
    wrong.map(|(word, words)| Op::Arena { word, words }).collect()
}

/// Entries that are not what they should be, and entries that should not be.
fn entry_drift(right: &BTreeMap<Place, FrontendEntry>, image: &impl Image) -> Vec<Op> {
    let mut ops = Vec::new();
    for index in 0..image.buckets() {
        let Some(bucket) = image.bucket(index) else { continue };
        for (entry, found) in bucket.entries.iter().enumerate() {
            let place = Place { bucket: index, entry };
            match (right.get(&place), found.key()) {
                (Some(value), _) if value != found => {
                    ops.push(Op::Publish { bucket: index, entry, value: *value });
                }
                (None, Some(key)) => {
                    let value = FrontendEntry::new(key, 0);
                    ops.push(Op::Publish { bucket: index, entry, value });
                }
                _ => {}
            }
        }
    }
    ops
}
