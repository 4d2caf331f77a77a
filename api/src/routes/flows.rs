//! What the data path's tables hold.

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::{
    ApiError, FlowFilter, Page, Paging, Problem,
    extract::{Names, Params},
    view::{CountersView, DigestView, FlowCount, FlowView, MaglevView},
};

/// All counters, at one moment
#[utoipa::path(
    get, path = "/counters", tag = "data path",
    responses(
        (status = 200, description = "Counters", body = CountersView),
        (status = 503, description = "They cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn counters(State(api): State<Api>) -> Result<Json<CountersView>, ApiError> {
    api.control.counters().await.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FlowCountParams {
    /// Only those of this client
    #[param(value_type = Option<String>)]
    client: Option<IpAddr>,
    /// Only those of this frontend, like `203.0.113.10:80/TCP`
    frontend: Option<String>,
    /// Only those of this backend, address and port
    backend: Option<String>,
}

/// How many flows are recorded
#[utoipa::path(
    get, path = "/flows/count", tag = "data path", params(FlowCountParams),
    responses(
        (status = 200, description = "The number", body = FlowCount),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "They cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn flows_count(
    State(api): State<Api>,
    Params(params): Params<FlowCountParams>,
) -> Result<Json<FlowCount>, ApiError> {
    let FlowCountParams { client, frontend, backend } = params;
    let filter = FlowFilter { client, frontend, backend };
    let page = api.control.flows(filter, Paging::new(Some(1), None)?).await?;
    Ok(Json(FlowCount { flows: page.total }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FlowParams {
    /// Only those of this client
    #[param(value_type = Option<String>)]
    client: Option<IpAddr>,
    /// Only those of this frontend, like `203.0.113.10:80/TCP`
    frontend: Option<String>,
    /// Only those of this backend, address and port
    backend: Option<String>,
    /// Items on a page, 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// What the page before said
    r#continue: Option<String>,
}

/// Flows that are recorded, since their backend is not the one that the current table names
#[utoipa::path(
    get, path = "/flows", tag = "data path", params(FlowParams),
    responses(
        (status = 200, description = "A page of flows", body = Page<FlowView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "They cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn flows_list(
    State(api): State<Api>,
    Params(params): Params<FlowParams>,
) -> Result<Json<Page<FlowView>>, ApiError> {
    let FlowParams { client, frontend, backend, limit, r#continue } = params;
    let paging = Paging::new(limit, r#continue.as_deref())?;
    let filter = FlowFilter { client, frontend, backend };
    api.control.flows(filter, paging).await.map(Json)
}

/// Digests of all Maglev tables: equal on two instances where they send the same flows to the same
/// backends
#[utoipa::path(
    get, path = "/maglev", tag = "data path",
    responses(
        (status = 200, description = "By frontend", body = Vec<DigestView>),
        (status = 503, description = "They cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn maglev_digests(
    State(api): State<Api>,
) -> Result<Json<Vec<DigestView>>, ApiError> {
    let tables = api.control.maglev(None).await?;
    let digests = tables.into_iter().map(|one| DigestView {
        frontend: one.frontend,
        table_size: one.slots.len(),
        digest: one.digest,
    });
    Ok(Json(digests.collect()))
}

/// The Maglev table of a frontend
#[utoipa::path(
    get, path = "/maglev/{frontend}", tag = "data path",
    params(("frontend" = String, Path, description = "Like `203.0.113.10:80%2FTCP`")),
    responses(
        (status = 200, description = "The table", body = MaglevView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such frontend is served", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn maglev_table(
    State(api): State<Api>,
    Names(name): Names<String>,
) -> Result<Json<MaglevView>, ApiError> {
    let table = api.control.maglev(Some(name.clone())).await?.pop();
    table.map(Json).ok_or(ApiError::Unknown { what: "frontend that is served", name })
}
