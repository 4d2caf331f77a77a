//! Small HTTP servers whose answers are computed when they are asked for.

use std::{convert::Infallible, io, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at one time to one server.
const CONNECTIONS: usize = 256;
/// How long a client may take for its request's head.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(300);
/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// An answer in JSON.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

/// What answers: the path of a request in, the answer out; nothing where there is no such path.
pub(super) type Handler = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Takes an address. One of IPv6 takes nothing of IPv4, whatever the host's setting.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until it is aborted; open connections end with it.
pub(super) async fn serve(listener: TcpListener, handler: Handler) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors are left, perhaps.
            sleep(Duration::from_secs(1)).await;
            continue;
        };
        let handler = handler.clone();
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = response(handler(request.uri().path()));
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                // As Go writes them.
                .title_case_headers(true)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(LIFE, connection).await;
        });
    }
}

fn response(answer: Option<Answer>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let plain = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, plain);
    let kind = match answer {
        Some(answer) => {
            *response.status_mut() = answer.status;
            for (name, value) in answer.headers {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
            *response.body_mut() = answer.body.into();
            "application/json"
        }
        None => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = "404 page not found\n".into();
            "text/plain; charset=utf-8"
        }
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
