//! As much of PromQL and of the text format as it takes to see whether an expression and a page belong
//! together.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, each with the values that it may have.
pub(crate) type Matchers = Vec<(String, Vec<String>)>;

/// What an expression asks for.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Uses {
    /// Metrics, each with its matchers: label, values that it may have
    pub(crate) metrics: Vec<(String, Matchers)>,
    /// Labels that series are grouped and joined by
    pub(crate) labels: BTreeSet<String>,
}

const BY_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "inf"];

/// Takes an expression apart; what is no identifier, matcher or string is skipped.
pub(crate) fn uses(expression: &str) -> Uses {
    let mut found = Uses::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = string(rest).1;
        } else if first == '[' {
            rest = rest.split_once(']').expect("a range ends").1;
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if first.is_ascii_alphabetic() || first == '_' {
            let (word, after) = identifier(rest);
            rest = after.trim_start();
            if BY_LABELS.contains(&word) {
                let (labels, after) =
                    rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).expect("labels");
                let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
                found.labels.extend(labels.map(str::to_owned));
                rest = after;
            } else if !rest.starts_with('(')
                && !WORDS.contains(&word)
                && !is_aggregation(word, rest)
            {
                let (matchers, after) = match rest.strip_prefix('{') {
                    Some(inside) => matchers(inside),
                    None => (Vec::new(), rest),
                };
                found.metrics.push((word.to_owned(), matchers));
                rest = after;
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// Whether it is one like `sum by (a) (…)`.
fn is_aggregation(word: &str, rest: &str) -> bool {
    ["sum", "max", "min", "avg", "count", "topk"].contains(&word)
        && BY_LABELS.contains(&identifier(rest).0)
}

fn identifier(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    text.split_at(end.unwrap_or(text.len()))
}

/// A string in quotes, and what is behind it.
fn string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((index, one)) = chars.next() {
        match one {
            '"' => return (value, &text[index + 1..]),
            '\\' => match chars.next().expect("an escaped character").1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    panic!("a string ends: {text}")
}

/// The matchers up to `}`, and what is behind it.
fn matchers(mut rest: &str) -> (Vec<(String, Vec<String>)>, &str) {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return (all, after);
        }
        let (label, after) = identifier(rest);
        let operator: String = after.chars().take_while(|c| "=~!".contains(*c)).collect();
        let (value, after) = string(&after[operator.len()..]);
        let values = match operator.as_str() {
            "=" => vec![value],
            "=~" => value.split('|').map(str::to_owned).collect(),
            _ => vec![],
        };
        all.push((label.to_owned(), values));
        rest = after;
    }
}

/// A page: by the name of samples, the values that each label has.
pub(crate) fn samples(page: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut all: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = identifier(line);
        let (labels, value) = match rest.strip_prefix('{') {
            Some(inside) => matchers(inside),
            None => (Vec::new(), rest),
        };
        let value = value.trim();
        assert!(value == "+Inf" || value.parse::<f64>().is_ok(), "no number: {line}");
        let known = all.entry(name.to_owned()).or_default();
        for (label, values) in labels {
            known.entry(label).or_default().extend(values);
        }
    }
    all
}

/// What an expression asks for that is not on the page. Prometheus itself adds `instance` and `job`;
/// `free` are labels whose values need not be there now.
pub(crate) fn missing(expression: &str, page: &str, free: &[&str]) -> Vec<String> {
    let samples = samples(page);
    let uses = uses(expression);
    let added = |label: &str| ["instance", "job"].contains(&label);
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = BTreeSet::new();
    for (metric, matchers) in &uses.metrics {
        let Some(known) = samples.get(metric) else {
            wrong.push(format!("there is no {metric}"));
            continue;
        };
        labels.extend(known.keys().map(String::as_str));
        for (label, values) in matchers.iter().filter(|(label, _)| !added(label)) {
            let Some(there) = known.get(label) else {
                wrong.push(format!("{metric} has no label {label}"));
                continue;
            };
            let values = values.iter().filter(|_| !free.contains(&label.as_str()));
            let absent = values.filter(|value| !there.contains(*value));
            wrong.extend(absent.map(|value| format!("{metric}: {label} is never {value}")));
        }
    }
    let asked = uses.labels.iter().filter(|label| !added(label));
    let unknown = asked.filter(|label| !labels.contains(label.as_str()));
    wrong.extend(unknown.map(|label| format!("no metric has the label {label}")));
    wrong
}

#[test]
fn an_expression_that_asks_for_what_is_not_there_is_found_out() {
    let page =
        "# TYPE a counter\na_total{x=\"1\",y=\"p\\\"q\"} 1\nb 2\nc_bucket{le=\"+Inf\"} 3e5\n";
    for good in [
        "a_total",
        "sum by (x, instance) (rate(a_total{x=\"1\",job=\"z\"}[5m])) / on (instance) b > 0.5",
        "histogram_quantile(0.99, sum without (le) (rate(c_bucket[10m])))",
        "topk(20, a_total{y=~\"p\\\"q\"}) and on (instance, job) b unless absent(b)",
    ] {
        assert_eq!(missing(good, page, &[]), [""; 0], "{good}");
    }
    for (bad, what) in [
        ("a", "there is no a"),
        ("rate(d_total{x=\"1\"}[5m])", "there is no d_total"),
        ("b{x=\"1\"}", "b has no label x"),
        ("a_total{x=~\"1|2\"}", "a_total: x is never 2"),
        ("sum by (z) (b)", "no metric has the label z"),
    ] {
        assert_eq!(missing(bad, page, &[]), [what], "{bad}");
    }
    assert_eq!(missing("a_total{x=\"7\"}", page, &["x"]), [""; 0]);
}
