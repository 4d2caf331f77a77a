//! The scenario `handover`: backends come and go, and connections stay with theirs.

mod judge;
mod pool;

use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use xdp_lb_plan::maglev::HashKey;

use self::{
    judge::{Judge, Verdict},
    pool::Pools,
};
use super::{
    DemoError, Handover, Options,
    network::BALANCER,
    report::{Report, number},
    scenario::{self, Block},
    stage::{Cast, Stage},
};
use crate::{
    config,
    lab::{Crowd, CrowdSpec, Figures, Loss},
};

/// How long the connections may take to come about.
const OPENING: Duration = Duration::from_secs(30);
/// How long those that were lost with their backend may take to be made anew at the end.
const SETTLE: Duration = Duration::from_secs(12);
/// How often it is looked.
const TURN: Duration = Duration::from_millis(20);
/// Losses that are described.
const SHOWN: usize = 5;

/// Runs it; says whether every claim was observed.
pub(super) fn run<W: Write>(report: &mut Report<W>, options: &Options) -> Result<bool, DemoError> {
    let started = Instant::now();
    let wanted = options.handover;
    let title = "backends come and go, in network namespaces";
    let (lab, places) = scenario::begin(report, options, title)?;
    let mut pools = Pools::new(wanted.enabled);
    picture(report, &pools)?;
    let mut stage = Stage::set(lab, places, &cast(&pools))?;

    let crowd = open(report, &mut stage, &pools, wanted)?;
    let mut judge = Judge::default();
    change(report, &mut stage, &mut pools, &crowd, &mut judge, wanted)?;
    let end = Instant::now() + SETTLE;
    while crowd.living() < wanted.connections && Instant::now() < end {
        stage.watch()?;
        thread::sleep(TURN);
    }
    let (figures, losses) = crowd.finish()?;
    stage.watch()?;
    let verdict = judge.judge(&losses);
    outcome(report, wanted, &figures, verdict)?;
    describe(report, &judge, &losses)?;
    scenario::end(report, stage, options, commands)?;
    let all = report.verdict(started.elapsed())?;
    report.last(&format!("broken connections: {} of {}", verdict.broken, figures.made))?;
    Ok(all && verdict.broken == 0)
}

fn cast(pools: &Pools) -> Cast {
    let far = pools.all.iter().filter(|pool| pool.mode == "ipip");
    let unwrapping = far.flat_map(|pool| pool.hosts()).collect();
    let servers = pools
        .all
        .iter()
        .flat_map(|pool| pool.hosts().map(|host| (host, pool.frontends().to_vec())))
        .collect();
    Cast { balancer: pools.to_string(), unwrapping, servers }
}

fn picture<W: Write>(report: &mut Report<W>, pools: &Pools) -> Result<(), DemoError> {
    for pool in &pools.all {
        let [v4, v6] = pool.frontends();
        let hosts: Vec<String> =
            pool.hosts().map(|host| format!("{} {}", host.node, host.v4())).collect();
        report.text(&format!("{}, mode {}: {v4} and {v6}", pool.name, pool.mode))?;
        for hosts in hosts.chunks(4) {
            report.lines(&format!("  {}", hosts.join("   ")))?;
        }
    }
    report.gap()?;
    report.text(
        "Client, router, balancer and each of these hosts are network namespaces of their own, \
         daemons and HTTP servers are processes.",
    )?;
    Ok(())
}

/// Has the connections made.
fn open<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    pools: &Pools,
    wanted: Handover,
) -> Result<Crowd, DemoError> {
    report.section("Connections")?;
    let servers: Vec<SocketAddr> = pools.all.iter().flat_map(|pool| pool.frontends()).collect();
    let begun = Instant::now();
    let crowd = CrowdSpec::new(&servers, wanted.connections).start(stage.lab.ns("client")?)?;
    while crowd.living() < wanted.connections && begun.elapsed() < OPENING {
        stage.watch()?;
        thread::sleep(TURN);
    }
    report.text(
        "Each sends data of its own about once a second, has it echoed, and compares every byte. \
         Half of them stay to the end; the others are closed after 5 to 20 exchanges and made anew, \
         from new ports.",
    )?;
    let (living, lost) = (crowd.living(), crowd.losses().len());
    report.check(
        living == wanted.connections && lost == 0,
        &format!(
            "{} of {} TCP connections to {} frontends, over IPv4 and IPv6, were up after {:.1} s",
            number(living),
            number(wanted.connections),
            servers.len(),
            begun.elapsed().as_secs_f64()
        ),
    )?;
    Ok(crowd)
}

/// Makes the changes.
fn change<W: Write>(
    report: &mut Report<W>,
    stage: &mut Stage,
    pools: &mut Pools,
    crowd: &Crowd,
    judge: &mut Judge,
    wanted: Handover,
) -> Result<(), DemoError> {
    report.section("Changes")?;
    report.text(&format!(
        "{} is rewritten {} times in {} s, each time followed by a SIGHUP{}.",
        stage.places.config(BALANCER).display(),
        wanted.changes,
        wanted.time.as_secs(),
        if wanted.enabled { "" } else { ". The handover is off" }
    ))?;
    report.gap()?;
    report.lines(&row(["", "change", "in force", "living", "broken"]))?;
    let begun = Instant::now();
    let (mut in_force, mut slowest) = (0, Duration::ZERO);
    for turn in 1..=wanted.changes {
        let due = wanted.time.mul_f64(turn as f64 / wanted.changes as f64);
        let change = pools.next();
        judge.begins(&change, Instant::now());
        pools.make(&change);
        let took = apply(stage, pools)?;
        judge.is_in_force(&change, Instant::now());
        in_force += 1;
        slowest = slowest.max(took);
        while begun.elapsed() < due {
            stage.watch()?;
            thread::sleep(TURN.min(due.saturating_sub(begun.elapsed())));
        }
        let broken = judge.judge(&crowd.losses()).broken;
        report.lines(&row([
            &turn.to_string(),
            &change.text,
            &format!("{:.2} s", took.as_secs_f64()),
            &number(crowd.living()),
            &number(broken),
        ]))?;
    }
    report.gap()?;
    report.check(
        in_force == wanted.changes,
        &format!(
            "{in_force} of {} changes came into force, in {:.1} s, each after {:.2} s at most: every \
             backend then had exactly the slots that Maglev gives it for the new file",
            wanted.changes,
            begun.elapsed().as_secs_f64(),
            slowest.as_secs_f64()
        ),
    )?;
    Ok(())
}

fn row([turn, change, force, living, broken]: [&str; 5]) -> String {
    format!("{turn:>4}  {change:<42}  {force:>8}  {living:>6}  {broken:>6}")
}

/// Writes the file and waits until the tables are those of it.
fn apply(stage: &mut Stage, pools: &Pools) -> Result<Duration, DemoError> {
    let text = pools.to_string();
    let file = config::parse(&text)
        .map_err(|mistakes| DemoError::Configuration(mistakes.in_file("the file").to_string()))?;
    let want = pools.tables(&HashKey::from(file.hash_key));
    let want = want.map_err(|error| DemoError::Configuration(error.to_string()))?;
    let started = Instant::now();
    stage.configure(BALANCER, &text)?;
    stage.reload(BALANCER)?;
    stage.wait_for("the daemon to take the new configuration", |stage| {
        let stats = stage.stats(BALANCER).ok()?;
        let table = |frontend: &SocketAddr| {
            let name = format!("{frontend}/TCP");
            let one = stats.frontends.iter().find(|one| one.frontend == name)?;
            let slots = one.backends.iter().map(|share| (share.backend.clone(), share.slots));
            Some(slots.collect::<BTreeMap<String, usize>>())
        };
        let equal = want.iter().all(|(frontend, slots)| table(frontend).as_ref() == Some(slots));
        equal.then_some(())
    })?;
    Ok(started.elapsed())
}

fn outcome<W: Write>(
    report: &mut Report<W>,
    wanted: Handover,
    figures: &Figures,
    verdict: Verdict,
) -> Result<(), DemoError> {
    report.section("What became of the connections")?;
    let living: usize = figures.living.values().sum();
    for (what, count) in [
        ("made in all", figures.made),
        ("closed by the client when their time was over", figures.closed),
        ("ended because their own backend was removed", verdict.removed as u64),
        ("broken, although their backend was there", verdict.broken as u64),
        ("up at the end, with an exchange after the last change", living as u64),
        ("of these, up since before the first change", figures.lasting as u64),
    ] {
        report.lines(&format!("{:>8}  {what}", number(count)))?;
    }
    report.gap()?;
    report.text(&format!(
        "{} exchanges, each byte right; the slowest took {:.2} s.",
        number(figures.exchanges),
        figures.slowest.as_secs_f64()
    ))?;
    report.check(
        living == wanted.connections,
        &format!(
            "{} of {} connections were up at the end and exchanged data after the last change",
            number(living),
            number(wanted.connections)
        ),
    )?;
    report.check(
        verdict.broken == 0,
        &format!(
            "{} of {} connections broke although their backend was there",
            number(verdict.broken),
            number(figures.made)
        ),
    )?;
    Ok(())
}

/// Shows how some connections broke.
fn describe<W: Write>(
    report: &mut Report<W>,
    judge: &Judge,
    losses: &[Loss],
) -> Result<(), DemoError> {
    for loss in losses.iter().filter(|loss| !judge.excuses(loss)).take(SHOWN) {
        let backend = loss.backend.as_deref().unwrap_or("nobody yet");
        report.lines(&format!("  to {}, served by {backend}: {}", loss.server, loss.how))?;
    }
    Ok(())
}

/// What to do in a lab that stays up.
fn commands(stage: &Stage) -> Result<Vec<Block>, DemoError> {
    Ok(vec![scenario::counters(stage, BALANCER)?, scenario::changes(stage, BALANCER)])
}
