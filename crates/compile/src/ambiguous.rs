//! What an application could take for something that a rule names, though it is written in another way.
//!
//! A path may have a character as it is or percent-encoded, a server may fold the case of methods, and lines of one field
//! are the same as one line with commas (RFC 9110 section 5.3). Rules compare what is written. So, where they decide, what
//! can be read in two ways is refused, and a field that is denied is looked for among the members of a list as well.
//!
//! Does not: decode. Characters that an expression stands for without naming them (`.`, `[^/]`) are not seen here.

use outrider_intent::model::{PathMatch, ValueMatch};
use outrider_xds_types::pb::envoy::config::rbac::v3 as rbac;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::r#type::matcher::v3 as matcher;
use outrider_xds_types::pb::google::api::expr::v1alpha1::constant::ConstantKind;
use outrider_xds_types::pb::google::api::expr::v1alpha1::expr::{self as cel, ExprKind};
use outrider_xds_types::pb::google::api::expr::v1alpha1::{Constant, Expr};

use matcher::string_matcher::MatchPattern;
use rbac::permission::Rule;
use route::header_matcher::HeaderMatchSpecifier;

use crate::anchors::without_anchors;
use crate::matching::{all_of, any_of, escaped, header_is, path_is, permission};

/// Paths that are refused wherever paths decide: a server that removes dot segments, joins slashes, cuts parameters off, or
/// decodes letters and what separates, once or twice, would serve `/admin` for `/x/../admin`, `//admin`, `/admin;x`,
/// `/%61dmin` or `/%2561dmin`; and one that takes other spellings of a character for it, for `/%c1%a1dmin` (longer than
/// UTF-8 has it) or `/%u0061dmin`. What ends a text or a line, as any control character, is passed over by many an expression
/// at its end: `/admin%0a`.
const ALWAYS: &str = concat!(
    r"//|/\.\.?(/|$)|[;\\]",
    r"|%([01][0-9a-fA-F]|2[dDeEfF]|3[0-9bB]|4[1-9a-fA-F]|5[0-9aAcCfF]|6[1-9a-fA-F]|7[0-9aAfF])",
    r"|%25[0-9a-fA-F][0-9a-fA-F]",
    r"|%([cC][01]%[89aAbB]|[eE]0%[89]|[fF]0%8|[uU])[0-9a-fA-F]"
);

/// Paths that could be taken for one of these. Encoded, a character is refused only where a rule names it: clients rightly
/// encode `:` or `@` in what is nobody's rule.
pub(crate) fn path<'a>(paths: impl Iterator<Item = &'a PathMatch>) -> rbac::Permission {
    let mut named = Named::default();
    for path in paths {
        match path {
            PathMatch::Exact(text) | PathMatch::Prefix(text) => named.text(text),
            PathMatch::Regex(pattern) => named.expression(pattern),
            // Access rules have paths only.
            PathMatch::Grpc { .. } => {}
        }
    }
    path_is(regex(format!(".*({ALWAYS}{}).*", named.pattern())))
}

/// Methods that a server could take for another: they have a case (RFC 9110 section 9.1), and some servers fold it.
pub(crate) fn method() -> rbac::Permission {
    header(":method", regex(".*[a-z].*".to_owned()))
}

/// A field that denies: the whole of a line, or a member of what it lists. Several lines of some fields reach Envoy, and
/// whoever is behind an Envoy, joined.
pub(crate) fn listed(name: &str, value: &ValueMatch) -> rbac::Permission {
    if name == "host" {
        return header(name, regex(host(value)));
    }
    let whole = permission(Rule::Header(header_is(name, value)));
    let member = match value {
        ValueMatch::Exact(text) => escaped(text),
        ValueMatch::Regex(pattern) => without_anchors(pattern),
    };
    // Names of protocols have no case (RFC 9110 section 7.8), and what a proxy switches to is found without it.
    let member = if name == "upgrade" { format!("(?i:{member})") } else { member };
    let among = header(name, regex(format!(r"(?:.*,)?[ \t]*(?:{member})[ \t]*(?:,.*)?")));
    if name == "upgrade" {
        return any_of(vec![whole, among]);
    }
    let comma = MatchPattern::Contains(",".to_owned());
    let several = header(name, matcher::StringMatcher { match_pattern: Some(comma), ..Default::default() });
    any_of(vec![whole, all_of(vec![several, among])])
}

/// That there is no such field.
pub(crate) fn is_missing(name: &str) -> rbac::Permission {
    permission(Rule::Header(route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(false)),
        ..Default::default()
    }))
}

/// What a server may take for a host that is denied: hosts have no case (RFC 9110 section 4.2.3), a dot at the end says that
/// nothing follows, and a port is there if it is not the usual one.
fn host(value: &ValueMatch) -> String {
    let any_port = "(?::[0-9]*)?";
    let (name, port) = match value {
        ValueMatch::Regex(pattern) => (without_anchors(pattern), any_port.to_owned()),
        ValueMatch::Exact(text) => {
            let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let split = text
                .rsplit_once(':')
                .filter(|(name, port)| is_port(port) && (!name.contains(':') || name.ends_with(']')));
            let (name, port) = match split {
                Some((name, port @ ("80" | "443"))) => (name, format!("(?::|:0*{port})?")),
                Some((name, port)) => (name, format!(":0*{}", port.trim_start_matches('0'))),
                None => (text.as_str(), any_port.to_owned()),
            };
            (escaped(name.strip_suffix('.').unwrap_or(name)), port)
        }
    };
    format!(r"(?i:{name})\.?{port}")
}

/// Names that an application which sees fields as variables takes for this one, itself first: with underscores for any of
/// the hyphens, or for all of them if they are many. Only what Envoy decides about needs them; the native proxy compares
/// names so that there is no difference.
pub(crate) fn alike(name: &str) -> Vec<String> {
    let places: Vec<usize> = name.match_indices(['-', '_']).map(|(at, _)| at).collect();
    let with = |underscores: u32| -> String {
        let letter = |(at, letter)| match places.iter().position(|place| *place == at) {
            Some(nth) if underscores >> nth.min(31) & 1 == 1 => '_',
            Some(_) => '-',
            None => letter,
        };
        name.char_indices().map(letter).collect()
    };
    let others: Vec<u32> = match places.len() {
        few @ 0..=3 => (0..1 << few).collect(),
        _ => vec![0, u32::MAX],
    };
    let mut names = vec![name.to_owned()];
    names.extend(others.into_iter().map(with).filter(|other| other != name));
    names
}

/// For Envoy, which lets in what has *one* line that an `allow` names: that all lines joined are this value, too. Of an
/// expression that matches no comma, that there is none. Of others it cannot be said: expressions of this kind have to be
/// tiny there.
pub(crate) fn is_one_value(headers: &[(String, ValueMatch)]) -> Option<Expr> {
    let call = |target: Option<Expr>, function: &str, args: Vec<Expr>| {
        expr(ExprKind::CallExpr(Box::new(cel::Call {
            target: target.map(Box::new),
            function: function.to_owned(),
            args,
        })))
    };
    let text = |text: &str| {
        let constant_kind = Some(ConstantKind::StringValue(text.to_owned()));
        expr(ExprKind::ConstExpr(Constant { constant_kind }))
    };
    let joined = |name: &str| {
        let request = expr(ExprKind::IdentExpr(cel::Ident { name: "request".to_owned() }));
        let headers =
            cel::Select { operand: Some(Box::new(request)), field: "headers".to_owned(), test_only: false };
        call(None, "_[_]", vec![expr(ExprKind::SelectExpr(Box::new(headers))), text(name)])
    };
    let conditions =
        headers.iter().filter(|(name, _)| name != "host").filter_map(|(name, value)| match value {
            ValueMatch::Exact(value) => Some(call(None, "_==_", vec![joined(name), text(value)])),
            ValueMatch::Regex(pattern) => {
                let wide = [".", "[^", ",", r"\W", r"\S", r"\D", r"\x", "[:"]
                    .iter()
                    .any(|part| pattern.contains(part));
                let comma = || call(Some(joined(name)), "contains", vec![text(",")]);
                (!wide).then(|| call(None, "!_", vec![comma()]))
            }
        });
    conditions.reduce(|one, other| call(None, "_&&_", vec![one, other]))
}

fn expr(kind: ExprKind) -> Expr {
    Expr { id: 0, expr_kind: Some(kind) }
}

/// A path as an expression or as it is, with both cases of hexadecimal digits behind percent signs.
pub(crate) fn text(path: &str, is_prefix: bool) -> Vec<matcher::StringMatcher> {
    let one = |pattern| matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    match (any_hex_case(&escaped(path)), is_prefix) {
        (Some(pattern), false) => vec![regex(pattern)],
        (Some(pattern), true) => vec![regex(format!("{pattern}(?:/.*)?"))],
        (None, false) => vec![one(MatchPattern::Exact(path.to_owned()))],
        (None, true) => {
            vec![one(MatchPattern::Exact(path.to_owned())), one(MatchPattern::Prefix(format!("{path}/")))]
        }
    }
}

/// An expression that matches percent-encoded bytes in either case, if it names any whose digits have one.
pub(crate) fn any_hex_case(pattern: &str) -> Option<String> {
    let (mut out, mut changed, mut class, mut rest) = (String::new(), false, false, pattern);
    while let Some(letter) = rest.chars().next() {
        let after = rest.get(letter.len_utf8()..).unwrap_or_default();
        out.push(letter);
        rest = after;
        match letter {
            '\\' => {
                out.extend(after.chars().next());
                rest = after.get(after.chars().next().map_or(0, char::len_utf8)..).unwrap_or_default();
            }
            '[' => class = true,
            ']' => class = false,
            '%' if !class => {
                let digits = after.get(..2).filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()));
                for digit in digits.unwrap_or_default().chars() {
                    if digit.is_ascii_alphabetic() {
                        changed = true;
                        out.extend(['[', digit.to_ascii_lowercase(), digit.to_ascii_uppercase(), ']']);
                    } else {
                        out.push(digit);
                    }
                }
                rest = after.get(digits.map_or(0, str::len)..).unwrap_or_default();
            }
            _ => {}
        }
    }
    changed.then_some(out)
}

fn regex(pattern: String) -> matcher::StringMatcher {
    let regex = matcher::RegexMatcher { regex: pattern, ..Default::default() };
    matcher::StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex)), ..Default::default() }
}

fn header(name: &str, value: matcher::StringMatcher) -> rbac::Permission {
    permission(Rule::Header(route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..Default::default()
    }))
}

/// Characters that rules name, which could come in another form.
#[derive(Default)]
struct Named {
    /// As they are: what could come is `%XX`. A bit for each of ASCII.
    plain: u128,
    /// As `%XX`: what could come is the byte.
    encoded: u128,
    /// The same of bytes beyond ASCII.
    beyond: bool,
}

impl Named {
    /// A path as it is written.
    fn text(&mut self, mut text: &str) {
        while let Some(letter) = text.chars().next() {
            text = text.get(letter.len_utf8()..).unwrap_or_default();
            text = if letter == '%' { self.percent(text) } else { text };
            self.plain(letter);
        }
    }

    /// What an expression names: by itself, behind a backslash, or within brackets.
    fn expression(&mut self, pattern: &str) {
        let mut rest = pattern;
        // Within brackets: what the letter before is, if a range could begin with it.
        let mut class: Option<Option<char>> = None;
        while let Some(letter) = rest.chars().next() {
            rest = rest.get(letter.len_utf8()..).unwrap_or_default();
            match (letter, class) {
                ('\\', _) => {
                    let next = rest.chars().next().unwrap_or('\\');
                    rest = rest.get(next.len_utf8()..).unwrap_or_default();
                    match next {
                        'x' => rest = self.hexadecimal(rest),
                        _ => self.plain(next),
                    }
                    class = class.map(|_| Some(next));
                }
                ('[', Some(_)) if rest.starts_with(':') => {
                    let (name, behind) = rest.split_once(":]").unwrap_or((rest, ""));
                    if name.contains("punct") {
                        ('!'..='~').for_each(|letter| self.plain(letter));
                    }
                    rest = behind;
                }
                ('[', None) => {
                    class = Some(None);
                    // All but what follows.
                    rest = rest.strip_prefix('^').unwrap_or(rest);
                }
                (']', Some(Some(_))) => class = None,
                ('-', Some(Some(from))) if !rest.starts_with(']') => {
                    let to = rest.chars().next().unwrap_or(from);
                    (from..=to).for_each(|letter| self.plain(letter));
                    class = Some(Some(to));
                }
                (letter, Some(_)) => {
                    self.plain(letter);
                    class = Some(Some(letter));
                }
                // Groups, repetitions and anchors. What is named of these is behind a backslash.
                ('(', None) if rest.starts_with('?') => {
                    let end = rest.find([':', '>', ')']).map_or(0, |end| end + 1);
                    rest = rest.get(end..).unwrap_or_default();
                }
                ('{', None) => rest = rest.split_once('}').map_or(rest, |(_, behind)| behind),
                ('(' | ')' | '|' | '*' | '+' | '?' | '^' | '$' | '.', None) => {}
                ('%', None) => rest = self.percent(rest),
                (letter, None) => self.plain(letter),
            }
        }
    }

    fn plain(&mut self, letter: char) {
        // The others are refused always, or no form of anything.
        if letter.is_ascii_punctuation() && !r"-./;\_%".contains(letter) {
            self.plain |= 1 << u32::from(letter);
        }
    }

    /// Behind a percent sign: gives back what follows the two digits.
    fn percent<'t>(&mut self, text: &'t str) -> &'t str {
        let digits = text.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(byte) = digits else { return text };
        match byte {
            0x80.. => self.beyond = true,
            _ => self.encoded |= 1 << byte,
        }
        text.get(2..).unwrap_or_default()
    }

    /// Behind `\x`: gives back what follows the digits.
    fn hexadecimal<'t>(&mut self, text: &'t str) -> &'t str {
        let (digits, behind) = match text.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some(found) => found,
            None => text.split_at_checked(2).unwrap_or((text, "")),
        };
        if let Some(letter) = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32) {
            self.plain(letter);
        }
        behind
    }

    /// Further alternatives of the expression of what is refused.
    fn pattern(&self) -> String {
        let mut pattern = String::new();
        let of = |set: u128| (0..128_u8).filter(move |byte| set & (1 << byte) != 0);
        for byte in of(self.plain) {
            let (high, low) = (byte >> 4, byte & 15);
            pattern += &match low {
                10.. => {
                    let letter = char::from(b'a' + low - 10);
                    format!("|%{high}[{letter}{}]", letter.to_ascii_uppercase())
                }
                _ => format!("|%{high}{low}"),
            };
        }
        for byte in of(self.encoded).filter(u8::is_ascii_punctuation) {
            // None of these is ever in a path as it is compared.
            if !b"/?#%".contains(&byte) {
                pattern += "|";
                pattern += &escaped(&char::from(byte).to_string());
            }
        }
        if self.beyond {
            pattern += r"|[^\x00-\x7f]";
        }
        pattern
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(paths: &[PathMatch]) -> String {
        let mut named = Named::default();
        for path in paths {
            match path {
                PathMatch::Exact(text) | PathMatch::Prefix(text) => named.text(text),
                PathMatch::Regex(pattern) => named.expression(pattern),
                PathMatch::Grpc { .. } => {}
            }
        }
        named.pattern()
    }

    #[test]
    fn what_rules_name_is_refused_in_its_other_forms() {
        for (text, expected) in [
            ("/admin", ""),
            ("/a-b_c.d", ""),
            ("/~a", "|%7[eE]"),
            ("/items:purge", "|%3[aA]"),
            ("/@me/a+b", "|%2[bB]|%40"),
            ("/!$&'()*,=", "|%21|%24|%26|%27|%28|%29|%2[aA]|%2[cC]|%3[dD]"),
            ("/a%20b", ""),
            ("/a%7bb%7D", r"|\{|\}"),
            ("/caf%C3%A9", r"|[^\x00-\x7f]"),
        ] {
            assert_eq!(named(&[PathMatch::Exact(text.into())]), expected, "{text}");
            assert_eq!(named(&[PathMatch::Prefix("/x".into()), PathMatch::Prefix(text.into())]), expected);
        }
        for (pattern, expected) in [
            ("/v[0-9]+/keys", ""),
            ("/(?:a|b)*/c{1,2}(?P<n>d)?", ""),
            ("/(?i:admin).*", ""),
            (r"/items:\w+", "|%3[aA]"),
            (r"/a\+b\.c", "|%2[bB]"),
            (r"/[a-z@:]+", "|%3[aA]|%40"),
            (
                "/[!-,]",
                "|%21|%22|%23|%24|%25|%26|%27|%28|%29|%2[aA]|%2[bB]|%2[cC]".replace("|%25", "").as_str(),
            ),
            (r"/\x3a", "|%3[aA]"),
            (r"/\x{40}", "|%40"),
            ("/[]a]", "|%5[dD]"),
            ("/[^/]+", ""),
            ("/[^@]", "|%40"),
            ("/[a^]", "|%5[eE]"),
            ("/[^]a]@", "|%40|%5[dD]"),
            ("/caf%c3%a9", r"|[^\x00-\x7f]"),
        ] {
            assert_eq!(named(&[PathMatch::Regex(pattern.to_owned())]), expected, "{pattern}");
        }
    }

    #[test]
    fn names_are_alike_by_their_hyphens() {
        for (name, expected) in [
            ("host", &["host"][..]),
            ("x-debug", &["x-debug", "x_debug"]),
            ("x_debug", &["x_debug", "x-debug"]),
            ("a-b_c", &["a-b_c", "a-b-c", "a_b-c", "a_b_c"]),
            ("a-b-c-d-e", &["a-b-c-d-e", "a_b_c_d_e"]),
        ] {
            assert_eq!(alike(name), expected);
        }
        assert_eq!(alike("x-forwarded-client-cert").len(), 8);
    }

    #[test]
    fn hosts_are_read_as_servers_read_them() {
        for (text, expected) in [
            ("api.internal", r"(?i:api\.internal)\.?(?::[0-9]*)?"),
            ("api.", r"(?i:api)\.?(?::[0-9]*)?"),
            ("api:8080", r"(?i:api)\.?:0*8080"),
            ("api:80", r"(?i:api)\.?(?::|:0*80)?"),
            ("[::1]", r"(?i:\[::1\])\.?(?::[0-9]*)?"),
            ("[::1]:81", r"(?i:\[::1\])\.?:0*81"),
        ] {
            assert_eq!(host(&ValueMatch::Exact(text.to_owned())), expected);
        }
        for (pattern, expected) in [
            (r"^.*\.internal$", r"(?i:.*\.internal)\.?(?::[0-9]*)?"),
            (r"^(api|db)\.internal$", r"(?i:(api|db)\.internal)\.?(?::[0-9]*)?"),
            ("^api$|^db$", r"(?i:api|db)\.?(?::[0-9]*)?"),
        ] {
            assert_eq!(host(&ValueMatch::Regex(pattern.to_owned())), expected);
        }
    }

    #[test]
    fn hexadecimal_digits_have_no_case() {
        assert_eq!(any_hex_case("/a%20b%41"), None);
        assert_eq!(any_hex_case("/caf%C3%a9/x").as_deref(), Some("/caf%[cC]3%[aA]9/x"));
        assert_eq!(any_hex_case(r"/[%ab]\%").as_deref(), None);
    }
}
