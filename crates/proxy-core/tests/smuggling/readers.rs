//! Other readers of HTTP/1: one for each way in which known software has read a message differently.
//!
//! They are lenient on purpose and know nothing of the parser under test. What the proxy forwards must have its ends at
//! the same places for all of them. Three ways are left out, because they break messages that everybody sends: readers
//! that take no body from GET, that know no chunks, and that count in 32 bits.

/// How a reader departs from RFC 9112. The default is strict where it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// LF ends a line.
    pub lf: bool,
    /// CR ends a line.
    pub cr: bool,
    /// NUL ends a name or a value.
    pub nul: bool,
    /// White space before a colon is ignored; otherwise such a field is.
    pub space_before_colon: bool,
    /// What a line that begins with white space is.
    pub folded: Folded,
    /// A line of white space ends the head.
    pub blank_is_space: bool,
    /// Underscores are hyphens.
    pub underscores: bool,
    /// Control bytes and bytes above 0x7f around names and values are white space.
    pub wide_trim: bool,
    /// Tabs are not white space around values.
    pub no_tabs: bool,
    /// Values keep all white space but one space before them.
    pub no_trim: bool,
    /// Fields that Connection names are removed first.
    pub removes_named: bool,
    /// What a Transfer-Encoding means.
    pub coding: Coding,
    /// Names of codings are compared byte by byte.
    pub coding_case: bool,
    /// How Content-Length is read.
    pub length: Length,
    /// Which of several fields of one name counts.
    pub last: bool,
    /// Content-Length wins over Transfer-Encoding.
    pub length_wins: bool,
    /// A request of HTTP/1.0 has no codings.
    pub old_has_no_coding: bool,
    /// How the size of a chunk is read.
    pub size: Size,
    /// CR ends the line of a size.
    pub size_cr: bool,
    /// Quotes of an extension may have line ends.
    pub quotes: bool,
    /// What is behind the data of a chunk.
    pub behind_data: Behind,
    /// Fields behind the body count as if they had been in the head: their length is that of more body.
    pub trailers_frame: bool,
    /// A request line of two words is a whole request.
    pub simple_requests: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Folded {
    /// It belongs to the value before.
    #[default]
    Joined,
    /// It is a field.
    Field,
    /// It is nothing.
    Ignored,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    /// The last of the list is `chunked`.
    #[default]
    LastIsChunked,
    /// `chunked` and nothing else; otherwise the field is ignored.
    Exact,
    /// `chunked` somewhere in the text.
    Contains,
    /// The text begins with it.
    Begins,
    /// `chunked` is one member of the list.
    Member,
    /// Anything but `identity` is chunked.
    NotIdentity,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    /// Decimal digits, otherwise ignored.
    #[default]
    Strict,
    /// Digits as far as they go, like C's `atoi`, with a sign.
    Prefix,
    /// Like `strtol` with base 0: octal and hexadecimal.
    AnyBase,
    /// All digits anywhere.
    Digits,
    /// Modulo 2^64.
    Wraps64,
    /// The last member of a list.
    LastOfList,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// Hexadecimal digits as far as they go.
    #[default]
    Prefix,
    /// Modulo 2^64.
    Wraps64,
    /// With a prefix `0x` and white space and a sign before it.
    Strtol,
    /// All hexadecimal digits of the line up to a semicolon.
    Digits,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behind {
    /// CR LF, or the message is broken.
    #[default]
    CrLf,
    /// Any two bytes.
    Two,
    /// Line ends, as many as there are.
    Skipped,
    /// Everything up to LF.
    Line,
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Requests,
    /// Responses, each to a request of this kind.
    Responses {
        head: bool,
    },
}

/// Where the messages end, and whether what follows the last is one that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub ends: Vec<usize>,
    pub broken: bool,
}

enum Found {
    Whole(usize),
    More,
    Broken,
}

impl Reader {
    /// One reader for each departure, and the strict one first.
    pub fn all() -> Vec<(String, Self)> {
        let mut all = vec![("strict".to_owned(), Self::default())];
        macro_rules! each {
            ($($field:ident: $($value:expr),+;)*) => {$($({
                let reader = Self { $field: $value, ..Self::default() };
                all.push((format!("{}: {:?}", stringify!($field), $value), reader));
            })+)*};
        }
        each! {
            lf: true;
            cr: true;
            nul: true;
            space_before_colon: true;
            folded: Folded::Field, Folded::Ignored;
            blank_is_space: true;
            underscores: true;
            wide_trim: true;
            no_tabs: true;
            no_trim: true;
            removes_named: true;
            coding: Coding::Exact, Coding::Contains, Coding::Begins, Coding::Member, Coding::NotIdentity;
            coding_case: true;
            length: Length::Prefix, Length::AnyBase, Length::Digits, Length::Wraps64, Length::LastOfList;
            last: true;
            length_wins: true;
            old_has_no_coding: true;
            size: Size::Wraps64, Size::Strtol, Size::Digits;
            size_cr: true;
            quotes: true;
            behind_data: Behind::Two, Behind::Skipped, Behind::Line;
            trailers_frame: true;
            simple_requests: true;
        }
        all
    }

    /// A reader with departures chosen by the bits of a number.
    pub fn of(mut bits: u64) -> Self {
        let mut take = |n: u64| {
            let chosen = bits % n;
            bits /= n;
            chosen as usize
        };
        Self {
            lf: take(2) == 1,
            cr: take(4) == 1,
            nul: take(4) == 1,
            space_before_colon: take(2) == 1,
            folded: [Folded::Joined, Folded::Field, Folded::Ignored][take(3)],
            blank_is_space: take(2) == 1,
            underscores: take(2) == 1,
            wide_trim: take(2) == 1,
            no_tabs: take(4) == 1,
            no_trim: take(4) == 1,
            removes_named: take(2) == 1,
            coding: [
                Coding::LastIsChunked,
                Coding::Exact,
                Coding::Contains,
                Coding::Begins,
                Coding::Member,
                Coding::NotIdentity,
            ][take(6)],
            coding_case: take(2) == 1,
            length: [
                Length::Strict,
                Length::Prefix,
                Length::AnyBase,
                Length::Digits,
                Length::Wraps64,
                Length::LastOfList,
            ][take(6)],
            last: take(2) == 1,
            length_wins: take(2) == 1,
            old_has_no_coding: take(2) == 1,
            size: [Size::Prefix, Size::Wraps64, Size::Strtol, Size::Digits][take(4)],
            size_cr: take(2) == 1,
            quotes: take(2) == 1,
            behind_data: [Behind::CrLf, Behind::Two, Behind::Skipped, Behind::Line][take(4)],
            trailers_frame: take(2) == 1,
            simple_requests: take(2) == 1,
        }
    }

    /// Reads one message after the other.
    pub fn read(&self, bytes: &[u8], kind: Kind) -> Reading {
        let mut reading = Reading { ends: Vec::new(), broken: false };
        let mut at = 0;
        while at < bytes.len() {
            match self.message(bytes, at, kind) {
                Found::Whole(end) => {
                    reading.ends.push(end);
                    at = end;
                }
                Found::More => break,
                Found::Broken => {
                    reading.broken = true;
                    break;
                }
            }
        }
        reading
    }

    fn message(&self, bytes: &[u8], start: usize, kind: Kind) -> Found {
        let mut at = start;
        while let Some((line, next)) = self.line(bytes, at)
            && line.is_empty()
        {
            at = next;
        }
        let Some((first, mut at)) = self.line(bytes, at) else { return Found::More };
        let words: Vec<&[u8]> = first.split(|&b| b == b' ').filter(|word| !word.is_empty()).collect();
        if kind == Kind::Requests && words.len() == 2 && self.simple_requests {
            return Found::Whole(at);
        }
        if words.len() < 2 {
            return Found::Broken;
        }
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let Some((line, next)) = self.line(bytes, at) else { return Found::More };
            at = next;
            if line.is_empty() || (self.blank_is_space && line.trim_ascii().is_empty()) {
                break;
            }
            self.field(line, &mut fields);
        }
        if self.removes_named {
            let named: Vec<u8> = values(&fields, b"connection").collect::<Vec<_>>().join(&b","[..]);
            let named = named.split(|&b| b == b',').map(|name| name.trim_ascii().to_ascii_lowercase());
            for name in named.collect::<Vec<_>>() {
                fields.retain(|(other, _)| *other != name);
            }
        }
        let old = words.last().is_some_and(|word| word.ends_with(b"1.0"));
        if let Kind::Responses { head } = kind {
            let status = words.get(1).copied().unwrap_or_default();
            if head || status.starts_with(b"1") || matches!(status, b"204" | b"304") {
                return Found::Whole(at);
            }
        }
        let chunked = self.chunked(&fields) && !(old && self.old_has_no_coding);
        match self.length(&fields) {
            Some(length) if !chunked || self.length_wins => self.counted(bytes, at, length),
            _ if chunked => self.chunks(bytes, at),
            _ if kind == Kind::Requests => Found::Whole(at),
            _ => Found::Whole(bytes.len()),
        }
    }

    fn counted(&self, bytes: &[u8], at: usize, length: u64) -> Found {
        match usize::try_from(length).ok().and_then(|length| at.checked_add(length)) {
            Some(end) if end <= bytes.len() => Found::Whole(end),
            _ => Found::More,
        }
    }

    /// The line at `at` without its end, and where the next begins.
    fn line<'a>(&self, bytes: &'a [u8], at: usize) -> Option<(&'a [u8], usize)> {
        let rest = bytes.get(at..)?;
        for (n, &b) in rest.iter().enumerate() {
            match b {
                b'\r' if rest.get(n + 1) == Some(&b'\n') => return Some((&rest[..n], at + n + 2)),
                b'\r' if self.cr && n + 1 < rest.len() => return Some((&rest[..n], at + n + 1)),
                b'\n' if self.lf => return Some((&rest[..n], at + n + 1)),
                _ => {}
            }
        }
        None
    }

    fn field(&self, line: &[u8], fields: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            match (self.folded, fields.last_mut()) {
                (Folded::Joined, Some((_, value))) => {
                    value.push(b' ');
                    value.extend_from_slice(line.trim_ascii());
                    return;
                }
                (Folded::Ignored, _) => return,
                _ => {}
            }
        }
        let line = if matches!(line.first(), Some(b' ' | b'\t')) { line.trim_ascii_start() } else { line };
        let Some(colon) = line.iter().position(|&b| b == b':') else { return };
        let (name, value) = (self.cut(&line[..colon]), self.cut(&line[colon + 1..]));
        let name = if self.wide_trim { wide(name) } else { name };
        let name = if self.space_before_colon { name.trim_ascii_end() } else { name };
        let mut name = name.to_ascii_lowercase();
        if self.underscores {
            name.iter_mut().filter(|b| **b == b'_').for_each(|b| *b = b'-');
        }
        let value = match () {
            () if self.no_trim => value.strip_prefix(b" ").unwrap_or(value),
            () if self.wide_trim => wide(value),
            () if self.no_tabs => spaces(value),
            () => value.trim_ascii(),
        };
        fields.push((name, value.to_vec()));
    }

    fn cut<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        match text.iter().position(|&b| b == 0) {
            Some(at) if self.nul => &text[..at],
            _ => text,
        }
    }

    fn chunked(&self, fields: &[(Vec<u8>, Vec<u8>)]) -> bool {
        let mut all = values(fields, b"transfer-encoding");
        let value = if self.last { all.last() } else { all.next() };
        let Some(value) = value else { return false };
        let value = if self.coding_case { value.to_vec() } else { value.to_ascii_lowercase() };
        let mut members = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
        match self.coding {
            Coding::LastIsChunked => members.next_back() == Some(b"chunked"),
            Coding::Exact => value == b"chunked",
            Coding::Contains => value.windows(7).any(|part| part == b"chunked"),
            Coding::Begins => value.starts_with(b"chunked"),
            Coding::Member => members.any(|member| member == b"chunked"),
            Coding::NotIdentity => value != b"identity",
        }
    }

    fn length(&self, fields: &[(Vec<u8>, Vec<u8>)]) -> Option<u64> {
        let mut all = values(fields, b"content-length");
        let value = if self.last { all.last() } else { all.next() }?;
        self.number(value)
    }

    fn number(&self, value: &[u8]) -> Option<u64> {
        let wrapping = |digits: &[u8], base: u64| {
            digits.iter().map_while(|b| char::from(*b).to_digit(base as u32)).fold(
                None,
                |sum: Option<u64>, digit| {
                    Some(sum.unwrap_or(0).wrapping_mul(base).wrapping_add(u64::from(digit)))
                },
            )
        };
        let strict = |text: &[u8]| {
            let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
        };
        match self.length {
            Length::Strict => strict(value),
            Length::Prefix => wrapping(value.strip_prefix(b"+").unwrap_or(value), 10),
            Length::AnyBase => match value {
                [b'0', b'x' | b'X', hex @ ..] => wrapping(hex, 16),
                [b'0', octal @ ..] if !octal.is_empty() => wrapping(octal, 8),
                _ => wrapping(value, 10),
            },
            Length::Digits => {
                let digits: Vec<u8> = value.iter().copied().filter(u8::is_ascii_digit).collect();
                wrapping(&digits, 10)
            }
            Length::Wraps64 => wrapping(value, 10),
            Length::LastOfList => strict(value.rsplit(|&b| b == b',').next()?.trim_ascii()),
        }
    }

    fn chunks(&self, bytes: &[u8], mut at: usize) -> Found {
        loop {
            let Some((line, next)) = self.size_line(bytes, at) else { return Found::More };
            let Some(size) = self.chunk_size(line) else { return Found::Broken };
            at = next;
            if size == 0 {
                break;
            }
            at = match usize::try_from(size).ok().and_then(|size| at.checked_add(size)) {
                Some(end) if end <= bytes.len() => end,
                _ => return Found::More,
            };
            let rest = &bytes[at..];
            at += match self.behind_data {
                Behind::CrLf if rest.starts_with(b"\r\n") => 2,
                Behind::CrLf if b"\r\n".starts_with(rest) => return Found::More,
                Behind::CrLf => return Found::Broken,
                Behind::Two if rest.len() >= 2 => 2,
                Behind::Two => return Found::More,
                Behind::Skipped => rest.iter().take_while(|b| b"\r\n".contains(b)).count(),
                Behind::Line => match rest.iter().position(|&b| b == b'\n') {
                    Some(end) => end + 1,
                    None => return Found::More,
                },
            };
        }
        let mut trailers = Vec::new();
        loop {
            let Some((line, next)) = self.line(bytes, at) else { return Found::More };
            at = next;
            if line.is_empty() {
                break;
            }
            self.field(line, &mut trailers);
        }
        match self.length(&trailers) {
            Some(length) if self.trailers_frame => self.counted(bytes, at, length),
            _ => Found::Whole(at),
        }
    }

    fn size_line<'a>(&self, bytes: &'a [u8], at: usize) -> Option<(&'a [u8], usize)> {
        let rest = bytes.get(at..)?;
        let (mut quoted, mut escaped) = (false, false);
        for (n, &b) in rest.iter().enumerate() {
            match b {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' if self.quotes => quoted = !quoted,
                _ if quoted => {}
                b'\r' if rest.get(n + 1) == Some(&b'\n') => return Some((&rest[..n], at + n + 2)),
                b'\r' if (self.cr || self.size_cr) && n + 1 < rest.len() => {
                    return Some((&rest[..n], at + n + 1));
                }
                b'\n' if self.lf => return Some((&rest[..n], at + n + 1)),
                _ => {}
            }
        }
        None
    }

    fn chunk_size(&self, line: &[u8]) -> Option<u64> {
        let text = line.split(|&b| b == b';').next().unwrap_or_default();
        let hex = |text: &[u8]| -> Option<u128> {
            let digits = text.iter().map_while(|b| char::from(*b).to_digit(16));
            digits.fold(None, |sum: Option<u128>, digit| {
                Some(sum.unwrap_or(0).wrapping_mul(16).wrapping_add(u128::from(digit)))
            })
        };
        match self.size {
            Size::Prefix => hex(text)?.try_into().ok(),
            Size::Wraps64 => hex(text).map(|size| size as u64),
            Size::Strtol => {
                let text = text.trim_ascii();
                let text = text.strip_prefix(b"+").unwrap_or(text);
                hex(text.strip_prefix(b"0x").unwrap_or(text))?.try_into().ok()
            }
            Size::Digits => {
                let digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_hexdigit).collect();
                hex(&digits)?.try_into().ok()
            }
        }
    }
}

fn values<'a>(fields: &'a [(Vec<u8>, Vec<u8>)], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |(other, _)| other == name).map(|(_, value)| &**value)
}

fn wide(text: &[u8]) -> &[u8] {
    let space = |b: &u8| *b <= b' ' || *b >= 0x7f;
    let start = text.iter().position(|b| !space(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !space(b)).map_or(start, |at| at + 1);
    &text[start..end]
}

fn spaces(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| *b != b' ').unwrap_or(text.len());
    let end = text.iter().rposition(|b| *b != b' ').map_or(start, |at| at + 1);
    &text[start..end]
}
