//! What changes services.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::{
    ApiError, Change, Drain, Precondition, Problem, ServiceSpec, What, etag,
    extract::{Body, Names, Params},
    view::ServiceView,
};

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangeParams {
    /// Whether to try only: the answer is what it would be, and nothing changes
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrainParams {
    /// Whether it is removed from its service once its last flow is gone; the API's services only
    #[serde(default)]
    remove: bool,
    /// Whether to try only: the answer is what it would be, and nothing changes
    #[serde(default)]
    dry_run: bool,
}

/// A service and its entity tag.
pub(super) fn tagged(status: StatusCode, service: &Arc<ServiceView>) -> Response {
    let tag = etag(&**service);
    let mut response = (status, Json(&**service)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

async fn change(
    api: &Api,
    what: What,
    headers: &HeaderMap,
    dry_run: bool,
) -> Result<Response, ApiError> {
    let precondition = Precondition::read(headers)?;
    let change = Change { what, precondition, dry_run };
    let changed = api.control.change(change).await?;
    let status = if changed.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(match changed.service {
        Some(service) => tagged(status, &service),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Create a service, or replace it
///
/// The same twice changes nothing the second time. `If-None-Match: *` only creates, `If-Match` only
/// replaces what was read. The answer comes when the service is stored; the data path follows within
/// moments, and its frontends tell.
#[utoipa::path(
    put,
    path = "/services/{name}",
    tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ChangeParams,
        ("If-Match" = Option<String>, Header, description = "ETags, one of which it must have"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: it must not exist yet"),
    ),
    request_body = ServiceSpec,
    responses(
        (status = 200, description = "Replaced", body = ServiceView, headers(("ETag" = String))),
        (status = 201, description = "Created", body = ServiceView, headers(("ETag" = String))),
        (status = 400, description = "A parameter, or the JSON", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another owner, or a frontend of another service", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "It has changed", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Rules are broken", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn service_put(
    State(api): State<Api>,
    Names(name): Names<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    Body(service): Body<false>,
) -> Result<Response, ApiError> {
    change(&api, What::Put { name, service }, &headers, params.dry_run).await
}

/// Change some of a service, by a merge patch (RFC 7396)
#[utoipa::path(
    patch,
    path = "/services/{name}",
    tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ChangeParams,
        ("If-Match" = Option<String>, Header, description = "ETags, one of which it must have"),
    ),
    request_body(content = serde_json::Value, content_type = "application/merge-patch+json", description = "Some keys of the service; `null` removes one"),
    responses(
        (status = 200, description = "Changed", body = ServiceView, headers(("ETag" = String))),
        (status = 400, description = "A parameter, or the JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such service", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another owner, or a frontend of another service", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "It has changed", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Rules are broken", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn service_patch(
    State(api): State<Api>,
    Names(name): Names<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    Body(patch): Body<true>,
) -> Result<Response, ApiError> {
    change(&api, What::Patch { name, patch }, &headers, params.dry_run).await
}

/// Remove a service
#[utoipa::path(
    delete,
    path = "/services/{name}",
    tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ChangeParams,
        ("If-Match" = Option<String>, Header, description = "ETags, one of which it must have"),
    ),
    responses(
        (status = 204, description = "Removed"),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such service", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another owner", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "It has changed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn service_delete(
    State(api): State<Api>,
    Names(name): Names<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    change(&api, What::Delete { name }, &headers, params.dry_run).await
}

/// Drain a backend: it keeps its flows and gets no new ones
///
/// Works for services of every owner.
#[utoipa::path(
    post,
    path = "/services/{service}/backends/{backend}/drain",
    tag = "backends",
    params(
        ("service" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ("backend" = String, Path, description = "`address` or `address:port`, as the service names it"),
        DrainParams,
        ("If-Match" = Option<String>, Header, description = "ETags, one of which the service must have"),
    ),
    responses(
        (status = 200, description = "Drained", body = ServiceView, headers(("ETag" = String))),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such backend", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is another owner's, and cannot be removed", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The service has changed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn backend_drain(
    State(api): State<Api>,
    Names((service, backend)): Names<(String, String)>,
    Params(DrainParams { remove, dry_run }): Params<DrainParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let drain = if remove { Drain::ThenRemove } else { Drain::Keep };
    change(&api, What::Drain { service, backend, drain }, &headers, dry_run).await
}

/// Let a drained backend have new flows again
#[utoipa::path(
    post,
    path = "/services/{service}/backends/{backend}/undrain",
    tag = "backends",
    params(
        ("service" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ("backend" = String, Path, description = "`address` or `address:port`, as the service names it"),
        ChangeParams,
        ("If-Match" = Option<String>, Header, description = "ETags, one of which the service must have"),
    ),
    responses(
        (status = 200, description = "No longer drained", body = ServiceView, headers(("ETag" = String))),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such backend", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The service has changed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn backend_undrain(
    State(api): State<Api>,
    Names((service, backend)): Names<(String, String)>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    change(&api, What::Drain { service, backend, drain: Drain::Undo }, &headers, params.dry_run)
        .await
}
