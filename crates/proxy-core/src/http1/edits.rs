//! Header edits of a route, compiled to what encoding needs: names to leave out and lines to append.
//!
//! Order of application is set, add, remove (Gateway API). Holds: an edit cannot touch framing or connection
//! fields, nor carry a line end, so no edit can change where a message ends.

use thiserror::Error;

use super::fields::{HeaderKind, is_token, is_value_byte};

/// An edit that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// Not a token.
    #[error("`{0}` is not a header name")]
    Name(String),
    /// A control byte in the value.
    #[error("the value for header `{0}` has a control byte")]
    Value(String),
    /// Framing and connection fields belong to the proxy.
    #[error("header `{0}` frames or routes the connection and cannot be edited")]
    Forbidden(String),
}

/// Compiled edits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    dropped: Box<[Box<[u8]>]>,
    appended: Box<[u8]>,
    sets_host: bool,
}

impl HeaderEdits {
    /// Compiles edits. Names keep the case they are written in.
    ///
    /// # Errors
    /// The first edit that is not a header, or not one that may be edited.
    pub fn new<'a, N, V>(
        set: impl IntoIterator<Item = (&'a N, &'a V)>,
        add: impl IntoIterator<Item = (&'a N, &'a V)>,
        remove: impl IntoIterator<Item = &'a N>,
    ) -> Result<Self, EditError>
    where
        N: AsRef<[u8]> + ?Sized + 'a,
        V: AsRef<[u8]> + ?Sized + 'a,
    {
        let mut dropped: Vec<Box<[u8]>> = Vec::new();
        let mut lines: Vec<(&[u8], &[u8])> = Vec::new();
        for (name, value) in set {
            let (name, value) =
                (check_name(name.as_ref(), true)?, check_value(name.as_ref(), value.as_ref())?);
            lines.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
            dropped.push(name.to_ascii_lowercase().into());
            lines.push((name, value));
        }
        for (name, value) in add {
            lines.push((check_name(name.as_ref(), false)?, check_value(name.as_ref(), value.as_ref())?));
        }
        for name in remove {
            let name = check_name(name.as_ref(), false)?;
            lines.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
            dropped.push(name.to_ascii_lowercase().into());
        }
        dropped.sort_unstable();
        dropped.dedup();
        let sets_host = lines.iter().any(|(name, _)| HeaderKind::of(name) == HeaderKind::Host);
        let mut appended = Vec::new();
        for (name, value) in lines {
            appended.extend_from_slice(name);
            appended.extend_from_slice(b": ");
            appended.extend_from_slice(value);
            appended.extend_from_slice(b"\r\n");
        }
        Ok(Self { dropped: dropped.into(), appended: appended.into(), sets_host })
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.appended.is_empty()
    }

    /// Whether lines of this name are left out.
    #[inline]
    pub fn drops(&self, name: &[u8]) -> bool {
        self.dropped.iter().any(|dropped| dropped.eq_ignore_ascii_case(name))
    }

    /// Complete lines to append, each with its CRLF.
    pub fn appended(&self) -> &[u8] {
        &self.appended
    }

    /// The same, as names and values.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let lines = self.appended.split(|&byte| byte == b'\n');
        lines.filter_map(|line| {
            let line = line.strip_suffix(b"\r")?;
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((&line[..colon], line.get(colon + 2..)?))
        })
    }

    /// Whether Host is replaced.
    pub const fn sets_host(&self) -> bool {
        self.sets_host
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Host may only be set: a request must have exactly one.
fn check_name(name: &[u8], set: bool) -> Result<&[u8], EditError> {
    if !is_token(name) {
        return Err(EditError::Name(text(name)));
    }
    match HeaderKind::of(name) {
        HeaderKind::Other | HeaderKind::Expect | HeaderKind::ProxyAuthentication => Ok(name),
        HeaderKind::Host if set => Ok(name),
        _ => Err(EditError::Forbidden(text(name))),
    }
}

fn check_value<'v>(name: &[u8], value: &'v [u8]) -> Result<&'v [u8], EditError> {
    let trimmed = value.trim_ascii();
    if trimmed.iter().all(|&b| is_value_byte(b)) { Ok(trimmed) } else { Err(EditError::Value(text(name))) }
}
