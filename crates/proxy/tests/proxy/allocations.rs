//! What a warm worker asks of the allocator for a request: nothing, from the first byte read to the last one written.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use allocation_counter::AllocationInfo;
use bytes::Bytes;
use http::{Request, Response};
use outrider_handover::Pressure;
use outrider_proxy::assemble::{Arrival, Assembler};
use outrider_proxy::config::Snapshot;
use outrider_proxy::log::Log;
use outrider_proxy::worker::{self, Command, Start};
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;
use tokio::sync::{Notify, mpsc, oneshot};

use super::support::{ENDPOINTS, GET, INBOUND, OK, OUTBOUND, Sockets, assignment, compiled, localised};

mod silence;

/// Requests before what counts, and those that count.
const REQUESTS: (usize, usize) = (300, 2300);
/// Requests of HTTP/2 under way at once.
const AT_ONCE: usize = 16;

/// `shop/web` calls `shop/api`, whose application is at this port.
fn intent(protocol: &str, port: u16) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: off}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{role: client, calls: [api]}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: api, namespace: shop}}\n\
         spec: {{role: server, ports: [{{name: main, port: 80, targetPort: {port}, protocol: {protocol}}}]}}\n"
    )
}

/// What looks at the cookie of a request: a route, or a policy about the paths that it may ask for.
const BY_COOKIE: [&str; 2] = [
    "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: api, group: ''}]
  rules:
    - matches: [{headers: [{name: cookie, value: 'a=1; b=2'}]}]
      backendRefs: [{name: api, port: 80}]
",
    "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: cookies, namespace: shop}
spec:
  targetRef: {kind: Service, name: api}
  action: deny
  rules: [{to: [{headers: [{name: cookie, value: 'a=1'}]}, {headers: [{name: cookie, value: 'b=2'}]}]}]
",
];

fn snapshot(set: &ResourceSet, sockets: &Sockets) -> Arc<Snapshot> {
    let mut assembler = Assembler::default();
    for (name, socket) in sockets {
        assembler.add_sockets(name, socket.local_addr().unwrap());
    }
    let kinds =
        [type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET, type_url::LISTENER, type_url::ROUTE];
    for kind in kinds {
        let arrivals = set.of_type(kind).map(|resource| Arrival {
            name: &resource.name,
            version: &resource.version,
            body: &resource.body,
        });
        let ingested = assembler.ingest(&kind.into(), arrivals, &[]);
        assert!(ingested.refused.is_empty(), "{:?}", ingested.refused);
    }
    assembler.assemble().unwrap()
}

/// Allocations of a worker's thread while `load` asks the listener of `shop/api` so many times: at its caller's proxy.
fn allocations(
    protocol: &str,
    origin: SocketAddr,
    requests: usize,
    load: impl FnOnce(SocketAddr, usize) + Send + 'static,
) -> u64 {
    let documents = intent(protocol, origin.port());
    measured((&documents, "shop/web", OUTBOUND), origin, requests, load).count_total
}

/// What a worker's thread asks for while `load` asks a listener of a service's proxy so many times.
fn measured(
    (documents, service, listener): (&str, &str, &str),
    origin: SocketAddr,
    requests: usize,
    load: impl FnOnce(SocketAddr, usize) + Send + 'static,
) -> AllocationInfo {
    let mut set = compiled(documents, service);
    set.insert(assignment(ENDPOINTS, &[origin]));
    measured_with(&set, listener, requests, load)
}

/// The same of a proxy with these resources.
fn measured_with(
    set: &ResourceSet,
    listener: &str,
    requests: usize,
    load: impl FnOnce(SocketAddr, usize) + Send + 'static,
) -> AllocationInfo {
    let mut sockets = Sockets::new();
    let set = localised(set, &mut sockets);
    let snapshot = snapshot(&set, &sockets);
    let (name, socket) = sockets.iter().find(|(name, _)| *name == listener).unwrap();
    let (name, socket) = (name.as_str().into(), socket.try_clone().unwrap());
    let (commands, receiver) = mpsc::unbounded_channel();
    let caller = thread::spawn(move || {
        let address = socket.local_addr().unwrap();
        let (done, applied) = oneshot::channel();
        commands.send(Command::Apply(snapshot, done)).ok().unwrap();
        commands.send(Command::Sockets(name, vec![socket])).ok().unwrap();
        applied.blocking_recv().unwrap();
        load(address, requests);
    });
    let start = Start {
        log: Log::start().unwrap(),
        share: 1000,
        accepting: true,
        pressure: Pressure::None,
        nudge: Arc::<Notify>::default(),
    };
    // Of this thread only, and until nobody has a command any more.
    let counted = allocation_counter::measure(|| worker::run(receiver, start).unwrap());
    caller.join().unwrap();
    counted
}

/// A timer or a table may grow now and then; whatever is done for each request would show two thousand times.
fn assert_none(protocol: &str, few: u64, many: u64) {
    assert!(many <= few + 50, "{protocol}: {few} and {many}");
}

#[test]
fn a_warm_worker_allocates_nothing_for_a_request_of_http1() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = origin.local_addr().unwrap();
    thread::spawn(move || {
        for stream in origin.incoming() {
            thread::spawn(move || answer_for_ever(stream.unwrap()));
        }
    });
    let [few, many] = [REQUESTS.0, REQUESTS.1].map(|requests| {
        allocations("http", address, requests, |proxy, requests| {
            let mut stream = TcpStream::connect(proxy).unwrap();
            stream.set_nodelay(true).unwrap();
            for _ in 0..requests {
                stream.write_all(GET.as_bytes()).unwrap();
                read_until(&mut stream, "ok");
            }
        })
    });
    assert!(few > 0, "allocations are seen");
    assert_none("http", few, many);
}

fn read_until(stream: &mut TcpStream, end: &str) -> bool {
    let mut got = Vec::new();
    let mut block = [0; 1024];
    while !got.ends_with(end.as_bytes()) {
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return false,
            Ok(n) => got.extend_from_slice(&block[..n]),
        }
    }
    true
}

fn answer_for_ever(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    while read_until(&mut stream, "\r\n\r\n") && stream.write_all(OK.as_bytes()).is_ok() {}
}

#[test]
fn a_warm_worker_allocates_nothing_for_a_request_of_http2() {
    let address = origin_of_http2();
    let [few, many] = [REQUESTS.0, REQUESTS.1].map(|requests| {
        allocations("http2", address, requests, |proxy, requests| {
            runtime().block_on(ask_http2(proxy, requests, &[]));
        })
    });
    assert!(few > 0, "allocations are seen");
    assert_none("http2", few, many);
}

/// Browsers send the cookie in pieces, which are one field to routes and rules.
#[test]
fn a_cookie_in_pieces_is_put_together_without_an_allocation() {
    let address = origin_of_http2();
    let proxies = [("shop/web", OUTBOUND), ("shop/api", INBOUND)];
    for (about, (service, listener)) in BY_COOKIE.into_iter().zip(proxies) {
        let documents = intent("http2", address.port()) + about;
        let [few, many] = [REQUESTS.0, REQUESTS.1].map(|requests| {
            measured((&documents, service, listener), address, requests, |proxy, requests| {
                runtime().block_on(ask_http2(proxy, requests, &["a=1", "b=2"]));
            })
            .count_total
        });
        assert_none(service, few, many);
    }
}

/// N26: a caller that sends heads as large as they may be, in the longest codes, and whose requests stay open.
#[test]
fn heads_of_open_requests_take_what_is_in_them() {
    const STREAMS: usize = 100;
    const VALUE: usize = 60_000;
    let address = origin_of_http2();
    let documents = intent("http2", address.port());
    let taken = measured((&documents, "shop/web", OUTBOUND), address, STREAMS, |proxy, streams| {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        send_frame(&mut stream, (4, 0), 0, &[]);
        // POST, http, `/`, `:authority: api`, and a value of so many times 0xf9, whose code has 28 bits.
        let coded = [0xff, 0xff, 0xff, 0xef, 0xff, 0xff, 0xfe].repeat(VALUE / 2);
        let mut block = b"\x83\x86\x84\x01\x03api\x00\x01x\xff".to_vec();
        let mut length = coded.len() - 127;
        while length >= 128 {
            block.push(length as u8 | 0x80);
            length >>= 7;
        }
        block.push(length as u8);
        block.extend_from_slice(&coded);
        for n in 0..streams {
            let id = 2 * n as u32 + 1;
            let last = block.chunks(16_000).len() - 1;
            for (at, piece) in block.chunks(16_000).enumerate() {
                send_frame(
                    &mut stream,
                    (if at == 0 { 1 } else { 9 }, if at == last { 4 } else { 0 }),
                    id,
                    piece,
                );
            }
            // The response begins, and the request stays open.
            while next_frame(&mut stream) != (1, id) {}
        }
    });
    // All of what is in them, a block of 210,000 bytes that comes, and what a worker has anyway.
    let most = STREAMS * VALUE + (2 << 20);
    assert!(taken.bytes_max >= (STREAMS * VALUE) as u64, "{taken:?}");
    assert!(taken.bytes_max <= most as u64, "{taken:?}");
}

fn send_frame(stream: &mut TcpStream, (kind, flags): (u8, u8), id: u32, payload: &[u8]) {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes).unwrap();
}

/// Kind and stream of the frame that comes next.
fn next_frame(stream: &mut TcpStream) -> (u8, u32) {
    let mut header = [0; 9];
    stream.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    stream.read_exact(&mut vec![0; length as usize]).unwrap();
    (header[3], u32::from_be_bytes([header[5], header[6], header[7], header[8]]))
}

fn origin_of_http2() -> SocketAddr {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    origin.set_nonblocking(true).unwrap();
    let address = origin.local_addr().unwrap();
    thread::spawn(move || runtime().block_on(serve_http2(origin)));
    address
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn serve_http2(origin: TcpListener) {
    let origin = tokio::net::TcpListener::from_std(origin).unwrap();
    loop {
        let (stream, _) = origin.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            // The response to a POST does not end, nor is more of its body wanted.
            let mut open = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let response = Response::builder().header("server", "test").body(()).unwrap();
                let mut body = respond.send_response(response, false).unwrap();
                if request.method() == "POST" {
                    open.push((request, body));
                } else {
                    body.send_data(Bytes::from_static(b"ok"), true).unwrap();
                }
            }
        });
    }
}

async fn ask_http2(proxy: SocketAddr, requests: usize, cookie: &[&str]) {
    let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for _ in 0..requests.div_ceil(AT_ONCE) {
        let mut answers = Vec::new();
        for _ in 0..AT_ONCE {
            client = client.ready().await.unwrap();
            let request = Request::builder().uri("http://api/items");
            let request = cookie.iter().fold(request, |request, piece| request.header("cookie", *piece));
            answers.push(client.send_request(request.body(()).unwrap(), true).unwrap().0);
        }
        for answer in answers {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            while let Some(piece) = body.data().await {
                let piece = piece.unwrap();
                body.flow_control().release_capacity(piece.len()).unwrap();
            }
        }
    }
}
