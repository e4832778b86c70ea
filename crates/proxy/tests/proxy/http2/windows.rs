//! Who waits for flow control, in numbers (edge case 36).

use super::*;

const MUCH: usize = 1 << 20;

/// A body that nobody reads waits for the window of its stream, if there is room in that of the connection, and for the
/// connection's if not; both are counted at the side that does not read, and nowhere else.
#[tokio::test]
async fn e36_waiting_for_windows_is_counted_by_whose_they_are() {
    // What either end grants: to a stream, and to all of a connection together.
    for (stream, connection) in [(65_535, 8 << 20), (8 << 20, 65_535)] {
        let by_stream = stream < connection;
        let (origin, mut proxy) = one().await;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(stream).initial_connection_window_size(connection);
        let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
        let (response, _) = caller.ask(get("/down"), true).await;
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(stream).initial_connection_window_size(connection);
        let mut endpoint = Served::accept_with(&origin, builder).await;

        let (_, mut send) = endpoint.next().await;
        let mut down = send.send_response(Response::new(()), false).unwrap();
        let sending =
            tokio::spawn(async move { send_all(&mut down, Bytes::from(vec![1; MUCH]), true).await });
        proxy
            .counted("the caller does not read", |stats| {
                let (listener, cluster) = (&stats.listeners[OUTBOUND], &stats.clusters[OUTBOUND]);
                (listener.stream_window_waits > 0) == by_stream
                    && (listener.connection_window_waits > 0) != by_stream
                    && (cluster.stream_window_waits, cluster.connection_window_waits) == (0, 0)
            })
            .await;
        let arrived = answer(response).await;
        assert_eq!(arrived.body.len(), MUCH);
        sending.await.unwrap().unwrap();

        let before = proxy.stats().await.listeners[OUTBOUND].clone();
        let (response, mut up) = caller.ask(post("/up"), false).await;
        let (request, mut send) = endpoint.next().await;
        let sending = tokio::spawn(async move { send_all(&mut up, Bytes::from(vec![1; MUCH]), true).await });
        proxy
            .counted("the endpoint does not read", |stats| {
                let (listener, cluster) = (&stats.listeners[OUTBOUND], &stats.clusters[OUTBOUND]);
                (cluster.stream_window_waits > 0) == by_stream
                    && (cluster.connection_window_waits > 0) != by_stream
                    && listener.stream_window_waits == before.stream_window_waits
                    && listener.connection_window_waits == before.connection_window_waits
            })
            .await;
        assert_eq!(body(&mut request.into_body()).await.unwrap().len(), MUCH);
        sending.await.unwrap().unwrap();
        reply(&mut send, "ok");
        assert_eq!(answer(response).await.text(), "ok");
    }
}
