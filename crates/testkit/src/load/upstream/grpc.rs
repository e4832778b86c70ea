//! The upstream's gRPC: unary calls that are checked and written down, and streams of messages.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::super::grpc::{BYTES, CALL, GRPC_STATUS, Messages, WATCH, framed};
use super::super::ids::{self, Class, Digest, Id};
use super::super::requests::{BODY, ID, VERDICT};
use super::{LARGEST_BODY, PUSH, Server};

/// Codes of gRPC.
const OK: &str = "0";
const INVALID_ARGUMENT: &str = "3";
const UNIMPLEMENTED: &str = "12";

/// Takes connections.
pub(super) async fn accept(listener: std::net::TcpListener, server: Arc<Server>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(server.clone(), stream))),
            // Mostly no descriptors left; that passes when connections end.
            Err(_) => tokio::time::sleep(super::FULL).await,
        }
    }
}

/// What breaks a connection is for its client to notice and count.
async fn serve(server: Arc<Server>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            let served = match request.uri().path() {
                CALL => call(&server, request, respond).await,
                WATCH => watch(respond).await,
                _ => answer(respond, Response::builder(), None, UNIMPLEMENTED),
            };
            drop(served);
        });
    }
}

fn answer(
    mut respond: SendResponse<Bytes>,
    head: http::response::Builder,
    message: Option<&[u8]>,
    status: &'static str,
) -> Result<(), h2::Error> {
    let head = head.header("content-type", "application/grpc");
    let Some(message) = message else {
        let Ok(head) = head.header(GRPC_STATUS, status).body(()) else { return Ok(()) };
        return respond.send_response(head, true).map(drop);
    };
    let Ok(head) = head.body(()) else { return Ok(()) };
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(framed(message), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, http::HeaderValue::from_static(status));
    stream.send_trailers(trailers)
}

async fn call(
    server: &Server,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let id = text(ID).and_then(|id| id.parse::<Id>().ok()).filter(|id| id.class == Class::Grpc);
    let Some(id) = id else { return answer(respond, Response::builder(), None, INVALID_ARGUMENT) };
    server.records().see(id);
    let mut messages = Messages::new(body);
    let Ok(message) = messages.next().await else { return Ok(()) };
    if !matches!(messages.next().await, Ok(None)) {
        return Ok(());
    }
    let digest = message.as_deref().map(Digest::of).unwrap_or_default().to_string();
    server.take_time().await;
    let signed = Response::builder().header(ID, id.to_string());
    if text(BODY) != Some(&digest) {
        server.records().wrong(id);
        let verdict = format!("{digest} instead of {}", text(BODY).unwrap_or("nothing"));
        return answer(respond, signed.header(VERDICT, verdict), None, INVALID_ARGUMENT);
    }
    let length = text(BYTES).and_then(|number| number.parse().ok()).unwrap_or(0).min(LARGEST_BODY);
    let body = ids::body(id, length);
    answer(respond, signed.header(BODY, Digest::of(&body).to_string()), Some(&body), OK)
}

async fn watch(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let Ok(head) = Response::builder().header("content-type", "application/grpc").body(()) else {
        return Ok(());
    };
    let mut stream = respond.send_response(head, false)?;
    let mut beat = tokio::time::interval(PUSH);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0_u64.. {
        tokio::select! {
            _ = beat.tick() => stream.send_data(framed(format!("push {number}").as_bytes()), false)?,
            _ = std::future::poll_fn(|cx| stream.poll_reset(cx)) => break,
        }
    }
    Ok(())
}
