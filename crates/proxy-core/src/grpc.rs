//! gRPC over HTTP/2, as far as a proxy takes part: deadlines, and what it answers by itself.
//!
//! The protocol is <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, the mapping of HTTP statuses the
//! page `http-grpc-status-mapping.md` beside it. Does not: look at messages.

use std::time::Duration;

use crate::reason::Reason;

/// A status of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// No error.
    Ok = 0,
    /// The caller does not want it any more.
    Cancelled = 1,
    /// Nobody knows.
    Unknown = 2,
    /// What was asked makes no sense, whatever the state is.
    InvalidArgument = 3,
    /// The deadline has passed.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// There is such a thing already.
    AlreadyExists = 6,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit was reached which trying again does not change.
    ResourceExhausted = 8,
    /// Not in this state.
    FailedPrecondition = 9,
    /// Something else was in the way; the whole may be tried again.
    Aborted = 10,
    /// Beyond the end.
    OutOfRange = 11,
    /// There is no such method here.
    Unimplemented = 12,
    /// A rule of the protocol was broken.
    Internal = 13,
    /// Not now; the call may be made again.
    Unavailable = 14,
    /// Something is lost for ever.
    DataLoss = 15,
    /// The caller has to say who it is.
    Unauthenticated = 16,
}

impl Status {
    /// Every one, by number.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The status of this number.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// As written in `grpc-status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "0",
            Self::Cancelled => "1",
            Self::Unknown => "2",
            Self::InvalidArgument => "3",
            Self::DeadlineExceeded => "4",
            Self::NotFound => "5",
            Self::AlreadyExists => "6",
            Self::PermissionDenied => "7",
            Self::ResourceExhausted => "8",
            Self::FailedPrecondition => "9",
            Self::Aborted => "10",
            Self::OutOfRange => "11",
            Self::Unimplemented => "12",
            Self::Internal => "13",
            Self::Unavailable => "14",
            Self::DataLoss => "15",
            Self::Unauthenticated => "16",
        }
    }

    /// What clients make of an HTTP status without `grpc-status`.
    pub const fn of_http(status: u16) -> Self {
        match status {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            431 => Self::ResourceExhausted,
            _ => Self::Unknown,
        }
    }

    /// What a reply of the proxy stands for. A time that is over is a deadline, whoever set it; everything else is
    /// what its HTTP status means.
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::RequestTimeout
            | Reason::TotalTimeout
            | Reason::IdleTimeout
            | Reason::UpstreamIdleTimeout
            | Reason::RequestBodyTimeout
            | Reason::DeadlineExceeded => Self::DeadlineExceeded,
            Reason::NoBackends => Self::Unavailable,
            Reason::InternalError | Reason::UpstreamProtocolError => Self::Internal,
            // After the head of the response: where there is no status to be sent any more.
            Reason::UpstreamBodyIncomplete => Self::Unavailable,
            Reason::UpstreamBodyInvalid => Self::Internal,
            reason => reason.status().map_or(Self::Unknown, Self::of_http),
        }
    }
}

/// Name of the field that ends a call.
pub const STATUS: &[u8] = b"grpc-status";

/// What a whole response says about how its call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// This.
    Status(Status),
    /// A number that has no meaning.
    Other,
    /// No status, which callers take for [`Status::Unknown`].
    Nothing,
}

/// How many there are.
pub const SAID: usize = Status::ALL.len() + 2;

impl Said {
    /// A small number for each, below [`SAID`].
    pub const fn as_index(self) -> usize {
        match self {
            Self::Status(status) => status as usize,
            Self::Other => SAID - 2,
            Self::Nothing => SAID - 1,
        }
    }

    /// The name of one by its small number: the number of the status, `other` or `missing`.
    pub fn name(index: usize) -> &'static str {
        match Status::ALL.get(index) {
            Some(status) => status.as_str(),
            None if index == Self::Other.as_index() => "other",
            None => "missing",
        }
    }

    /// What it says about who answered, in statuses of HTTP. Most statuses say something about the call, which leaves
    /// `status`.
    pub const fn as_http(self, status: u16) -> u16 {
        match self {
            Self::Status(Status::Unavailable) => 503,
            Self::Status(Status::DeadlineExceeded) => 504,
            Self::Status(Status::Unknown | Status::Internal | Status::DataLoss)
            | Self::Other
            | Self::Nothing => 500,
            Self::Status(_) => status,
        }
    }

    /// Whether this name is that of an error of the server; see [`Self::name`].
    pub fn is_error_name(name: &str) -> bool {
        let statuses = Status::ALL.iter().map(|status| Self::Status(*status));
        let mut all = statuses.chain([Self::Other, Self::Nothing]);
        all.any(|said| Self::name(said.as_index()) == name && said.is_error())
    }

    /// Whether it counts as an error of the server: what is 5xx in HTTP.
    pub const fn is_error(self) -> bool {
        self.as_http(200) >= 500
    }
}

/// What the values of `grpc-status` say; the first counts, as for clients.
pub fn said<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Said {
    let Some(value) = values.next() else { return Said::Nothing };
    let code = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    code.and_then(Status::from_code).map_or(Said::Other, Said::Status)
}

/// Whether a request or response with this `content-type` is gRPC. gRPC-Web is not.
pub fn is_content_type(value: &[u8]) -> bool {
    const NAME: &[u8] = b"application/grpc";
    match value.split_at_checked(NAME.len()) {
        Some((name, rest)) => {
            name.eq_ignore_ascii_case(NAME) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        }
        None => false,
    }
}

/// The time that a `grpc-timeout` gives: one to eight digits and a unit. `None` if it is not that.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) {
        return None;
    }
    let mut number = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(digit - b'0');
    }
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The longest that [`Remaining`] writes.
const LONGEST: usize = 9;

/// A `grpc-timeout` for what is left of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    text: [u8; LONGEST],
    length: usize,
}

impl Remaining {
    /// So many milliseconds. What is not a whole unit any more is left out, so that nothing is ever extended; and the
    /// least is 1 ms.
    pub fn new(millis: u64) -> Self {
        let (number, unit) = match millis {
            0..=99_999_999 => (millis.max(1), b'm'),
            100_000_000..=99_999_999_999 => (millis / 1000, b'S'),
            _ => ((millis / 3_600_000).min(99_999_999), b'H'),
        };
        let mut text = [0; LONGEST];
        let mut at = LONGEST - 1;
        text[at] = unit;
        let mut rest = number;
        loop {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        text.copy_within(at.., 0);
        Self { text, length: LONGEST - at }
    }

    /// The value.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

/// Appends `text` as `grpc-message` wants it: what is not printable ASCII, and `%`, as `%XX`.
pub fn write_message(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => {
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_their_numbers() {
        for (code, status) in (0..).zip(Status::ALL) {
            assert_eq!((status as u32, status.as_str()), (code, code.to_string().as_str()));
            assert_eq!(Status::from_code(code), Some(status));
        }
        assert_eq!(Status::from_code(17), None);
    }

    #[test]
    fn what_is_said_is_counted_apart_and_judged() {
        let said = |value: &str| said([value.as_bytes()].into_iter());
        for (value, expected, http) in [
            ("0", Said::Status(Status::Ok), 200),
            ("14", Said::Status(Status::Unavailable), 503),
            ("5", Said::Status(Status::NotFound), 200),
            ("2", Said::Status(Status::Unknown), 500),
            ("17", Said::Other, 500),
            ("x", Said::Other, 500),
        ] {
            assert_eq!((said(value), said(value).as_http(200)), (expected, http), "{value}");
        }
        assert_eq!(super::said(std::iter::empty()), Said::Nothing);
        let all = Status::ALL.map(Said::Status).into_iter().chain([Said::Other, Said::Nothing]);
        let names: Vec<_> = all.map(|said| Said::name(said.as_index())).collect();
        let mut distinct = names.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!((distinct.len(), names.len(), names[14], names[18]), (SAID, SAID, "14", "missing"));
    }

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        for (value, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("12345678n", Some(Duration::from_nanos(12_345_678))),
            ("0m", Some(Duration::ZERO)),
            ("123456789m", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
            (" 1S", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn what_remains_is_never_more_than_it_was() {
        for millis in [0, 1, 9, 1_234, 99_999_999, 100_000_000, 123_456_789, 99_999_999_999, u64::MAX] {
            let written = Remaining::new(millis);
            let read = timeout(written.as_bytes()).unwrap_or_else(|| panic!("{written:?}"));
            let most = u128::from(millis.max(1));
            assert!(read.as_millis() <= most, "{millis} became {read:?}");
            assert!(read.as_millis() >= most.min(99_999_999) / 2, "{millis} became {read:?}");
        }
        assert_eq!(Remaining::new(1_234).as_bytes(), b"1234m");
    }

    #[test]
    fn every_reason_has_a_status_and_content_types_are_told_apart() {
        for (reason, status) in [
            (Reason::RequestTimeout, "4"),
            (Reason::DeadlineExceeded, "4"),
            (Reason::CallerNotAllowed, "7"),
            (Reason::MtlsRequired, "7"),
            (Reason::NoRoute, "12"),
            (Reason::HeaderTooLarge, "8"),
            (Reason::ConnectFailed, "14"),
            (Reason::NoHealthyEndpoints, "14"),
            (Reason::Draining, "14"),
            (Reason::OverloadRequests, "14"),
            (Reason::BadRequest, "13"),
        ] {
            assert_eq!(Status::of(reason).as_str(), status, "{reason}");
        }
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("application/gr", false),
        ] {
            assert_eq!(is_content_type(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut out = Vec::new();
        write_message("100 % sure: no\u{e9}\n~", &mut out);
        assert_eq!(out, b"100 %25 sure: no%C3%A9%0A~");
    }
}
