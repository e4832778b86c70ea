//! Filters of a rule.

use crate::diagnostic::Code;
use crate::model::{HeaderEdits, Mirror, PathChange, Redirect, Rewrite};
use crate::wire::{
    BackendRefSpec, FilterKind, FilterSpec, HeaderModifier, HeaderSpec, MirrorSpec, PathModifier,
    PathModifierKind, RedirectSpec, RewriteSpec, Scheme,
};

use super::{Family, Walk};

/// Headers that belong to the connection, to the framing of the message or to the proxy: changing them would change
/// where a message ends, which host it is for, or who vouches for its caller. Underscores count as hyphens, because
/// applications that see fields as variables cannot tell them apart; the native proxy refuses such edits.
const RESERVED_HEADERS: [&str; 12] = [
    "host",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-outrider-reason",
    "x-outrider-unprocessed",
];

/// Statuses of redirects.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// What the filters of a rule say together.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) request_headers: HeaderEdits,
    pub(super) response_headers: HeaderEdits,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) mirrors: Vec<Mirror>,
}

impl Walk<'_> {
    /// `prefix`: the rule matches one prefix, so that there is something to replace it in.
    pub(super) fn filters(
        &mut self,
        rule: &str,
        written: Option<&[FilterSpec]>,
        prefix: bool,
        backends: Option<&[BackendRefSpec]>,
    ) -> Filters {
        let mut all = Filters::default();
        let mut seen: Vec<(FilterKind, usize)> = Vec::new();
        for (index, filter) in written.unwrap_or_default().iter().enumerate() {
            let path = format!("{rule}/filters/{index}");
            if !self.is_of_its_type(&path, filter) {
                continue;
            }
            let first = seen.iter().find(|(kind, _)| *kind == filter.kind).map(|(_, first)| *first);
            // Several mirrors are several copies; of anything else the order would decide.
            if let Some(first) = first.filter(|_| filter.kind != FilterKind::RequestMirror) {
                let first = format!("{rule}/filters/{first}/type");
                let message = "a filter of this type is here a second time in the rule";
                self.repeated(&format!("{path}/type"), &first, message);
                continue;
            }
            seen.push((filter.kind, index));
            let own = format!("{path}/{}", filter.kind.field());
            match filter.kind {
                FilterKind::RequestHeaderModifier => {
                    let modifier = filter.request_header_modifier.as_ref();
                    all.request_headers = modifier.map(|spec| self.edits(&own, spec)).unwrap_or_default();
                }
                FilterKind::ResponseHeaderModifier => {
                    let modifier = filter.response_header_modifier.as_ref();
                    all.response_headers = modifier.map(|spec| self.edits(&own, spec)).unwrap_or_default();
                }
                FilterKind::RequestRedirect => {
                    let redirect = filter.request_redirect.as_ref();
                    all.redirect = redirect.map(|spec| self.redirect(&own, spec, prefix));
                }
                FilterKind::UrlRewrite => {
                    let rewrite = filter.url_rewrite.as_ref();
                    all.rewrite = rewrite.map(|spec| self.rewrite(&own, spec, prefix));
                }
                FilterKind::RequestMirror => {
                    let mirror = filter.request_mirror.as_ref();
                    all.mirrors.extend(mirror.and_then(|spec| self.mirror(&own, spec)));
                }
            }
        }
        let at = |kind| seen.iter().find(|(found, _)| *found == kind).map(|(_, index)| *index);
        if let Some(redirect) = at(FilterKind::RequestRedirect) {
            let here = format!("{rule}/filters/{redirect}/type");
            if let Some(other) = at(FilterKind::UrlRewrite).or(at(FilterKind::RequestMirror)) {
                let message =
                    "a request that is redirected is not sent on, so nothing of it can be changed or copied";
                let help = "put the two in rules of their own";
                self.error(Code::InvalidValue, &format!("{rule}/filters/{other}/type"), message, help);
            }
            if backends.is_some_and(|backends| !backends.is_empty()) {
                let message = "a rule that redirects has no backends";
                self.error(Code::InvalidValue, &here, message, "remove `backendRefs`, or the redirect");
            }
        }
        all
    }

    /// Whether a filter has the field of its type and no other; a finding if not.
    fn is_of_its_type(&mut self, path: &str, filter: &FilterSpec) -> bool {
        let kinds = [
            (FilterKind::RequestHeaderModifier, filter.request_header_modifier.is_some()),
            (FilterKind::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
            (FilterKind::RequestRedirect, filter.request_redirect.is_some()),
            (FilterKind::UrlRewrite, filter.url_rewrite.is_some()),
            (FilterKind::RequestMirror, filter.request_mirror.is_some()),
        ];
        let mut fits = true;
        for (kind, _) in kinds.iter().filter(|(kind, there)| *there && *kind != filter.kind) {
            let message = format!("`{}` does not belong to a filter of this type", kind.field());
            let help = "write one filter for each type";
            self.error(Code::InvalidValue, &format!("{path}/{}", kind.field()), message, help);
        }
        if !kinds.iter().any(|(kind, there)| *there && *kind == filter.kind) {
            let own = filter.kind.field();
            let message = format!("the filter lacks the field `{own}`");
            self.error(Code::MissingField, &format!("{path}/type"), message, format!("add `{own}`"));
            fits = false;
        }
        let of_paths = matches!(filter.kind, FilterKind::RequestRedirect | FilterKind::UrlRewrite);
        if self.family == Family::Grpc && of_paths {
            let message = "a gRPC route cannot change or redirect what is called";
            let help = "the address of a gRPC call is its method; use an HTTPRoute on an `http2` port";
            self.error(Code::InvalidValue, &format!("{path}/type"), message, help);
            fits = false;
        }
        fits
    }

    fn path_change(&mut self, path: &str, spec: &PathModifier, prefix: bool) -> Option<PathChange> {
        let (own, value, other, there) = match spec.kind {
            PathModifierKind::ReplaceFullPath => (
                "replaceFullPath",
                spec.replace_full_path.as_ref().map(|text| PathChange::Full(text.0.clone())),
                "replacePrefixMatch",
                spec.replace_prefix_match.is_some(),
            ),
            PathModifierKind::ReplacePrefixMatch => (
                "replacePrefixMatch",
                spec.replace_prefix_match
                    .as_ref()
                    .map(|text| PathChange::Prefix(text.0.trim_end_matches('/').to_owned())),
                "replaceFullPath",
                spec.replace_full_path.is_some(),
            ),
        };
        if there {
            let message = format!("`{other}` does not belong to a change of this type");
            self.error(Code::InvalidValue, &format!("{path}/{other}"), message, format!("write `{own}`"));
        }
        if value.is_none() {
            let message = format!("the change lacks the field `{own}`");
            self.error(Code::MissingField, &format!("{path}/type"), message, format!("add `{own}`"));
        }
        if spec.kind == PathModifierKind::ReplacePrefixMatch && !prefix {
            let message =
                "a prefix can be replaced only in a rule with one match, and that of type `PathPrefix`";
            let help = "split the rule, or use `ReplaceFullPath`";
            self.error(Code::InvalidValue, &format!("{path}/type"), message, help);
        }
        value
    }

    fn redirect(&mut self, path: &str, spec: &RedirectSpec, prefix: bool) -> Redirect {
        let status = spec.status_code.unwrap_or(302);
        if !REDIRECTS.contains(&status) {
            let message = format!("{status} is no status of a redirect");
            let help = "use 301, 302, 303, 307 or 308";
            self.error(Code::UnknownValue, &format!("{path}/statusCode"), message, help);
        }
        let scheme = spec.scheme.map(|scheme| match scheme {
            Scheme::Http => "http".to_owned(),
            Scheme::Https => "https".to_owned(),
        });
        let change = spec.path.as_ref();
        Redirect {
            scheme,
            hostname: spec.hostname.as_ref().map(|name| name.0.clone()),
            path: change.and_then(|spec| self.path_change(&format!("{path}/path"), spec, prefix)),
            port: spec.port,
            status,
        }
    }

    fn rewrite(&mut self, path: &str, spec: &RewriteSpec, prefix: bool) -> Rewrite {
        let change = spec.path.as_ref();
        Rewrite {
            hostname: spec.hostname.as_ref().map(|name| name.0.clone()),
            path: change.and_then(|spec| self.path_change(&format!("{path}/path"), spec, prefix)),
        }
    }

    fn mirror(&mut self, path: &str, spec: &MirrorSpec) -> Option<Mirror> {
        let backend = &spec.backend_ref;
        let at = format!("{path}/backendRef");
        let target = self.target(&at, backend.namespace.as_ref(), &backend.name.0, backend.port);
        let per_million = match (spec.percent, spec.fraction) {
            (Some(_), Some(_)) => {
                let message = "`percent` and `fraction` say the same";
                self.error(Code::InvalidValue, &format!("{path}/fraction"), message, "remove one of the two");
                return None;
            }
            (Some(percent), None) => percent * 10_000,
            (None, Some(fraction)) => {
                let whole = fraction.denominator.unwrap_or(100);
                if fraction.numerator > whole {
                    let message = "the numerator is larger than the denominator";
                    let help = "a share is at most 1";
                    self.error(Code::OutOfBounds, &format!("{path}/fraction/numerator"), message, help);
                }
                let share = u64::from(fraction.numerator) * 1_000_000 / u64::from(whole.max(1));
                u32::try_from(share).unwrap_or(1_000_000)
            }
            (None, None) => 1_000_000,
        };
        let (service, port) = target?;
        Some(Mirror { service, port, per_million })
    }

    fn edits(&mut self, path: &str, modifier: &HeaderModifier) -> HeaderEdits {
        let mut list = |part: &str, headers: Option<&[HeaderSpec]>| {
            let mut known: Vec<(String, String)> = Vec::new();
            for (index, header) in headers.unwrap_or_default().iter().enumerate() {
                let name = header.name.0.to_ascii_lowercase();
                self.editable(&format!("{path}/{part}/{index}/name"), &name);
                if let Some(first) = known.iter().position(|(known, _)| *known == name) {
                    self.repeated(
                        &format!("{path}/{part}/{index}/name"),
                        &format!("{path}/{part}/{first}/name"),
                        format!("the header `{name}` is here a second time"),
                    );
                }
                known.push((name, header.value.0.clone()));
            }
            known
        };
        let set = list("set", modifier.set.as_deref());
        let add = list("add", modifier.add.as_deref());
        let mut remove: Vec<String> = Vec::new();
        for (index, header) in modifier.remove.as_deref().unwrap_or_default().iter().enumerate() {
            let name = header.0.to_ascii_lowercase();
            let here = format!("{path}/remove/{index}");
            self.editable(&here, &name);
            if let Some(first) = remove.iter().position(|known| *known == name) {
                let first = format!("{path}/remove/{first}");
                self.repeated(&here, &first, format!("the header `{name}` is here a second time"));
            }
            remove.push(name);
        }
        HeaderEdits { set, add, remove }
    }

    fn editable(&mut self, path: &str, name: &str) {
        if RESERVED_HEADERS.contains(&&*name.replace('_', "-")) {
            let message = format!("the header `{name}` cannot be changed by a route");
            let help = "it belongs to the connection, to the message's framing or to the proxy; remove it";
            self.error(Code::InvalidValue, path, message, help);
        }
    }
}
