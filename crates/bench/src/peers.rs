//! The other proxies, configured for plain forwarding: nothing beyond what the path under test needs.
//!
//! Data in: where to listen, where to forward, which certificates. Data out: a command to start. Holds: one
//! worker each, keep-alive on both sides, no access log; one frontend and one group of endpoints for each service, as
//! the native proxy has. Does not: say who can do what (that is the plan).

mod envoy;
mod nginx;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use envoy::envoy;
pub(crate) use nginx::{nginx, origin};

/// A path of bytes under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    /// HTTP/1.1 through one proxy.
    Http,
    /// HTTP/1.1 through two proxies with mutual TLS 1.3 between them, as every `…Mtls`.
    HttpMtls,
    /// HTTP/2 with prior knowledge through one proxy.
    Http2,
    Http2Mtls,
    /// Unary calls of gRPC.
    Grpc,
    GrpcMtls,
    /// Streams of gRPC that stay open, a message each way at a time.
    GrpcStream,
    GrpcStreamMtls,
    /// Questions and answers on TCP connections that stay open.
    Tcp,
    TcpMtls,
    /// One connection with as many bytes as go through.
    TcpBulk,
    TcpBulkMtls,
    /// HTTP/1.1 through two proxies, at half of what the slowest of all pairs can carry.
    HalfMtls,
    /// The same at the pace of a published benchmark of Istio's: 1,000 requests a second, 1 KiB each.
    IstioMtls,
    /// The same at the other end of what is published: 250 requests a second.
    IstioMtlsLow,
}

/// How fast requests are sent, where that is not as fast as answers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paced {
    /// Half of what the slowest can carry.
    Half,
    /// So many a second.
    Rate(u16),
}

/// What a proxy is told to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http,
    Http2,
    Grpc,
    Tcp,
}

impl Speaks {
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl Route {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 15] = [
        Self::Http,
        Self::HttpMtls,
        Self::Http2,
        Self::Http2Mtls,
        Self::Grpc,
        Self::GrpcMtls,
        Self::GrpcStream,
        Self::GrpcStreamMtls,
        Self::Tcp,
        Self::TcpMtls,
        Self::TcpBulk,
        Self::TcpBulkMtls,
        Self::HalfMtls,
        Self::IstioMtls,
        Self::IstioMtlsLow,
    ];

    pub(crate) fn is_pair(self) -> bool {
        self.name().ends_with("-mtls")
    }

    pub(crate) fn speaks(self) -> Speaks {
        match self {
            Self::Http | Self::HttpMtls | Self::HalfMtls | Self::IstioMtls | Self::IstioMtlsLow => {
                Speaks::Http
            }
            Self::Http2 | Self::Http2Mtls => Speaks::Http2,
            Self::Grpc | Self::GrpcMtls | Self::GrpcStream | Self::GrpcStreamMtls => Speaks::Grpc,
            Self::Tcp | Self::TcpMtls | Self::TcpBulk | Self::TcpBulkMtls => Speaks::Tcp,
        }
    }

    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::TcpBulk | Self::TcpBulkMtls)
    }

    /// The pace of the load, if it has one.
    pub(crate) fn paced(self) -> Option<Paced> {
        match self {
            Self::HalfMtls => Some(Paced::Half),
            Self::IstioMtls => Some(Paced::Rate(1000)),
            Self::IstioMtlsLow => Some(Paced::Rate(250)),
            _ => None,
        }
    }

    /// Whether the load is made by this program, on connections that stay open between rounds.
    pub(crate) fn own_load(self) -> bool {
        matches!(self, Self::GrpcStream | Self::GrpcStreamMtls | Self::Tcp | Self::TcpMtls)
    }

    /// As an option names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http1",
            Self::HttpMtls => "http1-mtls",
            Self::Http2 => "http2",
            Self::Http2Mtls => "http2-mtls",
            Self::Grpc => "grpc",
            Self::GrpcMtls => "grpc-mtls",
            Self::GrpcStream => "grpc-stream",
            Self::GrpcStreamMtls => "grpc-stream-mtls",
            Self::Tcp => "tcp",
            Self::TcpMtls => "tcp-mtls",
            Self::TcpBulk => "tcp-bulk",
            Self::TcpBulkMtls => "tcp-bulk-mtls",
            Self::HalfMtls => "half-mtls",
            Self::IstioMtls => "istio-mtls",
            Self::IstioMtlsLow => "istio-250-mtls",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1",
            Self::HttpMtls => "HTTP/1.1, mTLS pair",
            Self::Http2 => "HTTP/2",
            Self::Http2Mtls => "HTTP/2, mTLS pair",
            Self::Grpc => "gRPC unary",
            Self::GrpcMtls => "gRPC unary, mTLS pair",
            Self::GrpcStream => "gRPC streams",
            Self::GrpcStreamMtls => "gRPC streams, mTLS pair",
            Self::Tcp => "TCP exchanges",
            Self::TcpMtls => "TCP exchanges, mTLS pair",
            Self::TcpBulk => "TCP bulk",
            Self::TcpBulkMtls => "TCP bulk, mTLS pair",
            Self::HalfMtls => "HTTP/1.1 at half load, mTLS pair",
            Self::IstioMtls => "HTTP/1.1 at 1,000 a second, mTLS pair",
            Self::IstioMtlsLow => "HTTP/1.1 at 250 a second, mTLS pair",
        }
    }

    /// What its cost is counted in.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::TcpBulk | Self::TcpBulkMtls => "ms/GiB",
            Self::GrpcStream | Self::GrpcStreamMtls => "µs/message",
            Self::Tcp | Self::TcpMtls => "µs/exchange",
            _ => "µs/request",
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proxy {
    Outrider,
    Envoy,
    Haproxy,
    Nginx,
}

impl Proxy {
    pub(crate) const ALL: [Self; 4] = [Self::Outrider, Self::Envoy, Self::Haproxy, Self::Nginx];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Outrider => "outrider",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// As it is written in a text.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Outrider => "ours",
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Which end of the mTLS leg a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Plaintext in, plaintext out: no leg.
    Plain,
    /// Plaintext in, mTLS out.
    Client,
    /// mTLS in, plaintext out.
    Server,
}

/// Services that are called beside the one that is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// How many, at most 60,000.
    pub(crate) services: usize,
    /// Endpoints of each, at most 250.
    pub(crate) endpoints: usize,
}

/// One proxy to start.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) forward: SocketAddr,
    pub(crate) side: Side,
    pub(crate) speaks: Speaks,
    pub(crate) others: Others,
    /// Most connections of callers that are going to be open, for those that must be told.
    pub(crate) connections: usize,
}

/// One service of a job.
struct Service {
    listen: SocketAddr,
    endpoints: Vec<SocketAddr>,
}

impl Job {
    fn pem(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Base name of this side's certificate files.
    fn who(&self) -> &'static str {
        if self.side == Side::Server { "server" } else { "client" }
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let (stem, end) = name.rsplit_once('.').unwrap_or((name, "txt"));
        let path = self.dir.join(format!("{stem}-{}.{end}", self.listen.port()));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// The one that is measured, and the others.
    fn services(&self) -> Vec<Service> {
        let mut all = vec![Service { listen: self.listen, endpoints: vec![self.forward] }];
        all.extend((0..self.others.services).map(|number| Service {
            listen: listen_of_other(number),
            endpoints: (0..self.others.endpoints).map(|at| endpoint_of_other(number, at)).collect(),
        }));
        all
    }
}

/// Where an application would call this one of the other services: loopback that neither the system nor an agent uses.
pub(crate) fn listen_of_other(number: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 200, octet(number / 250), octet(number % 250 + 1))), 8080)
}

/// An endpoint of one of the other services, which nobody ever calls.
pub(crate) fn endpoint_of_other(number: usize, at: usize) -> SocketAddr {
    let address = Ipv4Addr::new(10, octet(number / 250), octet(number % 250 + 1), octet(at + 1));
    SocketAddr::new(IpAddr::V4(address), 8080)
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn strings(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|s| (*s).to_owned()).collect()
}

/// HAProxy.
pub(crate) fn haproxy(job: &Job) -> Result<Vec<String>> {
    let bundle = job.file("haproxy.pem", &{
        let mut pem = fs::read_to_string(job.pem(&format!("{}.pem", job.who())))?;
        pem.push_str(&fs::read_to_string(job.pem(&format!("{}.key", job.who())))?);
        pem
    })?;
    let bundle = bundle.display();
    let ca = job.pem("ca.pem");
    let (plain, alpn) = if job.speaks.is_http2() { (" proto h2", " alpn h2") } else { ("", "") };
    let (bind, server) = match job.side {
        Side::Plain => (plain.to_owned(), plain.to_owned()),
        Side::Client => (
            plain.to_owned(),
            format!(
                " ssl crt {bundle} ca-file {ca} verify required verifyhost server ssl-min-ver TLSv1.3{alpn}"
            ),
        ),
        Side::Server => (
            format!(" ssl crt {bundle} ca-file {ca} verify required ssl-min-ver TLSv1.3{alpn}"),
            plain.to_owned(),
        ),
    };
    let mode = if job.speaks == Speaks::Tcp { "tcp" } else { "http\n  http-reuse always" };
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn {}\ndefaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 300s\n  \
         timeout server 300s\n",
        job.connections + 500,
    );
    for (number, service) in job.services().iter().enumerate() {
        text.push_str(&format!("listen l{number}\n  bind {}{bind}\n", service.listen));
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            text.push_str(&format!("  server s{at} {endpoint}{server}\n"));
        }
    }
    let path = job.file("haproxy.cfg", &text)?;
    Ok(strings(&["haproxy", "-db", "-f", &path.display().to_string()]))
}

/// The command for one of the peers, or of ours.
pub(crate) fn command(
    proxy: Proxy,
    programs: &crate::plan::Programs,
    arguments: &crate::Arguments,
    job: &Job,
    identity: &crate::native::Identity,
) -> Result<Vec<String>> {
    match (proxy, &arguments.envoy) {
        (Proxy::Haproxy, _) => haproxy(job),
        (Proxy::Nginx, _) => nginx(job, programs.nginx_stream()),
        (Proxy::Envoy, Some(binary)) => envoy(binary, job),
        (Proxy::Envoy, None) => anyhow::bail!("no Envoy was named"),
        (Proxy::Outrider, _) => crate::native::command(arguments.proxy()?, job, identity),
    }
}

/// The first line of what a program says of its version; empty if it says nothing.
pub(crate) fn version(program: &Path, option: &str) -> String {
    let Ok(output) = std::process::Command::new(program).arg(option).output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
