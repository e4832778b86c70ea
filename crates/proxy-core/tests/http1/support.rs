//! Runs raw bytes through parser and scanner the way a connection does.

use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{
    BodyError, BodyFraming, BodyScanner, HeadError, Limits, Parsed, RequestHead, ResponseHead,
};

/// Why a stream of messages is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Head(HeadError),
    Body(BodyError),
    /// Bytes after a message that ends the connection.
    AfterClose,
}

/// What is left when the bytes ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Refused(Refused),
    /// Between messages.
    Clean,
    /// Inside a message.
    Middle,
    /// In a tunnel or a body until close.
    Open,
}

/// Messages that ended, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) messages: Vec<(BodyFraming, usize)>,
    /// Bytes of those messages.
    pub(crate) consumed: usize,
    pub(crate) end: End,
}

impl Outcome {
    pub(crate) fn refused(&self) -> Option<Refused> {
        if let End::Refused(refused) = self.end { Some(refused) } else { None }
    }
}

/// Serves requests from `input`, which arrives in `pieces`-sized reads (0 is all at once).
pub(crate) fn serve(input: &[u8], piece: usize) -> Outcome {
    run(input, piece, true, |head: &mut Heads, buf, limits| match head.request.parse(buf, limits)? {
        Parsed::Incomplete => Ok(None),
        Parsed::Complete(length) => {
            let tunnel = head.request.upgrade(buf).is_some();
            let framing = if tunnel { BodyFraming::UntilClose } else { head.request.framing() };
            Ok(Some((length, framing, head.request.is_persistent())))
        }
    })
}

/// Reads responses to GET, some of which may switch protocols.
pub(crate) fn read(input: &[u8], piece: usize) -> Outcome {
    run(input, piece, false, |head: &mut Heads, buf, limits| match head.response.parse(buf, limits)? {
        Parsed::Incomplete => Ok(None),
        Parsed::Complete(length) => {
            let framing = head.response.framing(&Asked { head: false, upgrade: true })?;
            Ok(Some((length, framing, head.response.is_persistent())))
        }
    })
}

#[derive(Default)]
struct Heads {
    request: RequestHead,
    response: ResponseHead,
}

type HeadFacts = Option<(usize, BodyFraming, bool)>;

fn run(
    input: &[u8],
    piece: usize,
    blank_lines: bool,
    mut parse: impl FnMut(&mut Heads, &[u8], &Limits) -> Result<HeadFacts, HeadError>,
) -> Outcome {
    let limits = Limits::default();
    let mut heads = Heads::default();
    let mut outcome = Outcome { messages: Vec::new(), consumed: 0, end: End::Clean };
    let mut buffer: Vec<u8> = Vec::new();
    let mut unread = input;
    let mut body: Option<(BodyScanner, BodyFraming, usize, usize, bool)> = None;
    let mut closed = false;
    loop {
        let take = if piece == 0 { unread.len() } else { piece.min(unread.len()) };
        buffer.extend_from_slice(&unread[..take]);
        unread = &unread[take..];
        loop {
            if closed && !buffer.iter().all(|b| b"\r\n".contains(b)) {
                outcome.end = End::Refused(Refused::AfterClose);
                return outcome;
            }
            if closed {
                break;
            }
            if let Some((scanner, framing, length, size, persistent)) = &mut body {
                let scan = match scanner.scan(&buffer) {
                    Ok(scan) => scan,
                    Err(error) => {
                        outcome.end = End::Refused(Refused::Body(error));
                        return outcome;
                    }
                };
                buffer.drain(..scan.consumed);
                *size += scan.consumed;
                if !scan.ended {
                    break;
                }
                outcome.messages.push((*framing, *size));
                outcome.consumed += *length + *size;
                closed = !*persistent;
                body = None;
            } else {
                match parse(&mut heads, &buffer, &limits) {
                    Err(error) => {
                        outcome.end = End::Refused(Refused::Head(error));
                        return outcome;
                    }
                    Ok(None) => break,
                    Ok(Some((length, framing, persistent))) => {
                        buffer.drain(..length);
                        body = Some((BodyScanner::new(framing), framing, length, 0, persistent));
                    }
                }
            }
        }
        if unread.is_empty() {
            break;
        }
    }
    let blank = |buffer: &[u8]| blank_lines && buffer.iter().all(|b| b"\r\n".contains(b));
    outcome.end = match body {
        Some((scanner, ..)) if scanner.finish().is_ok() => End::Open,
        Some(_) => End::Middle,
        None if closed || buffer.is_empty() || blank(&buffer) => End::Clean,
        None => End::Middle,
    };
    outcome
}
