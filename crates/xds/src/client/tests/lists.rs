//! Long lists of endpoints between our server and our client, and from a server of others.

use outrider_xds_types::features;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LedsClusterLocalityConfig};
use outrider_xds_types::pb::envoy::config::endpoint::v3::{LocalityLbEndpoints, locality_lb_endpoints};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url::LB_ENDPOINT as LEDS;

use super::*;

use crate::lists::tests::{NAME, assignment, at, lb_endpoint, of};
use crate::server::{Options, Seen, Session};
use crate::set::ResourceSet;

mod random;
mod theirs;

fn node(features: Vec<String>) -> Node {
    Node { id: "n".into(), client_features: features, ..Node::default() }
}

/// A server and a client that acknowledges everything but what it is told to refuse.
struct Pair {
    set: ResourceSet,
    options: Options,
    session: Session,
    client: Client,
    used: BTreeMap<String, Arc<Resource>>,
    /// Bodies that it does not want.
    bad: Vec<Vec<u8>>,
    /// `TYPE name=version … -removed`, and bytes, of each response.
    frames: Vec<(String, usize)>,
    seen: Vec<Seen>,
}

impl Pair {
    fn new(features: Vec<String>) -> Self {
        let options = Options::for_proxy();
        let mut client = Client::new(node(features), Limits::default());
        client.subscribe(EDS, [NAME]);
        let mut pair = Self {
            set: ResourceSet::new(),
            session: Session::new(options.clone()),
            options,
            client,
            used: BTreeMap::new(),
            bad: Vec::new(),
            frames: Vec::new(),
            seen: Vec::new(),
        };
        let requests = pair.client.connect();
        pair.tell(requests);
        pair
    }

    fn put(&mut self, version: &str, body: Vec<u8>) {
        self.set.insert(Resource::new(EDS, NAME, version, body));
    }

    fn tell(&mut self, requests: impl IntoIterator<Item = DeltaDiscoveryRequest>) {
        for request in requests {
            self.seen.extend(self.session.on_request(&request).expect("within limits"));
        }
    }

    fn reconnect(&mut self) {
        self.client.disconnected();
        self.session = Session::new(self.options.clone());
        let requests = self.client.connect();
        self.tell(requests);
    }

    fn responses(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let responses = self.session.poll(&self.set);
        for response in &responses {
            let mut line = response.type_url.rsplit('.').next().unwrap().to_owned();
            for resource in &response.resources {
                let name = resource.name.rsplit('/').next().unwrap();
                line += &format!(" {name}={}", resource.version.get(..2).unwrap_or(&resource.version));
            }
            for name in &response.removed_resources {
                line += &format!(" -{}", name.rsplit('/').next().unwrap());
            }
            self.frames.push((line, response.encoded_len()));
        }
        responses
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let update = self.client.on_response(response).expect("well-formed");
        let mut refused = Vec::new();
        for resource in update.added {
            if self.bad.contains(&resource.body) {
                refused.push((resource.name.to_string(), "bad".to_owned()));
            } else {
                self.used.insert(resource.name.to_string(), resource);
            }
        }
        for name in &update.removed {
            self.used.remove(name);
        }
        let mut requests = self.client.requests();
        requests.extend(self.client.refuse(update.token, &refused));
        self.tell(requests);
    }

    /// Everything there is to say; the frames that took.
    fn settle(&mut self) -> Vec<(String, usize)> {
        for _ in 0..50 {
            let responses = self.responses();
            if responses.is_empty() {
                return std::mem::take(&mut self.frames);
            }
            responses.into_iter().for_each(|response| self.take(response));
        }
        panic!("never settles: {:?}", self.frames);
    }

    /// The version in use, which is the whole of the server's.
    fn version(&self) -> &str {
        let used = &self.used[NAME];
        assert_eq!(Some(used), self.set.get(EDS, NAME), "byte for byte");
        &used.version
    }
}

fn lines(frames: &[(String, usize)]) -> Vec<&str> {
    frames.iter().map(|(line, _)| line.as_str()).collect()
}

fn leds() -> Pair {
    let mut pair = Pair::new(features::advertised());
    pair.put("v1", assignment(&of("", 0..10_000)));
    assert_eq!(lines(&pair.settle()), ["ClusterLoadAssignment main=v1"], "whole at first");
    assert_eq!(pair.version(), "v1");
    pair
}

#[test]
fn one_change_of_ten_thousand_is_one_endpoint_on_the_wire() {
    let mut pair = leds();
    pair.put("v2", assignment(&of("", 1..10_001)));
    let whole = pair.set.get(EDS, NAME).unwrap().body.len();
    let frames = pair.settle();
    let [(endpoints, first), (head, second)] = frames.as_slice() else { panic!("{frames:?}") };
    assert!(endpoints.starts_with("LbEndpoint ") && endpoints.ends_with(" -::1:0:80"), "{endpoints}");
    assert_eq!(endpoints.matches('=').count(), 1);
    assert_eq!(head, "ClusterLoadAssignment main=v2");
    assert!(first + second < 1024, "{first} + {second}");
    assert!(whole > 200_000, "{whole}");
    assert_eq!(pair.version(), "v2");
    let acked = |seen: &Seen| matches!(seen, Seen::Acked { resources, .. } if resources[0].1 == "v2".into());
    assert_eq!(pair.seen.iter().filter(|seen| acked(seen)).count(), 1, "as that of the list");
}

#[test]
fn what_is_in_use_is_not_sent_again_on_the_next_stream() {
    let mut pair = leds();
    pair.options.resend_endpoints = false;
    pair.reconnect();
    assert_eq!(pair.settle(), []);
    // What has changed since is one endpoint, and so is what changes while nobody is there.
    for number in 2..5_u16 {
        if number == 3 {
            pair.client.disconnected();
            pair.set.insert(Resource::new(EDS, NAME, "v3", assignment(&of("", 3..10_003))));
            pair.reconnect();
        } else {
            pair.put(&format!("v{number}"), assignment(&of("", number..10_000 + number)));
        }
        let bytes: usize = pair.settle().iter().map(|(_, bytes)| bytes).sum();
        assert!((1..2048).contains(&bytes), "{number}: {bytes}");
        assert_eq!(pair.version(), format!("v{number}"));
    }
    // A server that knows of nothing before sends it whole.
    pair.options = Options::for_agent();
    pair.put("v6", assignment(&of("", 6..10_000)));
    pair.reconnect();
    assert_eq!(lines(&pair.settle()), ["ClusterLoadAssignment main=v6"]);
    assert_eq!(pair.version(), "v6");
}

#[test]
fn what_was_kept_on_disk_is_gone_on_from() {
    let v1 = assignment(&of("", 0..10_000));
    let mut pair = Pair::new(features::advertised());
    pair.client.disconnected();
    pair.client.claim(&Arc::new(Resource::new(EDS, NAME, "v1@here", v1.clone())), "v1");
    pair.put("v1", v1);
    pair.options.resend_endpoints = false;
    pair.reconnect();
    assert_eq!(pair.settle(), []);
    pair.put("v2", assignment(&of("", 1..10_000)));
    let bytes: usize = pair.settle().iter().map(|(_, bytes)| bytes).sum();
    assert!((1..1024).contains(&bytes), "{bytes}");
    assert_eq!(pair.version(), "v2");
}

#[test]
fn who_does_not_name_it_is_sent_wholes() {
    for features in [Vec::new(), features::ALL.map(|name| format!("{}{name}", features::PREFIX)).to_vec()] {
        let mut pair = Pair::new(features);
        for (version, first) in [("v1", 0), ("v2", 1)] {
            pair.put(version, assignment(&of("", first..10_000)));
            assert_eq!(lines(&pair.settle()), [format!("ClusterLoadAssignment main={version}")]);
            assert_eq!(pair.version(), version);
        }
    }
}

/// What is refused is refused as a whole, with its cause, and the last good stays (N28).
#[test]
fn n28_a_bad_endpoint_is_refused_with_its_list_and_repaired_in_parts() {
    let mut pair = leds();
    let bad = assignment(&of("", 1..10_000));
    pair.bad = vec![bad.clone()];
    pair.put("v2", bad);
    let frames = pair.settle();
    assert_eq!(
        lines(&frames),
        ["LbEndpoint -::1:0:80", "ClusterLoadAssignment main=v2", "ClusterLoadAssignment main=v2"],
        "in parts, and whole: who refuses that refuses it"
    );
    assert_eq!(&*pair.used[NAME].version, "v1");
    let refused: Vec<_> = pair.seen.iter().filter(|seen| matches!(seen, Seen::Refused { .. })).collect();
    let [Seen::Refused { resources, error, .. }] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!((resources[0].1.as_ref(), error.as_str()), ("v2", "bad"));
    pair.put("v3", assignment(&of("", 2..10_000)));
    let bytes: usize = pair.settle().iter().map(|(_, bytes)| bytes).sum();
    assert!((1..1024).contains(&bytes), "{bytes}");
    assert_eq!(pair.version(), "v3");
}

#[test]
fn a_list_that_does_not_add_up_is_sent_whole() {
    let mut pair = leds();
    pair.put("v2", assignment(&of("", 1..10_000)));
    let responses = pair.responses();
    // The endpoints are lost.
    pair.take(responses.into_iter().next_back().unwrap());
    assert_eq!(&*pair.used[NAME].version, "v1", "not half of it");
    assert_eq!(lines(&pair.settle()).last(), Some(&"ClusterLoadAssignment main=v2"));
    assert_eq!(pair.version(), "v2");
    assert!(!pair.seen.iter().any(|seen| matches!(seen, Seen::Refused { .. })), "nobody has refused it");
    pair.put("v3", assignment(&of("", 2..10_000)));
    assert_eq!(pair.settle().len(), 2, "in parts again");
    assert_eq!(pair.version(), "v3");
}

#[test]
fn what_is_not_wanted_any_more_is_forgotten_by_both() {
    let mut pair = leds();
    pair.client.unsubscribe(EDS, [NAME]);
    let requests = pair.client.requests();
    pair.tell(requests);
    pair.used.clear();
    pair.put("v2", assignment(&of("", 1..10_000)));
    assert_eq!(pair.settle(), []);
    pair.client.subscribe(EDS, [NAME]);
    let requests = pair.client.requests();
    pair.tell(requests);
    assert_eq!(lines(&pair.settle()), ["ClusterLoadAssignment main=v2"]);
    pair.set.remove(EDS, NAME);
    assert_eq!(lines(&pair.settle()), ["ClusterLoadAssignment -main"]);
    pair.put("v3", assignment(&of("", 1..10_000)));
    assert_eq!(lines(&pair.settle()), ["ClusterLoadAssignment main=v3"]);
    assert_eq!(pair.version(), "v3");
}

/// A list of a server of others.
const LIST: &str = "xdstp://their.authority/envoy.config.endpoint.v3.LbEndpoint/api";

fn refers(collection: &str) -> LocalityLbEndpoints {
    use outrider_xds_types::pb::envoy::config::core::v3::{
        AggregatedConfigSource, ConfigSource, config_source::ConfigSourceSpecifier,
    };
    let ads = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    };
    let config =
        LedsClusterLocalityConfig { leds_config: Some(ads), leds_collection_name: collection.to_owned() };
    LocalityLbEndpoints {
        lb_config: Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(config)),
        ..Default::default()
    }
}

fn theirs(nonce: &str, version: &str, localities: Vec<LocalityLbEndpoints>) -> DeltaDiscoveryResponse {
    let head =
        ClusterLoadAssignment { cluster_name: NAME.to_owned(), endpoints: localities, ..Default::default() };
    let mut response = response(EDS, nonce, &[(NAME, version)], &[]);
    response.resources[0].resource.as_mut().unwrap().value = head.encode_to_vec();
    response
}

fn endpoints(nonce: &str, added: &[(&str, u16)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let added: Vec<(String, u16)> =
        added.iter().map(|(name, number)| (format!("{LIST}/{name}"), *number)).collect();
    let removed: Vec<String> = removed.iter().map(|name| format!("{LIST}/{name}")).collect();
    let names: Vec<(&str, &str)> = added.iter().map(|(name, _)| (name.as_str(), "1")).collect();
    let gone: Vec<&str> = removed.iter().map(String::as_str).collect();
    let mut response = response(LEDS, nonce, &names, &gone);
    for (resource, (_, number)) in response.resources.iter_mut().zip(&added) {
        resource.resource.as_mut().unwrap().value = lb_endpoint(at(*number), 1).encode_to_vec();
    }
    response
}

fn subscribed(requests: &[DeltaDiscoveryRequest]) -> Vec<(&str, Vec<String>, Vec<String>)> {
    let one = |request: &DeltaDiscoveryRequest| {
        let r#type = request.type_url.rsplit('.').next().unwrap().to_owned();
        (r#type, request.resource_names_subscribe.clone(), request.resource_names_unsubscribe.clone())
    };
    let all: Vec<_> = requests.iter().map(one).collect();
    all.into_iter()
        .map(|(r#type, new, gone)| (if r#type == "LbEndpoint" { "L" } else { "E" }, new, gone))
        .collect()
}

/// What comes out of an update, as `NAME: PORTS-OF-10.0.0.X`.
fn made(update: &Update) -> Vec<Vec<String>> {
    let one = |resource: &Arc<Resource>| {
        let read = ClusterLoadAssignment::decode(resource.body.as_slice()).unwrap();
        let all = read.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
        all.map(|one| {
            let all: Vec<u16> = (0..100).filter(|n| lb_endpoint(at(*n), 1) == *one).collect();
            all[0].to_string()
        })
        .collect()
    };
    update.added.iter().map(one).collect()
}

/// What is claimed of a list's endpoints, with versions, and of assignments.
fn claimed(requests: &[DeltaDiscoveryRequest]) -> Vec<String> {
    let all = requests.iter().flat_map(|request| &request.initial_resource_versions);
    let mut all: Vec<String> = all
        .map(|(name, version)| match name.strip_prefix(&format!("{LIST}/")) {
            Some(last) => format!("{last}={version}"),
            None => name.clone(),
        })
        .collect();
    all.sort_by_key(|name| (name != NAME, name.clone()));
    all
}

fn asking() -> Client {
    let mut client = client();
    client.subscribe(EDS, [NAME]);
    client.connect();
    client
}

#[test]
fn a_list_of_others_is_subscribed_and_whole_once_it_was_heard_of() {
    let mut client = asking();
    let glob = format!("{LIST}/*");
    let update = client.on_response(theirs("1", "1", vec![refers(&glob)])).unwrap();
    assert!(update.added.is_empty() && update.refused.is_empty(), "it waits: {update:?}");
    assert_eq!(subscribed(&client.requests()), [("L", vec![glob.clone()], vec![])]);
    assert_eq!(client.ack(update.token).map(|request| request.type_url), Some(EDS.to_owned()));
    // By address, whatever the order; others by name behind them.
    let first = endpoints("2", &[("z", 3), ("10.0.0.2:80", 2), ("10.0.0.1:80", 1), ("a", 4)], &[]);
    let update = client.on_response(first).unwrap();
    assert_eq!(
        (&*update.type_url, made(&update)),
        (EDS, vec![["1", "2", "4", "3"].map(str::to_owned).to_vec()])
    );
    let version = update.added[0].version.clone();
    let answer = client.ack(update.token).unwrap();
    assert_eq!((answer.type_url.as_str(), answer.response_nonce.as_str()), (LEDS, "2"));
    // A change without a head.
    let update = client.on_response(endpoints("3", &[("b", 6)], &["10.0.0.1:80", "z"])).unwrap();
    assert_eq!(made(&update), [["2", "4", "6"]]);
    assert_ne!(update.added[0].version, version);
    let answer = client.refuse(update.token, &[(NAME.to_owned(), "bad".to_owned())]).unwrap();
    assert_eq!(
        (answer.type_url.as_str(), answer.error_detail.map(|e| e.message)),
        (LEDS, Some(format!("{NAME}: bad")))
    );
    // The next stream: what is in use is claimed, one by one, and nothing of what was refused.
    assert_eq!(claimed(&client.connect()), [NAME, "10.0.0.1:80=1", "10.0.0.2:80=1", "a=1", "z=1"]);
    // Emptied, then gone.
    let update = client.on_response(endpoints("4", &[], &["*"])).unwrap();
    assert_eq!(made(&update), [[""; 0]]);
    client.ack(update.token);
    let gone = response(EDS, "5", &[], &[NAME]);
    let update = client.on_response(gone).unwrap();
    assert_eq!(update.removed, [NAME]);
    assert_eq!(subscribed(&client.requests()), [("L", vec![], vec![glob])]);
}

#[test]
fn an_assignment_waits_for_all_of_its_lists_and_an_empty_one_is_heard_of_too() {
    let mut client = asking();
    let (one, other) = (format!("{LIST}/*"), format!("{LIST}/other/*"));
    let mut inline = refers(&one);
    inline.lb_config = None;
    inline.lb_endpoints = vec![lb_endpoint(at(9), 1)];
    let update = client.on_response(theirs("1", "1", vec![refers(&one), inline, refers(&other)])).unwrap();
    assert_eq!(made(&update).len(), 0);
    client.ack(update.token);
    let early = client.on_response(endpoints("2", &[], &[])).unwrap();
    assert_eq!(made(&early).len(), 0, "it was not asked for yet");
    client.ack(early.token);
    let asked = subscribed(&client.requests()).len();
    assert_eq!(asked, 2, "each by itself");
    let update = client.on_response(endpoints("3", &[("1", 1)], &[])).unwrap();
    assert_eq!(made(&update).len(), 0, "one is missing");
    let update = client.on_response(endpoints("4", &[], &[])).unwrap();
    assert_eq!(made(&update), [["1", "9"]]);
    client.ack(update.token);
    // Another head goes on with what is there.
    let update = client.on_response(theirs("5", "2", vec![refers(&other)])).unwrap();
    assert_eq!(made(&update), [[""; 0]]);
    assert_eq!(subscribed(&client.requests()), [("L", vec![], vec![format!("{LIST}/*")])]);
    // Whole.
    let mut whole = refers(&other);
    whole.lb_config = None;
    let update = client.on_response(theirs("6", "3", vec![whole])).unwrap();
    assert_eq!(&*update.added[0].version, "3");
    assert_eq!(subscribed(&client.requests()), [("L", vec![], vec![other])]);
}

#[test]
fn lists_that_are_not_supported_are_refused_by_their_path() {
    let glob = format!("{LIST}/*");
    let mut both = refers(&glob);
    both.lb_endpoints.push(lb_endpoint(at(1), 1));
    let mut source = refers(&glob);
    if let Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(leds)) = &mut source.lb_config {
        leds.leds_config = None;
    }
    let name = |name: &str| refers(&name.replace("LIST", LIST));
    for (bad, path) in [
        (both, "leds_cluster_locality_config: "),
        (source, "leds_config"),
        (name("LIST/a"), "leds_collection_name"),
        (name("LIST/*?a=b"), "leds_collection_name"),
        (name("plain/*"), "leds_collection_name"),
        (name("xdstp://a/envoy.config.cluster.v3.Cluster/b/*"), "leds_collection_name"),
    ] {
        let mut client = asking();
        let good = LocalityLbEndpoints::default();
        let update = client.on_response(theirs("1", "1", vec![good, bad])).unwrap();
        assert!(update.added.is_empty());
        let answer = client.ack(update.token).unwrap();
        let message = answer.error_detail.unwrap().message;
        assert!(message.contains("endpoints[1].leds") && message.contains(path), "{message}");
        assert_eq!(client.held(EDS).count(), 0);
        assert_eq!(client.requests(), []);
    }
}

#[test]
fn lists_are_bounded() {
    let mut client = asking();
    client.limits = Limits { endpoints: 3, lists: 1, ..Limits::default() };
    let update = client.on_response(theirs("1", "1", vec![refers(&format!("{LIST}/*"))])).unwrap();
    client.ack(update.token);
    client.requests();
    let some = client.on_response(endpoints("2", &[("1", 1), ("2", 2)], &[])).unwrap();
    client.ack(some.token);
    let bad = client.on_response(endpoints("3", &[("3", 3), ("4", 4)], &[])).unwrap_err();
    assert_eq!(bad.reason, ResponseError::TooManyEndpoints { list: LIST.into(), limit: 3 });
    let fine = client.on_response(endpoints("4", &[("2", 5), ("3", 3)], &[])).unwrap();
    assert_eq!(made(&fine), [["1", "5", "3"]]);
    client.ack(fine.token);
    let two = vec![refers(&format!("{LIST}/*")), refers(&format!("{LIST}/b/*"))];
    let update = client.on_response(theirs("5", "2", two)).unwrap();
    assert_eq!(update.refused.len(), 1, "{update:?}");
}

/// A client that has `LIST` with the endpoints 1 and 2 in use.
fn following() -> Client {
    let mut client = asking();
    let update = client.on_response(theirs("1", "h1", vec![refers(&format!("{LIST}/*"))])).unwrap();
    client.ack(update.token);
    client.requests();
    let update = client.on_response(endpoints("2", &[("1", 1), ("2", 2)], &[])).unwrap();
    assert_eq!(made(&update), [["1", "2"]]);
    client.ack(update.token);
    client
}

/// What is said of a change that came and was not answered: nothing. So the server that has taken it back has nothing to
/// say, and one that has not says it again.
#[test]
fn what_is_taken_back_while_the_stream_is_away_is_gone() {
    let mut client = following();
    client.on_response(endpoints("3", &[("1", 3), ("4", 4)], &["2"])).unwrap();
    let other = format!("{LIST}/other/*");
    client.on_response(theirs("4", "h2", vec![refers(&other)])).unwrap();
    client.requests();
    let requests = client.connect();
    assert_eq!(claimed(&requests), [NAME, "1=1", "2=1"]);
    let lists = requests.iter().find(|request| request.type_url == LEDS).unwrap();
    assert_eq!(lists.resource_names_subscribe, [format!("{LIST}/*")], "nor the list of a head that waited");
    let heads = requests.iter().find(|request| request.type_url == EDS).unwrap();
    assert_eq!(heads.initial_resource_versions[NAME], "h1");
    // It goes on from there.
    let update = client.on_response(endpoints("1", &[("7", 7)], &[])).unwrap();
    assert_eq!(made(&update), [["1", "2", "7"]]);
    client.ack(update.token);
    // A head that waits for its list is not in use, whoever has answered that it came.
    let update = client.on_response(theirs("2", "h2", vec![refers(&other)])).unwrap();
    client.ack(update.token);
    assert_eq!(held(&client, EDS), [(NAME.to_owned(), "h1".to_owned())]);
    client.requests();
    let update = client.on_response(endpoints("3", &[("other/8", 8)], &[])).unwrap();
    assert_eq!(made(&update), [["8"]]);
    client.ack(update.token);
    assert_eq!(held(&client, EDS), [(NAME.to_owned(), "h2".to_owned())]);
    assert_eq!(claimed(&client.connect()), [NAME, "other/8=1"]);
}

#[test]
fn what_comes_into_use_late_is_made_anew_of_what_the_server_has() {
    let mut client = following();
    let late = client.on_response(endpoints("3", &[("4", 4)], &["2"])).unwrap();
    assert_eq!(claimed(&client.connect()), [NAME, "1=1", "2=1"]);
    let again = client.ack(late.token).unwrap();
    assert_eq!((again.type_url.as_str(), &again.resource_names_subscribe), (EDS, &vec![NAME.to_owned()]));
    // A stream that ends before the answer: it is in use.
    assert_eq!(claimed(&client.connect()), [NAME, "1=1", "4=1"]);
    let update = client.on_response(theirs("1", "h1", vec![refers(&format!("{LIST}/*"))])).unwrap();
    assert_eq!(made(&update), [["1", "4"]]);
    // What is newer counts.
    let newer = client.on_response(endpoints("2", &[("5", 5)], &[])).unwrap();
    client.ack(newer.token);
    client.ack(update.token);
    assert_eq!(claimed(&client.connect()), [NAME, "1=1", "4=1", "5=1"]);
    // A whole in its place, and nothing.
    let mut inline = refers("");
    inline.lb_config = None;
    let update = client.on_response(theirs("1", "h3", vec![inline])).unwrap();
    let before = client.connect();
    assert_eq!(claimed(&before), [NAME, "1=1", "4=1", "5=1"], "it is not in use yet");
    client.ack(update.token);
    assert_eq!(claimed(&client.connect()), [NAME]);
}

#[test]
fn an_empty_answer_is_that_of_the_list_that_was_asked_for_first() {
    let mut client = asking();
    let lists: Vec<String> = ["a", "b", "c"].iter().map(|name| format!("{LIST}/{name}/*")).collect();
    let head = theirs("1", "1", lists.iter().map(|list| refers(list)).collect());
    let update = client.on_response(head).unwrap();
    client.ack(update.token);
    let requests = client.requests();
    let asked: Vec<(&str, Vec<String>, Vec<String>)> =
        lists.iter().map(|list| ("L", vec![list.clone()], vec![])).collect();
    assert_eq!(subscribed(&requests), asked);
    // The first is empty; of the others nothing was said.
    let update = client.on_response(endpoints("2", &[], &[])).unwrap();
    assert_eq!(made(&update).len(), 0);
    let update = client.on_response(endpoints("3", &[("c/3", 3)], &[])).unwrap();
    assert_eq!(made(&update).len(), 0, "one is missing");
    let update = client.on_response(endpoints("4", &[("b/2", 2)], &[])).unwrap();
    assert_eq!(made(&update), [["2", "3"]]);
    client.ack(update.token);
    // On the next stream it may be the answer to what is claimed, and says nothing of a list that is new.
    client.connect();
    let update = client.on_response(theirs("1", "2", vec![refers(&format!("{LIST}/d/*"))])).unwrap();
    client.ack(update.token);
    client.requests();
    let update = client.on_response(endpoints("2", &[], &[])).unwrap();
    assert_eq!(made(&update).len(), 0);
    let update = client.on_response(endpoints("3", &[("d/4", 4)], &[])).unwrap();
    assert_eq!(made(&update), [["4"]]);
}

#[test]
fn a_list_that_is_named_again_is_never_taken_for_whole_by_what_was_on_its_way() {
    let (one, other) = (vec![refers(&format!("{LIST}/*"))], vec![refers(&format!("{LIST}/other/*"))]);
    // In one step: it is followed on, with all that is in it.
    let mut client = following();
    client.on_response(theirs("3", "h2", other.clone())).unwrap();
    let update = client.on_response(theirs("4", "h3", one.clone())).unwrap();
    assert_eq!(made(&update), [["1", "2"]]);
    assert_eq!(client.requests(), []);
    // The server was told meanwhile: the stream ends, and the next one goes on from what is in use.
    let mut client = following();
    client.on_response(theirs("3", "h2", other)).unwrap();
    let told = ("L", vec![format!("{LIST}/other/*")], vec![format!("{LIST}/*")]);
    assert_eq!(subscribed(&client.requests()), [told]);
    let late = client.on_response(endpoints("4", &[("5", 5)], &[])).unwrap();
    assert_eq!(made(&late).len(), 0);
    client.ack(late.token);
    let bad = client.on_response(theirs("5", "h3", one.clone())).unwrap_err();
    assert_eq!(bad.reason, ResponseError::NamedAgain { list: format!("{LIST}/*") });
    assert_eq!(bad.request, None);
    assert_eq!(claimed(&client.connect()), [NAME, "1=1", "2=1"]);
    let update = client.on_response(theirs("1", "h3", one)).unwrap();
    assert_eq!(made(&update), [["1", "2"]]);
}
