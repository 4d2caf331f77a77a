//! Reads a tree against a format and collects mistakes instead of stopping at the first.
//!
//! Every reader returns nothing where it has reported a mistake, so that its caller can go on with
//! the rest of the file.

use std::{fmt, ops::RangeInclusive};

use super::{
    mistake::{Sink, quote},
    tree::{Kind, Node, Place, Scalar, Value},
};

/// Longest key for which a similar one is looked for, in bytes.
const MAX_SIMILAR: usize = 40;

/// A node and the way to it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    node: &'a Node<'a>,
    sink: &'a Sink,
    up: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Item(usize),
}

impl fmt::Display for At<'_> {
    /// The path, like `services[2].frontends[0].port`, or as a JSON pointer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            up.fmt(f)?;
        }
        match self.step {
            Step::Item(index) if self.sink.pointers => write!(f, "/{index}"),
            Step::Key(key) if self.sink.pointers => {
                write!(f, "/{}", key.replace('~', "~0").replace('/', "~1"))
            }
            Step::Root => Ok(()),
            Step::Item(index) => write!(f, "[{index}]"),
            Step::Key(key) => {
                let dot = self.up.is_some_and(|up| !matches!(up.step, Step::Root));
                write!(f, "{}{}", if dot { "." } else { "" }, quote(key))
            }
        }
    }
}

impl<'a> At<'a> {
    /// The document itself.
    pub(super) fn root(node: &'a Node<'a>, sink: &'a Sink) -> Self {
        Self { node, sink, up: None, step: Step::Root }
    }

    /// Where the node begins.
    pub(super) fn place(&self) -> Place {
        self.node.place
    }

    /// Reports a mistake here.
    pub(super) fn mistake(&self, message: impl fmt::Display) {
        self.sink.add(self.node.place, self, message);
    }

    /// Reports that the node is not what belongs here; `wanted` like `a list of services`.
    pub(super) fn expected(&self, wanted: impl fmt::Display) {
        self.mistake(format_args!("found {}: write {wanted}", self.node));
    }

    /// Whether the key is there and nothing behind it.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.node.value, Value::Scalar(scalar) if scalar.kind() == Kind::Null)
    }

    /// The entries of a mapping; those with other keys than `known`, and second ones, are mistakes.
    pub(super) fn fields(&'a self, known: &'static [&'static str]) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(format_args!("a mapping with the keys {}", list(known)));
            return None;
        };
        let mut fields = Fields { at: self, known, values: vec![None; known.len()] };
        for entry in entries.iter() {
            let Value::Scalar(Scalar { text, .. }) = &entry.key.value else {
                let key = At { node: &entry.key, ..*self };
                key.mistake(format_args!("the key is {}: write one of {}", key.node, list(known)));
                continue;
            };
            let key = At { node: &entry.key, up: Some(self), step: Step::Key(text), ..*self };
            match known.iter().position(|known| known == text) {
                None => key.mistake(unknown(text, known)),
                Some(index) => match fields.values[index] {
                    None => fields.values[index] = Some((entry.key.place, &entry.value)),
                    Some((first, _)) => key.mistake(format_args!(
                        "the key is already on line {}: remove one of the two",
                        first.line
                    )),
                },
            }
        }
        Some(fields)
    }

    /// The items of a list; `wanted` like `a list of services`.
    pub(super) fn items(&'a self, wanted: &str) -> Option<impl ExactSizeIterator<Item = At<'a>>> {
        let Value::List(items) = &self.node.value else {
            self.expected(wanted);
            return None;
        };
        Some(items.iter().enumerate().map(|(index, node)| At {
            node,
            sink: self.sink,
            up: Some(self),
            step: Step::Item(index),
        }))
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// A single value of whatever kind; `wanted` like `an IP address`.
    pub(super) fn scalar(&self, wanted: impl fmt::Display) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.kind() != Kind::Null => Some(&scalar.text),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => {
                self.expected(wanted);
                None
            }
        }
    }

    /// A text that YAML, too, takes for one: other readers of the file must see the same.
    pub(super) fn text(&self, wanted: &str) -> Option<&'a str> {
        let text = self.scalar(wanted)?;
        if let Value::Scalar(scalar) = &self.node.value
            && scalar.kind() != Kind::Text
        {
            self.mistake("YAML takes this for a number or a truth value: put it in quotes");
            return None;
        }
        Some(text)
    }

    /// A whole number in `range`.
    pub(super) fn number(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (low, high) = (range.start(), range.end());
        let wanted = format_args!("a whole number from {low} to {high}");
        let text = self.scalar(wanted)?;
        let number = decimal(text).map(|number| number.filter(|number| range.contains(number)));
        let quoted = matches!(&self.node.value, Value::Scalar(scalar) if !scalar.plain);
        match number {
            Some(Some(number)) if quoted => {
                self.mistake(format_args!("the number is a text: write {number} without quotes"));
                None
            }
            Some(Some(number)) => Some(number),
            Some(None) => {
                self.mistake(format_args!("{} is out of range: write {wanted}", quote(text)));
                None
            }
            None => {
                self.expected(format_args!("{wanted}, in decimal digits"));
                None
            }
        }
    }

    /// A truth value.
    pub(super) fn truth(&self) -> Option<bool> {
        self.choice(&[("true", true), ("false", false)])
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let text = self.scalar(format_args!("one of {}", list(&names)))?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            match similar(text, &names) {
                Some(near) => self.expected(format_args!("`{near}`")),
                None => self.expected(format_args!("one of {}", list(&names))),
            }
        }
        found.map(|(_, value)| *value)
    }
}

/// The entries of a mapping by their keys.
pub(super) struct Fields<'a> {
    at: &'a At<'a>,
    known: &'static [&'static str],
    values: Vec<Option<(Place, &'a Node<'a>)>>,
}

impl<'a> Fields<'a> {
    /// The value of one of the known keys.
    pub(super) fn optional(&self, key: &'static str) -> Option<At<'a>> {
        let index = self.known.iter().position(|known| *known == key);
        debug_assert!(index.is_some(), "{key} is not among the keys of {}", self.at);
        let (key_place, node) = self.values[index?]?;
        let at = At { node, up: Some(self.at), step: Step::Key(key), ..*self.at };
        if at.is_null() {
            // An empty value has no place of its own, so the mistake is shown at its key.
            let message = "has no value: write one, or remove the key";
            self.at.sink.add(key_place, at, message);
            return None;
        }
        Some(at)
    }

    /// The value of one of the known keys; that it is missing is a mistake, with `example` as what
    /// to write.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<At<'a>> {
        let missing = self.known.iter().zip(&self.values).all(|(k, v)| *k != key || v.is_none());
        if missing {
            let at = At { up: Some(self.at), step: Step::Key(key), ..*self.at };
            at.mistake(format_args!("is missing: add `{example}`"));
            return None;
        }
        self.optional(key)
    }
}

/// A decimal number without sign and leading zeros: outer nothing where the text is none, inner
/// nothing where it is out of range.
fn decimal(text: &str) -> Option<Option<u32>> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || leading_zero || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().ok())
}

fn unknown<'a>(key: &'a str, known: &'a [&'a str]) -> impl fmt::Display {
    fmt::from_fn(move |f| match similar(key, known) {
        Some(near) => write!(f, "unknown key: did you mean `{near}`?"),
        None => write!(f, "unknown key: the keys here are {}", list(known)),
    })
}

fn list<'a>(words: &'a [&'a str]) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        for (index, word) in words.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}`{word}`")?;
        }
        Ok(())
    })
}

/// The word that was most likely meant, where one is near.
fn similar<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    if text.len() > MAX_SIMILAR {
        return None;
    }
    let plain = |word: &str| -> Vec<char> {
        word.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
    };
    let text = plain(text);
    let near = words.iter().map(|word| (edits(&text, &plain(word)), *word)).min()?;
    let (distance, word) = near;
    (distance <= word.len() / 3).then_some(word)
}

/// How many characters to insert, remove or replace to make `a` of `b` (Levenshtein).
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
