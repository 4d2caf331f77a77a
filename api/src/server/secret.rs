//! Tokens, certificates and keys: read from files, and again when these change.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use subtle::{Choice, ConstantTimeEq as _};
use tokio::time::sleep;
use tokio_rustls::rustls::{
    self, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tracing::{info, warn};

use super::{Settings, Tls};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Shortest token, in characters: shorter ones can be guessed.
const SHORTEST: usize = 16;

/// What stands now, and may be replaced at any time.
pub(super) struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Current<T> {
    fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// What a token allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Right {
    Read,
    Write,
}

/// The tokens of an instance. They are never shown.
pub(super) struct Tokens {
    read: Vec<Vec<u8>>,
    write: Vec<Vec<u8>>,
}

impl Tokens {
    /// What this token allows; nothing where it is none. How long that takes tells nothing about the
    /// tokens but their number and lengths.
    pub(super) fn right(&self, token: &[u8]) -> Option<Right> {
        let among = |tokens: &[Vec<u8>]| {
            let equal = tokens.iter().fold(Choice::from(0), |found, one| found | one.ct_eq(token));
            bool::from(equal)
        };
        let (write, read) = (among(&self.write), among(&self.read));
        if write { Some(Right::Write) } else { read.then_some(Right::Read) }
    }
}

/// Why a secret cannot be used. Says nothing of its contents.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    #[error(
        "{0} has no token of at least {SHORTEST} characters: write one a line, for example the output of `openssl rand -hex 32`"
    )]
    NoToken(PathBuf),
    #[error("cannot use {path} for TLS: {why}")]
    Tls { path: PathBuf, why: String },
}

/// All secrets of a listener.
pub(super) struct Secrets {
    settings: Settings,
    tokens: Option<Current<Tokens>>,
    tls: Option<Current<ServerConfig>>,
    stamps: RwLock<Vec<Stamp>>,
}

impl Secrets {
    pub(super) fn read(settings: &Settings) -> Result<Self, SecretError> {
        // Before they are read: a change meanwhile must be seen as one.
        let stamps = RwLock::new(stamps(settings));
        let tls = settings.tls.as_ref().map(read_tls).transpose()?.map(Current::new);
        let tokens = read_tokens(settings)?.map(Current::new);
        Ok(Self { settings: settings.clone(), tokens, tls, stamps })
    }

    pub(super) fn tokens(&self) -> Option<Current<Tokens>> {
        self.tokens.clone()
    }

    pub(super) fn tls(&self) -> Option<Current<ServerConfig>> {
        self.tls.clone()
    }

    /// Reads again what changes, for ever. What cannot be used leaves what was read before.
    pub(super) async fn follow(&self) {
        loop {
            sleep(LOOK).await;
            let now = stamps(&self.settings);
            let mut before = self.stamps.write().unwrap_or_else(PoisonError::into_inner);
            if *before == now {
                continue;
            }
            *before = now;
            drop(before);
            match self.again() {
                Ok(()) => info!("the API's tokens and certificates were read again"),
                Err(error) => warn!("{error}; the API goes on with what it read before"),
            }
        }
    }

    fn again(&self) -> Result<(), SecretError> {
        let tokens = read_tokens(&self.settings)?;
        if let (Some(current), Some(new)) = (&self.tokens, tokens) {
            current.set(new);
        }
        if let (Some(current), Some(files)) = (&self.tls, &self.settings.tls) {
            current.set(read_tls(files)?);
        }
        Ok(())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// What tells a changed file from an unchanged one.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamps(settings: &Settings) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let tls = settings.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key]);
    let files = settings.read_tokens.iter().chain(&settings.write_tokens).chain(tls);
    let stamp = |file: &PathBuf| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    files.map(stamp).collect()
}

fn read_tokens(settings: &Settings) -> Result<Option<Tokens>, SecretError> {
    if settings.read_tokens.is_none() && settings.write_tokens.is_none() {
        return Ok(None);
    }
    let read = |path: &Option<PathBuf>| match path {
        Some(path) => tokens_in(path),
        None => Ok(Vec::new()),
    };
    Ok(Some(Tokens { read: read(&settings.read_tokens)?, write: read(&settings.write_tokens)? }))
}

fn tokens_in(path: &Path) -> Result<Vec<Vec<u8>>, SecretError> {
    let text =
        fs::read_to_string(path).map_err(|error| SecretError::Read(path.to_owned(), error))?;
    let lines = text.lines().map(str::trim).filter(|line| line.len() >= SHORTEST);
    let tokens: Vec<Vec<u8>> = lines.map(|line| line.as_bytes().to_vec()).collect();
    if tokens.is_empty() { Err(SecretError::NoToken(path.to_owned())) } else { Ok(tokens) }
}

fn read_tls(files: &Tls) -> Result<ServerConfig, SecretError> {
    let certificate = |error: &dyn fmt::Display| SecretError::Tls {
        path: files.certificate.clone(),
        why: error.to_string(),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate)
        .map_err(|error| certificate(&error))?
        .collect();
    let chain = chain.map_err(|error| certificate(&error))?;
    if chain.is_empty() {
        return Err(certificate(&"there is no certificate in it"));
    }
    let key = |why: String| SecretError::Tls { path: files.key.clone(), why };
    let private =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| key(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder
        .map_err(|error| key(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| key(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
