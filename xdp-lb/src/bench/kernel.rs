//! One fresh load: the data path, the benchmark's own programs, and turns of packets through them.

use std::{thread, time::Duration};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, Map, MapData, MapError, ProgramArray},
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp, xdp::XdpMode},
};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use xdp_lb_abi::{
    Reason,
    bench::{Template, names},
    names::{EGRESS, XDP},
};

use super::{
    Error,
    cases::{self, Case, Frame, Program},
    world::World,
};
use crate::object::BENCH;

const XDP_PROGRAMS: [&str; 6] =
    [names::XDP, names::TX, names::SWAP, names::ENCAP, names::HASH, names::LRU];

const LOOPBACK: &str = "lo";

/// One fresh load.
pub(super) struct Kernel {
    pub(super) world: World,
    ebpf: Ebpf,
    template: Array<MapData, Template>,
    target: ProgramArray<MapData>,
    target_out: ProgramArray<MapData>,
    /// The floors' arrays, which empty themselves when their last user goes
    _idle: [ProgramArray<MapData>; 2],
    /// Share of one CPU that may be used
    share: f64,
}

impl Kernel {
    /// Loads all; with room for so many flows. `isolated` is what [`isolate`] said.
    pub(super) fn load(flows: u32, share: f64, isolated: bool) -> Result<Self, Error> {
        let began = used();
        let world = World::load(flows)?;
        let mut ebpf = EbpfLoader::new().load(BENCH).map_err(Error::Load)?;
        for name in XDP_PROGRAMS {
            xdp(&mut ebpf, name)?.load().map_err(program(name))?;
        }
        for name in [names::OUT, names::OUT_FLOOR] {
            classifier(&mut ebpf, name)?.load().map_err(program(name))?;
        }
        if isolated {
            // As above: where it fails, only time is lost.
            let _ = xdp(&mut ebpf, names::XDP)?.attach(LOOPBACK, XdpMode::Skb);
        }
        let template = take(&mut ebpf, names::TEMPLATE)?;
        let target = take(&mut ebpf, names::TARGET)?;
        let target_out = take(&mut ebpf, names::TARGET_OUT)?;
        let mut idle: ProgramArray<MapData> = take(&mut ebpf, names::IDLE)?;
        let floor = xdp(&mut ebpf, names::TX)?.fd().map_err(program(names::TX))?;
        idle.set(0, floor, 0).map_err(map(names::IDLE))?;
        let mut idle_out: ProgramArray<MapData> = take(&mut ebpf, names::IDLE_OUT)?;
        let floor = classifier(&mut ebpf, names::OUT_FLOOR)?.fd();
        idle_out
            .set(0, floor.map_err(program(names::OUT_FLOOR))?, 0)
            .map_err(map(names::IDLE_OUT))?;
        let _idle = [idle, idle_out];
        let kernel = Self { world, ebpf, template, target, target_out, _idle, share };
        kernel.pause(began);
        Ok(kernel)
    }

    /// Runs a case by turns with its floor: nanoseconds a packet of each turn, the floor first.
    pub(super) fn time(
        &mut self,
        case: &Case,
        turns: u32,
        packets: u32,
    ) -> Result<Vec<(f64, f64)>, Error> {
        let mut frame = case.frame.clone();
        if let Some(first) = &case.first {
            self.show(first)?;
            self.aim(Program::In)?;
            self.run(Program::In, first, first.flows)?;
            if case.answers {
                frame = self.answer(first, &case.name)?;
            }
        }
        self.show(&frame)?;
        self.aim(case.program)?;
        // Warm; a client with session affinity is recorded by its first packet.
        self.run(case.program, &frame, packets)?;
        let before = self.counted()?;
        let mut times = Vec::with_capacity(turns as usize);
        for _ in 0..turns {
            self.idle(true)?;
            let (floor, _) = self.run(case.program, &frame, packets)?;
            self.idle(false)?;
            let (whole, returned) = self.run(case.program, &frame, packets)?;
            if returned != case.returns {
                let what = format!("the program returned {returned} instead of {}", case.returns);
                return Err(Error::Wrong { case: case.name.clone(), what });
            }
            times.push((floor, whole));
        }
        self.check(case, &before, u64::from(turns) * u64::from(packets))?;
        Ok(times)
    }

    /// Every packet became what its case says, and none another thing.
    fn check(&self, case: &Case, before: &[u64], packets: u64) -> Result<(), Error> {
        for (reason, (after, before)) in Reason::ALL.iter().zip(self.counted()?.iter().zip(before))
        {
            let expected = if case.reason == Some(*reason) { packets } else { 0 };
            let counted = after - before;
            if counted != expected {
                let what =
                    format!("{counted} packets instead of {expected} were `{}`", reason.as_str());
                return Err(Error::Wrong { case: case.name.clone(), what });
            }
        }
        Ok(())
    }

    fn counted(&self) -> Result<Vec<u64>, Error> {
        let count = |reason: &Reason| Ok(self.world.dataplane.counters.reason(*reason)?.packets);
        Reason::ALL.iter().map(count).collect()
    }

    /// The answer to what the data path makes of a frame.
    fn answer(&mut self, first: &Frame, case: &str) -> Result<Frame, Error> {
        let mut out = vec![0; first.bytes.len() + 256];
        let options = TestRunOptions {
            data_in: Some(&first.bytes),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = self.world.dataplane.program(XDP)?.test_run(options).map_err(program(XDP))?;
        let answer = (result.return_value == cases::TRANSMIT).then(|| cases::answer_to(&out));
        answer.flatten().ok_or_else(|| Error::Wrong {
            case: case.to_owned(),
            what: format!("its flow was not opened: the program returned {}", result.return_value),
        })
    }

    /// Makes it the frame that each run begins with.
    fn show(&mut self, frame: &Frame) -> Result<(), Error> {
        self.template.set(0, frame.template(), 0).map_err(map(names::TEMPLATE))
    }

    /// Has the floor measured, or the case; flows go on.
    fn idle(&mut self, idle: bool) -> Result<(), Error> {
        let template = self.template.get(&0, 0).map_err(map(names::TEMPLATE))?;
        let template = Template { idle: idle.into(), ..template };
        self.template.set(0, template, 0).map_err(map(names::TEMPLATE))
    }

    /// Makes it the program that is measured.
    fn aim(&mut self, at: Program) -> Result<(), Error> {
        let fd: &ProgramFd = match at {
            Program::In => self.world.dataplane.program(XDP)?.fd().map_err(program(XDP))?,
            Program::Out => self.world.dataplane.program_out()?.fd().map_err(program(EGRESS))?,
            Program::Floor(name) => xdp(&mut self.ebpf, name)?.fd().map_err(program(name))?,
        };
        let out = at == Program::Out;
        let array = if out { &mut self.target_out } else { &mut self.target };
        array.set(0, fd, 0).map_err(map(names::TARGET))
    }

    /// Nanoseconds a packet, and what the program returned for the last one.
    fn run(&mut self, at: Program, frame: &Frame, packets: u32) -> Result<(f64, u32), Error> {
        let options = TestRunOptions {
            data_in: Some(&frame.bytes),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let began = used();
        let result = if at == Program::Out {
            classifier(&mut self.ebpf, names::OUT)?
                .test_run(options)
                .map_err(program(names::OUT))?
        } else {
            xdp(&mut self.ebpf, names::XDP)?.test_run(options).map_err(program(names::XDP))?
        };
        self.pause(began);
        // The kernel divides by `repeat`, and rounds down.
        Ok((result.duration.as_nanos() as f64 + 0.5, result.return_value))
    }

    /// Leaves the CPU to others, for as long as the share asks, after work that began with so much CPU
    /// time used.
    fn pause(&self, began: Duration) {
        if self.share < 1.0 {
            let busy = used().saturating_sub(began);
            thread::sleep(busy.mul_f64((1.0 - self.share) / self.share));
        }
    }
}

/// CPU time that this thread has used.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Moves the calling thread into a network namespace of its own.
///
/// For each test run with `repeat` the kernel makes the program one that it calls directly (its XDP
/// dispatcher), and waits for all CPUs to do so, twice. It is one already, and nothing is waited for,
/// as long as it is attached to a device, and the loopback of a namespace without traffic does no harm.
/// A daemon under systemd's restrictions may not do this, and just waits: false.
pub(super) fn isolate() -> bool {
    unshare(CloneFlags::CLONE_NEWNET).is_ok()
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    let found = ebpf.program_mut(name).ok_or(Error::Missing(name))?;
    found.try_into().map_err(program(name))
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    let found = ebpf.program_mut(name).ok_or(Error::Missing(name))?;
    found.try_into().map_err(program(name))
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, Error> {
    let found = ebpf.take_map(name).ok_or(Error::Missing(name))?;
    M::try_from(found).map_err(map(name))
}

fn map(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { map, source }
}

fn program(program: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Program { program, source }
}
