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
        let status = reason.status().map_or("connection ends".to_owned(), |status| status.to_string());
        let fault = reason.fault().as_str().replace('_', " ");
        let _ = writeln!(page, "| `{}` | {status} | {fault} | {} |", reason.as_str(), reason.sentence());
    }
    page
}

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
