//! The rules that a message has to keep, while its fields arrive and at their end.

use outrider_proxy_core::authority::is_host;
use outrider_proxy_core::http1::body::may_be_trailer;

use super::names::{self, Known, Name, Pseudo};
use super::{Expect, FieldKind, Head, Line, Span};
use crate::code::{Malformed, SendError};
use crate::event::HeadKind;

/// Largest Content-Length: implementations behind us may count in signed 64 bits.
const MAX_CONTENT_LENGTH: u64 = i64::MAX as u64;

impl Head {
    /// Takes the field whose name starts at `start` of the buffer, its value at `middle`, up to the end.
    #[inline]
    pub(crate) fn take(&mut self, start: usize, middle: usize, known: Known, sensitive: bool) {
        #[cfg(test)]
        if let Some(all) = &mut self.keep_all {
            all.push((self.bytes[start..middle].to_vec(), self.bytes[middle..].to_vec()));
        }
        let Known { name, value_ok, fixed, hash } = known;
        let value = Span { start: middle as u32, end: self.bytes.len() as u32 };
        let result = match name {
            Name::Bad => Err(Malformed::Name),
            Name::UnknownPseudo => Err(Malformed::PseudoUnknown),
            _ if !value_ok => Err(Malformed::Value),
            Name::Pseudo(pseudo) => self.take_pseudo(pseudo, value),
            Name::Field(kind) => {
                if self.lines.len() >= self.max_fields {
                    self.too_many |= !self.too_large;
                    self.too_large = true;
                    return;
                }
                let name = Span { start: start as u32, end: middle as u32 };
                let allowed = self.expect != Expect::Trailers || may_be_trailer(&self.bytes[start..middle]);
                let result =
                    self.check(kind, value).and(if allowed { Ok(()) } else { Err(Malformed::Trailer) });
                self.lines.push(Line { name, value, kind, sensitive, fixed, hash });
                result
            }
        };
        if let Err(fault) = result {
            self.fault.get_or_insert(fault);
        }
    }

    fn take_pseudo(&mut self, pseudo: Pseudo, value: Span) -> Result<(), Malformed> {
        let belongs = match (self.expect, pseudo) {
            (Expect::Request { extended }, Pseudo::Protocol) => extended,
            (Expect::Request { .. }, pseudo) => pseudo != Pseudo::Status,
            (Expect::Response, pseudo) => pseudo == Pseudo::Status,
            (Expect::Trailers | Expect::Nothing, _) => false,
        };
        if !belongs {
            return Err(Malformed::PseudoUnknown);
        }
        if !self.lines.is_empty() {
            return Err(Malformed::PseudoOrder);
        }
        if self.pseudo[pseudo as usize].replace(value).is_some() {
            return Err(Malformed::PseudoRepeated);
        }
        Ok(())
    }

    #[inline]
    fn check(&mut self, kind: FieldKind, value: Span) -> Result<(), Malformed> {
        let trailers = self.expect == Expect::Trailers;
        match kind {
            FieldKind::Other
            | FieldKind::Cookie
            | FieldKind::Expect
            | FieldKind::ProxyAuthentication
            | FieldKind::Unprocessed => Ok(()),
            FieldKind::ConnectionSpecific => Err(Malformed::ConnectionSpecific),
            FieldKind::Te if value.of(&self.bytes).eq_ignore_ascii_case(b"trailers") => Ok(()),
            FieldKind::Te => Err(Malformed::ConnectionSpecific),
            FieldKind::Host | FieldKind::ForwardedClientCert if !trailers => Ok(()),
            FieldKind::ContentLength if !trailers => {
                let length = content_length(value.of(&self.bytes)).ok_or(Malformed::ContentLength)?;
                let repeated = self.content_length.replace(length).is_some();
                if repeated { Err(Malformed::ContentLength) } else { Ok(()) }
            }
            FieldKind::LookAlike if self.expect == Expect::Response => Ok(()),
            FieldKind::LookAlike => Err(Malformed::LookAlike),
            FieldKind::Host | FieldKind::ForwardedClientCert | FieldKind::ContentLength => {
                Err(Malformed::Trailer)
            }
        }
    }

    /// Judges the whole.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        match self.expect {
            Expect::Request { .. } => self.finish_request()?,
            Expect::Response => self.finish_response()?,
            Expect::Trailers => {}
            Expect::Nothing => return Ok(()),
        }
        self.sound = !self.too_large;
        Ok(())
    }

    fn finish_request(&self) -> Result<(), Malformed> {
        let method = self.pseudo(Pseudo::Method).ok_or(Malformed::PseudoMissing)?;
        let (scheme, path) = (self.pseudo(Pseudo::Scheme), self.pseudo(Pseudo::Path));
        let (authority, protocol) = (self.pseudo(Pseudo::Authority), self.pseudo(Pseudo::Protocol));
        let line = RequestParts { method, scheme, authority, path, protocol };
        line.check()?;
        let mut hosts = self
            .lines
            .iter()
            .filter(|line| line.kind == FieldKind::Host)
            .map(|line| line.value.of(&self.bytes));
        match (hosts.next(), authority) {
            (None, _) => Ok(()),
            (Some(_), _) if hosts.next().is_some() => Err(Malformed::Host),
            (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => Err(Malformed::Host),
            (Some(host), None) if !is_host(host) => Err(Malformed::Authority),
            (Some(_), _) => Ok(()),
        }
    }

    fn finish_response(&mut self) -> Result<(), Malformed> {
        self.status = match self.pseudo(Pseudo::Status).ok_or(Malformed::PseudoMissing)? {
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => return Err(Malformed::Status),
        };
        // Switching protocols is not a thing of HTTP/2 (RFC 9113 section 8.6).
        if self.status == 101 {
            return Err(Malformed::Status);
        }
        if self.status < 200 {
            self.kind = HeadKind::Interim;
        }
        Ok(())
    }
}

/// What a request line is made of, in either direction.
pub(crate) struct RequestParts<'a> {
    pub(crate) method: &'a [u8],
    pub(crate) scheme: Option<&'a [u8]>,
    pub(crate) authority: Option<&'a [u8]>,
    pub(crate) path: Option<&'a [u8]>,
    pub(crate) protocol: Option<&'a [u8]>,
}

impl RequestParts<'_> {
    pub(crate) fn check(&self) -> Result<(), Malformed> {
        if !names::is_token(self.method) {
            return Err(Malformed::Method);
        }
        let connect = self.method == b"CONNECT";
        // Methods have a case, but an endpoint that does not know it would make a tunnel.
        if !connect && self.method.eq_ignore_ascii_case(b"CONNECT") {
            return Err(Malformed::Method);
        }
        if connect && self.protocol.is_none() {
            if self.scheme.is_some() || self.path.is_some() {
                return Err(Malformed::Connect);
            }
            let authority = self.authority.ok_or(Malformed::PseudoMissing)?;
            return if is_host(authority) { Ok(()) } else { Err(Malformed::Authority) };
        }
        if let Some(protocol) = self.protocol {
            if !connect || !names::is_token(protocol) {
                return Err(Malformed::Connect);
            }
            if self.authority.is_none() {
                return Err(Malformed::PseudoMissing);
            }
        }
        let scheme = self.scheme.ok_or(Malformed::PseudoMissing)?;
        let path = self.path.ok_or(Malformed::PseudoMissing)?;
        if !names::is_scheme(scheme) {
            return Err(Malformed::Scheme);
        }
        if !names::is_path(path, self.method == b"OPTIONS") {
            return Err(Malformed::Path);
        }
        if self.authority.is_some_and(|authority| !is_host(authority)) {
            return Err(Malformed::Authority);
        }
        Ok(())
    }
}

/// Whether a field may be sent. Names may be in any case.
pub(crate) fn check_outgoing(name: &[u8], value: &[u8], trailers: bool) -> Result<(), SendError> {
    if !names::is_token(name) {
        return Err(Malformed::Name.into());
    }
    if !names::is_value(value) {
        return Err(Malformed::Value.into());
    }
    // All names with a meaning here are shorter than this.
    let mut lower = [0u8; 32];
    let Some(lower) = lower.get_mut(..name.len()) else { return Ok(()) };
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    match names::classify(lower) {
        Name::Field(FieldKind::ConnectionSpecific) => Err(Malformed::ConnectionSpecific.into()),
        Name::Field(FieldKind::Te) if !value.eq_ignore_ascii_case(b"trailers") => {
            Err(Malformed::ConnectionSpecific.into())
        }
        Name::Field(_) if trailers && !may_be_trailer(lower) => Err(Malformed::Trailer.into()),
        Name::Field(_) => Ok(()),
        _ => Err(Malformed::Name.into()),
    }
}

fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut length = 0u64;
    for digit in value {
        if !digit.is_ascii_digit() {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    (length <= MAX_CONTENT_LENGTH).then_some(length)
}
