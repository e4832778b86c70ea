//! Certificates, requests for them, PEM, names and tokens.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_identity::{
    Authority, CertificateInfo, JoinToken, PrivateKey, Secret, SpiffeId, parse_pem_chain, pem_chain,
};
use outrider_proxy::tls::{Bundle, Identity};

use super::{Target, Verdict, expect, fixture};
use crate::mutate::Shape;

pub(super) const CERTIFICATE: Target = Target {
    name: "certificate",
    from: "peers, and the control plane",
    shape: Shape::Text,
    pieces: &[
        b"\x30\x80",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x06\x03\x55\x1d\x11",
        b"\x86\x00",
        b"\x17\x0d",
        b"\x18\x0f",
        b"spiffe://",
        b"\xff",
    ],
    most: 4_000,
    memory: 200,
    rounds: 5_000,
    accepted: 1,
    seeds: || {
        let chain =
            |file: &str| parse_pem_chain(&fixture(&format!("fuzz/corpus/seeds/{file}"))).unwrap()[0].to_vec();
        vec![chain("svid.pem"), chain("root.pem")]
    },
    check: certificate,
};

pub(super) const REQUEST: Target = Target {
    name: "signing-request",
    from: "agents",
    rounds: 1_000,
    // Every change breaks its signature.
    accepted: 0,
    seeds: || vec![fixture("fuzz/corpus/seeds/request.der")],
    check: request,
    ..CERTIFICATE
};

pub(super) const PEM: Target = Target {
    name: "pem",
    pieces: &[
        b"-----BEGIN CERTIFICATE-----",
        b"-----END CERTIFICATE-----",
        b"\n",
        b"\r\n",
        b"=",
        b"AAAA",
        b"-----",
        b"Proc-Type: 4",
    ],
    rounds: 3_000,
    accepted: 1,
    seeds: || {
        ["svid.pem", "root.pem", "svid.key"]
            .map(|file| fixture(&format!("fuzz/corpus/seeds/{file}")))
            .to_vec()
    },
    check: pem,
    ..CERTIFICATE
};

pub(super) const NAMES: Target = Target {
    name: "names",
    from: "peers, people, and agents",
    pieces: &[
        b"spiffe://",
        b"/",
        b".",
        b"..",
        b"//",
        b"ort1.",
        b"00",
        b"f",
        b"F",
        b"\xc3\xa9",
        b" ",
        b"/ns/",
        b"/svc/",
        b"%",
    ],
    most: 3_000,
    rounds: 20_000,
    accepted: 3,
    seeds: || {
        let token = format!("ort1.{}.{}.{}", "0".repeat(16), "a".repeat(40), "b".repeat(64));
        vec![
            b"spiffe://outrider.internal/ns/shop/svc/web".to_vec(),
            b"spiffe://a".to_vec(),
            token.into_bytes(),
            "ab".repeat(32).into_bytes(),
        ]
    },
    check: names,
    ..CERTIFICATE
};

fn certificate(bytes: &[u8]) -> Verdict {
    let Ok(info) = CertificateInfo::read(bytes) else { return Ok(false) };
    let renewed = info.renew_at(0.5);
    if info.not_before <= info.not_after {
        expect((info.not_before..=info.not_after).contains(&renewed), || {
            "renewed outside of its life".to_owned()
        })?;
    }
    let _ = info.is_valid_at(SystemTime::UNIX_EPOCH);
    Ok(true)
}

fn request(bytes: &[u8]) -> Verdict {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let authority = AUTHORITY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        Authority::open_or_create(&folder.path().join("ca"), "outrider.internal", now).unwrap()
    });
    let id = SpiffeId::parse("spiffe://outrider.internal/ns/shop/svc/web").unwrap();
    let Ok(chain) = authority.sign_request(bytes, &id, now) else { return Ok(false) };
    let info = CertificateInfo::read(&chain[0]).map_err(|error| error.to_string())?;
    expect(info.id == id, || format!("signed for {:?}", info.id))?;
    Ok(true)
}

fn pem(bytes: &[u8]) -> Verdict {
    let chain = parse_pem_chain(bytes);
    if let Ok(chain) = &chain {
        let again = parse_pem_chain(pem_chain(chain).as_bytes()).map_err(|error| error.to_string())?;
        expect(again == *chain, || "another chain when it is written again".to_owned())?;
    }
    let bundle = Bundle::from_pem(bytes).is_ok();
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let identity =
        Identity::from_pem(bytes, KEY.get_or_init(|| fixture("fuzz/corpus/seeds/svid.key"))).is_ok();
    let key = PrivateKey::from_pem(&String::from_utf8_lossy(bytes)).is_ok();
    Ok(bundle | identity | key)
}

fn names(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes);
    let id = SpiffeId::parse(&text);
    if let Ok(id) = &id {
        expect(id.as_str() == text && text.len() <= 2048, || "another text".to_owned())?;
        let whole = format!("spiffe://{}{}", id.trust_domain(), id.path());
        expect(whole == text, || format!("its parts are {whole}"))?;
        let dots = id.path().split('/').any(|part| part == "." || part == "..");
        expect(!dots && !id.path().contains("//"), || "its path can be read as another one".to_owned())?;
    }
    let token = JoinToken::parse(&text);
    if let Ok(token) = &token {
        expect(token.reveal() == text.trim(), || "another token".to_owned())?;
    }
    let secret = Secret::parse(&text).is_some();
    Ok(id.is_ok() | token.is_ok() | secret)
}
