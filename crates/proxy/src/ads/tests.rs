use outrider_xds::serve::DeltaServer;
use outrider_xds::server::Options;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use super::*;

/// Of several addresses of one name one may be of a host without power: it has a part of the time only.
#[tokio::test]
async fn the_next_address_is_tried_if_one_swallows_the_attempt() {
    use socket2::{Domain, Socket, Type};
    let swallows = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    swallows.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    swallows.listen(0).unwrap();
    let address = swallows.local_addr().unwrap();
    // Its queue is full: what comes is not answered.
    let _waiting: Vec<Socket> = (0..4)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        })
        .collect();
    let answers = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let expected = answers.local_addr().unwrap();
    let addresses = [address.as_socket().unwrap(), expected];
    let found = connect_any(addresses.into_iter(), Duration::from_millis(200)).await.unwrap();
    assert_eq!(found.peer_addr().unwrap(), expected);
    assert_eq!(socket2::SockRef::from(&found).tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    let none = connect_any(addresses.into_iter().take(1), Duration::from_millis(50)).await;
    assert_eq!(none.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn places_of_servers_are_read_and_what_is_not_supported_is_named() {
    let http = |host: &str, port| Server::Http { host: host.to_owned(), port };
    for (text, expected) in [
        ("unix:/run/xds.sock", Ok(Server::Unix("/run/xds.sock".into()))),
        ("http://127.0.0.1:18000", Ok(http("127.0.0.1", 18_000))),
        ("http://[::1]:18000", Ok(http("::1", 18_000))),
        ("http://xds.internal:80/", Ok(http("xds.internal", 80))),
        ("https://xds.internal:443", Err(ServerError::Tls)),
        ("http://xds.internal", Err(ServerError::Port)),
        ("http://xds.internal:0", Err(ServerError::Port)),
        ("http://xds.internal:+80", Err(ServerError::Port)),
        ("http://xds.internal:65536", Err(ServerError::Port)),
        ("http://:80", Err(ServerError::Host)),
        ("http://::1:80", Err(ServerError::Host)),
        ("http://a b:80", Err(ServerError::Host)),
        ("http://user@xds.internal:80", Err(ServerError::More)),
        ("http://xds.internal:80/path", Err(ServerError::More)),
        ("unix:", Err(ServerError::Form)),
        ("xds.internal:80", Err(ServerError::Form)),
        ("", Err(ServerError::Form)),
    ] {
        let read = text.parse::<Server>();
        assert_eq!(read, expected, "{text}");
        if let Ok(server) = read {
            assert_eq!(server.to_string(), text.trim_end_matches('/'));
        }
    }
    assert_eq!(http("xds.internal", 80).name(), Some("xds.internal"));
    assert_eq!(http("::1", 80).name(), None);
}

/// Edge case 74.
#[tokio::test]
async fn a_silent_server_is_left_only_by_who_needs_something_of_it() {
    const SHORT: Duration = Duration::from_millis(200);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    // It has nothing to say for as long as nothing is set.
    let (_set, watched) = tokio::sync::watch::channel(None);
    let service = DeltaServer::new(watched, Options::for_proxy(), CancellationToken::new()).into_service();
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    for complete in [false, true] {
        let (events_in, mut events) = mpsc::channel(16);
        let complete_now = Arc::new(AtomicBool::new(complete));
        let driver = tokio::spawn(drive(Server::Unix(path.clone()), events_in, complete_now, SHORT));
        let Some(Event::Connected(_requests)) = events.recv().await else { panic!("not connected") };
        let next = tokio::time::timeout(SHORT * 5, events.recv()).await;
        match next {
            Ok(Some(Event::Disconnected(why))) => {
                assert!(!complete && why.contains("no answer"), "{why}")
            }
            Ok(_) => panic!("something else"),
            Err(_) => assert!(complete, "it waits for nothing"),
        }
        driver.abort();
    }
}
