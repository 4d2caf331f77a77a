//! Medians and means of few numbers.

/// What several loads measured.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a figure.
    pub fn push(&mut self, value: f64) {
        let place = self.0.partition_point(|have| have.total_cmp(&value).is_lt());
        self.0.insert(place, value);
    }

    /// The least, or 0 of none.
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    /// The most, or 0 of none.
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    /// The middle one, or 0 of none.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that this share of all does not exceed (the nearest one that was measured).
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((share * last as f64).round() as usize).copied().unwrap_or_default()
    }
}

/// The mean of the middle half: what other work on the machine did to single turns is left out, and
/// figures that the kernel rounds to whole nanoseconds become finer.
pub(super) fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 4;
    let kept = &values[cut..values.len() - cut];
    if kept.is_empty() { 0.0 } else { kept.iter().sum::<f64>() / kept.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_move_the_middle() {
        assert_eq!(middle([1e9, 10.0, 12.0, 0.0].into_iter()), 11.0);
        assert_eq!((middle([3.0].into_iter()), middle([].into_iter())), (3.0, 0.0));
    }

    #[test]
    fn quantiles_are_measured_values() {
        let mut sample = Sample::default();
        (0..=1000).rev().for_each(|value| sample.push(f64::from(value)));
        assert_eq!((sample.min(), sample.median(), sample.max()), (0.0, 500.0, 1000.0));
        assert_eq!((sample.quantile(0.99), sample.quantile(0.999)), (990.0, 999.0));
        assert_eq!(Sample::default().median(), 0.0);
    }
}
