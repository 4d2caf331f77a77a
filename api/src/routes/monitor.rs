//! Packets as they pass (server-sent events).

use std::convert::Infallible;

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};

use super::Api;
use crate::{
    ApiError, Problem,
    extract::Params,
    monitor::{CAPTURE, MOST, MonitorRequest, PacketView, Seen},
};

/// Shortest capture: what headers need.
const LEAST: u32 = 64;

/// Packets as they pass, as server-sent events
///
/// `packet` (a PacketView) for each, `lost` (how many packets were not told of, since they came faster
/// than they were read: packets themselves are never lost by this). While somebody watches, devices
/// run programs that can tell; nobody else pays for it. Packets are told with their contents: over TCP it
/// takes a token that may write.
#[utoipa::path(
    get, path = "/monitor", tag = "data path", params(MonitorRequest),
    responses(
        (status = 200, description = "Server-sent events", content_type = "text/event-stream", body = PacketView),
        (status = 400, description = "A parameter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such frontend or backend", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The kernel refuses, or as many watch as can", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn monitor(
    State(api): State<Api>,
    Params(request): Params<MonitorRequest>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    if !(LEAST..=MOST).contains(&request.capture.unwrap_or(CAPTURE)) {
        let text = format!("capture: write a number of bytes from {LEAST} to {MOST}");
        return Err(ApiError::Parameter(text));
    }
    if request.sample == Some(0) || request.port == Some(0) {
        return Err(ApiError::Parameter("sample, port: write a number from 1 on".to_owned()));
    }
    let seen = api.control.monitor(request).await?;
    let events = stream::unfold(seen, |mut seen| async {
        let event = Event::default();
        let event = match seen.recv().await? {
            Seen::Packet(packet) => event.event("packet").json_data(packet),
            Seen::Lost(count) => event.event("lost").json_data(count),
        };
        // What is sent can be written as JSON.
        Some((Ok(event.unwrap_or_default()), seen))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
