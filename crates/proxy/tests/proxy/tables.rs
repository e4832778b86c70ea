//! Large tables: what a change costs follows the change, not what there is; and memory follows the endpoints.
//!
//! Counted are allocations and what is shared with the snapshot before, never time.

use std::net::SocketAddr;
use std::sync::Arc;

use allocation_counter::measure;
use outrider_handover::Pressure;
use outrider_proxy::assemble::{Arrival, Assembler};
use outrider_proxy::config::Snapshot;
use outrider_proxy::log::Log;
use outrider_proxy::worker::{self, Command, Start};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::type_url;
use tokio::sync::{Notify, mpsc, oneshot};

use super::access::{documents, policy};
use super::mesh::with_secrets;
use super::support::{Authority, Sockets, assignment, compiled, localised};

/// `shop/web` calls so many services.
fn intent(services: usize) -> String {
    let names: Vec<String> = (0..services).map(|number| format!("s{number}")).collect();
    let mut yaml = format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: off}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{role: client, calls: [{}]}}\n",
        names.join(", ")
    );
    for name in names {
        yaml.push_str(&format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{role: server, ports: [{{name: main, port: 80, protocol: http}}]}}\n"
        ));
    }
    yaml
}

fn addresses(service: usize, count: usize) -> Vec<SocketAddr> {
    let address = |number: usize| {
        let [.., a, b] = number.to_be_bytes();
        SocketAddr::from(([10, (service % 250) as u8, a, b], 1_000 + (service / 250) as u16))
    };
    (0..count).map(address).collect()
}

fn endpoints(service: usize, count: usize) -> Arc<Resource> {
    assignment(&format!("shop/s{service}/main"), &addresses(service, count))
}

fn ingest<'a>(assembler: &mut Assembler, kind: &str, resources: impl IntoIterator<Item = &'a Arc<Resource>>) {
    let arrivals = resources.into_iter().map(|resource| Arrival {
        name: &resource.name,
        version: &resource.version,
        body: &resource.body,
    });
    let ingested = assembler.ingest(&kind.into(), arrivals, &[]);
    assert!(ingested.refused.is_empty(), "{:?}", ingested.refused);
}

fn assembled(set: &ResourceSet) -> (Assembler, Arc<Snapshot>) {
    let mut assembler = Assembler::default();
    // One socket for all: nobody connects.
    let socket = Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let names = set.of_type(type_url::LISTENER).map(|resource| resource.name.to_string());
    let mut sockets: Sockets = names.map(|name| (name, Arc::clone(&socket))).collect();
    for name in sockets.keys() {
        assembler.add_sockets(name, socket.local_addr().unwrap());
    }
    let set = localised(set, &mut sockets);
    for kind in [type_url::SECRET, type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER, type_url::ROUTE]
    {
        ingest(&mut assembler, kind, set.of_type(kind));
    }
    let snapshot = assembler.assemble().unwrap();
    assert!(assembler.is_complete(true));
    (assembler, snapshot)
}

/// What one changed endpoint of one service costs: allocations and bytes.
fn cost(services: usize) -> (u64, u64) {
    let mut set = compiled(&intent(services), "shop/web");
    for service in 0..services {
        set.insert(endpoints(service, 10));
    }
    let (mut assembler, before) = assembled(&set);
    let change = endpoints(3, 11);
    let mut after = None;
    let counted = measure(|| {
        ingest(&mut assembler, type_url::ENDPOINT, [&change]);
        after = assembler.assemble();
    });
    let after = after.unwrap();
    let differ = |(one, other): &(&Option<Arc<_>>, &Option<Arc<_>>)| match (one, other) {
        (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
        _ => true,
    };
    assert_eq!(after.clusters.len(), services);
    assert_eq!(before.clusters.iter().zip(&after.clusters).filter(differ).count(), 1);
    assert!(before.listeners.iter().all(|(name, one)| Arc::ptr_eq(one, &after.listeners[name])));
    // The same again is nothing at all.
    ingest(&mut assembler, type_url::ENDPOINT, [&change]);
    assert!(assembler.assemble().is_none());
    (counted.count_total, counted.bytes_total)
}

#[test]
fn a_changed_endpoint_costs_what_it_is_however_many_services_there_are() {
    let (few, many) = (cost(20), cost(1_000));
    println!("allocations and bytes: {few:?} of 20 services, {many:?} of 1,000");
    // Beside the change there is a table of what is in use: two words for a cluster, and a map of listeners.
    assert!(many.0 < few.0 + 1_000 / 4, "{few:?} {many:?}");
    assert!(many.1 < few.1 + 1_000 * 128, "{few:?} {many:?}");
}

#[test]
fn memory_follows_the_endpoints() {
    let mut set = compiled(&intent(1), "shop/web");
    set.insert(endpoints(0, 10));
    let (mut assembler, first) = assembled(&set);
    let of = |assembler: &mut Assembler, count: usize| {
        let change = endpoints(0, count);
        let mut after = None;
        let counted = measure(|| {
            ingest(assembler, type_url::ENDPOINT, [&change]);
            after = assembler.assemble();
        });
        let after = after.unwrap();
        assert_eq!(after.clusters[0].as_ref().unwrap().endpoints.len(), count);
        (counted, after)
    };
    let (all, many) = of(&mut assembler, 10_000);
    println!("10,000 endpoints: {all:?}");
    // Kept, with what it replaced: the list, and what is known of all of it together.
    assert!(all.bytes_current < 10_000 * 256, "{all:?}");
    // One more of them is the list again, and nothing that grows.
    let (more, more_of_them) = of(&mut assembler, 10_001);
    drop((first, many));
    println!("one more: {more:?}");
    // Read one after the other: an address in words each, and what is kept twice at most.
    assert!(more.count_total < 10_000 + 500 && more.bytes_total < 10_000 * 200, "{more:?}");
    let before = more_of_them;
    let mut kept = Vec::new();
    for round in 0..20 {
        let (counted, after) = of(&mut assembler, 10_000 + round % 2);
        kept.push(counted.bytes_current);
        drop(after);
    }
    drop(before);
    assert!(kept.iter().sum::<i64>() < 10_000 * 512, "what changes for ever keeps growing: {kept:?}");
}

/// What a worker's thread asks of the allocator to take these over, one after the other: number and bytes.
fn taken_over(snapshots: &[Arc<Snapshot>]) -> (u64, u64) {
    let (commands, receiver) = mpsc::unbounded_channel();
    let snapshots = snapshots.to_vec();
    let control = std::thread::spawn(move || {
        for snapshot in snapshots {
            let (done, applied) = oneshot::channel();
            commands.send(Command::Apply(snapshot, done)).ok().unwrap();
            applied.blocking_recv().unwrap();
        }
    });
    let start = Start {
        log: Log::start().unwrap(),
        share: 100,
        accepting: true,
        pressure: Pressure::None,
        nudge: Arc::<Notify>::default(),
    };
    let counted = measure(|| worker::run(receiver, start).unwrap());
    control.join().unwrap();
    (counted.count_total, counted.bytes_total)
}

/// What it is for a worker if one endpoint of so many comes and goes: allocations and bytes for one such change.
fn change_at_worker(count: usize) -> (u64, u64) {
    const CHANGES: usize = 10;
    let mut set = compiled(&intent(1), "shop/web");
    set.insert(endpoints(0, count));
    let (mut assembler, first) = assembled(&set);
    let mut snapshots = vec![first];
    for round in 1..=CHANGES {
        ingest(&mut assembler, type_url::ENDPOINT, [&endpoints(0, count + round % 2)]);
        snapshots.push(assembler.assemble().unwrap());
    }
    let (once, all) = (taken_over(&snapshots[..1]), taken_over(&snapshots));
    assert!(once.0 > 0, "allocations are seen");
    // Starting takes some more or less.
    (all.0.saturating_sub(once.0) / CHANGES as u64, all.1.saturating_sub(once.1) / CHANGES as u64)
}

/// It stops serving for as long as it takes one over: a few allocations, whatever the number of endpoints, and none of a
/// list of them, which are 400 kB here.
#[test]
fn a_changed_endpoint_is_a_bounded_step_for_a_worker() {
    let (few, many) = (change_at_worker(100), change_at_worker(10_000));
    println!("allocations and bytes of a change at a worker: {few:?} of 100 endpoints, {many:?} of 10,000");
    assert!(many.0 < few.0 + 50, "{few:?} {many:?}");
    assert!(many.1 < 10_000 * 8, "{many:?}");
}

/// Who may call is looked at where listeners are read, once, and not by each worker at each rotation: there may be 2,000,000
/// callers in the rules of one service.
#[test]
fn who_may_call_is_the_same_object_as_long_as_it_is_the_same() {
    const READERS: &str = "action: allow, rules: [{from: [{service: web}], to: [{methods: [GET]}]}]";
    const NOBODY: &str = "action: deny, rules: [{from: [{service: web}]}]";
    let authority = Authority::new();
    for (protocol, policies) in [("http", policy("readers", READERS)), ("tcp", String::new())] {
        let set = |policies: &str| {
            with_secrets(&documents(protocol, "required", 8080, policies), "shop/api", &authority, "shop/api")
        };
        let (mut assembler, before) = assembled(&set(&policies));
        let same = |one: &Snapshot, other: &Snapshot| -> bool {
            assert!(!one.listeners.is_empty());
            one.listeners.iter().all(|(name, one)| {
                assert!(!Arc::ptr_eq(one, &other.listeners[name]), "made anew");
                one.admits_as(&other.listeners[name])
            })
        };
        let mut sockets: Sockets = Sockets::new();
        let mut again = |assembler: &mut Assembler, policies: &str, round: u32| {
            for listener in localised(&set(policies), &mut sockets).of_type(type_url::LISTENER) {
                assembler.add_sockets(&listener.name, sockets[&*listener.name].local_addr().unwrap());
                let version = format!("{} {round}", listener.version);
                let body = listener.body.clone();
                let other = Arc::new(Resource::new(type_url::LISTENER, &*listener.name, version, body));
                ingest(assembler, type_url::LISTENER, [&other]);
            }
            assembler.assemble().unwrap()
        };
        ingest(&mut assembler, type_url::SECRET, &authority.secrets("shop/api"));
        let rotated = assembler.assemble().unwrap();
        assert!(same(&rotated, &before), "{protocol}: another certificate");
        let resent = again(&mut assembler, &policies, 1);
        assert!(same(&resent, &rotated) && same(&resent, &before), "{protocol}: another version");
        // Equal, but from elsewhere: that would have to be looked at.
        assert!(!same(&assembled(&set(&policies)).1, &before), "{protocol}: nobody looks");
        let stricter = again(&mut assembler, &policy("nobody", NOBODY), 2);
        assert!(!same(&stricter, &resent), "{protocol}: others may call");
        assert!(same(&again(&mut assembler, &policy("nobody", NOBODY), 3), &stricter), "{protocol}");
    }
}
