//! Regular expressions that every engine reads in the same way.
//!
//! That is RE2's syntax over bytes, the whole value, in time linear to it. Our parser knows more than RE2 and reads
//! some of it otherwise, so that is refused. Does not: know Unicode; classes and case are those of ASCII.

use ::regex::bytes::RegexBuilder;

use super::{Refusal, value};
use crate::diagnostic::Code;

/// Largest compiled regular expression, in bytes: what the native proxy takes.
const MAX_COMPILED: usize = 128 * 1024;
/// Deepest nesting.
const MAX_DEPTH: u32 = 50;
/// Most repetitions of one thing: RE2's.
const MAX_REPETITIONS: u64 = 1000;

/// Named classes of letters.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

const HELP: &str = "write it in RE2's syntax, https://github.com/google/re2/wiki/Syntax";

/// Checks an expression.
pub(crate) fn regex(text: &str) -> Result<(), Refusal> {
    let refused = |why: &str| value(format!("is not a regular expression: {why}"), HELP);
    if let Some(beyond) = beyond_re2(text) {
        return Err(refused(&format!("RE2 has no {beyond}, or reads it otherwise")));
    }
    // Alone, because a parenthesis too many would close the one around it.
    for whole in [text.to_owned(), format!(r"(?:{text})\z")] {
        let mut builder = RegexBuilder::new(&whole);
        match builder.unicode(false).size_limit(MAX_COMPILED).nest_limit(MAX_DEPTH).build() {
            Ok(_) => {}
            Err(::regex::Error::CompiledTooBig(_)) => {
                return Err(Refusal {
                    code: Code::OutOfBounds,
                    message: "is too large a regular expression".to_owned(),
                    help: Some("repeat less, or match less exactly".to_owned()),
                });
            }
            Err(error) => {
                let error = error.to_string();
                let last = error.lines().last().unwrap_or("syntax");
                return Err(refused(last.strip_prefix("error: ").unwrap_or(last)));
            }
        }
    }
    Ok(())
}

/// What our parser knows and RE2 does not, or reads as something else.
fn beyond_re2(text: &str) -> Option<&'static str> {
    let mut rest = text;
    // Within brackets; and at their start, where `]` is a letter.
    let mut class = false;
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        rest = after;
        match letter {
            '\\' => {
                let escapes =
                    [("<", r"`\<`"), (">", r"`\>`"), ("b{", r"`\b{`"), ("u", r"`\u`"), ("U", r"`\U`")];
                if let Some((_, shown)) = escapes.iter().find(|(escape, _)| after.starts_with(escape)) {
                    return Some(shown);
                }
                rest = after.get(after.chars().next().map_or(0, char::len_utf8)..).unwrap_or_default();
            }
            '[' if class => match after.strip_prefix(':').and_then(|name| name.split_once(":]")) {
                Some((name, behind)) if CLASSES.contains(&name.trim_start_matches('^')) => rest = behind,
                _ => return Some("`[` within brackets"),
            },
            '[' => {
                class = true;
                rest = rest.strip_prefix('^').unwrap_or(rest);
                rest = rest.strip_prefix(']').unwrap_or(rest);
            }
            ']' => class = false,
            '&' | '~' | '-' if class && after.starts_with(letter) => {
                return Some("sets of letters made of others (`&&`, `--`, `~~`)");
            }
            '(' if !class && after.starts_with('?') => {
                let named = after.starts_with("?P") || after.starts_with("?<");
                if ["?=", "?!", "?<=", "?<!"].iter().any(|look| after.starts_with(look)) {
                    return Some("look-around");
                }
                let mut flags =
                    after[1..].chars().take_while(|flag| flag.is_ascii_alphabetic() || *flag == '-');
                if !named && flags.any(|flag| "xuR".contains(flag)) {
                    return Some("`(?x)`, `(?u)` and `(?R)`");
                }
            }
            '{' if !class => {
                let inside = after.split('}').next().unwrap_or_default();
                let large =
                    |count: &str| count.trim().parse::<u64>().is_ok_and(|count| count > MAX_REPETITIONS);
                if inside.contains(' ') || inside.split(',').any(large) {
                    return Some("more than 1,000 repetitions, nor spaces in them");
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_reads_in_the_same_way_is_taken() {
        for text in [
            "/users/[0-9]+",
            "(?i)/a|/b",
            "(?P<id>[^/]+)/(?:x|y)*",
            "[]a]",
            "[^]a-]",
            "[[:alpha:]_]+",
            r"\d{1,100}\.",
            r"[\]\\&-]",
            "",
            ".*",
            r"\x41",
            "é",
        ] {
            assert_eq!(regex(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_it_does_not_is_refused() {
        for text in [
            "(",
            "a)|(b",
            "[",
            "*",
            "a**b(",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?<!a)",
            "(?x)a",
            "(?u)a",
            "(?R)a",
            "[a&&b]",
            "[a--b]",
            "[a~~b]",
            "[a[b]]",
            "[[:nothing:]]",
            r"\<a",
            r"\u0041",
            r"\b{start}",
            "a{1001}",
            "a{2, 3}",
            r"\1",
            r"\pL",
        ] {
            let refusal = regex(text).expect_err(text);
            assert_eq!(refusal.code, Code::InvalidValue, "{text}");
        }
        let deep = format!("{}a{}", "(".repeat(60), ")".repeat(60));
        assert!(regex(&deep).is_err());
        assert_eq!(regex("((a{100}){100}){100}").expect_err("large").code, Code::OutOfBounds);
    }
}
