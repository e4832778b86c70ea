use super::*;

fn read(text: &str) -> (Vec<Node>, Vec<Fault>) {
    let mut faults = Vec::new();
    let roots = pieces(text).filter_map(|piece| parse(piece, &mut faults)).collect();
    (roots, faults)
}

#[test]
fn pieces_end_at_markers() {
    let cases: [(&str, &[&str]); 10] = [
        ("", &[]),
        ("a", &["a"]),
        ("a\n---\nb\n", &["a\n", "---\nb\n"]),
        ("---\na\n---\n---\nb", &["---\na\n", "---\n", "---\nb"]),
        ("# c\n---\na", &["# c\n---\na"]),
        ("%YAML 1.2\n---\na\n...\n%YAML 1.2\n---\nb", &["%YAML 1.2\n---\na\n...\n", "%YAML 1.2\n---\nb"]),
        ("a: |\n ---\n---x\n", &["a: |\n ---\n---x\n"]),
        ("a\r\n---\r\nb", &["a\r\n", "---\r\nb"]),
        ("a\r---\rb", &["a\r", "---\rb"]),
        ("--- a\n---\tb\n", &["--- a\n", "---\tb\n"]),
    ];
    for (text, expected) in cases {
        let found: Vec<&str> = pieces(text).map(|piece| piece.text).collect();
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn scalars_follow_the_core_schema() {
    let cases = [
        ("80", "80"),
        ("-80", "-80"),
        ("+80", "80"),
        ("0x1f", "31"),
        ("0o17", "15"),
        ("017", "17"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "9.223372036854776e+18"),
        ("1.5", "1.5"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("true", "true"),
        ("False", "false"),
        ("~", "null"),
        ("Null", "null"),
        (".inf", "null"),
        ("-.INF", "null"),
        (".nan", "null"),
        ("off", "\"off\""),
        ("yes", "\"yes\""),
        ("y", "\"y\""),
        ("inf", "\"inf\""),
        ("NaN", "\"NaN\""),
        ("0x", "\"0x\""),
        ("0x-1", "\"0x-1\""),
        ("0o9", "\"0o9\""),
        ("1_000", "\"1_000\""),
        ("12:30", "\"12:30\""),
        ("1.2.3", "\"1.2.3\""),
        ("2026-01-01", "\"2026-01-01\""),
        ("15s", "\"15s\""),
        ("-", "\"-\""),
        (".", "\".\""),
        ("e5", "\"e5\""),
    ];
    for (text, json) in cases {
        assert_eq!(
            serde_json::json!(Node { span: Span::default(), value: plain_scalar(text) }.to_json())
                .to_string(),
            json,
            "{text}"
        );
    }
}

#[test]
fn spans_cover_keys_and_values() {
    let (roots, faults) = read("# first\nä: 'öü'\n---\nb:\n  - 12345 # c\n  - |\n    text\n");
    assert!(faults.is_empty());
    let entry = roots[0].entry("ä").unwrap();
    assert_eq!(entry.span, Span { line: 2, column: 1, length: 1 });
    assert_eq!(entry.value.span, Span { line: 2, column: 4, length: 4 });
    let list = roots[1].get("b").unwrap();
    assert_eq!(list.item(0).unwrap().span, Span { line: 5, column: 5, length: 5 });
    assert_eq!(list.item(1).unwrap().span, Span { line: 7, column: 5, length: 4 });
}

#[test]
fn aliases_are_copies_with_the_place_of_the_alias() {
    let (roots, faults) = read("a: &x {k: [v]}\nb: *x\n");
    assert!(faults.is_empty());
    let copy = roots[0].get("b").unwrap();
    assert_eq!(copy.to_json(), serde_json::json!({"k": ["v"]}));
    assert_eq!(copy.span, Span { line: 2, column: 4, length: 2 });
}

#[test]
fn weight_counts_text_and_aliases() {
    let long = "x".repeat(64 * 60_000);
    let (roots, faults) = read(&format!("a: {long}\n"));
    assert_eq!((roots.len(), faults.len()), (1, 0));
    let (roots, faults) = read(&format!("a: &l {long}\nb: *l\n"));
    assert!(roots.is_empty());
    assert_eq!(faults[0].code, Code::TooLarge);
}

#[test]
fn depth_is_bounded_in_every_style() {
    let flow = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let block =
        |depth: usize| (0..depth).map(|level| format!("{}-\n", " ".repeat(level))).collect::<String>();
    for style in [&flow as &dyn Fn(usize) -> String, &block] {
        assert!(read(&style(MAX_DEPTH)).1.is_empty());
        for depth in [MAX_DEPTH + 1, 1_000] {
            let (roots, faults) = read(&style(depth));
            assert!(roots.is_empty());
            assert_eq!(faults[0].code, Code::TooDeep, "{}", faults[0].message);
        }
    }
}
