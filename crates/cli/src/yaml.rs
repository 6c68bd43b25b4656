//! JSON values as YAML: block style, strings quoted where they could be taken for something else.

use serde_json::Value;

/// A document.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// A value that begins on a line of its own.
fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(item, depth + 1, &mut inner);
                // The first line of the item is that of its mark.
                *text += &format!("{indent}- {}", inner.trim_start_matches(' '));
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                *text += &format!("{indent}{}:", scalar(&Value::String(name.clone())));
                match value {
                    Value::Array(items) if !items.is_empty() => {
                        text.push('\n');
                        block(value, depth + 1, text);
                    }
                    Value::Object(fields) if !fields.is_empty() => {
                        text.push('\n');
                        block(value, depth + 1, text);
                    }
                    other => *text += &format!(" {}\n", scalar(other)),
                }
            }
        }
        other => *text += &format!("{indent}{}\n", scalar(other)),
    }
}

/// What is not made of others: as in JSON, which YAML contains, but for plain words.
fn scalar(value: &Value) -> String {
    let plain = |word: &str| {
        let starts = word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
        let taken = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
        starts && word.bytes().all(fine) && !taken.contains(&word.to_ascii_lowercase().as_str())
    };
    match value {
        Value::String(word) if plain(word) => word.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_blocks_and_what_is_ambiguous_in_quotes() {
        let value = json!({"name": "web", "state": "off", "empty": [], "none": null, "text": "a: \"b\"\n",
            "disks": [{"file": "local:a.vhdx", "size": 1}, {"id": "7d", "list": [1, [2, 3]]}], "none of": {}});
        let text = to_yaml(&value);
        let expected = r#"name: web
state: "off"
empty: []
none: null
text: "a: \"b\"\n"
disks:
  - file: "local:a.vhdx"
    size: 1
  - id: "7d"
    list:
      - 1
      - - 2
        - 3
"none of": {}
"#;
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(String::from).collect();
            lines.sort();
            lines
        };
        // The order of fields is that of the JSON map.
        assert_eq!(lines(&text), lines(expected), "{text}");
        assert_eq!(to_yaml(&json!([])), "[]\n");
    }
}
