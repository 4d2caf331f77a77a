//! A client over a unix socket or TCP, for the command line.

mod events;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

pub use self::events::{Event, Events};
use crate::{Page, Problem};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer, in bytes.
const LARGEST: usize = 256 << 20;

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "cannot reach the daemon at {at}: {source}; is it running, and may you use the socket?"
    )]
    Connect {
        /// The socket or the address
        at: String,
        /// The kernel's answer
        source: io::Error,
    },
    /// What it was told to use cannot be used.
    #[error("{0}")]
    Setup(String),
    /// The connection broke.
    #[error("the daemon does not answer as it should: {0}")]
    Broken(String),
    /// The daemon refuses.
    #[error("{}", in_lines(.0))]
    Refused(Box<Problem>),
}

fn in_lines(problem: &Problem) -> String {
    if problem.errors.len() < 2 {
        return problem.detail.clone();
    }
    let mut text = format!("{}:", problem.title);
    for error in &problem.errors {
        text.push_str(&format!("\n{}: {}", error.pointer, error.detail));
    }
    text
}

/// Where the daemon is.
#[derive(Clone)]
enum Endpoint {
    Unix(PathBuf),
    Tcp { authority: String, tls: Option<(TlsConnector, ServerName<'static>)> },
}

/// Talks to the daemon.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
}

/// An answer that is no problem.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code
    pub status: StatusCode,
    /// Entity tag, where there is one
    pub etag: Option<String>,
    /// Body
    pub body: Bytes,
}

impl Client {
    /// A client over this unix socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { endpoint: Endpoint::Unix(socket), token: None }
    }

    /// A client over TCP: `http://HOST:PORT`, or `https://HOST:PORT` with the certificates (PEM) of
    /// those who may vouch for the server.
    ///
    /// # Errors
    ///
    /// Where the address is none of these, or the certificates cannot be used.
    pub fn tcp(
        address: &str,
        token: Option<String>,
        authorities: Option<&Path>,
    ) -> Result<Self, ClientError> {
        let wrong = || {
            ClientError::Setup(format!(
                "{address} is not like https://HOST:PORT or http://HOST:PORT"
            ))
        };
        let (scheme, authority) = address.split_once("://").ok_or_else(wrong)?;
        let authority = authority.trim_end_matches('/').to_owned();
        let (host, _) = authority.rsplit_once(':').ok_or_else(wrong)?;
        let tls = match scheme {
            "http" => None,
            "https" => {
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(|_| wrong())?;
                Some((connector(authorities)?, name))
            }
            _ => return Err(wrong()),
        };
        Ok(Self { endpoint: Endpoint::Tcp { authority, tls }, token })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let at = || path.display().to_string();
                let stream = UnixStream::connect(path).await;
                Ok(Box::new(stream.map_err(|source| ClientError::Connect { at: at(), source })?))
            }
            Endpoint::Tcp { authority, tls } => {
                let error = |source| ClientError::Connect { at: authority.clone(), source };
                let stream = TcpStream::connect(authority).await.map_err(error)?;
                Ok(match tls {
                    None => Box::new(stream),
                    Some((tls, name)) => {
                        Box::new(tls.connect(name.clone(), stream).await.map_err(error)?)
                    }
                })
            }
        }
    }

    fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp { authority, .. } => authority,
        }
    }

    /// Sends a request; `path` begins behind `/api/v1`.
    ///
    /// # Errors
    ///
    /// Where there is no answer, or a problem.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response, ClientError> {
        let (response, connection) = self.open(method, path, body, headers).await?;
        let (parts, body) = response.into_parts();
        let body = whole(body).await;
        connection.abort();
        let etag = parts.headers.get(header::ETAG).and_then(|value| value.to_str().ok());
        Ok(Response { status: parts.status, etag: etag.map(str::to_owned), body: body? })
    }

    /// Sends a request; what comes is an answer that is no problem, as far as its body.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<(hyper::Response<Incoming>, JoinHandle<hyper::Result<()>>), ClientError> {
        let stream = timeout(PATIENCE, self.connect()).await;
        let stream =
            stream.map_err(|_| ClientError::Broken("it takes no connection".to_owned()))??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method.clone()).uri(format!("/api/v1{path}"));
        request = request.header(header::HOST, self.host());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let body = match body {
            None => Body::empty(),
            Some(value) => {
                let kind = if method == Method::PATCH { "merge-patch+json" } else { "json" };
                request = request.header(header::CONTENT_TYPE, format!("application/{kind}"));
                Body::from(value.to_string())
            }
        };
        let request = request.body(body).map_err(|error| broken(&error))?;
        let response = timeout(PATIENCE, sender.send_request(request)).await;
        let response = response.map_err(|error| broken(&error))?.map_err(|error| broken(&error))?;
        if response.status().is_client_error() || response.status().is_server_error() {
            let body = whole(response.into_body()).await;
            connection.abort();
            let problem = serde_json::from_slice(&body?).map_err(|error| broken(&error))?;
            return Err(ClientError::Refused(Box::new(problem)));
        }
        Ok((response, connection))
    }

    /// Reads one thing.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::GET, path, None, &[]).await?;
        serde_json::from_slice(&response.body)
            .map_err(|error| ClientError::Broken(error.to_string()))
    }

    /// Reads all pages of a list.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let join = if path.contains('?') { '&' } else { '?' };
        let first = format!("{path}{join}limit=1000");
        let mut all = Vec::new();
        let mut next = first.clone();
        loop {
            let page: Page<T> = self.get(&next).await?;
            all.extend(page.items);
            let Some(token) = page.next else { return Ok(all) };
            next = format!("{first}&continue={token}");
        }
    }
}

fn broken(error: &dyn fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

/// All of a body.
async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    let body = timeout(PATIENCE, Limited::new(body, LARGEST).collect()).await;
    let body = body.map_err(|error| broken(&error))?;
    Ok(body.map_err(|error| broken(&error))?.to_bytes())
}

/// A connection of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, ClientError> {
    let path = authorities.ok_or_else(|| {
        ClientError::Setup("https needs the certificate of the server's authority (PEM)".to_owned())
    })?;
    let unusable =
        |error: &dyn fmt::Display| ClientError::Setup(format!("{}: {error}", path.display()));
    let mut roots = RootCertStore::empty();
    for one in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))? {
        let one = one.map_err(|error| unusable(&error))?;
        roots.add(one).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A name as it stands in a path or a query (RFC 3986, 2.1).
pub fn escape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
