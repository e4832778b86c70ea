//! The corpus of hostile messages through a running proxy: what arrives at the other side, byte for byte.

use std::future::Future;
use std::pin::pin;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::corpus::{self, Case, End};
use super::readers::{Kind, Reader};
use super::support::*;

/// Answers have no body and end their connection, so that every request comes on one of its own and what else is sent
/// behind it is seen.
const DONE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

async fn proxy() -> (TcpListener, Proxy) {
    let origin = Origin::bind().await;
    let proxy = client_proxy("http", &[origin.address()]).await;
    (origin.listener, proxy)
}

/// The host that the proxy gives a request that has none.
async fn default_host(proxy: &Proxy, listener: &TcpListener) -> String {
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut server = Peer::new(soon("accept", listener.accept()).await.unwrap().0);
    let head = server.head().await;
    server.send(DONE).await;
    drop(client.rest().await);
    header(&head, "host").expect("a host").to_owned()
}

/// Takes connections until `caller` is done, and then those that are still there: what came on each, answered when it
/// was a whole request.
async fn record(
    listener: &TcpListener,
    caller: impl Future<Output = Result<(), String>>,
) -> Result<Vec<Vec<u8>>, String> {
    let mut caller = pin!(caller);
    let mut connections = Vec::new();
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => connections.push(tokio::spawn(serve(Peer::new(accepted.unwrap().0)))),
            done = &mut caller => {
                done?;
                break;
            }
        }
    }
    // Whatever the proxy opened for this caller is in the queue by now.
    while let Some(tcp) = waiting(listener) {
        connections.push(tokio::spawn(serve(Peer::new(tcp))));
    }
    let mut records = Vec::new();
    for connection in connections {
        records.push(connection.await.unwrap());
    }
    Ok(records)
}

/// A connection that has been made already.
fn waiting(listener: &TcpListener) -> Option<tokio::net::TcpStream> {
    use std::os::fd::AsFd;
    let copy = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned().unwrap());
    match copy.accept() {
        Ok((tcp, _)) => {
            tcp.set_nonblocking(true).unwrap();
            Some(tokio::net::TcpStream::from_std(tcp).unwrap())
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            None
        }
    }
}

async fn serve(mut server: Peer) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut answered = false;
    loop {
        // An error is an end like any other: a request that is given up may end with a reset.
        let read = soon("a request or its end", server.tcp.read_buf(&mut bytes)).await.unwrap_or(0);
        if read == 0 {
            return bytes;
        }
        if !answered && !Reader::default().read(&bytes, Kind::Requests).ends.is_empty() {
            answered = true;
            server.send(DONE).await;
        }
    }
}

/// Sends the case in pieces of that many bytes, and checks the answers.
async fn call(proxy: &Proxy, case: &Case, piece: usize) -> Result<(), String> {
    let mut client = proxy.connect(OUTBOUND).await;
    // A proxy that has heard enough may close before it has read everything.
    let (mut reading, mut writing) = client.tcp.split();
    let mut got = Vec::new();
    let send = async {
        use tokio::io::AsyncWriteExt;
        for part in case.sent.chunks(piece) {
            if writing.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let receive = async {
        while answers(&got) < case.count && reading.read_buf(&mut got).await.unwrap_or(0) > 0 {}
        got
    };
    let ((), mut got) = soon("the answers", async { tokio::join!(send, receive) }).await;
    if answers(&got) < case.count {
        return Err(format!("{} answers: {}", answers(&got), got.escape_ascii()));
    }
    if matches!(case.end, End::Open | End::Waits) {
        client.finish().await;
    }
    // What is waited for in vain ends with a reset.
    let ended = soon("the end", client.tcp.read_to_end(&mut got)).await;
    if let Err(error) = ended
        && case.end != End::Waits
    {
        return Err(format!("{error} after {}", got.escape_ascii()));
    }
    if answers(&got) != case.count {
        return Err(format!("{} answers: {}", answers(&got), got.escape_ascii()));
    }
    let text = String::from_utf8_lossy(&got);
    let refusal = text.split_inclusive("\r\n\r\n").nth(case.count).unwrap_or_default();
    let expected = match &case.end {
        End::Refused(status, reason) => Some((status.to_string(), reason.clone())),
        _ => None,
    };
    let found = refusal
        .split(' ')
        .nth(1)
        .map(str::to_owned)
        .zip(header(refusal, "x-outrider-reason").map(str::to_owned));
    if found != expected || (expected.is_none() && !refusal.is_empty()) {
        return Err(format!("{expected:?} is not {refusal}"));
    }
    Ok(())
}

fn answers(got: &[u8]) -> usize {
    let heads = String::from_utf8_lossy(got);
    heads
        .split_inclusive("\r\n\r\n")
        .filter(|head| head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"))
        .count()
}

fn judge(case: &Case, records: &[Vec<u8>]) -> Result<(), String> {
    let came = records.concat();
    let show = || came.escape_ascii().to_string();
    let Some(partial) = came.strip_prefix(&*case.seen) else {
        return Err(format!("went upstream: {}\nnot: {}", show(), case.seen.escape_ascii()));
    };
    let partial_allowed = match &case.end {
        End::Waits => true,
        End::Refused(_, reason) => reason == "invalid_body",
        _ => false,
    };
    if !partial.is_empty() && !partial_allowed {
        return Err(format!("more went upstream: {}", show()));
    }
    for record in records {
        // Whoever reads it, it is one request at most.
        for (name, reader) in Reader::all() {
            let reading = reader.read(record, Kind::Requests);
            if reading.ends.len() > 1 || (reading.ends.len() == 1 && reading.ends[0] != record.len()) {
                return Err(format!("{name} reads {reading:?} of {}", record.escape_ascii()));
            }
        }
    }
    let whole = |record: &&Vec<u8>| !Reader::default().read(record, Kind::Requests).ends.is_empty();
    match records.iter().filter(whole).count() {
        count if count == case.count => Ok(()),
        count => Err(format!("{count} requests went upstream: {}", show())),
    }
}

/// Edge cases 1, 3, 5, 6, 9 and 10.
#[tokio::test]
async fn requests_arrive_as_the_corpus_says() {
    all_requests(|_| usize::MAX).await;
}

#[tokio::test]
async fn requests_that_trickle_in_arrive_as_the_corpus_says() {
    // Long ones would only take long.
    all_requests(|case| if case.sent.len() < 1000 { 3 } else { 10_000 }).await;
}

async fn all_requests(piece: impl Fn(&Case) -> usize) {
    let (listener, proxy) = proxy().await;
    let host = default_host(&proxy, &listener).await;
    let mut failures = Vec::new();
    for case in corpus::requests(&host).into_iter().flat_map(|(_, cases)| cases) {
        let outcome = record(&listener, call(&proxy, &case, piece(&case))).await;
        if let Err(what) = outcome.and_then(|records| judge(&case, &records)) {
            failures.push(format!("{} {}: {what}", case.place, case.name));
        }
    }
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

fn question(case: &Case) -> &'static str {
    if case.has("HEAD") {
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    } else if case.has("1.0") {
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n"
    } else if case.has("upgrade") {
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    } else {
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    }
}

/// The endpoint of one case: sends it to the first request, and whether its connection was used again. The next
/// request, wherever it comes, is answered with [`DONE`].
async fn endpoint(listener: &TcpListener, case: &Case) -> bool {
    let mut first = Peer::new(soon("accept", listener.accept()).await.unwrap().0);
    first.head().await;
    // The proxy may have had enough before the end.
    soon("send", async {
        use tokio::io::AsyncWriteExt;
        drop(first.tcp.write_all(&case.sent).await);
        if case.has("EOF") {
            drop(first.tcp.shutdown().await);
        }
    })
    .await;
    let mut more = Vec::new();
    loop {
        tokio::select! {
            biased;
            read = first.tcp.read_buf(&mut more) => {
                if read.unwrap_or(0) == 0 {
                    break;
                }
                if more.ends_with(b"\r\n\r\n") {
                    first.send(DONE).await;
                    return true;
                }
            }
            accepted = listener.accept() => {
                answer(Peer::new(accepted.unwrap().0)).await;
                return false;
            }
        }
    }
    let (tcp, _) = soon("accept", listener.accept()).await.unwrap();
    answer(Peer::new(tcp)).await;
    false
}

async fn answer(mut peer: Peer) {
    peer.head().await;
    peer.send(DONE).await;
}

/// Asks, and checks what is delivered, and that the next answer is the next one.
async fn ask(proxy: &Proxy, case: &Case) -> Result<(), String> {
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(question(case)).await;
    let mut got = Vec::new();
    let mut ended = None;
    let whole = |got: &[u8]| match &case.end {
        End::Open => got.len() >= case.seen.len(),
        _ => false,
    };
    while !whole(&got) {
        match soon(&case.name, client.tcp.read_buf(&mut got)).await {
            Ok(0) => {
                ended = Some(Ok(()));
                break;
            }
            Ok(_) => {}
            Err(error) => {
                ended = Some(Err(error));
                break;
            }
        }
        if matches!(case.end, End::Refused(..)) && refusal(&got, case).is_some() {
            break;
        }
    }
    let show = || got.escape_ascii().to_string();
    match (&case.end, &ended) {
        (End::Open, None) | (End::Closed, Some(Ok(()))) if got == case.seen => {}
        (End::Cut, Some(Err(_))) if case.seen.starts_with(&got) => {}
        // Nothing was delivered yet when it was found.
        (End::Cut, Some(Ok(()))) if got.is_empty() => {}
        (End::Refused(status, reason), _) => {
            let expected = (status.to_string(), reason.clone());
            if refusal(&got, case).as_ref() != Some(&expected) {
                return Err(format!("{expected:?} is not {}", show()));
            }
        }
        _ => {
            return Err(format!(
                "{ended:?} after {}\nnot {:?} after {}",
                show(),
                case.end,
                case.seen.escape_ascii()
            ));
        }
    }
    if ended.is_some() {
        client = proxy.connect(OUTBOUND).await;
    }
    client.send(NEXT).await;
    let head = client.head().await;
    if !head.starts_with("HTTP/1.1 200 OK\r\n")
        || header(&head, "content-length") != Some("0")
        || !client.buffer.is_empty()
    {
        return Err(format!("the next answer is {head}{}", client.buffer.escape_ascii()));
    }
    Ok(())
}

/// Status and reason of the proxy's own answer behind interim ones, once it is whole.
fn refusal(got: &[u8], case: &Case) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(got);
    let (mut rest, mut head) = (&*text, "");
    while let Some((this, behind)) = rest.split_once("\r\n\r\n") {
        (head, rest) = (this, behind);
        if !head.starts_with("HTTP/1.1 1") {
            break;
        }
    }
    let length = if case.has("HEAD") { 0 } else { header(head, "content-length")?.parse().ok()? };
    let reason = header(head, "x-outrider-reason")?.to_owned();
    (rest.len() >= length).then_some((head.split(' ').nth(1)?.to_owned(), reason))
}

/// Edge cases 7, 8 and 19.
#[tokio::test]
async fn responses_arrive_as_the_corpus_says() {
    let (listener, proxy) = proxy().await;
    let mut failures = Vec::new();
    for case in corpus::responses().into_iter().flat_map(|(_, cases)| cases) {
        // Who asks may give up, and then there is no next request.
        match tokio::try_join!(ask(&proxy, &case), async { Ok(endpoint(&listener, &case).await) }) {
            Ok(((), reused)) if reused == case.reused => {}
            Ok(((), reused)) => failures.push(format!("{} {}: reused: {reused}", case.place, case.name)),
            Err(what) => failures.push(format!("{} {}: {what}", case.place, case.name)),
        }
    }
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

/// Edge case 2.1.2 of the other half: once there is a tunnel, what came too early belongs to it, and is no request.
#[tokio::test]
async fn what_follows_a_switch_is_no_request() {
    let (listener, proxy) = proxy().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(format!("{UPGRADE}{NEXT}")).await;
    let mut server = Peer::new(soon("accept", listener.accept()).await.unwrap().0);
    server.head().await;
    server.send(SWITCHED).await;
    client.head().await;
    server.expect(NEXT).await;
    server.send("HTTP/1.1 404 Not HTTP any more").await;
    client.expect("HTTP/1.1 404 Not HTTP any more").await;
    assert!(waiting(&listener).is_none(), "a second connection");
}
