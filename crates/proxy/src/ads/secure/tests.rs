use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        root.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key of this name.
    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (leaf.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// A server of this name that lets `callers` in, or everybody.
fn server(authority: &Authority, name: &str, callers: Option<&Authority>, alpn: &[&[u8]]) -> TlsAcceptor {
    let (chain, key) = authority.leaf(name);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let settings = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let settings = match callers {
        None => settings.with_no_client_auth(),
        Some(callers) => {
            let callers = WebPkiClientVerifier::builder_with_provider(callers.roots(), provider);
            settings.with_client_cert_verifier(callers.build().unwrap())
        }
    };
    let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut settings = settings.with_single_cert(vec![chain], key).unwrap();
    settings.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(settings))
}

/// What comes of a connection on which the server says one byte.
async fn meets(server: TlsAcceptor, files: &Files) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let serving = tokio::spawn(async move {
        if let Ok(mut stream) = server.accept(accepted).await {
            let _ = stream.write_all(b"x").await;
            let _ = stream.shutdown().await;
        }
    });
    let met = async {
        let mut stream = files.secure(stream, "127.0.0.1").await.map_err(|error| error.to_string())?;
        stream.read_u8().await.map_err(|error| error.to_string())?;
        Ok(())
    };
    let met = met.await;
    serving.await.unwrap();
    met
}

/// Files in `folder` that trust `authority`.
fn trusting(folder: &Path, authority: &Authority) -> Files {
    let authorities = folder.join("ca.pem");
    std::fs::write(&authorities, authority.0.pem()).unwrap();
    Files { authorities, identity: None, name: None }
}

/// The same as somebody.
fn known(files: Files, folder: &Path, (chain, key): (String, String)) -> Files {
    let identity = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&identity.0, chain).unwrap();
    std::fs::write(&identity.1, key).unwrap();
    Files { identity: Some(identity), ..files }
}

#[tokio::test]
async fn a_server_is_who_an_authority_says_and_has_the_wanted_name() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let here = "127.0.0.1";
    let files = trusting(folder.path(), &ours);
    let named = Files { name: Some(name("xds.internal").unwrap()), ..files.clone() };
    let h2: &[&[u8]] = &[b"h2"];
    for (server, files, refused) in [
        (server(&ours, here, None, h2), &files, None),
        (server(&ours, here, None, &[b"http/1.1", b"h2"]), &files, None),
        (server(&other, here, None, h2), &files, Some("UnknownIssuer")),
        (server(&ours, "xds.internal", None, h2), &files, Some("not valid for name")),
        (server(&ours, "xds.internal", None, h2), &named, None),
        (server(&ours, here, None, h2), &named, Some("not valid for name")),
        (server(&ours, here, None, &[]), &files, Some("does not offer HTTP/2")),
        (server(&ours, here, None, &[b"http/1.1"]), &files, Some("NoApplicationProtocol")),
        (server(&ours, here, Some(&other), h2), &files, Some("CertificateRequired")),
    ] {
        match (meets(server, files).await, refused) {
            (Ok(()), None) => {}
            (Err(why), Some(words)) if why.contains(words) => {}
            (met, expected) => panic!("{met:?} instead of {expected:?} with {files:?}"),
        }
    }
}

/// Certificates and authorities are replaced while the proxy runs, each by another file of the same name.
#[tokio::test]
async fn what_replaces_a_file_is_used_from_the_next_connection_on() {
    let folder = tempfile::tempdir().unwrap();
    let h2: &[&[u8]] = &[b"h2"];
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let files = known(trusting(folder.path(), &first), folder.path(), first.leaf("us"));
    let server = |authority| server(authority, "127.0.0.1", Some(authority), h2);
    assert_eq!(meets(server(&first), &files).await, Ok(()));
    assert!(meets(server(&second), &files).await.is_err());
    let same = known(trusting(folder.path(), &second), folder.path(), second.leaf("us"));
    assert_eq!(same, files);
    assert_eq!(meets(server(&second), &files).await, Ok(()));
    assert!(meets(server(&first), &files).await.is_err());
}

#[test]
fn a_file_of_no_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let files = known(trusting(folder.path(), &ours), folder.path(), ours.leaf("us"));
    let (chain, key) = files.identity.clone().unwrap();
    assert!(files.settings("xds.internal").is_ok());
    let said = |files: &Files, host: &str| files.settings(host).map(|_| ()).unwrap_err().to_string();
    assert_eq!(said(&files, "no name"), "`no name` is not a name of a server");
    assert!(name("no name").is_err());
    let (_, others) = other.leaf("us");
    let cases: [(&Path, Option<&[u8]>, &str); 6] = [
        (&files.authorities, None, "No such file or directory"),
        (&files.authorities, Some(b"nothing"), "no certificate in it"),
        (&files.authorities, Some(&vec![b' '; (MAX_FILE + 1) as usize]), "more than 1048576 bytes"),
        (&chain, Some(b""), "certificate chain: no certificate in it"),
        (&key, Some(b""), "private key"),
        (&key, Some(others.as_bytes()), "certificate and key"),
    ];
    for (path, bytes, words) in cases {
        let before = std::fs::read(path).unwrap();
        match bytes {
            None => std::fs::remove_file(path).unwrap(),
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
        }
        let why = said(&files, "127.0.0.1");
        // Of a pair that does not match the certificate is named.
        let blamed = if words == "certificate and key" { &*chain } else { path };
        assert!(why.starts_with(&blamed.display().to_string()) && why.contains(words), "{why}");
        std::fs::write(path, before).unwrap();
    }
    assert!(files.settings("::1").is_ok(), "all is as before");
    std::fs::remove_file(&chain).unwrap();
    std::fs::create_dir(&chain).unwrap();
    assert!(said(&files, "127.0.0.1").ends_with("not a file"));
}

/// Certificates are often links into another folder, where they are replaced.
#[test]
fn what_stays_in_view_is_where_files_are_and_where_they_lead() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let (live, archive) = (place.join("live"), place.join("archive"));
    for folder in [&live, &archive] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(archive.join("ca-1.pem"), "").unwrap();
    std::os::unix::fs::symlink("../archive/ca-1.pem", live.join("ca.pem")).unwrap();
    let files = |authorities: PathBuf| Files { authorities, identity: None, name: None };
    assert_eq!(files(live.join("ca.pem")).folders().unwrap(), [live.clone(), archive]);
    assert!(matches!(files(live.join("none.pem")).folders(), Err(SecureError::Read { .. })));
    assert!(matches!(files("/etc/../etc".into()).folders(), Err(SecureError::Root { .. })));
}
