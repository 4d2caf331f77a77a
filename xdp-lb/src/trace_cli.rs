//! `xdp-lb trace`: what would happen to a packet. It reads the pinned data path itself, as `stats`
//! does, so it works with and without a daemon, and changes nothing.

use std::{fmt::Write as _, io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;
use xdp_lb_api::trace::{Outcome, TraceRequest, TraceView};

use crate::{
    pins::Pins,
    trace::{self, Tracer},
};

/// Exit codes, beside 0: nobody gets it but the kernel does, and nothing could be traced.
const REFUSED: u8 = 1;
const PASSED: u8 = 2;
/// Also where the arguments cannot be used.
pub const FAILED: u8 = 3;

/// What `xdp-lb trace --help` says.
pub(crate) const LONG: &str = "\
Tell what would happen to a packet now, step by step.

The kernel runs the program on a copy of the packet, over the tables that real packets meet. Nothing is \
sent, counted or recorded. It works with and without a daemon, in the network namespace of the daemon, \
and needs root.

  xdp-lb trace 198.51.100.7:40000 203.0.113.10:80
  xdp-lb trace '[2001:db8::7]:5353' '[2001:db8:f::10]:53/UDP' --length 1400
  xdp-lb trace 198.51.100.7 203.0.113.10/ICMP
  xdp-lb trace --file dump.pcapng --number 17

It ends with 0 where the packet is forwarded, delivered or an echo request that is answered, with 1 where \
it is dropped or refused, with 2 where it is not ours and the kernel gets it, with 3 where nothing could \
be traced. Of several packets, the first of 3, 1, 2 and 0 that any of them has.";

/// Which packet, and how it is shown.
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// Source: ADDRESS:PORT; of ICMP an address
    #[arg(required_unless_present = "file", requires = "to")]
    from: Option<String>,
    /// Destination: ADDRESS:PORT/PROTOCOL, TCP where the protocol is left out; of ICMP ADDRESS/ICMP
    to: Option<String>,
    /// Flags of TCP: syn, ack, fin, rst, psh, urg, with commas between them, or none; of SCTP: init or
    /// data. The first packet of a connection where nothing is said
    #[arg(long)]
    flags: Option<String>,
    /// Length of the IP packet in bytes
    #[arg(long, value_name = "N")]
    length: Option<u32>,
    /// TTL or hop limit
    #[arg(long, value_name = "N")]
    ttl: Option<u8>,
    /// Packets of a pcap or pcapng file instead
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["from", "to", "flags", "length", "ttl"])]
    file: Option<PathBuf>,
    /// Only this packet of the file, from 1 on; all where nothing is said
    #[arg(long, short, value_name = "N", requires = "file", value_parser = clap::value_parser!(u64).range(1..))]
    number: Option<u64>,
    /// Device that it comes in by; may be left out where there is only one
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// One packet's trace, as `-o json` prints it: a line each.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    trace: Option<&'a TraceView>,
}

impl TraceArgs {
    /// Traces, prints, and says how to end.
    ///
    /// # Errors
    ///
    /// Where nothing can be traced.
    pub(crate) fn run(self, pins: &Pins, json: bool) -> anyhow::Result<ExitCode> {
        let mut tracer = Tracer::open(pins)?;
        let Some(file) = &self.file else {
            let view = tracer.trace(&self.request())?;
            print(&Line { number: None, error: None, trace: Some(&view) }, json)?;
            return Ok(ExitCode::from(code(&view)));
        };
        let last = self.number.unwrap_or(u64::MAX);
        let packets =
            trace::read(file, |number| self.number.is_none_or(|one| one == number), last)?;
        if packets.is_empty() {
            let which =
                self.number.map_or_else(String::new, |number| format!(" with number {number}"));
            anyhow::bail!("{} has no packet{which}", file.display());
        }
        let mut worst = 0;
        for packet in packets {
            let number = Some(packet.number);
            let traced = packet
                .frame
                .map_err(anyhow::Error::msg)
                .and_then(|frame| Ok(tracer.trace_frame(&frame, self.device.as_deref())?));
            let line = match traced {
                Err(error) => {
                    worst = FAILED;
                    let error = Some(format!("{error:#}"));
                    print(&Line { number, error, trace: None }, json)?;
                    continue;
                }
                Ok(mut view) => {
                    if packet.missing > 0 {
                        view.warnings.push(format!(
                            "the file lacks the last {} bytes of this packet: zeros stand for them",
                            packet.missing
                        ));
                    }
                    view
                }
            };
            worst = *[FAILED, REFUSED, PASSED, 0]
                .iter()
                .find(|one| **one == worst || **one == code(&line))
                .unwrap_or(&0);
            print(&Line { number, error: None, trace: Some(&line) }, json)?;
        }
        Ok(ExitCode::from(worst))
    }

    fn request(&self) -> TraceRequest {
        let to = self.to.as_deref().unwrap_or_default();
        let (to, protocol) = to.split_once('/').unwrap_or((to, "TCP"));
        TraceRequest {
            device: self.device.clone(),
            frame: None,
            from: self.from.clone(),
            to: Some(to.to_owned()),
            protocol: Some(protocol.to_owned()),
            flags: self.flags.clone(),
            length: self.length,
            ttl: self.ttl,
        }
    }
}

/// The exit code that a trace means.
const fn code(view: &TraceView) -> u8 {
    // What cannot be trusted is no answer.
    if view.difference.is_some() {
        return FAILED;
    }
    match view.outcome {
        Outcome::Forwarded | Outcome::Delivered | Outcome::Answered => 0,
        Outcome::Dropped | Outcome::Refused => REFUSED,
        Outcome::Passed => PASSED,
    }
}

/// Writes to standard output; a reader that went away is no error.
fn print(line: &Line<'_>, json: bool) -> anyhow::Result<()> {
    let text = if json { format!("{}\n", serde_json::to_string(line)?) } else { text(line) };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// For people.
fn text(line: &Line<'_>) -> String {
    let number = line.number.map_or_else(String::new, |number| format!("packet {number}: "));
    let Some(view) = line.trace else {
        return format!("{number}{}\n\n", line.error.as_deref().unwrap_or_default());
    };
    let mut text = format!("{number}in by {}: {}\n", view.device, view.packet.headers);
    let width = view.steps.iter().map(|one| one.step.len()).max().unwrap_or(0);
    for step in &view.steps {
        let _ = writeln!(text, "  {:<width$}  {}", step.step, step.found);
    }
    let _ = write!(text, "{} ({})", view.outcome.as_str(), view.verdict);
    if let Some(frontend) = &view.frontend {
        let _ = write!(text, ": {frontend}");
        if let (Some(backend), Outcome::Forwarded | Outcome::Delivered) =
            (&view.backend, view.outcome)
        {
            let mode = view.mode.as_deref().unwrap_or("no mode");
            let _ = write!(text, " -> {backend}, {mode}");
        }
    }
    text.push('\n');
    if let Some(reason) = &view.reason {
        let _ = writeln!(text, "  {reason}: {}", view.advice.as_deref().unwrap_or_default());
    }
    if let Some(leaves) = &view.leaves {
        let mtu = if leaves.mtu == 0 { String::new() } else { format!(", MTU {}", leaves.mtu) };
        let _ = writeln!(text, "  leaves by {} to {}{mtu}", leaves.device, leaves.next_hop);
    }
    if let Some(result) = &view.result {
        let _ = writeln!(text, "  before  {}\n  after   {}", view.packet.headers, result.headers);
    }
    for warning in &view.warnings {
        let _ = writeln!(text, "  note: {warning}");
    }
    if let Some(difference) = &view.difference {
        let _ = writeln!(
            text,
            "DO NOT TRUST THIS: the kernel's program and the same code beside it differ: {difference}\n\
             Please report it with the output of -o json."
        );
    }
    text.push('\n');
    text
}
