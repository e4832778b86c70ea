//! Just enough WebSocket for an echo: unfragmented messages, both ends.
//!
//! The handshake uses the one key of RFC 6455's example, so that no SHA-1 is needed.

use std::net::TcpStream;

use anyhow::{Result, bail, ensure};

use crate::http::{Connection, Head};

/// Of the handshake.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to [`KEY`].
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// What the server says first.
const GREETING: &[u8] = b"hello";
/// First byte of a whole text message.
pub const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
/// First byte of a close frame.
pub const CLOSE: u8 = 0x88;
/// First byte of a ping.
pub(crate) const PING: u8 = 0x89;
/// First byte of the answer to a ping.
pub(crate) const PONG: u8 = 0x8a;
/// Largest payload that [`decode`] waits for.
const LARGEST: u64 = 1 << 20;

/// The server's side: answers the handshake, echoes every message, answers the close.
pub(crate) fn accept(connection: &mut Connection<TcpStream>, head: &Head) -> Result<()> {
    let upgrade = head.get("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    if !upgrade || head.get("sec-websocket-key") != Some(KEY) {
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
        bail!("not the handshake: {:?}", head.fields);
    }
    let answer = switching();
    // In one write, so that it follows the head at once.
    connection.send(&[answer.as_bytes(), &frame(TEXT, GREETING, None)].concat())?;
    loop {
        let (kind, payload) = read(connection, true)?;
        connection.send(&frame(kind, &payload, None))?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}

/// The client's side: shakes hands, exchanges `messages`, each of which must come back, and closes.
pub fn exchange(connection: &mut Connection<TcpStream>, host: &str, messages: &[Vec<u8>]) -> Result<()> {
    connection.send(request(host, "/websocket").as_bytes())?;
    let response = connection.response("GET")?;
    ensure!(response.status()? == 101, "answered {:?}", response.head.line);
    ensure!(response.head.get("sec-websocket-accept") == Some(ACCEPT), "{:?}", response.head.fields);
    ensure!(read(connection, false)? == (TEXT, GREETING.to_vec()), "no greeting");
    for (index, message) in messages.iter().enumerate() {
        let kind = if index % 2 == 0 { BINARY } else { TEXT };
        connection.send(&frame(kind, message, Some([0x5a, 0xa5, 0x0f, 0xf0])))?;
        let (answered, payload) = read(connection, false)?;
        ensure!(answered == kind && payload == *message, "message {index} came back changed");
    }
    connection.send(&frame(CLOSE, &1000_u16.to_be_bytes(), Some([1, 2, 3, 4])))?;
    let (kind, _) = read(connection, false)?;
    ensure!(kind == CLOSE, "no close frame but {kind:#x}");
    ensure!(connection.rest()?.is_empty(), "bytes after the close");
    Ok(())
}

/// The client's side of the handshake alone.
pub fn open(connection: &mut Connection<TcpStream>, host: &str, target: &str) -> Result<()> {
    connection.send(request(host, target).as_bytes())?;
    let response = connection.response("GET")?;
    ensure!(response.status()? == 101, "answered {:?}", response.head.line);
    Ok(())
}

/// The request of the handshake.
pub(crate) fn request(host: &str, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The answer to [`request`].
pub(crate) fn switching() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
}

/// The first frame of what has been received, and how many bytes it took; `None` if it is not whole.
pub fn decode(bytes: &[u8], masked: bool) -> Result<Option<(u8, Vec<u8>, usize)>> {
    let [kind, length, rest @ ..] = bytes else { return Ok(None) };
    ensure!((length & 0x80 != 0) == masked, "mask bit of the wrong side");
    let long = match length & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some((extended, rest)) = rest.split_at_checked(long) else { return Ok(None) };
    let length = match long {
        0 => u64::from(length & 0x7f),
        _ => extended.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    ensure!(length <= LARGEST, "a frame of {length} bytes");
    let Some((mask, rest)) = rest.split_at_checked(if masked { 4 } else { 0 }) else { return Ok(None) };
    let Some(payload) = rest.get(..length as usize) else { return Ok(None) };
    let mask = if masked { mask } else { &[0] };
    let payload: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    let used = bytes.len() - rest.len() + payload.len();
    Ok(Some((*kind, payload, used)))
}

/// A whole message or control frame; with a mask, that of a client.
pub fn frame(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![kind];
    match payload.len() {
        length @ 0..126 => frame.push(masked | length as u8),
        length @ 126..65_536 => {
            frame.push(masked | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(masked | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    match mask {
        Some(mask) => {
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
        None => frame.extend_from_slice(payload),
    }
    frame
}

fn read(connection: &mut Connection<TcpStream>, masked: bool) -> Result<(u8, Vec<u8>)> {
    let start = connection.bytes(2)?;
    ensure!((start[1] & 0x80 != 0) == masked, "mask bit of the wrong side");
    let length = match start[1] & 0x7f {
        126 => connection.bytes(2)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        127 => connection.bytes(8)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        length => usize::from(length),
    };
    let mask = if masked { connection.bytes(4)? } else { vec![0] };
    let payload = connection.bytes(length)?;
    Ok((start[0], payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_and_are_whole_or_not_there() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            for mask in [None, Some([1, 2, 3, 4])] {
                let bytes = [frame(TEXT, &payload, mask), b"next".to_vec()].concat();
                let whole = bytes.len() - 4;
                let read = decode(&bytes, mask.is_some()).unwrap();
                assert_eq!(read, Some((TEXT, payload.clone(), whole)), "{length}");
                for cut in [0, 1, 2, 3, whole / 2, whole - 1].into_iter().filter(|cut| *cut < whole) {
                    assert_eq!(decode(&bytes[..cut], mask.is_some()).unwrap(), None, "{cut} of {length}");
                }
                assert!(decode(&bytes, mask.is_none()).is_err());
            }
        }
        assert!(decode(&[BINARY, 127, 0, 0, 0, 0, 255, 0, 0, 0], false).is_err());
    }
}
