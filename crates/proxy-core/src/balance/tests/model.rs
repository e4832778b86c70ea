//! Any sequence of what can happen to a balancer, against a model that knows keys only.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Update(Vec<Endpoint<u32>>),
    /// The list of before with one entry changed, taken out or put in.
    Edit(prop::sample::Index, u8, Endpoint<u32>),
    Pick(u64),
    Retry(u64, prop::sample::Index),
    Done(prop::sample::Index),
    Eject(prop::sample::Index, bool),
    EjectAll(BTreeSet<u32>),
    Time(u64),
    Configure(BalanceConfig),
}

fn endpoint() -> impl Strategy<Value = Endpoint<u32>> {
    (0u32..8, 0u32..4, any::<bool>(), 0u8..3, 0u16..3).prop_map(
        |(key, weight, healthy, priority, locality)| Endpoint { key, weight, healthy, priority, locality },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        1 => prop::collection::vec(endpoint(), 0..8).prop_map(Step::Update),
        2 => (index(), 0u8..3, endpoint()).prop_map(|(at, how, with)| Step::Edit(at, how, with)),
        6 => any::<u64>().prop_map(Step::Pick),
        1 => (any::<u64>(), index()).prop_map(|(random, at)| Step::Retry(random, at)),
        4 => index().prop_map(Step::Done),
        1 => (index(), any::<bool>()).prop_map(|(at, ejected)| Step::Eject(at, ejected)),
        1 => prop::collection::btree_set(0u32..8, 0..4).prop_map(Step::EjectAll),
        1 => (0u64..5000).prop_map(Step::Time),
        1 => config().prop_map(Step::Configure),
    ]
}

fn config() -> impl Strategy<Value = BalanceConfig> {
    let policies =
        vec![Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::PeakEwma, RING, MAGLEV];
    let slow = |window_ms| Some(SlowStart { window_ms, aggression: 1.0, min_weight_percent: 10.0 });
    (
        prop::sample::select(policies),
        prop::sample::select(vec![0u8, 50, 100]),
        prop::sample::select(vec![None, slow(3000), slow(9000)]),
        any::<bool>(),
    )
        .prop_map(|(policy, fail_open_below_percent, slow_start, by_locality)| BalanceConfig {
            policy,
            fail_open_below_percent,
            slow_start,
            by_locality,
        })
}

#[derive(Default)]
struct Model {
    list: Vec<Endpoint<u32>>,
    ejected: BTreeSet<u32>,
    now: u64,
}

impl Model {
    /// What counts of a list that may name a key twice.
    fn listed(&self) -> BTreeMap<u32, &Endpoint<u32>> {
        self.list.iter().map(|endpoint| (endpoint.key, endpoint)).collect()
    }

    fn is_good(&self, endpoint: &Endpoint<u32>) -> bool {
        endpoint.healthy && !self.ejected.contains(&endpoint.key)
    }

    /// Whether each priority uses all of its endpoints.
    fn panics(&self, below: u8) -> [bool; 3] {
        let listed = self.listed();
        let counts = [0, 1, 2].map(|priority| {
            let of = listed.values().filter(|e| e.weight > 0 && e.priority == priority);
            (of.clone().count() as u32, of.filter(|e| self.is_good(e)).count() as u32)
        });
        let health = counts.map(|(all, good)| (140 * good).checked_div(all).unwrap_or(0).min(100));
        counts.map(|(all, good)| {
            health.iter().sum::<u32>() < 100 && all > 0 && good * 100 < u32::from(below) * all
        })
    }

    fn assign(&mut self, balancer: &mut Balancer<u32>, list: Vec<Endpoint<u32>>) {
        let before: BTreeSet<u32> = self.listed().into_keys().collect();
        assign(balancer, &list, self.now);
        self.list = list;
        let now = self.listed();
        let stays: Vec<u32> = before.into_iter().filter(|key| now.contains_key(key)).collect();
        self.ejected.retain(|key| stays.contains(key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn behaves_like_the_model(start in config(), steps in prop::collection::vec(step(), 1..120)) {
        let mut config = start;
        let mut balancer = Balancer::new(config);
        let mut model = Model::default();
        let mut running: Vec<(EndpointIndex, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Update(list) => model.assign(&mut balancer, list),
                Step::Edit(at, how, with) => {
                    let mut list = model.list.clone();
                    let at = at.index(list.len() + 1);
                    match how {
                        0 => list.insert(at, with),
                        1 if at < list.len() => drop(list.remove(at)),
                        _ if at < list.len() => list[at] = Endpoint { key: list[at].key, ..with },
                        _ => {}
                    }
                    model.assign(&mut balancer, list);
                }
                Step::Time(by) => {
                    model.now += by;
                    balancer.tell(model.now);
                }
                Step::Configure(new) => {
                    config = new;
                    balancer.configure(config);
                    let list = model.list.clone();
                    model.assign(&mut balancer, list);
                }
                Step::Pick(random) => {
                    let panics = model.panics(config.fail_open_below_percent);
                    let listed = model.listed();
                    let all = listed.values().filter(|e| e.weight > 0);
                    let good = all.clone().filter(|e| model.is_good(e)).count();
                    prop_assert_eq!((balancer.len(), balancer.healthy()), (all.count(), good));
                    prop_assert_eq!(balancer.is_failing_open(), panics.contains(&true));
                    match balancer.choose(&Ask { random, key: (random % 2 == 0).then_some(random), tried: &[] }) {
                        None => prop_assert!(good == 0 && !panics.contains(&true)),
                        Some(index) => {
                            let key = *balancer.key(index).unwrap();
                            let Some(endpoint) = listed.get(&key) else { panic!("picked removed {key}") };
                            prop_assert!(endpoint.weight > 0);
                            let open = panics[usize::from(endpoint.priority)];
                            prop_assert!(open || model.is_good(endpoint), "picked unhealthy {}", key);
                            running.push((index, key));
                        }
                    }
                }
                Step::Retry(random, at) if !running.is_empty() => {
                    let tried = [Some(running[at.index(running.len())].0)];
                    if let Some(index) = balancer.choose(&Ask { random, key: None, tried: &tried }) {
                        running.push((index, *balancer.key(index).unwrap()));
                    }
                }
                Step::Done(at) if !running.is_empty() => {
                    let (index, key) = running.swap_remove(at.index(running.len()));
                    prop_assert_eq!(balancer.key(index), Some(&key));
                    balancer.answered(index, u64::from(key) * 1000);
                    prop_assert!(balancer.done(index));
                }
                Step::Eject(at, on) if !running.is_empty() => {
                    let (index, key) = running[at.index(running.len())];
                    let listed = model.listed().contains_key(&key);
                    prop_assert_eq!(balancer.set_ejected(index, on), listed);
                    if listed && on { model.ejected.insert(key); } else { model.ejected.remove(&key); }
                }
                Step::EjectAll(keys) => {
                    balancer.eject(|key| keys.contains(key));
                    let listed: Vec<u32> = model.listed().into_keys().collect();
                    model.ejected = keys.into_iter().filter(|key| listed.contains(key)).collect();
                }
                Step::Done(_) | Step::Retry(..) | Step::Eject(..) => {}
            }
            let loads: Vec<u32> = balancer.loads().map(|(load, _)| load).collect();
            prop_assert!(matches!(loads.iter().sum(), 0 | 100), "{:?}", loads);
            let new = balancer.slots.iter().filter(|slot| slot.listed > 0 && slot.born.is_some()).count();
            let warming: BTreeSet<u32> = balancer.warming.iter().copied().collect();
            prop_assert!(warming.len() == balancer.warming.len() && warming.len() == new);
            let listed = model.listed();
            for (index, key) in &running {
                let expected = running.iter().filter(|(_, other)| other == key).count();
                prop_assert_eq!(balancer.pending(*index) as usize, expected);
                prop_assert_eq!(balancer.is_listed(*index), listed.contains_key(key));
            }
        }
        // Nothing leaks: when all is done and gone, every slot is free.
        model.assign(&mut balancer, Vec::new());
        for (index, _) in running {
            prop_assert!(balancer.done(index));
        }
        prop_assert_eq!(balancer.free.len(), balancer.slots.len());
        prop_assert!(balancer.by_key.is_empty() && balancer.list.is_empty());
        prop_assert!(balancer.levels.levels.iter().flat_map(|l| &l.groups).all(|g| g.usable.len() == 0 && g.available.len() == 0));
    }
}
