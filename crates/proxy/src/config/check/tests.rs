use outrider_xds_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};

use super::*;

fn n(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn at<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().path
}

fn ms(millis: i64) -> Option<PbDuration> {
    Some(PbDuration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

#[test]
fn checks_are_composed_when_they_are_read() {
    let http = |http: HttpHealthCheck| HealthCheck {
        timeout: ms(500),
        interval: ms(1000),
        unhealthy_threshold: n(3),
        healthy_threshold: n(2),
        health_checker: Some(HealthChecker::HttpHealthCheck(http)),
        ..Default::default()
    };
    let of = |given| check(vec![given], "shop");
    assert_eq!(check(vec![], "shop"), Ok(None));
    let header = HeaderValueOption {
        header: Some(HeaderValue { key: "X-Probe".into(), value: "1".into(), raw_value: vec![] }),
        ..Default::default()
    };
    let given =
        HttpHealthCheck { path: "/ready".into(), request_headers_to_add: vec![header], ..Default::default() };
    let read = of(http(given.clone())).unwrap().unwrap();
    let CheckKind::Http { request, expected, .. } = &read.kind else { panic!() };
    let text = "GET /ready HTTP/1.1\r\nHost: shop\r\nX-Probe: 1\r\nUser-Agent: outrider-check\r\nConnection: close\r\n\r\n";
    assert_eq!(std::str::from_utf8(request), Ok(text));
    assert_eq!(expected, &[(200, 201)]);
    assert_eq!((read.timing.unhealthy_interval, read.timing.no_traffic_interval), (1000, 60_000));
    let text = |text: &str| Payload { payload: Some(PayloadKind::Text(text.into())) };
    let tcp = |tcp| HealthCheck {
        health_checker: Some(HealthChecker::TcpHealthCheck(tcp)),
        ..http(Default::default())
    };
    let read = of(tcp(TcpHealthCheck {
        send: Some(text("50494e47")),
        receive: vec![text("504F")],
        ..Default::default()
    }));
    let kind = CheckKind::Tcp { send: b"PING".to_vec(), receive: vec![b"PO".to_vec()] };
    assert_eq!(read.unwrap().unwrap().kind, kind);
    let read = of(http(HttpHealthCheck { codec_client_type: 1, ..given.clone() })).unwrap().unwrap();
    let CheckKind::Http2 { question, .. } = &read.kind else { panic!() };
    let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    assert_eq!((question.method, &*question.authority, &*question.path), ("GET", "shop", "/ready"));
    assert_eq!(question.fields, [field("user-agent", "outrider-check"), field("x-probe", "1")]);
    let grpc = |grpc| HealthCheck {
        health_checker: Some(HealthChecker::GrpcHealthCheck(grpc)),
        ..http(Default::default())
    };
    // A name whose length takes two bytes.
    let called = GrpcHealthCheck { service_name: "a".repeat(300), ..Default::default() };
    let read = of(grpc(called.clone())).unwrap().unwrap();
    let CheckKind::Grpc { question } = &read.kind else { panic!() };
    assert_eq!((question.method, &*question.path), ("POST", "/grpc.health.v1.Health/Check"));
    assert_eq!(question.body, [b"\0\0\0\x01\x2f\x0a\xac\x02".as_slice(), &[b'a'; 300]].concat());
    let read = of(grpc(GrpcHealthCheck::default())).unwrap().unwrap();
    let CheckKind::Grpc { question } = &read.kind else { panic!() };
    assert_eq!(question.body, [0; 5]);
    let refused = [
        ("timeout", HealthCheck { timeout: None, ..http(given.clone()) }),
        ("healthy_threshold", HealthCheck { healthy_threshold: n(0), ..http(given.clone()) }),
        (
            "always_log_health_check_success",
            HealthCheck { always_log_health_check_success: true, ..http(given.clone()) },
        ),
        ("health_checker", HealthCheck { health_checker: None, ..http(given.clone()) }),
        ("http_health_check.path", http(HttpHealthCheck { path: "/a b".into(), ..given.clone() })),
        ("http_health_check.host", http(HttpHealthCheck { host: "a\r\nb".into(), ..given.clone() })),
        (
            "http_health_check.codec_client_type",
            http(HttpHealthCheck { codec_client_type: 2, ..given.clone() }),
        ),
        ("grpc_health_check.authority", grpc(GrpcHealthCheck { authority: "a b".into(), ..called.clone() })),
        (
            "grpc_health_check.service_name",
            grpc(GrpcHealthCheck { service_name: "a".repeat(5000), ..called.clone() }),
        ),
        ("tcp_health_check.send.text", tcp(TcpHealthCheck { send: Some(text("5g")), ..Default::default() })),
        ("tcp_health_check.send", tcp(TcpHealthCheck { send: Some(text("")), ..Default::default() })),
    ];
    for (field, given) in refused {
        assert_eq!(at(of(given)), format!("health_checks[0].{field}"));
    }
    assert_eq!(at(check(vec![http(given.clone()), http(given)], "shop")), "health_checks");
}
