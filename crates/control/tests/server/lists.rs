//! Long lists of endpoints on the stream of a host.

use outrider_xds::client::{Client, Limits};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::{features, type_url};

use crate::agents::Stream;
use crate::support::{SHOP, TestAgent, TestServer, instances};

const NAME: &str = "shop/inventory/http";

/// Reads until the load assignment is another one.
async fn changed(stream: &mut Stream) -> (String, Vec<u8>) {
    loop {
        let (_, added, _) = stream.next().await.unwrap();
        if let Some((_, version, body)) = added.into_iter().next_back() {
            return (version, body);
        }
    }
}

#[tokio::test]
async fn a_host_that_takes_parts_of_lists_is_sent_parts_and_any_other_one_wholes() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let (new, old) = (TestAgent::join(&server, "host-a").await, TestAgent::join(&server, "host-b").await);
    let (facts, _in) = new.session().await;
    let (_facts, _in) = old.session().await;
    let mut all: Vec<(&str, u32)> = (1..=300).map(|number| ("inventory", number)).collect();
    facts.send(instances(&all)).await.unwrap();
    server.until("/v1/instances", |list| list.as_array().is_some_and(|list| list.len() == 300)).await;

    let parts = vec![format!("{}{}", features::PREFIX, features::LEDS)];
    let open = async |agent, client_features| {
        let node = Node { client_features, ..Node::default() };
        let mut client = Client::new(node, Limits::default());
        client.subscribe(type_url::ENDPOINT, [NAME]);
        Stream::begin(agent, client).await.unwrap()
    };
    let (mut by_parts, mut by_wholes) = (open(&new, parts).await, open(&old, Vec::new()).await);
    assert_eq!(changed(&mut by_parts).await, changed(&mut by_wholes).await);
    for number in 301..304 {
        (by_parts.bytes, by_wholes.bytes) = (0, 0);
        all.remove(7);
        all.push(("inventory", number));
        facts.send(instances(&all)).await.unwrap();
        let (parts, wholes) = (changed(&mut by_parts).await, changed(&mut by_wholes).await);
        assert_eq!(parts, wholes);
        assert!(by_parts.bytes < 1_500 && by_wholes.bytes > 6_000, "{} {}", by_parts.bytes, by_wholes.bytes);
    }

    // What it has is not sent again on its next stream, where it goes on.
    let Stream { client, .. } = by_parts;
    let mut again = Stream::begin(&new, client).await.unwrap();
    all.remove(9);
    facts.send(instances(&all)).await.unwrap();
    assert_eq!(changed(&mut again).await, changed(&mut by_wholes).await);
    assert!(again.bytes < 1_500, "{}", again.bytes);
    server.stop().await;
}
