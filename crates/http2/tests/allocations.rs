//! A warmed connection allocates nothing for an exchange: request, response, bodies, trailers, in both roles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use outrider_http2::{Config, Connection, Event, Field, Head, HeadKind, RequestLine, Role, Stream};

const BODY: &[u8] = &[b'x'; 3000];

struct Side {
    connection: Connection,
    head: Head,
    out: Vec<u8>,
    stream: Option<Stream>,
    over: bool,
}

impl Side {
    fn new(role: Role) -> Self {
        let out = Vec::with_capacity(64 << 10);
        let connection = Connection::new(role, Config::default(), 0);
        Self { connection, head: Head::new(), out, stream: None, over: false }
    }

    fn body(&mut self) {
        let stream = self.stream.unwrap();
        let sent = self.connection.send_data(stream, BODY.len(), false, &mut self.out).unwrap();
        assert_eq!(sent.length, BODY.len());
        self.out.extend_from_slice(BODY);
        let fields: [(&[u8], &[u8]); 2] = [(b"grpc-status", b"0"), (b"grpc-message", b"")];
        self.connection.send_trailers(stream, fields.iter().map(|field| Field::from(*field))).unwrap();
    }

    fn receive(&mut self, mut input: &[u8], now: u64, each: &mut dyn FnMut(&mut Self, &Event)) {
        loop {
            let mut head = std::mem::take(&mut self.head);
            let step = self.connection.receive(input, &mut head, now).unwrap();
            self.head = head;
            input = &input[step.consumed..];
            let Some(event) = step.event else { break };
            if let Event::Data { stream, range, .. } = &event {
                self.connection.release(*stream, range.len());
            }
            each(self, &event);
        }
    }
}

/// Both sides send what they have, in pieces, so that frames are cut as well.
fn exchange_bytes(from: &mut Side, to: &mut Side, now: u64, each: &mut dyn FnMut(&mut Side, &Event)) {
    from.connection.poll_output(&mut from.out);
    for piece in from.out.chunks(1300) {
        to.receive(piece, now, each);
    }
    from.out.clear();
}

fn exchange(client: &mut Side, server: &mut Side, step: u64) {
    let digits = [(step / 100 % 10) as u8 + b'0', (step / 10 % 10) as u8 + b'0', (step % 10) as u8 + b'0'];
    let path: &[u8] =
        if step.is_multiple_of(3) { &[b'/', digits[1], digits[2]] } else { b"/shop.Inventory/Get" };
    let line = RequestLine {
        method: b"POST",
        scheme: Some(b"https"),
        authority: Some(b"inventory.shop"),
        path: Some(path),
        protocol: None,
    };
    let fields: [(&[u8], &[u8]); 6] = [
        (b"te", b"trailers"),
        (b"Content-Type", b"application/grpc"),
        (b"x-request-id", &digits),
        (b"x-turn", &digits),
        (b"cookie", b"a=b"),
        (b"authorization", b"Bearer abcdefghijklmnopqrstuvwxyz"),
    ];
    let fields = fields.iter().map(|field| Field::from(*field));
    client.stream = Some(client.connection.send_request(&line, fields, false).unwrap());
    client.over = false;
    client.body();
    exchange_bytes(client, server, step, &mut |server, event| match event {
        Event::Head { stream, kind: HeadKind::Request, .. } => {
            assert_eq!(server.head.lines().len(), 6);
            server.stream = Some(*stream);
        }
        Event::Head { stream, kind: HeadKind::Trailers, .. } => {
            let fields: [(&[u8], &[u8]); 2] = [(b"content-type", b"application/grpc"), (b"date", b"today")];
            let fields = fields.iter().map(|field| Field::from(*field));
            server.connection.send_response(*stream, 200, fields, false).unwrap();
            server.body();
        }
        _ => {}
    });
    exchange_bytes(server, client, step, &mut |client, event| {
        if let Event::Head { kind: HeadKind::Trailers, end, .. } = event {
            client.over = *end;
        }
    });
    assert!(client.over);
    // The answers of the client: windows.
    exchange_bytes(client, server, step, &mut |_, _| {});
    assert_eq!((client.connection.active(), server.connection.active()), (0, 0));
}

#[test]
fn an_exchange_allocates_nothing_once_warm() {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    exchange_bytes(&mut client, &mut server, 0, &mut |_, _| {});
    exchange_bytes(&mut server, &mut client, 0, &mut |_, _| {});
    // Until the tables have been full and begun anew.
    for step in 0..1000 {
        exchange(&mut client, &mut server, step);
    }
    let counted = allocation_counter::measure(|| {
        for step in 1000..2000 {
            exchange(&mut client, &mut server, step);
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // The measure itself sees allocations.
    let seen = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8])));
    assert_eq!(seen.count_total, 1);
}

#[test]
fn an_idle_connection_is_small() {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    for step in 0..500 {
        exchange(&mut client, &mut server, step);
    }
    for side in [&client, &server] {
        let bytes = size_of::<Connection>() + side.connection.footprint();
        assert!(bytes <= 32 << 10, "{bytes}");
    }
}
