//! Where a request goes and what it becomes on its way: splits, rewrites, redirects, hash policies.

use outrider_proxy_core::fault::Share;
use outrider_proxy_core::route::{
    Backend, HashPolicy as CompiledPolicy, KeySource, Lifetime, Mirror, PathRewrite, Redirect, RedirectPath,
    Rewrite, Split, SplitBy, Substitution,
};
use outrider_xds_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use outrider_xds_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy,
};
use outrider_xds_types::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier,
};
use outrider_xds_types::pb::envoy::config::route::v3::{RedirectAction, RouteAction, WeightedCluster};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use super::matching::expression;
use crate::config::fields::{Refusal, duration, join, nothing_left};
use crate::config::{Slots, resilience};

/// Where copies go.
pub(super) fn mirror(
    mut policy: RequestMirrorPolicy,
    path: &str,
    slots: &mut Slots,
) -> Result<Mirror, Refusal> {
    let name = std::mem::take(&mut policy.cluster);
    if name.is_empty() {
        return Err(Refusal::new(join(path, "cluster"), "required"));
    }
    let share = match policy.runtime_fraction.take() {
        None => Share::ALL,
        given => resilience::runtime_share(given, &join(path, "runtime_fraction"))?,
    };
    let shadow_host = !std::mem::take(&mut policy.disable_shadow_host_suffix_append);
    // No traces are made here.
    policy.trace_sampled = None;
    nothing_left(&policy, path)?;
    Ok(Mirror { cluster: slots.of(&name), share, shadow_host })
}

/// Clusters with weights; `slot` numbers them.
pub(super) fn split(
    mut weighted: WeightedCluster,
    path: &str,
    mut slot: impl FnMut(&str) -> u32,
) -> Result<Split, Refusal> {
    let mut backends = Vec::new();
    for (n, mut one) in std::mem::take(&mut weighted.clusters).into_iter().enumerate() {
        let name = std::mem::take(&mut one.name);
        let weight = one.weight.take().map_or(0, |w| w.value);
        nothing_left::<ClusterWeight>(&one, &join(path, &format!("clusters[{n}]")))?;
        backends.push(Backend::new(&name, slot(&name), weight));
    }
    let by = match weighted.random_value_specifier.take() {
        None => SplitBy::Random,
        Some(RandomValueSpecifier::HeaderName(name)) if name.is_empty() => SplitBy::Random,
        // Envoy takes a number from there; here any value is a key.
        Some(RandomValueSpecifier::HeaderName(name)) => SplitBy::Header(name.into()),
        Some(RandomValueSpecifier::UseHashPolicy(yes)) if yes.value => SplitBy::HashPolicy,
        Some(RandomValueSpecifier::UseHashPolicy(_)) => SplitBy::Random,
    };
    nothing_left::<WeightedCluster>(&weighted, path)?;
    Split::new(backends, by).map_err(|e| Refusal::new(join(path, "clusters"), e.to_string()))
}

/// Takes rewrites of path and host out of an action.
pub(super) fn rewrite(action: &mut RouteAction, path: &str) -> Result<Rewrite, Refusal> {
    let prefix = std::mem::take(&mut action.prefix_rewrite);
    let rewritten = match (prefix.is_empty(), action.regex_rewrite.take()) {
        (true, None) => PathRewrite::Keep,
        (false, None) => matched(&prefix, &join(path, "prefix_rewrite"))?,
        (true, Some(regex)) => substitution(regex, &join(path, "regex_rewrite"))?,
        (false, Some(_)) => {
            return Err(Refusal::new(join(path, "regex_rewrite"), "prefix_rewrite is set as well"));
        }
    };
    let rewrite = Rewrite { path: rewritten, host: None };
    match action.host_rewrite_specifier.take() {
        None => Ok(rewrite),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => rewrite
            .with_host(&host)
            .map_err(|e| Refusal::new(join(path, "host_rewrite_literal"), e.to_string())),
        Some(_) => {
            Err(Refusal::new(join(path, "host_rewrite_specifier"), "only host_rewrite_literal is supported"))
        }
    }
}

fn matched(by: &str, path: &str) -> Result<PathRewrite, Refusal> {
    PathRewrite::matched(by).map_err(|e| Refusal::new(path, e.to_string()))
}

fn substitution(mut given: RegexMatchAndSubstitute, path: &str) -> Result<PathRewrite, Refusal> {
    let by = std::mem::take(&mut given.substitution);
    let text = expression(given.pattern.take().unwrap_or_default(), &join(path, "pattern"))?;
    nothing_left(&given, path)?;
    let compiled = Substitution::new(&text, &by).map_err(|e| Refusal::new(path, e.to_string()))?;
    PathRewrite::pattern(compiled).map_err(|e| Refusal::new(join(path, "substitution"), e.to_string()))
}

/// Reads a `RedirectAction`.
pub(super) fn redirect(mut given: RedirectAction, path: &str) -> Result<Redirect, Refusal> {
    let status = match RedirectResponseCode::try_from(std::mem::take(&mut given.response_code)) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return Err(Refusal::new(join(path, "response_code"), "unknown")),
    };
    let scheme = match given.scheme_rewrite_specifier.take() {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if scheme.is_empty() => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.to_ascii_lowercase().into()),
    };
    let host = Some(std::mem::take(&mut given.host_redirect)).filter(|host| !host.is_empty());
    let port = match std::mem::take(&mut given.port_redirect) {
        0 => None,
        port => {
            Some(u16::try_from(port).map_err(|_| Refusal::new(join(path, "port_redirect"), "not a port"))?)
        }
    };
    let target = match given.path_rewrite_specifier.take() {
        None => RedirectPath::default(),
        Some(PathRewriteSpecifier::PathRedirect(to)) => RedirectPath::Full(to.into()),
        Some(PathRewriteSpecifier::PrefixRewrite(by)) => {
            RedirectPath::Rewrite(matched(&by, &join(path, "prefix_rewrite"))?)
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            RedirectPath::Rewrite(substitution(regex, &join(path, "regex_rewrite"))?)
        }
        Some(_) => return Err(Refusal::new(join(path, "path_rewrite_specifier"), "not supported")),
    };
    let strip_query = std::mem::take(&mut given.strip_query);
    nothing_left(&given, path)?;
    let redirect = Redirect { status, scheme, host: host.map(Into::into), port, path: target, strip_query };
    redirect.check().map_err(|e| Refusal::new(path, e.to_string()))?;
    Ok(redirect)
}

/// Reads hash policies.
pub(super) fn hash_policies(given: Vec<HashPolicy>, path: &str) -> Result<Vec<CompiledPolicy>, Refusal> {
    given
        .into_iter()
        .enumerate()
        .map(|(n, policy)| hash_policy(policy, &join(path, &format!("hash_policy[{n}]"))))
        .collect()
}

fn hash_policy(mut given: HashPolicy, path: &str) -> Result<CompiledPolicy, Refusal> {
    let terminal = std::mem::take(&mut given.terminal);
    let source = match given.policy_specifier.take() {
        Some(PolicySpecifier::Header(mut header)) => {
            let name = std::mem::take(&mut header.header_name);
            nothing_left(&header, &join(path, "header"))?;
            KeySource::Header(name.into())
        }
        Some(PolicySpecifier::Cookie(mut cookie)) => {
            let name = std::mem::take(&mut cookie.name);
            let path = join(path, "cookie");
            let ttl = duration(cookie.ttl.take(), &join(&path, "ttl"))?;
            // Without a `ttl` none is made, and a path is of one that is made.
            let own = std::mem::take(&mut cookie.path);
            nothing_left(&cookie, &path)?;
            let life = ttl.map(|ttl| Lifetime { max_age: ttl.as_secs(), path: own.into() });
            KeySource::Cookie(name.into(), life)
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            KeySource::SourceAddress
        }
        Some(PolicySpecifier::QueryParameter(parameter)) => KeySource::Query(parameter.name.into()),
        _ => return Err(Refusal::new(join(path, "policy_specifier"), "not supported, or missing")),
    };
    nothing_left(&given, path)?;
    Ok(CompiledPolicy { source, terminal })
}
