//! Edge case 40: both sides of a call of gRPC may be silent for long.

use std::time::Duration;

use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use outrider_xds_types::pb::google::protobuf;
use outrider_xds_types::prost::Message as _;

use super::super::mesh::{of_api, with_secrets};
use super::*;

/// So much shorter are all limits of silence here.
const SCALE: i64 = 720;

fn shorter(limit: &mut Option<protobuf::Duration>) -> bool {
    let Some(limit) = limit else { return false };
    let nanos = (limit.seconds * 1_000_000_000 + i64::from(limit.nanos)) / SCALE;
    (limit.seconds, limit.nanos) = (nanos / 1_000_000_000, (nanos % 1_000_000_000) as i32);
    true
}

fn shorter_routes(table: &mut RouteConfiguration) -> usize {
    let mut changed = 0;
    for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        if let Some(route::Action::Route(action)) = &mut route.action {
            changed += usize::from(shorter(&mut action.idle_timeout));
        }
    }
    changed
}

/// Scales what is compiled, and says how many limits of silence there are.
fn scaled(mut set: ResourceSet) -> (ResourceSet, usize) {
    let names = |set: &ResourceSet, kind: &str| -> Vec<String> {
        set.of_type(kind).map(|resource| resource.name.to_string()).collect()
    };
    let mut changed = 0;
    for name in names(&set, type_url::ROUTE) {
        edit(&mut set, type_url::ROUTE, &name, |table| changed += shorter_routes(table));
    }
    for name in names(&set, type_url::LISTENER) {
        edit(&mut set, type_url::LISTENER, &name, |listener: &mut Listener| {
            for one in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
                let Some(filter::ConfigType::TypedConfig(config)) = &mut one.config_type else { continue };
                let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
                changed += usize::from(shorter(&mut manager.stream_idle_timeout));
                if let Some(RouteSpecifier::RouteConfig(table)) = &mut manager.route_specifier {
                    changed += shorter_routes(table);
                }
                config.value = manager.encode_to_vec();
            }
        });
    }
    (set, changed)
}

/// A hour is five seconds here. A stream on which nothing was said for 0.4 of that goes on through both proxies, as one after
/// six minutes does, of which a tenth of that is left.
#[tokio::test]
async fn e40_a_stream_that_was_silent_for_long_goes_on_through_both_proxies() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let yaml = |target| pair("grpc", "required", target, "");
    let (set, changed) = scaled(of_api(&yaml(origin.port()), &authority));
    assert!(changed > 0);
    let server = Proxy::start(set).await;
    let (mut set, changed) = scaled(with_secrets(&yaml(1), "shop/web", &authority, "shop/web"));
    assert!(changed > 0);
    set.insert(assignment(ENDPOINTS, &[server.address(INBOUND)]));
    let client = Proxy::start(set).await;
    let mut caller = Caller::connect(&client, OUTBOUND).await;
    let (response, mut up) = caller.ask(grpc("/a/b").body(()).unwrap(), false).await;
    let mut served = Served::accept(&origin).await;
    let (mut request, mut send) = served.next().await;
    let mut down = send.send_response(Response::new(()), false).unwrap();
    let mut answer = soon("the head", response).await.unwrap().into_body();
    for _ in 0..2 {
        // For as long as a call takes that nobody answers.
        let silence = (Duration::from_secs(3600) * 2 / 5 / SCALE as u32).as_millis();
        let limited = grpc("/a/wait").header("grpc-timeout", format!("{silence}m")).body(()).unwrap();
        let (waits, _) = caller.ask(limited, true).await;
        let _unanswered = served.next().await;
        assert_eq!(super::answer(waits).await.header("grpc-status"), Some("4"));
        send_all(&mut up, Bytes::from_static(b"there"), false).await.unwrap();
        let piece = soon("a message", request.body_mut().data()).await.unwrap().unwrap();
        assert_eq!(&piece[..], b"there");
        request.body_mut().flow_control().release_capacity(piece.len()).unwrap();
        down.send_data(Bytes::from_static(b"and back"), false).unwrap();
        let piece = soon("a message", answer.data()).await.unwrap().unwrap();
        assert_eq!(&piece[..], b"and back");
        answer.flow_control().release_capacity(piece.len()).unwrap();
    }
}
