//! Conditions of routes.
//!
//! Holds: what is compared is what is forwarded, byte for byte; several lines of one header count as their values
//! joined with commas, but for access ([`HeaderMatch::matches_any_line`], [`HeaderMatch::matches_every_line`]). A look-up
//! allocates only for a header of several lines that are over [`JOINED`] together and that is compared by more than its
//! beginning. Does not: decode percent signs.

use std::ops::Range;

use super::pattern::Pattern;
use super::view::RequestView;

/// Bytes of a header in several lines that are joined without allocating.
const JOINED: usize = 1024;

/// A condition on the path, compared byte for byte with the path as it is forwarded, query left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    Any,
    /// The whole path.
    Exact(Box<[u8]>),
    /// Its first bytes.
    Prefix(Box<[u8]>),
    /// Its first elements: `/a` matches `/a` and `/a/b`, not `/ab`. A `/` at the end does not count.
    ElementPrefix(Box<[u8]>),
    /// The whole path, by an expression.
    Pattern(Pattern),
}

impl PathMatch {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::ElementPrefix(prefix) => {
                path.strip_prefix(elements(prefix)).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            }
            Self::Pattern(pattern) => pattern.matches(path),
        }
    }

    /// How many bytes of a path that matches are the matched part, which a prefix rewrite replaces: the prefix, or
    /// all of a path that was matched as a whole.
    pub(super) fn matched(&self, path: &[u8]) -> usize {
        match self {
            Self::Any => usize::from(path.first() == Some(&b'/')),
            Self::Prefix(prefix) => prefix.len(),
            Self::ElementPrefix(prefix) => elements(prefix).len(),
            Self::Exact(_) | Self::Pattern(_) => path.len(),
        }
    }
}

fn elements(prefix: &[u8]) -> &[u8] {
    prefix.strip_suffix(b"/").unwrap_or(prefix)
}

/// A condition on a header. Several lines of one name count as their values joined with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name in any case. `:method`, `:scheme`, `:authority` and `:path` (with query) stand for those of the request.
    pub name: Box<str>,
    /// What its value must be.
    pub value: ValueMatch,
    /// The condition holds when this does not. For a header that is not there it holds only if the condition is
    /// [`ValueMatch::Present`], or [`Self::missing_is_empty`] is set: as in Envoy.
    pub invert: bool,
    /// A header that is not there counts as one with an empty value.
    pub missing_is_empty: bool,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// Exactly this.
    Exact(Box<[u8]>),
    /// Starts with this.
    Prefix(Box<[u8]>),
    /// Ends with this.
    Suffix(Box<[u8]>),
    /// Has this somewhere.
    Contains(Box<[u8]>),
    /// The same conditions in any ASCII case.
    AnyCase(Part, Box<[u8]>),
    /// The whole of it, by an expression.
    Pattern(Pattern),
    /// A decimal number within, the end not included.
    Range(Range<i64>),
}

/// Where text is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is all.
    Whole,
    /// At the beginning.
    Start,
    /// At the end.
    End,
    /// Somewhere.
    Any,
}

impl HeaderMatch {
    /// `name` must be so.
    pub fn new(name: impl Into<Box<str>>, value: ValueMatch) -> Self {
        Self { name: name.into(), value, invert: false, missing_is_empty: false }
    }

    /// `name: value`, exactly.
    pub fn exact(name: impl Into<Box<str>>, value: impl AsRef<[u8]>) -> Self {
        Self::new(name, ValueMatch::Exact(value.as_ref().into()))
    }

    /// Whether it holds for this request.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        match &*self.name {
            ":method" => self.holds(std::iter::once(request.method())),
            ":scheme" => self.holds(std::iter::once(request.scheme())),
            ":authority" => self.holds(std::iter::once(request.authority())),
            ":path" => self.holds(std::iter::once(request.path_and_query())),
            name => self.holds(request.values(name.as_bytes())),
        }
    }

    /// Whether it holds for any line of this name alone, or of one that an application may take for it, or for their values
    /// joined: the careful reading where a match denies. Inverted conditions are about lines only, because nearly anything
    /// that is joined is something else.
    pub fn matches_any_line(&self, request: &impl RequestView) -> bool {
        if self.name.starts_with(':') {
            return self.matches(request);
        }
        let lines = || request.values_alike(self.name.as_bytes());
        match lines().nth(1) {
            None => self.holds(lines()) || self.matches(request),
            Some(_) => {
                // Of this very name there may be none, which is what some conditions are about.
                let missing = request.values(self.name.as_bytes()).next().is_none() && self.matches(request);
                missing || lines().any(|line| self.is(line)) || (!self.invert && self.holds(lines()))
            }
        }
    }

    /// Whether it holds for the lines of this name joined, and for each of them and of those that an application may take for
    /// it: the careful reading where a match allows.
    pub fn matches_every_line(&self, request: &impl RequestView) -> bool {
        if self.name.starts_with(':') {
            return self.matches(request);
        }
        let lines = || request.values_alike(self.name.as_bytes());
        lines().all(|line| self.is(line)) && self.matches(request)
    }

    fn is(&self, value: &[u8]) -> bool {
        self.value.is(value) != self.invert
    }

    fn holds<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        match values.next() {
            Some(first) => self.value.holds(first, values) != self.invert,
            None if self.missing_is_empty => self.is(b""),
            None => self.invert && self.value == ValueMatch::Present,
        }
    }
}

impl ValueMatch {
    fn holds<'a>(&self, first: &[u8], values: impl Iterator<Item = &'a [u8]>) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(wanted) => joined_starts(wanted, first, values, false),
            Self::Prefix(wanted) => joined_starts(wanted, first, values, true),
            _ => self.joined(first, values),
        }
    }

    /// Joins the values, if there are several.
    fn joined<'a>(&self, first: &[u8], mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        let Some(second) = values.next() else { return self.is(first) };
        let mut near = [0; JOINED];
        let mut length = 0;
        let mut far: Vec<u8> = Vec::new();
        let pieces =
            [first, b",", second].into_iter().chain(values.flat_map(|value| [b",".as_slice(), value]));
        for piece in pieces {
            match near.get_mut(length..length + piece.len()) {
                Some(place) if far.is_empty() => {
                    place.copy_from_slice(piece);
                    length += piece.len();
                }
                _ => {
                    if far.is_empty() {
                        far.extend_from_slice(near.get(..length).unwrap_or_default());
                    }
                    far.extend_from_slice(piece);
                }
            }
        }
        if far.is_empty() { self.is(near.get(..length).unwrap_or_default()) } else { self.is(&far) }
    }

    /// Whether one value is so.
    pub(crate) fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(wanted) => value == &**wanted,
            Self::Prefix(wanted) => value.starts_with(wanted),
            Self::Suffix(wanted) => value.ends_with(wanted),
            Self::Contains(wanted) => {
                wanted.is_empty() || value.windows(wanted.len()).any(|part| part == &**wanted)
            }
            Self::AnyCase(part, wanted) => {
                let length = wanted.len();
                let same = |part: Option<&[u8]>| part.is_some_and(|part| part.eq_ignore_ascii_case(wanted));
                match part {
                    Part::Whole => same(Some(value)),
                    Part::Start => same(value.get(..length)),
                    Part::End => same(value.len().checked_sub(length).and_then(|from| value.get(from..))),
                    Part::Any => {
                        length == 0 || value.windows(length).any(|part| part.eq_ignore_ascii_case(wanted))
                    }
                }
            }
            Self::Pattern(pattern) => pattern.matches(value),
            Self::Range(range) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.is_some_and(|number: i64| range.contains(&number))
            }
        }
    }
}

/// Whether the values joined with commas are `wanted`, or start with it, without joining them.
fn joined_starts<'a>(
    wanted: &[u8],
    first: &[u8],
    mut values: impl Iterator<Item = &'a [u8]>,
    is_prefix: bool,
) -> bool {
    let Some(mut rest) = step(wanted, first, is_prefix) else { return false };
    loop {
        let Some(value) = values.next() else { return rest.is_empty() };
        if rest.is_empty() {
            return is_prefix;
        }
        let Some(after) = rest.strip_prefix(b",") else { return false };
        match step(after, value, is_prefix) {
            Some(after) => rest = after,
            None => return false,
        }
    }
}

/// What of `rest` is left behind `value`.
fn step<'w>(rest: &'w [u8], value: &[u8], is_prefix: bool) -> Option<&'w [u8]> {
    if is_prefix && value.starts_with(rest) {
        return Some(b"");
    }
    rest.strip_prefix(value)
}

/// A condition on a parameter of the query: of the first one of this name, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Name, exactly.
    pub name: Box<str>,
    /// What its value must be; a parameter without `=` has an empty one.
    pub value: ValueMatch,
    /// The condition holds when this does not.
    pub invert: bool,
}

impl QueryMatch {
    /// `name` must be so.
    pub fn new(name: impl Into<Box<str>>, value: ValueMatch) -> Self {
        Self { name: name.into(), value, invert: false }
    }

    fn matches(&self, query: &[u8]) -> bool {
        parameter(query, self.name.as_bytes()).is_some_and(|value| self.value.is(value)) != self.invert
    }
}

/// The value of the first parameter of this name.
pub(super) fn parameter<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|&byte| byte == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
    })
}

/// What a request must be; all parts must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Path.
    pub path: PathMatch,
    /// Method, exactly; `None` is any.
    pub method: Option<Box<str>>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query.
    pub query: Vec<QueryMatch>,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self { path: PathMatch::Any, method: None, headers: Vec::new(), query: Vec::new() }
    }
}

impl RouteMatch {
    pub(super) fn matches(&self, request: &impl RequestView) -> bool {
        self.path.matches(request.path())
            && self.method.as_ref().is_none_or(|method| method.as_bytes() == request.method())
            && self.headers.iter().all(|header| header.matches(request))
            && (self.query.is_empty() || self.has_query(request.query().unwrap_or_default()))
    }

    fn has_query(&self, query: &[u8]) -> bool {
        self.query.iter().all(|parameter| parameter.matches(query))
    }
}
