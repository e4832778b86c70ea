//! Conditions on requests, as routes and as access rules have them.

use outrider_intent::model::{HttpMatch, PathMatch, ValueMatch};
use outrider_xds_types::pb::envoy::config::rbac::v3 as rbac;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::r#type::matcher::v3 as matcher;

use crate::ambiguous;
use crate::tls::exactly;

use matcher::path_matcher::Rule as PathRule;
use matcher::string_matcher::MatchPattern;
use rbac::permission::Rule;
use route::header_matcher::HeaderMatchSpecifier;
use route::query_parameter_matcher::QueryParameterMatchSpecifier;
use route::route_match::PathSpecifier;

/// The condition of a route.
pub(crate) fn conditions(matched: &HttpMatch) -> route::RouteMatch {
    let method = matched.method.iter().map(|method| method_is(method));
    let headers = matched.headers.iter().map(|(name, value)| header_is(name, value));
    let parameter = |(name, value): &(String, ValueMatch)| route::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(text(value))),
    };
    route::RouteMatch {
        headers: method.chain(headers).collect(),
        query_parameters: matched.query.iter().map(parameter).collect(),
        path_specifier: Some(path(&matched.path)),
        ..Default::default()
    }
}

/// Path elements from the start.
pub(crate) fn prefix(path: &str) -> PathSpecifier {
    match path.trim_end_matches('/') {
        "" => PathSpecifier::Prefix("/".to_owned()),
        elements => PathSpecifier::PathSeparatedPrefix(elements.to_owned()),
    }
}

fn path(path: &PathMatch) -> PathSpecifier {
    match path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(path) => prefix(path),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
        PathMatch::Grpc { service, method } => match (service, method) {
            (None, None) => prefix("/"),
            (Some(ValueMatch::Exact(service)), None) => prefix(&format!("/{service}")),
            (Some(ValueMatch::Exact(service)), Some(ValueMatch::Exact(method))) => {
                PathSpecifier::Path(format!("/{service}/{method}"))
            }
            (service, method) => {
                let part = |part: &Option<ValueMatch>| match part {
                    None => "[^/]+".to_owned(),
                    Some(ValueMatch::Exact(name)) => escaped(name),
                    Some(ValueMatch::Regex(pattern)) => format!("(?:{pattern})"),
                };
                PathSpecifier::SafeRegex(regex(&format!("/{}/{}", part(service), part(method))))
            }
        },
    }
}

/// A text as a pattern that matches it only.
pub(crate) fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        if !(letter.is_ascii_alphanumeric() || "/_-~%!&'=:@,;".contains(letter)) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// RE2, over the whole value.
pub(crate) fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: pattern.to_owned(), ..Default::default() }
}

pub(crate) fn text(value: &ValueMatch) -> matcher::StringMatcher {
    match value {
        ValueMatch::Exact(text) => exactly(text.clone()),
        ValueMatch::Regex(pattern) => matching(pattern),
    }
}

fn matching(pattern: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(regex(pattern))),
        ..Default::default()
    }
}

pub(crate) fn method_is(method: &str) -> route::HeaderMatcher {
    header_is(":method", &ValueMatch::Exact(method.to_owned()))
}

pub(crate) fn header_is(name: &str, value: &ValueMatch) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(text(value))),
        ..Default::default()
    }
}

/// The same condition on a path for access; the query is no part of it.
pub(crate) fn permits_path(path: &PathMatch) -> rbac::Permission {
    let any = |values: Vec<matcher::StringMatcher>| any_of(values.into_iter().map(path_is).collect());
    match path {
        PathMatch::Exact(path) => any(ambiguous::text(path, false)),
        PathMatch::Prefix(prefix) if prefix == "/" => permission(Rule::Any(true)),
        PathMatch::Prefix(prefix) => any(ambiguous::text(prefix, true)),
        PathMatch::Regex(pattern) => {
            path_is(matching(ambiguous::any_hex_case(pattern).as_deref().unwrap_or(pattern)))
        }
        // Access rules have paths only.
        PathMatch::Grpc { .. } => permission(Rule::NotRule(Box::new(permission(Rule::Any(true))))),
    }
}

/// A condition on the path without query.
pub(crate) fn path_is(value: matcher::StringMatcher) -> rbac::Permission {
    permission(Rule::UrlPath(matcher::PathMatcher { rule: Some(PathRule::Path(value)) }))
}

pub(crate) fn permission(rule: Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

pub(crate) fn any_of(mut rules: Vec<rbac::Permission>) -> rbac::Permission {
    match rules.pop() {
        Some(only) if rules.is_empty() => only,
        Some(last) => {
            rules.push(last);
            permission(Rule::OrRules(rbac::permission::Set { rules }))
        }
        None => permission(Rule::Any(true)),
    }
}

pub(crate) fn all_of(mut rules: Vec<rbac::Permission>) -> rbac::Permission {
    match rules.pop() {
        Some(only) if rules.is_empty() => only,
        Some(last) => {
            rules.push(last);
            permission(Rule::AndRules(rbac::permission::Set { rules }))
        }
        None => permission(Rule::Any(true)),
    }
}
