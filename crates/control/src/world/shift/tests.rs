use std::cell::RefCell;

use outrider_intent::model::Failover;

use super::super::tests::declared;
use super::*;

/// `checkout` calls `inventory`; `edge` calls `front`, from where a route may lead to `inventory`.
fn intent(mtls: &str, ports: &str, checkout_calls: &str, backend: &str) -> Intent {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{{spec}}}\n"
        )
    };
    let http = "ports: [{name: http, port: 80, protocol: http}]";
    let text = format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: {mtls}}}\n"
    ) + &service("checkout", &format!("role: client, calls: [{checkout_calls}]"))
        + &service("edge", "role: client, calls: [front]")
        + &service("front", http)
        + &service("inventory", &format!("ports: [{ports}]"))
        + &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: front, namespace: shop}}\n\
             spec:\n  parentRefs: [{{kind: Service, name: front, group: ''}}]\n  rules:\n    - backendRefs: [{{name: \
             {backend}, port: 80}}]\n"
        );
    declared(1, &text).intent
}

const HTTP: &str = "{name: http, port: 80, protocol: http}";
const TWO: &str = "{name: http, port: 80, protocol: http}, {name: admin, port: 81, protocol: http}";
const BYTES: &str = "{name: http, port: 80, protocol: tcp}";
const HTTP2: &str = "{name: http, port: 80, protocol: http2}";
const RENAMED: &str = "{name: web, port: 80, protocol: http}";

fn plain() -> Intent {
    intent("required", HTTP, "inventory", "front")
}

fn service(name: &str) -> ServiceRef {
    ServiceRef::new("shop", name)
}

/// Proxies of every service run. Says what has been done by whom.
#[derive(Default)]
struct Fake {
    accepts: RefCell<BTreeSet<(ServiceRef, String)>>,
    uses: RefCell<BTreeSet<(ServiceRef, String)>>,
    stopped: BTreeSet<ServiceRef>,
}

impl Proxies for Fake {
    fn run(&self, service: &ServiceRef) -> bool {
        !self.stopped.contains(service)
    }

    fn accept(&self, need: &Need) -> bool {
        self.accepts.borrow().contains(&(need.service.clone(), need.port.clone()))
    }

    fn may_use(&self, caller: &ServiceRef, cluster: &str) -> bool {
        self.uses.borrow().contains(&(caller.clone(), cluster.to_owned()))
    }

    fn may_know(&self, caller: &ServiceRef, assignment: &str) -> bool {
        self.may_use(caller, assignment)
    }
}

impl Fake {
    fn set(list: &RefCell<BTreeSet<(ServiceRef, String)>>, who: &str, what: &str, holds: bool) {
        let entry = (service(who), what.to_owned());
        match holds {
            true => drop(list.borrow_mut().insert(entry)),
            false => drop(list.borrow_mut().remove(&entry)),
        }
    }
}

const CLUSTER: &str = "outbound/shop/inventory/http";

#[test]
fn what_needs_no_order_goes_to_all_at_once() {
    for after in [
        intent("required", TWO, "inventory", "front"),
        intent("required", "{name: http, port: 90, protocol: http}", "inventory", "front"),
        intent("required", "{name: http, port: 80, targetPort: 9, protocol: http}", "inventory", "front"),
        // Nothing is denied later than it is said, and nobody is asked about it.
        intent("required", HTTP, "", "front"),
        intent("both", HTTP, "inventory", "front"),
    ] {
        let mut shift = Shift::default();
        assert_eq!(shift.declare(&plain(), &after, &Fake::default(), 0), Stage::default(), "{after:?}");
        assert_eq!((shift.next_deadline(), shift.is_due(1_000_000)), (None, false));
    }
}

#[test]
fn a_port_is_accepted_until_its_callers_do_not_use_it() {
    let (before, after) = (intent("required", TWO, "inventory", "front"), plain());
    let (mut shift, fake) = (Shift::default(), Fake::default());
    Fake::set(&fake.uses, "checkout", "outbound/shop/inventory/admin", true);
    let stage = shift.declare(&before, &after, &fake, 0);
    assert_eq!(stage.calls, None, "callers are told at once");
    assert_eq!(stage.kept[&service("inventory")].ports[0].name, "admin");
    assert_eq!(shift.look(&after, &fake, 10_000), None);
    assert!(shift.withdrawn(&service("inventory")).next().unwrap().text().contains("shop/checkout"));

    // It may come back to it before its requests have arrived.
    Fake::set(&fake.uses, "checkout", "outbound/shop/inventory/admin", false);
    assert_eq!(shift.look(&after, &fake, 11_000), None);
    assert_eq!(shift.next_deadline(), Some(11_000 + LINGER_MS));
    Fake::set(&fake.uses, "checkout", "outbound/shop/inventory/admin", true);
    assert_eq!(shift.look(&after, &fake, 11_000 + LINGER_MS), None);
    Fake::set(&fake.uses, "checkout", "outbound/shop/inventory/admin", false);
    assert_eq!(shift.look(&after, &fake, 12_000), None);
    assert_eq!(shift.look(&after, &fake, 12_000 + LINGER_MS), Some(Stage::default()));
    assert_eq!(shift.next_deadline(), None);
}

#[test]
fn a_caller_that_says_nothing_is_waited_for_so_long_and_no_longer() {
    let (before, after) = (intent("required", TWO, "inventory", "front"), plain());
    let (mut shift, fake) = (Shift::default(), Fake::default());
    Fake::set(&fake.uses, "checkout", "outbound/shop/inventory/admin", true);
    shift.declare(&before, &after, &fake, 0);
    assert_eq!(shift.next_deadline(), Some(WITHDRAW_MS));
    assert_eq!(shift.look(&after, &fake, WITHDRAW_MS - 1), None);
    assert_eq!(shift.look(&after, &fake, WITHDRAW_MS), Some(Stage::default()));

    // Callers wait for servers in the same way.
    let after = intent("off", HTTP, "inventory", "front");
    let stage = shift.declare(&plain(), &after, &fake, 50_000);
    assert_eq!(stage.calls, Some(plain()));
    assert_eq!(shift.look(&after, &fake, 50_000 + MAKE_MS - 1), None);
    assert_eq!(shift.look(&after, &fake, 50_000 + MAKE_MS).unwrap().calls, None);
}

#[test]
fn modes_of_tls_change_at_servers_then_callers_then_servers() {
    for (from, to) in [("required", "off"), ("both", "off"), ("off", "required"), ("off", "both")] {
        let (before, after) =
            (intent(from, HTTP, "inventory", "front"), intent(to, HTTP, "inventory", "front"));
        let (mut shift, fake) = (Shift::default(), Fake::default());
        // `front` is called as well.
        Fake::set(&fake.accepts, "front", "http", true);
        let stage = shift.declare(&before, &after, &fake, 0);
        let waits = from == "required" || from == "off";
        assert_eq!(stage.calls.is_some(), waits, "{from} → {to}: callers go on as they did");
        if waits {
            assert_eq!(shift.look(&after, &fake, 1), None);
            Fake::set(&fake.accepts, "inventory", "http", true);
            Fake::set(&fake.uses, "checkout", CLUSTER, true);
            let stage = shift.look(&after, &fake, 2).unwrap();
            assert_eq!(stage.calls, None, "{from} → {to}: and change then");
        } else {
            Fake::set(&fake.uses, "checkout", CLUSTER, true);
        }
        let kept = shift.stage(&after, &fake).kept.get(&service("inventory")).cloned().unwrap_or_default();
        assert_eq!((kept.plaintext, kept.tls), ((from, to) == ("off", "required"), to == "off"));
        Fake::set(&fake.uses, "checkout", CLUSTER, false);
        shift.look(&after, &fake, 3);
        shift.look(&after, &fake, 3 + LINGER_MS);
        assert_eq!(shift.stage(&after, &fake), Stage::default(), "{from} → {to}");
    }
    let (mut shift, fake) = (Shift::default(), Fake::default());
    for (from, to) in [("required", "both"), ("both", "required")] {
        let (before, after) =
            (intent(from, HTTP, "inventory", "front"), intent(to, HTTP, "inventory", "front"));
        assert_eq!(shift.declare(&before, &after, &fake, 0), Stage::default(), "callers use TLS in both");
    }
}

#[test]
fn bytes_are_what_a_port_takes_while_its_protocol_changes() {
    let (http, bytes) = (plain(), intent("required", BYTES, "inventory", "front"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    assert_eq!(shift.declare(&http, &bytes, &fake, 0).calls, Some(http.clone()), "servers take bytes first");
    Fake::set(&fake.accepts, "inventory", "http", true);
    assert_eq!(shift.look(&bytes, &fake, 1), Some(Stage::default()));

    Fake::set(&fake.uses, "checkout", CLUSTER, true);
    let stage = shift.declare(&bytes, &http, &fake, 2);
    assert_eq!(
        (stage.calls, stage.kept[&service("inventory")].bytes.len()),
        (None, 1),
        "and leave them last"
    );
}

/// Neither version of HTTP is understood by who speaks the other, and bytes carry both.
#[test]
fn bytes_are_between_two_versions_of_http() {
    // A route would hold the port to one version.
    let of = |protocol: &str| {
        let port = format!("{{name: http, port: 80, protocol: {protocol}}}");
        intent("required", &port, "inventory", "front")
    };
    let (old, new) = (of("http"), of("http2"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    Fake::set(&fake.uses, "checkout", CLUSTER, true);
    let kept = |stage: &Stage| stage.kept.get(&service("inventory")).map_or(0, |kept| kept.bytes.len());
    let stage = shift.declare(&old, &new, &fake, 0);
    assert_eq!((stage.calls.as_ref(), kept(&stage)), (Some(&old), 1), "servers take bytes first");
    Fake::set(&fake.accepts, "inventory", "http", true);
    let stage = shift.look(&new, &fake, 1).unwrap();
    assert_eq!((stage.calls.as_ref(), kept(&stage)), (None, 1), "then callers change");
    Fake::set(&fake.uses, "checkout", CLUSTER, false);
    assert_eq!(shift.look(&new, &fake, 2), None);
    assert_eq!(shift.look(&new, &fake, 2 + LINGER_MS), Some(Stage::default()), "and then servers");
}

#[test]
fn between_two_versions_of_http_servers_take_bytes() {
    let (http, http2) = (plain(), intent("required", HTTP2, "inventory", "front"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    Fake::set(&fake.uses, "checkout", CLUSTER, false);
    let stage = shift.declare(&http, &http2, &fake, 0);
    assert_eq!(stage.calls, Some(http.clone()), "callers wait");
    assert_eq!(stage.kept[&service("inventory")].bytes.len(), 1, "servers take either");
    Fake::set(&fake.accepts, "inventory", "http", true);
    let stage = shift.look(&http2, &fake, 1).unwrap();
    assert_eq!(
        (stage.calls, stage.kept[&service("inventory")].bytes.len()),
        (None, 1),
        "until nobody needs it"
    );
    let grpc = intent("required", &HTTP2.replace("http2", "grpc"), "inventory", "front");
    let mut shift = Shift::default();
    assert_eq!(shift.declare(&http2, &grpc, &fake, 0), Stage::default(), "which is the same on the wire");
}

#[test]
fn who_is_led_somewhere_is_let_in_before_and_until_after() {
    let (front, inventory) = (plain(), intent("required", HTTP, "inventory", "inventory"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    assert_eq!(shift.declare(&front, &inventory, &fake, 0).calls, Some(front.clone()));
    assert_eq!(shift.needs().count(), 1);
    Fake::set(&fake.accepts, "inventory", "http", true);
    Fake::set(&fake.uses, "edge", "outbound/shop/front/http", true);
    let stage = shift.look(&inventory, &fake, 1).unwrap();
    // `edge` still calls `front`, so that lets it in by what is declared.
    assert_eq!(stage, Stage::default());

    Fake::set(&fake.uses, "edge", CLUSTER, true);
    let stage = shift.declare(&inventory, &front, &fake, 2);
    assert_eq!(stage.calls, None);
    assert_eq!(stage.kept[&service("inventory")].callers, BTreeSet::from([service("edge")]));

    // But not who may not call any more what the route belongs to.
    let mut denied = front.clone();
    denied.services.get_mut(&service("edge")).unwrap().calls.clear();
    let mut deleted = front.clone();
    deleted.services.remove(&service("edge"));
    for after in [&denied, &deleted] {
        let mut shift = shift.clone();
        assert_eq!(
            shift.declare(&front, after, &fake, 3),
            Stage::default(),
            "at once, also while it is let in"
        );
    }
    assert!(!shift.declare(&front, &front, &fake, 3).kept.is_empty(), "other changes are none of that");
    let mut shift = Shift::default();
    assert_eq!(shift.declare(&inventory, &denied, &fake, 3), Stage::default());
}

/// `inventory` takes the calls of `front` as far as that fails.
fn with_failover(mut intent: Intent) -> Intent {
    let failover = Failover { service: service("inventory"), port: None };
    intent.services.get_mut(&service("front")).unwrap().traffic.failover = vec![failover];
    intent
}

#[test]
fn who_fails_over_is_let_in_before_and_until_after() {
    let (without, with) = (plain(), with_failover(plain()));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    assert_eq!(shift.declare(&without, &with, &fake, 0).calls, Some(without.clone()));
    assert_eq!(shift.needs().count(), 1);
    Fake::set(&fake.accepts, "inventory", "http", true);
    assert_eq!(shift.look(&with, &fake, 1), Some(Stage::default()));

    // The endpoints of another service, or the identities to find there, may be in use yet.
    for used in ["shop/front/http", "outbound/shop/front/http"] {
        let mut shift = shift.clone();
        Fake::set(&fake.uses, "edge", used, true);
        let kept = &shift.declare(&with, &without, &fake, 2).kept[&service("inventory")];
        assert_eq!((&kept.callers, &kept.finishing), (&BTreeSet::from([service("edge")]), &BTreeSet::new()));
        assert_eq!(shift.look(&without, &fake, 10_000), None);
        Fake::set(&fake.uses, "edge", used, false);
        assert_eq!(shift.look(&without, &fake, 11_000), None);
        let kept = &shift.look(&without, &fake, 11_000 + LINGER_MS).unwrap().kept[&service("inventory")];
        assert_eq!((&kept.callers, &kept.finishing), (&BTreeSet::new(), &BTreeSet::from([service("edge")])));
    }
    // But not who may not call any more what it was led by.
    let mut denied = without.clone();
    denied.services.get_mut(&service("edge")).unwrap().calls.clear();
    assert_eq!(shift.declare(&with, &denied, &fake, 2), Stage::default());
}

#[test]
fn a_port_of_another_name_takes_over_when_it_is_an_endpoint() {
    let (before, after) = (plain(), intent("required", RENAMED, "inventory", "front"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    let stage = shift.declare(&before, &after, &fake, 0);
    assert_eq!(stage.calls, Some(before.clone()));
    assert_eq!(stage.kept[&service("inventory")].ports[0].name, "http", "the old one is there all the time");
    assert!(shift.needs().all(|need| need.endpoint && need.port == "web"));
    Fake::set(&fake.accepts, "inventory", "web", true);
    Fake::set(&fake.uses, "checkout", CLUSTER, true);
    let stage = shift.look(&after, &fake, 1).unwrap();
    assert_eq!((stage.calls, stage.kept[&service("inventory")].ports.len()), (None, 1));
}

#[test]
fn a_change_during_another_begins_where_callers_are() {
    let (required, off) = (plain(), intent("off", HTTP, "inventory", "front"));
    let (mut shift, fake) = (Shift::default(), Fake::default());
    shift.declare(&required, &off, &fake, 0);
    // Taken back before callers knew of it.
    assert_eq!(shift.declare(&off, &required, &fake, 10), Stage::default());
    // One more on top of it is not waited for any longer.
    shift.declare(&required, &off, &fake, 20);
    let both = intent("off", TWO, "inventory", "front");
    assert_eq!(shift.declare(&off, &both, &fake, 5_000).calls, Some(required));
    assert_eq!(shift.next_deadline(), Some(20 + MAKE_MS));
}

#[test]
fn what_does_not_run_is_not_waited_for() {
    let off = intent("off", HTTP, "inventory", "front");
    let stopped = ["checkout", "edge", "front"].map(service).into();
    let fake = Fake { stopped, ..Fake::default() };
    let stage = Shift::default().declare(&plain(), &off, &fake, 0);
    assert_eq!(stage.calls, None, "nobody calls");
    let stopped = ["inventory", "front"].map(service).into();
    let fake = Fake { stopped, ..Fake::default() };
    assert_eq!(Shift::default().declare(&plain(), &off, &fake, 0), Stage::default(), "nobody is called");
}

#[test]
fn what_is_new_is_there_at_once_while_the_rest_waits() {
    let (required, mut off) = (plain(), intent("off", HTTP, "inventory", "front"));
    let mut new = off.services[&service("checkout")].clone();
    new.id = service("new");
    off.services.insert(new.id.clone(), new);
    let stage = Shift::default().declare(&required, &off, &Fake::default(), 0);
    let calls = stage.calls.unwrap();
    assert!(calls.services.contains_key(&service("new")));
    assert_eq!(calls.namespaces["shop"].mtls, Mtls::Required);
}
