//! Who may call and ask for what: RBAC filters, in their order.
//!
//! A list that only says which callers are let in at all becomes an [`AccessPolicy`], which costs a request one look-up;
//! whatever else filters say becomes [`Rules`]. Holds: filters decide in the order given, a filter's audit before what it
//! enforces, as in Envoy.

use std::sync::Arc;

use outrider_proxy_core::access::{AccessPolicy, Callers, Effect, Permission, Rule, RuleList, Rules};
use outrider_xds_types::pb::envoy::config::rbac::v3::permission::{Rule as PbRule, Set};
use outrider_xds_types::pb::envoy::config::rbac::v3::{
    Permission as PbPermission, Policy, Principal, Rbac, principal::Authenticated, principal::Identifier,
    rbac::Action,
};
use outrider_xds_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use outrider_xds_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use outrider_xds_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;

use super::cluster::exact;
use super::fields::{Refusal, join, nothing_left};
use super::route::matching::{header_match, value};

/// Most RBAC filters of one service. What is compiled has up to four.
const MAX_FILTERS: usize = 16;
/// Most rules of one of them.
const MAX_RULES: usize = 10_000;
/// Most callers that all rules of one service name, each rule's counted. What is compiled lists all declared callers in
/// every `allow` rule without callers, in 64 rules of a policy, and again for audits.
const MAX_CALLERS: usize = 2_000_000;

/// What the filters that were read say so far.
#[derive(Default)]
pub struct Access {
    callers: Option<AccessPolicy>,
    lists: Vec<RuleList>,
    filters: usize,
    named: usize,
}

impl Access {
    /// Reads the filter of a port of requests.
    ///
    /// # Errors
    /// What cannot be honoured.
    pub fn http(&mut self, mut filter: HttpRbac, path: &str) -> Result<(), Refusal> {
        filter.rules_stat_prefix.clear();
        filter.shadow_rules_stat_prefix.clear();
        // What would be denied is counted by policy anyway.
        filter.track_per_rule_stats = false;
        let (shadow, rules) = (filter.shadow_rules.take(), filter.rules.take());
        nothing_left(&filter, path)?;
        self.filter(shadow, rules, true, path)
    }

    /// Reads the filter of a port of bytes.
    ///
    /// # Errors
    /// What cannot be honoured.
    pub fn network(&mut self, mut filter: NetworkRbac, path: &str) -> Result<(), Refusal> {
        filter.stat_prefix.clear();
        filter.shadow_rules_stat_prefix.clear();
        let (shadow, rules) = (filter.shadow_rules.take(), filter.rules.take());
        nothing_left(&filter, path)?;
        self.filter(shadow, rules, false, path)
    }

    fn filter(
        &mut self,
        shadow: Option<Rbac>,
        rules: Option<Rbac>,
        requests: bool,
        path: &str,
    ) -> Result<(), Refusal> {
        self.filters += 1;
        if self.filters > MAX_FILTERS {
            return Err(Refusal::new(path, format!("more than {MAX_FILTERS} filters of this kind")));
        }
        // A filter without rules enforces nothing.
        for (rules, audit, field) in [(shadow, true, "shadow_rules"), (rules, false, "rules")] {
            if let Some(rules) = rules {
                let list = list(rules, audit, requests, &join(path, field))?;
                self.named += list.rules.iter().map(|rule| rule.callers.ids.len()).sum::<usize>();
                if self.named > MAX_CALLERS {
                    let cause = format!("more than {MAX_CALLERS} callers in the rules of one service");
                    return Err(Refusal::new(join(path, field), cause));
                }
                self.take(list);
            }
        }
        Ok(())
    }

    fn take(&mut self, list: RuleList) {
        let simple = !list.audit
            && list.effect == Effect::Allow
            && list.rules.iter().all(|rule| rule.permission.is_any());
        // It may decide before lists that enforce, but an audit must not hear of less.
        if simple && self.callers.is_none() && !self.lists.iter().any(|list| list.audit) {
            self.callers = Some(callers_of(list));
        } else {
            self.lists.push(list);
        }
    }

    /// What all of them say: who may call at all, and what else is asked.
    pub fn finish(self) -> (AccessPolicy, Option<Arc<Rules>>) {
        let rules = (!self.lists.is_empty()).then(|| Arc::new(Rules::new(self.lists)));
        (self.callers.unwrap_or_else(|| AccessPolicy::AllowAll), rules)
    }
}

fn callers_of(list: RuleList) -> AccessPolicy {
    let mut all = Callers::default();
    for Rule { callers, .. } in list.rules {
        all.everybody |= callers.everybody;
        all.authenticated |= callers.authenticated;
        all.ids.extend(callers.ids);
    }
    if all.everybody {
        AccessPolicy::AllowAll
    } else if all.authenticated {
        AccessPolicy::AnyAuthenticated
    } else {
        AccessPolicy::allow(all.ids)
    }
}

fn list(mut given: Rbac, audit: bool, requests: bool, path: &str) -> Result<RuleList, Refusal> {
    let effect = match Action::try_from(std::mem::take(&mut given.action)) {
        Ok(Action::Allow) => Effect::Allow,
        Ok(Action::Deny) => Effect::Deny,
        Ok(Action::Log) | Err(_) => {
            return Err(Refusal::new(join(path, "action"), "only ALLOW and DENY are supported"));
        }
    };
    let policies = std::mem::take(&mut given.policies);
    nothing_left(&given, path)?;
    if policies.len() > MAX_RULES {
        return Err(Refusal::new(join(path, "policies"), format!("more than {MAX_RULES}")));
    }
    let mut rules = Vec::with_capacity(policies.len());
    for (name, policy) in policies {
        let path = join(path, &format!("policies[{name}]"));
        rules.push(rule(name, policy, requests, &path)?);
    }
    Ok(RuleList { effect, audit, rules })
}

fn rule(name: String, mut policy: Policy, requests: bool, path: &str) -> Result<Rule, Refusal> {
    let mut callers = Callers::default();
    for principal in std::mem::take(&mut policy.principals) {
        who(principal, &join(path, "principals"), &mut callers)?;
    }
    let permission = any_of(std::mem::take(&mut policy.permissions), &join(path, "permissions"))?;
    if !requests && !permission.is_any() {
        let cause = "only `any` is supported where bytes are served";
        return Err(Refusal::new(join(path, "permissions"), cause));
    }
    nothing_left::<Policy>(&policy, path)?;
    Ok(Rule { policy: name.into(), callers, permission })
}

fn any_of(permissions: Vec<PbPermission>, path: &str) -> Result<Permission, Refusal> {
    let mut all: Vec<Permission> =
        permissions.into_iter().map(|one| permission(one, path)).collect::<Result<_, _>>()?;
    Ok(match all.pop() {
        Some(only) if all.is_empty() => only,
        last => {
            all.extend(last);
            Permission::One(all.into())
        }
    })
}

/// How deep they are nested is bounded by the decoder.
fn permission(given: PbPermission, path: &str) -> Result<Permission, Refusal> {
    let several = |set: Set, field: &str| {
        let path = join(path, field);
        set.rules.into_iter().map(|one| permission(one, &path)).collect::<Result<Box<[_]>, _>>()
    };
    Ok(match given.rule {
        Some(PbRule::Any(true)) => Permission::Any,
        Some(PbRule::AndRules(set)) => Permission::All(several(set, "and_rules")?),
        Some(PbRule::OrRules(set)) => Permission::One(several(set, "or_rules")?),
        Some(PbRule::NotRule(inner)) => {
            Permission::Not(Box::new(permission(*inner, &join(path, "not_rule"))?))
        }
        Some(PbRule::Header(header)) => Permission::Header(header_match(header, &join(path, "header"))?),
        Some(PbRule::UrlPath(matcher)) => match matcher.rule {
            Some(PathRule::Path(text)) => Permission::Path(value(text, &join(path, "url_path.path"))?),
            None => return Err(Refusal::new(join(path, "url_path.path"), "required")),
        },
        _ => {
            return Err(Refusal::new(
                path,
                "only `any`, `header`, `url_path` and `and_rules`, `or_rules` and `not_rule` of those are supported",
            ));
        }
    })
}

fn who(principal: Principal, path: &str, callers: &mut Callers) -> Result<(), Refusal> {
    match principal.identifier {
        Some(Identifier::Any(true)) => callers.everybody = true,
        Some(Identifier::Authenticated(Authenticated { principal_name: None })) => {
            callers.authenticated = true
        }
        Some(Identifier::Authenticated(Authenticated { principal_name })) => {
            callers.ids.push(exact(principal_name, &join(path, "authenticated.principal_name"))?.into());
        }
        Some(Identifier::OrIds(set)) => {
            for inner in set.ids {
                who(inner, &join(path, "or_ids"), callers)?;
            }
        }
        _ => {
            return Err(Refusal::new(
                path,
                "only `any`, `authenticated` and `or_ids` of those are supported",
            ));
        }
    }
    Ok(())
}
