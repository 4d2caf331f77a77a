//! What only reads snapshots.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::{Api, change::tagged};
use crate::{
    ApiError, Page, Precondition, Problem, etag,
    extract::{Names, Params},
    list::Paging,
    view::{
        BackendState, BackendView, DeviceView, EventKind, EventView, FrontendState, FrontendView,
        HealthView, KubernetesView, Owner, PeerView, ServiceView, StatusView,
    },
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ServiceParams {
    /// Only those of this owner
    owner: Option<Owner>,
    /// Only those whose name contains this
    name: Option<String>,
    /// Items on a page, 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// What the page before said
    r#continue: Option<String>,
}

/// All services, whoever declares them
#[utoipa::path(
    get, path = "/services", tag = "services", params(ServiceParams),
    responses(
        (status = 200, description = "A page of services", body = Page<ServiceView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn services_list(
    State(api): State<Api>,
    Params(params): Params<ServiceParams>,
) -> Result<Json<Page<ServiceView>>, ApiError> {
    let paging = Paging::new(params.limit, params.r#continue.as_deref())?;
    let services = api.control.services().borrow().clone();
    let wanted = services.by_name.values().filter(|one| {
        params.owner.is_none_or(|owner| one.owner == owner)
            && params.name.as_ref().is_none_or(|part| one.name.contains(part))
    });
    let page = paging.of(wanted.map(|one| (one.name.clone(), one)));
    let items = page.items.into_iter().map(|one| ServiceView::clone(one)).collect();
    Ok(Json(Page { items, total: page.total, next: page.next }))
}

/// A service
#[utoipa::path(
    get, path = "/services/{name}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ("If-None-Match" = Option<String>, Header, description = "ETags that are known already"),
    ),
    responses(
        (status = 200, description = "The service", body = ServiceView, headers(("ETag" = String))),
        (status = 304, description = "It is one that is known"),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such service", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn services_get(
    State(api): State<Api>,
    Names(name): Names<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let precondition = Precondition::read(&headers)?;
    let service = service(&api, &name)?;
    if precondition.is_known(&etag(&*service)) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    Ok(tagged(StatusCode::OK, &service))
}

fn service(api: &Api, name: &str) -> Result<Arc<ServiceView>, ApiError> {
    let services = api.control.services().borrow().clone();
    let found = services.by_name.get(name).cloned();
    found.ok_or_else(|| ApiError::Unknown { what: "service", name: name.to_owned() })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FrontendParams {
    /// Only those of this service
    service: Option<String>,
    /// Only those in this state
    state: Option<FrontendState>,
    /// Items on a page, 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// What the page before said
    r#continue: Option<String>,
}

/// All frontends, and what becomes of them
#[utoipa::path(
    get, path = "/frontends", tag = "frontends", params(FrontendParams),
    responses(
        (status = 200, description = "A page of frontends", body = Page<FrontendView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn frontends_list(
    State(api): State<Api>,
    Params(params): Params<FrontendParams>,
) -> Result<Json<Page<FrontendView>>, ApiError> {
    let paging = Paging::new(params.limit, params.r#continue.as_deref())?;
    let state = api.control.state().borrow().clone();
    let wanted = state.frontends.iter().filter(|(_, one)| {
        params.state.is_none_or(|wanted| one.state == wanted)
            && params.service.as_ref().is_none_or(|service| one.service == *service)
    });
    let page = paging.of(wanted.map(|(key, one)| (key.clone(), one)));
    let items = page.items.into_iter().cloned().collect();
    Ok(Json(Page { items, total: page.total, next: page.next }))
}

/// A frontend
#[utoipa::path(
    get, path = "/frontends/{frontend}", tag = "frontends",
    params(("frontend" = String, Path, description = "Like `203.0.113.10:80%2FTCP`")),
    responses(
        (status = 200, description = "The frontend", body = FrontendView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such frontend", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn frontend_get(
    State(api): State<Api>,
    Names(name): Names<String>,
) -> Result<Json<FrontendView>, ApiError> {
    let state = api.control.state().borrow().clone();
    let found = state.frontends.get(&name).cloned();
    found.map(Json).ok_or(ApiError::Unknown { what: "frontend", name })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BackendParams {
    /// Only those in this state
    state: Option<BackendState>,
    /// Only those with this address, whatever the port
    #[param(value_type = Option<String>)]
    address: Option<std::net::IpAddr>,
    /// Items on a page, 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// What the page before said
    r#continue: Option<String>,
}

fn backends(
    api: &Api,
    params: &BackendParams,
    service: Option<&str>,
) -> Result<Json<Page<BackendView>>, ApiError> {
    let paging = Paging::new(params.limit, params.r#continue.as_deref())?;
    let state = api.control.state().borrow().clone();
    let address = |one: &BackendView| {
        let socket = one.backend.parse().map(|socket: std::net::SocketAddr| socket.ip());
        socket.or_else(|_| one.backend.parse()).ok()
    };
    let wanted = state.backends.iter().filter(|((name, _), one)| {
        service.is_none_or(|service| name == service)
            && params.state.is_none_or(|wanted| one.state == wanted)
            && params.address.is_none_or(|wanted| address(one) == Some(wanted))
    });
    // No name contains a zero, so that the keys' order is that of the pairs.
    let page = paging.of(wanted.map(|((name, backend), one)| (format!("{name}\0{backend}"), one)));
    let items = page.items.into_iter().cloned().collect();
    Ok(Json(Page { items, total: page.total, next: page.next }))
}

/// All backends of all services
#[utoipa::path(
    get, path = "/backends", tag = "backends", params(BackendParams),
    responses(
        (status = 200, description = "A page of backends", body = Page<BackendView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn backends_list(
    State(api): State<Api>,
    Params(params): Params<BackendParams>,
) -> Result<Json<Page<BackendView>>, ApiError> {
    backends(&api, &params, None)
}

/// The backends of a service
#[utoipa::path(
    get, path = "/services/{service}/backends", tag = "backends",
    params(("service" = String, Path, description = "Name of the service; `/` as `%2F`"), BackendParams),
    responses(
        (status = 200, description = "A page of backends", body = Page<BackendView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such service", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn service_backends_list(
    State(api): State<Api>,
    Names(name): Names<String>,
    Params(params): Params<BackendParams>,
) -> Result<Json<Page<BackendView>>, ApiError> {
    service(&api, &name)?;
    backends(&api, &params, Some(&name))
}

/// A backend of a service
#[utoipa::path(
    get, path = "/services/{service}/backends/{backend}", tag = "backends",
    params(
        ("service" = String, Path, description = "Name of the service; `/` as `%2F`"),
        ("backend" = String, Path, description = "`address` or `address:port`, as the service names it"),
    ),
    responses(
        (status = 200, description = "The backend", body = BackendView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such backend", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn backend_get(
    State(api): State<Api>,
    Names((service, backend)): Names<(String, String)>,
) -> Result<Json<BackendView>, ApiError> {
    let state = api.control.state().borrow().clone();
    let key = (service, backend);
    let found = state.backends.get(&key).cloned();
    let (service, backend) = key;
    let name = format!("{backend} of service {service}");
    found.map(Json).ok_or(ApiError::Unknown { what: "backend", name })
}

/// The devices that traffic comes in by
#[utoipa::path(
    get, path = "/devices", tag = "instance",
    responses((status = 200, description = "All devices", body = Vec<DeviceView>))
)]
pub(super) async fn devices_list(State(api): State<Api>) -> Json<Vec<DeviceView>> {
    Json(api.control.state().borrow().devices.clone())
}

/// Whose tunnel packets are unwrapped
#[utoipa::path(
    get, path = "/peers", tag = "instance",
    responses((status = 200, description = "All peers", body = Vec<PeerView>))
)]
pub(super) async fn peers_list(State(api): State<Api>) -> Json<Vec<PeerView>> {
    Json(api.control.state().borrow().peers.clone())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// Only those of this kind
    kind: Option<EventKind>,
    /// Only those with a higher number
    #[param(value_type = Option<i64>, minimum = 0)]
    after: Option<u64>,
}

/// What happened lately, the oldest first; only so many are kept
#[utoipa::path(
    get, path = "/events", tag = "instance", params(EventParams),
    responses(
        (status = 200, description = "Events", body = Vec<EventView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events_list(
    State(api): State<Api>,
    Params(params): Params<EventParams>,
) -> Result<Json<Vec<EventView>>, ApiError> {
    if let Some(after) = params.after.filter(|after| i64::try_from(*after).is_err()) {
        let text = format!("after: {after} is out of range: write a number up to {}", i64::MAX);
        return Err(ApiError::Parameter(text));
    }
    let mut events = api.control.events();
    events.retain(|one| {
        params.kind.is_none_or(|kind| one.kind == kind)
            && params.after.is_none_or(|after| one.number > after)
    });
    Ok(Json(events))
}

/// Whether everything is as it should be, and what is not
#[utoipa::path(
    get, path = "/health", tag = "instance",
    responses((status = 200, description = "The daemon serves; see `state`", body = HealthView))
)]
pub(super) async fn health(State(api): State<Api>) -> Json<HealthView> {
    Json(api.control.state().borrow().health())
}

/// Figures of the whole instance
#[utoipa::path(
    get, path = "/status", tag = "instance",
    responses((status = 200, description = "Figures", body = StatusView))
)]
pub(super) async fn status(State(api): State<Api>) -> Json<StatusView> {
    let services = api.control.services().borrow().by_name.len();
    Json(api.control.state().borrow().status(services))
}

/// The configuration in force, without secrets and without services
#[utoipa::path(
    get, path = "/config", tag = "instance",
    responses((status = 200, description = "With the file's keys", body = serde_json::Value))
)]
pub(super) async fn config(State(api): State<Api>) -> Json<Value> {
    Json(api.control.state().borrow().config.clone())
}

/// How following the Kubernetes cluster goes, and what cannot be done for its objects
#[utoipa::path(
    get, path = "/kubernetes", tag = "instance",
    responses(
        (status = 200, description = "The cluster that is followed", body = KubernetesView),
        (status = 404, description = "None is followed", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn kubernetes(State(api): State<Api>) -> Result<Json<KubernetesView>, ApiError> {
    let unknown =
        || ApiError::Unknown { what: "cluster", name: "(the configuration names none)".to_owned() };
    api.control.kubernetes().map(Json).ok_or_else(unknown)
}
