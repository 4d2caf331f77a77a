//! From YAML text to a tree whose nodes know their places.
//!
//! Built from the parser's events: duplicate keys must survive until they are reported, and
//! neither nesting nor aliases may cost more than their bounds.

use std::{borrow::Cow, collections::HashMap, fmt, rc::Rc};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::mistake::Sink;

/// Deepest nesting; the format itself needs 5 levels.
const MAX_DEPTH: u32 = 16;
/// How many nodes all aliases of a file may stand for together.
const MAX_ALIASED: u32 = 10_000_000;

/// Where a node begins: line and column from 1, the column in characters.
///
/// A JSON document has no lines worth naming: there the line is the node's place in its list, from
/// 1, and the column 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Place {
    /// The file as a whole.
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.column == 0 {
            write!(f, "as item {} of the list", self.line)
        } else {
            write!(f, "on line {}", self.line)
        }
    }
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        // No file is large enough for a number that does not fit.
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { line: number(marker.line().max(1)), column: number(marker.col() + 1) }
    }
}

/// A YAML node. Clones of lists and mappings share their contents.
#[derive(Clone)]
pub(super) struct Node<'t> {
    pub(super) place: Place,
    pub(super) value: Value<'t>,
    /// Nodes in it, itself included, had no alias been shared
    size: u32,
    /// Levels of lists and mappings in it, itself included
    depth: u32,
}

#[derive(Clone)]
pub(super) enum Value<'t> {
    Scalar(Scalar<'t>),
    List(Rc<Vec<Node<'t>>>),
    Map(Rc<Vec<Entry<'t>>>),
}

/// A key and its value, duplicates included.
pub(super) struct Entry<'t> {
    pub(super) key: Node<'t>,
    pub(super) value: Node<'t>,
}

/// A text and whether it was written without quotes, in which case it may mean a number.
#[derive(Clone)]
pub(super) struct Scalar<'t> {
    pub(super) text: Cow<'t, str>,
    pub(super) plain: bool,
}

/// What YAML's core schema takes a scalar for.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    Text,
}

impl Scalar<'_> {
    /// What YAML's core schema takes it for (YAML 1.2.2, 10.3.2).
    pub(super) fn kind(&self) -> Kind {
        if !self.plain {
            return Kind::Text;
        }
        match &*self.text {
            "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Bool,
            text if is_number(text) => Kind::Number,
            _ => Kind::Text,
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    if let Some(hex) = text.strip_prefix("0x") {
        return digits(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return digits(octal, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    // Rust's own floats are the schema's but for the spelling of the words.
    unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && (unsigned.parse::<f64>().is_ok() || matches!(unsigned, ".inf" | ".Inf" | ".INF"))
        || matches!(text, ".nan" | ".NaN" | ".NAN")
}

impl<'t> Node<'t> {
    /// The tree of a JSON document, which this is as deep as: its parser must have a limit.
    pub(super) fn json(value: &'t serde_json::Value) -> Self {
        Self::json_at(value, Place { line: 1, column: 0 })
    }

    fn json_at(json: &'t serde_json::Value, place: Place) -> Self {
        use serde_json::Value as Json;
        let scalar = |text: Cow<'t, str>, plain| Value::Scalar(Scalar { text, plain });
        let value = match json {
            Json::Null => scalar("null".into(), true),
            Json::Bool(truth) => scalar(truth.to_string().into(), true),
            Json::Number(number) => scalar(number.to_string().into(), true),
            Json::String(text) => scalar(text.as_str().into(), false),
            Json::Array(items) => {
                let at =
                    |index| Place { line: u32::try_from(index).unwrap_or(u32::MAX), column: 0 };
                let items = (1..).zip(items);
                Value::List(Rc::new(items.map(|(n, one)| Self::json_at(one, at(n))).collect()))
            }
            Json::Object(entries) => {
                let entries = entries.iter().map(|(key, value)| Entry {
                    key: Self { place, value: scalar(key.into(), false), size: 1, depth: 0 },
                    value: Self::json_at(value, place),
                });
                Value::Map(Rc::new(entries.collect()))
            }
        };
        Self { place, value, size: 1, depth: 1 }
    }

    /// The same as a JSON document; of two equal keys the second counts.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                let text = |key: &Self| match &key.value {
                    Value::Scalar(scalar) => scalar.text.to_string(),
                    Value::List(_) | Value::Map(_) => key.to_string(),
                };
                let entries = entries.iter();
                Json::Object(entries.map(|one| (text(&one.key), one.value.to_json())).collect())
            }
            Value::Scalar(scalar) => match scalar.kind() {
                Kind::Null => Json::Null,
                Kind::Bool => Json::Bool(scalar.text.eq_ignore_ascii_case("true")),
                // Those that only YAML knows stay as they are written, for a reader to refuse.
                Kind::Number => serde_json::from_str(&scalar.text)
                    .unwrap_or_else(|_| Json::String(scalar.text.to_string())),
                Kind::Text => Json::String(scalar.text.to_string()),
            },
        }
    }

    fn scalar(place: Place, text: Cow<'t, str>, style: ScalarStyle) -> Self {
        // A clone copies a text of its own, so a long one counts for more than one node.
        let size = match &text {
            Cow::Borrowed(_) => 1,
            Cow::Owned(text) => u32::try_from(1 + text.len() / 64).unwrap_or(u32::MAX),
        };
        let value = Value::Scalar(Scalar { text, plain: style == ScalarStyle::Plain });
        Self { place, value, size, depth: 0 }
    }
}

/// The tree of the file's one document; nothing where the mistakes in `sink` prevent it.
pub(super) fn load<'t>(text: &'t str, sink: &Sink) -> Option<Node<'t>> {
    match try_load(text, sink) {
        Ok(root) => root,
        Err((place, message)) => {
            sink.add(place, "", message);
            None
        }
    }
}

type Stop = (Place, String);

fn try_load<'t>(text: &'t str, sink: &Sink) -> Result<Option<Node<'t>>, Stop> {
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let message = format!("not valid YAML: {}", error.info());
            (Place::from(*error.marker()), message)
        })?;
        let place = span.start.into();
        let tagged = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => false,
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    sink.add(
                        place,
                        "",
                        "a second document begins here: write everything into one, without `---`",
                    );
                    break;
                }
                false
            }
            Event::Scalar(text, style, anchor, tag) => {
                builder.put(Node::scalar(place, text, style), anchor);
                tag.is_some()
            }
            Event::SequenceStart(anchor, tag) => {
                builder.open(place, anchor, Open::List(Vec::new()))?;
                tag.is_some()
            }
            Event::MappingStart(anchor, tag) => {
                builder.open(place, anchor, Open::Map(Vec::new(), None))?;
                tag.is_some()
            }
            Event::SequenceEnd | Event::MappingEnd => {
                builder.close();
                false
            }
            Event::Alias(anchor) => {
                builder.alias(place, anchor)?;
                false
            }
        };
        if tagged {
            sink.add(place, "", "tags (`!…`) mean nothing here: remove the tag");
        }
    }
    Ok(builder.root)
}

/// A list or mapping whose end has not come yet; a mapping with the key whose value comes next.
enum Open<'t> {
    List(Vec<Node<'t>>),
    Map(Vec<Entry<'t>>, Option<Node<'t>>),
}

struct Frame<'t> {
    place: Place,
    anchor: usize,
    size: u32,
    depth: u32,
    open: Open<'t>,
}

#[derive(Default)]
struct Builder<'t> {
    frames: Vec<Frame<'t>>,
    anchors: HashMap<usize, Node<'t>>,
    aliased: u32,
    root: Option<Node<'t>>,
}

impl<'t> Builder<'t> {
    fn open(&mut self, place: Place, anchor: usize, open: Open<'t>) -> Result<(), Stop> {
        check_depth(place, self.level() + 1)?;
        self.frames.push(Frame { place, anchor, size: 1, depth: 1, open });
        Ok(())
    }

    /// How many lists and mappings are open; at most [`MAX_DEPTH`].
    fn level(&self) -> u32 {
        self.frames.len() as u32
    }

    fn close(&mut self) {
        let Some(Frame { place, anchor, size, depth, open }) = self.frames.pop() else { return };
        let value = match open {
            Open::List(items) => Value::List(Rc::new(items)),
            Open::Map(entries, _) => Value::Map(Rc::new(entries)),
        };
        self.put(Node { place, value, size, depth }, anchor);
    }

    /// Puts a finished node where it belongs. Anchors are numbered from 1; 0 is none.
    fn put(&mut self, node: Node<'t>, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return;
        };
        frame.size = frame.size.saturating_add(node.size);
        frame.depth = frame.depth.max(node.depth + 1);
        match &mut frame.open {
            Open::List(items) => items.push(node),
            Open::Map(entries, key) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push(Entry { key, value: node }),
            },
        }
    }

    fn alias(&mut self, place: Place, anchor: usize) -> Result<(), Stop> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err((place, "this alias stands for something that it is part of".to_owned()));
        };
        check_depth(place, self.level() + target.depth)?;
        self.aliased = self.aliased.saturating_add(target.size);
        if self.aliased > MAX_ALIASED {
            let message =
                format!("the aliases so far stand for more than {MAX_ALIASED} values: use fewer");
            return Err((place, message));
        }
        let node = Node { place, ..target.clone() };
        self.put(node, 0);
        Ok(())
    }
}

fn check_depth(place: Place, depth: u32) -> Result<(), Stop> {
    if depth > MAX_DEPTH {
        let message = format!("nested more than {MAX_DEPTH} levels deep; the format needs 5");
        return Err((place, message));
    }
    Ok(())
}

impl fmt::Display for Node<'_> {
    /// What a message says was found.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::List(_) => f.write_str("a list"),
            Value::Map(_) => f.write_str("a mapping"),
            Value::Scalar(scalar) => {
                let text = super::mistake::quote(&scalar.text);
                match scalar.kind() {
                    Kind::Null => f.write_str("no value"),
                    Kind::Bool => write!(f, "the truth value {text}"),
                    Kind::Number => write!(f, "the number {text}"),
                    Kind::Text => write!(f, "the text \"{text}\""),
                }
            }
        }
    }
}
