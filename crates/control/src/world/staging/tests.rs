use std::collections::{BTreeMap, BTreeSet};

use outrider_xds_types::names::ListenerMetadata;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::prost::Message;
use outrider_xds_types::{names, type_url};
use wire::InstanceState::{Draining, Ready};

use super::super::shift::{LINGER_MS, MAKE_MS, WITHDRAW_MS};
use super::super::tests::{SHOP, acks, declared, endpoints, hello, instance, instances, world};
use super::super::{World, wire};

const CALLER: &str = "shop/checkout-1";
const SERVER: &str = "shop/inventory-1";

/// `checkout` on host `a` calls `inventory` on host `b`; both have everything in use.
fn running(text: &str) -> World {
    let mut world = world();
    world.declare(declared(1, text), 0);
    for (node, service) in [("a", "checkout"), ("b", "inventory")] {
        world.fact(node, 1, &hello(node), 0).unwrap();
        world.fact(node, 1, &instances(&[instance(service, 1, Ready)]), 0).unwrap();
    }
    both(&mut world, 0);
    world.tick(0);
    world
}

/// Everything that is published is in use.
fn use_all(world: &mut World, node: &str, proxy: &str, now: u64) {
    for fact in acks(world, node, proxy) {
        let wire::FactKind::Applied(applied) = fact else { continue };
        let fact = wire::FactKind::Applied(wire::Applied { reset: true, ..applied });
        world.fact(node, 1, &fact, now).unwrap();
    }
    world.tick(now);
}

fn both(world: &mut World, now: u64) {
    use_all(world, "a", CALLER, now);
    use_all(world, "b", SERVER, now);
}

/// Nobody is silent.
fn heartbeats(world: &mut World, nodes: &[&str], now: u64) {
    for node in nodes {
        world.fact(node, 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), now).unwrap();
    }
    world.tick(now);
}

fn has(world: &World, node: &str, proxy: &str, url: &str, name: &str) -> bool {
    world.published().of_host(node).get(url, &names::scoped(url, proxy, name)).is_some()
}

fn body(world: &World, node: &str, proxy: &str, url: &str, name: &str) -> Vec<u8> {
    let set = world.published().of_host(node);
    set.get(url, &names::scoped(url, proxy, name)).map(|resource| resource.body.clone()).unwrap()
}

fn two_ports() -> String {
    SHOP.replace(
        "{name: http, port: 8081, protocol: http}",
        "{name: http, port: 8081, protocol: http}, {name: admin, port: 9, protocol: http}",
    )
}

#[test]
fn a_port_goes_at_callers_then_at_servers_and_then_the_change_is_done() {
    let mut world = running(&two_ports());
    let mut now = 1_000;
    assert_eq!(world.rollout(1).pending, []);
    world.declare(declared(2, SHOP), now);
    world.tick(now);
    assert!(!has(&world, "a", CALLER, type_url::CLUSTER, "outbound/shop/inventory/admin"));
    for url in [type_url::LISTENER, type_url::CLUSTER] {
        assert!(has(&world, "b", SERVER, url, "inbound/admin"), "{url}");
    }
    let shared =
        |world: &World| world.published().shared.get(type_url::ENDPOINT, "shop/inventory/admin").is_some();
    assert!(shared(&world), "whoever has the route has the endpoints, too");

    // The server has all it was sent in use, and yet the change is not done.
    use_all(&mut world, "b", SERVER, now);
    let view = world.rollout(2);
    let behind = view.pending.iter().find(|behind| behind.proxy == SERVER).unwrap();
    assert_eq!(behind.reasons, ["inbound/admin is taken away once shop/checkout is known not to use it"]);

    now += 10;
    use_all(&mut world, "a", CALLER, now);
    assert!(has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin"), "what was sent may be on its way");
    world.tick(now + LINGER_MS);
    assert!(!has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin") && !shared(&world));
    let view = world.rollout(2);
    assert_eq!((view.current.len(), view.pending.len()), (1, 1), "the server is told now");
    both(&mut world, now + LINGER_MS);
    assert_eq!(world.rollout(2).pending, []);
}

#[test]
fn a_silent_host_and_a_proxy_that_does_not_run_hold_nothing_up() {
    for silent in [true, false] {
        let mut world = running(&two_ports());
        world.declare(declared(2, SHOP), 1_000);
        if silent {
            for now in [2_000, 4_000, 6_000, 8_000] {
                heartbeats(&mut world, &["b"], now);
            }
            assert_eq!(world.instances(Some("shop"), Some("checkout"))[0].state, "lost");
        } else {
            let stopped = wire::Instance { proxy_pid: 0, ..instance("checkout", 1, Ready) };
            world.fact("a", 1, &instances(&[stopped]), 8_000).unwrap();
            heartbeats(&mut world, &["a", "b"], 8_000);
        }
        world.tick(8_000 + LINGER_MS);
        assert!(!has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin"), "silent: {silent}");
    }
    // One that runs and says nothing does, for a time.
    let mut world = running(&two_ports());
    world.declare(declared(2, SHOP), 1_000);
    for now in (2_000..1_000 + WITHDRAW_MS).step_by(2_000) {
        heartbeats(&mut world, &["a", "b"], now);
        assert!(has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin"), "{now}");
    }
    world.tick(1_000 + WITHDRAW_MS);
    assert!(!has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin"));
}

#[test]
fn servers_accept_plaintext_before_callers_send_it_and_no_tls_when_nobody_sends_that() {
    let mode = |mtls: &str| {
        format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: {mtls}}}\n---{SHOP}"
        )
    };
    let mut world = running(&mode("required"));
    let cluster = |world: &World| body(world, "a", CALLER, type_url::CLUSTER, "outbound/shop/inventory/http");
    let listener = |world: &World| body(world, "b", SERVER, type_url::LISTENER, "inbound/http");
    let (secure, required) = (cluster(&world), listener(&world));
    world.declare(declared(2, &mode("off")), 1_000);
    world.tick(1_000);
    assert_eq!(cluster(&world), secure);
    let both_modes = listener(&world);
    assert_ne!(both_modes, required);
    use_all(&mut world, "a", CALLER, 1_000);
    let view = world.rollout(2);
    let behind = view.pending.iter().find(|behind| behind.proxy == CALLER).unwrap();
    assert_eq!(
        behind.reasons,
        ["its calls change once servers accept what is new: shop/inventory (inbound/http)"]
    );
    assert_eq!(world.instances(Some("shop"), Some("checkout"))[0].proxy.config, "pending");

    use_all(&mut world, "b", SERVER, 1_001);
    assert_ne!(cluster(&world), secure, "now callers");
    assert_eq!(listener(&world), both_modes);
    use_all(&mut world, "a", CALLER, 1_002);
    world.tick(1_002 + LINGER_MS);
    assert_ne!(listener(&world), both_modes);
    both(&mut world, 2_000);
    assert_eq!(world.rollout(2).pending, []);

    // Servers of which one does not accept are not waited for longer than this.
    world.declare(declared(3, &mode("required")), 3_000);
    assert_ne!(cluster(&world), secure);
    for now in (4_000..3_000 + MAKE_MS).step_by(2_000) {
        heartbeats(&mut world, &["a", "b"], now);
    }
    heartbeats(&mut world, &["a", "b"], 3_000 + MAKE_MS);
    assert_eq!(cluster(&world), secure);
}

#[test]
fn callers_of_an_instance_that_leaves_have_left_when_they_use_endpoints_without_it() {
    let mut world = running(SHOP);
    assert_eq!(world.left(), BTreeMap::new());
    world.fact("b", 1, &instances(&[instance("inventory", 1, Draining)]), 1_000).unwrap();
    world.tick(1_000);
    assert_eq!(world.left(), BTreeMap::new(), "it is still called");
    let without = acks(&world, "a", CALLER);

    // Another instance comes, and goes before the caller has read any of it: what it then uses is later still.
    let second = [instance("inventory", 1, Draining), instance("inventory", 2, Ready)];
    world.fact("b", 1, &instances(&second), 1_010).unwrap();
    world.tick(1_010);
    for fact in &without {
        world.fact("a", 1, fact, 1_020).unwrap();
    }
    world.tick(1_020);
    let left = BTreeMap::from([("b".to_owned(), BTreeSet::from([SERVER.to_owned()]))]);
    assert_eq!(world.left(), left);
    let third = [instance("inventory", 1, Draining), instance("inventory", 2, Draining)];
    world.fact("b", 1, &instances(&third), 1_030).unwrap();
    world.tick(1_030);
    assert_eq!(world.left(), left, "the second is another matter");
    use_all(&mut world, "a", CALLER, 1_040);
    assert_eq!(world.left()["b"].len(), 2);
    world.fact("b", 1, &instances(&[]), 1_050).unwrap();
    world.tick(1_050);
    assert_eq!(world.left(), BTreeMap::new());
}

#[test]
fn nobody_is_waited_for_who_does_not_call_or_is_not_heard_of() {
    let mut world = running(&SHOP.replace("  calls: [inventory]\n", ""));
    world.fact("b", 1, &instances(&[instance("inventory", 1, Draining)]), 1_000).unwrap();
    world.tick(1_000);
    assert_eq!(world.left().len(), 1);

    let mut world = running(SHOP);
    heartbeats(&mut world, &["b"], 5_000);
    world.fact("b", 1, &instances(&[instance("inventory", 1, Draining)]), 5_000).unwrap();
    world.tick(5_000);
    assert_eq!(world.left().len(), 0);
    heartbeats(&mut world, &["b"], 6_500);
    assert_eq!(world.left().len(), 1, "the caller's host is lost");
    world.evict("b");
    world.tick(6_600);
    assert_eq!(world.left(), BTreeMap::new(), "of a node that is deleted nothing is remembered");
}

const TWIN: &str = "shop/twin-1";
const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: inventory, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: inventory, group: '', port: 8081}]
  rules:
    - backendRefs: [{name: twin, port: 8081}]
";

/// [`SHOP`], and `twin`, which runs on host `c` and is what `inventory` is.
fn with_twin() -> String {
    format!("{SHOP}---{}", SHOP.rsplit("---").next().unwrap().replace("inventory", "twin"))
}

fn running_with_twin() -> World {
    let mut world = running(&with_twin());
    world.fact("c", 1, &hello("c"), 0).unwrap();
    world.fact("c", 1, &instances(&[instance("twin", 1, Ready)]), 0).unwrap();
    use_all(&mut world, "c", TWIN, 0);
    both(&mut world, 0);
    world
}

/// Whether `checkout` is let in at `twin`, and whether it may finish what it has begun there.
fn twin(world: &World) -> (bool, bool) {
    let body = body(world, "c", TWIN, type_url::LISTENER, "inbound/http");
    let listener = Listener::decode(&*body).unwrap();
    let about = ListenerMetadata::from_metadata(listener.metadata.as_ref().unwrap()).unwrap();
    let caller = names::spiffe_service("outrider.internal", "shop", "checkout");
    let filters = listener.filter_chains.iter().flat_map(|chain| &chain.filters);
    let bytes: Vec<u8> = filters.flat_map(Message::encode_to_vec).collect();
    let is_let_in = bytes.windows(caller.len()).any(|window| window == caller.as_bytes());
    (is_let_in, about.finishing.contains(&caller))
}

/// A route leads a caller elsewhere and is taken back before the caller has said that it read of either.
#[test]
fn a_caller_is_let_in_until_it_is_known_not_to_go_by_a_route_it_was_sent() {
    let mut world = running_with_twin();
    assert_eq!(twin(&world), (false, false));
    world.declare(declared(2, &(with_twin() + ROUTE)), 1_000);
    world.tick(1_000);
    use_all(&mut world, "c", TWIN, 1_010);
    assert_eq!(twin(&world), (true, false));
    assert!(has(&world, "a", CALLER, type_url::CLUSTER, "outbound/shop/twin/http"));
    world.declare(declared(3, &with_twin()), 1_020);
    world.tick(1_020);
    assert!(!has(&world, "a", CALLER, type_url::CLUSTER, "outbound/shop/twin/http"));
    for now in [2_000, 3_000, 4_000] {
        heartbeats(&mut world, &["a", "b", "c"], now);
        assert_eq!(twin(&world), (true, false), "{now}");
    }
    use_all(&mut world, "a", CALLER, 4_010);
    assert_eq!(twin(&world), (true, false), "what was sent may be on its way");
    heartbeats(&mut world, &["a", "b", "c"], 4_010 + LINGER_MS);
    assert_eq!(twin(&world), (false, true));
}

#[test]
fn who_was_led_by_a_route_finishes_what_it_began_unless_somebody_denies_it() {
    let policy = |spec: &str| {
        format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: twin, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: twin}}, {spec}}}\n"
        )
    };
    let allow = policy("action: allow, rules: [{from: [{service: inventory}]}]");
    let deny = policy("action: deny, rules: [{from: [{service: checkout}]}]");
    let longer =
        with_twin().replace("  calls: [inventory]", "  timeouts: {request: 20s}\n  calls: [inventory]");
    let uncalled = with_twin().replace("  calls: [inventory]\n", "");
    for (what, text, after) in [
        ("anything else", longer, (false, true)),
        ("a permission is taken back", uncalled, (false, false)),
        ("the caller is denied", with_twin() + &deny, (false, false)),
        ("others are allowed", with_twin() + &allow, (false, false)),
        ("a route leads there again", with_twin() + ROUTE, (true, false)),
    ] {
        let mut world = running_with_twin();
        world.declare(declared(2, &(with_twin() + ROUTE)), 1_000);
        use_all(&mut world, "c", TWIN, 1_000);
        both(&mut world, 1_000);
        world.declare(declared(3, &with_twin()), 2_000);
        use_all(&mut world, "a", CALLER, 2_000);
        heartbeats(&mut world, &["a", "b", "c"], 2_000 + LINGER_MS);
        assert_eq!(twin(&world), (false, true), "{what}");
        world.declare(declared(4, &text), 3_000);
        world.tick(3_000);
        assert_eq!(twin(&world), after, "{what}");
    }
}

/// `checkout` calls `twin` itself for a time, or is led there in another way; what it begins by that ends with that.
#[test]
fn who_is_let_in_otherwise_is_denied_when_that_is_taken_back() {
    let direct = with_twin().replace("  calls: [inventory]", "  calls: [inventory, twin]");
    let other = with_twin().replace("inventory", "other");
    let other = format!("---{}", other.split("---").nth(1).unwrap());
    let calls_other = with_twin().replace("  calls: [inventory]", "  calls: [inventory, other]") + &other;
    let by_other = calls_other.clone() + &ROUTE.replace("name: inventory", "name: other");
    for meanwhile in [&direct, &by_other] {
        for is_over in [true, false] {
            let mut world = running_with_twin();
            world.declare(declared(2, &(with_twin() + ROUTE)), 1_000);
            use_all(&mut world, "c", TWIN, 1_000);
            both(&mut world, 1_000);
            world.declare(declared(3, &with_twin()), 2_000);
            if is_over {
                use_all(&mut world, "a", CALLER, 2_000);
                heartbeats(&mut world, &["a", "b", "c"], 2_000 + LINGER_MS);
                assert_eq!(twin(&world), (false, true));
            }
            world.declare(declared(4, meanwhile), 3_000);
            use_all(&mut world, "c", TWIN, 3_000);
            both(&mut world, 3_000);
            heartbeats(&mut world, &["a", "b", "c"], 3_000 + LINGER_MS);
            assert_eq!(twin(&world), (true, false), "{is_over}: {meanwhile}");
            world.declare(declared(5, &with_twin()), 4_000);
            world.tick(4_000);
            assert_eq!(twin(&world), (false, false), "{is_over}: {meanwhile}");
        }
    }
}

/// A proxy of `twin` may miss the version in which the caller was refused by the narrower policy.
#[test]
fn what_is_allowed_no_more_does_not_go_on_when_the_route_ends_too() {
    let allow = |path: &str| {
        format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: twin, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: twin}}, action: allow, rules: [{{to: [{{paths: [{{value: {path}}}]}}]}}]}}\n"
        )
    };
    let (wide, narrow) = (with_twin() + &allow("/a"), with_twin() + &allow("/b"));
    for (first, second, expected) in
        [(&narrow, &narrow, (false, false)), (&wide, &narrow, (false, false)), (&wide, &wide, (false, true))]
    {
        let mut world = running_with_twin();
        world.declare(declared(2, &(wide.clone() + ROUTE)), 1_000);
        use_all(&mut world, "c", TWIN, 1_000);
        both(&mut world, 1_000);
        world.declare(declared(3, first), 2_000);
        world.declare(declared(4, second), 2_010);
        use_all(&mut world, "a", CALLER, 2_020);
        heartbeats(&mut world, &["a", "b", "c"], 2_020 + LINGER_MS);
        assert_eq!(twin(&world), expected, "{first}{second}");
    }
}

#[test]
fn a_service_that_is_declared_again_knows_nobody_of_before() {
    let mut world = running_with_twin();
    world.declare(declared(2, &(with_twin() + ROUTE)), 1_000);
    use_all(&mut world, "c", TWIN, 1_000);
    both(&mut world, 1_000);
    world.declare(declared(3, &with_twin()), 2_000);
    world.declare(declared(4, SHOP), 2_010);
    world.declare(declared(5, &with_twin()), 2_020);
    world.tick(2_020);
    assert_eq!(twin(&world), (false, false));
}

/// What leads nowhere of a caller has nothing to do with what it calls.
#[test]
fn a_refused_inbound_listener_of_a_caller_holds_nothing_up() {
    let mut world = running(&two_ports());
    world.declare(declared(2, SHOP), 1_000);
    for fact in acks(&world, "a", CALLER) {
        let wire::FactKind::Applied(mut applied) = fact else { continue };
        applied.reset = true;
        let all = std::mem::take(&mut applied.acked);
        let (refused, acked) = all.into_iter().partition(|one| one.name.starts_with("inbound/"));
        (applied.acked, applied.refused, applied.error) = (acked, refused, "cannot bind".into());
        world.fact("a", 1, &wire::FactKind::Applied(applied), 1_010).unwrap();
    }
    world.tick(1_010);
    world.tick(1_010 + LINGER_MS);
    assert!(!has(&world, "b", SERVER, type_url::LISTENER, "inbound/admin"));
}

/// Calls of `inventory` go to `twin` as far as it fails.
const FAILOVER: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: inventory, namespace: shop}
spec: {targetRef: {kind: Service, name: inventory}, failover: [{name: twin}]}
";

/// Endpoints of `inventory` by priority.
fn priorities(world: &World) -> Vec<usize> {
    let read = ClusterLoadAssignment::decode(&*endpoints(world, "shop/inventory/http")).unwrap();
    let mut counts = Vec::new();
    for group in read.endpoints {
        counts.resize(counts.len().max(group.priority as usize + 1), 0);
        counts[group.priority as usize] += group.lb_endpoints.len();
    }
    counts
}

#[test]
fn callers_know_where_calls_fail_over_to_once_they_are_let_in_there() {
    for mode in ["required", "off"] {
        let namespace = format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: {mode}}}\n"
        );
        let text = with_twin() + &namespace;
        let mut world = running(&text);
        world.fact("c", 1, &hello("c"), 0).unwrap();
        world.fact("c", 1, &instances(&[instance("twin", 1, Ready)]), 0).unwrap();
        use_all(&mut world, "c", TWIN, 0);
        both(&mut world, 0);
        let all_say = |world: &mut World, now: u64| heartbeats(world, &["a", "b", "c"], now);
        let cluster =
            |world: &World| body(world, "a", CALLER, type_url::CLUSTER, "outbound/shop/inventory/http");
        let (before, now) = (cluster(&world), 1_000);
        world.declare(declared(2, &(text.clone() + FAILOVER)), now);
        world.tick(now);
        // Who takes everybody has nothing to get ready.
        let at_once = if mode == "off" { vec![1, 1] } else { vec![1] };
        assert_eq!((priorities(&world), cluster(&world) == before), (at_once, true), "{mode}");
        assert_eq!(twin(&world), (mode == "required", false), "{mode}");
        use_all(&mut world, "c", TWIN, 1_010);
        assert_eq!(priorities(&world), [1, 1], "{mode}");
        assert_eq!(cluster(&world) == before, mode == "off", "without certificates nobody is told apart");

        // Who takes the calls comes and goes, and callers are told.
        let more = [instance("twin", 1, Ready), instance("twin", 2, Ready)];
        world.fact("c", 1, &instances(&more), 1_020).unwrap();
        assert_eq!(priorities(&world), [1, 2], "{mode}");
        world.fact("c", 1, &instances(&[instance("twin", 1, Ready)]), 1_030).unwrap();
        world.fact("b", 1, &instances(&[]), 1_040).unwrap();
        assert_eq!(priorities(&world), [0, 1], "{mode}: each keeps its priority");
        world.fact("b", 1, &instances(&[instance("inventory", 1, Ready)]), 1_050).unwrap();

        // Taken back: callers know no more of it before they are refused.
        use_all(&mut world, "c", TWIN, 1_060);
        both(&mut world, 1_060);
        world.declare(declared(3, &text), 2_000);
        world.tick(2_000);
        assert_eq!((priorities(&world), cluster(&world) == before), (vec![1], true), "{mode}");
        all_say(&mut world, 3_000);
        assert_eq!(twin(&world), (mode == "required", false), "{mode}: it may not have read of it");
        let outstanding = format!("{:?}", world.rollout(3).pending);
        assert!(outstanding.contains("shop/checkout is not let in any more once"), "{mode}: {outstanding}");
        use_all(&mut world, "a", CALLER, 3_010);
        all_say(&mut world, 3_010 + LINGER_MS);
        use_all(&mut world, "c", TWIN, 3_020 + LINGER_MS);
        assert_eq!(twin(&world), (false, true), "{mode}: what it began there goes on");
        let outstanding = format!("{:?}", world.rollout(3).pending);
        assert!(!outstanding.contains("let in"), "{mode}: {outstanding}");
    }
}

#[test]
fn who_takes_calls_of_others_has_left_when_their_callers_know() {
    // Also where they have heard of the policy with it only.
    for heard_before in [true, false] {
        let mut world = running_with_twin();
        world.declare(declared(2, &(with_twin() + FAILOVER)), 1_000);
        use_all(&mut world, "c", TWIN, 1_000);
        if heard_before {
            both(&mut world, 1_000);
        }
        assert_eq!(priorities(&world), [1, 1]);
        world.fact("c", 1, &instances(&[instance("twin", 1, Draining)]), 1_010).unwrap();
        world.tick(1_010);
        assert_eq!((priorities(&world), world.left()), (vec![1, 0], BTreeMap::new()), "{heard_before}");
        use_all(&mut world, "a", CALLER, 1_020);
        let left = BTreeMap::from([("c".to_owned(), BTreeSet::from([TWIN.to_owned()]))]);
        assert_eq!(world.left(), left, "{heard_before}");
    }
}

/// What led callers to it is taken back, and it leaves before they have said that they read of either.
#[test]
fn who_took_calls_of_others_has_left_when_their_callers_know_that_it_takes_none() {
    let left = BTreeMap::from([("c".to_owned(), BTreeSet::from([TWIN.to_owned()]))]);
    // Whoever calls it by itself as well is let in all the time, so nothing is withdrawn.
    let both_called = with_twin().replace("calls: [inventory]", "calls: [inventory, twin]");
    for (what, text, leads) in [
        ("fail-over", with_twin(), FAILOVER),
        ("fail-over, and a call", both_called, FAILOVER),
        ("a route", with_twin(), ROUTE),
    ] {
        let mut world = running(&text);
        world.fact("c", 1, &hello("c"), 0).unwrap();
        world.fact("c", 1, &instances(&[instance("twin", 1, Ready)]), 0).unwrap();
        use_all(&mut world, "c", TWIN, 0);
        both(&mut world, 0);
        world.declare(declared(2, &(text.clone() + leads)), 1_000);
        use_all(&mut world, "c", TWIN, 1_000);
        both(&mut world, 1_000);
        world.declare(declared(3, &text), 1_010);
        world.tick(1_010);
        world.fact("c", 1, &instances(&[instance("twin", 1, Draining)]), 1_020).unwrap();
        world.tick(1_020);
        assert_eq!(world.left(), BTreeMap::new(), "{what}: it is still called");
        // What it says of everything but what led there.
        for fact in acks(&world, "a", CALLER) {
            let wire::FactKind::Applied(mut applied) = fact else { continue };
            let leads = |name: &str| name.contains("inventory/http") || name.contains("outbound/");
            applied.acked.retain(|one| !leads(&one.name));
            world.fact("a", 1, &wire::FactKind::Applied(applied), 1_030).unwrap();
        }
        world.tick(1_030);
        assert_eq!(world.left(), BTreeMap::new(), "{what}: it is still called");
        use_all(&mut world, "a", CALLER, 1_040);
        assert_eq!(world.left(), left, "{what}");
    }

    // Nobody says anything: not for ever.
    let mut world = running_with_twin();
    world.declare(declared(2, &(with_twin() + ROUTE)), 1_000);
    use_all(&mut world, "c", TWIN, 1_000);
    both(&mut world, 1_000);
    world.declare(declared(3, &with_twin()), 2_000);
    world.fact("c", 1, &instances(&[instance("twin", 1, Draining)]), 2_000).unwrap();
    for now in (2_000..2_000 + WITHDRAW_MS).step_by(1_000) {
        heartbeats(&mut world, &["a", "b", "c"], now);
        assert_eq!(world.left(), BTreeMap::new(), "{now}");
    }
    heartbeats(&mut world, &["a", "b", "c"], 2_000 + WITHDRAW_MS);
    assert_eq!(world.left(), left);
}
