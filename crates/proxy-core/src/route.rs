//! A compiled route table: which cluster a request goes to, with what timeouts and edits.
//!
//! The order given is the order of precedence, as in xDS. Host names are found by one hash of the lower-cased
//! authority, or not at all when the table has a single virtual host for `*`. Holds: a look-up does not allocate;
//! what is matched is the path as it is forwarded. Does not: know clusters by more than a number.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use thiserror::Error;

use crate::fault::{Fault, Share};
use crate::http1::HeaderEdits;
use crate::http1::fields::is_token;
use crate::limit::RateLimit;
use crate::reason::Reason;
use crate::retry::RetryPolicy;

mod key;
mod matches;
mod pattern;
mod rewrite;
mod split;
mod view;

pub use key::{HashPolicy, KeySource, Lifetime, Made, address_key};
pub use matches::{HeaderMatch, Part, PathMatch, QueryMatch, RouteMatch, ValueMatch};
pub use pattern::{MAX_PATTERN, MAX_PROGRAM, Pattern, PatternError, Substitution};
pub use rewrite::{MAX_PATH, PathRewrite, Redirect, RedirectPath, Rewrite, RewriteError};
pub use split::{Backend, MAX_BACKENDS, Split, SplitBy};
pub use view::{Http1View, RequestView};

/// The place of a cluster in the caller's table.
pub type ClusterIndex = u32;

/// A table that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteTableError {
    /// Two virtual hosts with one domain.
    #[error("the domain `{0}` belongs to two virtual hosts")]
    DuplicateDomain(String),
    /// `*` in the middle, or nothing.
    #[error("`{0}` is not a domain: only a whole `*`, a leading `*` or a trailing `*` is a wildcard")]
    Domain(String),
    /// Not a header name.
    #[error("`{0}` is not a header name")]
    HeaderName(String),
    /// A cookie with a name or path that cannot be.
    #[error("`{0}` is not a cookie that can be made")]
    Cookie(String),
    /// Weights that overflow 32 bits in sum.
    #[error("the weights of a route have a sum over {max}", max = u32::MAX)]
    Weights,
    /// More clusters than [`MAX_BACKENDS`] in one split.
    #[error("{0} clusters with weights; at most {MAX_BACKENDS} are supported")]
    Backends(usize),
    /// A redirect that is not one.
    #[error(transparent)]
    Redirect(#[from] RewriteError),
    /// Status outside 200–599.
    #[error("{0} is not a status for a direct response")]
    Status(u16),
}

/// A named set of domains with their routes.
#[derive(Clone, Debug, Default)]
pub struct VirtualHost {
    /// `*`, exact, `*.suffix` or `prefix.*`; case does not matter. A port is part of a domain unless the table
    /// ignores ports.
    pub domains: Vec<String>,
    /// In order of precedence.
    pub routes: Vec<Route>,
}

/// Where a matching request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// To this cluster.
    Cluster(ClusterIndex),
    /// To one of these, in proportion to their weights. Without any weight above zero: `no_backends`.
    Weighted(Split),
    /// The caller is sent elsewhere.
    Redirect(Redirect),
    /// Answered by the proxy.
    Direct(DirectResponse),
}

/// An answer that is configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status, 200–599.
    pub status: u16,
    /// Body.
    pub body: Box<[u8]>,
    /// The reason it stands for: usually [`Reason::DirectResponse`], or [`Reason::UnknownService`] and the like
    /// when the control plane says so.
    pub reason: Reason,
}

/// Time limits of a route; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the end of the request until the response head.
    pub response_head: Option<Duration>,
    /// From the start of the request until the end of the response.
    pub total: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
}

impl RouteTimeouts {
    /// What the limit is called that a failure of this reason is about, and the limit.
    pub fn about(&self, reason: Reason) -> Option<(&'static str, Duration)> {
        let (name, limit) = match reason {
            // With a limit of the whole beside it, it is one of each try.
            Reason::RequestTimeout if self.total.is_some() => ("limit of one try", self.response_head),
            Reason::RequestTimeout => ("limit", self.response_head),
            Reason::TotalTimeout => ("limit", self.total),
            Reason::IdleTimeout => ("limit", self.idle),
            _ => return None,
        };
        Some((name, limit?))
    }
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, for explanations and logs.
    pub name: Box<str>,
    /// Condition.
    pub matches: RouteMatch,
    /// Destination.
    pub action: RouteAction,
    /// Time limits.
    pub timeouts: RouteTimeouts,
    /// Changes of the request's path and host.
    pub rewrite: Rewrite,
    /// What a request is hashed by, for policies that send one key to one endpoint.
    pub hash: Vec<HashPolicy>,
    /// How requests are sent again.
    pub retry: RetryPolicy,
    /// Faults on purpose; none takes the listener's.
    pub fault: Option<Arc<Fault>>,
    /// Limit of its requests; none takes the listener's.
    pub limit: Option<Arc<RateLimit>>,
    /// Where copies of its requests go.
    pub mirrors: Box<[Mirror]>,
    /// Edits of the request's headers.
    pub request_headers: HeaderEdits,
    /// Edits of the response's headers.
    pub response_headers: HeaderEdits,
}

/// Where copies of requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// To this cluster.
    pub cluster: ClusterIndex,
    /// So many of them.
    pub share: Share,
    /// Their host ends with `-shadow`.
    pub shadow_host: bool,
}

impl Route {
    /// Whether requests go on as something else than they came as, beyond what every proxy adds and takes away.
    pub fn changes_requests(&self) -> bool {
        self.rewrite != Rewrite::default() || !self.request_headers.is_empty()
    }

    /// Everything to one cluster, without limits or edits.
    pub fn to_cluster(name: impl Into<Box<str>>, cluster: ClusterIndex) -> Self {
        Self {
            name: name.into(),
            matches: RouteMatch::default(),
            action: RouteAction::Cluster(cluster),
            timeouts: RouteTimeouts::default(),
            rewrite: Rewrite::default(),
            hash: Vec::new(),
            retry: RetryPolicy::default(),
            fault: None,
            limit: None,
            mirrors: Box::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'t> {
    /// To this cluster.
    Cluster(ClusterIndex),
    /// Answered by the proxy.
    Direct(&'t DirectResponse),
    /// Answered by the proxy with where to go.
    Redirect(&'t Redirect),
}

/// Longest authority that is looked up by name; a longer one only matches `*`. DNS names end at 253 bytes.
const MAX_AUTHORITY: usize = 264;

type Names = HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>;

/// A compiled table.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    hosts: Vec<Range<u32>>,
    exact: Names,
    /// `*.suffix` without its star, longest first.
    suffixes: Vec<(Box<[u8]>, u32)>,
    /// `prefix.*` without its star, longest first.
    prefixes: Vec<(Box<[u8]>, u32)>,
    any: Option<u32>,
    ignore_port: bool,
}

impl RouteTable {
    /// Compiles a table. With `ignore_port`, `:port` of a request's host is left out before comparing.
    ///
    /// # Errors
    /// The first part that cannot be honoured.
    pub fn new(hosts: Vec<VirtualHost>, ignore_port: bool) -> Result<Self, RouteTableError> {
        let mut table = Self { ignore_port, ..Self::default() };
        for (index, host) in hosts.into_iter().enumerate() {
            let index = index as u32;
            for domain in &host.domains {
                table.add_domain(domain, index)?;
            }
            let start = table.routes.len() as u32;
            for route in host.routes {
                check(&route)?;
                table.routes.push(route);
            }
            table.hosts.push(start..table.routes.len() as u32);
        }
        let longest_first = |names: &mut Vec<(Box<[u8]>, u32)>| {
            names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        };
        longest_first(&mut table.suffixes);
        longest_first(&mut table.prefixes);
        Ok(table)
    }

    fn add_domain(&mut self, domain: &str, host: u32) -> Result<(), RouteTableError> {
        let duplicate = || RouteTableError::DuplicateDomain(domain.to_owned());
        let name: Box<[u8]> = domain.as_bytes().to_ascii_lowercase().into();
        let stars = name.iter().filter(|&&b| b == b'*').count();
        match &*name {
            b"*" => {
                if self.any.replace(host).is_some() {
                    return Err(duplicate());
                }
            }
            [b'*', rest @ ..] if stars == 1 => {
                add_affix(&mut self.suffixes, rest, host).ok_or_else(duplicate)?
            }
            [rest @ .., b'*'] if stars == 1 => {
                add_affix(&mut self.prefixes, rest, host).ok_or_else(duplicate)?
            }
            [_, ..] if stars == 0 => {
                if self.exact.insert(name, host).is_some() {
                    return Err(duplicate());
                }
            }
            _ => return Err(RouteTableError::Domain(domain.to_owned())),
        }
        Ok(())
    }

    /// The first route that matches.
    ///
    /// # Errors
    /// [`Reason::NoRoute`].
    pub fn find(&self, request: &impl RequestView) -> Result<&Route, Reason> {
        let host = self.host(request.authority()).ok_or(Reason::NoRoute)?;
        let range = self.hosts.get(host as usize).cloned().unwrap_or_default();
        let routes = self.routes.get(range.start as usize..range.end as usize).unwrap_or_default();
        routes.iter().find(|route| route.matches.matches(request)).ok_or(Reason::NoRoute)
    }

    fn host(&self, authority: &[u8]) -> Option<u32> {
        let only_any = self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty();
        if only_any || authority.len() > MAX_AUTHORITY {
            return self.any;
        }
        let mut storage = [0; MAX_AUTHORITY];
        let name = storage.get_mut(..authority.len())?;
        name.copy_from_slice(authority);
        name.make_ascii_lowercase();
        let name = if self.ignore_port { without_port(name) } else { name };
        self.exact
            .get(name)
            .or_else(|| affix(&self.suffixes, |suffix| name.ends_with(suffix), name))
            .or_else(|| affix(&self.prefixes, |prefix| name.starts_with(prefix), name))
            .copied()
            .or(self.any)
    }

    /// All routes, in the order given.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

impl Route {
    /// Whether [`Self::key`] looks at where the caller connected from.
    pub fn asks_for_source(&self) -> bool {
        self.hash.iter().any(|policy| policy.source == KeySource::SourceAddress)
    }

    /// What a request on this route is hashed by, and the cookie that was made of `random` for it, if one was missing:
    /// [`Self::set_cookie`] goes into the response then. `from` is where the caller connected from.
    pub fn key(
        &self,
        request: &impl RequestView,
        from: Option<IpAddr>,
        random: u64,
    ) -> (Option<u64>, Option<Made>) {
        key::key(&self.hash, request, from, random)
    }

    /// Appends the header line, with its CRLF, that gives a caller the cookie made for its request.
    pub fn set_cookie(&self, made: Made, out: &mut Vec<u8>) {
        key::set_cookie(&self.hash, made, out);
    }

    /// Where a request on this route goes. `key` is its [`Self::key`]; `random` is uniform over all of `u64`.
    ///
    /// # Errors
    /// [`Reason::NoBackends`] if there is nowhere to go.
    pub fn destination(
        &self,
        request: &impl RequestView,
        key: Option<u64>,
        random: u64,
    ) -> Result<Destination<'_>, Reason> {
        match &self.action {
            RouteAction::Cluster(cluster) => Ok(Destination::Cluster(*cluster)),
            RouteAction::Direct(response) => Ok(Destination::Direct(response)),
            RouteAction::Redirect(redirect) => Ok(Destination::Redirect(redirect)),
            RouteAction::Weighted(split) => {
                let key = match &split.by {
                    SplitBy::Random => None,
                    SplitBy::Header(name) => key::header_key(request, name),
                    SplitBy::HashPolicy => key,
                };
                split.pick(key, random).map(Destination::Cluster).ok_or(Reason::NoBackends)
            }
        }
    }
}

fn check(route: &Route) -> Result<(), RouteTableError> {
    for header in &route.matches.headers {
        let name = &*header.name;
        if !matches!(name, ":method" | ":scheme" | ":authority" | ":path") && !is_token(name.as_bytes()) {
            return Err(RouteTableError::HeaderName(name.to_owned()));
        }
    }
    for policy in &route.hash {
        if let KeySource::Cookie(name, life) = &policy.source
            && !key::is_cookie(name, life.as_ref().map_or("", |life| &life.path))
        {
            return Err(RouteTableError::Cookie(name.to_string()));
        }
    }
    match &route.action {
        RouteAction::Redirect(redirect) => redirect.check()?,
        RouteAction::Direct(response) if !(200..600).contains(&response.status) => {
            return Err(RouteTableError::Status(response.status));
        }
        _ => {}
    }
    Ok(())
}

fn add_affix(names: &mut Vec<(Box<[u8]>, u32)>, name: &[u8], host: u32) -> Option<()> {
    if names.iter().any(|(other, _)| **other == *name) {
        return None;
    }
    names.push((name.into(), host));
    Some(())
}

/// A wildcard stands for at least one byte.
fn affix<'t>(names: &'t [(Box<[u8]>, u32)], matches: impl Fn(&[u8]) -> bool, name: &[u8]) -> Option<&'t u32> {
    names.iter().find(|(affix, _)| affix.len() < name.len() && matches(affix)).map(|(_, host)| host)
}

/// `host` of `host:port`; brackets of an IPv6 address stay.
fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|&b| b == b':') {
        Some(colon) if authority[colon..].iter().skip(1).all(u8::is_ascii_digit) => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
