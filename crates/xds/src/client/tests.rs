use outrider_xds_types::pb::envoy::service::discovery::v3::Resource as WireResource;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::type_url::{ENDPOINT as EDS, LISTENER as LDS};

use super::*;

mod convergence;
mod lists;

fn client() -> Client {
    Client::new(Node { id: "shop/a".into(), ..Default::default() }, Limits::default())
}

fn response(type_url: &str, nonce: &str, added: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| WireResource {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(Any { type_url: type_url.into(), value: Vec::new() }),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: added.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

fn versions(request: &DeltaDiscoveryRequest) -> Vec<(&str, &str)> {
    let mut all: Vec<_> =
        request.initial_resource_versions.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    all.sort();
    all
}

fn held(client: &Client, type_url: &str) -> Vec<(String, String)> {
    client.held(type_url).map(|(name, version)| (name.to_string(), version.to_string())).collect()
}

#[test]
fn the_first_request_of_a_stream_has_the_node_and_only_the_first() {
    let mut client = client();
    client.subscribe(LDS, ["*"]);
    client.subscribe(EDS, ["a"]);
    for _stream in 0..2 {
        let requests = client.connect();
        let with_node: Vec<bool> = requests.iter().map(|request| request.node.is_some()).collect();
        assert_eq!(with_node, [true, false]);
        client.subscribe(EDS, ["b"]);
        assert!(client.requests().iter().all(|request| request.node.is_none()));
    }
}

#[test]
fn the_wildcard_alone_is_an_empty_first_request() {
    let mut client = client();
    client.subscribe(LDS, ["*"]);
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(request.resource_names_subscribe, [] as [String; 0]);
    // With a name beside it, it has to be written.
    client.subscribe(LDS, ["a"]);
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(request.resource_names_subscribe, ["*", "a"]);
}

#[test]
fn nothing_wanted_is_never_said_as_an_empty_first_request() {
    let mut client = client();
    client.subscribe(EDS, ["a"]);
    client.connect();
    client.unsubscribe(EDS, ["a"]);
    let [request] = client.requests().try_into().expect("one request");
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert_eq!(client.connect(), []);
}

#[test]
fn a_reconnect_claims_the_latest_acknowledged_version() {
    let mut client = client();
    client.subscribe(LDS, ["*"]);
    client.connect();
    for (nonce, version) in [("1", "v1"), ("2", "v2")] {
        let update = client.on_response(response(LDS, nonce, &[("a", version), ("b", "v1")], &[]));
        client.ack(update.expect("well-formed").token).expect("a request");
    }
    let refused = client.on_response(response(LDS, "3", &[("a", "v3")], &[])).expect("well-formed");
    let request = client.nack(refused.token, "bad").expect("a request");
    assert_eq!(request.response_nonce, "3");
    assert_eq!(request.error_detail.expect("a NACK").message, "bad");
    let open = client.on_response(response(LDS, "4", &[("a", "v4")], &[])).expect("well-formed");
    let gone = client.on_response(response(LDS, "5", &[], &["b"])).expect("well-formed");
    client.ack(gone.token).expect("a request");
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(versions(&request), [("a", "v2")], "open and refused versions are not claimed");
    // It comes into use on the new stream, whose server knows nothing of it.
    let request = client.ack(open.token).expect("a request");
    assert_eq!(
        (request.response_nonce.as_str(), &*request.resource_names_subscribe),
        ("", &["a".into()][..])
    );
    assert_eq!(held(&client, LDS), [("a".into(), "v4".into())]);
}

/// What each server believes is what it was told at the beginning of its stream, and what it said itself.
#[test]
fn what_comes_into_use_late_is_asked_for_again_where_the_server_believes_otherwise() {
    let begin = || {
        let mut client = client();
        client.subscribe(EDS, ["a", "b", "c", "d", "e"]);
        client.connect();
        let first = [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")];
        let first = client.on_response(response(EDS, "1", &first, &[])).expect("well-formed");
        client.ack(first.token).expect("a request");
        // Another version, one that is in use already, a new name, and one that goes.
        let late = response(EDS, "2", &[("a", "2"), ("b", "1"), ("e", "1")], &["c"]);
        let late = client.on_response(late).expect("well-formed").token;
        client.disconnected();
        (client, late)
    };
    let names = |request: Option<DeltaDiscoveryRequest>| {
        let request = request.expect("a request");
        assert_eq!((request.response_nonce.as_str(), request.error_detail), ("", None));
        let mut names = request.resource_names_subscribe;
        names.sort();
        names
    };

    let (mut client, late) = begin();
    client.connect();
    assert_eq!(names(client.ack(late)), ["a", "c", "e"]);
    assert_eq!(client.ack(late), None, "once");

    // A part of it cannot be used: of that, what was claimed is true.
    let (mut client, late) = begin();
    client.connect();
    assert_eq!(names(client.refuse(late, &[("a".into(), "bad".into())])), ["c", "e"]);

    let (mut client, late) = begin();
    client.connect();
    assert_eq!(client.nack(late, "bad"), None, "nothing has changed");

    // What this stream has said is answered by itself, before or after.
    let (mut client, late) = begin();
    client.connect();
    let newer = client.on_response(response(EDS, "3", &[("a", "3")], &["e"])).expect("well-formed");
    assert_eq!(names(client.ack(late)), ["c"]);
    assert_eq!(client.ack(newer.token).expect("a request").response_nonce, "3");
    let (mut client, late) = begin();
    client.connect();
    let newer = client.on_response(response(EDS, "3", &[("a", "3")], &["e"])).expect("well-formed");
    client.ack(newer.token).expect("a request");
    assert_eq!(names(client.ack(late)), ["c"]);

    // Nobody to ask: the next stream is told the truth at its beginning.
    let (mut client, late) = begin();
    assert_eq!(client.ack(late), None);
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(versions(&request), [("a", "2"), ("b", "1"), ("d", "1"), ("e", "1")]);

    // Nobody wants it any more.
    let (mut client, late) = begin();
    client.unsubscribe(EDS, ["a", "c", "e"]);
    client.connect();
    assert_eq!(client.ack(late), None);
}

#[test]
fn a_late_answer_does_not_bring_back_what_is_newer() {
    let mut client = client();
    client.subscribe(LDS, ["*"]);
    client.connect();
    let old = client.on_response(response(LDS, "1", &[("a", "1"), ("b", "1")], &[])).expect("well-formed");
    let new = client.on_response(response(LDS, "2", &[("b", "2")], &["a"])).expect("well-formed");
    assert_eq!(client.ack(new.token).expect("a request").response_nonce, "2");
    assert_eq!(client.ack(old.token).expect("a request").response_nonce, "1");
    assert_eq!(held(&client, LDS), [("b".into(), "2".into())]);
    assert_eq!(client.ack(old.token), None, "a token counts once");
}

#[test]
fn what_was_unsubscribed_meanwhile_is_dropped_and_still_acknowledged() {
    let mut client = client();
    client.subscribe(EDS, ["a", "b"]);
    client.connect();
    client.unsubscribe(EDS, ["a"]);
    let update = client.on_response(response(EDS, "1", &[("a", "1"), ("b", "1")], &[])).expect("well-formed");
    let names: Vec<&str> = update.added.iter().map(|resource| &*resource.name).collect();
    assert_eq!(names, ["b"]);
    client.unsubscribe(EDS, ["b"]);
    assert!(client.ack(update.token).is_some());
    assert_eq!(held(&client, EDS), []);
}

#[test]
fn dropping_and_wanting_again_asks_again() {
    let mut client = client();
    client.subscribe(EDS, ["a", "b"]);
    client.connect();
    let update = client.on_response(response(EDS, "1", &[("a", "1")], &[])).expect("well-formed");
    client.ack(update.token);
    client.unsubscribe(EDS, ["a"]);
    client.subscribe(EDS, ["a"]);
    let requests = client.requests();
    let [first, second] = requests.as_slice() else { panic!("two requests: {requests:?}") };
    assert_eq!(first.resource_names_unsubscribe, ["a"]);
    assert_eq!(second.resource_names_subscribe, ["a"]);
    assert_eq!(client.requests(), []);
}

/// Whoever drops a name drops what it was: that the answer to it comes later does not bring it back.
#[test]
fn what_was_dropped_is_not_held_by_a_late_answer_although_it_is_wanted_again() {
    let mut client = client();
    client.subscribe(EDS, ["a", "b", "c"]);
    client.connect();
    let first = client.on_response(response(EDS, "1", &[("c", "1")], &[])).expect("well-formed");
    client.ack(first.token);
    let late =
        client.on_response(response(EDS, "2", &[("a", "1"), ("b", "1")], &["c"])).expect("well-formed");
    client.unsubscribe(EDS, ["a", "c"]);
    client.subscribe(EDS, ["a", "c"]);
    client.requests();
    assert_eq!(client.ack(late.token).expect("a request").response_nonce, "2");
    assert_eq!(held(&client, EDS), [("b".into(), "1".into())]);
    client.disconnected();
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(versions(&request), [("b", "1")]);

    // What the answer to it brings is newer, and stays.
    let late = client.on_response(response(EDS, "1", &[("c", "2")], &["a"])).expect("well-formed");
    client.unsubscribe(EDS, ["a", "c"]);
    client.subscribe(EDS, ["a", "c"]);
    client.requests();
    let new = client.on_response(response(EDS, "2", &[("a", "3"), ("c", "3")], &[])).expect("well-formed");
    client.ack(new.token);
    client.ack(late.token);
    let expected = [("a", "3"), ("b", "1"), ("c", "3")].map(|(name, version)| (name.into(), version.into()));
    assert_eq!(held(&client, EDS), expected);
}

#[test]
fn resources_kept_on_disk_can_be_claimed() {
    let mut client = client();
    client.subscribe(EDS, ["a"]);
    for name in ["a", "b"] {
        client.claim(&Arc::new(Resource::new(EDS, name, "7@here", Vec::new())), "7");
    }
    let [request] = client.connect().try_into().expect("one request");
    assert_eq!(versions(&request), [("a", "7")]);
}

#[test]
fn malformed_responses_are_refused() {
    let mut limits = client();
    limits.limits = Limits { resources: 2, name_bytes: 4, unanswered: 1, ..Limits::default() };
    limits.subscribe(EDS, ["*"]);
    limits.connect();
    let mut foreign = response(EDS, "1", &[("a", "1")], &[]);
    foreign.resources[0].resource = Some(Any { type_url: LDS.into(), value: Vec::new() });
    let mut empty = response(EDS, "1", &[("a", "1")], &[]);
    empty.resources[0].resource = None;
    for (what, bad, code) in [
        ("no nonce", response(EDS, "", &[], &[]), None),
        ("not subscribed", response(LDS, "1", &[], &[]), Some(3)),
        ("too many", response(EDS, "1", &[("a", "1"), ("b", "1")], &["c"]), Some(3)),
        ("long name", response(EDS, "1", &[("abcde", "1")], &[]), Some(3)),
        ("no name", response(EDS, "1", &[], &[""]), Some(3)),
        ("twice", response(EDS, "1", &[("a", "1")], &["a"]), Some(3)),
        ("other type", foreign, Some(3)),
        ("no content", empty, Some(3)),
    ] {
        let refused = limits.on_response(bad).expect_err(what);
        let sent = refused.request.map(|request| request.error_detail.expect("a NACK").code);
        assert_eq!(sent, code, "{what}");
    }
    limits.on_response(response(EDS, "1", &[("a", "1")], &[])).expect("well-formed");
    assert!(limits.is_full());
    let refused = limits.on_response(response(EDS, "2", &[], &[])).expect_err("one is open");
    assert_eq!(refused.reason, ResponseError::TooManyUnanswered { limit: 1 });
}

#[test]
fn long_refusals_are_cut_at_a_character() {
    let mut client = client();
    client.subscribe(LDS, ["*"]);
    client.connect();
    let update = client.on_response(response(LDS, "1", &[], &[])).expect("well-formed");
    let request = client.nack(update.token, &"ü".repeat(4000)).expect("a request");
    assert_eq!(request.error_detail.expect("a NACK").message, "ü".repeat(MAX_ERROR_BYTES / 2));
}
