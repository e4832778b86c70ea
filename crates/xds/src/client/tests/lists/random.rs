//! Lists of two services that change at random, over streams that break, lose and delay: whatever the client puts into
//! use is what the server published under that version, byte for byte, and in the end it has everything.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::lists::tests::Plan;

const NAMES: [&str; 2] = ["shop/a/main", "shop/a/main/b"];

#[derive(Clone, Debug)]
enum Step {
    /// Endpoints that come, go (0) or change their weight, by zone and number; and what is then published.
    Change(usize, Vec<(usize, u16, u32)>),
    /// As it was at first.
    Reset(usize),
    Remove(usize),
    Unsubscribe(usize),
    Subscribe(usize),
    ToServer,
    ToClient,
    /// The client puts an update into use: the oldest, or the latest. Or refuses what it can of it.
    Apply(bool),
    Refuse,
    /// Endpoints one by one do not arrive.
    Lose,
    /// Another stream, to a server that remembers or one that does not.
    Reconnect(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let edit = (0..3_usize, 0..110_u16, 0..4_u32);
    let step = prop_oneof![
        12 => (0..2_usize, proptest::collection::vec(edit, 1..6)).prop_map(|(n, edits)| Step::Change(n, edits)),
        1 => (0..2_usize).prop_map(Step::Reset),
        1 => (0..2_usize).prop_map(Step::Remove),
        1 => (0..2_usize).prop_map(Step::Unsubscribe),
        2 => (0..2_usize).prop_map(Step::Subscribe),
        16 => Just(Step::ToServer),
        16 => Just(Step::ToClient),
        16 => any::<bool>().prop_map(Step::Apply),
        1 => Just(Step::Refuse),
        1 => Just(Step::Lose),
        2 => any::<bool>().prop_map(Step::Reconnect),
    ];
    proptest::collection::vec(step, 0..150)
}

struct World {
    set: ResourceSet,
    plans: [Plan; 2],
    /// Everything that was published.
    published: BTreeMap<String, Vec<u8>>,
    options: Options,
    session: Session,
    client: Client,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    waiting: Vec<Update>,
    used: BTreeMap<String, Arc<Resource>>,
    /// Heads that did not add up.
    not_added_up: usize,
}

fn first() -> Plan {
    let mut plan = of("", 0..90);
    plan.extend(of("a", 0..70));
    plan
}

impl World {
    fn new() -> Self {
        let options = Options::for_agent();
        let mut client = Client::new(node(features::advertised()), Limits::default());
        client.subscribe(EDS, NAMES);
        let mut world = Self {
            set: ResourceSet::new(),
            plans: [first(), first()],
            published: BTreeMap::new(),
            session: Session::new(options.clone()),
            options,
            to_server: client.connect().into(),
            client,
            to_client: VecDeque::new(),
            waiting: Vec::new(),
            used: BTreeMap::new(),
            not_added_up: 0,
        };
        (0..2).for_each(|n| world.publish(n));
        world
    }

    fn publish(&mut self, n: usize) {
        let body = assignment(&self.plans[n]);
        let version = format!("{:016x}", crate::lists::digest(&body));
        self.published.insert(version.clone(), body.clone());
        self.set.insert(Resource::new(EDS, NAMES[n], version, body));
    }

    fn poll(&mut self) {
        self.to_client.extend(self.session.poll(&self.set));
    }

    fn apply(&mut self, oldest: bool, refuse: bool) {
        let Some(last) = self.waiting.len().checked_sub(1) else { return };
        let update = self.waiting.remove(if oldest { 0 } else { last });
        let mut refused = Vec::new();
        for resource in &update.added {
            let expected = self.published.get(&*resource.version);
            assert_eq!(expected, Some(&resource.body), "{} {}", resource.name, resource.version);
            if refuse {
                refused.push((resource.name.to_string(), "bad".to_owned()));
            } else if self.client.interest(EDS).is_some_and(|interest| interest.covers(&resource.name)) {
                self.used.insert(resource.name.to_string(), resource.clone());
            }
        }
        update.removed.iter().for_each(|name| drop(self.used.remove(name)));
        self.not_added_up += update.refused.len();
        self.to_server.extend(self.client.requests());
        self.to_server.extend(self.client.refuse(update.token, &refused));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(n, edits) => {
                for (zone, number, weight) in edits {
                    let zone = self.plans[n].entry(["", "a", "b"][zone].to_owned()).or_default();
                    match weight {
                        0 => drop(zone.remove(&number)),
                        weight => drop(zone.insert(number, weight)),
                    }
                }
                self.publish(n);
            }
            Step::Reset(n) => {
                self.plans[n] = first();
                self.publish(n);
            }
            Step::Remove(n) => drop(self.set.remove(EDS, NAMES[n])),
            Step::Unsubscribe(n) => {
                self.client.unsubscribe(EDS, [NAMES[n]]);
                self.used.remove(NAMES[n]);
                self.to_server.extend(self.client.requests());
            }
            Step::Subscribe(n) => {
                self.client.subscribe(EDS, [NAMES[n]]);
                self.to_server.extend(self.client.requests());
            }
            Step::ToServer => {
                if let Some(request) = self.to_server.pop_front() {
                    self.session.on_request(&request).expect("within limits");
                }
            }
            Step::ToClient => {
                if let Some(response) = self.to_client.pop_front() {
                    self.waiting.push(self.client.on_response(response).expect("well-formed"));
                }
            }
            Step::Apply(oldest) => self.apply(oldest, false),
            Step::Refuse => self.apply(true, true),
            Step::Lose => {
                if let Some(at) = self.to_client.iter().position(|one| one.type_url == LEDS) {
                    self.to_client.remove(at);
                }
            }
            Step::Reconnect(remembers) => {
                self.to_server.clear();
                self.to_client.clear();
                self.waiting.clear();
                self.client.disconnected();
                if !remembers {
                    self.options = Options::for_agent();
                }
                self.session = Session::new(self.options.clone());
                self.to_server.extend(self.client.connect());
            }
        }
        self.poll();
    }

    fn quiesce(&mut self) {
        for _ in 0..500 {
            if self.to_server.is_empty() && self.to_client.is_empty() && self.waiting.is_empty() {
                return;
            }
            [Step::ToServer, Step::ToClient, Step::Apply(true)].into_iter().for_each(|step| self.step(step));
        }
        panic!("never comes to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_client_has_what_the_server_has(steps in steps()) {
        let mut world = World::new();
        let mut disturbed = false;
        for step in steps {
            // What is lost, refused, dropped or removed on the way may have to be sent whole; nothing else may.
            disturbed |= !matches!(step, Step::Change(..) | Step::ToServer | Step::ToClient | Step::Apply(true));
            world.step(step);
        }
        world.quiesce();
        // What was refused for good changes; everything is wanted.
        for n in [0, 1] {
            world.plans[n].entry(String::new()).or_default().insert(200, 1);
            world.step(Step::Subscribe(n));
            world.publish(n);
        }
        world.step(Step::ToClient);
        world.quiesce();
        prop_assert!(disturbed || world.not_added_up == 0);
        for name in NAMES {
            prop_assert_eq!(world.used.get(name), world.set.get(EDS, name), "{}", name);
            let held = world.client.held(EDS).find(|(held, _)| ***held == *name).map(|(_, version)| version);
            prop_assert_eq!(held, world.set.get(EDS, name).map(|resource| &resource.version));
        }
    }
}
