//! Raw messages with verdicts, read from the text files beside this one.
//!
//! ```text
//! # a comment: where the case comes from, why the verdict is what it is
//! == name of a case, unique in its file
//! @ words to find it by
//! > a line that is sent, with a CRLF behind it
//! >> bytes that are sent, with nothing behind them
//! = 1 verbatim
//! ```
//! Escapes: `\r \n \t \0 \s \\ \xNN`, `\H` for the host that a request without one is given, and `\{TEXT*N}` for N times
//! the same.
//!
//! A verdict of a request file:
//! - `= N verbatim`: N requests go upstream, together they are what was sent. Or `= N` and `<` lines: what goes upstream.
//! - `! STATUS REASON`: then one answer of the proxy itself, and the end of the connection. Without `=`, nothing whole
//!   went upstream.
//! - `.`: then the connection ends without another answer, whatever else was sent.
//! - `~`: then something is missing, and is waited for.
//! - none of these: everything was used up, and the connection goes on.
//!
//! A response file has `<` for what the endpoint sends and `>` for what the caller is given:
//! - `? WORDS`: what was asked, `GET` unless it says `HEAD`, `1.0`, `upgrade`; `? EOF`: the endpoint closes behind it.
//! - `= verbatim`, or `=` and `>` lines: what the caller is given.
//! - `! STATUS REASON`: the caller is given that instead.
//! - `x`: what the caller is given is cut off somewhere, by a reset.
//! - `.`: the caller's connection ends behind the response. `+`: the endpoint's connection is used again.

/// What comes behind the messages that went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing; the connection goes on.
    Open,
    /// An answer of the proxy, and the end of the connection.
    Refused(u16, String),
    /// The end of the connection.
    Closed,
    /// More has to come.
    Waits,
    /// A response that is not whole.
    Cut,
}

/// One message or several, and what has to become of them.
#[derive(Clone, Debug)]
pub struct Case {
    /// File and line.
    pub place: String,
    /// What it is about.
    pub name: String,
    /// Words to find it by.
    pub tags: String,
    /// What was asked; of responses only.
    pub asked: Vec<String>,
    /// What is sent.
    pub sent: Vec<u8>,
    /// What comes out at the other side.
    pub seen: Vec<u8>,
    /// Messages that come out whole.
    pub count: usize,
    /// What then.
    pub end: End,
    /// Whether the endpoint's connection is used again; of responses only.
    pub reused: bool,
}

impl Case {
    /// Whether one of its `@` lines or `?` lines has this word.
    pub fn has(&self, word: &str) -> bool {
        self.tags.split_whitespace().any(|tag| tag == word) || self.asked.iter().any(|asked| asked == word)
    }
}

macro_rules! families {
    ($folder:literal: $($name:literal)*) => {
        &[$(($name, include_str!(concat!($folder, "/", $name, ".txt")))),*]
    };
}

const REQUESTS: &[(&str, &str)] = families!("requests":
    "length-and-coding" "content-length" "transfer-coding" "chunks" "chunk-extensions" "trailers" "white-space"
    "line-ends" "targets" "hosts" "methods-and-versions" "field-names" "long" "expect" "connection" "upgrade"
    "http-1.0" "pipelining" "other-protocols" "attacks" "desync-guardian");

const RESPONSES: &[(&str, &str)] = families!("responses":
    "framing" "bodyless" "interim" "chunks" "lines" "connection" "early-end");

/// The families of requests: name and cases.
pub fn requests(host: &str) -> Vec<(&'static str, Vec<Case>)> {
    REQUESTS.iter().map(|(name, text)| (*name, cases(name, text, b'>', host))).collect()
}

/// The families of responses.
pub fn responses() -> Vec<(&'static str, Vec<Case>)> {
    RESPONSES.iter().map(|(name, text)| (*name, cases(name, text, b'<', "none"))).collect()
}

fn cases(family: &str, text: &str, sends: u8, host: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut verbatim = false;
    let finish = |cases: &mut Vec<Case>, verbatim: bool| {
        if let Some(case) = cases.last_mut().filter(|_| verbatim) {
            case.seen = case.sent.clone();
        }
    };
    for (at, line) in text.lines().enumerate() {
        let place = format!("{family}.txt:{}", at + 1);
        if let Some(name) = line.strip_prefix("== ") {
            finish(&mut cases, verbatim);
            verbatim = false;
            assert!(!cases.iter().any(|case| case.name == name), "{place}: the name is taken");
            cases.push(Case {
                place: place.clone(),
                name: name.to_owned(),
                tags: String::new(),
                asked: Vec::new(),
                sent: Vec::new(),
                seen: Vec::new(),
                count: 0,
                end: End::Open,
                reused: false,
            });
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let case = cases.last_mut().unwrap_or_else(|| panic!("{place}: before the first case"));
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            ">" | ">>" | "<" | "<<" => {
                let bytes = if mark.as_bytes()[0] == sends { &mut case.sent } else { &mut case.seen };
                unescape(rest, host, &place, bytes);
                if mark.len() == 1 {
                    bytes.extend_from_slice(b"\r\n");
                }
            }
            "@" => case.tags += &format!(" {rest}"),
            "?" => case.asked.extend(rest.split_whitespace().map(str::to_owned)),
            "=" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                verbatim = words.last() == Some(&"verbatim");
                case.count = words.first().and_then(|word| word.parse().ok()).unwrap_or(1);
            }
            "!" => {
                let (status, reason) = rest.split_once(' ').unwrap_or_else(|| panic!("{place}: a reason"));
                case.end =
                    End::Refused(status.parse().unwrap_or_else(|_| panic!("{place}")), reason.to_owned());
            }
            "." => case.end = End::Closed,
            "~" => case.end = End::Waits,
            "x" => case.end = End::Cut,
            "+" => case.reused = true,
            _ => panic!("{place}: {line}"),
        }
    }
    finish(&mut cases, verbatim);
    cases
}

/// Takes the escapes out.
pub fn unescape(text: &str, host: &str, place: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let (&escape, after) = rest.split_first().unwrap_or_else(|| panic!("{place}: an escape"));
        rest = after;
        match escape {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'0' => out.push(0),
            b's' => out.push(b' '),
            b'\\' => out.push(b'\\'),
            b'H' => out.extend_from_slice(host.as_bytes()),
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).unwrap_or_else(|_| panic!("{place}: digits"));
                out.push(u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{place}: {digits}")));
                rest = &rest[2..];
            }
            b'{' => {
                let end = rest.iter().position(|&b| b == b'}').unwrap_or_else(|| panic!("{place}: a brace"));
                let inside = std::str::from_utf8(&rest[..end]).unwrap_or_else(|_| panic!("{place}"));
                let (what, times) = inside.rsplit_once('*').unwrap_or_else(|| panic!("{place}: a number"));
                let mut once = Vec::new();
                unescape(what, host, place, &mut once);
                let times: usize = times.parse().unwrap_or_else(|_| panic!("{place}: {times}"));
                out.extend_from_slice(&once.repeat(times));
                rest = &rest[end + 1..];
            }
            other => panic!("{place}: no escape \\{}", char::from(other)),
        }
    }
}
