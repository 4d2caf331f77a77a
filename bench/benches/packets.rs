//! Nanoseconds a packet costs in the real program, beside a program that does nothing.
//!
//! BPF_PROG_TEST_RUN with `repeat` runs a packet through the program again and again, on its own
//! output. Only cases for which that output is again the same kind of packet are measured: packets
//! that pass, and mode `l2`, which writes the same MAC addresses each time. Each case is measured over
//! [`LOADS`] fresh loads, since code placement and hash seeds move a single load by 5 to 10 %.

use std::{error::Error, io::Write as _, net::IpAddr, num::NonZeroU16, time::Duration};

use aya::{TestRun as _, TestRunOptions};
use xdp_lb::{config::Limits, dataplane::Dataplane, pins::Pins};
use xdp_lb_abi::{Address, Device, Hop, Mode, names};
use xdp_lb_datapath::testing::packet::{ip, link};
use xdp_lb_plan::{
    Path, Planner,
    maglev::HashKey,
    model::{Backend, Frontend, Protocol, Service},
};

const LOADS: usize = 7;
const REPEAT: u32 = 1_000_000;
const KEY: [u8; 16] = *b"a key of a bench";
const SYN: u8 = 2;
const ACK: u8 = 16;

struct Case {
    name: &'static str,
    program: &'static str,
    packet: Vec<u8>,
    /// XDP_PASS 2, XDP_TX 3
    returns: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "skipped: loading eBPF programs needs root")?;
        return Ok(());
    }
    for services in [1, 1000, 10_000] {
        let cases = cases();
        let mut times = vec![Vec::with_capacity(LOADS); cases.len()];
        for _ in 0..LOADS {
            measure(services, &cases, &mut times)?;
        }
        report(services, &cases, &mut times)?;
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let (v4, v6) = (address("192.0.2.1"), address("2001:db8::1"));
    let (client4, client6) = (address("198.51.100.7"), address("2001:db8:1::7"));
    let other = address("192.0.2.200");
    let frame = |packet: Vec<u8>| link([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).holds(packet);
    let ports = (40_000, 80);
    let case = |name, packet, returns| Case { name, program: names::XDP, packet, returns };
    let tcp4 = || frame(ip(client4, v4).tcp(ports, ACK, 10));
    vec![
        Case { program: names::XDP_PASS, ..case("floor: a program that passes", tcp4(), 2) },
        case("not ours: IPv4 TCP, passes", frame(ip(client4, other).tcp(ports, ACK, 10)), 2),
        case("not ours: IPv6 TCP, passes", frame(ip(client6, client6).tcp(ports, ACK, 10)), 2),
        case("l2: IPv4 TCP", tcp4(), 3),
        case("l2: IPv4 TCP SYN", frame(ip(client4, v4).tcp(ports, SYN, 10)), 3),
        case("l2: IPv4 UDP", frame(ip(client4, v4).udp(ports, 10)), 3),
        case("l2: IPv6 TCP", frame(ip(client6, v6).tcp(ports, ACK, 10)), 3),
    ]
}

/// Loads the data path afresh, fills it, and measures every case once.
fn measure(services: u32, cases: &[Case], times: &mut [Vec<f64>]) -> Result<(), Box<dyn Error>> {
    let pins = Pins::new(format!("/sys/fs/bpf/xdp-lb-bench-{}", std::process::id()));
    let mut dataplane = Dataplane::open(pins, &Limits::default())?;
    let result = fill(&mut dataplane, services).and_then(|()| {
        for (case, times) in cases.iter().zip(times) {
            times.push(nanoseconds(&mut dataplane, case)?);
        }
        Ok(())
    });
    dataplane.remove()?;
    result
}

fn fill(dataplane: &mut Dataplane, services: u32) -> Result<(), Box<dyn Error>> {
    let device = Device::new(1, [2, 0, 0, 0, 0, 3], 1500);
    dataplane.configure(KEY, 100)?;
    dataplane.set_devices(&[(1, device)].into(), &[(1, 1)].into())?;
    let mut planner = Planner::new(dataplane.layout(), HashKey::from(KEY), Duration::ZERO);
    let path = |_: &_| {
        let source = Address::v4([10, 0, 0, 1]);
        Some(Path { hop: Hop::new([2, 0, 0, 0, 0, 9], 1), mtu: 1500, source, source_bits: 0 })
    };
    let outcome = planner.apply(&all_services(services), &path, Duration::ZERO);
    if !outcome.refused.is_empty() {
        return Err("the tables are too small for the bench".into());
    }
    Ok(dataplane.run(&outcome.ops)?)
}

/// The service that is measured, and others around it, of ten backends each.
fn all_services(count: u32) -> Vec<Service> {
    (0..count)
        .map(|number| {
            let v4 = IpAddr::from((0xc000_0201 + (number << 8)).to_be_bytes());
            let frontend = |address, protocol| Frontend { address, port: port(80), protocol };
            let mut frontends = vec![frontend(v4, Protocol::Tcp)];
            if number == 0 {
                frontends.push(frontend(v4, Protocol::Udp));
                frontends.push(frontend(address("2001:db8::1"), Protocol::Tcp));
            }
            let backends = (0..10).map(|backend| Backend {
                address: IpAddr::from((0x0a00_0000 + number * 10 + backend).to_be_bytes()),
                port: None,
                weight: 1,
            });
            Service {
                name: format!("service-{number}"),
                frontends,
                mode: Mode::L2,
                table_size: None,
                backends: backends.collect(),
            }
        })
        .collect()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

fn nanoseconds(dataplane: &mut Dataplane, case: &Case) -> Result<f64, Box<dyn Error>> {
    let program = dataplane.program(case.program)?;
    let result = program.test_run(TestRunOptions {
        data_in: Some(&case.packet),
        repeat: REPEAT,
        ..TestRunOptions::default()
    })?;
    if result.return_value != case.returns {
        return Err(format!("{}: the program returned {}", case.name, result.return_value).into());
    }
    // The kernel divides by `repeat`.
    Ok(result.duration.as_nanos() as f64)
}

fn report(services: u32, cases: &[Case], times: &mut [Vec<f64>]) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{services} services; ns a packet over {LOADS} loads")?;
    writeln!(
        out,
        "{:<32} {:>7} {:>7} {:>7} {:>12}",
        "case", "median", "min", "max", "above floor"
    )?;
    let mut floor = None;
    for (case, times) in cases.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let (least, most) = (times[0], times[times.len() - 1]);
        let above = median - *floor.get_or_insert(median);
        writeln!(out, "{:<32} {median:>7} {least:>7} {most:>7} {above:>12}", case.name)?;
    }
    Ok(())
}
