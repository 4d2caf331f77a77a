//! What can go wrong, and how clients are told (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::view::Owner;

/// Where each kind of problem is described.
const TYPES: &str = "https://github.com/xdp-lb/xdp-lb/blob/main/docs/api.md#";

/// A part of a request that cannot be accepted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer into the body (RFC 6901), empty for the whole
    pub pointer: String,
    /// What is wrong, and what to write instead
    pub detail: String,
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// URI of the kind of problem
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    pub kind: String,
    /// The kind of problem in a few words
    pub title: String,
    /// Status code of the answer
    pub status: u16,
    /// What is wrong with this request, and what to do
    pub detail: String,
    /// The parts of the request that are wrong
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Who owns what was to be changed
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// Why a request is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// A parameter of the query or the path cannot be used.
    #[error("{0}")]
    Parameter(String),
    /// The body is no JSON document.
    #[error("the body cannot be read as JSON: {0}")]
    Body(String),
    /// The body is not said to be JSON.
    #[error("the body is of type {found}: send {wanted}")]
    MediaType {
        /// What the request says
        found: String,
        /// What to send instead
        wanted: &'static str,
    },
    /// The body is too large.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// There is no token, or not the right one.
    #[error("send the header `Authorization: Bearer TOKEN` with a token of this instance")]
    Unauthorized,
    /// The token, or where the request comes from, does not allow this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is no such thing.
    #[error("there is no {what} {name}")]
    Unknown {
        /// Like `service`
        what: &'static str,
        /// What was asked for
        name: String,
    },
    /// There is no such route.
    #[error("there is nothing at {0}: see /api/v1/openapi.json")]
    Route(String),
    /// The route has no such method.
    #[error("{0} has no method {1}: see /api/v1/openapi.json")]
    Method(String, String),
    /// What `If-Match` or `If-None-Match` says does not hold.
    #[error("{name} has changed meanwhile: its ETag is {found}; read it again, then try again")]
    Precondition {
        /// The service
        name: String,
        /// What the ETag is, in words where there is none
        found: String,
    },
    /// It belongs to somebody else.
    #[error("service {name} belongs to {owner}: {advice}", advice = .owner.advice())]
    ReadOnly {
        /// The service
        name: String,
        /// Its owner
        owner: Owner,
    },
    /// The service breaks rules.
    #[error("the service cannot be accepted: {}", summary(.0))]
    Invalid(Vec<FieldError>),
    /// There is no such packet, or it cannot come in there.
    #[error("the packet cannot be traced: {}", summary(std::slice::from_ref(.0)))]
    Packet(FieldError),
    /// The service contradicts others.
    #[error("the service contradicts others: {}", summary(.0))]
    Conflict(Vec<FieldError>),
    /// A benchmark runs already.
    #[error(
        "benchmark {0} runs: wait until it is done, or end it (POST /api/v1/benchmarks/{0}/cancel)"
    )]
    Busy(String),
    /// Too many requests.
    #[error("too many requests: wait a second")]
    TooMany,
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
}

/// The first error in full, and how many more there are.
fn summary(errors: &[FieldError]) -> String {
    match errors {
        [] => "it is not said why".to_owned(),
        [one] => format!("{}: {}", place(one), one.detail),
        [first, more @ ..] => {
            format!("{}: {} ({} more)", place(first), first.detail, more.len())
        }
    }
}

fn place(error: &FieldError) -> &str {
    if error.pointer.is_empty() { "the body" } else { &error.pointer }
}

impl ApiError {
    /// Status code, name and title of each kind.
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Parameter(_) => (StatusCode::BAD_REQUEST, "parameter", "A parameter is wrong"),
            Self::Body(_) => (StatusCode::BAD_REQUEST, "body", "The body is not JSON"),
            Self::MediaType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "The body is of another type")
            }
            Self::TooLarge(_) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large")
            }
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "A token is needed"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "This is not allowed"),
            Self::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown", "It does not exist"),
            Self::Route(_) => (StatusCode::NOT_FOUND, "route", "There is no such route"),
            Self::Method(..) => {
                (StatusCode::METHOD_NOT_ALLOWED, "method", "The route has no such method")
            }
            Self::Precondition { .. } => {
                (StatusCode::PRECONDITION_FAILED, "precondition", "It has changed meanwhile")
            }
            Self::ReadOnly { .. } => {
                (StatusCode::CONFLICT, "read-only", "It belongs to somebody else")
            }
            Self::Invalid(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The service breaks rules")
            }
            Self::Packet(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "packet", "There is no such packet")
            }
            Self::Conflict(_) => {
                (StatusCode::CONFLICT, "conflict", "The service contradicts others")
            }
            Self::Busy(_) => (StatusCode::CONFLICT, "busy", "A benchmark runs already"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many requests"),
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "It cannot be done now")
            }
        }
    }

    /// The document that clients get.
    pub fn problem(&self) -> Problem {
        let (status, name, title) = self.parts();
        let errors = match self {
            Self::Invalid(errors) | Self::Conflict(errors) => errors.clone(),
            Self::Packet(error) => vec![error.clone()],
            Self::Parameter(_)
            | Self::Body(_)
            | Self::MediaType { .. }
            | Self::TooLarge(_)
            | Self::Unauthorized
            | Self::Forbidden(_)
            | Self::Unknown { .. }
            | Self::Route(_)
            | Self::Method(..)
            | Self::Precondition { .. }
            | Self::ReadOnly { .. }
            | Self::Busy(_)
            | Self::TooMany
            | Self::Unavailable(_) => Vec::new(),
        };
        let owner = if let Self::ReadOnly { owner, .. } = self { Some(*owner) } else { None };
        Problem {
            kind: format!("{TYPES}{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.to_string(),
            errors,
            owner,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.parts().0, Json(self.problem())).into_response();
        let headers = response.headers_mut();
        let value = HeaderValue::from_static;
        headers.insert(header::CONTENT_TYPE, value("application/problem+json"));
        if self == Self::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, value("Bearer realm=\"xdp-lb\""));
        }
        if self == Self::TooMany {
            headers.insert(header::RETRY_AFTER, value("1"));
        }
        response
    }
}
