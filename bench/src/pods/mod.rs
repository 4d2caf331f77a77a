//! Nanoseconds a packet costs that changes under the program.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` runs a packet through the program again and again, on its own
//! output: a packet that grows, or that is another one afterwards, cannot be measured so. Here each
//! packet is a test run of its own, on a fresh copy, and the kernel counts the time of the program
//! alone (`BPF_ENABLE_STATS`, Linux 5.8): that of stages that it reaches by tail calls too, and of
//! nothing else in the call. What the counting itself costs is in the floor, a program that does
//! nothing, which is measured by turns with each case.

mod cases;
mod error;
mod flows;
mod kernel;
mod memory;
mod report;

use self::{
    cases::{Case, Packets, cases},
    flows::{Order, Which},
    kernel::Kernel,
};
pub use self::{
    error::Error,
    memory::{MapMemory, memory},
    report::{memory_text, text},
};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Fresh loads of the programs
    pub loads: usize,
    /// How often the floor and a case take turns in one load
    pub turns: usize,
    /// Packets in each turn
    pub packets: u32,
    /// Numbers of recorded flows to pods on this host, ascending
    pub answers: Vec<u32>,
    /// Number of recorded flows of mode `snat`
    pub nat_flows: u32,
}

impl Scale {
    /// What the bench measures.
    pub fn full() -> Self {
        Self {
            loads: 7,
            turns: 40,
            packets: 500,
            answers: vec![1, 65_536, 1_000_000],
            nat_flows: 65_536,
        }
    }
}

/// A case in nanoseconds a packet: for each load, the median over its turns.
#[derive(Clone, Debug)]
pub struct Row {
    /// The packet
    pub name: String,
    /// The floor, by turns with the case
    pub floor: Vec<f64>,
    /// The case without the floor: differences of neighbouring turns
    pub above: Vec<f64>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of what scale
    pub scale: Scale,
    /// The cases
    pub rows: Vec<Row>,
    /// Nanoseconds of a look-up in a hash map: for each load, the difference of two cases that differ in
    /// this only
    pub lookup: Vec<f64>,
}

/// Measures all cases.
///
/// Changes the network namespace of the calling thread: the programs ask for routes, and are to find
/// none.
///
/// # Errors
///
/// Where the kernel refuses, or a packet does not become what its case says.
pub fn measure(scale: &Scale) -> Result<Figures, Error> {
    kernel::isolate()?;
    let cases = cases();
    let mut rows = Vec::new();
    for _ in 0..scale.loads {
        let mut kernel = Kernel::load(scale)?;
        kernel.record_nat(scale.nat_flows)?;
        let mut place = 0;
        for (step, &recorded) in scale.answers.iter().enumerate() {
            kernel.record_answers(recorded)?;
            let first = step == 0;
            let last = step + 1 == scale.answers.len();
            for case in cases.iter().filter(|case| case.packets.belong(first, last)) {
                let mut order = case.packets.order(recorded, scale.nat_flows);
                let (floor, above) = one(&mut kernel, case, &mut order, scale)?;
                if rows.len() == place {
                    let name = case.label(recorded, scale.nat_flows);
                    rows.push(Row { name, floor: Vec::new(), above: Vec::new() });
                }
                rows[place].floor.push(floor);
                rows[place].above.push(above);
                place += 1;
            }
        }
    }
    let find = |name| rows.iter().find(|row: &&Row| row.name == name);
    let lookup = match (find(cases::WITH_LOOKUP), find(cases::WITHOUT_LOOKUP)) {
        (Some(with), Some(without)) => {
            with.above.iter().zip(&without.above).map(|(with, without)| with - without).collect()
        }
        _ => Vec::new(),
    };
    Ok(Figures { scale: scale.clone(), rows, lookup })
}

impl Packets {
    /// Whether the packets are measured with so many answers recorded.
    fn belong(&self, first: bool, last: bool) -> bool {
        match self {
            Self::Same(_) | Self::Each(Which::Nat, _) => first,
            Self::Each(Which::Fresh, _) => true,
            Self::Each(Which::Old, _) => last,
        }
    }

    fn order(&self, answers: u32, nat_flows: u32) -> Order {
        match self {
            Self::Same(_) => Order::new(Which::Fresh, 1),
            Self::Each(Which::Nat, _) => Order::new(Which::Nat, nat_flows),
            Self::Each(which, _) => Order::new(*which, answers),
        }
    }
}

/// The floor, and how much more than it the case takes, in one load.
fn one(
    kernel: &mut Kernel,
    case: &Case,
    order: &mut Order,
    scale: &Scale,
) -> Result<(f64, f64), Error> {
    // Warm; a client with session affinity is recorded by its first packet.
    kernel.time(case, order, scale.packets)?;
    let (mut floors, mut above) = (Vec::new(), Vec::new());
    let before = kernel.counted()?;
    for _ in 0..scale.turns {
        let floor = kernel.time_floor(case, order, scale.packets)?;
        above.push(kernel.time(case, order, scale.packets)? - floor);
        floors.push(floor);
    }
    let packets = scale.turns as u64 * u64::from(scale.packets);
    case.check(&before, &kernel.counted()?, packets)?;
    Ok((median(&floors), median(&above)))
}

/// The middle one, or 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
