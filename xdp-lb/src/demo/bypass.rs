//! Proof that answers do not pass the balancer.

use std::{collections::BTreeMap, io::Write, net::SocketAddr};

use super::{
    DemoError,
    network::{BALANCER, SERVICES},
    report::{Report, Side, Table, number, share},
    stage::Stage,
    wire::{self, Wires},
};

/// Bytes of each download.
const DOWNLOAD: u64 = 2 << 20;

/// Downloads from every frontend; the bytes, each of which was as expected.
pub(super) fn download(stage: &Stage) -> Result<u64, DemoError> {
    let client = stage.client()?;
    let frontends = SERVICES.iter().flat_map(|service| service.frontends());
    let mut bytes = 0;
    for frontend in frontends {
        bytes += client.download(frontend, DOWNLOAD)?.bytes;
    }
    Ok(bytes)
}

/// Packets and bytes of one direction of a frontend's connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Sum {
    packets: usize,
    bytes: usize,
}

impl Sum {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

/// The section.
pub(super) fn report<W: Write>(
    report: &mut Report<W>,
    stage: &Stage,
    wires: &Wires,
    downloads: u64,
) -> Result<(), DemoError> {
    report.section("Answers bypass the balancer")?;
    report.text(&format!(
        "The client has also downloaded {} bytes from the six frontends, and found each byte \
         right. All packets of all connections so far, and their bytes of IP:",
        number(downloads)
    ))?;
    report.gap()?;
    let mut requests: BTreeMap<SocketAddr, Sum> = BTreeMap::new();
    let mut answers: BTreeMap<SocketAddr, Sum> = BTreeMap::new();
    for (sent, segment) in wires.segments(wire::CLIENT) {
        if sent {
            requests.entry(segment.destination).or_default().add(segment.length);
        } else {
            answers.entry(segment.source).or_default().add(segment.length);
        }
    }
    let ours = |one: SocketAddr| SERVICES.iter().any(|service| service.frontends().contains(&one));
    let through = wires.segments(wire::BALANCER).filter(|(_, one)| ours(one.source)).count();
    let routed = [wire::near(), wire::far()].map(|point| {
        let all = wires.segments(point).filter(|(sent, one)| !sent && ours(one.source));
        all.fold((0, 0), |(all, lb), (_, one)| (all + 1, lb + usize::from(one.sender == BALANCER)))
    });
    let routed = routed.iter().fold((0_usize, 0_usize), |sum, one| (sum.0 + one.0, sum.1 + one.1));

    let stats = stage.stats(BALANCER)?;
    let mut table = Table::new(&[
        ("frontend", Side::Left),
        ("client sent", Side::Right),
        ("lb forwarded", Side::Right),
        ("bytes", Side::Right),
        ("answers", Side::Right),
        ("their bytes", Side::Right),
    ]);
    let mut equal = 0;
    let mut sums = [Sum::default(); 3];
    for frontend in SERVICES.iter().flat_map(|service| service.frontends()) {
        let name = format!("{frontend}/TCP");
        let counted = stats.frontends.iter().find(|one| one.frontend == name);
        let forwarded = counted.map_or(Sum::default(), |one| Sum {
            packets: usize::try_from(one.packets).unwrap_or_default(),
            bytes: usize::try_from(one.bytes).unwrap_or_default(),
        });
        let sent = requests.get(&frontend).copied().unwrap_or_default();
        let answered = answers.get(&frontend).copied().unwrap_or_default();
        equal += usize::from(sent == forwarded && sent.packets > 0);
        for (sum, one) in sums.iter_mut().zip([sent, forwarded, answered]) {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
        }
        table.row(row(&frontend, &[sent, forwarded, answered]).each_ref().map(as_cell));
    }
    table.row(row(&"all", &sums).each_ref().map(as_cell));
    report.table(&table)?;
    report.gap()?;
    let [sent, forwarded, answered] = sums;
    report.check(
        equal == 2 * SERVICES.len(),
        &format!(
            "the balancer's counters: it forwarded {} packets, and the client sent \
             {}; equal in packets and bytes for {equal} of {} frontends",
            number(forwarded.packets),
            number(sent.packets),
            2 * SERVICES.len()
        ),
    )?;
    let part = share(forwarded.bytes, forwarded.bytes + answered.bytes);
    report.check(
        answered.bytes > 5 * forwarded.bytes && forwarded.bytes > 0,
        &format!(
            "{} bytes of answers reached the client, {} bytes of requests and acknowledgements \
             passed the balancer: {part} of the traffic",
            number(answered.bytes),
            number(forwarded.bytes)
        ),
    )?;
    report.check(
        through == 0 && routed.1 == 0 && routed.0 > 0,
        &format!(
            "{through} of {} answers were seen on the balancer's wire; the router received {} of \
             {} from the balancer's MAC address",
            number(answered.packets),
            routed.1,
            number(routed.0)
        ),
    )?;
    Ok(())
}

fn row(name: &dyn ToString, [sent, forwarded, answered]: &[Sum; 3]) -> [String; 6] {
    [
        name.to_string(),
        number(sent.packets),
        number(forwarded.packets),
        number(forwarded.bytes),
        number(answered.packets),
        number(answered.bytes),
    ]
}

fn as_cell(text: &String) -> &dyn ToString {
    text
}
