//! Whatever happens in whatever order, a proxy is not called current while it may use something else.

use std::collections::{BTreeMap, VecDeque};

use outrider_xds_types::{names, type_url};
use proptest::prelude::*;
use wire::InstanceState::{Draining, Ready};

use super::super::tests::{SHOP, declared, hello, instance, instances, world};
use super::super::{World, wire};

const PROXY: &str = "shop/checkout-1";
const TYPES: [&str; 4] = [type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER, type_url::ROUTE];

/// What a proxy should have: (type, name) → (version, body).
type Resources = BTreeMap<(String, String), (String, Vec<u8>)>;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of some intents.
    Declare(usize),
    /// The endpoint of the called service is there, or not.
    Endpoint(bool),
    /// The server's stream looks for changes.
    Send,
    /// The agent reads one response.
    Receive,
    /// The agent's relay looks for changes.
    Relay,
    /// The proxy takes one of them into use, and says so.
    Use,
    /// The server reads one fact.
    Hear,
    /// A new session: everything is said again.
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3usize).prop_map(Step::Declare),
        2 => any::<bool>().prop_map(Step::Endpoint),
        3 => Just(Step::Send),
        3 => Just(Step::Receive),
        3 => Just(Step::Relay),
        3 => Just(Step::Use),
        4 => Just(Step::Hear),
        1 => Just(Step::Again),
    ]
}

struct Mesh {
    world: World,
    revision: u64,
    to_agent: VecDeque<Resources>,
    sent: Resources,
    agent: Resources,
    to_proxy: VecDeque<Resources>,
    relayed: Resources,
    proxy: Resources,
    facts: VecDeque<wire::FactKind>,
}

impl Mesh {
    fn new() -> Self {
        let mut world = world();
        world.fact("a", 1, &hello("a"), 0).unwrap();
        Self {
            world,
            revision: 1,
            to_agent: VecDeque::new(),
            sent: Resources::new(),
            agent: Resources::new(),
            to_proxy: VecDeque::new(),
            relayed: Resources::new(),
            proxy: Resources::new(),
            facts: VecDeque::new(),
        }
    }

    fn published(&self) -> Resources {
        let set = self.world.published().of_host("a");
        let mut resources = Resources::new();
        for url in TYPES {
            for resource in set.of_type(url) {
                let name = match names::unscope(&resource.name) {
                    Some((PROXY, name)) => name,
                    Some(_) => continue,
                    None => &resource.name,
                };
                let content = (resource.version.to_string(), resource.body.clone());
                resources.insert((url.to_owned(), name.to_owned()), content);
            }
        }
        // Endpoints of what is called only.
        let calls: Vec<String> = resources
            .keys()
            .filter_map(|(_, name)| Some(name.strip_prefix("outbound/")?.to_owned()))
            .collect();
        resources.retain(|(url, name), _| url != type_url::ENDPOINT || calls.contains(name));
        resources
    }

    fn say(&mut self, before: Option<&Resources>) {
        for url in TYPES {
            let of_type = |all: &Resources| -> BTreeMap<String, String> {
                let of_type = all.iter().filter(|((of, _), _)| of == url);
                of_type.map(|((_, name), (version, _))| (name.clone(), version.clone())).collect()
            };
            let (new, old) = (of_type(&self.proxy), before.map(of_type).unwrap_or_default());
            let acked = new.iter().filter(|(name, version)| old.get(*name) != Some(version));
            let applied = wire::Applied {
                proxy: PROXY.into(),
                type_url: url.into(),
                acked: acked
                    .map(|(name, version)| wire::ResourceVersion {
                        name: name.clone(),
                        version: version.clone(),
                    })
                    .collect(),
                removed: old.keys().filter(|name| !new.contains_key(*name)).cloned().collect(),
                reset: before.is_none(),
                ..wire::Applied::default()
            };
            self.facts.push_back(wire::FactKind::Applied(applied));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Declare(number) => {
                self.revision += 1;
                let text = match number {
                    0 => SHOP.to_owned(),
                    1 => SHOP.replace("port: 8081", "port: 9999"),
                    _ => SHOP.replace("  calls: [inventory]\n", ""),
                };
                self.world.declare(declared(self.revision, &text), 0);
            }
            Step::Endpoint(there) => {
                let state = if there { Ready } else { Draining };
                let both = [instance("checkout", 1, Ready), instance("inventory", 1, state)];
                self.world.fact("a", 1, &instances(&both), 0).unwrap();
            }
            Step::Send => {
                let published = self.published();
                // As a stream does: what has the version that was sent is not sent.
                let versions = |all: &Resources| -> Vec<_> {
                    all.iter().map(|(name, (version, _))| (name.clone(), version.clone())).collect()
                };
                if versions(&published) != versions(&self.sent) {
                    self.sent.clone_from(&published);
                    self.to_agent.push_back(published);
                }
            }
            Step::Receive => {
                if let Some(resources) = self.to_agent.pop_front() {
                    self.agent = resources;
                }
            }
            Step::Relay => {
                if self.agent != self.relayed {
                    self.relayed.clone_from(&self.agent);
                    self.to_proxy.push_back(self.agent.clone());
                }
            }
            Step::Use => {
                if let Some(resources) = self.to_proxy.pop_front() {
                    let before = std::mem::replace(&mut self.proxy, resources);
                    self.say(Some(&before));
                }
            }
            Step::Hear => {
                if let Some(fact) = self.facts.pop_front() {
                    self.world.fact("a", 1, &fact, 0).unwrap();
                }
            }
            Step::Again => {
                // What the old session had not said yet is lost with it.
                self.facts.clear();
                self.world.fact("a", 1, &hello("a"), 0).unwrap();
                self.say(None);
            }
        }
    }

    fn arrive(&mut self) {
        self.step(Step::Send);
        while !self.to_agent.is_empty() {
            self.step(Step::Receive);
        }
        self.step(Step::Relay);
        while !self.to_proxy.is_empty() {
            self.step(Step::Use);
        }
        while !self.facts.is_empty() {
            self.step(Step::Hear);
        }
    }

    fn is_current(&self) -> bool {
        self.world.rollout(self.revision).current.contains(&PROXY.to_owned())
    }

    fn check(&self) {
        if !self.is_current() {
            return;
        }
        let bodies = |all: &Resources| -> Vec<_> {
            all.iter().map(|(name, (_, body))| (name.clone(), body.clone())).collect()
        };
        let wanted = bodies(&self.published());
        assert!(bodies(&self.proxy) == wanted, "another configuration is in use");
        for coming in self.to_agent.iter().chain([&self.agent]).chain(&self.to_proxy) {
            assert!(bodies(coming) == wanted, "another configuration is on its way");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn current_means_in_use_and_nothing_else_on_its_way(steps in prop::collection::vec(step(), 1..120)) {
        let mut mesh = Mesh::new();
        mesh.step(Step::Endpoint(true));
        for step in steps {
            mesh.step(step);
            mesh.check();
        }
        // And when everything has arrived, it is. Servers that say nothing hold callers up for a time only.
        mesh.arrive();
        mesh.world.fact("a", 1, &wire::FactKind::Heartbeat(wire::Heartbeat::default()), 40_000).unwrap();
        mesh.world.tick(40_000);
        mesh.arrive();
        mesh.check();
        prop_assert!(mesh.is_current(), "{:?}", mesh.world.rollout(mesh.revision));
    }
}
