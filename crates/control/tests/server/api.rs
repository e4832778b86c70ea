//! The HTTP API.

use std::os::unix::fs::PermissionsExt;

use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use outrider_control::Server;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use crate::support::{PATIENCE, SHOP, TestServer, options, request_on, sources};

#[tokio::test]
async fn apply_get_describe_delete_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let mode = std::fs::metadata(&server.bound.api_socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut dry = sources(SHOP);
    dry["dryRun"] = true.into();
    dry["proxies"] = true.into();
    let (status, answer) = server.post("/v1/apply", dry.clone()).await;
    assert_eq!((status, &answer["revision"]), (200, &json!(0)));
    assert_eq!(answer["changes"][0].get("after"), None, "documents are given to those who ask");
    let proxies = answer["proxies"].as_array().unwrap();
    assert_eq!(proxies[0]["proxy"], "shop/checkout (no instance runs)");
    assert!(
        proxies[0]["resources"].as_array().unwrap().contains(
            &json!({"kind": "listener", "name": "outbound/shop/inventory/http", "action": "created"})
        )
    );
    assert_eq!(server.get("/v1/objects").await, (200, json!([])), "a dry run changes nothing");

    dry["documents"] = true.into();
    let (_, answer) = server.post("/v1/apply", dry).await;
    let change = &answer["changes"][0];
    assert_eq!((change.get("before"), &change["after"]["metadata"]["name"]), (None, &change["name"]));

    assert_eq!(server.apply(SHOP).await["revision"], 1);
    let again = server.apply(SHOP).await;
    assert_eq!(again["revision"], 1);
    assert!(again["changes"].as_array().unwrap().iter().all(|change| change["action"] == "unchanged"));
    let answer = server.apply(&SHOP.replace("8081", "9000")).await;
    assert_eq!(answer["revision"], 2);

    let (_, objects) = server.get("/v1/objects?kind=Service&namespace=shop").await;
    let names: Vec<&str> =
        objects.as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["checkout", "inventory"]);
    assert_eq!((&objects[0]["revision"], &objects[1]["revision"]), (&json!(1), &json!(2)));
    let (_, view) = server.get("/v1/describe/Service/shop/inventory").await;
    assert_eq!(view["calledBy"], json!(["shop/checkout"]));
    assert!(view["values"].as_array().unwrap().iter().any(|value| value["origin"] == "default"));

    let delete = json!({"objects": [{"kind": "Service", "namespace": "shop", "name": "inventory"}]});
    let (status, answer) = server.post("/v1/delete", delete.clone()).await;
    assert_eq!((status, &answer["diagnostics"][0]["code"]), (422, &json!("still-called")), "{answer}");
    let namespace = json!({"objects": [{"kind": "Namespace", "name": "shop"}], "force": true});
    let (status, answer) = server.post("/v1/delete", namespace.clone()).await;
    assert_eq!((status, &answer["diagnostics"][0]["code"]), (422, &json!("namespace-not-empty")), "{answer}");
    let mut whole = namespace;
    (whole["contents"], whole["dryRun"]) = ("delete".into(), true.into());
    let (status, answer) = server.post("/v1/delete", whole).await;
    let gone = answer["changes"].as_array().unwrap();
    assert_eq!(status, 200, "{answer}");
    for name in ["checkout", "inventory"] {
        assert!(gone.iter().any(|c| c["name"] == name && c["action"] == "deleted"), "{answer}");
    }
    let mut forced = delete;
    forced["force"] = true.into();
    assert_eq!(server.post("/v1/delete", forced.clone()).await.1["revision"], 3);
    assert_eq!(server.post("/v1/delete", forced).await.0, 404, "it is gone");
    let (_, before) = server.get("/v1/objects").await;
    server.stop().await;

    let server = TestServer::start(folder.path()).await;
    assert_eq!(server.get("/v1/objects").await.1, before);
    assert_eq!(server.apply(SHOP).await["revision"], 4, "and the service may come back");
    server.stop().await;
}

#[tokio::test]
async fn every_error_has_a_body_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let bad = SHOP.replace("calls: [inventory]", "calls: [nowhere]").replace("port: 8081", "prt: 8081");
    let (status, answer) = server.post("/v1/apply", sources(&bad)).await;
    assert_eq!((status, &answer["changes"]), (422, &json!([])));
    let codes: Vec<&Value> =
        answer["diagnostics"].as_array().unwrap().iter().map(|finding| &finding["code"]).collect();
    assert!(
        codes.contains(&&json!("unknown-service")) && codes.contains(&&json!("unknown-field")),
        "{answer:#}"
    );

    let long_name = json!({"sources": [{"name": "n".repeat(4_097), "text": "#"}]});
    for (method, path, body, status, code) in [
        ("GET", "/v2/objects", None, 404, "no-such-path"),
        ("DELETE", "/v1/objects", None, 405, "no-such-method"),
        ("GET", "/v1/objects?knd=Service", None, 400, "bad-request"),
        ("GET", "/v1/objects?kind=Pod", None, 400, "bad-request"),
        ("GET", "/v1/objects/Service/shop/nothing", None, 404, "not-found"),
        ("GET", "/v1/objects/Service/shop/%ff", None, 400, "bad-request"),
        ("GET", "/v1/describe/Namespace/-/nothing", None, 404, "not-found"),
        ("GET", "/v1/proxies/shop/nothing/resources", None, 404, "not-found"),
        ("GET", "/v1/rollout?revision=7", None, 404, "not-found"),
        ("GET", "/v1/watch?revision=7", None, 404, "not-found"),
        ("POST", "/v1/apply", Some(json!({"sources": [], "unknown": 1})), 400, "bad-request"),
        ("POST", "/v1/tokens", Some(json!({"ttlSeconds": 0})), 400, "bad-request"),
        ("POST", "/v1/tokens", Some(json!({"ttlSeconds": 86_401})), 400, "bad-request"),
        ("POST", "/v1/apply", Some(sources(&"#".repeat((4 << 20) + 1))), 413, "too-large"),
        ("POST", "/v1/apply", Some(sources(&"#".repeat(11 << 20))), 413, "too-large"),
        ("POST", "/v1/apply", Some(long_name), 400, "bad-request"),
    ] {
        let stream = UnixStream::connect(&server.bound.api_socket).await.unwrap();
        let (got, answer) = request_on(stream, method, path, body, None).await.unwrap();
        assert_eq!((got, &answer["code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    assert_eq!(server.get("/v1/schema").await.0, 200);
    assert_eq!(server.get("/v1/openapi.json").await.1["info"]["title"], "Outrider");
    server.stop().await;
}

#[tokio::test]
async fn tcp_needs_the_admin_token_and_tls_beyond_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let token = std::fs::read_to_string(&server.bound.admin_token).unwrap();
    let mode = std::fs::metadata(&server.bound.admin_token).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let address = server.bound.api.unwrap();
    let wrong = "0".repeat(64);
    for (token, path, status) in [
        (None, "/v1/objects", 401),
        (Some(wrong.as_str()), "/v1/objects", 401),
        (Some(token.trim()), "/v1/objects", 200),
        (None, "/v1/nothing", 401),
        (None, "/healthz", 200),
    ] {
        let stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(request_on(stream, "GET", path, None, token).await.unwrap().0, status, "{path}");
    }
    server.stop().await;

    let mut open = options(folder.path());
    open.api = Some(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
    let server = TestServer::start_with(open).await;
    assert!(server.bound.api_tls);
    let root = std::fs::read(folder.path().join("server/ca/root.pem")).unwrap();
    let bundle = outrider_identity::parse_pem_chain(&root).unwrap();
    let id = outrider_identity::SpiffeId::parse("spiffe://outrider.internal/server").unwrap();
    let config = outrider_identity::client_config(None, &bundle, &id, &["http/1.1"]).unwrap();
    let port = server.bound.api.unwrap().port();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let stream =
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.unwrap();
    let (status, _) = request_on(stream, "GET", "/v1/nodes", None, Some(token.trim())).await.unwrap();
    assert_eq!(status, 200);
    // Plain HTTP on that port gets nothing.
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(request_on(tcp, "GET", "/healthz", None, None).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_state_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let Err(error) = Server::start(options(folder.path())).await else { panic!("two servers") };
    assert!(error.to_string().starts_with("another outrider server uses "), "{error}");
    assert_eq!(server.get("/healthz").await.0, 200, "the first one's socket is untouched");
    server.stop().await;
}

#[tokio::test]
async fn watch_tells_of_changes_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let stream = UnixStream::connect(&server.bound.api_socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/v1/watch?revision=0").header("host", "outrider");
    let request = request.body(http_body_util::Empty::<hyper::body::Bytes>::new()).unwrap();
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    let mut lines = async |count: usize| {
        tokio::time::timeout(PATIENCE, async {
            while text.lines().count() < count || !text.ends_with('\n') {
                let frame = body.frame().await.unwrap().unwrap();
                text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
        })
        .await
        .unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let first = lines(2).await;
    assert_eq!((&first[0]["revision"], &first[0]["change"]["action"]), (&json!(1), &json!("created")));
    server.apply(&SHOP.replace("8081", "9000")).await;
    let events = lines(3).await;
    assert_eq!(events.len(), 3, "the unchanged object is no event");
    assert_eq!((&events[2]["revision"], &events[2]["change"]["name"]), (&json!(2), &json!("inventory")));
    assert_eq!(events[2]["document"]["spec"]["ports"][0]["port"], 9000);
    // An open watch does not keep the server from stopping.
    server.stop().await;
}
