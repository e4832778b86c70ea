use outrider_intent::{Key, Kind};
use wire::InstanceState::Ready;

use super::super::tests::{SHOP, admitted, declared, hello, instance, instances};
use super::super::{FactError, Timing};
use super::*;

/// `checkout` calls `inventory`, whose calls go on to `spare`.
const FAILOVER: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: spare, namespace: shop}
spec: {ports: [{name: http, port: 8081, protocol: http}]}
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: inventory, namespace: shop}
spec: {targetRef: {kind: Service, name: inventory}, failover: [{name: spare}]}
";

/// Callers on both nodes, and an instance each of who is called.
fn world() -> World {
    let declared = declared(1, &format!("{SHOP}{FAILOVER}"));
    let mut world =
        World::new("outrider.internal", Timing::default(), declared, admitted(), BTreeMap::new(), 0);
    let a = [instance("checkout", 1, Ready), instance("inventory", 3, Ready), instance("spare", 4, Ready)];
    let b = [instance("checkout", 2, Ready), instance("inventory", 5, Ready)];
    for (node, all) in [("a", a.as_slice()), ("b", b.as_slice())] {
        world.fact(node, 1, &hello(node), 0).unwrap();
        world.fact(node, 1, &instances(all), 0).unwrap();
    }
    world
}

fn cluster(name: &str, unused: &[(&str, &str)]) -> wire::ClusterTraffic {
    let unused = unused.iter().map(|(address, why)| wire::UnusedEndpoint {
        address: (*address).to_owned(),
        why: (*why).to_owned(),
    });
    wire::ClusterTraffic {
        cluster: name.into(),
        endpoints: 3,
        retries: 7,
        retries_refused: 2,
        ejections: 1,
        unused: unused.collect(),
        unused_count: 0,
    }
}

fn tell(
    world: &mut World,
    node: &str,
    proxy: &str,
    clusters: Vec<wire::ClusterTraffic>,
) -> Result<(), FactError> {
    let traffic = wire::Traffic { proxy: proxy.into(), clusters, ..Default::default() };
    world.fact(node, 1, &wire::FactKind::Traffic(traffic), 0).map(drop)
}

fn of_service(world: &World, name: &str) -> Vec<String> {
    let key = Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() };
    let described = world.describe(&key, 0).unwrap();
    let line = |one: LeftAloneView| {
        format!("{}/{} {} {}: {}", one.seen_by, one.callers, one.instance, one.address, one.why)
    };
    let more = (described.more_left_alone > 0).then(|| format!("{} more", described.more_left_alone));
    described.left_alone.into_iter().map(line).chain(more).collect()
}

const ILL: &str = "fails its checks: answers 503";
const CALLED: &str = "outbound/shop/inventory/http";

#[test]
fn who_is_left_alone_is_told_by_name_at_the_caller_and_at_the_service() {
    let mut world = world();
    let all = [
        ("10.0.0.1:4003", ILL),
        ("10.0.0.1:4004", "ejected\u{1b}[2J"),
        ("10.0.0.9:1", "?"),
        ("strange", "?"),
    ];
    let clusters =
        vec![cluster(CALLED, &all), cluster("outbound/shop/secret/http", &[("10.0.0.1:4005", ILL)])];
    tell(&mut world, "a", "shop/checkout-1", clusters).unwrap();
    tell(&mut world, "b", "shop/checkout-2", vec![cluster(CALLED, &[])]).unwrap();

    let proxy = world.proxy("shop/checkout-1", 0).unwrap().proxy;
    let [(name, called)] = proxy.called.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(
        (name.as_str(), called.endpoints, called.retries, called.retries_refused, called.ejections),
        ("shop/inventory", 3, 7, 2, 1)
    );
    let view = |address: &str, why: &str, owner: Option<(&str, &str)>| {
        let (service, instance) = owner.map(|(one, other)| (one.to_owned(), other.to_owned())).unzip();
        UnusedView { address: address.into(), why: why.into(), service, instance }
    };
    let expected = [
        view("10.0.0.1:4003", ILL, Some(("shop/inventory", "inventory-3"))),
        view("10.0.0.1:4004", "ejected [2J", Some(("shop/spare", "spare-4"))),
        view("10.0.0.9:1", "?", None),
    ];
    assert_eq!(called.unused, expected);
    assert_eq!(world.instances(None, None).iter().find(|one| one.name == "checkout-1").unwrap().proxy, proxy);

    assert_eq!(of_service(&world, "inventory"), [format!("1/2 inventory-3 10.0.0.1:4003: {ILL}")]);
    assert_eq!(of_service(&world, "spare"), ["1/2 spare-4 10.0.0.1:4004: ejected [2J"]);
    assert!(of_service(&world, "checkout").is_empty());

    tell(&mut world, "b", "shop/checkout-2", vec![cluster(CALLED, &[("10.0.0.1:4003", ILL)])]).unwrap();
    assert_eq!(of_service(&world, "inventory"), [format!("2/2 inventory-3 10.0.0.1:4003: {ILL}")]);
    // It is well again, by one of them; then the other is gone.
    tell(&mut world, "a", "shop/checkout-1", vec![cluster(CALLED, &[])]).unwrap();
    assert_eq!(of_service(&world, "inventory"), [format!("1/2 inventory-3 10.0.0.1:4003: {ILL}")]);
    world.fact("b", 1, &instances(&[]), 0).unwrap();
    assert!(of_service(&world, "inventory").is_empty());
}

/// More than are named: counted by service, and never more of one than it has.
#[test]
fn those_that_are_not_named_are_counted() {
    let mut world = world();
    let some = wire::ClusterTraffic { unused_count: 50, ..cluster(CALLED, &[("10.0.0.1:4003", ILL)]) };
    tell(&mut world, "a", "shop/checkout-1", vec![some.clone()]).unwrap();
    let called = &world.proxy("shop/checkout-1", 0).unwrap().proxy.called["shop/inventory"];
    assert_eq!((called.unused.len(), called.unused_count), (1, 50));
    assert_eq!(
        of_service(&world, "inventory"),
        [format!("1/1 inventory-3 10.0.0.1:4003: {ILL}"), "1 more".to_owned()]
    );
    assert_eq!(of_service(&world, "spare"), ["1 more"]);
    // By an agent that does not count them they are counted here.
    tell(&mut world, "a", "shop/checkout-1", vec![wire::ClusterTraffic { unused_count: 0, ..some }]).unwrap();
    let called = &world.proxy("shop/checkout-1", 0).unwrap().proxy.called["shop/inventory"];
    assert_eq!((called.unused.len(), called.unused_count), (1, 1));
    assert_eq!(of_service(&world, "inventory"), [format!("1/1 inventory-3 10.0.0.1:4003: {ILL}")]);
    assert!(of_service(&world, "spare").is_empty());
}

/// What a host said before it fell silent is not what is.
#[test]
fn of_silent_hosts_nothing_is_counted() {
    let mut world = world();
    tell(&mut world, "b", "shop/checkout-2", vec![cluster(CALLED, &[("10.0.0.1:4003", ILL)])]).unwrap();
    assert_eq!(of_service(&world, "inventory").len(), 1);
    let heartbeat = wire::FactKind::Heartbeat(wire::Heartbeat::default());
    world.fact("a", 1, &heartbeat, 5_000).unwrap();
    world.tick(7_000);
    assert!(of_service(&world, "inventory").is_empty());
}

#[test]
fn what_agents_tell_of_endpoints_is_bounded() {
    let mut world = world();
    let addresses: Vec<String> = (1..=100).map(|n| format!("10.0.0.2:{n}")).collect();
    let why = "é".repeat(10_000);
    let unused: Vec<_> = addresses.iter().map(|address| (address.as_str(), why.as_str())).collect();
    tell(&mut world, "a", "shop/checkout-1", vec![cluster(CALLED, &unused)]).unwrap();
    let proxy = world.proxy("shop/checkout-1", 0).unwrap().proxy;
    let unused = &proxy.called["shop/inventory"].unused;
    assert_eq!((unused.len(), proxy.more_unused), (wire::MAX_UNUSED, 36));
    assert!(unused.iter().all(|one| one.why.chars().count() == wire::MAX_UNUSED_WHY));

    // Of one node no more than a limit, whatever it has of them; sums stay.
    let one = world.traffic["shop/checkout-1"].clone();
    let mut last = Traffic { resident_bytes: 5, ..one.clone() };
    last.fit(std::iter::repeat_n(&one, MAX_TRAFFIC / one.bytes() - 2));
    assert!(!last.called.is_empty());
    last.fit(std::iter::repeat_n(&one, MAX_TRAFFIC / one.bytes()));
    assert!(last.called.is_empty() && last.resident_bytes == 5);
}

/// Which of several services takes the calls, as callers see it now.
#[test]
fn who_takes_the_calls_of_a_service_that_fails_is_told_in_order() {
    let list = "failover: [{name: spare}, {name: last}]";
    let last = "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: last, namespace: shop}
spec: {ports: [{name: http, port: 8082, protocol: http}, {name: admin, port: 8083, protocol: http}]}
";
    let declared = declared(1, &format!("{SHOP}{FAILOVER}{last}").replace("failover: [{name: spare}]", list));
    let mut world =
        World::new("outrider.internal", Timing::default(), declared, admitted(), BTreeMap::new(), 0);
    let all = [
        instance("checkout", 1, Ready),
        instance("checkout", 2, Ready),
        instance("inventory", 3, Ready),
        instance("spare", 4, Ready),
        instance("last", 5, Ready),
    ];
    world.fact("a", 1, &hello("a"), 0).unwrap();
    world.fact("a", 1, &instances(&all), 0).unwrap();
    let takers = |world: &World, name: &str| {
        let key = Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() };
        let view = |one: TakerView| format!("{} {}/{}", one.service, one.usable, one.endpoints);
        world.describe(&key, 0).unwrap().takers.into_iter().map(view).collect::<Vec<_>>()
    };
    assert_eq!(takers(&world, "inventory"), ["shop/inventory 1/1", "shop/spare 1/1", "shop/last 1/1"]);
    assert!(takers(&world, "spare").is_empty(), "it fails over to nobody");
    let ill = [("10.0.0.1:4003", ILL), ("10.0.0.1:4004", ILL)];
    tell(&mut world, "a", "shop/checkout-1", vec![cluster(CALLED, &ill)]).unwrap();
    assert_eq!(takers(&world, "inventory"), ["shop/inventory 0/1", "shop/spare 0/1", "shop/last 1/1"]);
    // As long as another caller uses it, it takes some.
    tell(&mut world, "a", "shop/checkout-2", vec![cluster(CALLED, &ill[..1])]).unwrap();
    assert_eq!(takers(&world, "inventory"), ["shop/inventory 0/1", "shop/spare 1/1", "shop/last 1/1"]);
    world.fact("a", 1, &instances(&all[..3]), 0).unwrap();
    assert_eq!(takers(&world, "inventory"), ["shop/inventory 0/1", "shop/spare 0/0", "shop/last 0/0"]);
}
