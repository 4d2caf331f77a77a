//! How many connections move although their backend is still there, when others fail: the figure of
//! the Maglev paper (NSDI 2016, section 5.3) for our tables, and for our handover.

mod chart;
mod flows;
mod report;
mod tables;

use std::time::Duration;

pub use chart::svg;
pub use report::{csv, text};
use xdp_lb_abi::Reason;
use xdp_lb_plan::{Refusal, maglev::BuildError};

use crate::random::Random;

/// How long a handover lasts, unless configured.
const HANDOVER: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Backends before any has failed, of equal weight
    pub backends: u32,
    /// Table sizes whose slots are compared
    pub sizes: Vec<u32>,
    /// Size of the table that the flows are sent through
    pub flow_size: u32,
    /// Numbers of backends that fail at the same time, ascending, less than `backends`
    pub failures: Vec<u32>,
    /// How often all is repeated, with other keys and other backends failing
    pub seeds: u64,
    /// Flows that are open when the backends fail
    pub flows: u32,
}

/// The figure: some curves over the same numbers of failed backends.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured
    pub scale: Scale,
    /// The curves
    pub curves: Vec<Curve>,
}

/// One way of counting what moved.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What was counted
    pub name: String,
    /// For each number of failed backends, what moved
    pub points: Vec<Spread>,
}

/// Shares (0 to 1) of what could have stayed and did not, over the seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest
    pub min: f64,
    /// The arithmetic mean
    pub mean: f64,
    /// The largest
    pub max: f64,
}

impl Spread {
    fn of(shares: &[f64]) -> Self {
        Self {
            min: shares.iter().copied().fold(f64::INFINITY, f64::min),
            mean: shares.iter().sum::<f64>() / shares.len() as f64,
            max: shares.iter().copied().fold(0.0, f64::max),
        }
    }

    /// Minimum, mean and maximum in per cent.
    fn percent(self) -> [f64; 3] {
        [self.min, self.mean, self.max].map(|share| share * 100.0)
    }
}

/// Why there is no figure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A table size or a number of backends that Maglev refuses.
    #[error(transparent)]
    Maglev(#[from] BuildError),
    /// The planner did not install the service.
    #[error("the service was refused: {0}")]
    Refused(Refusal),
    /// A packet did not reach a backend.
    #[error("a packet was not forwarded: {}", .0.as_str())]
    NotForwarded(Reason),
    /// A packet reached a backend that had failed.
    #[error("a packet was sent to a backend that had failed")]
    Failed,
}

/// Which backends fail, and with which keys tables and flows are hashed.
#[derive(Clone, Debug)]
struct Trial {
    maglev_key: [u8; 16],
    flow_key: [u64; 2],
    /// All backends' numbers; the first ones fail
    order: Vec<u32>,
}

impl Trial {
    fn new(seed: u64, backends: u32) -> Self {
        let mut random = Random::new(seed);
        let flow_key = [random.next(), random.next()];
        let maglev_key =
            ((u128::from(random.next()) << 64) | u128::from(random.next())).to_le_bytes();
        let mut order: Vec<u32> = (0..backends).collect();
        random.shuffle(&mut order);
        Self { maglev_key, flow_key, order }
    }

    fn failed(&self, count: u32) -> &[u32] {
        &self.order[..count as usize]
    }

    fn surviving(&self, count: u32) -> &[u32] {
        &self.order[count as usize..]
    }
}

/// Measures everything.
///
/// # Errors
///
/// Where the scale is not one that can be served.
pub fn measure(scale: &Scale) -> Result<Figure, Error> {
    let trials: Vec<Trial> =
        (0..scale.seeds).map(|seed| Trial::new(seed, scale.backends)).collect();
    let curve = |name: String, share: &dyn Fn(&Trial) -> Result<Vec<f64>, Error>| {
        let shares = trials.iter().map(share).collect::<Result<Vec<_>, _>>()?;
        let point = |at: usize| Spread::of(&shares.iter().map(|one| one[at]).collect::<Vec<_>>());
        Ok::<_, Error>(Curve { name, points: (0..scale.failures.len()).map(point).collect() })
    };
    let mut curves = Vec::new();
    for &size in &scale.sizes {
        let name = format!("slots of {size}");
        curves.push(curve(name, &|trial| tables::moved(trial, size, &scale.failures))?);
    }
    for (name, handover) in [("no handover", Duration::ZERO), ("handover", HANDOVER)] {
        let name = format!("flows, {} slots, {name}", scale.flow_size);
        curves.push(curve(name, &|trial| flows::moved(trial, scale, handover))?);
    }
    Ok(Figure { scale: scale.clone(), curves })
}
