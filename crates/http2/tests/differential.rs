//! Against an implementation of others, the `h2` crate, in both roles, over pipes that cut and stall.
//!
//! The server echoes fields, bodies and trailers; the client compares. Windows, frames, tables and pipes are small
//! and large in turn.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::HashMap;

use bytes::Bytes;
use outrider_http2::{
    Config, Connection, ErrorCode, Event, Field, Head, HeadKind, Rate, RequestLine, Role, Stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A message on its way: what is still to be sent of it, and what came of the other direction.
#[derive(Default)]
struct Exchange {
    to_send: Vec<u8>,
    sent: usize,
    /// All that is to be sent is here.
    complete: bool,
    trailers: Option<Fields>,
    send_over: bool,
    received: Vec<u8>,
    received_trailers: Option<Fields>,
    head: Fields,
    recv_over: bool,
}

/// Our side of a pipe.
struct Ours {
    connection: Connection,
    head: Head,
    io: DuplexStream,
    out: Vec<u8>,
    exchanges: HashMap<Stream, Exchange>,
    /// Whether to send back what is received.
    echo: bool,
    now: u64,
}

fn fields_of(head: &Head) -> Fields {
    head.fields().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn as_fields(fields: &Fields) -> impl Iterator<Item = Field<'_>> + Clone {
    fields.iter().map(|(name, value)| Field::from((name.as_slice(), value.as_slice())))
}

impl Ours {
    fn new(role: Role, config: Config, io: DuplexStream) -> Self {
        let connection = Connection::new(role, config, 0);
        let echo = role == Role::Server;
        Self { connection, head: Head::new(), io, out: Vec::new(), exchanges: HashMap::new(), echo, now: 0 }
    }

    fn take(&mut self, event: &Event, input: &[u8]) {
        match event {
            Event::Head { stream, kind, end } => {
                let exchange = self.exchanges.entry(*stream).or_default();
                match kind {
                    HeadKind::Interim => return,
                    HeadKind::Trailers => exchange.received_trailers = Some(fields_of(&self.head)),
                    HeadKind::Request | HeadKind::Response => exchange.head = fields_of(&self.head),
                }
                exchange.recv_over = *end;
                if self.echo {
                    if *kind == HeadKind::Request {
                        let fields = exchange.head.clone();
                        self.connection.send_response(*stream, 200, as_fields(&fields), false).unwrap();
                    }
                    exchange.trailers = exchange.received_trailers.clone();
                    exchange.complete = *end;
                }
                self.pump(*stream);
            }
            Event::Data { stream, range, end } => {
                let exchange = self.exchanges.get_mut(stream).unwrap();
                exchange.recv_over = *end;
                if self.echo {
                    exchange.to_send.extend_from_slice(&input[range.clone()]);
                    exchange.complete = *end;
                } else {
                    exchange.received.extend_from_slice(&input[range.clone()]);
                    self.connection.release(*stream, range.len());
                }
                self.pump(*stream);
            }
            Event::Settings | Event::GoAway { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    /// Sends what can be sent. An echo releases what it has sent.
    fn pump(&mut self, stream: Stream) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        while !exchange.send_over {
            let rest = &exchange.to_send[exchange.sent..];
            if rest.is_empty() && !exchange.complete {
                return;
            }
            if rest.is_empty()
                && let Some(trailers) = &exchange.trailers
            {
                self.connection.send_trailers(stream, as_fields(trailers)).unwrap();
                exchange.send_over = true;
                return;
            }
            let end = exchange.complete && exchange.trailers.is_none();
            let sent = self.connection.send_data(stream, rest.len(), end, &mut self.out).unwrap();
            self.out.extend_from_slice(&rest[..sent.length]);
            exchange.sent += sent.length;
            exchange.send_over = sent.end;
            if self.echo {
                self.connection.release(stream, sent.length);
            }
            if sent.length == 0 {
                return;
            }
        }
    }

    /// Reads or writes once. `false`: the other side has closed.
    async fn turn(&mut self) -> bool {
        while let Some(stream) = self.connection.poll_writable() {
            self.pump(stream);
        }
        self.connection.poll_output(&mut self.out);
        let mut input = [0; 3000];
        let (mut reader, mut writer) = tokio::io::split(&mut self.io);
        let read = tokio::select! {
            biased;
            written = writer.write(&self.out), if !self.out.is_empty() => {
                let Ok(count) = written else { return false };
                self.out.drain(..count);
                return true;
            }
            read = reader.read(&mut input) => read.unwrap_or(0),
        };
        if read == 0 {
            return false;
        }
        self.now += 1;
        let mut rest = &input[..read];
        loop {
            let mut head = std::mem::take(&mut self.head);
            let step = self.connection.receive(rest, &mut head, self.now);
            self.head = head;
            let step = step.unwrap_or_else(|violation| panic!("{violation}"));
            match step.event {
                Some(event) => self.take(&event, rest),
                None => return true,
            }
            rest = &rest[step.consumed..];
        }
    }
}

fn body(seed: usize) -> Vec<u8> {
    let length = [0, 1, 77, 4_000, 30_000, 200_000][seed % 6];
    (0..length).map(|at| (at * 7 + seed) as u8).collect()
}

fn fields(seed: usize) -> Fields {
    let mut fields: Fields = vec![(b"x-seed".to_vec(), seed.to_string().into_bytes())];
    if seed.is_multiple_of(2) {
        fields.push((b"cookie".to_vec(), b"crumb=1".to_vec()));
        fields.push((b"content-type".to_vec(), b"application/grpc".to_vec()));
    }
    if seed.is_multiple_of(7) {
        fields.push((b"x-long".to_vec(), vec![b'l'; 20_000]));
    }
    fields.push((b"x-turn".to_vec(), (seed % 3).to_string().into_bytes()));
    fields
}

fn header_map(fields: &Fields) -> http::HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            let name = http::HeaderName::from_bytes(name).unwrap();
            (name, http::HeaderValue::from_bytes(value).unwrap())
        })
        .collect()
}

fn sorted(map: &http::HeaderMap) -> Fields {
    let mut fields: Fields = map
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect();
    fields.sort();
    fields
}

/// Those that may come behind a body.
fn trailers_of(seed: usize) -> Fields {
    let mut fields = fields(seed + 1);
    fields.retain(|(name, _)| name != b"cookie");
    fields
}

fn same(mut ours: Fields, mut expected: Fields) {
    ours.sort();
    expected.sort();
    assert!(ours == expected, "not {expected:?}");
}

struct Setup {
    pipe: usize,
    config: Config,
    window: u32,
    connection_window: u32,
    frame: u32,
    table: u32,
}

fn setups() -> Vec<Setup> {
    let base = Config {
        max_streams: 50,
        // The time here is a count of reads.
        idle_frames: Rate { burst: 1_000_000, per_second: 0 },
        ..Config::default()
    };
    vec![
        Setup {
            pipe: 64 << 10,
            config: base,
            window: 65_535,
            connection_window: 1 << 20,
            frame: 16_384,
            table: 4096,
        },
        Setup {
            pipe: 113,
            config: Config { stream_window: 900, connection_window: 65_535, decoder_table: 64, ..base },
            window: 700,
            connection_window: 65_535,
            frame: 16_384,
            table: 100,
        },
        Setup {
            pipe: 5_000,
            config: Config {
                stream_window: 500_000,
                connection_window: 4 << 20,
                max_frame: 100_000,
                encoder_table: 0,
                ..base
            },
            window: 500_000,
            connection_window: 70_000,
            frame: 60_000,
            table: 0,
        },
    ]
}

const REQUESTS: usize = 60;

async fn their_client(io: DuplexStream, setup: &Setup) {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(setup.window)
        .initial_connection_window_size(setup.connection_window)
        .max_frame_size(setup.frame)
        .header_table_size(setup.table)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut tasks = Vec::new();
    for seed in 0..REQUESTS {
        let mut client = client.clone().ready().await.unwrap();
        let mut request = http::Request::post("https://a.example/path?q").body(()).unwrap();
        *request.headers_mut() = header_map(&fields(seed));
        let (response, mut stream) = client.send_request(request, false).unwrap();
        let trailers = seed.is_multiple_of(3);
        tasks.push(tokio::spawn(async move {
            let mut rest = Bytes::from(body(seed));
            while !rest.is_empty() {
                stream.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                let piece = rest.split_to(room.min(rest.len()));
                stream.send_data(piece, rest.is_empty() && !trailers).unwrap();
            }
            if trailers {
                stream.send_trailers(header_map(&trailers_of(seed))).unwrap();
            } else if body(seed).is_empty() {
                stream.send_data(Bytes::new(), true).unwrap();
            }
        }));
        tasks.push(tokio::spawn(async move {
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            same(sorted(response.headers()), fields(seed));
            let mut incoming = response.into_body();
            let mut received = Vec::new();
            while let Some(piece) = incoming.data().await {
                let piece = piece.unwrap();
                incoming.flow_control().release_capacity(piece.len()).unwrap();
                received.extend_from_slice(&piece);
            }
            assert!(received == body(seed), "body of {seed}");
            let got = incoming.trailers().await.unwrap();
            assert_eq!(got.is_some(), trailers);
            if let Some(got) = got {
                same(sorted(&got), trailers_of(seed));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    drop(client);
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn their_client_and_our_server() {
    for setup in setups() {
        let (near, far) = duplex(setup.pipe);
        let mut ours = Ours::new(Role::Server, setup.config, near);
        let server = async {
            while ours.turn().await {}
            assert_eq!(ours.connection.active(), 0);
            assert_eq!(ours.exchanges.len(), REQUESTS);
        };
        tokio::join!(server, their_client(far, &setup));
    }
}

async fn their_server(io: DuplexStream, setup: &Setup) {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(setup.window)
        .initial_connection_window_size(setup.connection_window)
        .max_frame_size(setup.frame)
        .header_table_size(setup.table)
        .max_concurrent_streams(10)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    while let Some(next) = connection.accept().await {
        let (request, mut respond) = next.unwrap();
        assert_eq!(request.uri(), "https://a.example/path?q");
        tokio::spawn(async move {
            let mut response = http::Response::new(());
            *response.headers_mut() = request.headers().clone();
            let mut stream = respond.send_response(response, false).unwrap();
            let mut incoming = request.into_body();
            while let Some(piece) = incoming.data().await {
                let mut piece = piece.unwrap();
                incoming.flow_control().release_capacity(piece.len()).unwrap();
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                    stream.send_data(piece.split_to(room.min(piece.len())), false).unwrap();
                }
            }
            match incoming.trailers().await.unwrap() {
                Some(trailers) => stream.send_trailers(trailers).unwrap(),
                None => stream.send_data(Bytes::new(), true).unwrap(),
            }
        });
    }
}

#[tokio::test]
async fn our_client_and_their_server() {
    for setup in setups() {
        let (near, far) = duplex(setup.pipe);
        let mut ours = Ours::new(Role::Client, setup.config, near);
        let client = async move {
            let mut seeds: HashMap<Stream, usize> = HashMap::new();
            let line = RequestLine {
                method: b"POST",
                scheme: Some(b"https"),
                authority: Some(b"a.example"),
                path: Some(b"/path?q"),
                protocol: None,
            };
            loop {
                // Trailers of a stream that was refused end the whole connection over there.
                while ours.connection.is_started() && seeds.len() < REQUESTS && ours.connection.can_open() {
                    let seed = seeds.len();
                    let stream =
                        ours.connection.send_request(&line, as_fields(&fields(seed)), false).unwrap();
                    seeds.insert(stream, seed);
                    let exchange = ours.exchanges.entry(stream).or_default();
                    exchange.to_send = body(seed);
                    exchange.complete = true;
                    exchange.trailers = seed.is_multiple_of(3).then(|| trailers_of(seed));
                    ours.pump(stream);
                }
                if seeds.len() == REQUESTS && ours.connection.active() == 0 {
                    break;
                }
                assert!(ours.turn().await);
            }
            for (stream, seed) in seeds {
                let exchange = &ours.exchanges[&stream];
                assert!(exchange.recv_over && exchange.send_over);
                assert!(exchange.received == body(seed), "body of {seed}");
                same(exchange.head.clone(), fields(seed));
                assert_eq!(exchange.received_trailers.is_some(), seed.is_multiple_of(3));
                if let Some(trailers) = &exchange.received_trailers {
                    same(trailers.clone(), trailers_of(seed));
                }
            }
            ours.connection.close(ErrorCode::NO_ERROR);
            ours.turn().await;
        };
        tokio::join!(client, their_server(far, &setup));
    }
}
