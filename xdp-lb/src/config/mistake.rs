//! What is wrong with a file, and where.

use std::{
    cell::{Cell, RefCell},
    fmt::{self, Write as _},
};

use super::tree::Place;

/// How many mistakes are kept: a file of nothing else must not fill the memory.
const MAX_MISTAKES: usize = 10_000;
/// Longest piece of the file that a message repeats, in characters.
const MAX_QUOTE: usize = 60;

/// Something that the file's author has to change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Line, from 1
    pub line: u32,
    /// Column, in characters, from 1
    pub column: u32,
    /// Where in the document, like `services[2].frontends[0].port`; empty where the mistake is one
    /// of the file as a whole
    pub path: String,
    /// What is wrong, and what to write instead
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All mistakes of a file, in the order of their places; at least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// One mistake a line, as `FILE:LINE:COLUMN: path: message`; no newline after the last.
    pub fn in_file(&self, file: &str) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            for (index, mistake) in self.0.iter().enumerate() {
                if index > 0 {
                    f.write_char('\n')?;
                }
                write!(f, "{file}:{mistake}")?;
            }
            Ok(())
        })
    }
}

/// Collects mistakes while the file is read.
#[derive(Default)]
pub(super) struct Sink {
    /// Whether paths are JSON pointers (RFC 6901)
    pub(super) pointers: bool,
    kept: RefCell<Vec<Mistake>>,
    dropped: Cell<usize>,
}

impl Sink {
    /// For a JSON document.
    pub(super) fn with_pointers() -> Self {
        Self { pointers: true, ..Self::default() }
    }

    /// Adds a mistake; both texts are written only where it is kept.
    pub(super) fn add(&self, place: Place, path: impl fmt::Display, message: impl fmt::Display) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() == MAX_MISTAKES {
            self.dropped.set(self.dropped.get() + 1);
            return;
        }
        kept.push(Mistake {
            line: place.line,
            column: place.column,
            path: path.to_string(),
            message: message.to_string(),
        });
    }

    /// Whether nothing was added yet.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.borrow().is_empty()
    }

    /// All that were added, sorted; nothing where there is none.
    pub(super) fn into_mistakes(self) -> Option<Mistakes> {
        let mut mistakes = self.kept.into_inner();
        // Stable, so that mistakes at one place stay in the order of the rules.
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        if let (Some(last), dropped @ 1..) = (mistakes.last(), self.dropped.get()) {
            let (line, column) = (last.line, last.column);
            let message = format!("{dropped} more mistakes are not listed: correct these first");
            mistakes.push(Mistake { line, column, path: String::new(), message });
        }
        (!mistakes.is_empty()).then_some(Mistakes(mistakes))
    }
}

/// A piece of the file as messages repeat it: short, on one line, nothing that steers a terminal.
pub(super) fn quote(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        for c in text.chars().take(MAX_QUOTE) {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        if text.chars().nth(MAX_QUOTE).is_some() { f.write_str("…") } else { Ok(()) }
    })
}
