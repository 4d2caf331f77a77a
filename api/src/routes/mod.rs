//! The routes, and the document that describes them.

#![expect(unused_qualifications, reason = "utoipa's macros write them")]

mod benchmarks;
mod change;
mod flows;
mod metrics;
mod monitor;
mod polish;
mod read;
mod stream;
mod trace;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::header,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use utoipa::openapi::{
    Info, License, OpenApi, OpenApiBuilder, SecurityRequirement,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{ApiError, Control, MAX_BODY, metrics::Requests, page};

/// Where the routes are.
const ROOT: &str = "/api/v1";
/// A request that changes nothing, whatever its method.
pub(crate) const TRACE: &str = "/api/v1/trace";
/// A request that shows what others send.
pub(crate) const MONITOR: &str = "/api/v1/monitor";

/// What handlers get.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) control: Arc<dyn Control>,
    /// What the API counts of itself
    requests: Requests,
    /// The document as text
    document: Arc<str>,
}

fn routes() -> OpenApiRouter<Api> {
    let routes = OpenApiRouter::new()
        .routes(routes!(
            read::services_get,
            change::service_put,
            change::service_patch,
            change::service_delete
        ))
        .routes(routes!(read::services_list))
        .routes(routes!(read::service_backends_list))
        .routes(routes!(read::backend_get))
        .routes(routes!(change::backend_drain))
        .routes(routes!(change::backend_undrain))
        .routes(routes!(read::backends_list))
        .routes(routes!(read::frontends_list))
        .routes(routes!(read::frontend_get))
        .routes(routes!(read::devices_list))
        .routes(routes!(read::peers_list))
        .routes(routes!(read::events_list))
        .routes(routes!(read::health))
        .routes(routes!(read::status))
        .routes(routes!(read::config))
        .routes(routes!(read::kubernetes))
        .routes(routes!(benchmarks::benchmarks_list, benchmarks::benchmark_start))
        .routes(routes!(benchmarks::benchmark_get))
        .routes(routes!(benchmarks::benchmark_cancel))
        .routes(routes!(flows::counters))
        .routes(routes!(flows::flows_count))
        .routes(routes!(flows::flows_list))
        .routes(routes!(flows::maglev_digests))
        .routes(routes!(flows::maglev_table))
        .routes(routes!(stream::stream))
        .routes(routes!(trace::trace))
        .routes(routes!(monitor::monitor))
        .routes(routes!(openapi));
    OpenApiRouter::with_openapi(head()).nest(ROOT, routes).routes(routes!(metrics::metrics))
}

/// What stands above the routes in the document.
fn head() -> OpenApi {
    let mut info = Info::new("xdp-lb", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "What an instance of xdp-lb knows, and what may be changed. Errors are problem documents \
         (RFC 9457)."
            .to_owned(),
    );
    info.license = Some(License::new("Apache-2.0 OR MIT"));
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Over TCP, where tokens are configured; not over the unix socket"))
        .build();
    let mut head = OpenApiBuilder::new().info(info).build();
    let components = head.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    let none = SecurityRequirement::default();
    head.security = Some(vec![none, SecurityRequirement::new("token", [] as [&str; 0])]);
    head
}

/// The OpenAPI document, version 3.1.
pub fn document() -> OpenApi {
    polished().1
}

/// The routes and the document, as it is served.
fn polished() -> (Router<Api>, OpenApi) {
    let (router, mut document) = routes().split_for_parts();
    polish::polish(&mut document);
    (router, document)
}

/// The API over a daemon. It guards nothing: [`crate::server`] does.
pub fn router(control: Arc<dyn Control>) -> Router {
    counting(control, Requests::default())
}

/// The same; it counts what it answers.
pub(crate) fn counting(control: Arc<dyn Control>, requests: Requests) -> Router {
    let (router, document) = polished();
    // A document of text and numbers can always be written.
    let document = document.to_pretty_json().unwrap_or_default().into();
    page::add(router)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn({
            let requests = requests.clone();
            move |request: Request, next: Next| requests.clone().answer(request, next)
        }))
        .with_state(Api { control, requests, document })
}

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "document",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = serde_json::Value))
)]
async fn openapi(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.document.to_string()).into_response()
}

async fn no_route(request: Request) -> ApiError {
    ApiError::Route(request.uri().path().to_owned())
}

async fn no_method(request: Request) -> ApiError {
    ApiError::Method(request.uri().path().to_owned(), request.method().to_string())
}
