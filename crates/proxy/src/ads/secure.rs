//! TLS to an xDS server of others: whom we take for it, and who we say we are.
//!
//! Holds: the server is who its certificate says only if that ends at the given authorities and carries the wanted name;
//! nothing else that this host may trust counts. TLS 1.3 with HTTP/2 by ALPN. Files are read anew for every connection,
//! so what replaces them is used from the next one on; one that is of no use fails that attempt, by its name. Does not:
//! know SPIFFE names (the server of our own is reached over a Unix socket).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls::{self, TlsError};

/// Most bytes of a file: a bundle of some hundred authorities.
const MAX_FILE: u64 = 1 << 20;
/// What gRPC speaks.
const HTTP_2: &[u8] = b"h2";

/// What a connection is secured with, all of it PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Authorities, one of which has to have signed what the server shows.
    pub authorities: PathBuf,
    /// Our certificate with its chain, and its key; without them we are nobody.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate, where it is not the host that is connected to.
    pub name: Option<ServerName<'static>>,
}

/// Why a connection cannot be secured.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a folder, a pipe or a device.
    #[error("{}: not a file", path.display())]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// It is of more than a mebibyte.
    #[error("{}: more than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// What is in it is of no use.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: TlsError,
    },
    /// What is confined could read everything.
    #[error("{}: in the root folder, of which everything would be in view; move it into a folder of its own", path.display())]
    Root {
        /// Which.
        path: PathBuf,
    },
    /// Not a name that a certificate can have.
    #[error("`{0}` is not a name of a server")]
    Name(String),
    /// It speaks something else.
    #[error("the server does not offer HTTP/2 (`h2` by ALPN), which gRPC needs")]
    NotHttp2,
}

impl From<SecureError> for io::Error {
    fn from(error: SecureError) -> Self {
        Self::other(error)
    }
}

impl Files {
    /// The folders that have to stay in view: whoever replaces a file puts another one beside it, or beside what it is a
    /// link to.
    ///
    /// # Errors
    /// [`SecureError`] if a file is not there, or would have everything in view.
    pub fn folders(&self) -> Result<Vec<PathBuf>, SecureError> {
        let pair = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        let mut folders = Vec::new();
        for path in std::iter::once(&self.authorities).chain(pair) {
            let failed = |source| SecureError::Read { path: path.clone(), source };
            let near = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let near = near.canonicalize().map_err(failed)?;
            let file = path.canonicalize().map_err(failed)?;
            for folder in [Some(near.as_path()), file.parent()].into_iter().flatten() {
                if folder.parent().is_none() {
                    return Err(SecureError::Root { path: path.clone() });
                }
                folders.push(folder.to_owned());
            }
        }
        Ok(folders)
    }

    /// Whether connections can be secured with what there is now.
    ///
    /// # Errors
    /// [`SecureError`], of a file.
    pub fn check(&self) -> Result<(), SecureError> {
        self.settings("localhost").map(drop)
    }

    /// The same connection, once the server has shown that it is `host`.
    pub(super) async fn secure(&self, stream: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let (name, settings) = self.settings(host)?;
        let stream = TlsConnector::from(Arc::new(settings)).connect(name, stream).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(HTTP_2) => Ok(stream),
            _ => Err(SecureError::NotHttp2.into()),
        }
    }

    fn settings(&self, host: &str) -> Result<(ServerName<'static>, rustls::ClientConfig), SecureError> {
        let name = self.name.clone().map_or_else(|| name(host), Ok)?;
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| SecureError::Content { path, source }
        };
        let authorities = read(&self.authorities)?;
        let roots = tls::Bundle::from_pem(&authorities).map_err(content(&self.authorities))?;
        let identity = match &self.identity {
            None => None,
            Some((chain, key)) => {
                let pair = tls::certified(&read(chain)?, &read(key)?);
                let blamed = match pair {
                    Err(TlsError::Pem { what: "private key", .. }) => key,
                    _ => chain,
                };
                Some(Arc::new(pair.map_err(content(blamed))?))
            }
        };
        let mut settings = tls::named_client_config(&roots, identity).map_err(content(&self.authorities))?;
        settings.alpn_protocols = vec![HTTP_2.to_vec()];
        Ok((name, settings))
    }
}

/// A name or an address as certificates have it.
///
/// # Errors
/// [`SecureError::Name`].
pub fn name(text: &str) -> Result<ServerName<'static>, SecureError> {
    ServerName::try_from(text.to_owned()).map_err(|_| SecureError::Name(text.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, SecureError> {
    let failed = |source| SecureError::Read { path: path.to_owned(), source };
    // Nobody waits for the other end of a pipe.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
    let file = file.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(SecureError::NoFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    if file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)? as u64 > MAX_FILE {
        return Err(SecureError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
