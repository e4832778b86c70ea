//! Lists of a server of others that change and are taken back at random, over streams that break and delay: a list in use
//! is what the server had at some moment, whole, and in the end it is what the server has.

use std::collections::VecDeque;

use outrider_xds_types::pb::envoy::config::endpoint::v3::LbEndpoint;
use proptest::prelude::*;

use super::*;

const LISTS: usize = 3;

/// Versions of its members.
type Members = BTreeMap<u16, u32>;

#[derive(Clone, Debug)]
enum Step {
    /// A member of a list comes, changes or goes (0).
    Change(usize, u16, u32),
    /// A list is what it was this many changes before.
    TakeBack(usize, usize),
    /// The assignment refers to these.
    Refer(Vec<usize>),
    Unsubscribe,
    Subscribe,
    ToServer,
    ToClient,
    /// The client puts an update into use: the oldest, or the latest. Or refuses all of it.
    Apply(bool),
    Refuse,
    /// Another stream; what waits to come into use still may, or never does.
    Reconnect(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..LISTS, 0..4_u16, 0..4_u32).prop_map(|(list, member, version)| Step::Change(list, member, version)),
        3 => (0..LISTS, 1..4_usize).prop_map(|(list, by)| Step::TakeBack(list, by)),
        2 => proptest::sample::subsequence(vec![0, 1, 2], 1..=2).prop_map(Step::Refer),
        1 => Just(Step::Unsubscribe),
        2 => Just(Step::Subscribe),
        12 => Just(Step::ToServer),
        12 => Just(Step::ToClient),
        12 => any::<bool>().prop_map(Step::Apply),
        1 => Just(Step::Refuse),
        2 => any::<bool>().prop_map(Step::Reconnect),
    ];
    proptest::collection::vec(step, 0..120)
}

fn glob(list: usize) -> String {
    format!("{LIST}/{list}/*")
}

/// One stream of a server that answers requests in their order, and pushes whatever changes.
#[derive(Default)]
struct Stream {
    head: Option<String>,
    wants_head: bool,
    wants: BTreeSet<usize>,
    /// Members that the client has, as it says or was sent.
    has: [Members; LISTS],
    nonce: usize,
}

struct World {
    /// It answers with nothing where there is nothing to say; else by the name of the list, and not at all.
    answers_empty: bool,
    lists: [Members; LISTS],
    history: [Vec<Members>; LISTS],
    /// By version.
    heads: Vec<Vec<usize>>,
    stream: Stream,
    client: Client,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    waiting: Vec<Update>,
    /// What came last of what is in use.
    used: Option<(Token, Arc<Resource>)>,
    ended: usize,
}

impl World {
    fn new(answers_empty: bool) -> Self {
        let mut client = client();
        client.subscribe(EDS, [NAME]);
        let first = [1, 2, 0].map(|count| (0..count).map(|member| (member, 1)).collect::<Members>());
        Self {
            answers_empty,
            history: first.clone().map(|members| vec![members]),
            lists: first,
            heads: vec![vec![0, 2]],
            stream: Stream::default(),
            to_server: client.connect().into(),
            client,
            to_client: VecDeque::new(),
            waiting: Vec::new(),
            used: None,
            ended: 0,
        }
    }

    fn send(&mut self, mut response: DeltaDiscoveryResponse) {
        self.stream.nonce += 1;
        response.nonce = self.stream.nonce.to_string();
        self.to_client.push_back(response);
    }

    /// What the client has not got of its lists, if there is anything, and of the assignment.
    fn push(&mut self) {
        let mut response = DeltaDiscoveryResponse { type_url: LEDS.into(), ..Default::default() };
        for list in self.stream.wants.clone() {
            let (has, now) = (&self.stream.has[list], &self.lists[list]);
            let name = |member: &u16| format!("{LIST}/{list}/{member}");
            for (member, version) in now.iter().filter(|(member, version)| has.get(member) != Some(version)) {
                let body = lb_endpoint(at(*member), *version + 1).encode_to_vec();
                response.resources.push(WireResource {
                    name: name(member),
                    version: version.to_string(),
                    resource: Some(Any { type_url: LEDS.into(), value: body }),
                    ..Default::default()
                });
            }
            let gone = has.keys().filter(|member| !now.contains_key(member));
            response.removed_resources.extend(gone.map(name));
            self.stream.has[list] = now.clone();
        }
        if !(response.resources.is_empty() && response.removed_resources.is_empty()) {
            self.send(response);
        }
        let version = format!("h{}", self.heads.len());
        if self.stream.wants_head && self.stream.head.as_ref() != Some(&version) {
            let localities = self.heads.last().unwrap().iter().map(|list| refers(&glob(*list))).collect();
            self.send(theirs("", &version, localities));
            self.stream.head = Some(version);
        }
    }

    fn on_request(&mut self, request: &DeltaDiscoveryRequest) {
        if request.type_url == EDS {
            for _name in &request.resource_names_subscribe {
                self.stream.wants_head = true;
                self.stream.head = request.initial_resource_versions.get(NAME).cloned();
            }
            if !request.resource_names_unsubscribe.is_empty() {
                self.stream.wants_head = false;
            }
            return self.push();
        }
        let number = |name: &String| (0..LISTS).find(|list| glob(*list) == *name).expect("one of ours");
        for list in request.resource_names_unsubscribe.iter().map(number) {
            self.stream.wants.remove(&list);
            self.stream.has[list].clear();
        }
        for (name, version) in &request.initial_resource_versions {
            let path: Vec<&str> = name.strip_prefix(LIST).unwrap().split('/').collect();
            let (list, member): (usize, u16) = (path[1].parse().unwrap(), path[2].parse().unwrap());
            self.stream.has[list].insert(member, version.parse().unwrap());
        }
        let before = self.to_client.len();
        let new: Vec<usize> = request.resource_names_subscribe.iter().map(number).collect();
        self.stream.wants.extend(&new);
        self.push();
        if new.is_empty() || self.to_client.iter().skip(before).any(|sent| sent.type_url == LEDS) {
            return;
        }
        if self.answers_empty {
            self.send(response(LEDS, "", &[], &[]));
        } else if let [list] = new.as_slice()
            && self.lists[*list].is_empty()
        {
            self.send(response(LEDS, "", &[], &[&glob(*list)]));
        }
    }

    /// Whatever is handed on has lists as they were at some moment.
    fn check(&self, whole: &Resource) {
        let (head, _) = whole.version.split_once('+').expect("made of lists");
        let lists = &self.heads[head[1..].parse::<usize>().unwrap() - 1];
        let read = ClusterLoadAssignment::decode(whole.body.as_slice()).unwrap();
        assert_eq!(read.endpoints.len(), lists.len());
        for (list, locality) in lists.iter().zip(&read.endpoints) {
            let members = members(locality);
            assert!(self.history[*list].contains(&members), "{list}: {members:?} in {:?}", self.history);
        }
    }

    fn apply(&mut self, oldest: bool, refuse: bool) {
        let Some(last) = self.waiting.len().checked_sub(1) else { return };
        let update = self.waiting.remove(if oldest { 0 } else { last });
        assert_eq!(update.refused, []);
        let mut refused = Vec::new();
        for resource in &update.added {
            let wanted = self.client.interest(EDS).is_some_and(|interest| interest.covers(NAME));
            if refuse {
                refused.push((NAME.to_owned(), "bad".to_owned()));
            } else if wanted && self.used.as_ref().is_none_or(|(token, _)| *token < update.token) {
                self.used = Some((update.token, resource.clone()));
            }
        }
        self.to_server.extend(self.client.requests());
        self.to_server.extend(self.client.refuse(update.token, &refused));
    }

    fn reconnect(&mut self, keeps: bool) {
        self.to_server.clear();
        self.to_client.clear();
        if !keeps {
            self.waiting.clear();
        }
        self.stream = Stream::default();
        self.client.disconnected();
        self.to_server.extend(self.client.connect());
    }

    fn change(&mut self, list: usize, members: Members) {
        self.history[list].push(members.clone());
        self.lists[list] = members;
        self.push();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(list, member, version) => {
                let mut members = self.lists[list].clone();
                match version {
                    0 => drop(members.remove(&member)),
                    version => drop(members.insert(member, version)),
                }
                self.change(list, members);
            }
            Step::TakeBack(list, by) => {
                let history = &self.history[list];
                let before = history[history.len().saturating_sub(1 + by)].clone();
                self.change(list, before);
            }
            Step::Refer(lists) => {
                self.heads.push(lists);
                self.push();
            }
            Step::Unsubscribe => {
                self.client.unsubscribe(EDS, [NAME]);
                self.used = None;
                self.to_server.extend(self.client.requests());
            }
            Step::Subscribe => {
                self.client.subscribe(EDS, [NAME]);
                self.to_server.extend(self.client.requests());
            }
            Step::ToServer => {
                if let Some(request) = self.to_server.pop_front()
                    && (request.response_nonce.is_empty() || !request.resource_names_subscribe.is_empty())
                {
                    self.on_request(&request);
                }
            }
            Step::ToClient => {
                let Some(response) = self.to_client.pop_front() else { return };
                match self.client.on_response(response) {
                    Ok(update) => {
                        update.added.iter().for_each(|whole| self.check(whole));
                        self.to_server.extend(self.client.requests());
                        self.waiting.push(update);
                    }
                    Err(bad) => {
                        let ResponseError::NamedAgain { .. } = bad.reason else { panic!("{bad}") };
                        self.ended += 1;
                        self.reconnect(true);
                    }
                }
            }
            Step::Apply(oldest) => self.apply(oldest, false),
            Step::Refuse => self.apply(true, true),
            Step::Reconnect(keeps) => self.reconnect(keeps),
        }
    }

    fn quiesce(&mut self) {
        for _ in 0..1_000 {
            if self.to_server.is_empty() && self.to_client.is_empty() && self.waiting.is_empty() {
                return;
            }
            [Step::ToServer, Step::ToClient, Step::Apply(true)].into_iter().for_each(|step| self.step(step));
        }
        panic!("never comes to rest");
    }
}

fn members(locality: &LocalityLbEndpoints) -> Members {
    let weight = |one: &LbEndpoint| one.load_balancing_weight.map_or(1, |w| w.value);
    let number =
        |one: &LbEndpoint| (0..4).find(|n| lb_endpoint(at(*n), weight(one)) == *one).expect("a member");
    locality.lb_endpoints.iter().map(|one| (number(one), weight(one) - 1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn lists_are_never_used_in_half_and_are_what_the_server_has_in_the_end(
        steps in steps(),
        answers_empty: bool,
    ) {
        let mut world = World::new(answers_empty);
        for step in steps {
            world.step(step);
        }
        world.step(Step::Subscribe);
        world.quiesce();
        // Whatever was refused for good changes; lists that nobody refers to do not matter.
        for list in 0..LISTS {
            world.step(Step::Change(list, 3, 9));
        }
        world.quiesce();
        let (_, used) = world.used.clone().expect("there is a whole");
        let head = format!("h{}", world.heads.len());
        prop_assert!(used.version.starts_with(&format!("{head}+")), "{} {head}", used.version);
        let read = ClusterLoadAssignment::decode(used.body.as_slice()).unwrap();
        let in_use: Vec<Members> = read.endpoints.iter().map(members).collect();
        let now: Vec<Members> =
            world.heads.last().unwrap().iter().map(|list| world.lists[*list].clone()).collect();
        prop_assert_eq!(in_use, now);
        prop_assert_eq!(held(&world.client, EDS), [(NAME.to_owned(), head)]);
    }
}
