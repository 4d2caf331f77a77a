//! What would become of a packet.

use axum::{Json, extract::State};

use super::Api;
use crate::{
    ApiError, FieldError, Problem,
    extract::Body,
    trace::{TraceRequest, TraceView},
};

/// What would become of a packet now, step by step
///
/// The kernel runs the program on a copy, over the tables that real packets meet. Nothing is sent,
/// counted or recorded, so a token that may only read is enough.
#[utoipa::path(
    post, path = "/trace", tag = "data path", request_body = TraceRequest,
    responses(
        (status = 200, description = "What becomes of it", body = TraceView),
        (status = 400, description = "The JSON", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "There is no such packet", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The kernel refuses", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn trace(
    State(api): State<Api>,
    Body(request): Body<false>,
) -> Result<Json<TraceView>, ApiError> {
    let request: TraceRequest = serde_json::from_value(request).map_err(|error| {
        ApiError::Packet(FieldError { pointer: String::new(), detail: error.to_string() })
    })?;
    api.control.trace(request).await.map(Json)
}
