//! Packets from a generator to a sink.
//!
//! The generator is the benchmark's own program in a test run with live frames: it writes each frame
//! anew, of the next flow, and sends it out of the client's device. It has one CPU. What receives its
//! frames, balances, and runs the sink has another one, as a thread of the kernel (threaded NAPI): with
//! both on one, a generator that never stops would leave nothing to a balancer that needs more time
//! than it. What the balancer does not keep up with is lost in the device's ring.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{Xdp, xdp::XdpMode},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use xdp_lb::{
    lab::{
        Lab,
        forge::{Datagram, ethernet},
    },
    object::BENCH,
};
use xdp_lb_abi::{
    Traffic as Counter,
    bench::{Template, names},
};

use super::{Error, PORT, VIP};

/// Length of the frames that are sent.
const LENGTH: usize = 64;
/// Frames that the kernel sends at once.
const BATCH: u32 = 64;
/// Source address of flows that are known: of a network for benchmarks (RFC 2544).
const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Flows of such a measurement, each with a source port of its own.
const KNOWN: u16 = 1 << 10;
/// First source address of new flows, each with one of its own: 172.16.0.0/12 has so many.
const SOURCES: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);
const NEW: u32 = 1 << 20;
/// The next measurement's first source port, a multiple of [`KNOWN`].
static PORTS: AtomicU16 = AtomicU16::new(20 * KNOWN);
/// Frames at a time that none of is lost.
const WARM: u16 = 128;
const TURN: Duration = Duration::from_millis(2);
/// How long [`settle`] waits for a CPU that has nothing to do, and how long it looks at a time.
const SETTLING: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(200);
/// How long packets may still be on their way.
const DRAIN: Duration = Duration::from_millis(200);

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Packets that the generator sent
    pub(super) sent: u32,
    /// Packets that the sink counted
    pub(super) delivered: u64,
    /// From the first to the last
    pub(super) time: Duration,
    /// Busy time of the CPU meanwhile
    pub(super) cpu: Duration,
}

/// Whose packets are sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flows {
    /// Of [`KNOWN`] flows whose first packets were sent before
    Known,
    /// Each of a flow that was never seen
    New,
}

/// Through what balances, to the server's device.
pub(super) fn measure(lab: &Lab, flows: Flows, packets: u32) -> Result<Traffic, Error> {
    run(lab, ("server", "eth0"), flows, packets)
}

/// To a sink right behind the generator: what the others have to be compared with.
pub(super) fn floor(lab: &Lab, packets: u32) -> Result<Traffic, Error> {
    run(lab, ("balancer", "eth0"), Flows::Known, packets)
}

fn run(
    lab: &Lab,
    (node, device): (&str, &str),
    flows: Flows,
    packets: u32,
) -> Result<Traffic, Error> {
    let mut sink = EbpfLoader::new().load(BENCH)?;
    attach(lab, node, device, &mut sink)?;
    lab.ns("client")?.run(|| send(&sink, flows, packets))?
}

fn attach(lab: &Lab, node: &str, device: &str, sink: &mut Ebpf) -> Result<(), Error> {
    let program = program(sink, names::SINK)?;
    program.load()?;
    lab.ns(node)?.run(|| program.attach(device, XdpMode::Driver))??;
    Ok(())
}

/// Sends from the client's namespace, on one CPU.
fn send(sink: &Ebpf, flows: Flows, packets: u32) -> Result<Traffic, Error> {
    let [generator, cpu] = cpus()?;
    pin(Pid::from_raw(0), generator)?;
    let mut ebpf = EbpfLoader::new().load(BENCH)?;
    program(&mut ebpf, names::TX)?.load()?;
    program(&mut ebpf, names::XDP)?.load()?;
    let mut target: ProgramArray<MapData> = take(&mut ebpf, names::TARGET)?;
    target.set(0, program(&mut ebpf, names::TX)?.fd()?, 0)?;
    // Each time others: connection tables know the flows of the time before.
    let port = PORTS.fetch_add(KNOWN, Ordering::Relaxed);
    let (frame, show) = frame(flows, port);
    let mut template: Array<MapData, Template> = take(&mut ebpf, names::TEMPLATE)?;
    template.set(0, show, 0)?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let device = if_nametoindex("eth0").map_err(std::io::Error::from)?;
    let context: Vec<u8> =
        [0, LENGTH as u32, 0, device, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut shoot = |repeat| -> Result<(), Error> {
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&mut ebpf, names::XDP)?.test_run(options)?;
        Ok(())
    };
    if flows == Flows::Known {
        // Those that are recorded are so from here on. Fewer than the ring has room for at a time.
        for _ in 0..4 * KNOWN / WARM {
            shoot(WARM.into())?;
            thread::sleep(TURN);
        }
        thread::sleep(DRAIN);
    }
    let (before, busy, began) = (sunk(sink)?, busy(cpu)?, Instant::now());
    shoot(packets)?;
    let time = began.elapsed();
    let cpu = self::busy(cpu)?.saturating_sub(busy);
    thread::sleep(DRAIN);
    Ok(Traffic { sent: packets, delivered: sunk(sink)? - before, time, cpu })
}

/// The frame that is sent, and how it varies.
fn frame(flows: Flows, port: u16) -> (Vec<u8>, Template) {
    let source = if flows == Flows::Known { SOURCE } else { SOURCES };
    let payload = [0x2e; LENGTH - 42];
    let to = SocketAddr::new(IpAddr::V4(VIP), PORT);
    let packet = Datagram::new(SocketAddr::new(source.into(), port), to, &payload);
    // UDP's, which covers all that varies, may be left out; the IP header's may not.
    let packet = packet.without_checksum();
    let frame = ethernet([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2], &packet);
    let mut bytes = [0; Template::BYTES];
    bytes[..LENGTH].copy_from_slice(&frame);
    let known = Template {
        bytes,
        length: LENGTH as u32,
        flow_at: 14 + 20,
        flow_base: u32::from(port) << 16 | u32::from(PORT),
        flow_mask: u32::from(KNOWN - 1) << 16,
        checksum_at: 0,
        checksum_sum: 0,
        counter: 0,
        idle: 0,
    };
    let template = match flows {
        Flows::Known => known,
        Flows::New => {
            let flow_base = source.to_bits();
            let new = Template { flow_at: 14 + 12, flow_base, flow_mask: NEW - 1, ..known };
            new.covered_by(14 + 10)
        }
    };
    (frame, template)
}

/// Gives the balancer's receiving side a CPU of its own.
pub(super) fn apart(lab: &Lab) -> Result<(), Error> {
    let name = lab.ns("balancer")?.name().to_owned();
    // The namespace's own /sys, which `ip netns exec` mounts.
    let enable = "echo 1 > /sys/class/net/eth0/threaded";
    let output = Command::new("ip").args(["netns", "exec", &name, "sh", "-c", enable]).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Tool { tool: "threaded NAPI (Linux 5.12)", message });
    }
    let threads = fs::read_dir("/proc")?.filter_map(|entry| {
        let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // proc_pid_stat(5): the name in brackets, and behind it the 22nd, when it was started.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let started: u64 = rest.split(' ').nth(19)?.parse().ok()?;
        name.starts_with("napi/eth0").then_some((started, id))
    });
    // The youngest: other namespaces may have some, too.
    let (_, thread) = threads.max().ok_or(Error::Missing("thread of the balancer's device"))?;
    pin(Pid::from_raw(thread), cpus()?[1])
}

/// A CPU for the generator, and one for what balances: the same where there is but one.
fn cpus() -> Result<[usize; 2], Error> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(std::io::Error::from)?;
    let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let first = all.next().unwrap_or_default();
    Ok([first, all.next_back().unwrap_or(first)])
}

fn pin(thread: Pid, cpu: usize) -> Result<(), Error> {
    let failed = std::io::Error::from;
    let mut one = CpuSet::new();
    one.set(cpu).map_err(failed)?;
    sched_setaffinity(thread, &one).map_err(failed)?;
    Ok(())
}

/// Waits until hardly anything runs on the measured CPU any more: what has just begun to balance looks
/// after its tables first. False where it still had work after [`SETTLING`].
pub(super) fn settle() -> Result<bool, Error> {
    let cpu = cpus()?[1];
    let began = Instant::now();
    let mut quiet = 0;
    while quiet < 3 {
        if began.elapsed() > SETTLING {
            return Ok(false);
        }
        let before = busy(cpu)?;
        thread::sleep(LOOK);
        quiet = if busy(cpu)?.saturating_sub(before) <= LOOK / 10 { quiet + 1 } else { 0 };
    }
    Ok(true)
}

/// Busy time of a CPU since it is up, in whole hundredths of a second.
fn busy(cpu: usize) -> Result<Duration, Error> {
    let text = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{cpu} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let sum: u64 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
    Ok(Duration::from_millis(sum * 10))
}

fn sunk(sink: &Ebpf) -> Result<u64, Error> {
    let map = sink.map(names::SUNK).ok_or(Error::Missing(names::SUNK))?;
    let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(map)?;
    Ok(counters.get(&0, 0)?.iter().map(|counter| counter.packets).sum())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    Ok(ebpf.program_mut(name).ok_or(Error::Missing(name))?.try_into()?)
}

fn take<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, Error> {
    Ok(M::try_from(ebpf.take_map(name).ok_or(Error::Missing(name))?)?)
}
