//! Just enough WebSocket for an echo: unfragmented messages, both ends.
//!
//! The handshake uses the one key of RFC 6455's example, so that no SHA-1 is needed.

use std::net::TcpStream;

use anyhow::{Result, bail, ensure};

use crate::http::{Connection, Head};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// What the server says first.
const GREETING: &[u8] = b"hello";
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// The server's side: answers the handshake, echoes every message, answers the close.
pub(crate) fn accept(connection: &mut Connection<TcpStream>, head: &Head) -> Result<()> {
    let upgrade = head.get("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    if !upgrade || head.get("sec-websocket-key") != Some(KEY) {
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
        bail!("not the handshake: {:?}", head.fields);
    }
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
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
    let request = format!(
        "GET /websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    connection.send(request.as_bytes())?;
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

fn frame(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
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
