//! JSON values as YAML.

use std::fmt::Write as _;

use serde_json::Value;

/// A value as a YAML document. Texts that could be taken for something else are in double quotes, with
/// JSON's escapes, which are YAML's too.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    put(&mut text, value, 0, Before::Start);
    text
}

/// What stands on the line already.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Before {
    Start,
    Key,
    Dash,
}

fn put(text: &mut String, value: &Value, indent: usize, before: Before) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            if before == Before::Key {
                text.push('\n');
            }
            for (number, (key, value)) in entries.iter().enumerate() {
                let margin = if number == 0 && before == Before::Dash { 0 } else { indent };
                let _ = write!(text, "{:margin$}{}:", "", scalar(key));
                put(text, value, indent + 2, Before::Key);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            if before != Before::Start {
                text.push('\n');
            }
            for item in items {
                let _ = write!(text, "{:indent$}- ", "");
                put(text, item, indent + 2, Before::Dash);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            let space = if before == Before::Key { " " } else { "" };
            let one = value.as_str().map_or_else(|| value.to_string(), scalar);
            let _ = writeln!(text, "{space}{one}");
        }
    }
}

/// A text, in quotes unless it is plainly a word.
fn scalar(text: &str) -> String {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(word)
        && !words.iter().any(|one| text.eq_ignore_ascii_case(one));
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::yaml_to_json;

    #[test]
    fn services_look_like_those_of_the_file() {
        let value = json!({"name": "web", "frontends": [{"address": "2001:db8::1", "port": 80}], "backends": [], "x": [[1, 2], {"a": null}]});
        assert_eq!(
            yaml(&value),
            "backends: []\nfrontends:\n  - address: \"2001:db8::1\"\n    port: 80\nname: web\nx:\n  - \n    - 1\n    - 2\n  - a: null\n"
        );
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            "[a-z0-9:.~ -]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-zA-Z0-9: ]{1,6}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(value in any_value()) {
            prop_assert_eq!(yaml_to_json(&yaml(&value)).unwrap(), value);
        }
    }
}
