//! One question over HTTP/2, on a connection of its own.
//!
//! Holds: no more than [`MOST`] bytes of an answer's body are kept, and an answer that has more is none. Does not: bound
//! the time, which the caller does.

use std::io;

use outrider_http2::{Config, Connection, Event, Field, Head, HeadKind, RequestLine, Role, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::check::Question;
use crate::timers::coarse_ms;

/// Most bytes of a body. An answer about health has seven.
const MOST: usize = 4 << 10;
/// Bytes that are read at once.
const READ: usize = 4 << 10;

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// As in its trailers, or in the head if that is all.
    pub(super) grpc_status: Option<u32>,
    pub(super) body: Vec<u8>,
}

/// Asks, and waits for the answer; with `whole`, for its end as well.
pub(super) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    question: &Question,
    secure: bool,
    whole: bool,
) -> io::Result<Answer> {
    let mut core = Connection::new(Role::Client, Config::default(), coarse_ms());
    let line = RequestLine {
        method: question.method.as_bytes(),
        scheme: Some(if secure { b"https" } else { b"http" }),
        authority: Some(question.authority.as_bytes()),
        path: Some(question.path.as_bytes()),
        protocol: None,
    };
    let fields = question.fields.iter().map(|(name, value)| Field::from((&**name, &**value)));
    let mut out = Vec::new();
    let end = question.body.is_empty();
    let own = core.send_request(&line, fields, end).map_err(io::Error::other)?;
    if !end {
        // Far less than the smallest window that there is before the endpoint has said anything.
        let sent = core.send_data(own, question.body.len(), true, &mut out).map_err(io::Error::other)?;
        out.extend_from_slice(question.body.get(..sent.length).unwrap_or_default());
    }
    let mut head = Box::new(Head::new());
    let mut read = Vec::with_capacity(READ);
    let mut answer = Answer::default();
    loop {
        core.poll_output(&mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        read.clear();
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if take(&mut core, own, &read, &mut head, &mut answer)? || (answer.status > 0 && !whole) {
            return Ok(answer);
        }
    }
}

/// Takes what was read; whether the answer is here as a whole.
fn take(
    core: &mut Connection,
    own: Stream,
    read: &[u8],
    head: &mut Head,
    answer: &mut Answer,
) -> io::Result<bool> {
    let mut at = 0;
    loop {
        let rest = read.get(at..).unwrap_or_default();
        let step = core.receive(rest, head, coarse_ms()).map_err(io::Error::other)?;
        at += step.consumed;
        match step.event {
            Some(Event::Head { stream, kind, end }) if stream == own => {
                if kind == HeadKind::Response {
                    answer.status = head.status();
                }
                if end {
                    answer.grpc_status = grpc_status(head);
                    return Ok(true);
                }
            }
            Some(Event::Data { stream, range, end }) if stream == own => {
                let piece = rest.get(range).unwrap_or_default();
                core.release(own, piece.len());
                if answer.body.len() + piece.len() > MOST {
                    return Err(io::Error::other("the answer is too long"));
                }
                answer.body.extend_from_slice(piece);
                if end {
                    return Ok(true);
                }
            }
            Some(Event::Reset { code, .. }) => {
                return Err(io::Error::other(format!("the endpoint reset the request: {code}")));
            }
            Some(Event::HeadTooLarge { .. }) => return Err(io::Error::other("the answer is too long")),
            Some(_) => {}
            None if at == read.len() => return Ok(false),
            None => {}
        }
    }
}

fn grpc_status(head: &Head) -> Option<u32> {
    std::str::from_utf8(head.values(b"grpc-status").next()?).ok()?.parse().ok()
}

/// The `status` of a `grpc.health.v1.HealthCheckResponse` in a body of one message that is not compressed: 1 is SERVING.
/// `None` if it is not that.
pub(super) fn serving_status(body: &[u8]) -> Option<u64> {
    let (prefix, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    if prefix.first() != Some(&0) || message.len() != usize::try_from(length).ok()? {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_message_has_a_status() {
        for (body, status) in [
            (b"\0\0\0\0\x02\x08\x01".as_slice(), Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            // A field that says nothing has its default: UNKNOWN.
            (b"\0\0\0\0\0", Some(0)),
            // Fields that are not known are passed over, and the last one of a number counts.
            (b"\0\0\0\0\x09\x12\x01a\x25aaaa\x08", None),
            (b"\0\0\0\0\x0a\x12\x01a\x25aaaa\x08\x01", Some(1)),
            (b"\0\0\0\0\x0d\x19aaaaaaaa\x08\x02\x08\x01", Some(1)),
            // Compressed, cut, too long, no message.
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x02\x08", None),
            (b"\0\0\0\0\x01\x08\x01", None),
            (b"\0\0\0", None),
            (b"", None),
            (b"\0\0\0\0\x02\x0b\x01", None),
            (b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(serving_status(body), status, "{body:?}");
        }
    }
}
