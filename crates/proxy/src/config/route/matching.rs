//! Conditions of routes.

use outrider_proxy_core::route::{
    HeaderMatch, Part, PathMatch, Pattern, QueryMatch, RouteMatch as CompiledMatch, ValueMatch,
};
use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use outrider_xds_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use crate::config::fields::{Refusal, join, nothing_left};

/// Reads a `RouteMatch`.
pub(super) fn matches(mut given: RouteMatch, path: &str) -> Result<CompiledMatch, Refusal> {
    let matched_path = match given.path_specifier.take() {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.into_bytes().into()),
        Some(PathSpecifier::Path(exact)) => PathMatch::Exact(exact.into_bytes().into()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            PathMatch::ElementPrefix(prefix.into_bytes().into())
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Pattern(pattern(regex, &join(path, "safe_regex"))?)
        }
        _ => return Err(Refusal::new(join(path, "path_specifier"), "not supported, or missing")),
    };
    if given.case_sensitive.take().is_some_and(|b| !b.value) {
        return Err(Refusal::new(join(path, "case_sensitive"), "paths are compared byte for byte"));
    }
    let mut method = None;
    let mut headers = Vec::new();
    for (n, matcher) in std::mem::take(&mut given.headers).into_iter().enumerate() {
        let header = header_match(matcher, &join(path, &format!("headers[{n}]")))?;
        match &header {
            HeaderMatch { name, value: ValueMatch::Exact(value), invert: false, .. }
                if &**name == ":method" && method.is_none() =>
            {
                method = Some(String::from_utf8_lossy(value).into_owned().into_boxed_str());
            }
            _ => headers.push(header),
        }
    }
    let mut query = Vec::new();
    for (n, matcher) in std::mem::take(&mut given.query_parameters).into_iter().enumerate() {
        query.push(query_match(matcher, &join(path, &format!("query_parameters[{n}]")))?);
    }
    nothing_left(&given, path)?;
    Ok(CompiledMatch { path: matched_path, method, headers, query })
}

pub(in crate::config) fn header_match(
    mut matcher: HeaderMatcher,
    path: &str,
) -> Result<HeaderMatch, Refusal> {
    let name = std::mem::take(&mut matcher.name);
    // Where Envoy keeps it, whatever the version of HTTP is.
    let name = if name.eq_ignore_ascii_case("host") { ":authority".to_owned() } else { name };
    let mut invert = std::mem::take(&mut matcher.invert_match);
    let missing_is_empty = std::mem::take(&mut matcher.treat_missing_header_as_empty);
    let value = match matcher.header_match_specifier.take() {
        None => ValueMatch::Present,
        Some(HeaderMatchSpecifier::PresentMatch(present)) => {
            invert ^= !present;
            ValueMatch::Present
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => value(matcher, &join(path, "string_match"))?,
        Some(HeaderMatchSpecifier::RangeMatch(range)) => ValueMatch::Range(range.start..range.end),
        _ => {
            return Err(Refusal::new(
                join(path, "header_match_specifier"),
                "not supported: use string_match",
            ));
        }
    };
    nothing_left(&matcher, path)?;
    Ok(HeaderMatch { name: name.into(), value, invert, missing_is_empty })
}

fn query_match(mut matcher: QueryParameterMatcher, path: &str) -> Result<QueryMatch, Refusal> {
    let name = std::mem::take(&mut matcher.name);
    let (value, invert) = match matcher.query_parameter_match_specifier.take() {
        None => (ValueMatch::Present, false),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (ValueMatch::Present, !present),
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            (value(matcher, &join(path, "string_match"))?, false)
        }
    };
    nothing_left(&matcher, path)?;
    Ok(QueryMatch { name: name.into(), value, invert })
}

pub(in crate::config) fn value(mut matcher: StringMatcher, path: &str) -> Result<ValueMatch, Refusal> {
    let any_case = std::mem::take(&mut matcher.ignore_case);
    let found = matcher.match_pattern.take();
    nothing_left(&matcher, path)?;
    let (part, text) = match found {
        // RE2's own flag for this is `(?i)`; Envoy ignores the field as well.
        Some(MatchPattern::SafeRegex(regex)) => {
            return Ok(ValueMatch::Pattern(pattern(regex, &join(path, "safe_regex"))?));
        }
        Some(MatchPattern::Exact(text)) => (Part::Whole, text),
        Some(MatchPattern::Prefix(text)) => (Part::Start, text),
        Some(MatchPattern::Suffix(text)) => (Part::End, text),
        Some(MatchPattern::Contains(text)) => (Part::Any, text),
        _ => return Err(Refusal::new(join(path, "match_pattern"), "not supported, or missing")),
    };
    let text: Box<[u8]> = text.into_bytes().into();
    Ok(match part {
        _ if any_case => ValueMatch::AnyCase(part, text),
        Part::Whole => ValueMatch::Exact(text),
        Part::Start => ValueMatch::Prefix(text),
        Part::End => ValueMatch::Suffix(text),
        Part::Any => ValueMatch::Contains(text),
    })
}

/// The expression of a matcher.
pub(super) fn expression(mut matcher: RegexMatcher, path: &str) -> Result<String, Refusal> {
    let text = std::mem::take(&mut matcher.regex);
    // The only engine there is; its limit of the program is deprecated, ours always holds.
    matcher.engine_type = None;
    nothing_left(&matcher, path)?;
    Ok(text)
}

fn pattern(matcher: RegexMatcher, path: &str) -> Result<Pattern, Refusal> {
    let text = expression(matcher, path)?;
    Pattern::new(&text).map_err(|e| Refusal::new(path, e.to_string()))
}
