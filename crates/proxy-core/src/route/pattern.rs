//! Regular expressions of routes, and replacing by them.
//!
//! The syntax is RE2's, as in Envoy and the Gateway API. What our engine reads in another way than RE2 is refused
//! instead. Holds: time is linear in the subject; a compiled expression takes at most [`MAX_PROGRAM`] and its
//! scratch memory about as much again, per thread that uses it, after which matching allocates nothing. Does not:
//! know Unicode: `.` is one byte, classes and case are those of ASCII. Paths and most header values are ASCII.

use regex_automata::meta::{BuildError, Regex};
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};
use thiserror::Error;

/// Longest expression, in bytes: the Gateway API's limit for values of headers.
pub const MAX_PATTERN: usize = 4096;
/// Largest compiled expression, in bytes. With the limit of heads it bounds what one match can take.
pub const MAX_PROGRAM: usize = 128 * 1024;
/// Memory for states found while matching, in bytes, for each expression and thread.
const CACHE: usize = 128 * 1024;
/// Groups that a substitution can name: `\0` to `\9`.
const GROUPS: usize = 10;

/// An expression that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// Longer than [`MAX_PATTERN`].
    #[error("a regular expression of {0} bytes; at most {MAX_PATTERN} are supported")]
    TooLong(usize),
    /// Larger than [`MAX_PROGRAM`] once compiled.
    #[error("the regular expression `{0}` is too large: mostly that is a repetition with large bounds")]
    TooLarge(String),
    /// Not one, or with a feature that is not supported.
    #[error("`{pattern}` is not a regular expression: {cause}")]
    Syntax {
        /// The expression.
        pattern: String,
        /// What the parser says.
        cause: String,
    },
    /// Means something else in RE2.
    #[error(
        "`{part}` in the regular expression `{pattern}` is not RE2 syntax, or means something else there"
    )]
    NotRe2 {
        /// The expression.
        pattern: String,
        /// The part.
        part: &'static str,
    },
    /// A backslash without a digit or backslash behind it, or a group that is not there.
    #[error("`{0}` is not a substitution for this expression")]
    Substitution(String),
}

/// An expression that a whole value must match.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    /// See [`PatternError`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        compile(text, text)?;
        let regex = compile(&format!(r"(?:{text})\z"), text)?;
        Ok(Self { text: text.into(), regex })
    }

    /// Whether all of `subject` matches.
    pub fn matches(&self, subject: &[u8]) -> bool {
        self.regex.is_match(Input::new(subject).anchored(Anchored::Yes))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Group(usize),
}

/// Every match of an expression replaced.
#[derive(Clone, Debug)]
pub struct Substitution {
    text: Box<str>,
    regex: Regex,
    parts: Box<[Part]>,
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.parts == other.parts
    }
}

impl Eq for Substitution {}

impl Substitution {
    /// Compiles it. In `by`, `\0` is the whole match, `\1` to `\9` are groups and `\\` is a backslash.
    ///
    /// # Errors
    /// See [`PatternError`].
    pub fn new(text: &str, by: &str) -> Result<Self, PatternError> {
        let regex = compile(text, text)?;
        let groups = regex.group_info().group_len(regex_automata::PatternID::ZERO);
        let wrong = || PatternError::Substitution(by.to_owned());
        if by.len() > MAX_PATTERN {
            return Err(PatternError::TooLong(by.len()));
        }
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = by.bytes();
        while let Some(byte) = bytes.next() {
            let group = match byte {
                b'\\' => match bytes.next() {
                    Some(b'\\') => None,
                    Some(digit @ b'0'..=b'9') => Some(usize::from(digit - b'0')),
                    _ => return Err(wrong()),
                },
                _ => None,
            };
            match group {
                None => literal.push(byte),
                Some(group) if group < groups => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Group(group));
                }
                Some(_) => return Err(wrong()),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { text: text.into(), regex, parts: parts.into() })
    }

    /// Literal bytes that it can bring into a subject.
    pub fn literals(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(literal) => Some(&**literal),
            Part::Group(_) => None,
        })
    }

    /// Appends `subject` with every match replaced. `false` if `out` would become longer than `most`.
    pub fn apply(&self, subject: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
        let mut slots = [None::<NonMaxUsize>; 2 * GROUPS];
        let (mut at, mut copied) = (0, 0);
        let mut last_end = None;
        while at <= subject.len() {
            slots.fill(None);
            let found = self.regex.search_slots(&Input::new(subject).range(at..), &mut slots);
            let span = |group: usize| {
                Some((slots.get(2 * group)?.as_ref()?.get(), slots.get(2 * group + 1)?.as_ref()?.get()))
            };
            let (Some(_), Some((start, end))) = (found, span(0)) else { break };
            // An empty match right behind another match is none.
            if start == end && last_end == Some(end) {
                at = end + 1;
                continue;
            }
            out.extend_from_slice(subject.get(copied..start).unwrap_or_default());
            for part in &self.parts {
                match part {
                    Part::Literal(literal) => out.extend_from_slice(literal),
                    Part::Group(group) => {
                        if let Some((from, to)) = span(*group) {
                            out.extend_from_slice(subject.get(from..to).unwrap_or_default());
                        }
                    }
                }
                if out.len() > most {
                    return false;
                }
            }
            (copied, at, last_end) = (end, end, Some(end));
        }
        out.extend_from_slice(subject.get(copied..).unwrap_or_default());
        out.len() <= most
    }
}

fn compile(text: &str, named: &str) -> Result<Regex, PatternError> {
    if named.len() > MAX_PATTERN {
        return Err(PatternError::TooLong(named.len()));
    }
    if let Some(part) = not_re2(named) {
        return Err(PatternError::NotRe2 { pattern: named.to_owned(), part });
    }
    let config = Regex::config()
        .utf8_empty(false)
        .nfa_size_limit(Some(MAX_PROGRAM))
        .onepass_size_limit(Some(MAX_PROGRAM))
        .hybrid_cache_capacity(CACHE);
    let syntax = syntax::Config::new().unicode(false).utf8(false).nest_limit(50);
    Regex::builder().configure(config).syntax(syntax).build(text).map_err(|error: BuildError| {
        if error.size_limit().is_some() {
            return PatternError::TooLarge(named.to_owned());
        }
        let cause =
            error.syntax_error().map_or_else(|| error.to_string(), |error| explain(&error.to_string()));
        PatternError::Syntax { pattern: named.to_owned(), cause }
    })
}

/// The last line of what the parser says; the others draw a picture.
fn explain(whole: &str) -> String {
    let last = whole.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// What our engine knows and RE2 does not, or reads as literals.
fn not_re2(text: &str) -> Option<&'static str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut class = false;
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at + 1..).unwrap_or_default();
        match (byte, class) {
            (b'\\', _) => {
                match rest {
                    [b'<', ..] => return Some(r"\<"),
                    [b'>', ..] => return Some(r"\>"),
                    [b'b', b'{', ..] => return Some(r"\b{"),
                    [b'u' | b'U', ..] => return Some(r"\u"),
                    _ => {}
                }
                at += 1;
            }
            (b'[', false) => {
                class = true;
                // A bracket that closes nothing yet is a literal.
                let negated = usize::from(rest.first() == Some(&b'^'));
                at += negated + usize::from(rest.get(negated) == Some(&b']'));
            }
            (b'[', true) => match rest {
                [b':', name @ ..] => match name.windows(2).position(|pair| pair == b":]") {
                    Some(end) => at += end + 3,
                    None => return Some("["),
                },
                _ => return Some("[ in a class"),
            },
            (b']', true) => class = false,
            (b'&', true) if rest.first() == Some(&b'&') => return Some("&& in a class"),
            (b'-', true) if rest.first() == Some(&b'-') => return Some("-- in a class"),
            (b'~', true) if rest.first() == Some(&b'~') => return Some("~~ in a class"),
            (b'(', false) if rest.first() == Some(&b'?') => {
                let flags = rest.iter().skip(1).take_while(|b| b.is_ascii_alphabetic() || **b == b'-');
                let named = matches!(rest.get(1), Some(b'P' | b'<'));
                for flag in flags {
                    match flag {
                        _ if named => {}
                        b'x' => return Some("(?x)"),
                        b'u' => return Some("(?u)"),
                        b'R' => return Some("(?R)"),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_value_must_match() {
        for (pattern, subject, expected) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a", "x/a", false),
            ("/a|/ab", "/ab", true),
            ("a|b", "ab", false),
            ("/v[0-9]+/.*", "/v12/x", true),
            ("/v[0-9]+/.*", "/v/x", false),
            (r"/\d+", "/42", true),
            // In UTF-8 a digit of another script.
            (r"/\d", "/\u{0664}", false),
            ("/é", "/é", true),
            ("(?i)/CAFE", "/cafe", true),
            ("/[[:alpha:]]+", "/abc", true),
            ("[]a]+", "a]", true),
            ("", "", true),
            ("", "a", false),
            ("/.*$", "/x", true),
            ("^/.*", "/x", true),
            (r"/a\z", "/a", true),
            ("(?P<x>/a)", "/a", true),
            // RE2's dot does not match a line end either.
            (".", "\n", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().matches(subject.as_bytes()),
                expected,
                "{pattern} {subject:?}"
            );
        }
        assert!(Pattern::new("/.*").unwrap().matches(b"/\xff\xfe"));
    }

    #[test]
    fn what_re2_reads_otherwise_is_refused() {
        for pattern in [
            "[a&&b]",
            "[a--b]",
            "[a~~b]",
            "[[a]",
            r"\<a",
            r"\>a",
            r"\b{start}a",
            "(?x)a b",
            "(?i-u)a",
            "(?R)a",
        ] {
            let error = Pattern::new(pattern).unwrap_err();
            assert!(matches!(error, PatternError::NotRe2 { .. }), "{pattern}: {error}");
        }
        for pattern in ["(", "a)|(b", "*", "a{1001", r"\pL", r"\Qa\E", r"(a)\1", "(?=a)", "a{2,1}"] {
            let error = Pattern::new(pattern).unwrap_err();
            assert!(matches!(error, PatternError::Syntax { .. }), "{pattern}: {error}");
        }
        assert_eq!(Pattern::new(&"a".repeat(MAX_PATTERN + 1)), Err(PatternError::TooLong(MAX_PATTERN + 1)));
        for large in ["((a{100}){100}){100}", "[a-z0-9]{1000}[a-z0-9]{1000}[a-z0-9]{1000}[a-z0-9]{1000}"] {
            assert_eq!(Pattern::new(large), Err(PatternError::TooLarge(large.to_owned())));
        }
        Pattern::new("/[a-zA-Z0-9_-]{1,253}/[0-9a-f]{32}").unwrap();
    }

    #[test]
    fn every_match_is_replaced() {
        for (pattern, by, subject, expected) in [
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("^/.*$", "/all", "/some/where", "/all"),
            ("x*", "-", "/axxb", "-/-a-b-"),
            ("(a)|(b)", r"[\1]", "/ab", "/[a][]"),
            ("/", r"\\", "/a", r"\a"),
            ("none", "x", "/a", "/a"),
            (".", r"\0\0", "ab", "aabb"),
        ] {
            let mut out = b"kept ".to_vec();
            assert!(Substitution::new(pattern, by).unwrap().apply(subject.as_bytes(), &mut out, 100));
            assert_eq!(String::from_utf8_lossy(&out), format!("kept {expected}"), "{pattern} {by}");
        }
        for by in [r"\", r"\x", r"\2"] {
            assert_eq!(Substitution::new("(a)", by), Err(PatternError::Substitution(by.to_owned())));
        }
        let growing = Substitution::new("", &"x".repeat(4000)).unwrap();
        let mut out = Vec::new();
        assert!(!growing.apply(&[b'a'; 1000], &mut out, 10_000));
        assert!(out.len() < 20_000, "{}", out.len());
    }
}
