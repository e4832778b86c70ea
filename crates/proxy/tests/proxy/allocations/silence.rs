//! What a worker keeps for a connection that has been used once and is silent: bytes that it has asked the allocator for,
//! which a busy machine does not change. The kernel's memory, and what an allocator adds, are not in it.

use std::net::SocketAddr;
use std::sync::Arc;

use outrider_proxy::tls::{Bundle, Identity, client_config, server_config};
use outrider_xds::ResourceSet;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::mesh::with_secrets;
use super::super::support::{
    Authority, ENDPOINTS, GET, INBOUND, OK, OUTBOUND, TRUST_DOMAIN, assignment, pair, soon,
};
use super::{measured_with, runtime};

/// Connections before those that count, and with those, without and with TLS: they fill tables as these double.
const CONNECTIONS: [(usize, usize); 2] = [(112, 896), (28, 224)];

/// Which ends of a proxy speak TLS.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leg {
    Neither,
    /// The called one's proxy: callers do.
    Callers,
    /// The caller's proxy: endpoints do.
    Endpoints,
}

/// What is promised: protocol, which end, most bytes for each connection. Tables that double are in it, and so is what a
/// build without optimization has more of.
const MOST: [(&str, Leg, u64); 5] = [
    ("http", Leg::Neither, 4096),
    ("tcp", Leg::Neither, 2048),
    ("http", Leg::Callers, 5376),
    ("tcp", Leg::Callers, 4352),
    ("tcp", Leg::Endpoints, 4352),
];

#[test]
fn a_silent_connection_keeps_little() {
    // Both ends of everything are this process's.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    for (protocol, leg, most) in MOST {
        let (few, many) = CONNECTIONS[usize::from(leg != Leg::Neither)];
        let [before, after] = [few, many].map(|connections| peak(protocol, leg, connections));
        // One after the other was used, so the peaks differ by what silent ones keep.
        let each = (after - before) / (many - few) as u64;
        println!("{protocol}, TLS: {leg:?}: {each} bytes");
        assert!(each > 0, "what is kept is seen");
        assert!(each <= most, "{protocol}, TLS: {leg:?}: {each} bytes, more than {most}");
    }
}

/// The most that a worker had at a time while so many connections came, were used and stayed.
fn peak(protocol: &str, leg: Leg, connections: usize) -> u64 {
    let authority = Authority::new();
    let identity = |who: &str| {
        let (chain, key) = authority.issue(&format!("spiffe://{TRUST_DOMAIN}/ns/shop/svc/{who}"));
        Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    };
    let bundle = Bundle::from_pem(authority.root().as_bytes()).unwrap();
    let acceptor = (leg == Leg::Endpoints).then(|| server_config(&identity("api"), &bundle, &[]).unwrap());
    let origin = origin(protocol == "tcp", acceptor);
    let mtls = if leg == Leg::Neither { "off" } else { "required" };
    let documents = pair(protocol, mtls, origin.port(), "");
    let (set, listener): (ResourceSet, &str) = match leg {
        Leg::Callers => (with_secrets(&documents, "shop/api", &authority, "shop/api"), INBOUND),
        Leg::Neither | Leg::Endpoints => {
            let mut set = with_secrets(&documents, "shop/web", &authority, "shop/web");
            set.insert(assignment(ENDPOINTS, &[origin]));
            (set, OUTBOUND)
        }
    };
    let connector = (leg == Leg::Callers).then(|| {
        let api = [format!("spiffe://{TRUST_DOMAIN}/ns/shop/svc/api").into()];
        TlsConnector::from(client_config(&identity("web"), &bundle, &api, &[]).unwrap())
    });
    let load = move |proxy: SocketAddr, connections: usize| {
        runtime().block_on(async move {
            let mut held: Vec<Box<dyn Stream>> = Vec::new();
            for _ in 0..connections {
                let tcp = TcpStream::connect(proxy).await.unwrap();
                let mut stream: Box<dyn Stream> = match &connector {
                    Some(connector) => {
                        let name = ServerName::try_from("api").unwrap();
                        Box::new(soon("handshake", connector.connect(name, tcp)).await.unwrap())
                    }
                    None => Box::new(tcp),
                };
                stream.write_all(GET.as_bytes()).await.unwrap();
                let mut answer = [0; OK.len()];
                soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
                assert!(answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
                held.push(stream);
            }
        });
    };
    measured_with(&set, listener, connections, load).bytes_max
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Answers every request, or every first bytes of a stream; each connection stays.
fn origin(once: bool, settings: Option<Arc<ServerConfig>>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = settings.map(TlsAcceptor::from);
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream: Box<dyn Stream + Send> = match acceptor {
                        Some(acceptor) => Box::new(acceptor.accept(tcp).await.unwrap()),
                        None => Box::new(tcp),
                    };
                    answer(&mut *stream, once).await;
                });
            }
        });
    });
    address
}

async fn answer(stream: &mut (dyn Stream + Send), once: bool) {
    let mut block = [0; 1024];
    let mut answered = false;
    let mut got = Vec::new();
    while let Ok(n) = stream.read(&mut block).await
        && n > 0
    {
        got.extend_from_slice(&block[..n]);
        if got.ends_with(b"\r\n\r\n") && !(once && answered) {
            got.clear();
            answered = true;
            if stream.write_all(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
