//! Whether access policies reach what they are meant to: where callers are led to, and who calls at all.
//!
//! A policy is carried out by the proxies of its service. Routes and fail-over lead its callers elsewhere, where others
//! decide, and a rule may name a service that does not call. Both are possible and seldom meant, so they are warnings. Does not: look at
//! conditions on requests, or at shares.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Key, Kind};
use crate::model::{AccessPolicy, AccessRule, Caller, Intent, ServiceRef};
use crate::resolve::Set;
use crate::words::listed;

/// Access policies as they were read: namespace, service if it is for one, and what they say.
pub(crate) type Policies<'a> = [(&'a str, Option<ServiceRef>, AccessPolicy)];

/// By service to which services its callers are led, by routes of which port (`None` is all), or by which traffic policy.
type Led<'a> = BTreeMap<&'a ServiceRef, Targets<'a>>;
type Targets<'a> = BTreeMap<&'a ServiceRef, Vec<(Option<u16>, &'a Key)>>;

/// Finds policies that hold less than one may think. `intent` has its services with their policies.
pub(crate) fn check(set: &Set<'_>, intent: &Intent, policies: &Policies<'_>, findings: &mut Vec<Diagnostic>) {
    let routes: Vec<_> = intent.routes().collect();
    let mut led = Led::new();
    for route in &routes {
        for (parent, port) in route.parents {
            for (target, _) in &route.targets {
                led.entry(parent).or_default().entry(*target).or_default().push((*port, &route.key));
            }
        }
    }
    fail_over(intent, &mut led);
    for (namespace, target, policy) in policies {
        let Some(document) = set.find(Kind::AccessPolicy, namespace, &policy.name) else { continue };
        match target {
            Some(target) => {
                elsewhere(set, intent, (document, target, policy), led.get(target), findings);
                strangers(intent, (document, target, policy), &led, findings);
            }
            None => {
                let mut of_it = led.iter().filter(|(parent, _)| parent.namespace == *namespace);
                of_it.any(|(parent, to)| abroad(set, intent, (document, parent, policy), to, findings));
            }
        }
    }
}

/// Adds where calls go as far as endpoints fail: those of a service, and those that routes lead to it.
fn fail_over<'a>(intent: &'a Intent, led: &mut Led<'a>) {
    let policies = intent.policies.iter().filter(|(key, _)| key.kind == Kind::TrafficPolicy);
    let of_services =
        policies.filter_map(|(key, target)| Some((key, intent.services.get(target.as_ref()?)?)));
    for (key, service) in of_services.filter(|(_, service)| !service.traffic.failover.is_empty()) {
        let mut add = |parent: &'a ServiceRef, port| {
            for other in &service.traffic.failover {
                led.entry(parent).or_default().entry(&other.service).or_default().push((port, key));
            }
        };
        add(&service.id, None);
        for route in intent.routes().filter(|route| route.targets.iter().any(|(to, _)| **to == service.id)) {
            route.parents.iter().for_each(|(parent, port)| add(parent, *port));
        }
    }
}

/// Callers of a service, of whom a policy for a namespace says something, are led out of it, to services without one of its
/// kind. Whether so.
fn abroad<'k>(
    set: &Set<'_>,
    intent: &Intent,
    (document, parent, policy): (&Document, &ServiceRef, &AccessPolicy),
    led: &Targets<'k>,
    findings: &mut Vec<Diagnostic>,
) -> bool {
    // Nearly all lead nowhere else, which is seen sooner than who calls.
    let away = led.iter().filter(|(service, _)| service.namespace != parent.namespace);
    let away: Targets<'k> = away.map(|(service, routes)| (*service, routes.clone())).collect();
    let calls = |caller: &Caller| match caller {
        Caller::Service(id) => intent.services.get(id).is_some_and(|one| one.calls.contains(parent)),
        _ => true,
    };
    let is_meant = |rule: &AccessRule| rule.from.is_empty() || rule.from.iter().any(calls);
    if away.is_empty() || !policy.rules.iter().any(is_meant) {
        return false;
    }
    let before = findings.len();
    elsewhere(set, intent, (document, parent, policy), Some(&away), findings);
    findings.len() > before
}

/// Callers are led to services that have no policy of this kind.
fn elsewhere<'k>(
    set: &Set<'_>,
    intent: &Intent,
    (document, target, policy): (&Document, &ServiceRef, &AccessPolicy),
    led: Option<&Targets<'k>>,
    findings: &mut Vec<Diagnostic>,
) {
    let is_open = |service: &ServiceRef| {
        let policies = intent.services.get(service).map_or([].as_slice(), |service| &service.access);
        service != target && !policies.iter().any(|one| one.allow == policy.allow)
    };
    let here = |routes: &[(Option<u16>, &'k Key)]| {
        routes.iter().find(|(port, _)| port.is_none_or(|port| is_about(policy, port))).map(|(_, key)| *key)
    };
    let open: Vec<_> = led
        .into_iter()
        .flatten()
        .filter(|(service, _)| is_open(service))
        .filter_map(|(service, routes)| Some((service, here(routes)?)))
        .collect();
    let Some((_, first)) = open.first() else { return };
    let names = listed(open.iter().map(|(service, _)| service.to_string()));
    let message =
        format!("the {first} leads callers of {target} to {names}, where this policy does not hold");
    // Without `targetRef` it holds in its own namespace, and in no other.
    let help = match open.iter().all(|(service, _)| service.namespace == target.namespace) {
        true => {
            "declare one for each of them as well, or leave `targetRef` out to have it for the whole namespace"
        }
        false => "declare one for each of them as well; one of another namespace has to be declared there",
    };
    let mut finding =
        Diagnostic::warning(Code::PolicyElsewhere, document.at("spec/targetRef/name"), message).help(help);
    if let Some(route) = set.find(first.kind, &first.namespace, &first.name) {
        let path = if first.kind == Kind::TrafficPolicy { "spec/failover" } else { "spec/rules" };
        finding = finding.related(route.at(path), "led from here");
    }
    findings.push(finding);
}

/// Whether a policy says anything about a port. One that allows nothing there refuses what comes to it.
fn is_about(policy: &AccessPolicy, port: u16) -> bool {
    let here = |rule: &AccessRule| {
        rule.to.is_empty() || rule.to.iter().any(|one| one.ports.is_empty() || one.ports.contains(&port))
    };
    policy.allow || policy.rules.iter().any(here)
}

/// Rules name services that neither call this one nor are led to it.
fn strangers(
    intent: &Intent,
    (document, target, policy): (&Document, &ServiceRef, &AccessPolicy),
    led: &Led<'_>,
    findings: &mut Vec<Diagnostic>,
) {
    let leads = |service: &ServiceRef| {
        service == target || led.get(service).is_some_and(|targets| targets.contains_key(target))
    };
    let mut told = BTreeSet::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        for caller in &rule.from {
            let Caller::Service(id) = caller else { continue };
            let Some(service) = intent.services.get(id) else { continue };
            if service.calls.iter().any(leads) || !told.insert(id) {
                continue;
            }
            let message = format!("{id} does not call {target}, so this rule says nothing about it");
            let help = format!("who calls is declared first: add {target} to `calls` of {id}");
            let place = document.at(&format!("spec/rules/{index}/from"));
            findings.push(Diagnostic::warning(Code::NotACaller, place, message).help(help));
        }
    }
}
