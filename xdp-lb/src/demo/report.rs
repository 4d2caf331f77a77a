//! The demo's report: ruled sections, aligned tables, and claims with what became of them.

use std::{
    env,
    io::{self, IsTerminal, Write},
    mem,
    time::Duration,
};

/// Columns that everything fits in.
const NARROWEST: usize = 80;
/// Columns beyond which lines only get harder to read.
const WIDEST: usize = 100;
/// Columns before all that is not a heading.
const INDENT: &str = "  ";

/// Where the report goes, and what it has claimed so far.
#[derive(Debug)]
pub(super) struct Report<W> {
    out: W,
    width: usize,
    colour: bool,
    passed: usize,
    failed: Vec<String>,
}

impl Report<io::Stdout> {
    /// On standard output: as wide as the terminal within limits, coloured on a terminal alone and
    /// not with `NO_COLOR` (no-color.org).
    pub(super) fn on_stdout() -> Self {
        let out = io::stdout();
        let plain = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = out.is_terminal() && !plain("NO_COLOR") && !dumb;
        let width = columns().unwrap_or(NARROWEST);
        Self::new(out, width, colour)
    }
}

impl<W: Write> Report<W> {
    pub(super) fn new(out: W, width: usize, colour: bool) -> Self {
        let width = width.clamp(NARROWEST, WIDEST);
        Self { out, width, colour, passed: 0, failed: Vec::new() }
    }

    /// A heading with a rule to the right edge.
    pub(super) fn section(&mut self, title: &str) -> io::Result<()> {
        let rule = "─".repeat(self.width.saturating_sub(title.chars().count() + 4));
        let title = self.paint(BOLD, title);
        writeln!(self.out, "\n── {title} {rule}")?;
        self.out.flush()
    }

    /// A paragraph, wrapped.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        for line in wrap(text, self.width - INDENT.len()) {
            writeln!(self.out, "{INDENT}{line}")?;
        }
        self.out.flush()
    }

    /// Lines as they are.
    pub(super) fn lines(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.out, "{}", format!("{INDENT}{line}").trim_end())?;
        }
        self.out.flush()
    }

    /// Commands to be pasted: each on one line, however long.
    pub(super) fn commands(&mut self, commands: &[String]) -> io::Result<()> {
        for command in commands {
            let command = self.paint(BOLD, command);
            writeln!(self.out, "{INDENT}{INDENT}{command}")?;
        }
        self.out.flush()
    }

    /// A heading inside a section.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(BOLD, text);
        writeln!(self.out, "{INDENT}{text}")
    }

    /// An empty line.
    pub(super) fn gap(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }

    /// A table, its head underlined.
    pub(super) fn table(&mut self, table: &Table) -> io::Result<()> {
        let mut lines = table.lines().into_iter();
        if let Some(head) = lines.next() {
            let head = self.paint(DIM, &head);
            writeln!(self.out, "{INDENT}{head}")?;
        }
        lines.try_for_each(|line| writeln!(self.out, "{INDENT}{line}"))?;
        self.out.flush()
    }

    /// A claim, and whether it was observed.
    pub(super) fn check(&mut self, observed: bool, claim: &str) -> io::Result<()> {
        let mark = if observed { self.paint(GREEN, "✓") } else { self.paint(RED, "✗") };
        for (index, line) in wrap(claim, self.width - INDENT.len() - 2).iter().enumerate() {
            let mark = if index == 0 { mark.as_str() } else { " " };
            writeln!(self.out, "{INDENT}{mark} {line}")?;
        }
        if observed {
            self.passed += 1;
        } else {
            self.failed.push(claim.to_owned());
        }
        self.out.flush()
    }

    /// Whether a claim was not observed.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// A line behind the verdict, as it is.
    pub(super) fn last(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// The last line, and whether every claim was observed.
    pub(super) fn verdict(&mut self, took: Duration) -> io::Result<bool> {
        let failed = mem::take(&mut self.failed);
        let total = self.passed + failed.len();
        let seconds = took.as_secs_f64();
        if failed.is_empty() && total > 0 {
            let line = format!("demo: all {total} checks passed in {seconds:.1} s");
            let line = self.paint(GREEN, &line);
            writeln!(self.out, "\n{line}")?;
        } else {
            let line =
                format!("demo: {} of {total} checks failed in {seconds:.1} s:", failed.len());
            let line = self.paint(RED, &line);
            writeln!(self.out, "\n{line}")?;
            for claim in &failed {
                writeln!(self.out, "{INDENT}✗ {claim}")?;
            }
        }
        self.out.flush()?;
        Ok(failed.is_empty() && total > 0)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";

/// Columns of the terminal on standard output; none where it is not one.
fn columns() -> Option<usize> {
    // SAFETY: all-zero bytes are a valid `winsize`.
    let mut size: libc::winsize = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to one live `winsize`, which is what this request fills.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then(|| size.ws_col.into())
}

/// Words in lines of at most `width` columns; a longer word has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { continue };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// To which side a column's cells go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Rows of cells below a head.
#[derive(Clone, Debug)]
pub(super) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(columns: &[(&str, Side)]) -> Self {
        let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { sides: columns.iter().map(|(_, side)| *side).collect(), rows: vec![head] }
    }

    /// Adds a row; cells beyond the columns are not shown.
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn ToString; N]) {
        self.rows.push(cells.iter().map(|cell| cell.to_string()).collect());
    }

    fn lines(&self) -> Vec<String> {
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..self.sides.len())
            .map(|column| self.rows.iter().map(|row| cell(row, column).chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = self
                .sides
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (side, &width))| match side {
                    Side::Left => format!("{:<width$}", cell(row, column)),
                    Side::Right => format!("{:>width$}", cell(row, column)),
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// A number with its thousands apart: `12,345`.
pub(super) fn number(value: impl TryInto<u64>) -> String {
    let digits = value.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part of a whole: `33.3 %`.
pub(super) fn share(part: usize, whole: usize) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(width: usize, work: impl FnOnce(&mut Report<Vec<u8>>)) -> String {
        let mut report = Report::new(Vec::new(), width, false);
        work(&mut report);
        String::from_utf8(report.out).unwrap()
    }

    #[test]
    fn a_section_reaches_the_right_edge_within_limits() {
        for (asked, width) in [(10, 80), (80, 80), (93, 93), (200, 100)] {
            let text = written(asked, |report| report.section("Network").unwrap());
            let line = text.trim_start();
            assert!(line.starts_with("── Network ──"), "{line}");
            assert_eq!(line.trim_end().chars().count(), width);
        }
    }

    #[test]
    fn paragraphs_and_claims_stay_within_the_width() {
        let words = "word ".repeat(60);
        let text = written(80, |report| {
            report.text(&words).unwrap();
            report.check(true, &words).unwrap();
        });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().all(|line| line.starts_with(INDENT)), "{text}");
        assert_eq!(text.matches("word").count(), 120);
        assert_eq!(text.matches('✓').count(), 1);
        assert_eq!(wrap("a-word-that-is-too-long b", 5), ["a-word-that-is-too-long", "b"]);
    }

    #[test]
    fn numbers_stand_below_each_other() {
        let mut table = Table::new(&[("backend", Side::Left), ("served", Side::Right)]);
        table.row([&"b1", &7]);
        table.row([&"a longer one", &number(12_345_u64)]);
        let lines = table.lines();
        assert_eq!(
            lines,
            ["backend       served", "b1                 7", "a longer one  12,345",]
        );
    }

    #[test]
    fn the_last_line_counts_the_claims() {
        let took = Duration::from_millis(12_340);
        let text = written(80, |report| {
            report.check(true, "one").unwrap();
            report.check(true, "two").unwrap();
            assert!(report.verdict(took).unwrap());
        });
        assert_eq!(text.lines().last(), Some("demo: all 2 checks passed in 12.3 s"));
        let text = written(80, |report| {
            report.check(true, "one").unwrap();
            report.check(false, "two").unwrap();
            assert!(!report.verdict(took).unwrap());
        });
        assert!(text.ends_with("demo: 1 of 2 checks failed in 12.3 s:\n  ✗ two\n"), "{text}");
        written(80, |report| assert!(!report.verdict(took).unwrap(), "nothing was claimed"));
    }

    #[test]
    fn colours_come_only_where_they_are_wanted() {
        let mut report = Report::new(Vec::new(), 80, true);
        report.check(true, "one").unwrap();
        let text = String::from_utf8(report.out).unwrap();
        assert_eq!(text, "  \x1b[32m✓\x1b[0m one\n");
        assert!(!written(80, |report| report.check(false, "one").unwrap()).contains('\x1b'));
    }

    #[test]
    fn figures_are_easy_to_read() {
        let values = [0_u64, 999, 1000, 1_234_567].map(number);
        assert_eq!(values, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(0, 0), "-");
    }
}
