//! What a connection does, frame by frame, as transcripts in `tests/scripts`.
//!
//! ```text
//! case NAME                      and after ` | ` words: client, raw, max_streams=2 …
//! > HEADERS 1 end GET            what the peer sends          . data 1 100 end     what the caller does
//! < RST_STREAM 1 CANCEL          frames that are sent         ! HEAD 1 request end what is told
//! ```
//! The first two kinds of lines are run, the others are what came of it, and compared. Every case runs twice: with
//! each line in one piece, and byte by byte. `OUTRIDER_BLESS=1` writes what came of it into the files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::fmt::Write;
use std::path::Path;

use outrider_http2::{
    Config, Connection, ErrorCode, Event, Field, Head, HeadKind, PREFACE, Rate, RequestLine, ResetCause,
    Role, SendError, Stream, Violation,
};

#[path = "scripts/frames.rs"]
mod frames;

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let bless = std::env::var_os("OUTRIDER_BLESS").is_some();
    let (mut cases, mut different) = (0, String::new());
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "txt")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut whole = String::new();
        for (at, part) in text.trim_end().split("\ncase ").enumerate() {
            if at == 0 {
                whole.push_str(part);
                whole.push('\n');
                continue;
            }
            cases += 1;
            let expected = format!("case {part}\n");
            let actual = run(&expected, usize::MAX);
            let bytewise = run(&expected, 1);
            let name =
                format!("{}: {}", file.file_name().unwrap().display(), expected.lines().next().unwrap());
            if actual != bytewise {
                writeln!(different, "--- {name}, whole\n{actual}--- byte by byte\n{bytewise}").unwrap();
            }
            if actual != expected {
                writeln!(different, "--- {name}, expected\n{expected}--- actual\n{actual}").unwrap();
            }
            whole.push_str(&actual);
        }
        if bless {
            std::fs::write(&file, whole).unwrap();
        }
    }
    assert!(cases >= 100, "{cases} cases");
    assert!(bless || different.is_empty(), "{different}");
}

struct Run {
    connection: Connection,
    head: Head,
    now: u64,
    piece: usize,
    streams: Vec<Stream>,
    /// Payloads of DATA frames that are sent follow their headers here.
    out: Vec<u8>,
    lines: Vec<String>,
    failed: bool,
}

fn run(case: &str, piece: usize) -> String {
    let mut text = String::new();
    let mut lines = case.lines();
    let title = lines.next().unwrap();
    writeln!(text, "{title}").unwrap();
    let mut config = Config::default();
    let (mut role, mut raw) = (Role::Server, false);
    for word in title.split_once(" | ").map_or("", |(_, words)| words).split_whitespace() {
        match word.split_once('=') {
            None if word == "client" => role = Role::Client,
            None if word == "raw" => raw = true,
            Some((key, value)) => configure(&mut config, key, value),
            None => panic!("{title}"),
        }
    }
    let mut run = Run {
        connection: Connection::new(role, config, 0),
        head: Head::new(),
        now: 0,
        piece,
        streams: Vec::new(),
        out: Vec::new(),
        lines: Vec::new(),
        failed: false,
    };
    if !raw {
        if role == Role::Server {
            run.feed(PREFACE);
        }
        run.feed(&frames::make("SETTINGS"));
        run.feed(&frames::make("SETTINGS ack"));
        run.connection.poll_output(&mut run.out);
        run.out.clear();
        run.lines.clear();
    }
    for line in lines {
        match line.split_at_checked(2) {
            Some(("> ", what)) => {
                writeln!(text, "{line}").unwrap();
                let (times, what) = match what.split_once("x ") {
                    Some((times, rest)) if times.parse::<usize>().is_ok() => (times.parse().unwrap(), rest),
                    _ => (1, what),
                };
                for time in 0..times {
                    // `*` in a repeated frame stands for odd numbers that go up.
                    let number = (2 * time + 1).to_string();
                    let one = if times > 1 { what.replace('*', &number) } else { what.to_owned() };
                    if one == "PREFACE" {
                        run.feed(PREFACE);
                    } else {
                        run.feed(&frames::make(&one));
                    }
                }
            }
            Some((". ", what)) => {
                writeln!(text, "{line}").unwrap();
                run.command(what);
            }
            Some(("< " | "! " | "= ", _)) => continue,
            _ => {
                writeln!(text, "{line}").unwrap();
                continue;
            }
        }
        while let Some(stream) = run.connection.poll_writable() {
            run.lines.push(format!("! WRITABLE {}", stream.id()));
        }
        run.connection.poll_output(&mut run.out);
        for frame in frames::describe(&std::mem::take(&mut run.out)) {
            run.lines.push(format!("< {frame}"));
        }
        for line in collapse(&std::mem::take(&mut run.lines)) {
            writeln!(text, "{line}").unwrap();
        }
    }
    text
}

/// Pieces of one body are one line, and so are equal lines.
fn collapse(lines: &[String]) -> Vec<String> {
    let mut merged: Vec<(String, usize)> = Vec::new();
    for line in lines {
        if let (Some(rest), Some((last, 1))) = (line.strip_prefix("! DATA "), merged.last_mut())
            && let Some(before) = last.strip_prefix("! DATA ")
        {
            let words: Vec<&str> = rest.split(' ').collect();
            let earlier: Vec<&str> = before.split(' ').collect();
            if earlier[0] == words[0] && earlier.len() == 2 {
                let sum = earlier[1].parse::<usize>().unwrap() + words[1].parse::<usize>().unwrap();
                let end = if words.len() == 3 { " end" } else { "" };
                *last = format!("! DATA {} {sum}{end}", words[0]);
                continue;
            }
        }
        match merged.last_mut() {
            Some((last, times)) if last == line => *times += 1,
            _ => merged.push((line.clone(), 1)),
        }
    }
    merged
        .into_iter()
        .map(|(line, times)| if times > 1 { format!("{line} ({times} times)") } else { line })
        .collect()
}

fn configure(config: &mut Config, key: &str, value: &str) {
    let number = || value.parse::<u32>().unwrap();
    let rate = || {
        let (burst, per_second) = value.split_once('+').unwrap();
        Rate { burst: burst.parse().unwrap(), per_second: per_second.parse().unwrap() }
    };
    match key {
        "stream_window" => config.stream_window = number(),
        "connection_window" => config.connection_window = number(),
        "max_frame" => config.max_frame = number(),
        "max_streams" => config.max_streams = number(),
        "max_head" => config.max_head = number(),
        "max_fields" => config.max_fields = number(),
        "decoder_table" => config.decoder_table = number(),
        "connect_protocol" => config.connect_protocol = value == "yes",
        "resets" => config.resets = rate(),
        "faults" => config.faults = rate(),
        "idle_frames" => config.idle_frames = rate(),
        _ => panic!("{key}"),
    }
}

impl Run {
    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.piece.min(bytes.len()).max(1)) {
            let mut rest = piece;
            loop {
                if self.failed {
                    return;
                }
                match self.connection.receive(rest, &mut self.head, self.now) {
                    Ok(step) => {
                        rest = &rest[step.consumed..];
                        match step.event {
                            Some(event) => self.tell(event),
                            None if rest.is_empty() => break,
                            None => {}
                        }
                    }
                    Err(violation) => {
                        self.failed = true;
                        self.lines.push(format!("! FAILED {}: {violation}", violation.code()));
                        assert_eq!(self.connection.receive(&[], &mut self.head, self.now), Err(violation));
                        assert!(self.connection.is_over());
                    }
                }
            }
        }
    }

    fn tell(&mut self, event: Event) {
        let end = |end: bool| if end { " end" } else { "" };
        let line = match event {
            Event::Head { stream, kind, end: last } => {
                self.remember(stream);
                let mut line = format!("HEAD {} {kind:?}{}", stream.id(), end(last));
                let head = &self.head;
                assert_eq!(head.kind(), kind);
                if kind == HeadKind::Request {
                    let text =
                        |part: Option<&[u8]>| String::from_utf8_lossy(part.unwrap_or(b"-")).into_owned();
                    let parts = [Some(head.method()), head.scheme(), head.authority(), head.path()].map(text);
                    write!(line, " {}", parts.join(" ")).unwrap();
                    if head.protocol().is_some() {
                        write!(line, " {}", text(head.protocol())).unwrap();
                    }
                } else if kind != HeadKind::Trailers {
                    write!(line, " {}", head.status()).unwrap();
                }
                for (name, value) in head.fields() {
                    write!(line, " {}={}", name.escape_ascii(), value.escape_ascii()).unwrap();
                }
                if let Some(length) = head.content_length() {
                    write!(line, " ({length} bytes)").unwrap();
                }
                line
            }
            Event::HeadTooLarge { stream, end: last, .. } => {
                self.remember(stream);
                format!("HEAD {} too large{}", stream.id(), end(last))
            }
            Event::Data { stream, range, end: last } => {
                format!("DATA {} {}{}", stream.id(), range.len(), end(last))
            }
            Event::Reset { stream, code, cause } => {
                let cause = match cause {
                    ResetCause::Fault(fault) => {
                        assert_eq!(fault.code(), code);
                        format!("because {fault}")
                    }
                    cause => format!("by {cause:?}"),
                };
                format!("RESET {} {code} {cause}", stream.id())
            }
            Event::Rejected { id, fault } => format!("REJECTED {id} {}: {fault}", fault.code()),
            Event::GoAway { last, code } => {
                format!("GOAWAY {last} {code} {}", self.connection.goaway_text().escape_ascii())
            }
            Event::Settings => "SETTINGS".to_owned(),
            Event::Pong(number) => format!("PONG {number}"),
        };
        self.lines.push(format!("! {}", line.trim_end()));
    }

    fn remember(&mut self, stream: Stream) {
        if !self.streams.contains(&stream) {
            self.streams.push(stream);
        }
    }

    fn command(&mut self, what: &str) {
        let words: Vec<&str> = what.split(' ').collect();
        let end = words.last() == Some(&"end");
        let stream = |run: &Self| {
            let id: u32 = words[1].parse().unwrap();
            *run.streams.iter().find(|stream| stream.id() == id).unwrap()
        };
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        let fields: Vec<(&[u8], &[u8])> = words
            .iter()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        let fields = fields.iter().map(|field| Field::from(*field));
        let mut result: Result<(), SendError> = Ok(());
        match words[0] {
            "open" => {
                let line = RequestLine {
                    method: words[1].as_bytes(),
                    scheme: Some(b"http"),
                    authority: Some(b"a"),
                    path: Some(b"/"),
                    protocol: None,
                };
                let connect =
                    RequestLine { method: b"CONNECT", authority: Some(b"a:1"), ..RequestLine::default() };
                let line = if words[1] == "CONNECT" { connect } else { line };
                result =
                    self.connection.send_request(&line, fields, end).map(|stream| self.streams.push(stream));
            }
            "respond" => {
                result = self.connection.send_response(stream(self), number(2) as u16, fields, end);
            }
            "trailers" => result = self.connection.send_trailers(stream(self), fields),
            "data" => {
                let available = number(2);
                match self.connection.send_data(stream(self), available, end, &mut self.out) {
                    Ok(sent) => {
                        self.out.resize(self.out.len() + sent.length, 0);
                        if sent.length < available || sent.end != end {
                            let end = if sent.end { " end" } else { "" };
                            self.lines.push(format!("= {} sent{end}", sent.length));
                        }
                    }
                    Err(error) => result = Err(error),
                }
            }
            "release" => self.connection.release(stream(self), number(2)),
            "reset" => self.connection.reset(stream(self), frames::code(words[2])),
            "drain" => self.connection.drain(),
            "finish" => self.connection.finish_drain(),
            "close" => self.connection.close(ErrorCode::NO_ERROR),
            "ping" => self.connection.ping(number(1) as u64),
            "time" => self.now += number(1) as u64,
            "over" => self.lines.push(format!("= {}", self.connection.is_over())),
            "active" => self.lines.push(format!("= {}", self.connection.active())),
            "lost" => {
                while let Some(event) = self.connection.end_of_input() {
                    self.tell(event);
                }
            }
            other => panic!("{other}"),
        }
        if let Err(error) = result {
            self.lines.push(format!("= not sent: {error}"));
        }
    }
}

#[test]
fn what_was_closed_here_says_so() {
    let mut connection = Connection::new(Role::Client, Config::default(), 0);
    connection.close(ErrorCode::NO_ERROR);
    let violation = connection.receive(b"", &mut Head::new(), 0).unwrap_err();
    assert_eq!(violation, Violation::ClosedHere(ErrorCode::NO_ERROR));
}
