//! HTTP/2: frames at both roles, and field blocks against the `h2` crate.

#[allow(dead_code, unreachable_pub, missing_docs, reason = "only what peers send is used here")]
#[path = "../../../http2/tests/scripts/frames.rs"]
mod frames;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use outrider_http2::{
    Config, Connection, ErrorCode, Event, Field, Head, HeadKind, PREFACE, RequestLine, Role, Stream,
    Violation,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Target, Verdict, expect, fixtures};
use crate::mutate::{Random, Shape};

const PIECES: &[&[u8]] = &[
    b"\x82",
    b"\x84",
    b"\x86",
    b"\x41\x01a",
    b"\x3f\xe1\x1f",
    b"\x20",
    b"\x3f\xff\xff\xff\x7f",
    b"\xbe",
    b"\x40\x01a\x01b",
    b"\x00\x01A\x01b",
    b"\x00\x0econtent-length\x011",
    b"\x00\x0aconnection\x01x",
    b"\x00\x02te\x08trailers",
    b"\x00\x04host\x01a",
    b"\x00\x09:protocol\x09websocket",
    b"\x7f\xff\xff\xff\xff\x0f",
    b"\xff",
    b"\0",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x01",
];

pub(super) const SERVER: Target = Target {
    name: "http2-server",
    from: "callers",
    shape: Shape::Frames,
    pieces: PIECES,
    most: 40_000,
    memory: 64,
    rounds: 3_000,
    accepted: 20,
    seeds,
    check: server,
};

pub(super) const CLIENT: Target = Target { name: "http2-client", from: "endpoints", check: client, ..SERVER };

/// Blocks of fields, each behind its length in one byte.
pub(super) const HPACK: Target = Target {
    name: "hpack",
    from: "callers and endpoints",
    shape: Shape::Text,
    most: 2_000,
    memory: 2_000,
    rounds: 1_500,
    accepted: 2,
    seeds: blocks,
    check: hpack,
    ..SERVER
};

/// What peers send in the cases of the crate, of either role: all frames of a case one behind the other.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for text in fixtures("http2/tests/scripts", "txt") {
        let text = String::from_utf8(text).unwrap();
        for case in text.split("\ncase ").skip(1) {
            let lines = case.lines().filter_map(|line| line.strip_prefix("> "));
            let mut bytes = Vec::new();
            for line in lines.filter(|line| *line != "PREFACE") {
                // `12x FRAME` is that frame twelve times; `*` is the next stream.
                let times =
                    line.split_once("x ").and_then(|(times, frame)| Some((times.parse().ok()?, frame)));
                let (times, frame) = times.unwrap_or((1, line));
                for turn in 0..times {
                    let id = (2 * turn + 1).to_string();
                    let words: Vec<_> =
                        frame.split(' ').map(|word| if word == "*" { id.as_str() } else { word }).collect();
                    bytes.extend(frames::make(&words.join(" ")));
                }
            }
            if (1..20_000).contains(&bytes.len()) {
                seeds.push(bytes);
            }
        }
    }
    // And what our own other side sends, with its tables and its coding.
    for role in [Role::Client, Role::Server] {
        seeds.extend(conversation(role));
    }
    seeds
}

fn fields(count: usize) -> impl Iterator<Item = Field<'static>> + Clone {
    let all: [(&[u8], &[u8]); 6] = [
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"x-request-id", b"6b4e3b6c-93b5-4f5b-8a4b-0c5f0a5f7a61"),
        (b"cookie", b"a=b; c=d"),
        (b"grpc-timeout", b"1S"),
        (b"user-agent", b"test"),
    ];
    all.into_iter().take(count).map(Field::from)
}

const LINE: RequestLine<'static> = RequestLine {
    method: b"POST",
    scheme: Some(b"http"),
    authority: Some(b"api.shop"),
    path: Some(b"/a?b"),
    protocol: None,
};

/// What the side of this role sends in exchanges of some kinds; without a client's preface.
fn conversation(role: Role) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for kind in 0..4 {
        let mut ends = [Role::Client, Role::Server].map(|role| Connection::new(role, Config::default(), 0));
        let (mut head, mut sent) = (Head::new(), Vec::new());
        let mut streams = Vec::new();
        for count in 0..3 + kind {
            let stream = ends[0].send_request(&LINE, fields(count), kind == 0).unwrap();
            streams.push(stream);
        }
        for _ in 0..4 {
            for from in 0..2 {
                let mut out = Vec::new();
                ends[from].poll_output(&mut out);
                if kind > 0 && from == 0 {
                    for stream in streams.drain(..) {
                        if let Ok(part) = ends[0].send_data(stream, 10, kind == 1, &mut out) {
                            out.extend(vec![b'x'; part.length]);
                        }
                        if kind == 2 {
                            let _ = ends[0].send_trailers(stream, fields(1));
                        }
                        if kind == 3 {
                            ends[0].reset(stream, ErrorCode::CANCEL);
                        }
                    }
                    ends[0].poll_output(&mut out);
                }
                if ends[from].role() == role {
                    sent.extend_from_slice(&out);
                }
                let mut at = 0;
                while let Ok(step) = ends[1 - from].receive(&out[at..], &mut head, 0) {
                    at += step.consumed;
                    match step.event {
                        Some(Event::Head { stream, kind: HeadKind::Request, .. }) => {
                            let server = &mut ends[1];
                            let _ = server.send_response(stream, 200, fields(2), false);
                            let mut more = Vec::new();
                            if let Ok(part) = server.send_data(stream, 5, true, &mut more)
                                && role == Role::Server
                            {
                                sent.extend_from_slice(&more);
                                sent.extend(vec![b'y'; part.length]);
                            }
                        }
                        Some(_) => {}
                        None => break,
                    }
                }
            }
        }
        all.push(sent.strip_prefix(PREFACE.as_slice()).unwrap_or(&sent).to_vec());
    }
    all
}

/// What was told, in words that do not depend on how bytes arrived.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    events: Vec<String>,
    /// Bytes of bodies, by stream, and whether that is all.
    bodies: BTreeMap<u32, (usize, bool)>,
    failed: Option<Violation>,
}

fn shown(head: &Head) -> String {
    let fields =
        head.fields().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    let pseudo = [Some(head.method()), head.scheme(), head.authority(), head.path(), head.protocol()];
    format!("{pseudo:?} {:?}", fields.collect::<Vec<_>>())
}

/// One side with bytes of its peer, which does nothing but look, or does what callers of it do.
struct Driver {
    connection: Connection,
    head: Head,
    told: Told,
    /// Streams that are open as far as is known here.
    open: VecDeque<Stream>,
    out: Vec<u8>,
}

impl Driver {
    fn new(role: Role, requests: usize) -> Self {
        let config = Config { connect_protocol: true, max_streams: 20, ..Config::default() };
        let mut connection = Connection::new(role, config, 0);
        let mut open = VecDeque::new();
        for count in 0..requests {
            open.extend(connection.send_request(&LINE, fields(count), count % 2 == 0));
        }
        Self { connection, head: Head::new(), told: Told::default(), open, out: Vec::new() }
    }

    fn take(&mut self, mut input: &[u8], mut act: Option<&mut Random>, now: u64) {
        while self.told.failed.is_none() {
            let step = match self.connection.receive(input, &mut self.head, now) {
                Ok(step) => step,
                Err(violation) => {
                    self.told.failed = Some(violation);
                    break;
                }
            };
            assert!(step.consumed <= input.len(), "more was used than there is");
            let Some(event) = step.event else {
                assert_eq!(step.consumed, input.len(), "something is left, and nothing said");
                break;
            };
            self.note(&event, input);
            if let Some(random) = &mut act {
                self.answer(&event, random);
            }
            input = &input[step.consumed..];
        }
    }

    fn note(&mut self, event: &Event, input: &[u8]) {
        match event {
            Event::Data { stream, range, end } => {
                assert!(range.end <= input.len(), "a range of other bytes");
                let body = self.told.bodies.entry(stream.id()).or_default();
                assert!(!body.1, "a body goes on behind its end");
                *body = (body.0 + range.len(), *end);
            }
            Event::Head { stream, kind, end } => {
                let text = format!("{} {kind:?} {end} {}", stream.id(), shown(&self.head));
                self.told.events.push(text);
            }
            Event::Reset { stream, code, cause } => {
                self.told.events.push(format!("{} {code} {cause:?}", stream.id()));
            }
            Event::HeadTooLarge { stream, end, .. } => {
                self.told.events.push(format!("{} too large {end}", stream.id()))
            }
            other => self.told.events.push(format!("{other:?}")),
        }
    }

    /// What a proxy does with streams, in any order. Errors say that a stream is not there any more, which is fine.
    fn answer(&mut self, event: &Event, random: &mut Random) {
        match event {
            Event::Data { stream, range, .. } if !random.one_in(3) => {
                self.connection.release(*stream, range.len())
            }
            Event::Head { stream, kind: HeadKind::Request, .. } => self.open.push_back(*stream),
            Event::HeadTooLarge { stream, .. } => {
                let _ = self.connection.send_response(*stream, 431, fields(0), true);
            }
            _ => {}
        }
        let Some(stream) = self.open.pop_front() else { return };
        self.open.push_back(stream);
        match random.below(12) {
            0 => drop(self.connection.send_response(stream, 103, fields(1), false)),
            1 | 2 => drop(self.connection.send_response(stream, 200, fields(3), random.one_in(2))),
            3 | 4 => self.data(stream, random.below(70_000), random.one_in(3)),
            5 => drop(self.connection.send_trailers(stream, fields(1))),
            6 => self.connection.reset(stream, ErrorCode::CANCEL),
            7 => {
                while let Some(stream) = self.connection.poll_writable() {
                    self.data(stream, 1000, random.one_in(3));
                }
            }
            8 => self.connection.ping(random.next()),
            9 if random.one_in(10) => self.connection.drain(),
            10 if random.one_in(10) => self.connection.finish_drain(),
            _ => self.connection.poll_output(&mut self.out),
        }
        if self.connection.role() == Role::Client && random.one_in(4) {
            self.open.extend(self.connection.send_request(&LINE, fields(2), random.one_in(2)));
        }
    }

    fn data(&mut self, stream: Stream, length: usize, end: bool) {
        if let Ok(sent) = self.connection.send_data(stream, length, end, &mut self.out) {
            assert!(sent.length <= length, "more is to be sent than there is");
            self.out.resize(self.out.len() + sent.length, b'z');
        }
    }
}

/// What is written is frames, whatever was read.
fn are_frames(mut out: &[u8]) -> Result<(), String> {
    out = out.strip_prefix(PREFACE.as_slice()).unwrap_or(out);
    while !out.is_empty() {
        let (header, rest) = out.split_first_chunk::<9>().ok_or("half a frame header was written")?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        expect(header[3] <= 9 && header[5] & 0x80 == 0, || format!("wrote the frame {header:?}"))?;
        out = rest.get(length..).ok_or("half a frame was written")?;
    }
    Ok(())
}

fn side(role: Role, bytes: &[u8]) -> Verdict {
    let mut random = Random::of(bytes);
    // Nearly always with the beginning that a peer has to make.
    let mut input = Vec::new();
    if !random.one_in(16) {
        if role == Role::Server {
            input.extend_from_slice(PREFACE);
        }
        input.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    }
    input.extend_from_slice(bytes);
    let requests = 6;

    let requests = if role == Role::Client { requests } else { 0 };
    let mut whole = Driver::new(role, requests);
    whole.take(&input, None, 0);
    let mut pieces = Driver::new(role, requests);
    let piece = 1 + random.below(60);
    input.chunks(piece).for_each(|part| pieces.take(part, None, 0));
    expect(whole.told == pieces.told, || {
        format!("{:?} in pieces of {piece}, {:?} at once", pieces.told, whole.told)
    })?;
    let bound = 192 << 10;
    let footprint = whole.connection.footprint();
    expect(footprint <= bound, || format!("holds {footprint} bytes"))?;

    let mut active = Driver::new(role, requests);
    for (now, part) in input.chunks(1 + random.below(400)).enumerate() {
        active.take(part, Some(&mut random), now as u64);
    }
    active.connection.poll_output(&mut active.out);
    are_frames(&active.out)?;
    while active.connection.end_of_input().is_some() {}
    expect(active.connection.active() == 0 || active.told.failed.is_some(), || {
        "streams are left behind the end of the input".to_owned()
    })?;
    Ok(whole.told.failed.is_none())
}

fn server(bytes: &[u8]) -> Verdict {
    side(Role::Server, bytes)
}

fn client(bytes: &[u8]) -> Verdict {
    side(Role::Client, bytes)
}

fn blocks() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for seed in seeds_of_heads() {
        let mut blocks = Vec::new();
        for block in seed.iter().filter(|block| block.len() < 256) {
            blocks.push(block.len() as u8);
            blocks.extend_from_slice(block);
        }
        if !blocks.is_empty() {
            seeds.push(blocks);
        }
    }
    seeds
}

/// The blocks of HEADERS without padding and priority, by seed.
fn seeds_of_heads() -> Vec<Vec<Vec<u8>>> {
    let of = |mut bytes: &[u8]| {
        let mut blocks = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let (payload, rest) = rest.split_at(length.min(rest.len()));
            if header[3] == 1 && header[4] & 0x28 == 0 {
                blocks.push(payload.to_vec());
            }
            bytes = rest;
        }
        blocks
    };
    seeds().iter().map(|seed| of(seed)).collect()
}

/// A field section: pseudo-header fields and fields.
type Section = Vec<(Vec<u8>, Vec<u8>)>;

/// What became of a request.
#[derive(Debug, Default)]
struct Read {
    heads: BTreeMap<u32, Section>,
    /// GOAWAY with this code.
    failed: Option<u32>,
}

fn ours(input: &[u8]) -> Read {
    let mut connection = Connection::new(Role::Server, Config::default(), 0);
    let (mut head, mut at) = (Head::new(), 0);
    let mut read = Read::default();
    loop {
        match connection.receive(&input[at..], &mut head, 0) {
            Ok(step) => {
                at += step.consumed;
                match step.event {
                    Some(Event::Head { stream, .. }) => {
                        let pseudo = [
                            (b":method".as_slice(), Some(head.method())),
                            (b":scheme", head.scheme()),
                            (b":path", head.path()),
                        ];
                        let pseudo = pseudo.into_iter().filter_map(|(name, value)| Some((name, value?)));
                        let all = pseudo.chain(head.fields().filter(|(name, _)| *name != b"host"));
                        let section = all.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                        read.heads.insert(stream.id(), section);
                    }
                    Some(_) => {}
                    None => return read,
                }
            }
            Err(violation) => {
                read.failed = Some(violation.code().0);
                return read;
            }
        }
    }
}

/// The same by `h2`, which says less: requests that it takes, and what it writes.
fn theirs(input: &[u8]) -> Read {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    let mut read = Read::default();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut peer, io) = tokio::io::duplex(1 << 20);
            peer.write_all(input).await.unwrap();
            peer.shutdown().await.unwrap();
            let mut builder = h2::server::Builder::new();
            builder.max_header_list_size(96 << 10);
            if let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await {
                let mut kept = Vec::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let uri = request.uri();
                    let path = uri.path_and_query().map_or("", |path| path.as_str());
                    let mut section: Section = vec![(b":method".to_vec(), request.method().as_str().into())];
                    section.extend(uri.scheme_str().map(|scheme| (b":scheme".to_vec(), scheme.into())));
                    section.push((b":path".to_vec(), path.into()));
                    for (name, value) in request.headers() {
                        if name != "host" {
                            section.push((name.as_str().into(), value.as_bytes().to_vec()));
                        }
                    }
                    read.heads.insert(u32::from(request.body().stream_id()), section);
                    kept.push((request, respond));
                }
            }
            let mut out = Vec::new();
            peer.read_to_end(&mut out).await.unwrap();
            let mut rest = out.as_slice();
            while let Some((header, after)) = rest.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                let Some((payload, after)) = after.split_at_checked(length) else { break };
                if header[3] == 7 {
                    let code = u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]);
                    read.failed = Some(code).filter(|code| *code != 0);
                }
                rest = after;
            }
        });
    });
    read
}

/// Fields by name, with the order of values; `http` does not keep the order of names.
fn sorted(section: &Section) -> Section {
    let mut sorted = section.clone();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted
}

fn hpack(bytes: &[u8]) -> Verdict {
    let mut input = PREFACE.to_vec();
    input.extend_from_slice(&frames::make("SETTINGS"));
    input.extend_from_slice(&frames::make("SETTINGS ack"));
    let (mut rest, mut id) = (bytes, 1);
    while let Some((length, after)) = rest.split_first() {
        let (block, after) = after.split_at(usize::from(*length).min(after.len()));
        input.extend_from_slice(&frames::frame(1, 5, id, block));
        rest = after;
        id += 2;
    }
    let (ours, theirs) = (ours(&input), theirs(&input));
    const COMPRESSION: Option<u32> = Some(9);
    // The other one has PROTOCOL_ERROR for some of what RFC 7541 wants COMPRESSION_ERROR for.
    let one_only = ours.failed == COMPRESSION && theirs.failed.is_none()
        || theirs.failed == COMPRESSION && ours.failed.is_none();
    expect(!one_only, || format!("ours ended with {:?}, theirs with {:?}", ours.failed, theirs.failed))?;
    for (id, section) in &ours.heads {
        let Some(other) = theirs.heads.get(id) else { continue };
        let (section, other) = (sorted(section), sorted(other));
        expect(section == other, || format!("stream {id}: {section:?}, theirs {other:?}"))?;
    }
    Ok(ours.failed.is_none() && !ours.heads.is_empty())
}
