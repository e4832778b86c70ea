//! `docs/reasons.md` is the table of reasons, as people read it. Regenerate with `OUTRIDER_UPDATE=1`.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::path::Path;

use outrider_proxy_core::reason::Reason;

fn page() -> String {
    let mut page = String::from(
        "# Reasons\n\nWhat a native proxy answers or ends by itself carries one of these: in the header \
         `x-outrider-reason` of the response, in its log line, and as the label of a counter. *Fault* is who has to \
         act. A managed Envoy uses the same words where its own response flags tell as much.\n\n\
         | reason | status | fault | meaning |\n|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let status = match reason {
            Reason::DirectResponse => "the route's".to_owned(),
            Reason::FaultInjected => "the fault's".to_owned(),
            _ => reason.status().map_or("connection ends".to_owned(), |status| status.to_string()),
        };
        let fault = reason.fault().as_str().replace('_', " ");
        let _ = writeln!(page, "| `{}` | {status} | {fault} | {} |", reason.as_str(), reason.sentence());
    }
    page.push_str(WHAT_TO_DO);
    page
}

const WHAT_TO_DO: &str = "
## What to do

- `direct_response` is no failure. The status is the one that the route gives, mostly that of a redirect; the caller goes on
  where `location` says. If a service was to answer, look at which route matches first: `outrider describe service NAME`
  lists the routes around a service with their rules, and a filter `RequestRedirect` among them is what answers.
- `unsupported_version` means that caller and port speak different versions of HTTP. A port with `protocol: http` speaks
  HTTP/1.1 and HTTP/1.0, one with `protocol: http2` or `grpc` speaks HTTP/2 with prior knowledge only, without an upgrade
  from HTTP/1.1; nothing is guessed. Let the caller speak what is declared (`curl --http2-prior-knowledge`, a gRPC
  client, an HTTP/1.1 client), or declare what it speaks, at the service's port: the application has to speak the same.
- With *fault* client the request has to change, with policy what is declared; `outrider describe` says where a value comes
  from. With upstream look at the called service's instances: `outrider get instances -A`, and
  `outrider describe service NAME` for endpoints that are left alone. With proxy or control plane look at
  `outrider get proxies -A` and `outrider events`.
";

#[test]
fn the_page_of_reasons_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reasons.md");
    if std::env::var_os("OUTRIDER_UPDATE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page(),
        "docs/reasons.md differs from the table; run this test with OUTRIDER_UPDATE=1"
    );
}
