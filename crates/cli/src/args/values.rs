//! Values on the command line that are more than a word: how each is written, its bounds, and what is said if it is
//! not.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use outrider_agent::Policy;

/// `NAME=N`, with N from 0 to 100.
pub(super) fn parse_scale(text: &str) -> Result<(String, u16), String> {
    let (name, number) = text.split_once('=').ok_or("write NAME=N")?;
    let number = number.parse().ok().filter(|n| *n <= 100).ok_or("N is a number from 0 to 100")?;
    if name.is_empty() {
        return Err("write NAME=N".into());
    }
    Ok((name.to_owned(), number))
}

/// An address for the HTTP API: nobody can use it from elsewhere yet, because the command line speaks no TLS.
pub(super) fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write IP:PORT, like 127.0.0.1:7600")?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(
            "only loopback addresses are served for now; reach them from elsewhere through a tunnel, like \
                    `ssh -L 7600:127.0.0.1:7600 HOST`"
                .into(),
        );
    }
    Ok(address)
}

/// The name of a release: `builtin`, or a folder of the node's releases.
pub(super) fn parse_release(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let good = (1..=64).contains(&text.len())
        && text.chars().all(inner)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    good.then(|| text.to_owned()).ok_or_else(|| {
        "write `builtin`, or 1 to 64 of A-Z, a-z, 0-9 and ._+- beginning with a letter or digit".to_owned()
    })
}

/// A number of lines or events, 1 to 10,000.
pub(super) fn parse_number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=10_000).contains(number));
    number.ok_or_else(|| "write a number from 1 to 10000".to_owned())
}

/// `20000-20999`.
pub(super) fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(low, high)| Some(low.parse().ok()?..=high.parse().ok()?));
    range
        .filter(|range| *range.start() > 0 && !range.is_empty())
        .ok_or_else(|| "write two ports, the lower one first, like 20000-20999".to_owned())
}

/// Letters, digits, `-`, `_` and `.`.
pub(super) fn parse_zone(text: &str) -> Result<String, String> {
    match outrider_api::agent::is_zone(text) {
        true => Ok(text.to_owned()),
        false => Err("write at most 63 letters, digits, `-`, `_` and `.`, like eu-1a".to_owned()),
    }
}

/// A JSON object of what differs from the defaults.
pub(super) fn parse_policy(text: &str) -> Result<Box<Policy>, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// `500ms`, `60s`, `5m`, `1h`, or several of them together; at most 24 h.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration like 30s, 5m or 1h30m, at most 24h".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    let in_bounds = !text.is_empty() && total <= Duration::from_secs(86_400);
    in_bounds.then_some(total).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_numbers() {
        for name in ["builtin", "1.2.3-rc.1+a", "a"] {
            assert_eq!(parse_release(name), Ok(name.to_owned()));
        }
        for name in ["", ".", "../x", "a/b", "-x", "a b", &"x".repeat(65)] {
            assert!(parse_release(name).is_err(), "{name}");
        }
        assert_eq!((parse_number("1"), parse_number("10000")), (Ok(1), Ok(10_000)));
        for number in ["", "0", "10001", "-1", "x"] {
            assert!(parse_number(number).is_err(), "{number}");
        }
    }

    #[test]
    fn durations() {
        let ms = |n| Ok(Duration::from_millis(n));
        let cases =
            [("60s", ms(60_000)), ("1h30m", ms(5_400_000)), ("500ms", ms(500)), ("24h", ms(86_400_000))];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        for text in ["", "5", "s", "5d", "25h", "-1s", "1.5s", "99999999999s", "ü", "5ü"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
