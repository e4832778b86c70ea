use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use wire::InstanceState::{Draining, Ready};

use super::super::tests::{SHOP, declared, hello, instance, instances, world};
use super::super::*;

const INVENTORY: &str = "shop/inventory/http";

fn in_zone(node: &str, zone: &str) -> wire::FactKind {
    match hello(node) {
        wire::FactKind::Hello(hello) => wire::FactKind::Hello(wire::Hello { zone: zone.into(), ..hello }),
        other => other,
    }
}

/// `ZONE:ENDPOINTS`, and whether a world that begins with all of this would publish the same.
fn shown(world: &mut World) -> String {
    let body = |world: &World| {
        world.published().shared.get(type_url::ENDPOINT, INVENTORY).map(|resource| resource.body.clone())
    };
    let published = body(world).unwrap();
    world.declare(world.declared().clone(), 0);
    assert_eq!(body(world).unwrap(), published, "made anew it is another");
    let read = ClusterLoadAssignment::decode(published.as_slice()).unwrap();
    assert!(read.policy.is_none());
    let one = |group: &outrider_xds_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints| {
        assert_eq!((group.priority, group.load_balancing_weight), (0, None), "the host decides");
        let zone = group.locality.as_ref().map_or("-", |locality| &locality.zone);
        format!("{zone}:{}", group.lb_endpoints.len())
    };
    read.endpoints.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A host with these instances of `inventory`, and as many of `checkout`, which calls it.
fn report(world: &mut World, node: &str, inventory: &[u32], checkout: &[u32]) {
    let inventory = inventory.iter().map(|number| instance("inventory", *number, Ready));
    let checkout = checkout.iter().map(|number| instance("checkout", *number, Ready));
    let all: Vec<_> = inventory.chain(checkout).collect();
    world.fact(node, 1, &instances(&all), 0).unwrap();
}

fn two_zones() -> World {
    let mut world = world();
    for (node, zone) in [("a", "east"), ("b", "west")] {
        world.fact(node, 1, &in_zone(node, zone), 0).unwrap();
    }
    report(&mut world, "a", &[1, 2], &[11]);
    report(&mut world, "b", &[3, 4], &[12]);
    world
}

#[test]
fn zones_are_told_apart_while_each_can_carry_its_callers() {
    let mut world = two_zones();
    assert_eq!(shown(&mut world), "east:2 west:2");
    assert_eq!(world.nodes(0)[0].zone, "east");
    // One endpoint fewer: less than two for each zone.
    report(&mut world, "b", &[3], &[12]);
    assert_eq!(shown(&mut world), "-:3");
    report(&mut world, "b", &[3, 4], &[12]);
    assert_eq!(shown(&mut world), "east:2 west:2");
    // Callers of one zone only would load its endpoints twice.
    report(&mut world, "b", &[3, 4], &[]);
    assert_eq!(shown(&mut world), "-:4");
    report(&mut world, "b", &[3, 4], &[12]);
    assert_eq!(shown(&mut world), "east:2 west:2");
    // One that drains calls no more.
    let drains = [
        instance("inventory", 1, Ready),
        instance("inventory", 2, Ready),
        instance("checkout", 11, Draining),
    ];
    world.fact("a", 1, &instances(&drains), 0).unwrap();
    assert_eq!(shown(&mut world), "-:4");
    report(&mut world, "a", &[1, 2], &[11]);
    // All of a zone on its way out.
    let drains = [
        instance("inventory", 3, Draining),
        instance("inventory", 4, Draining),
        instance("checkout", 12, Ready),
    ];
    world.fact("b", 1, &instances(&drains), 0).unwrap();
    assert_eq!(shown(&mut world), "-:2");
}

#[test]
fn callers_of_other_zones_and_endpoints_without_one_count() {
    let mut world = two_zones();
    world.fact("c", 1, &in_zone("c", "south"), 0).unwrap();
    report(&mut world, "c", &[], &[13]);
    assert_eq!(shown(&mut world), "east:2 west:2", "who has no endpoint in its zone calls all of them");
    world.fact("c", 1, &in_zone("c", ""), 0).unwrap();
    report(&mut world, "c", &[5, 6], &[13]);
    assert_eq!(shown(&mut world), "-:2 east:2 west:2");
    // What a host says of itself later is so for its instances.
    world.fact("c", 1, &in_zone("c", "west"), 0).unwrap();
    assert_eq!(shown(&mut world), "east:2 west:4");
    let stored: BTreeMap<String, Option<HostRecord>> = world.take_unsaved().into_iter().collect();
    assert_eq!(stored["c"].as_ref().unwrap().zone, "west");
    world.fact("c", 1, &in_zone("c", "not a zone"), 0).unwrap();
    assert_eq!(shown(&mut world), "-:2 east:2 west:2");
    for node in ["a", "b"] {
        world.fact(node, 2, &hello(node), 0).unwrap();
    }
    assert_eq!(shown(&mut world), "-:6");
}

#[test]
fn a_restarted_control_plane_knows_the_zones() {
    let mut before = two_zones();
    let stored = before.take_unsaved();
    let known = stored.into_iter().filter_map(|(name, record)| Some((name, record?))).collect();
    let mut after = World::new(
        "outrider.internal",
        Timing::default(),
        declared(1, SHOP),
        super::super::tests::admitted(),
        known,
        0,
    );
    assert_eq!(shown(&mut after), "east:2 west:2");
    // A host that is lost is left as ever, and takes its zone along.
    after.fact("a", 1, &in_zone("a", "east"), 9_000).unwrap();
    after.fact("c", 1, &hello("c"), 9_000).unwrap();
    assert_eq!(after.tick(11_000).withdrawn, ["b"]);
    assert_eq!(shown(&mut after), "-:2");
}

#[test]
fn who_switches_it_off_and_who_balances_by_hashes_has_no_zones() {
    let mut world = two_zones();
    let policy = |balancing: &str| {
        let kind = "---\napiVersion: outrider.dev/v1alpha1\nkind: TrafficPolicy\n\
                    metadata: {name: p, namespace: shop}\nspec:\n  balancing:";
        declared(2, &format!("{SHOP}{kind} {{{balancing}}}\n"))
    };
    let hashes = "policy: maglev, hashKeys: [{type: source-address}]";
    for (balancing, expected) in [
        ("zonePreference: off", "-:4"),
        ("zonePreference: on", "east:2 west:2"),
        (hashes, "-:4"),
        (&format!("{hashes}, zonePreference: on"), "east:2 west:2"),
        ("policy: random", "east:2 west:2"),
    ] {
        world.declare(policy(balancing), 0);
        assert_eq!(shown(&mut world), expected, "{balancing}");
    }
}

#[test]
fn nothing_is_made_anew_where_nothing_is_different() {
    let mut world = two_zones();
    let before = world.published().clone();
    let version = |world: &World| {
        world.published().shared.get(type_url::ENDPOINT, INVENTORY).map(|one| one.version.clone()).unwrap()
    };
    let was = version(&world);
    // One more caller in each zone changes nothing that a proxy is sent.
    report(&mut world, "a", &[1, 2], &[11, 13]);
    report(&mut world, "b", &[3, 4], &[12, 14]);
    assert_eq!(version(&world), was);
    let shared = before.shared.of_type(type_url::ENDPOINT).count();
    assert_eq!(world.published().shared.of_type(type_url::ENDPOINT).count(), shared);
}

/// `PRIORITY ZONE:ENDPOINTS` of a load assignment.
fn shares(world: &World, name: &str) -> String {
    let published = world.published().shared.get(type_url::ENDPOINT, name).unwrap();
    let read = ClusterLoadAssignment::decode(published.body.as_slice()).unwrap();
    let one = |group: &outrider_xds_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints| {
        let zone = group.locality.as_ref().map_or("", |locality| &locality.zone);
        format!("{} {zone}:{}", group.priority, group.lb_endpoints.len())
    };
    read.endpoints.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Who takes calls of others is told apart by all who may come then; its own callers are those that come now.
#[test]
fn zones_of_who_takes_calls_of_others_carry_their_callers_too() {
    let twin = "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: twin, namespace: shop}\n\
                spec: {ports: [{name: http, port: 1, protocol: http}]}\n---\n\
                apiVersion: outrider.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: shop}\n\
                spec: {targetRef: {kind: Service, name: inventory}, failover: [{name: twin}]}\n";
    let mut world = two_zones();
    world.declare(declared(2, &format!("{SHOP}{twin}")), 0);
    let report = |world: &mut World, node: &str, inventory: u32, twin: &[u32], checkout: &[u32]| {
        let all = [("inventory", &[inventory, inventory + 1][..]), ("twin", twin), ("checkout", checkout)];
        let all = all.into_iter().flat_map(|(service, numbers)| numbers.iter().map(move |n| (service, *n)));
        let all: Vec<_> = all.map(|(service, number)| instance(service, number, Ready)).collect();
        world.fact(node, 1, &instances(&all), 0).unwrap();
    };
    report(&mut world, "a", 1, &[21, 22], &[11]);
    report(&mut world, "b", 3, &[23, 24], &[12]);
    let all = |world: &World| [INVENTORY, "shop/twin/http"].map(|name| shares(world, name));
    assert_eq!(all(&world), ["0 east:2, 0 west:2, 1 east:2, 1 west:2", "0 east:2, 0 west:2"]);
    // All callers in one zone: neither service could carry them there. Nobody calls the second by itself.
    report(&mut world, "b", 3, &[23, 24], &[]);
    assert_eq!(all(&world), ["0 :4, 1 :4", "0 east:2, 0 west:2"]);
    report(&mut world, "b", 3, &[23, 24], &[12]);
    assert_eq!(all(&world), ["0 east:2, 0 west:2, 1 east:2, 1 west:2", "0 east:2, 0 west:2"]);
    // One endpoint of it is too few for a zone.
    report(&mut world, "b", 3, &[23], &[12]);
    assert_eq!(all(&world), ["0 east:2, 0 west:2, 1 :3", "0 :3"]);
    let published = all(&world);
    world.declare(world.declared().clone(), 0);
    assert_eq!(all(&world), published, "made anew it is the same");
}
