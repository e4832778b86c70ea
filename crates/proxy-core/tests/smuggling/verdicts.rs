//! The corpus against the parser, and against everybody who reads what it lets through.

use std::collections::BTreeMap;

use crate::corpus::{self, Case, End};
use crate::passage::{self, DEFAULT_HOST, Passed, Question};
use crate::readers::{Kind, Reader};

fn all_requests() -> Vec<Case> {
    corpus::requests(DEFAULT_HOST).into_iter().flat_map(|(_, cases)| cases).collect()
}

fn all_responses() -> Vec<Case> {
    corpus::responses().into_iter().flat_map(|(_, cases)| cases).collect()
}

fn question(case: &Case) -> Question {
    Question {
        head: case.has("HEAD"),
        upgrade: case.has("upgrade"),
        old: case.has("1.0"),
        closes: case.has("EOF"),
    }
}

/// Every reader that is different in one way, and some that are in several.
pub fn readers() -> Vec<(String, Reader)> {
    let mut readers = Reader::all();
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let reader = Reader::of(bits >> 7);
        readers.push((format!("{reader:?}"), reader));
    }
    readers
}

/// What makes readers disagree about what came out.
pub fn disagreement(passed: &Passed, kind: Kind, readers: &[(String, Reader)]) -> Option<String> {
    let all = passed.all();
    for (name, reader) in readers {
        let reading = reader.read(&all, kind);
        if reading.ends != passed.ends {
            return Some(format!(
                "{name} reads ends at {:?}, not {:?}, of\n{}",
                reading.ends,
                passed.ends,
                all.escape_ascii()
            ));
        }
    }
    None
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\r\\n", "\\r\\n\n")
}

/// Everything that is wrong, at once: a change of a rule concerns many cases.
fn none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

/// Edge cases 1 to 10.
#[test]
fn requests_have_their_verdicts() {
    let mut failures = Vec::new();
    for case in all_requests() {
        for piece in [0, 1, 7] {
            let passed = passage::requests(&case.sent, piece);
            let got = (passed.ends.len(), &passed.whole, &passed.end);
            // Whether the end of the connection is worth a line depends on what would follow.
            let end =
                if case.end == End::Open && passed.end == End::Closed { &End::Closed } else { &case.end };
            if got != (case.count, &case.seen, end) {
                failures.push(format!(
                    "{} {} (pieces of {piece}): {:?} after {} of\n{}\nnot {:?} after {}\n",
                    case.place,
                    case.name,
                    passed.end,
                    passed.ends.len(),
                    show(&passed.whole),
                    case.end,
                    case.count
                ));
                break;
            }
        }
    }
    none(failures);
}

/// Edge cases 7, 8 and 19.
#[test]
fn responses_have_their_verdicts() {
    let mut failures = Vec::new();
    for case in all_responses() {
        for piece in [0, 1, 7] {
            let passed = passage::response(&case.sent, question(&case), piece);
            let seen = if passed.end == End::Cut { &passed.partial } else { &passed.whole };
            // Of what is refused or cut, as much as is known to be good may be out. How much depends on the pieces.
            let fits = match &passed.end {
                End::Refused(..) => true,
                End::Cut => case.seen.starts_with(seen),
                _ => case.seen == *seen,
            };
            let closes = matches!(passed.end, End::Refused(..) | End::Cut);
            let expected = (&case.end, case.reused && !closes);
            if !fits || (&passed.end, passed.reused) != expected {
                failures.push(format!(
                    "{} {} (pieces of {piece}): {:?}, reused: {}, after\n{}\nnot {expected:?} after\n{}",
                    case.place,
                    case.name,
                    passed.end,
                    passed.reused,
                    show(seen),
                    show(&case.seen)
                ));
                break;
            }
        }
    }
    none(failures);
}

#[test]
fn everybody_reads_what_is_forwarded_alike() {
    let readers = readers();
    let mut failures = Vec::new();
    for case in all_requests() {
        let passed = passage::requests(&case.sent, 0);
        if let Some(found) = disagreement(&passed, Kind::Requests, &readers) {
            failures.push(format!("{} {}: {found}", case.place, case.name));
        }
        // Nothing that hides in a case is ever read as a request of its own.
        let starts = std::iter::once(0).chain(passed.ends.iter().copied());
        let hidden = |start: usize| passed.whole[start..].starts_with(b"GET /hidden");
        if starts.into_iter().any(hidden) {
            failures.push(format!("{} {}: what is hidden went upstream", case.place, case.name));
        }
    }
    for case in all_responses() {
        let question = question(&case);
        let passed = passage::response(&case.sent, question, 0);
        let until_end = passed.end == End::Closed && case.has("EOF") || question.old;
        if matches!(passed.end, End::Open | End::Closed) && !until_end {
            let kind = Kind::Responses { head: question.head };
            // Callers do not take fields for variables: underscores are no hyphens to them.
            let readers: Vec<_> = readers.iter().filter(|(_, reader)| !reader.underscores).cloned().collect();
            let interim = Reader::default().read(&passed.whole, kind).ends.len() - 1;
            let mut last = passed.clone();
            let reading = Reader::default().read(&passed.whole, kind).ends;
            last.ends = reading[..interim].iter().copied().chain(passed.ends.iter().copied()).collect();
            if let Some(found) = disagreement(&last, kind, &readers) {
                failures.push(format!("{} {}: {found}", case.place, case.name));
            }
        }
    }
    none(failures);
}

/// Raw messages of llhttp: requests, or responses.
pub fn llhttp(kind: &str) -> Vec<Vec<u8>> {
    let of_kind = |line: &&str| line.starts_with(kind);
    let bytes = |line: &str| {
        let mut bytes = Vec::new();
        let text = line.splitn(4, '\t').nth(3).expect("four fields");
        corpus::unescape(text, "none", line, &mut bytes);
        bytes
    };
    include_str!("../corpus/llhttp.tsv").lines().filter(of_kind).map(bytes).collect()
}

#[test]
fn messages_of_another_corpus_are_read_alike() {
    let readers = readers();
    let mut forwarded = 0;
    for bytes in llhttp("request") {
        // Most have no Host.
        let at = bytes.windows(2).position(|end| end == b"\r\n").map_or(bytes.len(), |at| at + 2);
        for host in [&b""[..], b"Host: a\r\n"] {
            let bytes = [&bytes[..at], host, &bytes[at..]].concat();
            let passed = passage::requests(&bytes, 0);
            forwarded += passed.ends.len();
            assert_eq!(disagreement(&passed, Kind::Requests, &readers), None);
        }
    }
    assert!(forwarded > 50, "{forwarded}");
}

/// The readers are worth something only if they do disagree about what is refused.
#[test]
fn readers_disagree_about_what_is_refused() {
    let readers = readers();
    let mut disagreements: BTreeMap<String, usize> = BTreeMap::new();
    let mut cases = 0;
    for case in all_requests().into_iter().filter(|case| matches!(case.end, End::Refused(..))) {
        let strict = Reader::default().read(&case.sent, Kind::Requests);
        let mut any = false;
        for (name, reader) in &readers {
            if reader.read(&case.sent, Kind::Requests).ends != strict.ends {
                *disagreements.entry(name.clone()).or_default() += 1;
                any = true;
            }
        }
        cases += usize::from(any);
    }
    assert!(cases > 150, "only {cases} cases are read in two ways");
    for (name, _) in Reader::all().iter().skip(1) {
        assert!(disagreements.contains_key(name), "{name} reads everything as the strict one does");
    }
}

#[test]
fn what_is_forwarded_is_forwarded_the_same_again() {
    for case in all_requests() {
        let passed = passage::requests(&case.sent, 0);
        if passed.whole.is_empty() {
            continue;
        }
        let again = passage::requests(&passed.whole, 0);
        assert_eq!(
            again.whole.escape_ascii().to_string(),
            passed.whole.escape_ascii().to_string(),
            "{}",
            case.place
        );
        assert_eq!((again.ends, again.end), (passed.ends, End::Open), "{}", case.place);
    }
}

#[test]
fn the_corpus_is_as_large_as_it_says() {
    let (requests, responses) = (all_requests(), all_responses());
    assert!(requests.len() >= 300 && responses.len() >= 80, "{} and {}", requests.len(), responses.len());
    let class = |class: &str| -> Vec<Case> {
        requests.iter().filter(|case| case.has("desync-guardian") && case.has(class)).cloned().collect()
    };
    let (severe, compliant) = (class("severe"), class("compliant"));
    assert_eq!((severe.len(), compliant.len()), (58, 28));
    for case in severe {
        assert!(matches!(case.end, End::Refused(..)) && case.count == 0, "{} {}", case.place, case.name);
    }
    let forwarded = compliant.iter().filter(|case| case.count == 1 && case.end == End::Open).count();
    assert!(forwarded >= 19, "{forwarded} of 28");
}
