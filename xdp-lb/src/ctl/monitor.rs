//! `xdp-lb monitor`: packets as they pass, printed or written to a capture file.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};
use xdp_lb_api::{
    client::{Events, escape},
    monitor::{Direction, MOST, MonitorRequest, PacketView},
    trace::Outcome,
};

use super::{Common, Form};

/// What `xdp-lb monitor --help` says.
pub(crate) const LONG: &str = "\
Show packets as they pass, and what becomes of each.

Everything that is asked for must hold of a packet. Where packets come faster than they can be told, some \
are not shown, and counted; packets themselves are never lost by this. While somebody watches, devices run \
programs that can tell; it costs nothing else.

  xdp-lb monitor --frontend 203.0.113.10:80/TCP
  xdp-lb monitor --host 198.51.100.7 --after
  xdp-lb monitor --dropped --count 10
  xdp-lb monitor --sample 100 --pcap sample.pcapng
  xdp-lb monitor --pcap - | wireshark -k -i -";

/// Which packets, and where they go.
#[derive(Args, Debug)]
pub(crate) struct MonitorArgs {
    /// Source or destination address of the outermost IP header
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Source or destination port
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6, or an IP protocol number
    #[arg(long)]
    protocol: Option<String>,
    /// Frontend, like 203.0.113.10:80/TCP
    #[arg(long)]
    frontend: Option<String>,
    /// Backend, like 10.0.1.11:80
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: Option<String>,
    /// Why a packet is not simply forwarded, as `xdp-lb stats` names it
    #[arg(long)]
    reason: Option<String>,
    /// Only packets that are dropped
    #[arg(long)]
    dropped: bool,
    /// Packets, too, with which the data path has nothing to do
    #[arg(long)]
    all: bool,
    /// Each packet twice: as it came, and as it left
    #[arg(long)]
    after: bool,
    /// One of so many packets, at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// Bytes of each packet that a capture file gets, 256 where nothing is said
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(64..=i64::from(MOST)))]
    capture: Option<u32>,
    /// End after so many packets
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write a pcapng file, with what became of each packet as its comment; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

impl MonitorArgs {
    /// Shows packets until there were enough, or SIGINT or SIGTERM ends it.
    ///
    /// # Errors
    ///
    /// Where the daemon does not answer, refuses or ends, or the file cannot be written.
    pub(crate) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let mut sink = match (&self.pcap, common.output) {
            (Some(file), _) => Sink::capture(file)?,
            (None, Form::Json) => Sink::Json,
            (None, Form::Table | Form::Wide) => Sink::Lines,
            (None, Form::Yaml) => bail!("packets are printed as lines or with -o json"),
        };
        let mut events = common.client()?.events(&self.path()).await?;
        let mut tally = Tally::default();
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let result = tokio::select! {
            result = follow(&mut events, &mut sink, &mut tally, self.count) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = stop.recv() => Ok(()),
        };
        let Tally { shown, lost } = tally;
        if lost > 0 || self.pcap.is_some() || io::stderr().is_terminal() {
            let _ = writeln!(io::stderr(), "{shown} packets shown, {lost} more were too fast");
        }
        match result {
            Err(error) if is_broken_pipe(&error) => Ok(()),
            result => result,
        }
    }

    fn path(&self) -> String {
        let request = MonitorRequest {
            host: self.host,
            port: self.port,
            protocol: self.protocol.clone(),
            frontend: self.frontend.clone(),
            backend: self.backend.clone(),
            reason: self.reason.clone(),
            dropped: self.dropped,
            all: self.all,
            after: self.after,
            sample: self.sample,
            capture: self.capture,
        };
        let said = serde_json::to_value(request).unwrap_or_default();
        let text = |value: &serde_json::Value| match value.as_str() {
            Some(text) => escape(text),
            None => value.to_string(),
        };
        let said = said.as_object().into_iter().flatten();
        let said: Vec<_> = said.map(|(name, value)| format!("{name}={}", text(value))).collect();
        format!("/monitor?{}", said.join("&"))
    }
}

#[derive(Default)]
struct Tally {
    shown: u64,
    lost: u64,
}

async fn follow(
    events: &mut Events,
    sink: &mut Sink,
    tally: &mut Tally,
    most: Option<u64>,
) -> anyhow::Result<()> {
    while most.is_none_or(|most| tally.shown < most) {
        let Some(event) = events.next().await? else {
            bail!("the daemon has ended the stream");
        };
        match event.name.as_str() {
            "packet" => {
                sink.show(&serde_json::from_str(&event.data)?, &event.data)?;
                tally.shown += 1;
            }
            "lost" => tally.lost += event.data.parse::<u64>().unwrap_or(0),
            _ => {}
        }
    }
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |error: &(dyn std::error::Error + 'static)| Some(error.downcast_ref::<io::Error>()?.kind());
    error.chain().any(|error| kind(error) == Some(io::ErrorKind::BrokenPipe))
}

/// Where packets go.
enum Sink {
    Lines,
    Json,
    Capture(Box<Capture>),
}

impl Sink {
    fn capture(file: &Path) -> anyhow::Result<Self> {
        let out: Box<dyn Write> = if file == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let created = File::create(file);
            Box::new(created.with_context(|| format!("cannot write {}", file.display()))?)
        };
        Ok(Self::Capture(Box::new(Capture::new(out)?)))
    }

    fn show(&mut self, packet: &PacketView, json: &str) -> anyhow::Result<()> {
        match self {
            Self::Lines => writeln!(io::stdout(), "{}", line(packet))?,
            Self::Json => writeln!(io::stdout(), "{json}")?,
            Self::Capture(capture) => capture.write(packet)?,
        }
        Ok(())
    }
}

/// One packet, for people.
fn line(packet: &PacketView) -> String {
    let (seconds, micros) = (packet.seconds % 86_400, packet.nanoseconds / 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let way = match (packet.direction, packet.after) {
        (Direction::In, false) => "in ",
        (Direction::Out, false) => "out",
        (_, true) => "=> ",
    };
    format!(
        "{hour:02}:{minute:02}:{second:02}.{micros:06} {} {way} {}, {} bytes: {}",
        packet.device,
        packet.headers,
        packet.length,
        fate(packet)
    )
}

/// What became of a packet.
fn fate(packet: &PacketView) -> String {
    let mut text = format!("{} ({})", packet.outcome.as_str(), packet.verdict);
    let ends: Vec<&str> =
        [&packet.frontend, &packet.backend].into_iter().flatten().map(String::as_str).collect();
    if !ends.is_empty() {
        text.push_str(": ");
        text.push_str(&ends.join(" -> "));
    }
    if let Some(reason) = &packet.reason {
        text.push_str(", ");
        text.push_str(reason);
    }
    text
}

/// A pcapng file (draft-ietf-opsawg-pcapng).
struct Capture {
    writer: PcapNgWriter<Flushed>,
    /// The file's interfaces
    devices: Vec<String>,
}

/// Writes what it was given since the last [`Flushed::flush`] at once, so that the file is whole at
/// any moment.
type Flushed = BufWriter<Box<dyn Write>>;

impl Capture {
    fn new(out: Box<dyn Write>) -> anyhow::Result<Self> {
        let writer = PcapNgWriter::new(BufWriter::new(out))?;
        let mut capture = Self { writer, devices: Vec::new() };
        capture.writer.get_mut().flush()?;
        Ok(capture)
    }

    fn write(&mut self, packet: &PacketView) -> anyhow::Result<()> {
        let known = self.devices.iter().position(|one| *one == packet.device);
        let interface = match known {
            Some(known) => known,
            None => {
                let block = InterfaceDescriptionBlock {
                    linktype: DataLink::ETHERNET,
                    snaplen: MOST,
                    options: vec![
                        InterfaceDescriptionOption::IfName(packet.device.as_str().into()),
                        // Nanoseconds
                        InterfaceDescriptionOption::IfTsResol(9),
                    ],
                };
                self.writer.write_block(&block.into_block())?;
                self.devices.push(packet.device.clone());
                self.devices.len() - 1
            }
        };
        let block = EnhancedPacketBlock {
            interface_id: interface as u32,
            timestamp: Duration::new(packet.seconds, packet.nanoseconds),
            original_len: packet.length,
            data: bytes(&packet.frame)?.into(),
            options: vec![
                EnhancedPacketOption::Comment(fate(packet).into()),
                EnhancedPacketOption::Flags(if is_inbound(packet) { 1 } else { 2 }),
            ],
        };
        self.writer.write_block(&block.into_block())?;
        Ok(self.writer.get_mut().flush()?)
    }
}

/// Whether the packet, as it is shown, comes in by the device.
fn is_inbound(packet: &PacketView) -> bool {
    let stays = matches!(packet.outcome, Outcome::Delivered | Outcome::Passed);
    packet.direction == Direction::In && (!packet.after || stays)
}

fn bytes(hexadecimal: &str) -> anyhow::Result<Vec<u8>> {
    let digits = hexadecimal.as_bytes();
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(byte).collect()
}
