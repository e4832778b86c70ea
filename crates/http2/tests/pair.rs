//! Two connections of ours against each other: whatever is sent, waited for, reset and cut into pieces, both sides
//! see the same messages, nobody breaks a rule, and in the end every stream is over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use outrider_http2::{
    Config, Connection, ErrorCode, Event, Field, Head, HeadKind, Rate, RequestLine, ResetCause, Role,
    SendError, Stream,
};
use proptest::prelude::*;

/// The fields of a message, by the number of its stream.
fn fields(seed: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    let names = ["accept", "x-trace", "cookie", "grpc-status", "user-agent", "x-long"];
    (0..next(8))
        .map(|_| {
            let name = names[next(6) as usize];
            let value = match name {
                "x-long" => vec![b'a' + (seed % 26) as u8; next(20_000) as usize],
                _ => format!("value-{}", next(5)).into_bytes(),
            };
            (name.as_bytes().to_vec(), value)
        })
        .collect()
}

/// Those that may come behind a body.
fn trailers_of(id: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields = fields(id + 2);
    fields.retain(|(name, _)| name != b"cookie");
    fields
}

fn as_fields(fields: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = Field<'_>> + Clone {
    fields.iter().map(|(name, value)| Field::from((name.as_slice(), value.as_slice())))
}

/// The byte of a body at a place.
fn byte(id: u32, at: usize) -> u8 {
    (at.wrapping_mul(31) as u32).wrapping_add(id) as u8
}

/// How long a body is, and whether trailers follow: known to both sides.
fn plan(role: Role, id: u32) -> (usize, bool) {
    let seed = id.wrapping_mul(if role == Role::Client { 40_503 } else { 30_011 });
    let length = [0, 1, 100, 5_000, 40_000, 150_000][(seed >> 3) as usize % 6];
    (length, seed % 3 == 0)
}

struct Open {
    stream: Stream,
    /// Of the body that this side sends.
    sent: usize,
    head_sent: bool,
    send_over: bool,
    received: usize,
    unreleased: usize,
    head_received: bool,
    recv_over: bool,
    reset: bool,
    /// It could send nothing, and waits until it is named.
    waits: bool,
}

struct Side {
    role: Role,
    connection: Connection,
    head: Head,
    /// On its way to the other side.
    wire: Vec<u8>,
    open: Vec<Open>,
    pongs: usize,
}

impl Side {
    fn new(role: Role, config: Config) -> Self {
        let connection = Connection::new(role, config, 0);
        Self { role, connection, head: Head::new(), wire: Vec::new(), open: Vec::new(), pongs: 0 }
    }

    fn peer(&self) -> Role {
        if self.role == Role::Client { Role::Server } else { Role::Client }
    }

    fn add(&mut self, stream: Stream) -> &mut Open {
        self.open.push(Open {
            stream,
            sent: 0,
            head_sent: false,
            send_over: false,
            received: 0,
            unreleased: 0,
            head_received: false,
            recv_over: false,
            reset: false,
            waits: false,
        });
        self.open.last_mut().unwrap()
    }

    fn request(&mut self) {
        let line = RequestLine {
            method: b"POST",
            scheme: Some(b"https"),
            authority: Some(b"shop.example:8443"),
            path: Some(b"/cart?item=1"),
            protocol: None,
        };
        // The identifier decides the fields, and is known before.
        let id = self.open.last().map_or(1, |open| open.stream.id() + 2);
        let end = plan(Role::Client, id) == (0, false);
        match self.connection.send_request(&line, as_fields(&fields(id)), end) {
            Ok(stream) => {
                assert_eq!(stream.id(), id);
                let open = self.add(stream);
                open.head_sent = true;
                open.send_over = end;
            }
            Err(SendError::Busy | SendError::Over) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends up to `most` bytes of the body of the stream at `at`, or its head, or its trailers.
    fn pump(&mut self, at: usize, most: usize) {
        let Some(open) = self.open.get_mut(at) else { return };
        if open.reset || open.send_over {
            return;
        }
        let id = open.stream.id();
        let (length, trailers) = plan(self.role, id);
        if !open.head_sent {
            let end = (length, trailers) == (0, false);
            if id % 5 == 0 {
                self.connection.send_response(open.stream, 103, std::iter::empty(), false).unwrap();
            }
            self.connection.send_response(open.stream, 200, as_fields(&fields(id + 1)), end).unwrap();
            open.head_sent = true;
            open.send_over = end;
            return;
        }
        if open.sent == length {
            if trailers {
                self.connection.send_trailers(open.stream, as_fields(&trailers_of(id))).unwrap();
            } else {
                let sent = self.connection.send_data(open.stream, 0, true, &mut self.wire).unwrap();
                assert!(sent.end && sent.length == 0);
            }
            open.send_over = true;
            return;
        }
        let available = most.min(length - open.sent);
        let last = open.sent + available == length && !trailers;
        let sent = self.connection.send_data(open.stream, available, last, &mut self.wire).unwrap();
        let range = open.sent..open.sent + sent.length;
        self.wire.extend(range.map(|at| byte(id, at)));
        open.sent += sent.length;
        open.send_over = sent.end;
        open.waits |= sent.length == 0;
    }

    fn release(&mut self, at: usize, most: usize) {
        let Some(open) = self.open.get_mut(at) else { return };
        let count = most.min(open.unreleased);
        open.unreleased -= count;
        self.connection.release(open.stream, count);
    }

    fn reset(&mut self, at: usize) {
        let Some(open) = self.open.get_mut(at) else { return };
        open.reset = true;
        open.unreleased = 0;
        self.connection.reset(open.stream, ErrorCode::CANCEL);
    }

    fn receive(&mut self, mut input: &[u8], now: u64) {
        loop {
            let step = match self.connection.receive(input, &mut self.head, now) {
                Ok(step) => step,
                Err(violation) => panic!("{:?}: {violation}", self.role),
            };
            let Some(event) = step.event else {
                assert_eq!(step.consumed, input.len());
                return;
            };
            self.take(event, input);
            input = &input[step.consumed..];
        }
    }

    fn take(&mut self, event: Event, input: &[u8]) {
        let peer = self.peer();
        match event {
            Event::Head { stream, kind, end } => {
                let id = stream.id();
                if kind == HeadKind::Request {
                    assert_eq!(self.head.path(), Some(b"/cart?item=1".as_slice()));
                    assert_eq!(self.head.authority(), Some(b"shop.example:8443".as_slice()));
                    self.add(stream);
                }
                let expected = match kind {
                    HeadKind::Interim => return,
                    HeadKind::Request => fields(id),
                    HeadKind::Response => fields(id + 1),
                    HeadKind::Trailers => trailers_of(id),
                };
                let got: Vec<_> =
                    self.head.fields().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                assert_eq!(got, expected);
                let open = self.open.iter_mut().find(|open| open.stream == stream).unwrap();
                assert!(!open.reset && !open.recv_over);
                assert_eq!(open.head_received, kind == HeadKind::Trailers);
                open.head_received = true;
                if end {
                    open.recv_over = true;
                    assert_eq!(open.received, plan(peer, id).0);
                }
            }
            Event::Data { stream, range, end } => {
                let open = self.open.iter_mut().find(|open| open.stream == stream).unwrap();
                assert!(!open.reset && !open.recv_over && open.head_received);
                for b in &input[range.clone()] {
                    assert_eq!(*b, byte(stream.id(), open.received));
                    open.received += 1;
                }
                open.unreleased += range.len();
                if end {
                    open.recv_over = true;
                    assert_eq!((open.received, false), plan(peer, stream.id()));
                }
            }
            Event::Reset { stream, code, cause } => {
                // A client may open too many streams before it knows the limit, or that the server drains.
                let refused = self.role == Role::Client && code == ErrorCode::REFUSED_STREAM;
                assert!(refused || (code, cause) == (ErrorCode::CANCEL, ResetCause::Peer));
                assert_eq!(cause.is_unprocessed(code), refused);
                let open = self.open.iter_mut().find(|open| open.stream == stream).unwrap();
                open.reset = true;
                open.unreleased = 0;
            }
            Event::Pong(_) => self.pongs += 1,
            Event::Rejected { fault, .. } => {
                assert_eq!(fault.code(), ErrorCode::REFUSED_STREAM);
            }
            Event::Settings | Event::GoAway { .. } => {}
            Event::HeadTooLarge { .. } => panic!("{event:?}"),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Request,
    Pump { client: bool, at: usize, most: usize },
    Release { client: bool, at: usize, most: usize },
    Reset { client: bool, at: usize },
    Deliver { client: bool, most: usize },
    Ping,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0usize..12;
    prop_oneof![
        4 => Just(Op::Request),
        12 => (any::<bool>(), at.clone(), 1usize..60_000).prop_map(|(client, at, most)| Op::Pump { client, at, most }),
        6 => (any::<bool>(), at.clone(), 1usize..60_000)
            .prop_map(|(client, at, most)| Op::Release { client, at, most }),
        1 => (any::<bool>(), at).prop_map(|(client, at)| Op::Reset { client, at }),
        12 => (any::<bool>(), prop_oneof![1usize..40, 1usize..100_000])
            .prop_map(|(client, most)| Op::Deliver { client, most }),
        1 => Just(Op::Ping),
        1 => Just(Op::Drain),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let window = prop_oneof![500u32..3000, Just(65_535), 65_536u32..1_000_000];
    let table = prop_oneof![Just(0u32), 30u32..300, Just(4096), Just(20_000)];
    (window, 65_535u32..400_000, 16_384u32..40_000, 2u32..8, table.clone(), table).prop_map(
        |(stream_window, connection_window, max_frame, max_streams, decoder_table, encoder_table)| Config {
            stream_window,
            connection_window,
            max_frame,
            max_streams,
            decoder_table,
            encoder_table,
            max_head: 400_000,
            idle_frames: Rate { burst: 1_000_000, per_second: 0 },
            ..Config::default()
        },
    )
}

/// A client and a server, and what is between them.
struct Pair {
    sides: [Side; 2],
    now: u64,
}

impl Pair {
    fn side(&mut self, client: bool) -> &mut Side {
        &mut self.sides[usize::from(!client)]
    }

    /// Moves bytes from the side to the other one.
    fn deliver(&mut self, client: bool, most: usize) -> bool {
        let from = self.side(client);
        from.connection.poll_output(&mut from.wire);
        let count = most.min(from.wire.len());
        let bytes: Vec<u8> = from.wire.drain(..count).collect();
        self.now += 1;
        let now = self.now;
        self.side(!client).receive(&bytes, now);
        count > 0
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Request => self.side(true).request(),
            Op::Pump { client, at, most } => self.side(client).pump(at, most),
            Op::Release { client, at, most } => self.side(client).release(at, most),
            // What is reset before the other side heard of it is a request that was never made.
            Op::Reset { client, at } => self.side(client).reset(at),
            Op::Deliver { client, most } => {
                self.deliver(client, most);
            }
            Op::Ping => self.side(true).connection.ping(7),
            Op::Drain => self.side(false).connection.drain(),
        }
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = false;
            for client in [true, false] {
                moved |= self.deliver(client, usize::MAX);
                let side = self.side(client);
                for at in 0..side.open.len() {
                    side.release(at, usize::MAX);
                    let before = (side.open[at].sent, side.open[at].send_over, side.open[at].head_sent);
                    // Who waits is not looked at again: it must be named.
                    if !side.open[at].waits {
                        side.pump(at, 50_000);
                    }
                    moved |= before != (side.open[at].sent, side.open[at].send_over, side.open[at].head_sent);
                }
                while let Some(stream) = side.connection.poll_writable() {
                    let at = side.open.iter().position(|open| open.stream == stream).unwrap();
                    side.open[at].waits = false;
                    side.pump(at, 50_000);
                    moved = true;
                }
                moved |= side.connection.has_output() || !side.wire.is_empty();
            }
            if !moved {
                return;
            }
        }
        panic!("no end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn both_sides_see_the_same(
        client in config(),
        server in config(),
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let configs = (client, server);
        let mut pair = Pair { sides: [Side::new(Role::Client, client), Side::new(Role::Server, server)], now: 0 };
        for op in &ops {
            pair.run(op);
            for side in &pair.sides {
                prop_assert!(side.connection.footprint() < 600_000);
            }
        }
        pair.settle();
        let [client, server] = &pair.sides;
        for open in client.open.iter().chain(&server.open) {
            prop_assert!(open.reset || (open.send_over && open.recv_over), "{}", open.stream.id());
        }
        // Every byte was given back, but for less than half a window that is not worth an update.
        prop_assert!(client.connection.connection_window() > i64::from(configs.1.connection_window / 2));
        prop_assert!(server.connection.connection_window() > i64::from(configs.0.connection_window / 2));
        prop_assert_eq!((client.connection.active(), server.connection.active()), (0, 0));
        if ops.iter().any(|op| matches!(op, Op::Drain)) {
            prop_assert!(client.connection.is_over() && server.connection.is_over());
        }
        let pings = ops.iter().filter(|op| matches!(op, Op::Ping)).count();
        prop_assert_eq!(client.pongs, pings);
    }
}
