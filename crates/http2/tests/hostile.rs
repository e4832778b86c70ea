//! Peers that mean harm: nothing panics, memory is bounded, and the limits are where the configuration says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use outrider_http2::{Config, Connection, ErrorCode, Event, Head, PREFACE, Role, Violation};
use proptest::prelude::*;

#[path = "scripts/frames.rs"]
mod frames;

/// A server that has shaken hands.
fn server(config: Config) -> Connection {
    let mut connection = Connection::new(Role::Server, config, 0);
    let hello = [PREFACE.as_slice(), &frames::make("SETTINGS"), &frames::make("SETTINGS ack")].concat();
    assert_eq!(feed(&mut connection, &mut Head::new(), &hello, 0), Ok(vec![Event::Settings]));
    drained(&mut connection);
    connection
}

fn feed(
    connection: &mut Connection,
    head: &mut Head,
    mut input: &[u8],
    now: u64,
) -> Result<Vec<Event>, Violation> {
    let mut events = Vec::new();
    loop {
        let step = connection.receive(input, head, now)?;
        input = &input[step.consumed..];
        match step.event {
            Some(event) => events.push(event),
            None => return Ok(events),
        }
    }
}

fn drained(connection: &mut Connection) -> Vec<String> {
    let mut out = Vec::new();
    connection.poll_output(&mut out);
    frames::describe(&out)
}

/// RFC 7541 section 7.3: one entry of four kilobytes, named again and again.
#[test]
fn a_block_that_unfolds_is_refused_and_takes_no_memory() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    let mut block = vec![0x40, 1, b'a', 127, 0xb0, 0x1e];
    block.extend(vec![b'v'; 127 + 0x30 + (0x1e << 7)]);
    let request = frames::make("HEADERS 1 end GET");
    let mut fields = request[9..].to_vec();
    fields.extend(&block);
    let first = frames::frame(1, 5, 1, &fields);
    assert!(matches!(feed(&mut connection, &mut head, &first, 0).unwrap()[..], [Event::Head { .. }]));
    let mut fields = request[9..].to_vec();
    fields.extend(vec![0xbe; 16_000]);
    let bomb = frames::frame(1, 5, 3, &fields);
    let events = feed(&mut connection, &mut head, &bomb, 0).unwrap();
    assert!(matches!(events[..], [Event::HeadTooLarge { end: true, too_many: false, .. }]), "{events:?}");
    assert!(head.footprint() <= 512 << 10, "{}", head.footprint());
    assert!(connection.footprint() <= 32 << 10, "{}", connection.footprint());
    head.clear(4096);
    assert!(head.footprint() <= 8192);
}

/// A gRPC server that sends many small messages which are not read at once must not be taken for an attack.
#[test]
fn ten_thousand_small_frames_that_are_not_released_are_fine_and_take_no_memory() {
    let mut connection = server(Config { max_streams: 200, ..Config::default() });
    let mut head = Head::new();
    for id in (1..400).step_by(2) {
        feed(&mut connection, &mut head, &frames::make(&format!("HEADERS {id} POST")), 0).unwrap();
    }
    let before = connection.footprint();
    let mut bytes = 0;
    for _ in 0..50 {
        for id in (1..400).step_by(2) {
            let events =
                feed(&mut connection, &mut head, &frames::make(&format!("DATA {id} 20")), 0).unwrap();
            let [Event::Data { range, .. }] = &events[..] else { panic!("{events:?}") };
            bytes += range.len();
        }
    }
    assert_eq!((bytes, connection.footprint()), (200_000, before));
    assert!(drained(&mut connection).is_empty(), "nothing was released");
}

/// What a client that hedges does, and what one that attacks does, at the default limits.
/// Edge cases 24 and 25.
#[test]
fn two_hundred_cancels_a_second_are_fine_and_ten_thousand_are_not() {
    for (per_second, expected) in [(200, Ok(())), (10_000, Err(Violation::ResetFlood))] {
        let mut connection = server(Config::default());
        let mut head = Head::new();
        let mut result = Ok(());
        for step in 0..60 * 200u64 {
            let id = 2 * step + 1;
            let frames = [
                frames::make(&format!("HEADERS {id} POST")),
                frames::make(&format!("RST_STREAM {id} CANCEL")),
            ];
            let now = step * 1000 / per_second;
            result = feed(&mut connection, &mut head, &frames.concat(), now)
                .map(|events| assert_eq!(events.len(), 2));
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, expected);
        assert!(connection.footprint() < 64 << 10);
    }
}

/// A download over a connection whose client opens its windows after every frame, and one that measures
/// the round trip by PING with every frame.
#[test]
fn attentive_receivers_are_not_taken_for_a_flood() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    let events = feed(&mut connection, &mut head, &frames::make("HEADERS 1 end GET"), 0).unwrap();
    let [Event::Head { stream, .. }] = events[..] else { panic!("{events:?}") };
    connection.send_response(stream, 200, std::iter::empty(), false).unwrap();
    let mut out = Vec::new();
    for _ in 0..20_000 {
        out.clear();
        let sent = connection.send_data(stream, 100, false, &mut out).unwrap();
        assert_eq!(sent.length, 100);
        let answers = [
            frames::make("WINDOW_UPDATE 0 100"),
            frames::make("WINDOW_UPDATE 1 100"),
            frames::make("PING 1"),
        ];
        feed(&mut connection, &mut head, &answers.concat(), 0).unwrap();
    }
}

/// Clients of Go give windows back in pieces of 4 KiB, on the stream and on the connection, whenever whoever reads has such
/// a buffer, be it long after a whole window of megabytes has come.
#[test]
fn a_body_that_is_read_in_pieces_is_no_flood_and_one_read_byte_by_byte_is() {
    const WINDOW: usize = 4 << 20;
    let whole = |piece: usize, windows: usize| {
        let mut connection = server(Config::default());
        let mut head = Head::new();
        let first = [
            frames::make(&format!("SETTINGS INITIAL_WINDOW_SIZE={WINDOW}")),
            frames::make("WINDOW_UPDATE 0 1073741824"),
            frames::make("HEADERS 1 end GET"),
        ];
        let events = feed(&mut connection, &mut head, &first.concat(), 0)?;
        let Some(Event::Head { stream, .. }) = events.last() else { panic!("{events:?}") };
        connection.send_response(*stream, 200, std::iter::empty(), false).unwrap();
        let update = |stream: u32| frames::make(&format!("WINDOW_UPDATE {stream} {piece}"));
        let pair = [update(0), update(1)].concat();
        let mut out = Vec::new();
        for _ in 0..windows {
            let mut left = WINDOW;
            while left > 0 {
                out.clear();
                left -= connection.send_data(*stream, left, false, &mut out).unwrap().length;
            }
            for _ in 0..WINDOW / piece {
                feed(&mut connection, &mut head, &pair, 0)?;
            }
        }
        Ok(())
    };
    assert_eq!(whole(4096, 16), Ok(()));
    assert_eq!(whole(256, 2), Ok(()));
    assert_eq!(whole(128, 1), Err(Violation::Flood));
}

/// RFC 9113 section 5.4.2: what was sent before the peer knew that its stream was reset. A server that answers at the head
/// ends 1,000 requests with 30 messages each.
#[test]
fn what_was_on_its_way_to_a_stream_that_was_reset_is_no_flood() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    for id in (1..2001).step_by(2) {
        let request = frames::make(&format!("HEADERS {id} POST"));
        let events = feed(&mut connection, &mut head, &request, 0).unwrap();
        let [Event::Head { stream, .. }] = events[..] else { panic!("{events:?}") };
        connection.send_response(stream, 429, std::iter::empty(), true).unwrap();
        connection.reset(stream, ErrorCode::NO_ERROR);
        let message = frames::frame(0, 0, id, &[0; 100]);
        assert_eq!(feed(&mut connection, &mut head, &message.repeat(30), 0), Ok(vec![]));
        drained(&mut connection);
    }
    // Beyond what the stream's window allowed it is one.
    let late = frames::frame(0, 0, 1999, &[0; 16_000]);
    assert_eq!(feed(&mut connection, &mut head, &late.repeat(3), 0), Ok(vec![]));
    let more = frames::frame(0, 0, 1999, &[0; 16_001]);
    assert_eq!(feed(&mut connection, &mut head, &more.repeat(6000), 0), Err(Violation::Flood));
}

/// Answers are kept for a peer that does not read, but not without end.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    let ping = frames::make("PING 1");
    let mut count = 0;
    let violation = loop {
        count += 1;
        // Slow enough for every other limit.
        match feed(&mut connection, &mut head, &ping, count * 100) {
            Ok(_) => assert!(connection.footprint() < 64 << 10),
            Err(violation) => break violation,
        }
    };
    assert_eq!(violation, Violation::Unread);
    assert_eq!(violation.code(), ErrorCode::ENHANCE_YOUR_CALM);
    assert!((500..2000).contains(&count), "{count}");
}

#[test]
fn memory_is_given_back_after_a_large_block() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    let frames = [
        frames::make("HEADERS 1 end more GET big=16000"),
        frames::make("CONTINUATION 1 more big=16000"),
        frames::make("CONTINUATION 1 big=16000"),
    ];
    for byte in frames.concat() {
        feed(&mut connection, &mut head, &[byte], 0).unwrap();
    }
    assert!(connection.footprint() < 16 << 10, "{}", connection.footprint());
}

/// A head of eighty kilobytes is a head like others.
#[test]
fn a_large_head_within_the_limit_is_taken() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    feed(&mut connection, &mut head, &frames::make("HEADERS 1 end more GET big=16000"), 0).unwrap();
    for _ in 0..3 {
        feed(&mut connection, &mut head, &frames::make("CONTINUATION 1 more big=16000"), 0).unwrap();
    }
    let events = feed(&mut connection, &mut head, &frames::make("CONTINUATION 1 big=16000"), 0).unwrap();
    assert!(matches!(events[..], [Event::Head { end: true, .. }]), "{events:?}");
    assert_eq!(head.values(b"x-big").map(<[u8]>::len).sum::<usize>(), 80_000);
}

/// 28 bits for a byte: what comes has three and a half times as many bytes as what it stands for, and could be eight fifths
/// as many of something else.
#[test]
fn a_head_of_long_codes_takes_no_more_than_two_heads_may_have() {
    let config = Config::default();
    let max_head = config.max_head as usize;
    let (mut connection, mut head) = (server(config), Head::new());
    let mut block = frames::make("HEADERS 1 end GET")[9..].to_vec();
    // Without indexing, a name of one byte, and a value of 60,000 times 0xf9.
    let coded = [0xff, 0xff, 0xff, 0xef, 0xff, 0xff, 0xfe].repeat(30_000);
    block.extend_from_slice(&[0x00, 1, b'x', 0xff]);
    let mut length = coded.len() - 127;
    while length >= 128 {
        block.push(length as u8 | 0x80);
        length >>= 7;
    }
    block.push(length as u8);
    block.extend_from_slice(&coded);
    let mut pieces = block.chunks(16_000).peekable();
    let mut kind = 1;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { 4 } else { 0 };
        let end = u8::from(kind == 1);
        let events = feed(&mut connection, &mut head, &frames::frame(kind, last | end, 1, piece), 0).unwrap();
        assert_eq!(events.len(), usize::from(last > 0), "{events:?}");
        kind = 9;
    }
    assert_eq!(head.values(b"x").next(), Some(&[0xf9; 60_000][..]));
    assert!(head.footprint() <= 2 * max_head, "{}", head.footprint());
    // What is kept of it is what is there.
    head.shrink(4096);
    assert!(head.footprint() <= 60_000 + 2 * 4096 + 200, "{}", head.footprint());
    assert_eq!(head.values(b"x").next(), Some(&[0xf9; 60_000][..]));
}

/// Identifiers end before they wrap.
/// Edge case 32.
#[test]
fn a_client_at_the_last_identifier() {
    let mut connection = server(Config::default());
    let mut head = Head::new();
    let events = feed(&mut connection, &mut head, &frames::make("HEADERS 2147483647 end GET"), 0).unwrap();
    assert!(matches!(events[..], [Event::Head { .. }]));
    let result = feed(&mut connection, &mut head, &frames::make("HEADERS 1 end GET"), 0);
    assert_eq!(result, Err(Violation::StreamId));
    assert_eq!(drained(&mut connection), ["GOAWAY 2147483647 PROTOCOL_ERROR"]);
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![Just(0u32), (0u32..6).prop_map(|n| 2 * n + 1), Just(2u32), any::<u32>()];
    let valid = (id, 0u32..70_000, 0..16).prop_map(|(id, number, which)| {
        let id = id & 0x7fff_ffff;
        frames::make(&match which {
            0 => format!("HEADERS {id} end GET"),
            1 => format!("HEADERS {id} POST content-length={number}"),
            2 => format!("HEADERS {id} more POST cookie=a"),
            3 => format!("HEADERS {id} :status=200"),
            4 => format!("HEADERS {id} end :status=204"),
            5 => format!("HEADERS {id} end grpc-status=0"),
            6 => format!("CONTINUATION {id} x=y"),
            7 => format!("DATA {id} {}", number % 2000),
            8 => format!("DATA {id} {} end pad=7", number % 2000),
            9 => format!("RST_STREAM {id} CANCEL"),
            10 => format!("WINDOW_UPDATE {id} {number}"),
            11 => format!("PRIORITY {id}"),
            12 => format!("SETTINGS INITIAL_WINDOW_SIZE={number} HEADER_TABLE_SIZE={number}"),
            13 => "SETTINGS ack".to_owned(),
            14 => format!("PING {number}"),
            _ => format!("GOAWAY {id} NO_ERROR"),
        })
    });
    let raw = (0u8..12, any::<u8>(), 0u32..10, prop::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(kind, flags, id, payload)| frames::frame(kind, flags, id, &payload));
    prop_oneof![6 => valid, 1 => raw]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Frames in any order, some of them damaged, in pieces of any size, with answers in between.
    #[test]
    fn nothing_panics_and_memory_is_bounded(
        client in any::<bool>(),
        frames in prop::collection::vec((frame(), prop::option::weighted(0.05, (any::<usize>(), any::<u8>()))), 1..60),
        piece in 1usize..5000,
        answers in prop::collection::vec(0u8..8, 60),
    ) {
        let role = if client { Role::Client } else { Role::Server };
        let mut connection = Connection::new(role, Config { max_streams: 4, ..Config::default() }, 0);
        let mut head = Head::new();
        let hello = if client { vec![] } else { PREFACE.to_vec() };
        feed(&mut connection, &mut head, &[hello, frames::make("SETTINGS")].concat(), 0).unwrap();
        let mut streams = Vec::new();
        let mut out = Vec::new();
        for ((mut bytes, damage), answer) in frames.into_iter().zip(answers) {
            if let Some((at, with)) = damage {
                let at = at % bytes.len();
                bytes[at] = with;
            }
            for part in bytes.chunks(piece) {
                if let Ok(events) = feed(&mut connection, &mut head, part, 0) {
                    for event in events {
                        if let Event::Head { stream, .. } | Event::Data { stream, .. } = event {
                            streams.push(stream);
                        }
                    }
                } else {
                    prop_assert!(connection.is_over());
                    prop_assert_eq!(connection.active(), 0);
                }
            }
            prop_assert!(connection.footprint() < 300 << 10);
            out.clear();
            if client && answer == 0 {
                let line = outrider_http2::RequestLine {
                    method: b"GET", scheme: Some(b"http"), path: Some(b"/"), ..Default::default()
                };
                let _ = connection.send_request(&line, std::iter::empty(), false).map(|stream| streams.push(stream));
            }
            if let Some(stream) = streams.last().copied() {
                match answer {
                    1 => connection.release(stream, 700),
                    2 => connection.reset(stream, ErrorCode::CANCEL),
                    3 => { let _ = connection.send_response(stream, 200, std::iter::empty(), false); }
                    4 => {
                        if let Ok(sent) = connection.send_data(stream, 1000, false, &mut out) {
                            out.resize(out.len() + sent.length, 0);
                        }
                    }
                    5 => { let _ = connection.send_trailers(stream, std::iter::empty()); }
                    6 => { while connection.poll_writable().is_some() {} }
                    _ => {}
                }
            }
            connection.poll_output(&mut out);
            // What is written are whole frames.
            let written = out.strip_prefix(PREFACE.as_slice()).unwrap_or(&out);
            frames::describe(written);
        }
    }
}

#[test]
fn what_has_begun_and_is_not_whole_is_known() {
    let mut server = Connection::new(Role::Server, Config::default(), 0);
    let mut head = Head::new();
    let mut feed = |bytes: &[u8]| {
        let mut rest = bytes;
        loop {
            let step = server.receive(rest, &mut head, 0).unwrap();
            rest = &rest[step.consumed..];
            if rest.is_empty() && step.event.is_none() {
                return (server.is_greeted(), server.is_within_head());
            }
        }
    };
    assert_eq!(feed(&PREFACE[..10]), (false, true));
    assert_eq!(feed(&PREFACE[10..]), (true, true), "SETTINGS belong to it");
    assert_eq!(feed(&[0, 0, 0, 4, 0, 0, 0, 0, 0]), (true, false));
    assert_eq!(feed(&[0, 0]), (true, true));
    // HEADERS of two bytes, not the last of its block, and then what ends it.
    assert_eq!(feed(&[2, 1, 0, 0, 0, 0, 1, 0x83, 0x86]), (true, true));
    assert_eq!(feed(&[0, 0, 1, 9, 4, 0, 0, 0, 1, 0x84]), (true, false));
    // The half of a body is nobody's head.
    assert_eq!(feed(&[0, 0, 5, 0, 0, 0, 0, 0, 1, b'a']), (true, false));
}

/// N26 to N28: what is not released of some streams is theirs, and the rest of the window flows on.
/// Edge cases 26 to 28.
#[test]
fn streams_that_are_not_released_leave_the_rest_of_the_window_to_others() {
    const WINDOW: u32 = 65_535;
    let streams = 10;
    let config = Config { connection_window: streams * WINDOW, ..Config::default() };
    let (mut server, mut client) = (server(config), Connection::new(Role::Client, Config::default(), 0));
    let mut head = Head::new();
    let mut out = Vec::new();
    client.poll_output(&mut out);
    let hello = [&frames::make("SETTINGS")[..], &frames::make("WINDOW_UPDATE 0 589815")].concat();
    feed(&mut client, &mut head, &hello, 0).unwrap();
    out.clear();
    client.poll_output(&mut out);
    out.clear();
    let line = outrider_http2::RequestLine {
        method: b"POST",
        scheme: Some(b"http"),
        authority: Some(b"a"),
        path: Some(b"/"),
        protocol: None,
    };
    // All but the last are never released.
    let mut flowed = 0;
    for n in 1..=streams {
        let stream = client.send_request(&line, std::iter::empty(), false).unwrap();
        let mut left = if n < streams { WINDOW as usize } else { 4 << 20 };
        let mut stuck = 0;
        while left > 0 && stuck < 2 {
            let sent = client.send_data(stream, left, false, &mut out).unwrap();
            out.resize(out.len() + sent.length, 0);
            left -= sent.length;
            stuck = if sent.length == 0 { stuck + 1 } else { 0 };
            for event in feed(&mut server, &mut head, &std::mem::take(&mut out), 0).unwrap() {
                if let Event::Data { stream, range, .. } = event
                    && n == streams
                {
                    flowed += range.len();
                    server.release(stream, range.len());
                }
            }
            let mut back = Vec::new();
            server.poll_output(&mut back);
            feed(&mut client, &mut head, &back, 0).unwrap();
            while client.poll_writable().is_some() {}
            client.poll_output(&mut out);
        }
    }
    assert_eq!(flowed, 4 << 20);
}
