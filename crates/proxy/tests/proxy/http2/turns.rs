//! Bodies that come faster than they are written, between ends that open windows which need no update: nothing but the
//! proxy itself can tell those who had to stop that they may go on.

use std::collections::HashMap;

use outrider_http2::{Config, Connection, Event, Field, Head, HeadKind, RequestLine, Role, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::mesh::{clients, servers};

/// Streams at once, and bytes of each body: much less than a stream's window, and together more than a connection has
/// unwritten.
const STREAMS: usize = 12;
const LENGTH: usize = 20_000;

/// One end of a connection, which writes all that it has in one piece.
struct End {
    core: Connection,
    head: Head,
    tcp: TcpStream,
    out: Vec<u8>,
    streams: Vec<Stream>,
    /// Body bytes that came, and whether they are all, by stream.
    bodies: HashMap<u32, (usize, bool)>,
}

impl End {
    fn new(role: Role, tcp: TcpStream) -> Self {
        socket2::SockRef::from(&tcp).set_send_buffer_size(1 << 20).unwrap();
        let config = Config { stream_window: 1 << 20, connection_window: 16 << 20, ..Config::default() };
        Self {
            core: Connection::new(role, config, 0),
            head: Head::default(),
            tcp,
            out: Vec::new(),
            streams: Vec::new(),
            bodies: HashMap::new(),
        }
    }

    fn send(&mut self, stream: Stream) {
        let mut left = LENGTH;
        while left > 0 {
            let sent = self.core.send_data(stream, left, true, &mut self.out).unwrap();
            assert!(sent.length > 0, "the windows are large enough");
            self.out.resize(self.out.len() + sent.length, b'x');
            left -= sent.length;
        }
    }

    async fn write(&mut self) {
        self.core.poll_output(&mut self.out);
        soon("write", self.tcp.write_all(&self.out)).await.unwrap();
        self.out.clear();
    }

    /// Reads until it is so.
    async fn hear(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let mut bytes = vec![0; 64 << 10];
        loop {
            self.write().await;
            if so(self) {
                return;
            }
            let n = soon(what, self.tcp.read(&mut bytes)).await.unwrap();
            assert!(n > 0, "{what}: the connection has ended");
            let mut at = 0;
            loop {
                let rest = &bytes[at..n];
                let step = self.core.receive(rest, &mut self.head, 0).unwrap();
                at += step.consumed;
                match step.event {
                    None if at == n => break,
                    Some(Event::Head { stream, kind: HeadKind::Request, .. }) => self.streams.push(stream),
                    Some(Event::Data { stream, range, end }) => {
                        self.core.release(stream, range.len());
                        let body = self.bodies.entry(stream.id()).or_default();
                        *body = (body.0 + range.len(), end);
                    }
                    Some(Event::Reset { code, .. }) => panic!("{what}: reset with {code}"),
                    _ => {}
                }
            }
        }
    }

    async fn hear_all(&mut self, what: &str) {
        let whole = |end: &Self| end.bodies.values().filter(|body| **body == (LENGTH, true)).count();
        self.hear(what, |end| whole(end) == STREAMS).await;
    }
}

/// Bodies of all streams at once, there and back.
async fn exchange(proxy: &Proxy, origin: &Origin) {
    let mut caller = End::new(Role::Client, tcp(proxy, OUTBOUND).await);
    let is_open = |end: &End| end.core.connection_window() > (STREAMS * LENGTH) as i64;
    caller.hear("windows", is_open).await;
    for _ in 0..STREAMS {
        let line = RequestLine {
            method: b"POST",
            scheme: Some(b"http"),
            authority: Some(b"api"),
            path: Some(b"/"),
            protocol: None,
        };
        let fields = [(&b"content-type"[..], &b"application/grpc"[..]), (b"te", b"trailers")];
        let stream = caller.core.send_request(&line, fields.into_iter().map(Field::from), false).unwrap();
        caller.streams.push(stream);
    }
    caller.write().await;
    let mut endpoint = End::new(Role::Server, origin.accept().await.tcp);
    endpoint.hear("requests", |end| end.streams.len() == STREAMS && is_open(end)).await;
    for stream in caller.streams.clone() {
        caller.send(stream);
    }
    caller.write().await;
    endpoint.hear_all("bodies of requests").await;
    for stream in endpoint.streams.clone() {
        endpoint.core.send_response(stream, 200, std::iter::empty::<Field<'_>>(), false).unwrap();
        endpoint.core.poll_output(&mut endpoint.out);
        endpoint.send(stream);
    }
    endpoint.write().await;
    caller.hear_all("bodies of responses").await;
}

#[tokio::test]
async fn who_had_to_stop_goes_on_when_there_is_room_whoever_says_nothing() {
    let origin = Origin::bind().await;
    let proxy = client_proxy("grpc", &[origin.address()]).await;
    exchange(&proxy, &origin).await;
}

#[tokio::test]
async fn the_same_through_a_pair_with_mutual_tls() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = servers("grpc", "required", &origin, &authority).await;
    let client = clients("grpc", &server, &authority, "shop/web").await;
    exchange(&client, &origin).await;
}
