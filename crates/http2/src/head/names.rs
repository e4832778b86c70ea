//! Names and values looked at one by one.

use outrider_proxy_core::retry::hops;

use super::FieldKind;

const UNPROCESSED: &[u8] = hops::UNPROCESSED.as_bytes();

/// A pseudo-header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl Pseudo {
    pub(super) const COUNT: usize = 6;
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// No field name.
    Bad,
    Pseudo(Pseudo),
    UnknownPseudo,
    Field(FieldKind),
}

/// What is known of a field without looking at it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) name: Name,
    pub(crate) value_ok: bool,
    /// The first index of the name in HPACK's static table: [`NOT_FIXED`] if it is not there, [`UNKNOWN`] if nobody has
    /// looked.
    pub(crate) fixed: u8,
    /// HPACK's hash of name and value; 0 if nobody has computed it.
    pub(crate) hash: u32,
}

pub(crate) const NOT_FIXED: u8 = 0;
pub(crate) const UNKNOWN: u8 = u8::MAX;

/// What a name is, as it was sent.
pub(crate) const fn classify(name: &[u8]) -> Name {
    match name {
        b":method" => return Name::Pseudo(Pseudo::Method),
        b":scheme" => return Name::Pseudo(Pseudo::Scheme),
        b":authority" => return Name::Pseudo(Pseudo::Authority),
        b":path" => return Name::Pseudo(Pseudo::Path),
        b":protocol" => return Name::Pseudo(Pseudo::Protocol),
        b":status" => return Name::Pseudo(Pseudo::Status),
        [b':', ..] => return Name::UnknownPseudo,
        [] => return Name::Bad,
        _ => {}
    }
    let mut at = 0;
    while at < name.len() {
        if !TOKEN[name[at] as usize] {
            return Name::Bad;
        }
        at += 1;
    }
    Name::Field(match name {
        b"te" => FieldKind::Te,
        b"host" => FieldKind::Host,
        b"cookie" => FieldKind::Cookie,
        b"expect" => FieldKind::Expect,
        b"content-length" => FieldKind::ContentLength,
        b"content_length" | b"transfer_encoding" => FieldKind::LookAlike,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
            FieldKind::ConnectionSpecific
        }
        b"proxy-authenticate" | b"proxy-authorization" | b"proxy-authentication-info" => {
            FieldKind::ProxyAuthentication
        }
        UNPROCESSED => FieldKind::Unprocessed,
        _ if is_forwarded_client_cert(name) => FieldKind::ForwardedClientCert,
        _ => FieldKind::Other,
    })
}

/// Applications that see fields as variables cannot tell underscores from hyphens.
const fn is_forwarded_client_cert(name: &[u8]) -> bool {
    const KNOWN: &[u8] = b"x-forwarded-client-cert";
    if name.len() != KNOWN.len() {
        return false;
    }
    let mut at = 0;
    while at < KNOWN.len() {
        if name[at] != KNOWN[at] && !(name[at] == b'_' && KNOWN[at] == b'-') {
            return false;
        }
        at += 1;
    }
    true
}

/// RFC 9110 `tchar` without upper case.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0usize;
    while byte < 256 {
        table[byte] = matches!(byte as u8, b'0'..=b'9' | b'a'..=b'z'
            | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

/// Whether these bytes are a token, in any case.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| TOKEN[usize::from(b.to_ascii_lowercase())])
}

/// Whether this can be a field value: no control byte but tab, and no white space at an end.
#[inline]
pub(crate) fn is_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    !blank(value.first()) && !blank(value.last()) && (!may_have_control(value) || !value.iter().any(control))
}

/// Whether there is a byte below 0x20, the tab included, or 0x7f. Eight at a time.
#[inline]
fn may_have_control(value: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    let below = |eight: u64| eight.wrapping_sub(ONES * 0x20) & !eight;
    let zero = |eight: u64| eight.wrapping_sub(ONES) & !eight;
    let found = |eight: u64| (below(eight) | zero(eight ^ (ONES * 0x7f))) & TOPS;
    let mut rest = value;
    let mut any = 0;
    while let Some((eight, after)) = rest.split_first_chunk::<8>() {
        any |= found(u64::from_ne_bytes(*eight));
        rest = after;
    }
    any != 0 || rest.iter().fold(false, |any, byte| any | (*byte < b' ') | (*byte == 0x7f))
}

/// Whether this is the path and query of a target, as HTTP/1.1 takes it: no space, control byte or fragment, and
/// bytes above 0x7f only as UTF-8.
pub(super) fn is_path(path: &[u8], options: bool) -> bool {
    match path.first() {
        Some(b'/') => {}
        Some(b'*') => return path.len() == 1 && options,
        _ => return false,
    }
    let plain = |b: &u8| *b > b' ' && *b != 0x7f && *b != b'#';
    path.iter().all(plain) && (path.is_ascii() || std::str::from_utf8(path).is_ok())
}

/// Whether this is a URI scheme.
pub(super) fn is_scheme(scheme: &[u8]) -> bool {
    scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_looked_at_wherever_it_is() {
        for length in 1..20 {
            for at in 0..length {
                for byte in 0..=255u8 {
                    let mut value = vec![b'a'; length];
                    value[at] = byte;
                    let end = at == 0 || at == length - 1;
                    let fine = match byte {
                        b'\t' | b' ' => !end,
                        0..b' ' | 0x7f => false,
                        _ => true,
                    };
                    assert_eq!(is_value(&value), fine, "{byte:#x} at {at} of {length}");
                }
            }
        }
        assert!(is_value(b"") && is_value(b"a\tb"));
    }
}
