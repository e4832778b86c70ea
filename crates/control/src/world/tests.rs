use outrider_intent::{ResolveOptions, Source, parse, resolve};
use outrider_xds_types::{names, type_url};
use wire::InstanceState::{Draining, Ready, Starting};

use super::*;

pub(super) const SHOP: &str = "
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: checkout, namespace: shop}
spec:
  ports: [{name: http, port: 8080, protocol: http}]
  calls: [inventory]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: inventory, namespace: shop}
spec:
  ports: [{name: http, port: 8081, protocol: http}]
";

pub(super) fn declared(revision: u64, text: &str) -> Declared {
    let parsed = parse(&[Source { name: "test".into(), text: text.into() }]);
    assert_eq!(parsed.diagnostics, []);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    assert!(resolved.intent.is_some(), "{:?}", resolved.diagnostics);
    let documents =
        parsed.documents.into_iter().map(|document| (document.key().clone(), (revision, document))).collect();
    Declared { revision, documents, intent: resolved.intent.unwrap() }
}

pub(super) fn admitted() -> BTreeMap<String, Admission> {
    ["a", "b", "c"].map(|node| (node.to_owned(), Admission::default())).into()
}

pub(super) fn world() -> World {
    World::new("outrider.internal", Timing::default(), declared(1, SHOP), admitted(), BTreeMap::new(), 0)
}

pub(super) fn hello(node: &str) -> wire::FactKind {
    wire::FactKind::Hello(wire::Hello {
        node: node.into(),
        version: "1".into(),
        address: "10.0.0.1".into(),
        zone: String::new(),
    })
}

pub(super) fn instance(service: &str, number: u32, state: wire::InstanceState) -> wire::Instance {
    wire::Instance {
        namespace: "shop".into(),
        service: service.into(),
        name: format!("{service}-{number}"),
        state: state as i32,
        endpoints: vec![wire::InstanceEndpoint {
            port: "http".into(),
            address: "10.0.0.1".into(),
            number: 4_000 + number,
        }],
        engine: "native".into(),
        proxy_pid: 100 + number,
        ..wire::Instance::default()
    }
}

pub(super) fn instances(instances: &[wire::Instance]) -> wire::FactKind {
    wire::FactKind::Instances(wire::Instances { instances: instances.to_vec() })
}

/// The endpoints of a port as they are sent.
pub(super) fn endpoints(world: &World, name: &str) -> Vec<u8> {
    world.published().shared.get(type_url::ENDPOINT, name).map(|resource| resource.body.clone()).unwrap()
}

/// Facts that say: everything published for this proxy is in use.
pub(super) fn acks(world: &World, host: &str, proxy: &str) -> Vec<wire::FactKind> {
    let set = world.published().of_host(host);
    let mut facts = Vec::new();
    let mut add = |type_url: &str, acked: Vec<wire::ResourceVersion>| {
        let fact = wire::Applied {
            proxy: proxy.into(),
            type_url: type_url.into(),
            acked,
            ..wire::Applied::default()
        };
        facts.push(wire::FactKind::Applied(fact));
    };
    for url in [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER] {
        let own = set.of_type(url).filter_map(|resource| {
            let (scope, name) = names::unscope(&resource.name)?;
            let version = resource.version.to_string();
            (scope == proxy).then(|| wire::ResourceVersion { name: name.into(), version })
        });
        add(url, own.collect());
    }
    let endpoints = set.of_type(type_url::ENDPOINT).filter(|resource| {
        set.get(
            type_url::CLUSTER,
            &names::scoped(type_url::CLUSTER, proxy, &format!("outbound/{}", resource.name)),
        )
        .is_some()
    });
    let endpoints = endpoints.map(|resource| wire::ResourceVersion {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
    });
    add(type_url::ENDPOINT, endpoints.collect());
    facts
}

#[test]
fn only_ready_instances_of_live_hosts_are_endpoints() {
    let mut world = world();
    let empty = endpoints(&world, "shop/inventory/http");
    world.fact("a", 1, &hello("a"), 0).unwrap();
    let mut versions = Vec::new();
    for state in [Starting, Ready, Draining] {
        world.fact("a", 1, &instances(&[instance("inventory", 1, state)]), 0).unwrap();
        versions.push(endpoints(&world, "shop/inventory/http"));
    }
    assert_eq!(versions[0], empty);
    assert_ne!(versions[1], empty);
    assert_eq!(versions[2], empty);

    world.fact("a", 1, &instances(&[instance("inventory", 1, Ready)]), 1_000).unwrap();
    let full = endpoints(&world, "shop/inventory/http");
    let before = world.published().clone();
    world.fact("b", 1, &hello("b"), 6_000).unwrap();
    assert_eq!(world.tick(6_999), Ticked::default());
    assert!(world.published().same(&before));
    assert_eq!(world.tick(7_000).withdrawn, ["a"]);
    assert_eq!(endpoints(&world, "shop/inventory/http"), empty);
    assert_eq!(world.instances(None, None)[0].state, "lost");
    assert!(!world.nodes(7_000)[0].connected);
    world.fact("a", 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), 8_000).unwrap();
    assert_eq!(endpoints(&world, "shop/inventory/http"), full);
    assert_eq!(world.instances(None, None)[0].state, "ready");
}

#[test]
fn a_host_sees_its_own_instances_only_and_no_change_that_is_not_its_own() {
    let mut world = world();
    for (node, service) in [("a", "checkout"), ("b", "inventory")] {
        world.fact(node, 1, &hello(node), 0).unwrap();
        world.fact(node, 1, &instances(&[instance(service, 1, Ready)]), 0).unwrap();
    }
    let listeners = |world: &World, host: &str| -> Vec<String> {
        let set = world.published().of_host(host);
        set.of_type(type_url::LISTENER)
            .map(|resource| names::unscope(&resource.name).unwrap().0.to_owned())
            .collect()
    };
    assert_eq!(listeners(&world, "a"), ["shop/checkout-1"; 2], "inbound and outbound");
    assert_eq!(listeners(&world, "b"), ["shop/inventory-1"]);
    assert_eq!(listeners(&world, "c"), [""; 0]);

    // Another service changes no set of a host that does not know it.
    let before = world.published().clone();
    let other = "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: other, namespace: shop}\n\
                 spec: {ports: [{name: http, port: 1, protocol: http}]}\n";
    world.declare(declared(2, &format!("{SHOP}{other}")), 0);
    let after = world.published();
    for host in ["a", "b"] {
        assert!(before.hosts[host].changes_to(&after.hosts[host]).is_empty());
    }
    assert!(!before.shared.changes_to(&after.shared).is_empty());
}

/// Its agent has taken the inbound listener away, and its application runs on.
#[test]
fn a_proxy_that_was_drained_is_shown_as_that_and_not_as_behind() {
    let mut world = world();
    world.fact("a", 1, &hello("a"), 0).unwrap();
    let inventory = |state| instances(&[instance("checkout", 1, Ready), instance("inventory", 1, state)]);
    let drained = |inbound: wire::InboundState| {
        wire::FactKind::ProxyStatus(Box::new(wire::ProxyStatus {
            proxy: "shop/inventory-1".into(),
            inbound: inbound.into(),
            ..wire::ProxyStatus::default()
        }))
    };
    let shown = |world: &World| {
        let view = world.proxy("shop/inventory-1", 0).unwrap();
        let listener = world.proxy_resources("shop/inventory-1").unwrap();
        let listener = listener.into_iter().find(|one| one.kind == "listener").unwrap();
        (view.state, view.proxy.config, listener.state)
    };
    let words = |state: &str, config: &str, listener: &str| (state.into(), config.into(), listener.into());
    world.fact("a", 1, &inventory(Ready), 0).unwrap();
    for fact in acks(&world, "a", "shop/inventory-1") {
        let taken = |one: &wire::FactKind| matches!(one, wire::FactKind::Applied(all) if all.type_url == type_url::LISTENER);
        if !taken(&fact) {
            world.fact("a", 1, &fact, 0).unwrap();
        }
    }
    let gone = wire::FactKind::Applied(wire::Applied {
        proxy: "shop/inventory-1".into(),
        type_url: type_url::LISTENER.into(),
        removed: vec!["inbound/http".into()],
        ..wire::Applied::default()
    });
    world.fact("a", 1, &gone, 0).unwrap();
    assert_eq!(shown(&world), words("ready", "pending", "pending"));
    world.fact("a", 1, &inventory(Draining), 0).unwrap();
    world.fact("a", 1, &drained(wire::InboundState::Draining), 0).unwrap();
    assert_eq!(shown(&world), words("draining", "current", "drained"));
    world.fact("a", 1, &drained(wire::InboundState::Drained), 0).unwrap();
    assert_eq!(shown(&world), words("drained", "current", "drained"));
}

#[test]
fn a_rollout_is_current_only_when_everything_is_said_to_be_in_use() {
    let mut world = world();
    world.fact("a", 1, &hello("a"), 0).unwrap();
    world
        .fact("a", 1, &instances(&[instance("checkout", 1, Ready), instance("inventory", 1, Ready)]), 0)
        .unwrap();
    let proxies = |behind: &[outrider_api::http::ProxyBehind]| -> Vec<String> {
        behind.iter().map(|behind| behind.proxy.clone()).collect()
    };
    let view = world.rollout(1);
    assert_eq!(proxies(&view.pending), ["shop/checkout-1", "shop/inventory-1"]);
    assert!(
        view.pending[0].reasons.contains(&"listener outbound/shop/inventory/http: not in use yet".to_owned())
    );

    // All but the last type.
    let mut facts = acks(&world, "a", "shop/checkout-1");
    facts.extend(acks(&world, "a", "shop/inventory-1"));
    let last = facts.remove(0);
    for fact in &facts {
        world.fact("a", 1, fact, 0).unwrap();
    }
    let view = world.rollout(1);
    assert_eq!(
        (view.current.clone(), proxies(&view.pending)),
        (vec!["shop/inventory-1".into()], vec!["shop/checkout-1".to_owned()])
    );
    world.fact("a", 1, &last, 0).unwrap();
    assert_eq!(world.rollout(1).current, ["shop/checkout-1", "shop/inventory-1"]);

    // A new revision that concerns both; one refuses.
    world.declare(declared(2, &SHOP.replace("port: 8081", "port: 9999")), 0);
    assert_eq!(proxies(&world.rollout(2).pending), ["shop/checkout-1", "shop/inventory-1"]);
    for fact in &acks(&world, "a", "shop/inventory-1") {
        world.fact("a", 1, fact, 0).unwrap();
    }
    let view = world.rollout(2);
    assert_eq!(proxies(&view.pending), ["shop/checkout-1"]);
    assert!(
        view.pending[0].reasons.iter().any(|reason| reason.ends_with("an earlier version is in use")),
        "{view:?}"
    );
    let refused: Vec<wire::FactKind> = acks(&world, "a", "shop/checkout-1")
        .into_iter()
        .map(|fact| match fact {
            wire::FactKind::Applied(mut applied) if applied.type_url == type_url::LISTENER => {
                applied.refused = std::mem::take(&mut applied.acked);
                applied.error = "port 9999 is forbidden".into();
                wire::FactKind::Applied(applied)
            }
            other => other,
        })
        .collect();
    for fact in &refused {
        world.fact("a", 1, fact, 0).unwrap();
    }
    let view = world.rollout(2);
    assert_eq!(proxies(&view.rejected), ["shop/checkout-1"]);
    assert!(view.rejected[0].reasons[0].ends_with("refused: port 9999 is forbidden"), "{view:?}");
    let shown = &world.instances(None, None)[0].proxy;
    assert_eq!((shown.config.as_str(), shown.behind.len()), ("rejected", view.rejected[0].reasons.len()));
    let resources = world.proxy_resources("shop/checkout-1").unwrap();
    assert!(resources.iter().any(|resource| resource.state == "rejected" && resource.note.is_some()));

    // A resource that should be gone and is not.
    world.declare(declared(3, &SHOP.replace("  calls: [inventory]\n", "")), 0);
    let view = world.rollout(3);
    let reasons = &view.pending.iter().find(|behind| behind.proxy == "shop/checkout-1").unwrap().reasons;
    assert!(reasons.iter().any(|reason| reason.ends_with("removed, but still in use")), "{reasons:?}");

    // A proxy that leaves is not waited for; one that does not run is, and says why.
    world.fact("a", 1, &instances(&[instance("checkout", 1, Draining)]), 0).unwrap();
    assert_eq!(world.rollout(3).pending, []);
    let broken = wire::Instance {
        proxy_pid: 0,
        reason: "its proxy crashes at once".into(),
        ..instance("checkout", 1, Starting)
    };
    world.fact("a", 1, &instances(&[broken]), 0).unwrap();
    let view = world.rollout(3);
    assert_eq!(view.pending[0].reasons, ["its proxy does not run: its proxy crashes at once"]);

    // Nor are those out of reach forgotten: they may still carry traffic the old way.
    world.fact("b", 1, &hello("b"), 20_000).unwrap();
    assert_eq!(world.tick(20_000).lost, ["a"]);
    let view = world.rollout(3);
    assert_eq!((&view.current[..], &view.pending[..]), (&[][..], &[][..]));
    assert_eq!(proxies(&view.unreachable), ["shop/checkout-1"]);
    assert_eq!(view.unreachable[0].reasons, ["nothing is heard of host a"]);
}

#[test]
fn facts_are_checked() {
    let mut world = world();
    let heartbeat = wire::FactKind::Heartbeat(wire::Heartbeat::default());
    assert_eq!(world.fact("a", 1, &heartbeat, 0), Err(FactError::NoHello));
    assert_eq!(world.fact("a", 1, &hello("b"), 0), Err(FactError::NoHello));
    for node in ["a", "b"] {
        world.fact(node, 1, &hello(node), 0).unwrap();
    }
    world.fact("a", 1, &instances(&[instance("checkout", 1, Ready)]), 0).unwrap();
    let applied =
        wire::FactKind::Applied(wire::Applied { proxy: "shop/checkout-1".into(), ..Default::default() });
    let traffic =
        wire::FactKind::Traffic(wire::Traffic { proxy: "shop/checkout-1".into(), ..Default::default() });
    for fact in [&applied, &traffic] {
        assert_eq!(world.fact("a", 1, fact, 0), Ok(Taken::default()));
        assert_eq!(world.fact("b", 1, fact, 0), Err(FactError::Foreign("shop/checkout-1".into())));
    }
    world.fact("a", 2, &hello("a"), 0).unwrap();
    assert_eq!(world.fact("a", 1, &heartbeat, 0), Err(FactError::Superseded));
}

#[test]
fn traffic_is_summed_by_direction() {
    let mut world = world();
    world.fact("a", 1, &hello("a"), 0).unwrap();
    world.fact("a", 1, &instances(&[instance("checkout", 1, Ready)]), 0).unwrap();
    let listener = |name: &str, requests| wire::ListenerTraffic {
        listener: name.into(),
        requests,
        reasons: vec![wire::ReasonCount { reason: "no_endpoint".into(), count: 1 }],
        ..Default::default()
    };
    let traffic = wire::Traffic {
        proxy: "shop/checkout-1".into(),
        resident_bytes: 7,
        listeners: vec![
            listener("inbound/http", 5),
            listener("outbound/shop/inventory/http", 2),
            listener("outbound/shop/inventory/admin", 3),
            listener("strange", 100),
        ],
        ..Default::default()
    };
    world.fact("a", 1, &wire::FactKind::Traffic(traffic), 0).unwrap();
    let proxy = &world.instances(Some("shop"), Some("checkout"))[0].proxy;
    assert_eq!((proxy.resident_bytes, proxy.inbound.requests), (7, 5));
    assert_eq!(proxy.outbound["shop/inventory"].requests, 5);
    assert_eq!(proxy.outbound["shop/inventory"].reasons["no_endpoint"], 2);
}

#[test]
fn records_to_store_are_named_once() {
    let mut world = world();
    world.fact("a", 1, &hello("a"), 0).unwrap();
    world.fact("a", 1, &instances(&[instance("checkout", 1, Ready)]), 0).unwrap();
    let unsaved = world.take_unsaved();
    assert_eq!(unsaved.len(), 1);
    let record = unsaved[0].1.clone().unwrap();
    assert!(world.take_unsaved().is_empty());
    world.fact("a", 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), 1_000).unwrap();
    assert!(world.take_unsaved().is_empty(), "a heartbeat is not worth a write");

    // A restarted server starts with the endpoints it had.
    let version_before = endpoints(&world, "shop/checkout/http");
    let known = BTreeMap::from([("a".to_owned(), record)]);
    let again = World::new("outrider.internal", Timing::default(), declared(1, SHOP), admitted(), known, 0);
    assert_eq!(endpoints(&again, "shop/checkout/http"), version_before);
    assert_eq!(again.published().of_host("a").of_type(type_url::LISTENER).count(), 2);
}

#[test]
fn problems_of_a_host_are_shown_as_of_its_last_heartbeat_and_bounded() {
    let mut world = world();
    world.fact("a", 1, &hello("a"), 0).unwrap();
    let mut told = |problems: Vec<String>| {
        world.fact("a", 1, &wire::FactKind::Heartbeat(wire::Heartbeat { problems }), 0).unwrap();
        world.nodes(0).into_iter().find(|node| node.name == "a").unwrap().problems
    };
    assert_eq!(told(vec!["the disk is full".to_owned()]), ["the disk is full"]);
    let many = told(vec!["ü".repeat(wire::MAX_PROBLEM); 100]);
    assert_eq!(many.len(), wire::MAX_PROBLEMS);
    assert_eq!(many[0], "ü".repeat(wire::MAX_PROBLEM / 2));
    assert_eq!(
        told(vec!["a\n\u{1b}[2Jb".to_owned()]),
        ["a  [2Jb"],
        "one line, and nothing that steers a terminal"
    );
    assert!(told(Vec::new()).is_empty());
}

#[test]
fn who_joins_under_the_name_of_a_lost_host_inherits_nothing_of_it() {
    let mut world = world();
    let empty = endpoints(&world, "shop/inventory/http");
    for (node, service) in [("a", "inventory"), ("b", "checkout")] {
        world.fact(node, 1, &hello(node), 0).unwrap();
        world.fact(node, 1, &instances(&[instance(service, 1, Ready)]), 0).unwrap();
    }
    let served = endpoints(&world, "shop/inventory/http");
    assert_ne!(served, empty);
    for now in [3_000, 6_000] {
        world.fact("b", 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), now).unwrap();
        world.tick(now);
    }
    assert_eq!(endpoints(&world, "shop/inventory/http"), empty, "it is lost");
    assert!(world.reserve_node("a", 6_000));
    world.admit_anew("a", Admission::new(Scope::default(), "new".into(), 10), 6_000);

    // The session of before may still be open.
    let late = world.fact("a", 1, &instances(&[instance("inventory", 1, Ready)]), 6_000);
    assert_eq!(late, Err(FactError::NoHello));
    world.fact("a", 2, &hello("a"), 6_000).unwrap();
    assert_eq!(endpoints(&world, "shop/inventory/http"), empty, "what the lost machine had is not back");
    let scoped = |world: &World| world.published().of_host("a").of_type(type_url::LISTENER).count();
    assert_eq!(scoped(&world), 0, "nor shown to the new one");
    world.fact("a", 2, &instances(&[instance("inventory", 1, Ready)]), 6_000).unwrap();
    assert_eq!(endpoints(&world, "shop/inventory/http"), served);
    assert!(scoped(&world) > 0);

    // A renewal keeps what was said.
    let renewed = world.admission("a").unwrap().with_key("new", "newer".into(), 20);
    world.admit("a", renewed);
    world.fact("a", 2, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), 6_500).unwrap();
    assert_eq!(endpoints(&world, "shop/inventory/http"), served);
}
