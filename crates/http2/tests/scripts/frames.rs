//! Frames from words and back, made without the crate under test.

use std::fmt::Write;

use outrider_http2::ErrorCode;

const KINDS: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];

const SETTINGS: [(&str, u16); 8] = [
    ("HEADER_TABLE_SIZE", 1),
    ("ENABLE_PUSH", 2),
    ("MAX_CONCURRENT_STREAMS", 3),
    ("INITIAL_WINDOW_SIZE", 4),
    ("MAX_FRAME_SIZE", 5),
    ("MAX_HEADER_LIST_SIZE", 6),
    ("ENABLE_CONNECT_PROTOCOL", 8),
    ("NO_RFC7540_PRIORITIES", 9),
];

pub(crate) fn code(name: &str) -> ErrorCode {
    (0..14).map(ErrorCode).find(|code| code.name() == Some(name)).unwrap()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// `%41` is a byte.
fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.extend(hex(&part[..2]));
        bytes.extend(&part.as_bytes()[2..]);
    }
    bytes
}

fn length(length: usize, out: &mut Vec<u8>) {
    if length < 127 {
        out.push(length as u8);
        return;
    }
    out.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        out.push(rest as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// A field that enters no table, in plain bytes.
pub(crate) fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    length(name.len(), out);
    out.extend(name);
    length(value.len(), out);
    out.extend(value);
}

/// One frame from its description.
pub(crate) fn make(what: &str) -> Vec<u8> {
    let words: Vec<&str> = what.split(' ').collect();
    let is = |flag: &str| words.contains(&flag);
    let number = |at: usize| words[at].parse::<u32>().unwrap();
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let pad: Option<u8> = value("pad").map(|pad| pad.parse().unwrap());
    let padded = |payload: Vec<u8>| match pad {
        Some(pad) => [vec![pad], payload, vec![0; usize::from(pad)]].concat(),
        None => payload,
    };
    let end = u8::from(is("end"));
    let pad_flag = if pad.is_some() { 0x8 } else { 0 };
    let more = if is("more") { 0 } else { 0x4 };
    match words[0] {
        "FRAME" => {
            frame(number(1) as u8, number(2) as u8, number(3), &words.get(4).map_or(vec![], |text| hex(text)))
        }
        "LONG" => frame(number(1) as u8, number(2) as u8, number(3), &vec![0; number(4) as usize]),
        "BYTES" => hex(words[1]),
        "FILL" => vec![b'x'; number(1) as usize],
        "TEXT" => unescape(words[1]),
        "DATA" => frame(0, end | pad_flag, number(1), &padded(vec![b'x'; number(2) as usize])),
        "HEADERS" | "CONTINUATION" => {
            let mut block = Vec::new();
            for word in &words[2..] {
                match *word {
                    "GET" | "POST" | "HEAD" => {
                        let line =
                            [(":method", *word), (":scheme", "http"), (":authority", "a"), (":path", "/")];
                        line.into_iter().for_each(|(name, value)| {
                            literal(name.as_bytes(), value.as_bytes(), &mut block);
                        });
                    }
                    word if word.starts_with("pad=") => {}
                    word if word.starts_with("raw=") => block.extend(hex(&word[4..])),
                    word if word.starts_with("big=") => {
                        literal(b"x-big", &vec![b'v'; word[4..].parse().unwrap()], &mut block);
                    }
                    word if word.starts_with("many=") => {
                        (0..word[5..].parse().unwrap()).for_each(|_| literal(b"x-many", b"", &mut block));
                    }
                    word => {
                        // The second `=`, or the first, but never one at the begin of a name.
                        if let Some((name, value)) = word.split_once('=') {
                            literal(&unescape(name), &unescape(value), &mut block);
                        }
                    }
                }
            }
            if words[0] == "CONTINUATION" {
                return frame(9, more, number(1), &block);
            }
            let priority = if is("prio") { vec![0, 0, 0, 0, 7] } else { vec![] };
            let flags = end | more | pad_flag | if is("prio") { 0x20 } else { 0 };
            frame(1, flags, number(1), &padded([priority, block].concat()))
        }
        "PRIORITY" => frame(2, 0, number(1), &[0, 0, 0, 0, 7]),
        "RST_STREAM" => frame(3, 0, number(1), &code(words[2]).0.to_be_bytes()),
        "SETTINGS" if is("ack") => frame(4, 1, 0, &[]),
        "SETTINGS" => {
            let mut payload = Vec::new();
            for word in &words[1..] {
                let (key, value) = word.split_once('=').unwrap();
                let id = SETTINGS
                    .iter()
                    .find(|(name, _)| *name == key)
                    .map_or_else(|| key.parse().unwrap(), |(_, id)| *id);
                payload.extend(id.to_be_bytes());
                payload.extend(value.parse::<u32>().unwrap().to_be_bytes());
            }
            frame(4, 0, 0, &payload)
        }
        "PING" => frame(6, u8::from(is("ack")), 0, &u64::from(number(1)).to_be_bytes()),
        "PING64" => frame(6, u8::from(is("ack")), 0, &words[1].parse::<u64>().unwrap().to_be_bytes()),
        "GOAWAY" => {
            let text = value("text").unwrap_or_default();
            let head = [number(1).to_be_bytes(), code(words[2]).0.to_be_bytes()].concat();
            frame(7, 0, 0, &[head, text.as_bytes().to_vec()].concat())
        }
        "WINDOW_UPDATE" => frame(8, 0, number(1), &number(2).to_be_bytes()),
        other => panic!("{other}"),
    }
}

/// Every frame in words.
pub(crate) fn describe(mut bytes: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(rest) = bytes.strip_prefix(outrider_http2::PREFACE.as_slice()) {
        all.push("PREFACE".to_owned());
        bytes = rest;
    }
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let (kind, flags) = (bytes[3], bytes[4]);
        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let payload = &bytes[9..9 + length];
        bytes = &bytes[9 + length..];
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let mut line = KINDS[usize::from(kind)].to_owned();
        match kind {
            0 => write!(line, " {stream} {length}").unwrap(),
            1 | 9 => write!(line, " {stream}{}", if flags & 4 == 0 { " more" } else { "" }).unwrap(),
            3 => write!(line, " {stream} {}", ErrorCode(number(0))).unwrap(),
            4 if flags & 1 != 0 => {
                assert_eq!((stream, length), (0, 0));
                line.push_str(" ack");
            }
            4 => {
                for setting in payload.chunks(6) {
                    let id = u16::from_be_bytes([setting[0], setting[1]]);
                    let name = SETTINGS.iter().find(|(_, known)| *known == id).unwrap().0;
                    let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
                    write!(line, " {name}={value}").unwrap();
                }
            }
            6 => {
                let ack = if flags & 1 != 0 { " ack" } else { "" };
                write!(line, " {}{ack}", u64::from_be_bytes(payload.try_into().unwrap())).unwrap();
            }
            7 => write!(line, " {} {}", number(0), ErrorCode(number(4))).unwrap(),
            8 => write!(line, " {stream} {}", number(0)).unwrap(),
            other => panic!("{other}"),
        }
        if kind <= 1 && flags & 1 != 0 {
            line.push_str(" end");
        }
        all.push(line);
    }
    all
}
