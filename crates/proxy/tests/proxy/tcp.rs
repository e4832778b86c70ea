use super::support::*;

/// Edge cases 22 and 56.
#[tokio::test]
async fn each_direction_ends_by_itself() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("tcp", &[origin.address()]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut server = origin.accept().await;
    server.send("220 speaks first\r\n").await;
    client.expect("220 speaks first\r\n").await;
    client.send("everything I have").await;
    client.finish().await;
    assert_eq!(server.rest().await.unwrap(), b"everything I have");
    let answer = vec![b'x'; 3 << 20];
    let (sent, received) = tokio::join!(
        async {
            server.send(&answer).await;
            server.finish().await;
        },
        client.rest()
    );
    let () = sent;
    assert!(received.unwrap() == answer, "a long answer after the half-close");
    proxy
        .counted("closed", |stats| {
            let listener = &stats.listeners[OUTBOUND];
            (listener.active_connections, listener.bytes_in, listener.bytes_out) == (0, 17, 18 + (3 << 20))
        })
        .await;
}

/// Edge case 22.
#[tokio::test]
async fn a_reset_is_not_turned_into_an_end() {
    let origin = Origin::bind().await;
    let proxy = client_proxy("tcp", &[origin.address()]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut server = origin.accept().await;
    server.send("half of").await;
    client.expect("half of").await;
    socket2::SockRef::from(&server.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn without_an_endpoint_the_connection_is_reset_and_counted() {
    let mut proxy = client_proxy("tcp", &[]).await;
    // The reset may come as early as the end of connecting.
    let ended = match tokio::net::TcpStream::connect(proxy.address(OUTBOUND)).await {
        Ok(tcp) => Peer { tcp, buffer: Vec::new() }.rest().await.map(drop),
        Err(e) => Err(e),
    };
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy.counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("no_endpoints") == Some(&1)).await;
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_refuses() {
    let origin = Origin::bind().await;
    // Nobody listens on the other one.
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = client_proxy("tcp", &[refusing, origin.address()]).await;
    for n in 0..8 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(format!("{n}")).await;
        let mut server = origin.accept().await;
        server.expect(&format!("{n}")).await;
    }
}

#[tokio::test]
async fn a_reset_after_an_end_is_passed_on() {
    for caller_first in [true, false] {
        let origin = Origin::bind().await;
        let mut proxy = client_proxy("tcp", &[origin.address()]).await;
        let (client, server) = proxy.open_stream(OUTBOUND, &origin).await;
        let (mut first, mut other) = if caller_first { (client, server) } else { (server, client) };
        first.finish().await;
        assert_eq!(other.rest().await.unwrap(), b"");
        proxy.ping(1).await;
        socket2::SockRef::from(&first.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(first);
        let reason = if caller_first { "client_gone" } else { "upstream_reset" };
        proxy.counted(reason, |stats| stats.listeners[OUTBOUND].reasons.get(reason) == Some(&1)).await;
        // Reading tells of the end for ever.
        soon("the reset", other.tcp.ready(tokio::io::Interest::ERROR)).await.unwrap();
    }
}
