//! The request target.

use super::HeadError;
use crate::authority::is_host;
use crate::http1::fields::Span;

/// A request target taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Path and query as they go upstream. Empty for an absolute target without a path.
    pub(super) path_and_query: Span,
    /// Length of the path before `?`, in bytes.
    pub(super) path_len: u32,
    /// Authority of an absolute target.
    pub(super) authority: Option<Span>,
}

/// Takes the target apart. `options` is whether the method is OPTIONS.
pub(super) fn parse(buf: &[u8], span: Span, options: bool) -> Result<Target, HeadError> {
    let target = span.of(buf);
    match target.first() {
        Some(b'/') => origin(buf, span, None),
        Some(b'*') if target.len() == 1 && options => {
            Ok(Target { path_and_query: span, path_len: 1, authority: None })
        }
        _ => absolute(buf, span),
    }
}

fn origin(buf: &[u8], span: Span, authority: Option<Span>) -> Result<Target, HeadError> {
    let bytes = span.of(buf);
    let mut path_len = bytes.len();
    for (at, &b) in bytes.iter().enumerate() {
        match b {
            b'#' => return Err(HeadError::Fragment),
            b'?' if path_len == bytes.len() => path_len = at,
            _ => {}
        }
    }
    Ok(Target { path_and_query: span, path_len: path_len as u32, authority })
}

fn absolute(buf: &[u8], span: Span) -> Result<Target, HeadError> {
    let target = span.of(buf);
    let Some(colon) = target.iter().position(|&b| b == b':') else { return Err(HeadError::Target) };
    let (scheme, rest) = target.split_at(colon);
    if !scheme.iter().all(u8::is_ascii_alphanumeric) {
        return Err(HeadError::Target);
    }
    let Some(rest) = rest.strip_prefix(b"://") else { return Err(HeadError::Target) };
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(HeadError::AbsoluteTarget);
    }
    let length = rest.iter().position(|&b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(length);
    if authority.contains(&b'@') {
        return Err(HeadError::AbsoluteTarget);
    }
    if !is_host(authority) {
        return Err(HeadError::Target);
    }
    origin(buf, Span::within(buf, path), Some(Span::within(buf, authority)))
}
