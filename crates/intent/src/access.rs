//! Access policies: from what is written to what holds for a service.

use crate::diagnostic::{Code, Diagnostic};
use crate::document::Document;
use crate::formats;
use crate::model::{AccessPolicy, AccessRule, Caller, Mtls, Operation, Protocol, ServiceRef};
use crate::resolve::{Found, Set};
use crate::route::Conditions;
use crate::traffic::target_protocols;
use crate::wire::{
    AccessAction, AccessMode, AccessPolicySpec, AccessRuleSpec, CallerSpec, OperationSpec, PathKind,
    PortSpec, ValueMatchKind,
};
use crate::words::listed;

/// The meaning of a policy. Parts with findings are left out.
pub(crate) fn access_policy(
    set: &Set<'_>,
    document: &Document,
    spec: &AccessPolicySpec,
    findings: &mut Vec<Diagnostic>,
) -> AccessPolicy {
    let protocols = target_protocols(set, document, spec.target_ref.as_ref(), findings);
    let mut policy = Walk { set, document, findings };
    let rules: Vec<AccessRule> =
        spec.rules.iter().enumerate().map(|(index, rule)| policy.rule(index, rule, spec)).collect();
    let of_requests = |rule: &AccessRule| rule.to.iter().any(Operation::is_of_requests);
    if let (Some(protocols), Some(index)) = (protocols, rules.iter().position(of_requests))
        && protocols.iter().all(|protocol| *protocol == Protocol::Tcp)
    {
        let message = "the rule has conditions on requests, and the service takes bytes only";
        let place = document.at(&format!("spec/rules/{index}/to"));
        let finding = Diagnostic::error(Code::ProtocolMismatch, place, message);
        findings.push(finding.help("remove `methods`, `paths` and `headers`"));
    }
    let namespace = &document.key().namespace;
    let mtls = set.namespace(namespace).mtls.value;
    if let Some(index) = rules.iter().position(|rule| !rule.from.is_empty())
        && mtls != Mtls::Required
    {
        let message =
            "callers without TLS are nobody to this rule, and the namespace takes connections without it";
        let help = "an `allow` keeps them out, a `deny` does not; set `mtls: required` to know every caller";
        let place = document.at(&format!("spec/rules/{index}/from"));
        findings.push(Diagnostic::warning(Code::CallersUnknown, place, message).help(help));
    }
    AccessPolicy {
        name: document.key().name.clone(),
        allow: spec.action == AccessAction::Allow,
        audit: spec.mode == Some(AccessMode::Audit),
        rules,
    }
}

/// Longest value of a header that a rule denies. Expressions have at most 4096 bytes, and as one, a value of punctuation alone
/// takes two for each.
const MAX_DENIED: usize = 2000;

/// A part of a path that rules about paths refuse, because a server may take it for another one, and what to write instead
/// if that says the same.
fn never_matches(path: &str) -> Option<(String, Option<char>)> {
    if path.contains(';') {
        return Some((";".to_owned(), None));
    }
    path.match_indices('%').find_map(|(at, _)| {
        let part = path.get(at..at + 3)?;
        let byte = u8::from_str_radix(part.get(1..)?, 16).ok()?;
        let letter = char::from(byte);
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte);
        let twice = byte == b'%'
            && path.get(at + 3..at + 5).is_some_and(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let next = path.get(at + 3..at + 5).unwrap_or_default().to_ascii_lowercase();
        // Longer than UTF-8 has it.
        let long = match byte {
            0xc0 | 0xc1 => ["%8", "%9", "%a", "%b"].contains(&&*next),
            0xe0 => ["%8", "%9"].contains(&&*next),
            0xf0 => next == "%8",
            _ => false,
        };
        match byte {
            _ if plain => Some((part.to_owned(), Some(letter))),
            ..0x20 | 0x7f | b';' | b'/' | b'\\' => Some((part.to_owned(), None)),
            _ if twice || long => Some((part.to_owned(), None)),
            _ => None,
        }
    })
}

struct Walk<'a> {
    set: &'a Set<'a>,
    document: &'a Document,
    findings: &'a mut Vec<Diagnostic>,
}

impl Walk<'_> {
    fn error(&mut self, code: Code, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Diagnostic::error(code, self.document.at(path), message).help(help));
    }

    fn rule(&mut self, index: usize, rule: &AccessRuleSpec, policy: &AccessPolicySpec) -> AccessRule {
        let path = format!("spec/rules/{index}");
        let mut from = Vec::new();
        for (index, caller) in rule.from.as_deref().unwrap_or_default().iter().enumerate() {
            from.extend(self.caller(&format!("{path}/from/{index}"), caller));
        }
        let to = rule.to.as_deref().unwrap_or_default().iter().enumerate();
        let to = to.map(|(index, to)| self.operation(&format!("{path}/to/{index}"), to, policy)).collect();
        AccessRule { from, to }
    }

    fn caller(&mut self, path: &str, caller: &CallerSpec) -> Option<Caller> {
        let own = &self.document.key().namespace;
        let namespace = caller.namespace.as_ref().map_or(own.as_str(), |label| label.0.as_str());
        let Some(service) = &caller.service else {
            if caller.namespace.is_none() {
                let message = "a caller has neither `service` nor `namespace`";
                self.error(Code::MissingField, path, message, "add one of the two");
                return None;
            }
            return Some(Caller::Namespace(namespace.to_owned()));
        };
        let id = ServiceRef::new(namespace, &service.0);
        if matches!(self.set.service(&id), Found::Nothing) {
            let help = self.set.meant(own, &id, true);
            let message = format!("nothing declares the service {id}");
            self.error(Code::UnknownService, &format!("{path}/service"), message, help);
            return None;
        }
        Some(Caller::Service(id))
    }

    fn operation(&mut self, path: &str, spec: &OperationSpec, policy: &AccessPolicySpec) -> Operation {
        let ports = spec.ports.clone().unwrap_or_default();
        if let Some(target) = &policy.target_ref {
            let id = ServiceRef::new(&self.document.key().namespace, &target.name.0);
            if let Found::Service(service) = self.set.service(&id) {
                let known: &[PortSpec] = service.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
                for (index, port) in ports.iter().enumerate() {
                    if !known.iter().any(|one| one.port == *port) {
                        let message = format!("the service {id} has no port {port}");
                        let help =
                            format!("its ports are {}", listed(known.iter().map(|one| one.port.to_string())));
                        self.error(Code::UnknownPort, &format!("{path}/ports/{index}"), message, help);
                    }
                }
            }
        }
        let empty =
            spec.ports.is_none() && spec.methods.is_none() && spec.paths.is_none() && spec.headers.is_none();
        if empty {
            let message = "an element of `to` without a condition is every request";
            self.error(Code::MissingField, path, message, "add a condition, or leave `to` out");
        }
        for (index, one) in spec.paths.iter().flatten().enumerate() {
            let Some(value) = &one.value else { continue };
            if one.kind == Some(PathKind::RegularExpression) {
                if !value.0.is_ascii() {
                    let message = "has a letter that no path has as it is";
                    let help = "write its UTF-8 percent-encoded, like `%C3%A9`, as it comes";
                    self.error(Code::InvalidValue, &format!("{path}/paths/{index}/value"), message, help);
                }
                continue;
            }
            if let Some((part, meant)) = never_matches(&value.0) {
                let message = format!("contains `{part}`, and no path with it gets as far as this rule");
                let help = format!(
                    "where paths decide, what could be read as another path is refused; {}",
                    meant.map_or("remove it".to_owned(), |meant| format!("write `{meant}`"))
                );
                self.error(Code::InvalidValue, &format!("{path}/paths/{index}/value"), message, help);
            }
        }
        let denies = policy.action == AccessAction::Deny;
        for (index, header) in spec.headers.iter().flatten().enumerate().filter(|_| denies) {
            // Lists are looked through for it, by an expression that has a few letters more.
            if header.value.0.len() > MAX_DENIED {
                let message = format!("is longer than {MAX_DENIED} bytes");
                let help = "what is denied is looked for among the members of lists as well";
                self.error(Code::OutOfBounds, &format!("{path}/headers/{index}/value"), message, help);
            }
        }
        // As large as it gets when members of lists are looked for.
        let listed = |text: &str| format!(r"(?:.*,)?[ \t]*(?:{text})[ \t]*(?:,.*)?");
        for (index, header) in spec.headers.iter().flatten().enumerate().filter(|_| denies) {
            let is_regex = header.kind == Some(ValueMatchKind::RegularExpression);
            if is_regex
                && formats::regex(&header.value.0).is_ok()
                && formats::regex(&listed(&header.value.0)).is_err()
            {
                let message = "is too large a regular expression for what is denied";
                let help = "repeat less, or match less exactly";
                self.error(Code::OutOfBounds, &format!("{path}/headers/{index}/value"), message, help);
            }
        }
        let mut conditions = Conditions { document: self.document, findings: self.findings };
        let paths = spec.paths.as_deref().unwrap_or_default().iter();
        let paths = paths.map(|one| Conditions::path(Some(one))).collect();
        let headers = conditions.headers(&format!("{path}/headers"), spec.headers.as_deref());
        let methods = spec.methods.as_deref().unwrap_or_default().iter();
        let methods = methods.map(|method| method.as_str().to_owned()).collect();
        Operation { ports, methods, paths, headers }
    }
}
