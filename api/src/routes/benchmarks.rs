//! Benchmarks: begun, looked at and ended.

use axum::{
    Json,
    extract::{FromRequest as _, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Api, ROOT};
use crate::{
    ApiError, Page, Problem,
    benchmark::{BenchmarkRequest, BenchmarkView},
    extract::{Body, Names, Params},
    list::Paging,
};

/// Longest filter, in characters.
const FILTER: usize = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Items on a page, 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// What the page before said
    r#continue: Option<String>,
}

/// Begin a benchmark of the packet path
///
/// It runs beside the data path, on programs and tables of its own, at the lowest priority and on a
/// quarter of one CPU. One at a time.
#[utoipa::path(
    post,
    path = "/benchmarks",
    tag = "benchmarks",
    request_body = Option<BenchmarkRequest>,
    responses(
        (status = 202, description = "It has begun", body = BenchmarkView, headers(("Location" = String, description = "The run"))),
        (status = 400, description = "The JSON, or no case has the filter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another one runs", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be started", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn benchmark_start(
    State(api): State<Api>,
    request: Request,
) -> Result<Response, ApiError> {
    let view = api.control.benchmarks().start(wanted(request).await?).await?;
    let place = format!("{ROOT}/benchmarks/{}", view.id);
    let mut response = (StatusCode::ACCEPTED, Json(view)).into_response();
    if let Ok(place) = HeaderValue::from_str(&place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// What a body asks for; the usual where there is none.
async fn wanted(request: Request) -> Result<BenchmarkRequest, ApiError> {
    let headers = request.headers();
    let length =
        headers.get(header::CONTENT_LENGTH).map_or("0", |text| text.to_str().unwrap_or(""));
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if length == "0" && !chunked && !headers.contains_key(header::CONTENT_TYPE) {
        return Ok(BenchmarkRequest::default());
    }
    let Body(value) = Body::<false>::from_request(request, &()).await?;
    if value.is_array() {
        // Which serde would take for the values of the keys.
        return Err(ApiError::Body("it is a list: send an object".to_owned()));
    }
    let wanted: Option<BenchmarkRequest> =
        serde_json::from_value(value).map_err(|error| ApiError::Body(error.to_string()))?;
    let wanted = wanted.unwrap_or_default();
    if wanted.filter.chars().count() > FILTER {
        return Err(ApiError::Parameter(format!("filter: it is longer than {FILTER} characters")));
    }
    Ok(wanted)
}

/// The benchmarks of this daemon, without their reports
///
/// The latest sixteen are kept.
#[utoipa::path(
    get, path = "/benchmarks", tag = "benchmarks", params(ListParams),
    responses(
        (status = 200, description = "A page of runs", body = Page<BenchmarkView>),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn benchmarks_list(
    State(api): State<Api>,
    Params(params): Params<ListParams>,
) -> Result<Json<Page<BenchmarkView>>, ApiError> {
    let paging = Paging::new(params.limit, params.r#continue.as_deref())?;
    let runs = api.control.benchmarks().list();
    // Ids are numbers: this is the order in which they began.
    let runs = runs.into_iter().map(|one| (format!("{:0>20}", one.id), one));
    Ok(Json(paging.of(runs)))
}

/// A benchmark, with its report once it is done
#[utoipa::path(
    get,
    path = "/benchmarks/{id}",
    tag = "benchmarks",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, description = "The run", body = BenchmarkView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such run", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn benchmark_get(
    State(api): State<Api>,
    Names(id): Names<String>,
) -> Result<Json<BenchmarkView>, ApiError> {
    api.control.benchmarks().get(&id).map(Json).ok_or_else(|| unknown(id))
}

/// End a benchmark
///
/// One that has ended stays as it is.
#[utoipa::path(
    post,
    path = "/benchmarks/{id}/cancel",
    tag = "benchmarks",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, description = "It has ended", body = BenchmarkView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such run", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn benchmark_cancel(
    State(api): State<Api>,
    Names(id): Names<String>,
) -> Result<Json<BenchmarkView>, ApiError> {
    api.control.benchmarks().cancel(&id).await.map(Json).ok_or_else(|| unknown(id))
}

fn unknown(name: String) -> ApiError {
    ApiError::Unknown { what: "benchmark", name }
}
