//! Rules for texts: names, durations, headers, paths. Each has a name that the wire types refer to.
//!
//! The rules are those of Kubernetes and of the Gateway API, so that what is valid here is valid there.

use std::time::Duration;

use crate::diagnostic::Code;

mod regex;

pub(crate) use regex::regex;

/// Longest duration anything may be set to.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a text was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// Follows the text in a sentence: "`x` …".
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    ServiceName,
    /// RFC 1123 subdomain.
    Subdomain,
    /// `name` or `name.namespace`.
    ServiceCall,
    /// Gateway API duration, 0 to 24 h.
    Duration,
    /// The same, above 0.
    PositiveDuration,
    /// RFC 9110 token.
    HeaderName,
    /// Name of a protocol that a connection is switched to, where what follows is nobody's affair.
    Upgrade,
    /// Visible characters, spaces and tabs.
    HeaderValue,
    /// Gateway API path.
    Path,
    /// The same, or where the field `type` beside it says so a regular expression over paths.
    PathPattern,
    /// A Gateway API path, or nothing.
    PathReplacement,
    /// Up to 1,024 characters that are not control characters, compared or read as a pattern.
    Pattern,
    /// The same, in RE2's syntax.
    Regex,
    /// Host name without wildcards, no address.
    Hostname,
    /// Key of a label or annotation.
    MetadataKey,
    /// Value of a label.
    LabelValue,
}

impl Format {
    const NAMES: [(&'static str, Format); 16] = [
        ("label", Self::Label),
        ("service-name", Self::ServiceName),
        ("subdomain", Self::Subdomain),
        ("service-call", Self::ServiceCall),
        ("duration", Self::Duration),
        ("positive-duration", Self::PositiveDuration),
        ("header-name", Self::HeaderName),
        ("upgrade", Self::Upgrade),
        ("header-value", Self::HeaderValue),
        ("path", Self::Path),
        ("path-pattern", Self::PathPattern),
        ("path-replacement", Self::PathReplacement),
        ("pattern", Self::Pattern),
        ("hostname", Self::Hostname),
        ("metadata-key", Self::MetadataKey),
        ("label-value", Self::LabelValue),
    ];

    /// The rule of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The rule for a text beside a field `type` that says this.
    pub(crate) fn beside(self, kind: Option<&str>) -> Self {
        match (self, kind) {
            (Self::PathPattern, Some("RegularExpression")) => Self::Regex,
            (own, _) => own,
        }
    }

    /// Checks a text.
    pub(crate) fn check(self, text: &str) -> Result<(), Refusal> {
        match self {
            Self::Label => label(text, false),
            Self::ServiceName => label(text, true),
            Self::Subdomain => subdomain(text),
            Self::ServiceCall => service_call(text),
            Self::Duration => duration(text).map(drop),
            Self::PositiveDuration => match duration(text)? {
                None => Err(Refusal {
                    code: Code::OutOfBounds,
                    message: "is no limit, and this cannot be unlimited".to_owned(),
                    help: Some("set it to at least `1ms`".to_owned()),
                }),
                Some(_) => Ok(()),
            },
            Self::HeaderName => header_name(text),
            Self::Upgrade => upgrade(text),
            Self::HeaderValue => header_value(text),
            Self::Path | Self::PathPattern => path(text),
            Self::PathReplacement if text.is_empty() => Ok(()),
            Self::PathReplacement => path(text),
            Self::Pattern => pattern(text),
            Self::Regex => pattern(text).and_then(|()| regex(text)),
            Self::Hostname => hostname(text),
            Self::MetadataKey => metadata_key(text),
            Self::LabelValue => {
                if text.is_empty() {
                    Ok(())
                } else {
                    qualified(text, "value of a label")
                }
            }
        }
    }
}

fn name(message: impl Into<String>, help: impl Into<String>) -> Refusal {
    Refusal { code: Code::InvalidName, message: message.into(), help: Some(help.into()) }
}

fn value(message: impl Into<String>, help: impl Into<String>) -> Refusal {
    Refusal { code: Code::InvalidValue, message: message.into(), help: Some(help.into()) }
}

fn too_long(what: &str, limit: usize) -> Refusal {
    Refusal {
        code: Code::OutOfBounds,
        message: format!("is too long: a {what} has at most {limit} characters"),
        help: None,
    }
}

/// A label; `letter_first` is RFC 1035, else RFC 1123.
fn label(text: &str, letter_first: bool) -> Result<(), Refusal> {
    let rule = if letter_first {
        "use lower case letters, digits and `-`, starting with a letter and ending with a letter or digit"
    } else {
        "use lower case letters, digits and `-`, starting and ending with a letter or digit"
    };
    if text.len() > 63 {
        return Err(too_long("name", 63));
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = text
        .bytes()
        .next()
        .is_some_and(|byte| if letter_first { byte.is_ascii_lowercase() } else { inner(byte) });
    let last = text.bytes().last().is_some_and(inner);
    if first && last && text.bytes().all(|byte| inner(byte) || byte == b'-') {
        return Ok(());
    }
    let lower = text.to_ascii_lowercase().replace('_', "-");
    let help = if lower != text && label(&lower, letter_first).is_ok() {
        format!("did you mean `{lower}`? A name has lower case letters, digits and `-`")
    } else {
        rule.to_owned()
    };
    Err(name("is not a valid name", help))
}

/// `name` or `name.namespace`, with help for what is written like this elsewhere.
fn service_call(text: &str) -> Result<(), Refusal> {
    call(text).map_err(|refusal| match meant_call(text) {
        Some(help) => name("is not how a call is written", help),
        None => refusal,
    })
}

fn call(text: &str) -> Result<(), Refusal> {
    match text.split_once('.') {
        None => label(text, true),
        Some((_, namespace)) if namespace.contains('.') => Err(name(
            "has too many parts",
            "write `name` for a service of the same namespace, or `name.namespace`",
        )),
        Some((service, namespace)) => label(service, true).and_then(|()| label(namespace, false)),
    }
}

/// What was meant by `namespace/name`, or by a service with a port.
fn meant_call(text: &str) -> Option<String> {
    if let Some((namespace, service)) = text.split_once('/') {
        let meant = format!("{service}.{namespace}");
        return call(&meant).is_ok().then(|| format!("write `{meant}`"));
    }
    let (service, port) = text.split_once(':')?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && call(service).is_ok())
        .then(|| format!("write `{service}`; a call is to all ports of a service"))
}

fn subdomain(text: &str) -> Result<(), Refusal> {
    if text.len() > 253 {
        return Err(too_long("name", 253));
    }
    // A part of a subdomain may be longer than 63 characters in Kubernetes; its characters are those of a label.
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = text.split('.').all(|part| {
        part.bytes().next().is_some_and(inner)
            && part.bytes().last().is_some_and(inner)
            && part.bytes().all(|byte| inner(byte) || byte == b'-')
    });
    if valid {
        return Ok(());
    }
    Err(name(
        "is not a valid name",
        "use lower case letters, digits, `-` and `.`, each part starting and ending with a letter or digit",
    ))
}

/// A Gateway API duration: up to four parts of up to five digits and `h`, `m`, `s` or `ms`. `None` is no limit.
pub(crate) fn duration(text: &str) -> Result<Option<Duration>, Refusal> {
    const HELP: &str = "write it like `15s`, `5m`, `1h30m` or `500ms`";
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = rest[..digits].parse::<u64>().ok().filter(|_| digits <= 5);
        rest = &rest[digits..];
        let (unit, milliseconds) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or_else(|| value("is not a duration", HELP))?;
        rest = &rest[unit.len()..];
        parts += 1;
        let Some(number) = number.filter(|_| parts <= 4) else {
            return Err(value("is not a duration", HELP));
        };
        total += Duration::from_millis(number * milliseconds);
    }
    if parts == 0 {
        return Err(value("is not a duration", HELP));
    }
    if total > MAX_DURATION {
        return Err(Refusal {
            code: Code::OutOfBounds,
            message: "is too long: the longest duration is 24h".to_owned(),
            help: Some("write `0s` for no limit".to_owned()),
        });
    }
    Ok(Some(total).filter(|total| !total.is_zero()))
}

/// A duration as it would be written; `0s` for no limit.
pub(crate) fn duration_text(duration: Option<Duration>) -> String {
    let mut rest = duration.unwrap_or_default().as_millis();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, milliseconds) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= milliseconds {
            text.push_str(&format!("{}{unit}", rest / milliseconds));
            rest %= milliseconds;
        }
    }
    text
}

fn header_name(text: &str) -> Result<(), Refusal> {
    if text.len() > 256 {
        return Err(too_long("header name", 256));
    }
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(token) {
        return Ok(());
    }
    if text.starts_with(':') {
        return Err(name(
            "is not a header",
            "pseudo-headers cannot be matched or changed here; use `path` and `method`",
        ));
    }
    Err(name("is not a header name", "use letters, digits and `-`"))
}

fn upgrade(text: &str) -> Result<(), Refusal> {
    if text.len() > 64 {
        return Err(too_long("name of a protocol", 64));
    }
    let token = |part: &str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !part.is_empty() && part.bytes().all(byte)
    };
    let (protocol, version) = text.split_once('/').unwrap_or((text, "1"));
    if !token(protocol) || !token(version) {
        return Err(name("is not the name of a protocol", "write it as the header `upgrade` does"));
    }
    let protocol = protocol.to_ascii_lowercase();
    let draft = protocol.split('-').next().unwrap_or_default();
    match draft {
        "websocket" if draft == protocol => Err(value("is carried by every port of `http`", "remove it")),
        "connect" => Err(value("is no upgrade", "there are no tunnels by CONNECT; remove it")),
        // RFC 9113, RFC 2817 and what was before them.
        "h2" | "h2c" | "http" | "spdy" | "tls" => Err(value(
            "would carry requests that nobody looks at",
            "declare a port with `protocol: http2` for it, where routes and access hold",
        )),
        _ => Ok(()),
    }
}

fn header_value(text: &str) -> Result<(), Refusal> {
    if text.chars().count() > 4096 {
        return Err(too_long("header value", 4096));
    }
    if text.is_empty() {
        return Err(value("is empty", "a header value has at least one character"));
    }
    if text.chars().any(|letter| letter.is_control() && letter != '\t') {
        return Err(value("contains a control character", "remove it"));
    }
    if text.starts_with([' ', '\t']) || text.ends_with([' ', '\t']) {
        return Err(value(
            "starts or ends with white space",
            "white space around a header value is lost on the wire; remove it",
        ));
    }
    Ok(())
}

pub(crate) fn path(text: &str) -> Result<(), Refusal> {
    if text.len() > 1024 {
        return Err(too_long("path", 1024));
    }
    if !text.starts_with('/') {
        let rooted = format!("/{text}");
        let help = match path(&rooted) {
            Ok(()) => format!("did you mean `{rooted}`?"),
            Err(_) => "write the path from its root".to_owned(),
        };
        return Err(value("does not start with `/`", help));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            return Err(value(
                format!("contains `{part}`"),
                "paths are compared in their normal form; remove it",
            ));
        }
    }
    if text.ends_with("/.") || text.ends_with("/..") {
        return Err(value("ends with a dot segment", "paths are compared in their normal form; remove it"));
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let valid = match byte {
            b'%' => {
                bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())
                    && bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())
            }
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !valid {
            let help = match byte {
                b'?' => "a path has no query",
                _ => "write other characters percent-encoded, like `%20`",
            };
            return Err(value("contains a character that a path cannot have", help));
        }
    }
    Ok(())
}

fn pattern(text: &str) -> Result<(), Refusal> {
    if text.chars().count() > 1024 {
        return Err(too_long("value", 1024));
    }
    if text.is_empty() {
        return Err(value("is empty", "write at least one character, or leave the field out"));
    }
    if text.contains(char::is_control) {
        return Err(value("contains a control character", "remove it"));
    }
    Ok(())
}

fn hostname(text: &str) -> Result<(), Refusal> {
    subdomain(text)?;
    // Kubernetes lets names of digits pass; an address is none.
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err(value("is an address", "write the name of a host"));
    }
    Ok(())
}

/// `[prefix/]name`, as labels and annotations have it.
fn metadata_key(text: &str) -> Result<(), Refusal> {
    match text.split_once('/') {
        Some((prefix, rest)) => subdomain(prefix).and_then(|()| qualified(rest, "key")),
        None => qualified(text, "key"),
    }
}

fn qualified(text: &str, what: &str) -> Result<(), Refusal> {
    if text.len() > 63 {
        return Err(too_long(what, 63));
    }
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if inner && outer(text.bytes().next()) && outer(text.bytes().last()) {
        return Ok(());
    }
    Err(name(
        format!("is not a valid {what}"),
        "use letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit",
    ))
}

#[cfg(test)]
mod tests;
