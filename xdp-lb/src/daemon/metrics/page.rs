//! A page of metrics, before it is written: names, labels, values.

use std::collections::BTreeMap;

use xdp_lb_api::prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// Names and values of labels, in the order in which they are written.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What a series says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Value {
    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Self::Whole(a.saturating_add(b)),
            (a, b) => Self::Real(a.real() + b.real()),
        }
    }

    fn encode(self, kind: MetricType, encoder: &mut MetricEncoder<'_>) -> std::fmt::Result {
        let counts = matches!(kind, MetricType::Counter);
        match self {
            Self::Whole(value) if counts => {
                encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
            }
            Self::Real(value) if counts => {
                encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
            }
            Self::Whole(value) => encoder.encode_gauge(&value),
            Self::Real(value) => encoder.encode_gauge(&value),
        }
    }

    fn real(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }
}

/// A metric with all its series.
#[derive(Clone, Debug)]
pub(super) struct Metric {
    help: &'static str,
    kind: MetricType,
    unit: Option<Unit>,
    series: BTreeMap<Labels, Value>,
}

impl Metric {
    /// Adds a series; what has the same labels is added up, since no two series may have the same.
    pub(super) fn put(&mut self, labels: Labels, value: impl Into<Value>) {
        let value = value.into();
        self.series.entry(labels).and_modify(|sum| *sum = sum.plus(value)).or_insert(value);
    }
}

/// All metrics, by their names without unit and suffix.
#[derive(Clone, Debug, Default)]
pub(super) struct Page(BTreeMap<&'static str, Metric>);

impl Page {
    fn metric(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        unit: Option<Unit>,
    ) -> &mut Metric {
        let series = BTreeMap::new();
        self.0.entry(name).or_insert(Metric { help, kind, unit, series })
    }

    /// A metric that only goes up; `_total` is added to its name.
    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Metric {
        self.metric(name, help, MetricType::Counter, None)
    }

    /// The same, and its unit is added to its name too.
    pub(super) fn counter_of(
        &mut self,
        name: &'static str,
        unit: Unit,
        help: &'static str,
    ) -> &mut Metric {
        self.metric(name, help, MetricType::Counter, Some(unit))
    }

    /// A metric that goes up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Metric {
        self.metric(name, help, MetricType::Gauge, None)
    }

    /// The same, and its unit is added to its name.
    pub(super) fn gauge_of(
        &mut self,
        name: &'static str,
        unit: Unit,
        help: &'static str,
    ) -> &mut Metric {
        self.metric(name, help, MetricType::Gauge, Some(unit))
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for (name, metric) in &self.0 {
            let Metric { help, kind, unit, series } = metric;
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
            for (labels, value) in series {
                if labels.is_empty() {
                    value.encode(*kind, &mut metric)?;
                } else {
                    value.encode(*kind, &mut metric.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use xdp_lb_api::prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    /// The page as text.
    pub(in super::super) fn text(page: Page) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(page));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn series_of_the_same_labels_are_added_up() {
        let mut page = Page::default();
        let some = page.counter_of("some", Unit::Bytes, "Some bytes");
        some.put(vec![("a", "x\"y\\z\n".to_owned())], 7_u64);
        some.put(vec![("a", "x\"y\\z\n".to_owned())], 8_u64);
        page.gauge("other", "Nothing").put(vec![], 0.5);
        assert_eq!(
            text(page),
            "# HELP other Nothing\n# TYPE other gauge\nother 0.5\n\
             # HELP some_bytes Some bytes\n# TYPE some_bytes counter\n# UNIT some_bytes bytes\n\
             some_bytes_total{a=\"x\\\"y\\\\z\\n\"} 15\n# EOF\n"
        );
    }
}
