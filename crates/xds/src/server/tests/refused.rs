//! Refusals that name their resources.

use super::*;

/// A client that says which resources it refuses has the others in use, and nothing is sent twice to find that out
/// (N28).
#[test]
fn n28_what_is_refused_by_name_stands_alone_at_once() {
    let names: Vec<String> = (0..200).map(|number| format!("c{number:03}")).collect();
    let resources: Vec<(&str, &str, &str)> = names.iter().map(|name| (CDS, name.as_str(), "1")).collect();
    let mut talk = Talk::new(&resources);
    talk.subscribe(CDS, &[]);
    talk.sent();
    let say = |talk: &mut Talk, refused: &[(&str, &str)]| {
        let refused: Vec<_> = refused.iter().map(|(n, why)| ((*n).to_owned(), (*why).to_owned())).collect();
        let details = crate::refusal::details(&refused).into_iter().collect();
        talk.request(DeltaDiscoveryRequest {
            type_url: CDS.into(),
            response_nonce: talk.nonces[CDS].clone(),
            error_detail: Some(Status { message: "all of it".into(), details, ..Default::default() }),
            ..Default::default()
        })
    };
    let seen = say(&mut talk, &[("c007", "a field"), ("c100", "another")]);
    let [Seen::Acked { resources, .. }, first, second] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(resources.len(), 198);
    let alone = |name: &str, why: &str| Seen::Refused {
        type_url: CDS.into(),
        resources: versioned(&[(name, "1")]),
        removed: Vec::new(),
        error: why.into(),
    };
    assert_eq!([first, second], [&alone("c007", "a field"), &alone("c100", "another")]);
    assert_eq!(talk.sent(), NOTHING);
    // Asked for again by name, because what it waited for has come.
    talk.subscribe(CDS, &["c100"]);
    assert_eq!(talk.settle(), ["Cluster: c100=1"]);
    // Names that were not sent make it void: what is refused has to be found.
    talk.put(CDS, "c001", "2");
    talk.put(CDS, "c002", "2");
    assert_eq!(talk.sent(), ["Cluster: c001=2 c002=2"]);
    assert_eq!(say(&mut talk, &[("c001", "bad"), ("c003", "not sent")]), []);
    assert_eq!(talk.sent(), ["Cluster: c001=2"]);
}

/// A new cluster that is refused holds back what leads to it, and nothing else; without it everything goes on (N28).
#[test]
fn n28_a_refused_new_cluster_holds_back_only_what_leads_to_it() {
    let mut talk = settled_shop();
    talk.put(RDS, "other", "1");
    talk.subscribe(RDS, &["other"]);
    assert_eq!(talk.settle(), ["RouteConfiguration: other=1"]);
    talk.put(CDS, "bad", "1");
    assert_eq!(talk.sent(), ["Cluster: bad=1"]);
    assert_eq!(talk.nack(CDS), [refused(CDS, &[("bad", "1")])]);
    talk.put(LDS, "in", "2");
    talk.lead("in", "2", "bad");
    talk.lead("other", "2", "a");
    assert_eq!(talk.settle(), ["Listener: in=2", "RouteConfiguration: other=2"]);
    // By way of routes that are new, as well.
    talk.lead("new", "1", "bad");
    talk.set.insert(Resource::new(LDS, "in", "3", listener_with_routes("new")));
    assert_eq!(talk.settle(), NOTHING);
    // Another listener is taken back.
    talk.put(LDS, "unrelated", "1");
    assert_eq!(talk.settle(), ["Listener: unrelated=1"]);
    talk.drop(LDS, "unrelated");
    assert_eq!(talk.settle(), ["Listener: -unrelated"]);
    // Given up on: what was held back goes on, and the cluster has gone.
    talk.drop(CDS, "bad");
    talk.drop(RDS, "new");
    talk.put(LDS, "in", "4");
    talk.lead("in", "3", "a");
    assert_eq!(talk.settle(), ["Listener: in=4", "RouteConfiguration: in=3", "Cluster: -bad"]);
}

/// What a client has in use and may not be sent again is not taken from it, until that is taken back (N7).
#[test]
fn n7_what_is_spared_is_not_removed() {
    let mut talk = settled_shop();
    let mut again = Talk::with(Options::for_proxy(), &[]);
    again.set = talk.set.clone();
    let spared =
        BTreeSet::from([(Arc::from(CDS), Arc::from("a")), (Arc::from(EDS), Arc::from("a-endpoints"))]);
    for one in [&mut talk, &mut again] {
        one.drop(CDS, "a");
        one.drop(EDS, "a-endpoints");
    }
    talk.session.spare(&spared);
    assert_eq!(talk.settle(), NOTHING);
    // The same for who comes back with it.
    for (url, names, name) in [(CDS, vec![], "a"), (EDS, vec!["a-endpoints"], "a-endpoints")] {
        again.reconnect(url, &names, &[(name, "1")]);
    }
    again.reconnect(LDS, &[], &[("in", "1")]);
    again.reconnect(RDS, &["in"], &[("in", "1")]);
    again.session.spare(&spared);
    assert_eq!(again.settle(), NOTHING);
    for one in [&mut talk, &mut again] {
        one.session.spare(&BTreeSet::new());
        assert_eq!(one.settle(), ["Cluster: -a", "ClusterLoadAssignment: -a-endpoints"]);
    }
}
