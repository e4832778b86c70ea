//! Matches of routes that an equal match of another route of the same parent precedes.
//!
//! Of routes that are equal in everything the first by namespace and name counts (there are no ages here to go by first, as
//! the Gateway API does), so the other one's backends get no call. That is possible and seldom meant: a warning. Does
//! not: find matches that several others cover together; equal ones within a route are found with it.

use std::collections::BTreeMap;

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Kind, MAX_FINDINGS};
use crate::model::{HttpMatch, HttpRoute, Intent, ServiceRef};
use crate::resolve::Set;

/// Where a match is: the port of the parent, if it is for one, and the place.
struct Seen<'a> {
    port: Option<u16>,
    route: &'a HttpRoute,
    document: &'a Document,
    path: String,
}

/// Finds matches that no call reaches because of another route. The first of each port counts, so no more are remembered.
pub(crate) fn check(set: &Set<'_>, intent: &Intent, findings: &mut Vec<Diagnostic>) {
    for (kind, routes) in [(Kind::HttpRoute, &intent.http_routes), (Kind::GrpcRoute, &intent.grpc_routes)] {
        let mut seen: BTreeMap<(&ServiceRef, String), Vec<Seen<'_>>> = BTreeMap::new();
        for route in routes.values() {
            let Some(document) = set.find(kind, &route.namespace, &route.name) else { continue };
            for (rule_index, rule) in route.rules.iter().enumerate() {
                for (index, matched) in rule.matches.iter().enumerate() {
                    if findings.len() >= MAX_FINDINGS {
                        return;
                    }
                    let path = format!("spec/rules/{rule_index}/matches/{index}");
                    let identity = matched.identity();
                    let mut told = false;
                    for (parent, port) in &route.parents {
                        let equal = seen.entry((parent, identity.clone())).or_default();
                        match equal.iter().find(|one| one.covers(*port)) {
                            Some(before) if told || std::ptr::eq(before.route, route) => {}
                            Some(before) => {
                                findings.push(unreachable(document, &path, (parent, *port), before));
                                told = true;
                            }
                            None => {}
                        }
                        // One for each port, and one for all of them.
                        if !equal.iter().any(|one| one.port == *port) {
                            equal.push(Seen { port: *port, route, document, path: path.clone() });
                        }
                    }
                }
            }
        }
    }
}

impl Seen<'_> {
    fn covers(&self, port: Option<u16>) -> bool {
        self.port.is_none() || port.is_none() || self.port == port
    }
}

fn unreachable(
    document: &Document,
    path: &str,
    (parent, port): (&ServiceRef, Option<u16>),
    before: &Seen<'_>,
) -> Diagnostic {
    let first = format!("{}/{}", before.route.namespace, before.route.name);
    let at = match before.port.filter(|_| port.is_none()) {
        Some(port) => format!(" at port {port}"),
        None => String::new(),
    };
    let message = format!("no call of {parent}{at} reaches this match, because {first} has the same");
    Diagnostic::warning(Code::UnreachableMatch, document.at(path), message)
        .related(before.document.at(&before.path), "the same match")
        .help("of equal matches the first by namespace and name of its route counts: remove one, or make it more specific")
}

impl HttpMatch {
    /// The same for conditions that hold for the same requests, whatever the order they are written in.
    pub(crate) fn identity(&self) -> String {
        let sorted = |list: &[(String, crate::model::ValueMatch)]| {
            let mut all: Vec<_> = list.iter().collect();
            all.sort();
            all.dedup();
            format!("{all:?}")
        };
        format!("{:?} {:?} {} {}", self.path, self.method, sorted(&self.headers), sorted(&self.query))
    }
}
