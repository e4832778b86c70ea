//! Endpoints as most are written: an address, a port, perhaps a weight, and nothing else.
//!
//! A list of ten thousand is read again whenever one of them changes, and nearly all are of this form. Holds: what is
//! read here is what the general way reads, and allocates nothing; whatever has any other field, order or length is not read
//! here.

use std::net::SocketAddr;

use outrider_xds_types::prost::encoding::decode_varint;

use crate::config::Endpoint;

/// The content of the next field, if it is this one and short.
fn within<'a>(rest: &mut &'a [u8], key: u8) -> Option<&'a [u8]> {
    let [found, length, others @ ..] = rest else { return None };
    if *found != key || *length >= 0x80 {
        return None;
    }
    let (content, others) = others.split_at_checked(usize::from(*length))?;
    *rest = others;
    Some(content)
}

/// The number in the next field, if it is this one and the last.
fn last_number(rest: &[u8], key: u8) -> Option<u32> {
    let mut bytes = rest.strip_prefix(&[key])?;
    let number = decode_varint(&mut bytes).ok()?;
    bytes.is_empty().then(|| u32::try_from(number).ok()).flatten()
}

/// The content of the only field, if it is this one.
fn only(message: &[u8], key: u8) -> Option<&[u8]> {
    let mut rest = message;
    within(&mut rest, key).filter(|_| rest.is_empty())
}

/// An encoded `LbEndpoint`; `None` is for the general way.
pub(super) fn read(one: &[u8]) -> Option<Endpoint> {
    let mut rest = one;
    // `endpoint`, and in it `address`, `socket_address`.
    let mut socket = only(only(within(&mut rest, 0x0a)?, 0x0a)?, 0x0a)?;
    let weight = match rest {
        [] => 1,
        // `load_balancing_weight`, and in it `value`.
        weight => last_number(only(weight, 0x22)?, 0x08)?.max(1),
    };
    let ip = std::str::from_utf8(within(&mut socket, 0x12)?).ok()?.parse().ok()?;
    let port = u16::try_from(last_number(socket, 0x18)?).ok()?;
    Some(Endpoint { weight, ..Endpoint::new(SocketAddr::new(ip, port)) })
}
