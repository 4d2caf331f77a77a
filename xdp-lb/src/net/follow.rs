//! The task that keeps the view current.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    Hop, View,
    asker::Asker,
    path::{path, wanted_neighbour},
    resolve::{Resolver, Rounds},
    route::Route,
    socket::{Event, Events, NetError, Requests},
    tables::{Effect, Tables},
};

/// Everything is read anew this often, in case a message was missed.
const REREAD_EVERY: Duration = Duration::from_secs(30);
/// Pause after a failed or overrun read, and before a new socket.
const REREAD_PAUSE: Duration = Duration::from_secs(1);
/// How many routes are asked for before the worker looks at other things.
const BATCH: usize = 1024;
/// Changed networks that are kept apart; where there are more, every route is asked for.
const MOST_NETWORKS: usize = 1000;
/// From one look at all paths to the next, however many neighbours change in between …
const SETTLE_INTERVAL: Duration = Duration::from_millis(50);
/// … and looking takes at most one part in this many of the time, even where paths are many.
const SETTLE_SHARE: u32 = 5;
/// How often the neighbours are looked over for those to resolve or confirm.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many neighbours to resolve at one look: each may be a broadcast on its segment.
const RESOLVE_AT_ONCE: usize = 128;
/// A full neighbour table is reported this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Follows the network until it is dropped.
#[derive(Debug)]
pub struct Follower {
    destinations: watch::Sender<BTreeSet<IpAddr>>,
    view: watch::Receiver<Arc<View>>,
    task: AbortHandle,
}

impl Follower {
    /// Follows the network namespace of the calling thread; the first view has its links and
    /// addresses. Needs a tokio runtime with I/O and time, and `CAP_NET_ADMIN` to make the kernel
    /// resolve neighbours. Should its socket ever fail, the next one is opened in the namespace of
    /// the runtime's threads.
    pub async fn start() -> Result<Self, NetError> {
        let (destinations, wanted) = watch::channel(BTreeSet::new());
        let (sender, view) = watch::channel(Arc::new(View::default()));
        let mut worker = Worker::connect(wanted, sender).await?;
        worker.settle(Instant::now());
        Ok(Self { destinations, view, task: tokio::spawn(worker.run()).abort_handle() })
    }

    /// Replaces the addresses to which paths are wanted. The view has a path for each of them soon,
    /// at first with [`super::Why::Pending`].
    pub fn set_destinations(&self, destinations: BTreeSet<IpAddr>) {
        self.destinations.send_if_modified(|current| {
            let differ = *current != destinations;
            *current = destinations;
            differ
        });
    }

    /// The current view, and word of each new one that differs.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Answer {
    Routes(Asker, Vec<(IpAddr, Result<Route, NetError>)>),
    Used(Hop, Result<(), NetError>),
}

struct Worker {
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    view: watch::Sender<Arc<View>>,
    events: Events,
    requests: Requests,
    answers: JoinSet<Answer>,

    tables: Tables,
    /// Nothing where the kernel has not answered yet.
    routes: BTreeMap<IpAddr, Option<Route>>,
    /// Routes to ask for as soon as there is room.
    to_ask: BTreeSet<IpAddr>,
    /// Asks for routes; nothing while it does.
    asker: Option<Asker>,
    rounds: Rounds,
    /// What the next round asks for
    changed: Changed,
    resolver: Resolver,

    reread_at: Instant,
    settle_at: Option<Instant>,
    settle_not_before: Instant,
    look_at: Instant,
    warned: Option<Instant>,
}

/// Destinations whose routes may have changed.
#[derive(Debug, Eq, PartialEq)]
enum Changed {
    /// Those in these networks
    In(BTreeSet<IpNet>),
    /// Any
    All,
}

impl Changed {
    const NONE: Self = Self::In(BTreeSet::new());

    fn add(&mut self, network: IpNet) {
        if let Self::In(networks) = self {
            networks.insert(network);
            if networks.len() > MOST_NETWORKS {
                *self = Self::All;
            }
        }
    }

    /// Those among these.
    fn among<'a, T>(
        &self,
        routes: &'a BTreeMap<IpAddr, T>,
    ) -> Box<dyn Iterator<Item = IpAddr> + 'a> {
        match self {
            Self::All => Box::new(routes.keys().copied()),
            Self::In(networks) => {
                let ranges: Vec<_> =
                    networks.iter().map(|net| net.network()..=net.broadcast()).collect();
                let found = ranges.into_iter().flat_map(|range| routes.range(range));
                Box::new(found.map(|(destination, _)| *destination))
            }
        }
    }
}

/// Why the worker's loop ended.
enum End {
    /// The follower is gone.
    Unwanted,
    /// A socket is.
    Closed,
}

impl Worker {
    async fn connect(
        wanted: watch::Receiver<BTreeSet<IpAddr>>,
        view: watch::Sender<Arc<View>>,
    ) -> Result<Self, NetError> {
        // Events first: what changes while the tables are read is then told as well.
        let events = Events::open()?;
        let requests = Requests::open()?;
        let asker = Asker::open()?;
        let tables = requests.tables().await?;
        let now = Instant::now();
        Ok(Self {
            wanted,
            view,
            events,
            requests,
            answers: JoinSet::new(),
            tables,
            routes: BTreeMap::new(),
            to_ask: BTreeSet::new(),
            asker: Some(asker),
            rounds: Rounds::default(),
            changed: Changed::NONE,
            resolver: Resolver::default(),
            reread_at: now + REREAD_EVERY,
            settle_at: None,
            settle_not_before: now,
            look_at: now,
            warned: None,
        })
    }

    async fn run(mut self) {
        while let End::Closed = self.follow().await {
            tracing::warn!("a netlink socket failed; opening new ones");
            while let Err(error) = self.reconnect().await {
                tracing::warn!(%error, "the network is not being followed");
            }
        }
    }

    /// New sockets for the same worker: routes and neighbours stay as they were last known.
    async fn reconnect(&mut self) -> Result<(), NetError> {
        tokio::time::sleep(REREAD_PAUSE).await;
        self.events = Events::open()?;
        self.requests = Requests::open()?;
        self.answers = JoinSet::new();
        self.asker = Some(Asker::open()?);
        // The answer that would have ended a round will not come.
        self.rounds = Rounds::default();
        self.to_ask.extend(self.routes.keys());
        self.reread_at = Instant::now();
        Ok(())
    }

    async fn follow(&mut self) -> End {
        loop {
            self.ask();
            let wake = self.next_deadline();
            tokio::select! {
                event = self.events.next() => match event {
                    Event::Message(message) => {
                        let effect = self.tables.apply(&message);
                        self.react(effect, Instant::now());
                    }
                    Event::Overrun => {
                        tracing::debug!("netlink messages were lost; reading everything anew");
                        self.reread_at = self.reread_at.min(Instant::now() + REREAD_PAUSE);
                    }
                    Event::Closed => return End::Closed,
                },
                Some(answer) = self.answers.join_next() => match answer {
                    Ok(answer) => self.take_answer(answer, Instant::now()),
                    // It panicked or was cancelled; which it was cannot be told, so begin anew.
                    Err(_) => return End::Closed,
                },
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.take_destinations(Instant::now()),
                    Err(_) => return End::Unwanted,
                },
                () = tokio::time::sleep_until(wake.into()) => {
                    if self.reread_at <= Instant::now()
                        && let Err(NetError::Closed { .. }) = self.reread().await
                    {
                        return End::Closed;
                    }
                    self.keep_time(Instant::now());
                }
            }
        }
    }

    fn react(&mut self, effect: Effect, now: Instant) {
        match effect {
            Effect::Nothing => {}
            Effect::Neighbour(hop) if self.resolver.wants(&hop) => self.settle_soon(),
            Effect::Neighbour(_) => {}
            Effect::Network(network) => {
                self.changed.add(network);
                self.rounds.request(now);
            }
            Effect::Routes => {
                self.changed = Changed::All;
                self.rounds.request(now);
                self.settle_soon();
            }
        }
    }

    /// Has the next routes asked for, unless some are being asked for.
    fn ask(&mut self) {
        if self.to_ask.is_empty() {
            return;
        }
        let Some(mut asker) = self.asker.take() else { return };
        let mut destinations = Vec::new();
        while destinations.len() < BATCH
            && let Some(destination) = self.to_ask.pop_first()
        {
            destinations.push(destination);
        }
        self.answers.spawn_blocking(move || {
            let routes = asker.ask(&destinations);
            Answer::Routes(asker, destinations.into_iter().zip(routes).collect())
        });
    }

    fn take_answer(&mut self, answer: Answer, now: Instant) {
        match answer {
            Answer::Routes(asker, routes) => {
                self.asker = Some(asker);
                if self.to_ask.is_empty() {
                    self.rounds.finish(now);
                }
                for (destination, result) in routes {
                    self.take_route(destination, result, now);
                }
            }
            Answer::Used(_, Ok(())) => {}
            Answer::Used(hop, Err(error)) => self.report_unresolvable(hop, &error, now),
        }
    }

    fn take_route(&mut self, destination: IpAddr, result: Result<Route, NetError>, now: Instant) {
        // It may not be wanted any more.
        let Some(known) = self.routes.get_mut(&destination) else { return };
        match result {
            Ok(route) if known.as_ref() == Some(&route) => {}
            Ok(route) => {
                *known = Some(route);
                self.settle_soon();
            }
            Err(error) => {
                tracing::debug!(%destination, %error, "route unknown; asking again");
                self.changed.add(destination.into());
                self.rounds.request(now + REREAD_PAUSE);
            }
        }
    }

    fn report_unresolvable(&mut self, hop: Hop, error: &NetError, now: Instant) {
        let full = matches!(error, NetError::Refused { source, .. }
            if matches!(source.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)));
        let quiet = self.warned.is_some_and(|last| now < last + WARN_EVERY);
        if full && !quiet {
            self.warned = Some(now);
            tracing::warn!(
                neighbour = %hop,
                "the kernel's neighbour table is full; raise net.ipv4.neigh.default.gc_thresh3 and \
                 net.ipv6.neigh.default.gc_thresh3 above the number of backends"
            );
        } else {
            tracing::debug!(neighbour = %hop, %error, "cannot resolve the neighbour");
        }
    }

    fn take_destinations(&mut self, now: Instant) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.routes.retain(|destination, _| wanted.contains(destination));
        self.to_ask.retain(|destination| wanted.contains(destination));
        for destination in wanted {
            self.routes.entry(destination).or_insert_with(|| {
                self.to_ask.insert(destination);
                None
            });
        }
        self.settle_at.get_or_insert(now);
    }

    async fn reread(&mut self) -> Result<(), NetError> {
        // Should it fail, it is tried again soon.
        self.reread_at = Instant::now() + REREAD_PAUSE;
        // Events wait in their channel meanwhile and are folded in afterwards. The last one about
        // anything is at least as new as what is read here, so the outcome is right.
        self.tables = self.requests.tables().await.inspect_err(|error| {
            tracing::warn!(%error, "cannot read links, addresses and neighbours; trying again");
        })?;
        self.reread_at = Instant::now() + REREAD_EVERY;
        self.react(Effect::Routes, Instant::now());
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let mut next = self.reread_at.min(self.look_at);
        for deadline in [self.rounds.next(), self.settle_at].into_iter().flatten() {
            next = next.min(deadline);
        }
        next
    }

    fn keep_time(&mut self, now: Instant) {
        if self.rounds.next().is_some_and(|at| at <= now) {
            self.rounds.start(now);
            let changed = mem::replace(&mut self.changed, Changed::NONE);
            self.to_ask.extend(changed.among(&self.routes));
            if self.to_ask.is_empty() {
                self.rounds.finish(now);
            }
        }
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle(now);
        } else if self.look_at <= now {
            self.resolve(now);
        }
    }

    fn settle_soon(&mut self) {
        self.settle_at.get_or_insert(self.settle_not_before);
    }

    /// Joins what is known into paths, publishes them, and sees to the neighbours they lack.
    fn settle(&mut self, now: Instant) {
        self.settle_at = None;
        let mut paths = BTreeMap::new();
        let mut hops = BTreeSet::new();
        for (destination, route) in &self.routes {
            paths.insert(*destination, path(*destination, route.as_ref(), &self.tables));
            hops.extend(route.as_ref().and_then(|route| wanted_neighbour(route, &self.tables)));
        }
        let view = View {
            links: self.tables.links().clone(),
            addresses: self.tables.addresses().collect(),
            primary: self.tables.primary().collect(),
            paths,
        };
        self.view.send_if_modified(|current| {
            let differ = **current != view;
            if differ {
                *current = Arc::new(view);
            }
            differ
        });
        self.resolver.want(&hops);
        self.resolve(now);
        self.settle_not_before = now + SETTLE_INTERVAL.max(now.elapsed() * SETTLE_SHARE);
    }

    fn resolve(&mut self, now: Instant) {
        let due = self.resolver.due(now, RESOLVE_AT_ONCE, |hop| self.tables.neighbour(hop));
        // A full batch means that there may be more.
        let again = if due.len() == RESOLVE_AT_ONCE { SETTLE_INTERVAL } else { LOOK_EVERY };
        self.look_at = now + again;
        for hop in due {
            let request = self.requests.use_neighbour(hop);
            self.answers.spawn(async move { Answer::Used(hop, request.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_in_changed_networks_are_found() {
        let destinations = ["10.1.1.1", "10.1.2.255", "10.2.0.0", "fd00::1", "fd00:1::"];
        let routes: BTreeMap<IpAddr, ()> =
            destinations.iter().map(|text| (text.parse().unwrap(), ())).collect();
        let among = |networks: &[&str]| -> Vec<String> {
            let mut changed = Changed::NONE;
            for network in networks {
                changed.add(network.parse().unwrap());
            }
            changed.among(&routes).map(|one| one.to_string()).collect()
        };
        assert!(among(&[]).is_empty());
        assert_eq!(among(&["10.1.0.0/16"]), ["10.1.1.1", "10.1.2.255"]);
        assert_eq!(among(&["10.1.2.255/32", "fd00:1::/32"]), ["10.1.2.255", "fd00:1::"]);
        assert_eq!(among(&["0.0.0.0/0"]), ["10.1.1.1", "10.1.2.255", "10.2.0.0"]);
        assert_eq!(among(&["::/0"]), ["fd00::1", "fd00:1::"]);
        assert!(among(&["192.0.2.0/24"]).is_empty());
    }

    #[test]
    fn where_too_many_networks_change_all_is_asked_for() {
        let mut changed = Changed::NONE;
        for number in 0..=MOST_NETWORKS as u32 {
            assert_ne!(changed, Changed::All);
            changed.add(IpAddr::from(number.to_be_bytes()).into());
        }
        assert_eq!(changed, Changed::All);
        changed.add(IpAddr::from([10, 0, 0, 1]).into());
        assert_eq!(changed, Changed::All);
    }
}
