//! The page for Prometheus.

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};

use super::Api;
use crate::{ApiError, Problem, metrics::Format};

/// Metrics for Prometheus
///
/// In the format that `Accept` prefers: OpenMetrics, or the older text format.
#[utoipa::path(
    get, path = "/metrics", tag = "instance",
    params(("Accept" = Option<String>, Header, description = "`application/openmetrics-text` or `text/plain`")),
    responses(
        (status = 200, description = "All metrics", content(
            (String = "text/plain"), (String = "application/openmetrics-text"),
        )),
        (status = 503, description = "They cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn metrics(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = Format::wanted(&headers);
    let mut registry = api.control.metrics().await?;
    api.requests.register(&mut registry);
    // Thousands of lines take some milliseconds.
    let page = tokio::task::spawn_blocking(move || format.write(&registry)).await;
    let page = page.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], page).into_response())
}
