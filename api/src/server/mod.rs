//! Serves the API on a unix socket and on TCP, and guards it.
//!
//! Whatever fails here is said and tried again: the data path goes on without it.

mod access;
mod limit;
mod secret;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use self::{access::Guard, limit::Rates, secret::Secrets};
use crate::{Control, metrics::Requests, routes::counting};

/// Connections at one time on each listener.
const CONNECTIONS: usize = 512;
/// How long a client may take for its request's head, and for a TLS handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a listener that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the API is served, and to whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Path of the unix socket; none for no such socket
    pub socket: Option<PathBuf>,
    /// Group that may use the socket; that of the process where there is none
    pub group: Option<u32>,
    /// Address for TCP; none for no TCP
    pub listen: Option<SocketAddr>,
    /// File with tokens that may only read
    pub read_tokens: Option<PathBuf>,
    /// File with tokens that may do everything
    pub write_tokens: Option<PathBuf>,
    /// TLS, where it is wanted
    pub tls: Option<Tls>,
}

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tls {
    /// The certificate and those that vouch for it
    pub certificate: PathBuf,
    /// Its private key
    pub key: PathBuf,
}

impl Settings {
    /// Why TCP cannot be served like this.
    fn unsafe_because(&self) -> Option<&'static str> {
        let remote = self.listen.is_some_and(|listen| !listen.ip().is_loopback());
        let tokens = self.read_tokens.is_some() || self.write_tokens.is_some();
        match (remote, tokens, self.tls.is_some()) {
            (true, false, _) => Some("an address off loopback needs a token file"),
            (true, true, false) => Some("an address off loopback needs a certificate (`tls`)"),
            _ => None,
        }
    }
}

/// Serves until the sender of the settings is gone; each change of them takes effect at once.
pub async fn serve(mut settings: watch::Receiver<Settings>, control: Arc<dyn Control>) {
    let requests = Requests::default();
    let api = counting(control, requests.clone());
    loop {
        let now = settings.borrow_and_update().clone();
        let mut listeners = JoinSet::new();
        if let Some(socket) = now.socket.clone() {
            listeners.spawn(on_unix(socket, now.group, api.clone(), requests.clone()));
        }
        if let Some(listen) = now.listen {
            listeners.spawn(on_tcp(listen, now.clone(), api.clone(), requests.clone()));
        }
        // Dropped with the settings that they serve, and their connections with them.
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// A listener's way to say once what stands.
#[derive(Default)]
struct Said(String);

impl Said {
    fn failed(&mut self, text: String) {
        if self.0 != text {
            warn!("the API is not served on {text}; it is tried again, and the data path goes on");
            self.0 = text;
        }
    }
}

async fn on_unix(path: PathBuf, group: Option<u32>, api: Router, requests: Requests) {
    let mut said = Said::default();
    let guard = Guard::trusting(requests);
    loop {
        match bind_unix(&path, group) {
            Ok(listener) => {
                said = Said::default();
                info!("the API is served on {}", path.display());
                let _file = Unlink(path.clone());
                accept(listener, |_| None, None, guard.clone(), api.clone()).await;
            }
            Err(error) => said.failed(format!("{}: {error}", path.display())),
        }
        sleep(AGAIN).await;
    }
}

/// Removes the socket's file in the end: nobody would answer there.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn bind_unix(path: &Path, group: Option<u32>) -> std::io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(std::io::Error::other("there is a file that is no socket: remove it"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::other(
                "another instance serves there: choose another path",
            ));
        }
        // Left by a process that was killed.
        fs::remove_file(path)?;
    }
    // Bound under another name first: nobody may connect before the mode is right.
    let new = path.with_extension(format!("new{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    let ready = fs::set_permissions(&new, fs::Permissions::from_mode(0o660))
        .and_then(|()| match group {
            Some(group) => std::os::unix::fs::chown(&new, None, Some(group)),
            None => Ok(()),
        })
        .and_then(|()| fs::rename(&new, path));
    if let Err(error) = ready {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    Ok(listener)
}

async fn on_tcp(listen: SocketAddr, settings: Settings, api: Router, requests: Requests) {
    let mut said = Said::default();
    loop {
        match start_tcp(listen, &settings).await {
            Ok((listener, secrets)) => {
                said = Said::default();
                info!("the API is served on {}", listener.local_addr().unwrap_or(listen));
                let guard = Guard::new(secrets.tokens(), Rates::default(), requests.clone());
                tokio::select! {
                    () = accept(listener, |peer| Some(peer.ip()), secrets.tls(), guard, api.clone()) => {}
                    () = secrets.follow() => {}
                }
            }
            Err(text) => said.failed(format!("{listen}: {text}")),
        }
        sleep(AGAIN).await;
    }
}

async fn start_tcp(
    listen: SocketAddr,
    settings: &Settings,
) -> Result<(TcpListener, Arc<Secrets>), String> {
    if let Some(why) = settings.unsafe_because() {
        return Err(why.to_owned());
    }
    let secrets = Secrets::read(settings).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(listen).await.map_err(|error| error.to_string())?;
    Ok((listener, Arc::new(secrets)))
}

/// Serves connections for ever.
async fn accept<L: Listener>(
    mut listener: L,
    address: fn(&L::Addr) -> Option<IpAddr>,
    tls: Option<secret::Current<tokio_rustls::rustls::ServerConfig>>,
    guard: Guard,
    api: Router,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        // Waits a second where there are no descriptors left.
        let (stream, peer) = listener.accept().await;
        let peer = address(&peer);
        let connected = guard.connected();
        let api = guard.around(api.clone(), peer);
        let tls = tls.as_ref().map(|current| TlsAcceptor::from(current.get()));
        connections.spawn(async move {
            let _place = (place, connected);
            match tls {
                None => talk(stream, api).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await {
                        talk(stream, api).await;
                    }
                }
            }
        });
    }
}

/// Serves one connection.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, api: Router) {
    let result = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(api))
        .await;
    if let Err(error) = result {
        tracing::debug!("a connection of the API ended: {error}");
    }
}
