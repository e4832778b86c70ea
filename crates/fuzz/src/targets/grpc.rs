//! Fields of gRPC. Messages are not looked at, and gRPC-Web is not spoken.

use outrider_proxy_core::grpc;

use super::{Target, Verdict, expect};
use crate::mutate::Shape;

/// A `grpc-timeout` or a `content-type`.
pub(super) const FIELDS: Target = Target {
    name: "grpc",
    from: "callers",
    shape: Shape::Text,
    pieces: &[
        b"H",
        b"M",
        b"S",
        b"m",
        b"u",
        b"n",
        b"0",
        b"99999999",
        b"+",
        b"-",
        b" ",
        b"application/grpc",
        b"+proto",
    ],
    most: 64,
    memory: 64,
    rounds: 20_000,
    accepted: 5,
    seeds: || {
        [&b"1S"[..], b"99999999H", b"100m", b"7n", b"application/grpc", b"application/grpc+proto"]
            .map(<[u8]>::to_vec)
            .to_vec()
    },
    check,
};

/// What the protocol's page says, in another way than the parser: digits as text, nanoseconds as a wide number.
fn reference(value: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.strip_prefix(digits)?;
    let nanoseconds = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    let valid = digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    Some(digits.parse::<u128>().ok().filter(|_| valid)? * nanoseconds)
}

fn check(bytes: &[u8]) -> Verdict {
    let timeout = grpc::timeout(bytes);
    let expected = reference(bytes);
    expect(timeout.map(|time| time.as_nanos()) == expected, || format!("{timeout:?}, not {expected:?} ns"))?;
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).map_err(|e| e.to_string())?;
        let remaining = grpc::Remaining::new(millis);
        let again = grpc::timeout(remaining.as_bytes()).ok_or("what is written cannot be read")?;
        // The least is a millisecond.
        expect(again.as_millis() <= u128::from(millis.max(1)), || format!("{timeout:?} became {again:?}"))?;
    }
    let mut out = Vec::new();
    grpc::write_message(&String::from_utf8_lossy(bytes), &mut out);
    expect(out.iter().all(|b| (b' '..0x7f).contains(b)), || {
        format!("a message with {}", out.escape_ascii())
    })?;
    Ok(timeout.is_some() | grpc::is_content_type(bytes))
}
