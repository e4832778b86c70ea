//! A client of the control plane's HTTP API, over a Unix socket or TCP.
//!
//! Holds: one connection per call, with a limit on time and on the size of the answer; every failure says
//! which address was meant and what to do. Does not: retry (commands that wait decide that themselves).

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use outrider_api::http::{ChangeResponse, ErrorBody};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::exit::CliError;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for an answer, beside what the call itself asks the server to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes: a fleet's worth of proxies as JSON stays far below.
const BODY_LIMIT: usize = 256 << 20;
/// Longest line of an answer that has no end, in bytes.
const LINE_LIMIT: usize = 1 << 20;
/// Longest path of a Unix socket the kernel takes, in bytes.
pub(crate) const SOCKET_PATH_LIMIT: usize = 107;

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port` for plain HTTP.
    Tcp(String),
}

/// Why an address is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// Neither form.
    #[error("`{0}` is not an address of a control plane: write unix:PATH or http://HOST:PORT")]
    Form(String),
    /// TLS is not spoken.
    #[error(
        "`{0}`: https is not supported; reach a remote control plane through its Unix socket or a tunnel to its loopback port"
    )]
    Https(String),
    /// A secret over an open wire.
    #[error(
        "the admin token is not sent to {0}: http is not encrypted, and that is not a loopback address; use a tunnel, like \
         `ssh -L 7600:127.0.0.1:7600 HOST`, and http://127.0.0.1:7600"
    )]
    Exposed(String),
    /// Not a token.
    #[error(
        "the token given by --token or OUTRIDER_TOKEN is not one: it holds blanks or characters other than ASCII"
    )]
    Token,
    /// Too long for the kernel.
    #[error(
        "the socket path {0} is longer than {SOCKET_PATH_LIMIT} bytes, which the kernel refuses; use a shorter state folder"
    )]
    TooLong(PathBuf),
}

impl Target {
    /// Reads `unix:PATH`, an absolute path, or `http://HOST:PORT`.
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
            if path.is_empty() {
                return Err(TargetError::Form(text.to_owned()));
            }
            if path.len() > SOCKET_PATH_LIMIT {
                return Err(TargetError::TooLong(path.into()));
            }
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with("https://") {
            return Err(TargetError::Https(text.to_owned()));
        }
        let authority = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match authority {
            Some(authority)
                if authority.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
                }) =>
            {
                Ok(Self::Tcp(authority.to_owned()))
            }
            _ => Err(TargetError::Form(text.to_owned())),
        }
    }

    /// The token to send to this target: `text` without blanks around it. An empty one is none.
    pub(crate) fn token(&self, text: Option<&str>) -> Result<Option<String>, TargetError> {
        let Some(token) = text.map(str::trim).filter(|token| !token.is_empty()) else { return Ok(None) };
        if !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(TargetError::Token);
        }
        match self {
            Self::Tcp(authority) if !is_loopback(authority) => Err(TargetError::Exposed(self.to_string())),
            _ => Ok(Some(token.to_owned())),
        }
    }

    /// The socket's target.
    pub(crate) fn unix(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

/// Whether `HOST:PORT` cannot leave this machine. Names other than `localhost` could.
fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection.
    #[error("cannot reach the control plane at {target}: {cause}")]
    Connect { target: Target, cause: String, help: String },
    /// The connection ended, or took too long, before the answer was complete.
    #[error("the control plane at {target} did not answer {path}: {cause}")]
    Broken { target: Target, path: String, cause: String },
    /// It answered with an error.
    #[error("{}", body.message)]
    Refused { status: StatusCode, body: ErrorBody },
    /// It answered with something else than this version understands.
    #[error("the answer of {target} to {path} is not what this version of outrider expects: {cause}")]
    Unexpected { target: Target, path: String, cause: String },
}

impl CallError {
    /// Whether nobody was there to answer.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }

    /// Whether the control plane waited in vain for an agent.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::GATEWAY_TIMEOUT)
    }

    /// Whether the object asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// What to do about it.
    pub(crate) fn help(&self) -> Option<&str> {
        match self {
            Self::Connect { help, .. } => Some(help),
            Self::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => Some(
                "give the admin token with --token or OUTRIDER_TOKEN; the server keeps it in STATE/server/admin.token",
            ),
            Self::Refused { body, .. } => body.help.as_deref(),
            Self::Unexpected { .. } => Some("compare `outrider version` here with the server's"),
            Self::Broken { .. } => None,
        }
    }
}

/// The client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    target: Target,
    token: Option<String>,
}

impl Client {
    /// A client of `target`; `token` is sent as a bearer token (TCP needs one, the Unix socket does not).
    pub(crate) fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token }
    }

    /// Whether the control plane runs on this host for sure.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.target, Target::Unix(_))
    }

    /// `GET`, answered within `ANSWER_LIMIT` plus `server_wait`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        server_wait: Duration,
    ) -> Result<T, CallError> {
        let (status, body) = self.send(Method::GET, path, Bytes::new(), server_wait).await?;
        self.read(path, status, &body)
    }

    /// `DELETE`.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let (status, body) = self.send(Method::DELETE, path, Bytes::new(), Duration::ZERO).await?;
        self.read(path, status, &body)
    }

    /// `POST` of a JSON body.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CallError> {
        let (status, body) = self.post_raw(path, body).await?;
        self.read(path, status, &body)
    }

    /// `POST` to apply or delete: 422 is an answer too, with diagnostics instead of changes.
    pub(crate) async fn post_change<B: Serialize>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<(bool, ChangeResponse), CallError> {
        let (status, body) = self.post_raw(path, body).await?;
        if status == StatusCode::UNPROCESSABLE_ENTITY
            && let Ok(refused) = serde_json::from_slice::<ChangeResponse>(&body)
        {
            return Ok((false, refused));
        }
        Ok((true, self.read(path, status, &body)?))
    }

    /// `GET` of lines that come as long as both sides are there. Gives each to `each`, which may end it by an error;
    /// returns when the server ended it.
    pub(crate) async fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        let stream = self.open().await?;
        let broken = |cause: &dyn std::fmt::Display| self.broken(path, cause);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let connection = tokio::spawn(connection);
        let answer = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request)).await;
        let response = answer.map_err(|_| self.late(path, ANSWER_LIMIT))?.map_err(|e| broken(&e))?;
        let status = response.status();
        if !status.is_success() {
            let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
            let body = body.map_err(|e| broken(&e))?.to_bytes();
            return Err(self.read::<serde_json::Value>(path, status, &body).err().map_or_else(
                || CliError::Failed(format!("{} answered {path} with status {status}", self.target)),
                CliError::from,
            ));
        }
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| broken(&e))?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                each(String::from_utf8_lossy(&line).trim_end())?;
            }
            if rest.len() > LINE_LIMIT {
                return Err(self.unexpected(path, &"a line without an end").into());
            }
        }
        connection.abort();
        Ok(())
    }

    async fn post_raw<B: Serialize>(&self, path: &str, body: &B) -> Result<(StatusCode, Bytes), CallError> {
        let json = serde_json::to_vec(body).map_err(|error| self.unexpected(path, &error))?;
        self.send(Method::POST, path, json.into(), Duration::ZERO).await
    }

    fn read<T: DeserializeOwned>(&self, path: &str, status: StatusCode, body: &[u8]) -> Result<T, CallError> {
        if status.is_success() {
            return serde_json::from_slice(body).map_err(|error| self.unexpected(path, &error));
        }
        let body = serde_json::from_slice::<ErrorBody>(body).unwrap_or_else(|_| ErrorBody {
            code: "unexpected".into(),
            message: format!("{} answered {path} with status {status}", self.target),
            help: None,
        });
        Err(CallError::Refused { status, body })
    }

    fn unexpected(&self, path: &str, cause: &dyn std::fmt::Display) -> CallError {
        CallError::Unexpected { target: self.target.clone(), path: path.to_owned(), cause: cause.to_string() }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        server_wait: Duration,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let request = self.request(method, path, body)?;
        let stream = self.open().await?;
        let broken = |cause: &dyn std::fmt::Display| self.broken(path, cause);
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(|e| broken(&e))?;
            connection.abort();
            Ok((status, body.to_bytes()))
        };
        let limit = ANSWER_LIMIT + server_wait;
        tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(self.late(path, limit)))
    }

    fn broken(&self, path: &str, cause: &dyn std::fmt::Display) -> CallError {
        CallError::Broken { target: self.target.clone(), path: path.to_owned(), cause: cause.to_string() }
    }

    fn late(&self, path: &str, limit: Duration) -> CallError {
        self.broken(path, &format_args!("no answer within {} s", limit.as_secs()))
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "outrider")
            .header(header::USER_AGENT, concat!("outrider/", env!("CARGO_PKG_VERSION")));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(body)).map_err(|error| self.unexpected(path, &error))
    }

    async fn open(&self) -> Result<Box<dyn Stream>, CallError> {
        match tokio::time::timeout(CONNECT_LIMIT, self.connect()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.connect_error(&error)),
            Err(_) => Err(self.connect_error(&std::io::ErrorKind::TimedOut.into())),
        }
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        match &self.target {
            Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Target::Tcp(authority) => Ok(Box::new(TcpStream::connect(authority.as_str()).await?)),
        }
    }

    fn connect_error(&self, error: &std::io::Error) -> CallError {
        use std::io::ErrorKind;
        let help = match (&self.target, error.kind()) {
            (Target::Unix(_), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                "start one with `outrider server` or `outrider up DIR`, or name another with --server or OUTRIDER_SERVER"
            }
            (Target::Unix(_), ErrorKind::PermissionDenied) => {
                "the socket belongs to another user: run as that user, or use http://127.0.0.1:7600 with OUTRIDER_TOKEN"
            }
            _ => "check the address given by --server or OUTRIDER_SERVER, and that the server runs",
        };
        let cause = match error.kind() {
            ErrorKind::NotFound => "there is no such socket".to_owned(),
            ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            ErrorKind::TimedOut => format!("no connection within {} s", CONNECT_LIMIT.as_secs()),
            _ => error.to_string(),
        };
        CallError::Connect { target: self.target.clone(), cause, help: help.to_owned() }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let unix = |path: &str| Ok(Target::Unix(path.into()));
        let tcp = |authority: &str| Ok(Target::Tcp(authority.into()));
        let form = |text: &str| Err(TargetError::Form(text.into()));
        let cases = [
            ("unix:/run/o/api.sock", unix("/run/o/api.sock")),
            ("unix:///run/o/api.sock", unix("/run/o/api.sock")),
            ("unix:rel/api.sock", unix("rel/api.sock")),
            ("/run/o/api.sock", unix("/run/o/api.sock")),
            ("http://127.0.0.1:7600", tcp("127.0.0.1:7600")),
            ("http://127.0.0.1:7600/", tcp("127.0.0.1:7600")),
            ("http://[::1]:7600", tcp("[::1]:7600")),
            ("unix:", form("unix:")),
            ("http://127.0.0.1", form("http://127.0.0.1")),
            ("http://127.0.0.1:0", form("http://127.0.0.1:0")),
            ("http://127.0.0.1:99999", form("http://127.0.0.1:99999")),
            ("http://a/b:80", form("http://a/b:80")),
            ("localhost:7600", form("localhost:7600")),
            ("", form("")),
            ("https://x:1", Err(TargetError::Https("https://x:1".into()))),
        ];
        for (text, expected) in cases {
            assert_eq!(Target::parse(text), expected, "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_LIMIT));
        assert!(matches!(Target::parse(&long), Err(TargetError::TooLong(_))));
    }

    #[test]
    fn a_token_is_trimmed_checked_and_kept_on_this_machine() {
        let target = |text: &str| Target::parse(text).unwrap();
        let local = ["unix:/run/o/api.sock", "http://127.0.0.1:1", "http://127.9.9.9:1", "http://[::1]:1"];
        for address in local.into_iter().chain(["http://localhost:7600", "http://[::ffff:127.0.0.1]:1"]) {
            assert_eq!(target(address).token(Some(" abc\n")), Ok(Some("abc".into())), "{address}");
        }
        for address in
            ["http://10.0.0.5:7600", "http://[fe80::1]:1", "http://localhost.example:1", "http://db:1"]
        {
            let refused = target(address).token(Some("abc")).unwrap_err();
            assert_eq!(refused, TargetError::Exposed(address.into()));
            assert_eq!(target(address).token(None), Ok(None), "{address}");
        }
        let unix = target(local[0]);
        for (text, expected) in
            [("", Ok(None)), ("\n", Ok(None)), ("a\nb", Err(())), ("a b", Err(())), ("ü", Err(()))]
        {
            assert_eq!(unix.token(Some(text)).map_err(|_| ()), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Target::unix(&folder.path().join("api.sock")), None);
        let error = client.get::<serde_json::Value>("/v1/nodes", Duration::ZERO).await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(error.to_string().contains("there is no such socket"), "{error}");
        assert!(error.help().is_some_and(|help| help.contains("outrider server")));
    }
}
