//! Asks one backend, once.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, OnceLock},
};

use axum::body::Body;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, UdpSocket},
};
use tokio_rustls::{TlsConnector, rustls};
use xdp_lb_plan::health::{Answer, Http, Probe, Udp};

use super::{Target, verifier::Anyone};
use crate::error::chain;

/// The header by which a backend sets its weight.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// Why an answer is bad.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it cannot be asked: {0}")]
    Socket(#[source] io::Error),
    #[error("it takes no connection: {0}")]
    Connect(#[source] io::Error),
    #[error("it speaks no TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("its name cannot be asked for in TLS: {0}")]
    Name(String),
    #[error("it does not answer in HTTP: {}", chain(.0))]
    Http(#[from] hyper::Error),
    #[error("its status is {0}, not {1} to {2}")]
    Status(u16, u16, u16),
    #[error("it answers no datagram: {0}")]
    Datagram(#[source] io::Error),
    #[error("its answer begins with other bytes")]
    Unexpected,
}

/// Asks a backend; the caller limits the time.
pub(super) async fn ask(target: &Target) -> Result<Answer, Problem> {
    match &target.check.probe {
        Probe::Tcp => connect(target).await.map(|_| Answer::Good { weight: None }),
        Probe::Http(http) => request(target, http).await,
        Probe::Udp(udp) => exchange(target, udp).await,
    }
}

fn mark(socket: &impl AsFd, target: &Target) -> Result<(), Problem> {
    let Some(mark) = target.mark else { return Ok(()) };
    setsockopt(socket, sockopt::Mark, &mark).map_err(|errno| Problem::Socket(errno.into()))
}

/// Connects; the connection ends by a reset, which leaves nothing behind on either side.
async fn connect(target: &Target) -> Result<TcpStream, Problem> {
    let socket = match target.to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(Problem::Socket)?;
    mark(&socket, target)?;
    socket.set_zero_linger().map_err(Problem::Socket)?;
    socket.connect(target.to).await.map_err(Problem::Connect)
}

async fn request(target: &Target, http: &Http) -> Result<Answer, Problem> {
    let stream = connect(target).await?;
    let response = if http.tls {
        let name = server_name(target, http)?;
        let stream = connector()?.connect(name, stream).await.map_err(Problem::Tls)?;
        talk(stream, target, http).await?
    } else {
        talk(stream, target, http).await?
    };
    let status = response.status().as_u16();
    if !http.status.contains(&status) {
        return Err(Problem::Status(status, *http.status.start(), *http.status.end()));
    }
    let weight = response.headers().get(WEIGHT).filter(|_| http.weight);
    // What is no weight says nothing.
    let weight = weight.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Ok(Answer::Good { weight })
}

/// Sends the request and reads the answer's head; its body is not waited for.
async fn talk(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    http: &Http,
) -> Result<Response<Incoming>, Problem> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    let host = http.host.clone().unwrap_or_else(|| target.to.to_string());
    let request = Request::builder()
        .uri(&http.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("xdp-lb/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Body::empty())
        .map_err(|error| Problem::Name(error.to_string()))?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?),
        // It ends with an error first where there is one; otherwise the answer is there.
        Err(error) = connection => Err(error.into()),
    }
}

fn server_name(
    target: &Target,
    http: &Http,
) -> Result<rustls::pki_types::ServerName<'static>, Problem> {
    use rustls::pki_types::ServerName;
    let Some(host) = &http.host else { return Ok(ServerName::from(target.to.ip())) };
    // Without the port, and an IPv6 address without its brackets.
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    ServerName::try_from(name.to_owned()).map_err(|error| Problem::Name(error.to_string()))
}

fn connector() -> Result<TlsConnector, Problem> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = match CONFIG.get() {
        Some(config) => config.clone(),
        None => {
            let config = Anyone::config().map_err(|error| Problem::Tls(io::Error::other(error)))?;
            CONFIG.get_or_init(|| Arc::new(config)).clone()
        }
    };
    Ok(config.into())
}

async fn exchange(target: &Target, udp: &Udp) -> Result<Answer, Problem> {
    let any: IpAddr = match target.to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(Problem::Socket)?;
    mark(&socket, target)?;
    // Connected, so that only this backend is heard, and ICMP errors are.
    socket.connect(target.to).await.map_err(Problem::Datagram)?;
    socket.send(&udp.send).await.map_err(Problem::Datagram)?;
    let mut answer = vec![0; udp.expect.len().max(1)];
    let length = socket.recv(&mut answer).await.map_err(Problem::Datagram)?;
    let begins = length >= udp.expect.len() && answer.starts_with(&udp.expect);
    if begins { Ok(Answer::Good { weight: None }) } else { Err(Problem::Unexpected) }
}
