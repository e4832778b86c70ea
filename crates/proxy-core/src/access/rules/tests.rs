use proptest::prelude::*;

use super::*;
use crate::http1::{Limits, RequestHead};
use crate::route::Http1View;

const A: &str = "spiffe://outrider.internal/ns/shop/svc/a";
const B: &str = "spiffe://outrider.internal/ns/shop/svc/b";
const C: &str = "spiffe://outrider.internal/ns/shop/svc/c";

fn ids(list: &[&str]) -> Callers {
    Callers { ids: list.iter().map(|id| (*id).into()).collect(), ..Callers::default() }
}

fn everybody() -> Callers {
    Callers { everybody: true, ..Callers::default() }
}

fn rule(policy: &str, callers: Callers, permission: Permission) -> Rule {
    Rule { policy: policy.into(), callers, permission }
}

fn list(effect: Effect, audit: bool, rules: Vec<Rule>) -> RuleList {
    RuleList { effect, audit, rules }
}

fn path(path: &str) -> Permission {
    Permission::Path(ValueMatch::Exact(path.as_bytes().into()))
}

fn method(method: &str) -> Permission {
    Permission::Header(HeaderMatch::exact(":method", method))
}

/// The outcome of a request: who denies it, and whom the audits heard of.
fn ask(rules: &Rules, peer: Peer<'_>, request: &str) -> (Option<String>, Vec<String>) {
    let bytes = format!("{request}\r\n\r\n").into_bytes();
    let mut head = RequestHead::new();
    head.parse(&bytes, &Limits::default()).unwrap();
    let view = Http1View { head: &head, buf: &bytes };
    let mut audited = Vec::new();
    let outcome = rules.decide(peer, &view, Some(b"URI=x"), |policy| audited.push(policy.to_string()));
    (outcome.err().map(|denied| denied.policy.to_string()), audited)
}

#[test]
fn lists_decide_in_order_about_callers_and_requests() {
    use Peer::{Anonymous, Authenticated};
    let rules = Rules::new(vec![
        list(
            Effect::Deny,
            false,
            vec![
                rule("z/0", everybody(), path("/admin")),
                rule("d/0", ids(&[A]), Permission::All([method("DELETE"), path("/v")].into())),
            ],
        ),
        list(
            Effect::Allow,
            false,
            vec![rule("a/0", ids(&[A, B]), Permission::Any), rule("a/1", everybody(), method("OPTIONS"))],
        ),
        list(Effect::Deny, true, vec![rule("t/0", everybody(), path("/soon"))]),
        list(Effect::Allow, true, vec![rule("n/0", ids(&[A]), Permission::Any)]),
    ]);
    let none = NO_RULE_ALLOWS;
    let cases: [(Peer<'_>, &str, Option<&str>, &[&str]); 14] = [
        (Authenticated(A), "GET / HTTP/1.1\r\nHost: x", None, &[]),
        (Authenticated(A), "GET /admin HTTP/1.1\r\nHost: x", Some("z/0"), &[]),
        // The query and what a fragment would be are no part of the path.
        (Authenticated(A), "GET /admin?a=b HTTP/1.1\r\nHost: x", Some("z/0"), &[]),
        (Authenticated(A), "GET /admins HTTP/1.1\r\nHost: x", None, &[]),
        (Authenticated(A), "DELETE /v HTTP/1.1\r\nHost: x", Some("d/0"), &[]),
        (Authenticated(A), "GET /v HTTP/1.1\r\nHost: x", None, &[]),
        (Authenticated(B), "DELETE /v HTTP/1.1\r\nHost: x", None, &[none]),
        (Authenticated(B), "GET /soon HTTP/1.1\r\nHost: x", None, &["t/0", none]),
        // What is refused is not audited.
        (Authenticated(B), "GET /admin HTTP/1.1\r\nHost: x", Some("z/0"), &[]),
        (Authenticated(C), "GET / HTTP/1.1\r\nHost: x", Some(none), &[]),
        (Authenticated(C), "OPTIONS / HTTP/1.1\r\nHost: x", None, &[none]),
        (Authenticated(""), "GET / HTTP/1.1\r\nHost: x", Some(none), &[]),
        (Anonymous, "GET / HTTP/1.1\r\nHost: x", Some(none), &[]),
        (Anonymous, "OPTIONS / HTTP/1.1\r\nHost: x", None, &[none]),
    ];
    for (peer, request, denied, audited) in cases {
        let expected = (denied.map(str::to_owned), audited.iter().map(ToString::to_string).collect());
        assert_eq!(ask(&rules, peer, request), expected, "{peer:?} {request}");
    }
}

#[test]
fn a_caller_cannot_say_who_it_is() {
    let header = |value: &str| Permission::Header(HeaderMatch::exact("X-Forwarded-Client-Cert", value));
    let rules = Rules::new(vec![list(Effect::Allow, false, vec![rule("p", everybody(), header("URI=x"))])]);
    let forged = "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=admin";
    assert_eq!(ask(&rules, Peer::Anonymous, forged).0, None);
    let rules =
        Rules::new(vec![list(Effect::Allow, false, vec![rule("p", everybody(), header("URI=admin"))])]);
    assert_eq!(ask(&rules, Peer::Anonymous, forged).0.as_deref(), Some(NO_RULE_ALLOWS));
}

#[test]
fn an_empty_list_that_allows_denies_and_one_that_denies_allows() {
    let request = "GET / HTTP/1.1\r\nHost: x";
    for (effect, denied) in [(Effect::Allow, Some(NO_RULE_ALLOWS)), (Effect::Deny, None)] {
        let rules = Rules::new(vec![list(effect, false, Vec::new())]);
        assert_eq!(ask(&rules, Peer::Authenticated(A), request).0.as_deref(), denied);
        assert_eq!(rules.decide_bytes(Peer::Anonymous, |_| {}).is_err(), denied.is_some());
    }
}

fn header(name: &str, value: ValueMatch) -> Permission {
    Permission::Header(HeaderMatch::new(name, value))
}

fn not(inner: Permission) -> Permission {
    Permission::Not(Box::new(inner))
}

/// Applications take the first line, the last, or all of them: whatever a list is about is decided for each of these. That
/// several lines pass as one text that nobody has a rule about was the flaw of CVE-2026-26308.
#[test]
fn of_a_field_in_several_lines_each_counts_and_all_of_them_together() {
    let one = || ValueMatch::Exact(b"1".as_slice().into());
    let together = || ValueMatch::Exact(b"a,b".as_slice().into());
    let text = |pattern: &str| ValueMatch::Pattern(crate::route::Pattern::new(pattern).unwrap());
    let inverted = Permission::Header(HeaderMatch { invert: true, ..HeaderMatch::new("X-A", one()) });
    // Of each condition: whether a list with it that denies, and one that allows, lets these lines pass.
    let lines: [&[&str]; 7] = [&[], &["1"], &["2"], &["1", "1"], &["1", "2"], &["2", "1"], &["a", "b"]];
    for (permission, denying, allowing) in [
        (header("x-a", one()), [true, false, true, false, false, false, true], [1].as_slice()),
        (header("X-A", text("1|x")), [true, false, true, false, false, false, true], &[1]),
        (header("x-a", text("1.*")), [true, false, true, false, false, false, true], &[1, 3]),
        (header("x-a", together()), [true, true, true, true, true, true, false], &[]),
        (header("x-a", text("1,.*")), [true, true, true, false, false, true, true], &[]),
        (
            header("x-a", ValueMatch::Present),
            [true, false, false, false, false, false, false],
            &[1, 2, 3, 4, 5, 6],
        ),
        (not(header("x-a", one())), [false, true, false, false, false, false, false], &[0, 2, 6]),
        (inverted.clone(), [true, true, false, true, false, false, false], &[2, 6]),
        (not(inverted), [false, false, true, false, false, false, true], &[0, 1, 3]),
    ] {
        for (nth, values) in lines.iter().enumerate() {
            let fields: String = values.iter().map(|value| format!("\r\nX-A: {value}")).collect();
            let request = format!("GET / HTTP/1.1\r\nHost: x{fields}");
            for (effect, passes) in [(Effect::Deny, denying[nth]), (Effect::Allow, allowing.contains(&nth))] {
                let rules =
                    Rules::new(vec![list(effect, false, vec![rule("p", everybody(), permission.clone())])]);
                let outcome = ask(&rules, Peer::Anonymous, &request).0;
                assert_eq!(outcome.is_none(), passes, "{effect:?} {permission:?} {values:?}");
            }
        }
    }
}

/// What Connection names ends here, so it is nothing that the application could go by.
#[test]
fn a_field_that_connection_names_says_nothing() {
    let team = header("x-team", ValueMatch::Exact(b"blue".as_slice().into()));
    let rules = Rules::new(vec![list(Effect::Allow, false, vec![rule("p", everybody(), team)])]);
    let request = "GET / HTTP/1.1\r\nHost: x\r\nX-Team: blue";
    assert_eq!(ask(&rules, Peer::Anonymous, request).0, None);
    let named = format!("{request}\r\nConnection: X-Team");
    assert_eq!(ask(&rules, Peer::Anonymous, &named).0.as_deref(), Some(NO_RULE_ALLOWS));
}

/// As many as a service that everybody calls has, each of them in every rule, as `allow` rules without callers are compiled.
/// Were each of them looked for in every rule, this would take longer than any test may.
#[test]
fn thousands_of_callers_in_every_rule_are_taken_in_one_walk() {
    let callers: Vec<String> = (0..10_000).map(|n| format!("spiffe://x/ns/shop/svc/caller-{n:08}")).collect();
    let every: Vec<&str> = callers.iter().map(String::as_str).collect();
    let a_rule = |n: usize| rule(&format!("p/{n:02}"), ids(&every), path(&format!("/{n}")));
    let last = rule("q", ids(&[&callers[9_999]]), path("/last"));
    let rules = (0..64).map(a_rule).chain([last]).collect();
    let rules = Rules::new(vec![list(Effect::Allow, false, rules)]);
    let get = |caller: &str, path: &str| {
        ask(&rules, Peer::Authenticated(caller), &format!("GET {path} HTTP/1.1\r\nHost: x")).0
    };
    for caller in [&callers[0], &callers[5_000], &callers[9_999]] {
        assert_eq!(get(caller, "/0"), None);
        assert_eq!(get(caller, "/63"), None);
        assert_eq!(get(caller, "/64").as_deref(), Some(NO_RULE_ALLOWS));
        assert_eq!(get(caller, "/last").is_none(), *caller == callers[9_999]);
    }
    assert_eq!(get("spiffe://x/ns/shop/svc/caller", "/0").as_deref(), Some(NO_RULE_ALLOWS));
}

#[test]
fn audits_are_known_by_name() {
    let rules = Rules::new(vec![
        list(Effect::Deny, false, vec![rule("enforced", everybody(), path("/"))]),
        list(Effect::Deny, true, vec![rule("t/0", ids(&[A]), path("/"))]),
        list(Effect::Allow, true, vec![rule("n/0", ids(&[A]), path("/"))]),
    ]);
    assert_eq!(rules.audits().collect::<Vec<_>>(), ["t/0", NO_RULE_ALLOWS]);
}

/// What the compiled form has to agree with: every rule is looked at, for every request.
fn plainly(lists: &[RuleList], peer: Peer<'_>, request: &impl RequestView) -> (Option<String>, Vec<String>) {
    let mut audited = Vec::new();
    for list in lists {
        let mut matching: Vec<&str> = list
            .rules
            .iter()
            .filter(|rule| rule.callers.has(peer))
            .filter(|rule| rule.permission.permits(request, list.effect == Effect::Deny))
            .map(|rule| &*rule.policy)
            .collect();
        matching.sort_unstable();
        let denied = match (list.effect, matching.first()) {
            (Effect::Deny, Some(policy)) => (*policy).to_owned(),
            (Effect::Allow, None) => NO_RULE_ALLOWS.to_owned(),
            _ => continue,
        };
        if !list.audit {
            return (Some(denied), audited);
        }
        audited.push(denied);
    }
    (None, audited)
}

fn permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        prop::sample::select(vec!["/a", "/b"]).prop_map(path),
        prop::sample::select(vec!["GET", "POST"]).prop_map(method),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Permission::Not(Box::new(one))),
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| Permission::All(all.into())),
            prop::collection::vec(inner, 0..3).prop_map(|any| Permission::One(any.into())),
        ]
    })
}

prop_compose! {
    fn a_rule()(
        name in "[a-d]",
        everybody in prop::bool::weighted(0.2),
        authenticated in prop::bool::weighted(0.2),
        ids in prop::sample::subsequence(vec![A, B], 0..=2),
        permission in permission(),
    ) -> Rule {
        let ids = ids.into_iter().map(Into::into).collect();
        rule(&name, Callers { everybody, authenticated, ids }, permission)
    }
}

prop_compose! {
    fn a_list()(
        deny in any::<bool>(),
        audit in any::<bool>(),
        rules in prop::collection::vec(a_rule(), 0..4),
    ) -> RuleList {
        list(if deny { Effect::Deny } else { Effect::Allow }, audit, rules)
    }
}

proptest! {
    #[test]
    fn the_index_changes_no_decision(
        lists in prop::collection::vec(a_list(), 0..4),
        caller in prop::sample::select(vec![None, Some(A), Some(B), Some(C)]),
        method in prop::sample::select(vec!["GET", "POST"]),
        path in prop::sample::select(vec!["/a", "/b", "/c"]),
    ) {
        let peer = caller.map_or(Peer::Anonymous, Peer::Authenticated);
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x");
        let bytes = format!("{request}\r\n\r\n").into_bytes();
        let mut head = RequestHead::new();
        head.parse(&bytes, &Limits::default()).unwrap();
        let expected = plainly(&lists, peer, &Http1View { head: &head, buf: &bytes });
        prop_assert_eq!(ask(&Rules::new(lists), peer, &request), expected);
    }
}

/// Conditions that a missing field meets are about that very field: another one that some applications take for it neither
/// is it, where its absence denies, nor is it overlooked, where its absence allows.
#[test]
fn conditions_that_a_missing_field_meets_are_about_that_very_field() {
    let absent = || HeaderMatch { invert: true, ..HeaderMatch::new("X-Role", ValueMatch::Present) };
    let no_guest =
        || HeaderMatch { invert: true, missing_is_empty: true, ..HeaderMatch::exact("X-Role", "guest") };
    for (condition, lines, holds) in [
        (absent(), "", [true, true]),
        (absent(), "\r\nX-Role: guest", [false, false]),
        (absent(), "\r\nX_Role: guest", [true, false]),
        (no_guest(), "", [true, true]),
        (no_guest(), "\r\nX-Role: guest", [false, false]),
        (no_guest(), "\r\nX-Role: admin", [true, true]),
        (no_guest(), "\r\nX_Role: guest", [true, false]),
        (no_guest(), "\r\nX_Role: guest\r\nX_Role: guest", [true, false]),
    ] {
        for (effect, holds) in [Effect::Deny, Effect::Allow].into_iter().zip(holds) {
            let permission = Permission::Header(condition.clone());
            let rules = Rules::new(vec![list(effect, false, vec![rule("p/0", everybody(), permission)])]);
            let denied =
                ask(&rules, Peer::Anonymous, &format!("GET / HTTP/1.1\r\nHost: a{lines}")).0.is_some();
            assert_eq!(denied, holds == (effect == Effect::Deny), "{effect:?} {condition:?} {lines:?}");
        }
    }
}
