//! Reads requests; what cannot be read is told by a problem document.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::{ApiError, MAX_BODY};

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The query of a request.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(ApiError::Parameter(error.body_text())),
        }
    }
}

/// The names in a path.
pub(crate) struct Names<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Names<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(error) => Err(ApiError::Parameter(error.body_text())),
        }
    }
}

/// A body of one of two types of JSON; `PATCH` says which one is wanted.
pub(crate) struct Body<const PATCH: bool>(pub(crate) Value);

impl<S: Send + Sync, const PATCH: bool> FromRequest<S> for Body<PATCH> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        check_type(request.headers(), PATCH)?;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > MAX_BODY) {
            return Err(ApiError::TooLarge(MAX_BODY));
        }
        let bytes = timeout(PATIENCE, Bytes::from_request(request, state)).await;
        let bytes = bytes.map_err(|_| ApiError::Body("it did not come in time".to_owned()))?;
        let bytes = bytes.map_err(|error| refused(&error))?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| ApiError::Body(error.to_string()))
    }
}

fn refused(error: &BytesRejection) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::TooLarge(MAX_BODY)
    } else {
        ApiError::Body(error.body_text())
    }
}

fn check_type(headers: &HeaderMap, patch: bool) -> Result<(), ApiError> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = found.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is = |wanted: &str| essence.eq_ignore_ascii_case(wanted);
    let right = is("application/json") || patch && is("application/merge-patch+json");
    if right {
        return Ok(());
    }
    let found = found.map_or_else(|| "none that it says".to_owned(), str::to_owned);
    let wanted = if patch { "application/merge-patch+json" } else { "application/json" };
    Err(ApiError::MediaType { found, wanted })
}
