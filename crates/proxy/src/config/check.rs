//! How endpoints are checked.

use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::health::CheckConfig;
use outrider_xds_types::pb::envoy::config::core::v3::health_check::payload::Payload as PayloadKind;
use outrider_xds_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck,
};
use outrider_xds_types::pb::envoy::config::core::v3::{HealthCheck, RequestMethod};
use outrider_xds_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use outrider_xds_types::pb::google::protobuf::{Duration as PbDuration, UInt32Value};

use super::fields::{Refusal, join, nothing_left};
use super::resilience::{lines, millis};

/// Most bytes that a check sends or waits for.
const MAX_PAYLOAD: usize = 4 << 10;

/// How endpoints are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// When.
    pub timing: CheckConfig,
    /// How long one may take.
    pub timeout: Duration,
    /// What is said, and expected.
    pub kind: CheckKind,
}

/// What is said to an endpoint, and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// A request.
    Http {
        /// Its bytes.
        request: Arc<[u8]>,
        /// Statuses that are good, as ranges without their ends.
        expected: Vec<(i64, i64)>,
        /// Statuses that are bad, but not clearly so.
        retriable: Vec<(i64, i64)>,
    },
    /// A request of HTTP/2.
    Http2 {
        /// What is asked.
        question: Question,
        /// Statuses that are good, as ranges without their ends.
        expected: Vec<(i64, i64)>,
        /// Statuses that are bad, but not clearly so.
        retriable: Vec<(i64, i64)>,
    },
    /// A call of `grpc.health.v1.Health/Check`.
    Grpc {
        /// What is asked.
        question: Question,
    },
    /// A connection.
    Tcp {
        /// What is sent.
        send: Vec<u8>,
        /// What must be among the answer, in this order.
        receive: Vec<Vec<u8>>,
    },
}

/// A request of HTTP/2.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Method.
    pub method: &'static str,
    /// For whom.
    pub authority: String,
    /// Path.
    pub path: String,
    /// Other fields, names in lower case.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Body.
    pub body: Vec<u8>,
}

/// Reads how endpoints of the cluster `name` are checked: not at all, or in one way.
///
/// # Errors
/// What cannot be honoured.
pub fn check(checks: Vec<HealthCheck>, name: &str) -> Result<Option<Arc<Check>>, Refusal> {
    let Some(mut given) = checks.into_iter().try_fold(None, |one, next| match one {
        None => Ok(Some(next)),
        Some(_) => Err(Refusal::new("health_checks", "only one is supported")),
    })?
    else {
        return Ok(None);
    };
    let path = "health_checks[0]";
    let required = |value: Option<u64>, field: &str| {
        value.filter(|ms| *ms > 0).ok_or_else(|| Refusal::new(join(path, field), "required"))
    };
    let positive = |value: Option<PbDuration>, default: u64, field: &str| {
        Ok::<_, Refusal>(millis(value, &join(path, field))?.filter(|ms| *ms > 0).unwrap_or(default))
    };
    let timeout = required(millis(given.timeout.take(), &join(path, "timeout"))?, "timeout")?;
    let interval = required(millis(given.interval.take(), &join(path, "interval"))?, "interval")?;
    let unhealthy_interval = positive(given.unhealthy_interval.take(), interval, "unhealthy_interval")?;
    let no_traffic_interval = positive(given.no_traffic_interval.take(), 60_000, "no_traffic_interval")?;
    let threshold = |value: Option<UInt32Value>, field: &str| {
        let value = value.map(|value| value.value).filter(|number| *number > 0);
        value.ok_or_else(|| Refusal::new(join(path, field), "required"))
    };
    let timing = CheckConfig {
        interval,
        unhealthy_interval,
        unhealthy_edge_interval: positive(
            given.unhealthy_edge_interval.take(),
            unhealthy_interval,
            "unhealthy_edge_interval",
        )?,
        healthy_edge_interval: positive(
            given.healthy_edge_interval.take(),
            interval,
            "healthy_edge_interval",
        )?,
        no_traffic_interval,
        no_traffic_healthy_interval: positive(
            given.no_traffic_healthy_interval.take(),
            no_traffic_interval,
            "no_traffic_healthy_interval",
        )?,
        initial_jitter: positive(given.initial_jitter.take(), 0, "initial_jitter")?,
        jitter: positive(given.interval_jitter.take(), 0, "interval_jitter")?,
        jitter_percent: std::mem::take(&mut given.interval_jitter_percent),
        unhealthy_threshold: threshold(given.unhealthy_threshold.take(), "unhealthy_threshold")?,
        healthy_threshold: threshold(given.healthy_threshold.take(), "healthy_threshold")?,
    };
    // Every check makes a connection of its own, so that it shows that one can be made.
    given.reuse_connection = None;
    let kind = match given.health_checker.take() {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            http_check(http, name, &join(path, "http_health_check"))?
        }
        Some(HealthChecker::TcpHealthCheck(tcp)) => tcp_check(tcp, &join(path, "tcp_health_check"))?,
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            grpc_check(grpc, name, &join(path, "grpc_health_check"))?
        }
        _ => {
            let cause = "only HTTP, gRPC and TCP are supported";
            return Err(Refusal::new(join(path, "health_checker"), cause));
        }
    };
    nothing_left(&given, path)?;
    Ok(Some(Arc::new(Check { timing, timeout: Duration::from_millis(timeout), kind })))
}

fn visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn http_check(mut given: HttpHealthCheck, name: &str, path: &str) -> Result<CheckKind, Refusal> {
    let host = match std::mem::take(&mut given.host) {
        host if host.is_empty() => name.to_owned(),
        host => host,
    };
    let target = std::mem::take(&mut given.path);
    if !target.starts_with('/') || !visible(&target) {
        return Err(Refusal::new(join(path, "path"), "not the path of a request"));
    }
    if !visible(&host) {
        return Err(Refusal::new(join(path, "host"), "not a host"));
    }
    let method = match RequestMethod::try_from(std::mem::take(&mut given.method)) {
        Ok(RequestMethod::MethodUnspecified) => "GET",
        Ok(RequestMethod::Connect) | Err(_) => {
            return Err(Refusal::new(join(path, "method"), "not supported"));
        }
        Ok(method) => method.as_str_name(),
    };
    let more =
        lines(std::mem::take(&mut given.request_headers_to_add), &join(path, "request_headers_to_add"))?;
    let http2 = match CodecClientType::try_from(std::mem::take(&mut given.codec_client_type)) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => {
            return Err(Refusal::new(join(path, "codec_client_type"), "only HTTP1 and HTTP2 are supported"));
        }
    };
    let ranges = |list: Vec<Int64Range>| list.into_iter().map(|range| (range.start, range.end)).collect();
    let mut expected: Vec<_> = ranges(std::mem::take(&mut given.expected_statuses));
    if expected.is_empty() {
        expected.push((200, 201));
    }
    let retriable = ranges(std::mem::take(&mut given.retriable_statuses));
    // The body is not looked at.
    given.response_buffer_size = None;
    nothing_left(&given, path)?;
    if http2 {
        let question =
            Question { method, authority: host, path: target, fields: fields(&more), body: Vec::new() };
        return Ok(CheckKind::Http2 { question, expected, retriable });
    }
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    if matches!(method, "POST" | "PUT" | "PATCH") {
        request.push_str("Content-Length: 0\r\n");
    }
    let mut bytes = request.into_bytes();
    bytes.extend(more);
    bytes.extend_from_slice(b"User-Agent: outrider-check\r\nConnection: close\r\n\r\n");
    Ok(CheckKind::Http { request: bytes.into(), expected, retriable })
}

/// The fields of a question: those of these lines, and who asks.
fn fields(lines: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields = vec![(b"user-agent".to_vec(), b"outrider-check".to_vec())];
    for line in lines.split(|&byte| byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        fields.push((line[..colon].to_ascii_lowercase(), value.to_vec()));
    }
    fields
}

fn grpc_check(mut given: GrpcHealthCheck, name: &str, path: &str) -> Result<CheckKind, Refusal> {
    let authority = match std::mem::take(&mut given.authority) {
        authority if authority.is_empty() => name.to_owned(),
        authority => authority,
    };
    if !visible(&authority) {
        return Err(Refusal::new(join(path, "authority"), "not a host"));
    }
    let service = std::mem::take(&mut given.service_name);
    if service.len() > MAX_PAYLOAD {
        return Err(Refusal::new(join(path, "service_name"), format!("longer than {MAX_PAYLOAD} bytes")));
    }
    let metadata = lines(std::mem::take(&mut given.initial_metadata), &join(path, "initial_metadata"))?;
    nothing_left(&given, path)?;
    let mut all = fields(&metadata);
    all.push((b"te".to_vec(), b"trailers".to_vec()));
    all.push((b"content-type".to_vec(), b"application/grpc".to_vec()));
    // A `HealthCheckRequest`, whose only field, number 1, is the service; empty is the whole server.
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    // Bounded above.
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(&message);
    let path = "/grpc.health.v1.Health/Check".to_owned();
    Ok(CheckKind::Grpc { question: Question { method: "POST", authority, path, fields: all, body } })
}

fn tcp_check(mut given: TcpHealthCheck, path: &str) -> Result<CheckKind, Refusal> {
    let send = match given.send.take() {
        Some(one) => payload(one, &join(path, "send"))?,
        None => Vec::new(),
    };
    let receive = std::mem::take(&mut given.receive)
        .into_iter()
        .map(|one| payload(one, &join(path, "receive")))
        .collect::<Result<_, _>>()?;
    nothing_left(&given, path)?;
    Ok(CheckKind::Tcp { send, receive })
}

/// Bytes, or pairs of hexadecimal digits.
fn payload(given: Payload, path: &str) -> Result<Vec<u8>, Refusal> {
    let bytes = match given.payload {
        Some(PayloadKind::Binary(bytes)) => bytes,
        Some(PayloadKind::Text(text)) => {
            let digits = text.as_bytes().chunks(2).map(|pair| {
                let text = std::str::from_utf8(pair).ok().filter(|text| text.len() == 2)?;
                u8::from_str_radix(text, 16).ok()
            });
            digits
                .collect::<Option<_>>()
                .ok_or_else(|| Refusal::new(join(path, "text"), "not pairs of hexadecimal digits"))?
        }
        None => return Err(Refusal::new(path, "required")),
    };
    if bytes.is_empty() || bytes.len() > MAX_PAYLOAD {
        return Err(Refusal::new(path, format!("must be of 1 to {MAX_PAYLOAD} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
