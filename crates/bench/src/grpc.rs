//! gRPC from both sides: an origin that answers every message with one as long, in calls and in streams, and the load
//! of streams (that of calls is h2load's).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::exchange::{Driver, Turn};

/// What is called once.
pub(crate) const METHOD: &str = "/bench.v1.Bench/Call";
/// What is called for a stream.
const STREAM: &str = "/bench.v1.Bench/Stream";
/// How long each message of a stream is with its prefix, so that nobody has to look for it.
const LENGTH: &str = "bench-length";
/// The window of a stream: no message waits for another piece of it.
const WINDOW: u32 = 1 << 20;

/// A message of so many bytes as gRPC sends it.
pub(crate) fn framed(length: u32) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(length);
    bytes.put_bytes(b'x', length as usize);
    bytes.freeze()
}

/// Serves on a thread of this process, on the core of the load, until the process ends. Messages of these lengths are
/// made once. Gives where it is, and the number of calls so far.
pub(crate) fn serve(lengths: &[u32]) -> Result<(SocketAddr, Arc<AtomicU64>)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let messages: Vec<Bytes> = lengths.iter().map(|length| framed(*length)).collect();
    let calls = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&calls);
    std::thread::Builder::new().name("grpc".into()).spawn(move || {
        let messages: Rc<[Bytes]> = messages.into();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(connection(stream, Rc::clone(&messages), Arc::clone(&counter)));
            }
        });
    })?;
    Ok((address, calls))
}

async fn connection(stream: tokio::net::TcpStream, messages: Rc<[Bytes]>, calls: Arc<AtomicU64>) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW << 4);
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let messages = Rc::clone(&messages);
        calls.fetch_add(1, Ordering::Relaxed);
        // A caller that leaves is no news here.
        tokio::task::spawn_local(async move { drop(answer(request, respond, &messages).await) });
    }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    messages: &[Bytes],
) -> Result<()> {
    let every = request.headers().get(LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let mut body = request.into_body();
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let message = |length: usize| -> Result<Bytes> {
        let made = messages.iter().find(|message| message.len() == length).cloned();
        made.map_or_else(|| Ok(framed(u32::try_from(length.saturating_sub(5))?)), Ok)
    };
    let mut got = 0;
    // A stream begins to answer at once, a call at its end.
    let mut open = match every {
        Some(_) => Some(respond.send_response(head, false)?),
        None => {
            while let Some(data) = body.data().await {
                let data = data?;
                got += data.len();
                body.flow_control().release_capacity(data.len())?;
            }
            let mut stream = respond.send_response(head, false)?;
            stream.send_data(message(got)?, false)?;
            finish(&mut stream)?;
            None
        }
    };
    let (Some(stream), Some(every)) = (open.as_mut(), every) else { return Ok(()) };
    while let Some(data) = body.data().await {
        let data = data?;
        got += data.len();
        body.flow_control().release_capacity(data.len())?;
        while got >= every.max(1) {
            got -= every.max(1);
            stream.send_data(message(every)?, false)?;
        }
    }
    finish(stream)
}

fn finish(stream: &mut h2::SendStream<Bytes>) -> Result<()> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}

/// Load of streams that stay open: each sends a message of `body` bytes, reads one as long, and sends the next.
pub(crate) fn streams(entry: SocketAddr, connections: u16, each: u16, body: u32) -> Result<Driver> {
    let message = framed(body);
    Driver::start(connections, each, move |turn| {
        let message = message.clone();
        async move {
            if open(entry, each, &message, &turn).await.is_err() {
                turn.broke(u64::from(each));
            }
        }
    })
}

async fn open(entry: SocketAddr, each: u16, message: &Bytes, turn: &Turn) -> Result<()> {
    let stream = tokio::net::TcpStream::connect(entry).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW << 4);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await?;
    // Its end is seen by the streams.
    tokio::task::spawn_local(async move { drop(connection.await) });
    for _ in 0..each {
        let (sender, message, turn) = (sender.clone(), message.clone(), turn.clone());
        tokio::task::spawn_local(async move {
            if talk(entry, sender, message, turn.clone()).await.is_err() {
                turn.broke(1);
            }
        });
    }
    Ok(())
}

async fn talk(
    entry: SocketAddr,
    sender: h2::client::SendRequest<Bytes>,
    message: Bytes,
    turn: Turn,
) -> Result<()> {
    let request = Request::builder()
        .method("POST")
        .uri(format!("http://{entry}{STREAM}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(LENGTH, message.len())
        .body(())?;
    let (response, mut asking) = sender.ready().await?.send_request(request, false)?;
    let (mut response, mut answers) = (Some(response), None);
    turn.repeat(async || {
        asking.send_data(message.clone(), false)?;
        if let Some(response) = response.take() {
            let response = response.await?;
            let status = response.headers().get("grpc-status");
            ensure!(response.status() == 200 && status.is_none(), "{}, {status:?}", response.status());
            answers = Some(response.into_body());
        }
        let answers = answers.as_mut().context("the stream has no answer")?;
        let mut left = message.len();
        while left > 0 {
            let data = answers.data().await.context("the stream has ended")??;
            answers.flow_control().release_capacity(data.len())?;
            left = left.checked_sub(data.len()).context("more than was asked for")?;
        }
        Ok(())
    })
    .await
}
