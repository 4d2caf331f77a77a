//! Who may do what.

use std::{net::IpAddr, time::Instant};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, Method, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};

use super::{
    limit::Rates,
    secret::{Current, Right, Tokens},
};
use crate::{
    ApiError,
    metrics::{Connected, Requests},
    page,
    routes::{MONITOR, TRACE},
};

/// Decides over each request of a listener.
#[derive(Clone)]
pub(super) struct Guard {
    requests: Requests,
    remote: Option<Remote>,
}

/// What is asked of clients that are not let in by the file system.
#[derive(Clone)]
struct Remote {
    tokens: Option<Current<Tokens>>,
    rates: Rates,
}

impl Guard {
    /// For a unix socket: the file's mode has decided already, but over pages of other sites.
    pub(super) fn trusting(requests: Requests) -> Self {
        Self { requests, remote: None }
    }

    /// For TCP. Without tokens, which is for loopback only, everybody there may do everything but
    /// web pages.
    pub(super) fn new(tokens: Option<Current<Tokens>>, rates: Rates, requests: Requests) -> Self {
        Self { requests, remote: Some(Remote { tokens, rates }) }
    }

    /// Counts a connection until that is dropped.
    pub(super) fn connected(&self) -> Connected {
        self.requests.connected(if self.remote.is_some() { "tcp" } else { "unix" })
    }

    /// The API for one connection from an address.
    pub(super) fn around(&self, api: Router, peer: Option<IpAddr>) -> Router {
        let (remote, requests) = (self.remote.clone(), self.requests.clone());
        api.layer(middleware::from_fn(move |request: Request, next: Next| {
            let verdict = match (&remote, peer) {
                (Some(remote), Some(peer)) => remote.admit(peer, &request),
                _ => by_the_socket(request.headers(), request.uri()),
            };
            let requests = requests.clone();
            async move { answer(verdict, request, next, &requests).await }
        }))
    }
}

async fn answer(
    verdict: Result<(), ApiError>,
    request: Request,
    next: Next,
    requests: &Requests,
) -> Response {
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let method = request.method().clone();
            let response = error.into_response();
            requests.refused(&method, response.status());
            response
        }
    }
}

impl Remote {
    fn admit(&self, peer: IpAddr, request: &Request) -> Result<(), ApiError> {
        if !self.rates.admit(peer, Instant::now()) {
            return Err(ApiError::TooMany);
        }
        let Some(tokens) = &self.tokens else {
            if request.uri().path() == MONITOR {
                return Err(ApiError::Forbidden(
                    "packets are shown on the unix socket, or with a token: any user of this host may ask here",
                ));
            }
            return not_by_a_page(request.headers(), request.uri());
        };
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        // It shows nothing by itself: what it asks for needs a token.
        if reads && page::is_open(request.uri().path()) {
            return Ok(());
        }
        let token = bearer(request.headers()).ok_or(ApiError::Unauthorized)?;
        let right = tokens.get().right(token.as_bytes()).ok_or(ApiError::Unauthorized)?;
        // A trace is sent with a body, and changes nothing.
        let reads = reads || request.uri().path() == TRACE;
        if right == Right::Read && !reads {
            return Err(ApiError::Forbidden("this token may only read"));
        }
        if right == Right::Read && request.uri().path() == MONITOR {
            return Err(ApiError::Forbidden("this token may not see what packets hold"));
        }
        Ok(())
    }
}

/// The token of a request (RFC 6750, 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Refuses what a page of another site makes a browser on this host send: by its name in `Host`,
/// which may lead here, or by its name in `Origin`.
fn not_by_a_page(headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = uri.authority().map(|one| one.as_str()).or_else(|| text(header::HOST));
    let host = host.unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host }
    });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let local = bare.eq_ignore_ascii_case("localhost")
        || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if !local {
        return Err(ApiError::Forbidden(
            "without a token, only requests to a loopback address are answered: use 127.0.0.1",
        ));
    }
    let same = |origin: &str| origin.split_once("://").is_some_and(|(_, name)| name == host);
    match text(header::ORIGIN) {
        Some(origin) if !same(origin) => {
            Err(ApiError::Forbidden("pages of other sites may not use the API"))
        }
        _ => Ok(()),
    }
}

/// The same on a unix socket, which browsers only reach where it is forwarded to a port of somebody's
/// own host: they name themselves by `Origin`.
fn by_the_socket(headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) { not_by_a_page(headers, uri) } else { Ok(()) }
}
