use proptest::prelude::*;

use super::*;

#[test]
fn durations_are_read() {
    let cases = [
        ("15s", 15_000),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("500ms", 500),
        ("1s500ms", 1_500),
        ("1m1ms", 60_001),
        ("30m1h", 5_400_000),
        ("1s1s", 2_000),
        ("00001s", 1_000),
        ("24h", 86_400_000),
        ("86400s", 86_400_000),
        ("99999ms99999ms99999ms99999ms", 399_996),
    ];
    for (text, milliseconds) in cases {
        assert_eq!(duration(text), Ok(Some(Duration::from_millis(milliseconds))), "{text}");
    }
    for text in ["0s", "0h", "0ms", "0h0m0s0ms"] {
        assert_eq!(duration(text), Ok(None), "{text}");
    }
}

#[test]
fn durations_are_refused() {
    for text in [
        "",
        "s",
        "15",
        "1.5s",
        "-1s",
        "+1s",
        "1 s",
        " 1s",
        "1s ",
        "1S",
        "1d",
        "1us",
        "1sm",
        "100000s",
        "1s1s1s1s1s",
        "１s",
        "1h 5m",
        "∞",
    ] {
        assert_eq!(duration(text).unwrap_err().code, Code::InvalidValue, "{text}");
    }
    for text in ["24h1ms", "25h", "86401s", "99999h"] {
        assert_eq!(duration(text).unwrap_err().code, Code::OutOfBounds, "{text}");
    }
}

#[test]
fn names_follow_their_rule() {
    let long = "a".repeat(63);
    let longer = "a".repeat(64);
    // Text, and whether it is an RFC 1123 label, an RFC 1035 label, an RFC 1123 subdomain.
    let cases = [
        ("a", true, true, true),
        ("a-b", true, true, true),
        ("a1", true, true, true),
        ("1a", true, false, true),
        ("1", true, false, true),
        ("a.b", false, false, true),
        ("a..b", false, false, false),
        (".a", false, false, false),
        ("a.", false, false, false),
        ("-a", false, false, false),
        ("a-", false, false, false),
        ("a-.b", false, false, false),
        ("A", false, false, false),
        ("a_b", false, false, false),
        ("ä", false, false, false),
        ("a b", false, false, false),
        ("a\n", false, false, false),
        ("", false, false, false),
        (long.as_str(), true, true, true),
        (longer.as_str(), false, false, true),
    ];
    for (text, label, service, subdomain) in cases {
        assert_eq!(Format::Label.check(text).is_ok(), label, "label {text:?}");
        assert_eq!(Format::ServiceName.check(text).is_ok(), service, "service name {text:?}");
        assert_eq!(Format::Subdomain.check(text).is_ok(), subdomain, "subdomain {text:?}");
    }
}

#[test]
fn metadata_keys_and_values_follow_kubernetes() {
    for text in ["a", "A_b.c-9", "example.com/a", "a/b", "0"] {
        assert_eq!(Format::MetadataKey.check(text), Ok(()), "{text}");
    }
    for text in ["", "/a", "a/", "a/b/c", "_a", "a_", "-a", "Example.com/a", "a b", "ä"] {
        assert!(Format::MetadataKey.check(text).is_err(), "{text}");
    }
    for text in ["", "a", "A_b.c-9"] {
        assert_eq!(Format::LabelValue.check(text), Ok(()), "{text}");
    }
    for text in ["-", "a b", "a/b", "é"] {
        assert!(Format::LabelValue.check(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn durations_print_as_they_are_read(milliseconds in 0..=86_400_000_u64) {
        let value = Some(Duration::from_millis(milliseconds)).filter(|value| !value.is_zero());
        prop_assert_eq!(duration(&duration_text(value)), Ok(value));
    }

    #[test]
    fn a_path_that_passes_is_normal(text in "[/.%2fa-c#?~]{0,12}") {
        if Format::Path.check(&text).is_ok() {
            prop_assert!(text.starts_with('/') && !text.contains("//"));
            prop_assert!(text.split('/').all(|part| part != ".." && part != "."));
            prop_assert!(!text.contains(['#', '?']));
        }
    }

    #[test]
    fn a_header_value_that_passes_cannot_end_its_line(text in any::<String>()) {
        if Format::HeaderValue.check(&text).is_ok() {
            prop_assert!(!text.contains(['\r', '\n', '\0']));
        }
    }
}
