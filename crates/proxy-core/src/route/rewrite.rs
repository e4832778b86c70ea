//! Other paths and hosts: rewriting on the way to the endpoint, and redirects.
//!
//! Holds: what configuration brings in are bytes that a path or a URI may have, and what it makes of a request's
//! bytes begins with `/` and has a limit, so nothing here can end a line. The query stays unless it is told to go.
//! Does not: decode or normalise.

use thiserror::Error;

use super::matches::PathMatch;
use super::pattern::Substitution;
use super::view::RequestView;
use crate::reason::Reason;

/// Longest path with query that a rewrite may make, in bytes: as much as a head may have.
pub const MAX_PATH: usize = 96 * 1024;

/// A rewrite that is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RewriteError {
    /// Does not begin with `/`, or has bytes that a path may not have.
    #[error("`{0}` is not a path")]
    Path(String),
    /// Bytes that a host may not have.
    #[error("`{0}` is not a host")]
    Host(String),
    /// Not `http` or `https`.
    #[error("`{0}` is not a scheme of HTTP")]
    Scheme(String),
    /// Not one of 301, 302, 303, 307 and 308.
    #[error("{0} is not a status for a redirect")]
    Status(u16),
}

/// What becomes of the path. The query is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathRewrite {
    /// Nothing.
    #[default]
    Keep,
    /// The part that was matched is replaced by this: the prefix, or the whole path of an exact match or an
    /// expression.
    Matched(Box<[u8]>),
    /// Every match of an expression is replaced.
    Pattern(Substitution),
}

impl PathRewrite {
    /// [`Self::Matched`].
    ///
    /// # Errors
    /// Not a path.
    pub fn matched(by: &str) -> Result<Self, RewriteError> {
        if by.starts_with('/') && is_path(by.as_bytes()) {
            Ok(Self::Matched(by.as_bytes().into()))
        } else {
            Err(RewriteError::Path(by.to_owned()))
        }
    }

    /// [`Self::Pattern`].
    ///
    /// # Errors
    /// It would bring in what a path may not have.
    pub fn pattern(by: Substitution) -> Result<Self, RewriteError> {
        if let Some(wrong) = by.literals().find(|literal| !is_path(literal)) {
            return Err(RewriteError::Path(String::from_utf8_lossy(wrong).into_owned()));
        }
        Ok(Self::Pattern(by))
    }

    /// Appends the path that `path` becomes; `matched` is what it was matched by.
    fn apply(&self, matched: &PathMatch, path: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
        let most = out.len() + MAX_PATH;
        match self {
            Self::Keep => out.extend_from_slice(path),
            // `OPTIONS *` is about no path.
            _ if path == b"*" => out.extend_from_slice(path),
            Self::Matched(by) => {
                out.extend_from_slice(by);
                out.extend_from_slice(path.get(matched.matched(path)..).unwrap_or_default());
            }
            Self::Pattern(substitution) => {
                let start = out.len();
                let fits = substitution.apply(path, out, most);
                if out.get(start) != Some(&b'/') {
                    out.insert(start, b'/');
                }
                if !fits {
                    return Err(Reason::HeaderTooLarge);
                }
            }
        }
        if out.len() > most { Err(Reason::HeaderTooLarge) } else { Ok(()) }
    }
}

/// What is changed of a request's target on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Path.
    pub path: PathRewrite,
    /// Host and port that replace those of the request.
    pub host: Option<Box<str>>,
}

impl Rewrite {
    /// With this host.
    ///
    /// # Errors
    /// Not a host.
    pub fn with_host(self, host: &str) -> Result<Self, RewriteError> {
        Ok(Self { host: Some(check_host(host)?), ..self })
    }

    /// Appends path and query as they go out. `false`: they go as they came, and nothing was appended.
    ///
    /// # Errors
    /// [`Reason::HeaderTooLarge`] beyond [`MAX_PATH`].
    pub fn target(
        &self,
        matched: &PathMatch,
        request: &impl RequestView,
        out: &mut Vec<u8>,
    ) -> Result<bool, Reason> {
        if self.path == PathRewrite::Keep {
            return Ok(false);
        }
        self.path.apply(matched, request.path(), out)?;
        append_query(request, out)?;
        Ok(true)
    }
}

fn append_query(request: &impl RequestView, out: &mut Vec<u8>) -> Result<(), Reason> {
    if let Some(query) = request.query() {
        if out.len() + query.len() > 2 * MAX_PATH {
            return Err(Reason::HeaderTooLarge);
        }
        out.push(b'?');
        out.extend_from_slice(query);
    }
    Ok(())
}

/// An answer that sends the caller elsewhere. What is `None` stays as in the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// Host, without port.
    pub host: Option<Box<str>>,
    /// Port. Without it a port in the request's host stays only while the host does, and goes as well if it is the
    /// usual one of a scheme that changes.
    pub port: Option<u16>,
    /// Path.
    pub path: RedirectPath,
    /// Leave the query out, unless [`RedirectPath::Full`] brings one.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// This path; with a query of its own the request's does not count.
    Full(Box<str>),
    /// As for endpoints.
    Rewrite(PathRewrite),
}

impl Default for RedirectPath {
    fn default() -> Self {
        Self::Rewrite(PathRewrite::Keep)
    }
}

impl Redirect {
    /// Checks what configuration says.
    ///
    /// # Errors
    /// The first part that is not what it should be.
    pub fn check(&self) -> Result<(), RewriteError> {
        if !matches!(self.status, 301 | 302 | 303 | 307 | 308) {
            return Err(RewriteError::Status(self.status));
        }
        if let Some(scheme) = &self.scheme
            && !matches!(&**scheme, "http" | "https")
        {
            return Err(RewriteError::Scheme(scheme.to_string()));
        }
        if let Some(host) = &self.host {
            check_host(host)?;
        }
        if let RedirectPath::Full(path) = &self.path
            && !(path.starts_with('/') && path.split('?').all(|part| is_path(part.as_bytes())))
        {
            return Err(RewriteError::Path(path.to_string()));
        }
        Ok(())
    }

    /// Appends the URI the caller is sent to.
    ///
    /// # Errors
    /// [`Reason::HeaderTooLarge`] beyond [`MAX_PATH`]; [`Reason::InvalidHost`] if neither this nor the request
    /// names a host.
    pub fn location(
        &self,
        matched: &PathMatch,
        request: &impl RequestView,
        out: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        let scheme = self.scheme.as_deref().map_or(request.scheme(), str::as_bytes);
        out.extend_from_slice(scheme);
        out.extend_from_slice(b"://");
        match &self.host {
            Some(host) => out.extend_from_slice(host.as_bytes()),
            None => {
                let authority = request.authority();
                let (host, port) = split_port(authority);
                if host.is_empty() {
                    return Err(Reason::InvalidHost);
                }
                let from = request.scheme();
                let usual: &[u8] = if from == b"https" { b"443" } else { b"80" };
                let drops = self.port.is_some() || (scheme != from && port == usual);
                out.extend_from_slice(if drops { host } else { authority });
            }
        }
        if let Some(port) = self.port {
            // Into a vector nothing can fail.
            let _ = std::io::Write::write_fmt(out, format_args!(":{port}"));
        }
        let mut own_query = false;
        match &self.path {
            RedirectPath::Full(path) => {
                own_query = path.contains('?');
                out.extend_from_slice(path.as_bytes());
            }
            RedirectPath::Rewrite(_) if request.path() == b"*" => out.push(b'/'),
            RedirectPath::Rewrite(rewrite) => rewrite.apply(matched, request.path(), out)?,
        }
        if own_query || self.strip_query { Ok(()) } else { append_query(request, out) }
    }
}

/// Host and port of an authority; the port is empty if there is none.
fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) if authority.iter().skip(colon + 1).all(u8::is_ascii_digit) => {
            (&authority[..colon], &authority[colon + 1..])
        }
        _ => (authority, b""),
    }
}

fn check_host(host: &str) -> Result<Box<str>, RewriteError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[]:".contains(&byte);
    if !host.is_empty() && host.len() <= 260 && host.bytes().all(allowed) {
        Ok(host.into())
    } else {
        Err(RewriteError::Host(host.to_owned()))
    }
}

/// Bytes that may be in a path: visible ASCII without what ends a path, and UTF-8 as it is.
fn is_path(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| matches!(byte, 0x21..=0x7e | 0x80..=0xff) && !matches!(byte, b'?' | b'#'))
}
