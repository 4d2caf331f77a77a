//! What the API counts of itself, and the page of metrics in the format that is asked for.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the times that requests take, in seconds.
const TIMES: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];

/// What the API counts of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    answered: Family<Answered, Counter>,
    took: Family<Said, Times>,
    connections: Family<Listener, Gauge>,
}

/// Labels of requests that were answered.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Answered {
    method: &'static str,
    route: String,
    code: u16,
}

impl EncodeLabelSet for Answered {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let code = self.code.to_string();
        [("method", self.method), ("route", self.route.as_str()), ("code", code.as_str())]
            .encode(encoder)
    }
}

/// The label `method`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Said(&'static str);

impl EncodeLabelSet for Said {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("method", self.0)].encode(encoder)
    }
}

/// The label `listener`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Listener(&'static str);

impl EncodeLabelSet for Listener {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("listener", self.0)].encode(encoder)
    }
}

/// A histogram with the bounds of [`TIMES`].
#[derive(Clone, Debug)]
struct Times(Histogram);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new(TIMES))
    }
}

impl EncodeMetric for Times {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl prometheus_client::metrics::TypedMetric for Times {
    const TYPE: MetricType = MetricType::Histogram;
}

/// A method's name; clients may make up others, which are one here.
fn name(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::PATCH,
        Method::POST,
        Method::DELETE,
        Method::OPTIONS,
    ];
    const NAMES: [&str; 7] = ["GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"];
    let known = KNOWN.iter().zip(NAMES).find(|(one, _)| *one == method);
    known.map_or("other", |(_, name)| name)
}

impl Requests {
    /// Counts a request whose answer begins after `took`; `route` is the one that matched, if any.
    fn count(&self, method: &Method, route: &str, code: StatusCode, took: Duration) {
        let method = name(method);
        let labels = Answered { method, route: route.to_owned(), code: code.as_u16() };
        self.0.answered.get_or_create(&labels).inc();
        self.0.took.get_or_create(&Said(method)).0.observe(took.as_secs_f64());
    }

    /// Counts a request that nobody let in.
    pub(crate) fn refused(&self, method: &Method, code: StatusCode) {
        self.count(method, "refused", code, Duration::ZERO);
    }

    /// Counts a request that is answered, as a middleware.
    pub(crate) async fn answer(self, request: Request, next: Next) -> Response {
        let began = Instant::now();
        let method = request.method().clone();
        let route = request.extensions().get::<MatchedPath>().cloned();
        let response = next.run(request).await;
        let route = route.as_ref().map_or("none", MatchedPath::as_str);
        self.count(&method, route, response.status(), began.elapsed());
        response
    }

    /// One more connection of a listener, until that is dropped.
    pub(crate) fn connected(&self, listener: &'static str) -> Connected {
        let gauge = self.0.connections.get_or_create_owned(&Listener(listener));
        gauge.inc();
        Connected(gauge)
    }

    /// Writes what was counted into a page.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let Inner { answered, took, connections } = &*self.0;
        registry.register(
            "xdp_lb_api_requests",
            "Requests of the API that were answered",
            answered.clone(),
        );
        registry.register_with_unit(
            "xdp_lb_api_request_duration",
            "Time until the answer to a request of the API began",
            Unit::Seconds,
            took.clone(),
        );
        registry.register("xdp_lb_api_connections", "Connections to the API", connections.clone());
    }
}

/// A connection that is counted as long as this is there.
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A page of metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, with units and an end
    OpenMetrics,
    /// Prometheus' older text format, 0.0.4, which everybody reads
    Text,
}

impl Format {
    /// What a client likes better (RFC 9110, 12.5.1); the older one where it does not say.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|one| one.to_str().ok());
        let mut best = (0.0, 0.0);
        for range in accept.flat_map(|one| one.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let quality: f32 = quality.unwrap_or(1.0);
            if essence.eq_ignore_ascii_case("application/openmetrics-text") {
                best.0 = quality.max(best.0);
            } else if essence.eq_ignore_ascii_case("text/plain") {
                best.1 = quality.max(best.1);
            }
        }
        if best.0 > best.1 { Self::OpenMetrics } else { Self::Text }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes a page.
    pub(crate) fn write(self, registry: &Registry) -> String {
        let mut text = String::new();
        // A text takes whatever is written to it.
        let _ = encode(&mut text, registry);
        match self {
            Self::OpenMetrics => text,
            Self::Text => older(&text),
        }
    }
}

/// A page of OpenMetrics in the older text format: it has neither units nor an end, and names a counter
/// as its samples are named.
fn older(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        let (first, second) = (words.next(), words.next());
        let (name, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match (first, second) {
            (Some("#"), Some("HELP")) => help = Some(rest),
            (Some("#"), Some("TYPE")) => {
                let suffix = if rest == "counter" { "_total" } else { "" };
                let kind = if rest == "unknown" { "untyped" } else { rest };
                if let Some(help) = help.take() {
                    text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            (Some("#"), _) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_format_that_it_likes_better() {
        for (accept, wanted) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
                     version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ),
                Format::OpenMetrics,
            ),
            (Some("application/openmetrics-text;q=0.2, text/plain; q=0.3"), Format::Text),
            (Some("application/openmetrics-text;q=0"), Format::Text),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(Format::wanted(&headers), wanted, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_has_the_same_samples_and_names_counters_as_they_are() {
        let requests = Requests::default();
        requests.refused(&Method::GET, StatusCode::UNAUTHORIZED);
        requests.refused(&"BREW".parse().unwrap(), StatusCode::UNAUTHORIZED);
        let _one = requests.connected("unix");
        let mut registry = Registry::default();
        requests.register(&mut registry);
        let (new, old) = (Format::OpenMetrics.write(&registry), Format::Text.write(&registry));
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(&new), samples(&old));
        assert!(new.ends_with("# EOF\n"));
        assert!(new.contains("# TYPE xdp_lb_api_requests counter\n"), "{new}");
        assert!(old.contains("# TYPE xdp_lb_api_requests_total counter\n"), "{old}");
        assert!(old.contains("# TYPE xdp_lb_api_request_duration_seconds histogram\n"), "{old}");
        assert!(!old.contains("EOF") && !old.contains("UNIT"), "{old}");
        let sample = "xdp_lb_api_requests_total{method=\"other\",route=\"refused\",code=\"401\"} 1";
        assert!(old.contains(sample), "{old}");
    }
}
