//! Our verifiers against `rustls-webpki` asked directly, on the chains of C2SP/x509-limbo.
//!
//! None of its leaves is an X.509-SVID, so that a chain which is good in itself must be refused for its name alone.
//! `OUTRIDER_LIMBO=limbo.json cargo xtask test limbo`; the path must be absolute.

use std::time::Duration;

use serde_json::Value;

use super::super::*;

/// Seconds of Unix time of `2024-01-01T00:00:00+00:00`, the only form there is.
fn seconds(text: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days from civil, for years from March.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let of_year = (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    days * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19)
}

fn chain(list: &Value) -> Vec<CertificateDer<'static>> {
    let pem: String = list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

/// Whether the chain is good, as the library says.
fn of_library(case: &Value, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
    let roots = chain(&case["trusted_certs"]);
    let Ok(anchors) = roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()
    else {
        return false;
    };
    let usage = match case["validation_kind"].as_str() {
        Some("CLIENT") => webpki::KeyUsage::client_auth(),
        _ => webpki::KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    webpki::EndEntityCert::try_from(leaf).is_ok_and(|end| {
        let between = chain(&case["untrusted_intermediates"]);
        end.verify_for_usage(algorithms, &anchors, &between, now, usage, None, None).is_ok()
    })
}

/// Whether the chain is good, as we say.
fn of_ours(case: &Value, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
    let pem: String =
        case["trusted_certs"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    let Ok(bundle) = Bundle::from_pem(pem.as_bytes()) else { return false };
    let between = chain(&case["untrusted_intermediates"]);
    let provider = Arc::new(provider());
    let trust_domain: Arc<str> = "outrider.internal".into();
    let refused = if case["validation_kind"] == "CLIENT" {
        let builder = WebPkiClientVerifier::builder_with_provider(bundle.roots, provider);
        let Ok(chain) = builder.build() else { return false };
        CallerVerifier { chain, trust_domain }.verify_client_cert(leaf, &between, now).map(drop)
    } else {
        let algorithms = provider.signature_verification_algorithms;
        let verifier =
            UpstreamVerifier { roots: bundle.roots, algorithms, trust_domain, expected: Box::new([]) };
        let name = ServerName::try_from("example.com").unwrap();
        verifier.verify_server_cert(leaf, &between, &name, &[], now).map(drop)
    };
    let error = refused.expect_err("no leaf here is a SPIFFE one");
    matches!(&error, rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))
        if cause.downcast_ref::<IdentityError>().is_some())
}

#[test]
#[ignore = "cargo xtask test limbo; needs OUTRIDER_LIMBO, the file limbo.json of C2SP/x509-limbo"]
fn limbo_chains_are_judged_as_the_library_judges_them() {
    let file = std::env::var("OUTRIDER_LIMBO").expect("OUTRIDER_LIMBO names the file");
    let limbo: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let (mut agreed, mut otherwise, mut good) = (0, Vec::new(), 0);
    for case in limbo["testcases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let now = case["validation_time"].as_str().map_or(0, seconds);
        let now = UnixTime::since_unix_epoch(match u64::try_from(now) {
            Ok(0) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Duration::ZERO,
        });
        let leaf =
            CertificateDer::from_pem_slice(case["peer_certificate"].as_str().unwrap().as_bytes()).unwrap();
        let (library, ours) = (of_library(case, &leaf, now), of_ours(case, &leaf, now));
        assert_eq!(ours, library, "{id}");
        agreed += 1;
        good += u32::from(ours);
        if ours != (case["expected_result"] == "SUCCESS") {
            otherwise.push(id);
        }
    }
    assert!(agreed > 100, "only {agreed} cases");
    eprintln!(
        "{agreed} cases, {good} good chains; the corpus expects otherwise in {}: {otherwise:#?}",
        otherwise.len()
    );
}
