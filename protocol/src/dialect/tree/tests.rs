use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// The tree as JSON, without positions.
fn plain(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(text) => (text.to_lowercase() == "true").into(),
        Value::Number(text) => serde_json::from_str(text).unwrap(),
        Value::String(text) => text.as_str().into(),
        Value::List(nodes) => nodes.iter().map(plain).collect(),
        Value::Map(entries) => {
            let entries = entries.iter().map(|entry| (entry.key.clone(), plain(&entry.value)));
            serde_json::Value::Object(entries.collect())
        }
    }
}

fn yaml(text: &str) -> Result<Node, Diagnostic> {
    let tree = read(Some("a.yaml"), text.as_bytes())?;
    tree.faults.into_iter().next().map_or(Ok(tree.root), Err)
}

fn place(text: &str, path: &[&str]) -> (u32, u32) {
    let root = read(None, text.as_bytes()).unwrap().root;
    let node = path.iter().fold(&root, |node, key| {
        if let Value::List(nodes) = &node.value {
            &nodes[key.parse::<usize>().unwrap()]
        } else {
            &node.entry(key).unwrap().value
        }
    });
    (node.at.line, node.at.column)
}

#[test]
fn values_know_their_position_in_json_and_yaml() {
    let json = "{\"é\": 1,\r\n  \"b\": [true,\n\t{\"c\": \"d\"}]}";
    assert_eq!(place(json, &[]), (1, 1));
    assert_eq!(place(json, &["é"]), (1, 7));
    assert_eq!(place(json, &["b"]), (2, 8));
    assert_eq!(place(json, &["b", "1"]), (3, 2));
    assert_eq!(place(json, &["b", "1", "c"]), (3, 8));
    let yaml = "# why\né: 1\nb:\n  - true\n  - c: d\n    e:\n      f: g\n";
    assert_eq!(place(yaml, &["é"]), (2, 4));
    assert_eq!(place(yaml, &["b"]), (4, 3));
    assert_eq!(place(yaml, &["b", "0"]), (4, 5));
    assert_eq!(place(yaml, &["b", "1"]), (5, 5));
    assert_eq!(place(yaml, &["b", "1", "c"]), (5, 8));
    assert_eq!(place(yaml, &["b", "1", "e", "f"]), (7, 10));
}

#[test]
fn plain_yaml_scalars_follow_the_core_schema() {
    let kind = |text: &str| match yaml(&format!("a: {text}")).unwrap().entries()[0].value.value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::List(_) | Value::Map(_) => "other",
    };
    for (expected, texts) in [
        ("null", &["", "~", "null", "Null", "NULL", "# why"][..]),
        ("bool", &["true", "True", "TRUE", "false", "False", "FALSE"]),
        (
            "number",
            &[
                "0", "-1", "+1", "007", "0x1F", "0o17", "1.5", ".5", "5.", "1e3", "1.5E-3",
                "-.inf", ".nan", "+.INF",
            ],
        ),
        (
            "text",
            &[
                "yes",
                "no",
                "on",
                "off",
                "y",
                "nULL",
                "tRUE",
                "1_000",
                "0x",
                "0o8",
                "1e",
                ".",
                "+",
                "e3",
                "1.2.3",
                "-.nan",
                "2026-01-02",
                "12:30",
                "'1'",
                "\"true\"",
                "!!str 1",
                "! 1",
                "-0x1",
                ".e1",
            ],
        ),
    ] {
        for text in texts {
            assert_eq!(kind(text), expected, "{text}");
        }
    }
}

#[test]
fn an_alias_expands_to_the_whole_value_and_each_use_counts() {
    let tree = yaml("a: &x {k: [1, 2]}\nb: *x\n*y : 1\n".replace("*y", "y").as_str()).unwrap();
    assert_eq!(plain(&tree.entries()[0].value), plain(&tree.entries()[1].value));
    // An anchor that is defined twice refers to the later value.
    let tree = yaml("a: &x 1\nb: &x 2\nc: *x\n").unwrap();
    assert_eq!(tree.entries()[2].value.scalar(), Some("2"));
    let text = "x".repeat(100_000);
    let many = format!("a: &x {text}\nb: [{}]\n", vec!["*x"; 100].join(", "));
    assert!(yaml(&many).unwrap_err().message.contains("bytes of text"));
    let nodes =
        format!("a: &x [{}]\nb: [{}]\n", vec!["1"; 999].join(","), vec!["*x"; 200].join(","));
    assert!(yaml(&nodes).unwrap_err().message.contains("values"));
    let mut nested = String::from("a: &x0 [1]\n");
    for level in 1..80 {
        nested.push_str(&format!("a{level}: &x{level} [*x{}]\n", level - 1));
    }
    assert!(yaml(&nested).unwrap_err().message.contains("nested deeper"));
}

#[test]
fn a_key_can_be_an_alias_or_quoted_but_not_empty() {
    let tree = yaml("a: &k key\n*k : 1\n\"\": 2\n1: 3\n").unwrap();
    let keys: Vec<&str> = tree.entries().iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "key", "", "1"]);
    assert!(yaml(": 1").is_err());
    assert!(yaml("? {a: 1}\n: 2").is_err());
    assert!(yaml("a: &k [1]\n*k : 1").is_err());
}

#[test]
fn json_or_yaml_is_chosen_by_the_extension_and_then_by_the_content() {
    let flow = b"{a: 1, b: [x]}";
    assert!(read(Some("a.json"), flow).is_err());
    for name in [Some("a.yaml"), Some("dir.json/a.YML"), Some("a"), None] {
        assert!(read(name, flow).is_ok(), "{name:?}");
    }
    // Tabs between JSON values are allowed, whatever the file's extension.
    let json = b"{\"a\":\t\"\\ud83d\\ude00\"}";
    assert_eq!(plain(&read(None, json).unwrap().root), serde_json::json!({ "a": "😀" }));
}

#[test]
fn deep_or_large_documents_are_refused_quickly() {
    let opening = [
        "[", "{", "- ", "a: ", "? ", "&a ", "!t ", "*a ", "\"", "'", "|\n", ">\n", "{\"a\":",
        "[[],", "a:\n ", "#", "%", "---\n", "...\n", ": ", ", ", "\n", "\t", " ", "\\", "1", "é",
        "{a: [", "- - a: ", "\"\\", "a\n", "? - ", "&a [", "*a, ",
    ];
    for piece in opening {
        let text = piece.repeat(100_000 / piece.len());
        for name in ["a.json", "a.yaml", "a"] {
            drop(read(Some(name), text.as_bytes()));
        }
    }
    assert!(
        read(None, &vec![b' '; MAX_BYTES + 1]).unwrap_err().message.contains("larger than 1 MiB")
    );
}

/// Any JSON value, occasionally with duplicate keys.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec(("\\PC{0,4}", inner), 0..6)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_is_parsed_like_by_the_reference_parser(value in json(), pretty in any::<bool>()) {
        let text = if pretty { format!("{value:#}") } else { value.to_string() };
        prop_assert_eq!(&plain(&read_json(text.as_bytes()).unwrap()), &value);
        prop_assert_eq!(plain(&Node::from_json(&value).unwrap()), value);
    }

    #[test]
    fn a_text_is_valid_json_if_and_only_if_the_reference_parser_accepts_it(
        text in "[\\[\\]{}:,\" \\\\a-fnrtu0-9eE+.\\-\n]{0,24}|\"(\\\\u[dD][89abAB][0-9a-f]{2}|\\\\.|[ -~]){0,6}\""
    ) {
        let ours = super::json::read(&text);
        match serde_json::from_str::<serde_json::Value>(&text) {
            Err(_) => prop_assert!(ours.is_err(), "{} was taken", text),
            Ok(value) => prop_assert_eq!(plain(&ours.unwrap().root), value),
        }
    }

    #[test]
    fn json_parsed_as_yaml_gives_the_same_value(value in json()) {
        // Characters that YAML requires to be escaped but JSON does not.
        let escaped: String = value.to_string().chars().fold(String::new(), |mut text, c| {
            if c.is_control() || c == '\u{feff}' || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(text, "\\u{:04x}", u32::from(c)).unwrap();
            } else {
                text.push(c);
            }
            text
        });
        // In YAML, a key longer than 1024 characters or spanning lines is invalid. These are short.
        prop_assert_eq!(plain(&yaml(&escaped).unwrap()), value);
    }
}

#[test]
fn merge_keys_are_resolved_and_the_maps_own_keys_win() {
    let text = "a: &a { x: 1, y: 1 }\nb: &b { y: 2, z: 2 }\nc:\n  y: 3\n  <<: [*a, *b]\n  w: 3\n";
    let tree = read(Some("a.yaml"), text.as_bytes()).unwrap();
    let expected = serde_json::json!({ "y": 3, "x": 1, "z": 2, "w": 3 });
    assert_eq!(plain(&tree.root.entry("c").unwrap().value).to_string(), expected.to_string());
    assert_eq!(tree.faults, []);
    assert_eq!(tree.yaml_1_1.len(), 1);
    let quoted = yaml("\"<<\": 1").unwrap();
    assert_eq!(plain(&quoted), serde_json::json!({ "<<": 1 }));
    for bad in ["<<: 1", "a: &a 1\nb: { <<: [*a] }"] {
        let message = yaml(bad).unwrap_err().message;
        assert!(message.contains("expected a map"), "{bad:?}: {message}");
    }
}

#[test]
fn a_tab_can_separate_a_key_from_its_value() {
    let text = "a:\tb\n'c':\t \td # \t\ne: |\n  f:\tg\n";
    let expected = serde_json::json!({ "a": "b", "c": "d", "e": "f:\tg\n" });
    assert_eq!(plain(&yaml(text).unwrap()), expected);
    let many = "a: 1\n".to_owned() + &(0..200).map(|n| format!("b{n}:\tx\n")).collect::<String>();
    let fault = read(None, many.as_bytes()).unwrap_err();
    assert!(fault.hint.unwrap().contains("blanks instead of tabs"), "{}", fault.message);
}
