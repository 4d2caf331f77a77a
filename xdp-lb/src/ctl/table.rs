//! Tables for people: aligned, and coloured where a terminal shows them.

use std::fmt::Write as _;

/// How good the news of a cell is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
}

impl Tone {
    /// The escape sequence of its colour (ECMA-48, SGR).
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("\x1b[32m"),
            Self::Warning => Some("\x1b[33m"),
            Self::Bad => Some("\x1b[31m"),
        }
    }
}

/// A piece of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl ToString, tone: Tone) -> Self {
        Self { text: text.to_string(), tone }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table with a head.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text: columns to the left, three spaces between them.
    pub(super) fn text(&self, colour: bool) -> String {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                let cells = cells.map(|cell| cell.text.chars().count());
                cells.chain([self.head[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let head = self.head.iter().copied().map(Cell::from).collect();
        for (line, row) in [&head].into_iter().chain(&self.rows).enumerate() {
            let last =
                row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
            for (column, cell) in row.iter().take(last).enumerate() {
                let code = if line == 0 { Some("\x1b[1m") } else { cell.tone.code() };
                let _ = match code.filter(|_| colour) {
                    Some(code) => write!(text, "{code}{}\x1b[0m", cell.text),
                    None => write!(text, "{}", cell.text),
                };
                if column + 1 < last {
                    let width = widths.get(column).copied().unwrap_or(0);
                    let gap = width.saturating_sub(cell.text.chars().count()) + 3;
                    let _ = write!(text, "{:gap$}", "");
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["ID", "Frontend", "State"]);
        table.row(["1".into(), "192.0.2.1:80/TCP".into(), Cell::toned("active", Tone::Good)]);
        table.row([Cell::default(), Cell::default(), Cell::toned("down", Tone::Bad)]);
        table.row(["12".into(), "x".into(), Cell::default()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        assert_eq!(
            table().text(false),
            "ID   Frontend           State\n\
             1    192.0.2.1:80/TCP   active\n\
             \u{20}                       down\n\
             12   x\n"
        );
    }

    #[test]
    fn colours_change_no_place() {
        let plain: String = table().text(true);
        let mut bare = plain.clone();
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            bare = bare.replace(code, "");
        }
        assert_ne!(plain, bare);
        assert_eq!(bare, table().text(false));
    }
}
