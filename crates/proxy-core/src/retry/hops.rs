//! Attempts over several proxies in a row: none repeats what another one has repeated already (needs N47).
//!
//! | said in | by whom | means | so |
//! |---|---|---|---|
//! | a request | who sends it again | how many attempts were made before and with this one | who gets it repeats it only where nothing was processed |
//! | a response that failed | who could have repeated the request, and does no more | how many attempts it took | nobody before it repeats the request |
//! | a reply of its own | a proxy that reached nobody, to one that proved who it is | nothing can have been processed, nor would it be by asking here again | who is before it tries its other endpoints |
//!
//! The first two use the field `x-envoy-attempt-count`, which Envoy knows as well; the last one uses
//! `x-outrider-unprocessed: 1`, which is of one hop only: it is dropped from every head that is passed on, and from trailers
//! of HTTP/2, whoever wrote it; Envoys, and proxies of before it was known, are configured to remove it from responses. It
//! counts for something only on a connection with mutual TLS. So no application can say it in a proxy's name.
//! It says nothing about load: who has too much of it, drains, or may not let a caller in does not write it.
//!
//! So of proxies in a row only the last one that may repeat a request does, within its own budget, and the load on what
//! is behind all of them is what one of them makes. A request that is sent for the first time, and a response that did
//! not fail, carry nothing; nor does one of a proxy that only tried in vain to reach somebody, because who is before it may
//! have others to turn to. Does not: know an application that answers by itself; it is as free as any caller, unless it
//! passes the field on.

use crate::route::RequestView;

/// The name of the field that counts attempts.
pub const ATTEMPTS: &str = "x-envoy-attempt-count";
/// The name of the field by which a proxy vouches that nothing was processed. A kind of its own in both protocols.
pub const UNPROCESSED: &str = "x-outrider-unprocessed";
/// The whole header line of that.
pub const UNPROCESSED_LINE: &[u8] = b"x-outrider-unprocessed: 1\r\n";

/// Whether this value of [`UNPROCESSED`] vouches for it.
pub const fn vouches(value: &[u8]) -> bool {
    matches!(value, b"1")
}

/// The number that a value is; 1 if it is none.
fn number(value: &[u8]) -> u32 {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.len() <= 9);
    digits.and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(1)
}

/// Which attempt of somebody before us a request is, counted from 1.
pub fn earlier(request: &impl RequestView) -> u32 {
    request.values(ATTEMPTS.as_bytes()).map(number).max().unwrap_or(1)
}

/// Makes an encoded HTTP/1 head, the first `length` bytes of `out`, be that of the next attempt. Returns how long it is
/// now.
pub fn next_attempt(out: &mut Vec<u8>, length: usize) -> usize {
    const BLANK: &[u8] = b"\r\n";
    let Some(head) = out.get(..length).filter(|head| head.ends_with(b"\r\n\r\n")) else { return length };
    let (mut place, mut before, mut at) = (length - BLANK.len()..length - BLANK.len(), 1, 0);
    while let Some(end) = head.get(at..).and_then(|rest| rest.windows(2).position(|two| two == BLANK)) {
        let line = head.get(at..at + end).unwrap_or_default();
        if let Some((name, value)) = line.split_at_checked(ATTEMPTS.len())
            && name.eq_ignore_ascii_case(ATTEMPTS.as_bytes())
            && let Some(value) = value.strip_prefix(b":")
        {
            (place, before) = (at..at + end + BLANK.len(), number(value.trim_ascii()));
        }
        at += end + BLANK.len();
    }
    let line = format!("{ATTEMPTS}: {}\r\n", before.saturating_add(1));
    let length = length - place.len() + line.len();
    out.splice(place, line.into_bytes());
    length
}

/// The number of attempts as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    text: [u8; 10],
    start: u8,
}

impl Count {
    /// So many attempts.
    pub fn new(attempts: u32) -> Self {
        let (mut text, mut start, mut rest) = ([0; 10], 10, attempts);
        loop {
            start -= 1;
            text[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                return Self { text, start: start as u8 };
            }
        }
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(usize::from(self.start)..).unwrap_or_default()
    }

    /// Appends the whole header line.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(ATTEMPTS.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(self.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_which_attempt_it_is_and_nothing_else_moves() {
        for (before, after) in [
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-attempt-count: 2\r\n\r\n",
            ),
            ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nx-envoy-attempt-count: 2\r\n\r\n"),
            (
                "GET / HTTP/1.1\r\nX-Envoy-Attempt-Count:  4\r\nHost: a\r\n\r\n",
                "GET / HTTP/1.1\r\nx-envoy-attempt-count: 5\r\nHost: a\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nx-envoy-attempt-count: many\r\n\r\n",
                "GET / HTTP/1.1\r\nx-envoy-attempt-count: 2\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nx-envoy-attempt-counts: 7\r\n\r\n",
                "GET / HTTP/1.1\r\nx-envoy-attempt-counts: 7\r\nx-envoy-attempt-count: 2\r\n\r\n",
            ),
        ] {
            // A body that looks like more of the head stays what it is.
            let body = "x-envoy-attempt-count: 9\r\n\r\n";
            let mut out = format!("{before}{body}").into_bytes();
            let length = next_attempt(&mut out, before.len());
            assert_eq!(String::from_utf8(out).expect("text"), format!("{after}{body}"));
            assert_eq!(length, after.len());
        }
        let mut odd = b"no head".to_vec();
        assert_eq!((next_attempt(&mut odd, 7), odd.as_slice()), (7, b"no head".as_slice()));
    }

    #[test]
    fn counts_are_numbers() {
        for count in [0, 1, 9, 10, 4_294_967_295] {
            assert_eq!(Count::new(count).as_bytes(), count.to_string().as_bytes());
        }
        for (value, expected) in [("3", 3), ("0", 1), ("", 1), ("-2", 1), ("99999999999", 1), ("2, 3", 1)] {
            assert_eq!(number(value.as_bytes()), expected, "{value}");
        }
    }
}
