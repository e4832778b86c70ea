//! The static table of RFC 7541, appendix A, both ways.

/// By index minus one: name and value.
#[rustfmt::skip]
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

const LENGTH: usize = {
    let (mut length, mut at) = (0, 0);
    while at < STATIC.len() {
        length += STATIC[at].0.len() + STATIC[at].1.len();
        at += 1;
    }
    length
};

/// All names and values, one after the other, and by index minus one where an entry begins, its value, and its end.
static JOINED: ([u8; LENGTH], [[u16; 3]; 61]) = {
    let mut bytes = [0; LENGTH];
    let mut places = [[0; 3]; 61];
    let (mut length, mut at) = (0, 0);
    while at < STATIC.len() {
        places[at][0] = length as u16;
        let mut part = 0;
        while part < 2 {
            let text = if part == 0 { STATIC[at].0 } else { STATIC[at].1 };
            let mut byte = 0;
            while byte < text.len() {
                bytes[length] = text[byte];
                length += 1;
                byte += 1;
            }
            part += 1;
            places[at][part] = length as u16;
        }
        at += 1;
    }
    (bytes, places)
};

/// Name and value of the entry at `at`, the first being 0, in one, and where the value begins.
#[inline]
pub(super) fn both(at: usize) -> Option<(&'static [u8], usize)> {
    let [start, middle, end] = JOINED.1.get(at)?.map(usize::from);
    Some((JOINED.0.get(start..end)?, middle - start))
}

/// The first index with this name.
#[rustfmt::skip]
pub(super) fn by_name(name: &[u8]) -> Option<usize> {
    Some(match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    })
}

/// The index with this name and value, where `first` is that of the name. Entries without a value are never whole:
/// an empty value is sent as a literal.
pub(super) fn by_field(first: usize, value: &[u8]) -> Option<usize> {
    Some(match (first, value) {
        (2, b"GET") => 2,
        (2, b"POST") => 3,
        (4, b"/") => 4,
        (4, b"/index.html") => 5,
        (6, b"http") => 6,
        (6, b"https") => 7,
        (8, b"200") => 8,
        (8, b"204") => 9,
        (8, b"206") => 10,
        (8, b"304") => 11,
        (8, b"400") => 12,
        (8, b"404") => 13,
        (8, b"500") => 14,
        (16, b"gzip, deflate") => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree() {
        for (at, (name, value)) in STATIC.iter().enumerate() {
            let first = by_name(name).unwrap();
            assert_eq!(STATIC[first - 1].0, *name);
            assert!(first == 1 || STATIC[first - 2].0 != *name);
            assert_eq!(by_field(first, value), (!value.is_empty()).then_some(at + 1));
            let (joined, middle) = both(at).unwrap();
            assert_eq!(joined.split_at(middle), (*name, *value));
        }
        assert_eq!(both(STATIC.len()), None);
        assert_eq!(by_name(b"x-other"), None);
        assert_eq!(by_field(2, b"PUT"), None);
    }
}
