//! Faults of gRPC, made by an upstream that is wrong on purpose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use outrider_testkit::load::ids::Class;
use outrider_testkit::load::upstream::{Options, Upstream};
use outrider_testkit::load::{self, Mix, Plan};

use crate::{expect, plan, target, together};

const UNARY: Mix = Mix { grpc: 1, ..Mix::NONE };
const STREAM: Mix = Mix { grpc_stream: 1, ..Mix::NONE };

/// What happens to the call with this number; the others are answered by nobody and come after the end.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The end of the stream, and no status anywhere.
    NoStatus,
    /// Reset.
    Reset,
    /// A proxy's answer.
    Reason,
    /// A status that nobody has signed.
    Unsigned,
    /// The answer to something else.
    Other,
    /// The connection ends.
    Cut,
}

/// A server of which every call fails in this way. Its thread ends with the process of the test.
fn failing(fault: Fault) -> Result<(SocketAddr, Arc<AtomicU32>)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, respond))) = connection.accept().await {
                        counted.fetch_add(1, Ordering::Relaxed);
                        if matches!(fault, Fault::Cut) {
                            return;
                        }
                        if fail(fault, respond).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    Ok((address, calls))
}

fn fail(fault: Fault, mut respond: SendResponse<Bytes>) -> Result<()> {
    let head = || Response::builder().header("content-type", "application/grpc");
    match fault {
        Fault::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
        Fault::NoStatus => drop(respond.send_response(head().body(())?, true)?),
        Fault::Reason => {
            let head = head().header("grpc-status", "14").header("x-outrider-reason", "no_endpoints");
            respond.send_response(head.body(())?, true)?;
        }
        Fault::Unsigned => {
            respond.send_response(head().header("grpc-status", "14").body(())?, true)?;
        }
        Fault::Other | Fault::Cut => {
            let head = head().header("x-load-id", "0000000000000001-grpc-7");
            let mut stream = respond.send_response(head.body(())?, false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)?;
        }
    }
    Ok(())
}

#[test]
fn faults_of_calls_are_found_under_their_names() -> Result<()> {
    let cases = [
        (Fault::NoStatus, "incomplete"),
        (Fault::Reset, "incomplete"),
        (Fault::Reason, "no_endpoints"),
        (Fault::Unsigned, "grpc_status_14"),
        (Fault::Other, "wrong_body"),
    ];
    together(&cases, |(fault, name)| {
        let (address, _) = failing(*fault)?;
        let report = load::run(Plan { grpc: target(address), ..plan(UNARY, 20.0, 500, &[]) })?;
        let sent = report.class(Class::Grpc).sent;
        ensure!(sent > 5, "{report}");
        expect(&format!("{fault:?}"), &report, &[(*name, sent)])
    })
}

/// Each is lost with its connection, none is sent again.
#[test]
fn calls_on_a_connection_that_breaks_are_lost_once() -> Result<()> {
    let (address, calls) = failing(Fault::Cut)?;
    let report = load::run(Plan { grpc: target(address), ..plan(UNARY, 20.0, 500, &[]) })?;
    let sent = report.class(Class::Grpc).sent;
    ensure!(sent > 5 && report.class(Class::Grpc).incomplete == sent, "{report}");
    ensure!(u64::from(calls.load(Ordering::Relaxed)) <= sent, "sent again: {report}");
    Ok(())
}

#[test]
fn streams_are_followed_and_early_ends_are_found() -> Result<()> {
    let upstream = Upstream::start(Options::loopback())?;
    let grpc = target(upstream.grpc().context("no gRPC")?);
    let good = load::run(Plan { grpc, ..plan(STREAM, 10.0, 2500, &[&upstream]) })?;
    ensure!(good.is_clean() && good.class(Class::Stream).complete >= 2, "{good}");
    let (address, _) = failing(Fault::Reset)?;
    for (drain, name) in [(Duration::from_secs(600), "closed_early"), (Duration::ZERO, "drained")] {
        let grpc = target(address);
        let report = load::run(Plan { grpc, drain, ..plan(STREAM, 10.0, 500, &[]) })?;
        let links = report.links.values().next().copied().unwrap_or_default();
        let ended = if name == "drained" { links.drained } else { links.closed_early };
        ensure!(ended > 0 && (report.losses > 0) == (name == "closed_early"), "{report}");
    }
    Ok(())
}
