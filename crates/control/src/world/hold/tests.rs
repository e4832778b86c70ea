use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::prost::Message as _;
use wire::InstanceState::{Draining, Ready, Starting};

use super::super::tests::{SHOP, admitted, declared, endpoints, hello, instance, instances, world};
use super::super::{Timing, World, wire};
use super::*;

/// How many endpoints of `inventory` are served.
fn count(world: &World) -> usize {
    let assignment = ClusterLoadAssignment::decode(&*endpoints(world, "shop/inventory/http")).unwrap();
    assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
}

fn report(world: &mut World, host: &str, numbers: &[u32], now: Millis) {
    let list: Vec<_> = numbers.iter().map(|number| instance("inventory", *number, Ready)).collect();
    world.fact(host, 1, &instances(&list), now).unwrap();
}

fn beat(world: &mut World, host: &str, now: Millis) {
    world.fact(host, 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), now).unwrap();
}

/// A world with these instances of `inventory` on hosts `a`, `b` and `c`.
fn mesh(on: [&[u32]; 3]) -> World {
    let mut world = world();
    for (host, numbers) in ["a", "b", "c"].into_iter().zip(on) {
        world.fact(host, 1, &hello(host), 0).unwrap();
        report(&mut world, host, numbers, 0);
    }
    world
}

fn notes(world: &mut World) -> Vec<(usize, bool)> {
    world.take_hold_notes().into_iter().map(|note| (note.endpoints, note.held)).collect()
}

#[test]
fn most_endpoints_of_a_service_leave_at_the_second_look_only() {
    let mut world = mesh([&[1, 2, 3, 4], &[5], &[]]);
    report(&mut world, "a", &[1], 1_000);
    assert_eq!((count(&world), notes(&mut world)), (5, vec![(3, true)]));
    let held: Vec<_> = world.instances(None, None).into_iter().filter(|one| one.state == "held").collect();
    assert_eq!(held.len(), 3);
    assert!(held[0].reason.contains("still an endpoint") && held[0].node == "a", "{held:?}");
    for now in (2_000..11_000).step_by(1_000) {
        ["a", "b", "c"].iter().for_each(|host| beat(&mut world, host, now));
        world.tick(now);
        assert_eq!(count(&world), 5, "at {now}");
    }
    assert_eq!(world.next_deadline(), Some(11_000));
    world.tick(11_000);
    assert_eq!((count(&world), notes(&mut world)), (2, vec![(3, false)]));
    assert!(world.instances(None, None).iter().all(|one| one.state == "ready"));
}

#[test]
fn what_is_back_in_time_never_left() {
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    let before = world.published().shared.clone();
    // An agent that starts anew reports nothing, then instances that are not ready yet, then all.
    report(&mut world, "a", &[], 1_000);
    let list: Vec<_> = (1..5).map(|number| instance("inventory", number, Starting)).collect();
    world.fact("a", 1, &instances(&list), 3_000).unwrap();
    let shown = &world.instances(None, None)[0];
    assert_eq!(shown.state, "starting");
    assert!(shown.reason.contains("still an endpoint"), "{}", shown.reason);
    report(&mut world, "a", &[1, 2, 3, 4], 5_000);
    assert!(before.changes_to(&world.published().shared).is_empty());
    world.tick(11_000);
    assert_eq!(count(&world), 4, "nothing is held any more");
}

#[test]
fn few_and_draining_and_deleted_ones_leave_at_once() {
    // Two of two are too few to hold.
    let mut world = mesh([&[1, 2], &[], &[]]);
    report(&mut world, "a", &[], 1_000);
    assert_eq!(count(&world), 0);
    // Half is not most.
    let mut world = mesh([&[1, 2, 3], &[4, 5, 6], &[]]);
    report(&mut world, "a", &[], 1_000);
    assert_eq!(count(&world), 3);
    // Little by little is most as well, for what is left of it.
    report(&mut world, "b", &[4, 5], 3_000);
    assert_eq!((count(&world), notes(&mut world)), (3, vec![(1, true)]));

    // Their agent says of each that it drains, in the end also of one that is held.
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    let list: Vec<_> = (1..5).map(|number| instance("inventory", number, Draining)).collect();
    world.fact("a", 1, &instances(&list), 1_000).unwrap();
    assert_eq!(count(&world), 0);
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    report(&mut world, "a", &[], 1_000);
    world.fact("a", 1, &instances(&list[..1]), 1_500).unwrap();
    assert_eq!(count(&world), 3);

    // A person deleted the host, also while its instances are held.
    for held in [false, true] {
        let mut world = mesh([&[1, 2, 3, 4], &[5], &[]]);
        if held {
            report(&mut world, "a", &[], 1_000);
        }
        world.evict("a").unwrap();
        assert_eq!(count(&world), 1, "{held}");
    }
}

#[test]
fn what_follows_from_a_change_by_a_person_is_believed() {
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    let other = SHOP.replace("port: 8081,", "port: 8081, targetPort: 9000,");
    world.declare(declared(2, &other), 1_000);
    assert_eq!(count(&world), 4);
    let list: Vec<_> = (1..5).map(|number| instance("inventory", number, Starting)).collect();
    world.fact("a", 1, &instances(&list), 2_000).unwrap();
    assert_eq!((count(&world), notes(&mut world)), (0, vec![]));
    // Of this service, and for a while.
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    world.declare(declared(2, &SHOP.replace("port: 8080,", "port: 8080, targetPort: 9000,")), 1_000);
    report(&mut world, "a", &[], 2_000);
    assert_eq!(count(&world), 4);
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    world.declare(declared(2, &other), 1_000);
    report(&mut world, "a", &[], 11_000);
    assert_eq!(count(&world), 4);
}

/// Lets `heard` beat every second from 1 s on, the others never. Gives the seconds at which the number of
/// endpoints changed, and to what.
fn silence(world: &mut World, heard: &[&str], until: Millis) -> Vec<(Millis, usize)> {
    let mut changes = Vec::new();
    let mut last = count(world);
    for now in (500..until).step_by(500) {
        heard.iter().for_each(|host| beat(world, host, now));
        world.tick(now);
        if count(world) != last {
            last = count(world);
            changes.push((now, last));
        }
    }
    changes
}

#[test]
fn a_silent_host_is_left_within_ten_seconds_and_several_at_once_are_looked_at_twice() {
    // One host with all endpoints: observed for three heartbeats while others are heard.
    let mut world = mesh([&[1, 2, 3, 4], &[], &[]]);
    assert_eq!(silence(&mut world, &["b", "c"], 30_000), [(6_000, 0)]);

    // Two of four hosts, most of the endpoints.
    let names = ["a", "b", "c", "d"];
    let mut all = admitted();
    all.insert("d".into(), super::super::Admission::default());
    let mut world =
        World::new("outrider.internal", Timing::default(), declared(1, SHOP), all, BTreeMap::new(), 0);
    for (host, numbers) in names.into_iter().zip([&[1, 2][..], &[3, 4], &[5], &[]]) {
        world.fact(host, 1, &hello(host), 0).unwrap();
        report(&mut world, host, numbers, 0);
    }
    assert_eq!(silence(&mut world, &["c", "d"], 30_000), [(16_000, 1)]);

    // Two of three: they were given more time before, so this is the second look already.
    let mut world = mesh([&[1, 2], &[3, 4], &[5]]);
    assert_eq!(silence(&mut world, &["c"], 40_000), [(16_000, 1)]);
}

#[test]
fn many_ports_do_not_become_empty_at_once() {
    let name = |number: u32| format!("s{number}");
    let service = |number: u32| {
        format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {}, namespace: shop}}\n\
             spec: {{ports: [{{name: http, port: 80, protocol: http}}]}}\n",
            name(number)
        )
    };
    let text: String = (0..40).map(service).collect();
    let filled = |world: &World| {
        let set = &world.published().shared;
        let empty = endpoints(world, "shop/s39/http").len();
        (0..39)
            .filter(|number| {
                let name = format!("shop/{}/http", name(*number));
                // Bodies differ by the name; an endpoint is more than a digit.
                set.get(outrider_xds_types::type_url::ENDPOINT, &name).unwrap().body.len() > empty + 4
            })
            .count()
    };
    for (leave, left) in [(9, 30), (10, 39)] {
        let mut world = World::new(
            "outrider.internal",
            Timing::default(),
            declared(1, &text),
            admitted(),
            BTreeMap::new(),
            0,
        );
        world.fact("a", 1, &hello("a"), 0).unwrap();
        let list: Vec<_> = (0..39).map(|number| instance(&name(number), number, Ready)).collect();
        world.fact("a", 1, &instances(&list), 0).unwrap();
        assert_eq!(filled(&world), 39);
        world.fact("a", 1, &instances(&list[leave..]), 1_000).unwrap();
        assert_eq!(filled(&world), left, "{leave} of 39 leave");
        (2..12).for_each(|second| beat(&mut world, "a", second * 1_000));
        world.tick(11_000);
        assert_eq!(filled(&world), 39 - leave);
    }
}
