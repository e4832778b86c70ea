//! A compiled route table: which cluster a request goes to, with what timeouts and edits.
//!
//! The order given is the order of precedence, as in xDS. Host names are found by one hash of the lower-cased
//! authority, or not at all when the table has a single virtual host for `*`. Holds: a look-up does not allocate;
//! what is matched is the path as it is forwarded. Does not: know clusters by more than a number.

use std::ops::Range;
use std::time::Duration;

use hashbrown::HashMap;
use thiserror::Error;

use crate::http1::fields::is_token;
use crate::http1::{HeaderEdits, RequestHead};
use crate::reason::Reason;

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
    /// Weights that overflow 32 bits in sum.
    #[error("the weights of a route have a sum over {max}", max = u32::MAX)]
    Weights,
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

/// A condition on the path, compared byte for byte with the path as it is forwarded, query left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    Any,
    /// The whole path.
    Exact(Box<[u8]>),
    /// Its first bytes.
    Prefix(Box<[u8]>),
    /// Its first elements: `/a` matches `/a` and `/a/b`, not `/ab`. A `/` at the end does not count.
    ElementPrefix(Box<[u8]>),
}

impl PathMatch {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::ElementPrefix(prefix) => {
                let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
                path.strip_prefix(prefix).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            }
        }
    }
}

/// A condition on a header. Several lines of one name count as their values joined with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name in any case. `:method` and `:authority` stand for method and host.
    pub name: Box<str>,
    /// What its value must be.
    pub value: ValueMatch,
    /// The condition holds when this does not.
    pub invert: bool,
}

/// A condition on a header's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// The header is there.
    Present,
    /// Exactly this.
    Exact(Box<[u8]>),
    /// Starts with this.
    Prefix(Box<[u8]>),
}

impl HeaderMatch {
    /// `name: value`, exactly.
    pub fn exact(name: impl Into<Box<str>>, value: impl AsRef<[u8]>) -> Self {
        Self { name: name.into(), value: ValueMatch::Exact(value.as_ref().into()), invert: false }
    }

    fn matches(&self, head: &RequestHead, buf: &[u8]) -> bool {
        let held = match &*self.name {
            ":method" => self.value.holds(std::iter::once(head.method_bytes(buf))),
            ":authority" => self.value.holds(std::iter::once(head.authority(buf))),
            name => self.value.holds(head.values(buf, name.as_bytes())),
        };
        held != self.invert
    }
}

impl ValueMatch {
    fn holds<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        let Some(first) = values.next() else { return false };
        let (Self::Exact(wanted) | Self::Prefix(wanted)) = self else { return true };
        let is_prefix = matches!(self, Self::Prefix(_));
        let mut rest: &[u8] = wanted;
        let mut value = first;
        loop {
            if is_prefix && value.starts_with(rest) {
                return true;
            }
            match rest.strip_prefix(value) {
                None => return false,
                Some(after) => rest = after,
            }
            match values.next() {
                None => return rest.is_empty(),
                Some(next) => value = next,
            }
            if rest.is_empty() {
                return is_prefix;
            }
            let Some(after) = rest.strip_prefix(b",") else { return false };
            rest = after;
        }
    }
}

/// What a request must be; all parts must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Path.
    pub path: PathMatch,
    /// Method, exactly; `None` is any.
    pub method: Option<Box<str>>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self { path: PathMatch::Any, method: None, headers: Vec::new() }
    }
}

impl RouteMatch {
    fn matches(&self, head: &RequestHead, buf: &[u8]) -> bool {
        self.path.matches(head.path(buf))
            && self.method.as_ref().is_none_or(|method| method.as_bytes() == head.method_bytes(buf))
            && self.headers.iter().all(|header| header.matches(head, buf))
    }
}

/// Where a matching request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// To this cluster.
    Cluster(ClusterIndex),
    /// To one of these, in proportion to their weights. Without any weight above zero: `no_backends`.
    Weighted(Vec<(ClusterIndex, u32)>),
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
    /// Edits of the request's headers.
    pub request_headers: HeaderEdits,
    /// Edits of the response's headers.
    pub response_headers: HeaderEdits,
}

impl Route {
    /// Everything to one cluster, without limits or edits.
    pub fn to_cluster(name: impl Into<Box<str>>, cluster: ClusterIndex) -> Self {
        Self {
            name: name.into(),
            matches: RouteMatch::default(),
            action: RouteAction::Cluster(cluster),
            timeouts: RouteTimeouts::default(),
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
    pub fn find(&self, head: &RequestHead, buf: &[u8]) -> Result<&Route, Reason> {
        let host = self.host(head.authority(buf)).ok_or(Reason::NoRoute)?;
        let range = self.hosts.get(host as usize).cloned().unwrap_or_default();
        let routes = self.routes.get(range.start as usize..range.end as usize).unwrap_or_default();
        routes.iter().find(|route| route.matches.matches(head, buf)).ok_or(Reason::NoRoute)
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
    /// Where a request on this route goes; `random` is uniform over all of `u64`.
    ///
    /// # Errors
    /// [`Reason::NoBackends`] if there is nowhere to go.
    pub fn destination(&self, random: u64) -> Result<Destination<'_>, Reason> {
        match &self.action {
            RouteAction::Cluster(cluster) => Ok(Destination::Cluster(*cluster)),
            RouteAction::Direct(response) => Ok(Destination::Direct(response)),
            RouteAction::Weighted(clusters) => {
                let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
                // Multiply and shift: as uniform as `random`, without a division.
                let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
                for (cluster, weight) in clusters {
                    let weight = u64::from(*weight);
                    if point < weight {
                        return Ok(Destination::Cluster(*cluster));
                    }
                    point -= weight;
                }
                Err(Reason::NoBackends)
            }
        }
    }
}

fn check(route: &Route) -> Result<(), RouteTableError> {
    for header in &route.matches.headers {
        let name = &*header.name;
        if !matches!(name, ":method" | ":authority") && !is_token(name.as_bytes()) {
            return Err(RouteTableError::HeaderName(name.to_owned()));
        }
    }
    match &route.action {
        RouteAction::Weighted(clusters) => {
            let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
            if total > u64::from(u32::MAX) {
                return Err(RouteTableError::Weights);
            }
        }
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
