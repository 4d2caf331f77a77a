//! Which metrics are served.

use super::read::At;

/// Which metrics are served, so that their number has bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetricsConfig {
    /// Whether each backend has series of its own
    pub per_backend: bool,
    /// Most series with a frontend, a service or a backend in their labels
    pub max_series: u32,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { per_backend: true, max_series: 20_000 }
    }
}

/// The section `metrics`.
pub(super) fn metrics(at: &At<'_>) -> Option<MetricsConfig> {
    let fields = at.fields(&["perBackend", "maxSeries"])?;
    let default = MetricsConfig::default();
    let per_backend =
        fields.optional("perBackend").map_or(Some(default.per_backend), |at| at.truth());
    let max_series = fields
        .optional("maxSeries")
        .map_or(Some(default.max_series), |at| at.number(0..=10_000_000));
    Some(MetricsConfig { per_backend: per_backend?, max_series: max_series? })
}
