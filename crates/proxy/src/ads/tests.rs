use std::path::Path;

use outrider_xds::serve::DeltaServer;
use outrider_xds::server::Options;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use super::*;

/// An address of a host without power: what comes is not answered. Ends with what is returned beside it.
fn swallows() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // Its queue is full.
    let waiting = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        socket
    });
    let mut kept: Vec<Socket> = waiting.collect();
    kept.push(listener);
    (address.as_socket().unwrap(), kept)
}

/// Of several addresses of one name some may be of hosts without power: each has a part of the time only.
#[tokio::test]
async fn the_last_address_is_tried_in_time_if_all_others_swallow_the_attempt() {
    const LIMIT: Duration = Duration::from_secs(3);
    let (without_power, _kept): (Vec<_>, Vec<_>) = (0..4).map(|_| swallows()).unzip();
    let answers = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let expected = answers.local_addr().unwrap();
    for n in [1, 4] {
        let mut addresses = without_power[..n].to_vec();
        addresses.push(expected);
        let connecting = connect_any(&addresses, Instant::now() + LIMIT);
        let found = tokio::time::timeout(LIMIT, connecting).await.expect("before the whole ends").unwrap();
        assert_eq!(found.peer_addr().unwrap(), expected);
        assert_eq!(socket2::SockRef::from(&found).tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
    let none = connect_any(&without_power[..1], Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(none.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn places_of_servers_are_read_and_what_is_none_is_named() {
    let http = |host: &str, port| Server::Http { host: host.to_owned(), port };
    let https = |host: &str, port| Server::Https { host: host.to_owned(), port, files: None };
    for (text, expected) in [
        ("unix:/run/xds.sock", Ok(Server::Unix("/run/xds.sock".into()))),
        ("http://127.0.0.1:18000", Ok(http("127.0.0.1", 18_000))),
        ("http://[::1]:18000", Ok(http("::1", 18_000))),
        ("http://xds.internal:80/", Ok(http("xds.internal", 80))),
        ("https://xds.internal:443", Ok(https("xds.internal", 443))),
        ("https://[::1]:443/", Ok(https("::1", 443))),
        ("https://xds.internal", Err(ServerError::Port)),
        ("https://:443", Err(ServerError::Host)),
        ("https://user@xds.internal:443", Err(ServerError::More)),
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
    for server in [http, https] {
        assert_eq!(server("xds.internal", 80).name(), Some("xds.internal"));
        assert_eq!(server("::1", 80).name(), None);
    }
    // There is no TLS without somebody to trust, and nobody is trusted for nothing.
    let files = Files { authorities: "ca.pem".into(), identity: None, name: None };
    let given = || Some(files.clone());
    assert_eq!(https("::1", 80).with_files(None), Err(ServerError::NoAuthorities));
    assert_eq!(http("::1", 80).with_files(given()), Err(ServerError::NoTls));
    assert_eq!(Server::Unix("a".into()).with_files(given()), Err(ServerError::NoTls));
    assert_eq!(http("::1", 80).with_files(None), Ok(http("::1", 80)));
    assert_eq!(https("::1", 80).with_files(given()).unwrap().files(), Some(&files));
}

/// What a server made by hand does with every stream.
#[derive(Clone, Copy)]
enum Way {
    /// Nothing: not even the head of an answer is sent, as common servers do before their first message.
    Silent,
    /// Answers once and ends the stream.
    Ends,
    /// Answers once, and goes on although the client has ended its half.
    GoesOn,
}

/// A server at this socket, and how many streams it has seen.
fn by_hand(path: &Path, way: Way) -> watch::Receiver<usize> {
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let mut open = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    count.send_modify(|count| *count += 1);
                    let answer = match way {
                        Way::Silent => None,
                        Way::Ends | Way::GoesOn => Some(answer(&mut respond, matches!(way, Way::Ends))),
                    };
                    open.push((request, respond, answer));
                }
            });
        }
    });
    counted
}

/// One response without anything in it, not even a nonce.
fn answer(respond: &mut h2::server::SendResponse<bytes::Bytes>, ends: bool) -> h2::SendStream<bytes::Bytes> {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut body = respond.send_response(head, false).unwrap();
    body.send_data(bytes::Bytes::from_static(&[0; 5]), false).unwrap();
    if ends {
        let status = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("0"),
        )]);
        body.send_trailers(status).unwrap();
    }
    body
}

/// A control plane that is replaced by one that cannot serve this proxy is not kept busy by it.
#[tokio::test]
async fn a_server_that_answers_and_ends_the_stream_is_asked_less_and_less() {
    const STREAMS: u32 = 7;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let mut streams = by_hand(&path, Way::Ends);
    let (events_in, mut events) = mpsc::channel(16);
    let begun = Instant::now();
    let driver = tokio::spawn(drive(Server::Unix(path), events_in, Arc::default(), SILENCE));
    let (mut answers, mut kept) = (0, None);
    while *streams.borrow_and_update() < STREAMS as usize {
        match events.recv().await.expect("the driver") {
            Event::Connected(requests) => kept = Some(requests),
            Event::Response(_) => answers += 1,
            Event::Disconnected(why) => assert_eq!(why, "the server ended the stream"),
        }
    }
    driver.abort();
    drop(kept);
    assert!(answers >= STREAMS - 1, "every stream was answered: {answers}");
    // Each pause is twice as long as the one before; by chance, half of it.
    let least = WAIT.0 * (2_u32.pow(STREAMS - 1) - 1) / 2;
    assert!(begun.elapsed() >= least, "{STREAMS} streams in {:?}", begun.elapsed());
}

#[test]
fn the_pause_before_an_attempt_grows_until_a_stream_has_lasted() {
    let mut pause = Pause(WAIT.0);
    let mut at = Duration::ZERO;
    let attempts = (0..).take_while(|_| {
        let before = at;
        // By chance the shortest.
        at += pause.after(Duration::from_millis(1)) / 2;
        before < Duration::from_secs(10)
    });
    assert_eq!(attempts.count(), 10, "in ten seconds");
    assert_eq!(pause.after(WAIT.1), WAIT.1);
    assert_eq!(pause.after(WAIT.1 * 2), WAIT.0, "a restart after long is followed at once");
    assert_eq!(pause.after(Duration::ZERO), WAIT.0 * 2);
}

/// What cannot be answered is left, and nothing depends on whether the server agrees.
#[tokio::test]
async fn a_stream_whose_requests_are_dropped_ends_also_if_the_server_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let streams = by_hand(&path, Way::GoesOn);
    let (events_in, mut events) = mpsc::channel(16);
    let driver = tokio::spawn(drive(Server::Unix(path), events_in, Arc::default(), SILENCE));
    for stream in 1..=2 {
        let Some(Event::Connected(requests)) = events.recv().await else { panic!("not connected") };
        let Some(Event::Response(_)) = events.recv().await else { panic!("not answered") };
        assert_eq!(*streams.borrow(), stream);
        drop(requests);
        let ended = tokio::time::timeout(SILENCE, events.recv()).await.expect("the stream ends");
        let Some(Event::Disconnected(why)) = ended else { panic!("something else") };
        assert!(why.starts_with("left"), "{why}");
    }
    driver.abort();
}

/// Whoever has got everything while a server said nothing does not leave it.
#[tokio::test]
async fn a_silent_server_is_not_left_by_who_needs_nothing_any_more() {
    const SHORT: Duration = Duration::from_millis(200);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let mut streams = by_hand(&path, Way::Silent);
    let (events_in, mut events) = mpsc::channel(16);
    let complete = Arc::new(AtomicBool::new(false));
    let driver = tokio::spawn(drive(Server::Unix(path), events_in, complete.clone(), SHORT));
    let Some(Event::Connected(_requests)) = events.recv().await else { panic!("not connected") };
    complete.store(true, Ordering::Relaxed);
    streams.wait_for(|streams| *streams == 1).await.unwrap();
    let next = tokio::time::timeout(SHORT * 5, events.recv()).await;
    assert!(next.is_err(), "it waits for nothing");
    assert_eq!(*streams.borrow(), 1);
    driver.abort();
}

/// Edge case 74.
#[tokio::test]
async fn a_silent_server_is_left_only_by_who_needs_something_of_it() {
    const SHORT: Duration = Duration::from_millis(200);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    // It has nothing to say for as long as nothing is set.
    let (_set, watched) = watch::channel(None);
    let service = DeltaServer::new(watched, Options::for_proxy(), CancellationToken::new()).into_service();
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let without_head = directory.path().join("silent.sock");
    let _streams = by_hand(&without_head, Way::Silent);

    for (path, complete) in [&path, &without_head].into_iter().flat_map(|path| [(path, false), (path, true)])
    {
        let (events_in, mut events) = mpsc::channel(16);
        let complete_now = Arc::new(AtomicBool::new(complete));
        let driver = tokio::spawn(drive(Server::Unix(path.clone()), events_in, complete_now, SHORT));
        let Some(Event::Connected(_requests)) = events.recv().await else { panic!("not connected") };
        if complete {
            let next = tokio::time::timeout(SHORT * 5, events.recv()).await;
            assert!(next.is_err(), "it waits for nothing");
        } else {
            let Some(Event::Disconnected(why)) = events.recv().await else { panic!("something else") };
            assert!(why.contains("no answer"), "{why}");
        }
        driver.abort();
    }
}
