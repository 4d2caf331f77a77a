//! Which API server is used: the first that serves, and another one when it does not any more.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Pace,
    client::{Access, Answer, ask},
    object::KINDS,
    servers::{Advice, Server, Servers},
    status::Status,
    watch::{Backoff, Session, Stamped},
};
use crate::{config::KubernetesConfig, error::chain};

/// Longest time between two looks for a server that serves: each asks no more than whether one does.
const LOOK: Duration = Duration::from_secs(1);

/// A server that serves, and the client for it.
struct Chosen {
    server: Server,
    client: Client,
    access: Access,
}

/// Follows the cluster over one server after another, for ever.
pub(super) async fn run(
    config: &KubernetesConfig,
    pace: Pace,
    (status, servers): (Arc<Status>, Arc<Servers>),
    news: mpsc::Sender<Stamped>,
    clients: watch::Sender<Option<Client>>,
) {
    let seeker = Seeker { config, pace, status: &status, servers: &servers };
    let mut last: Option<Server> = None;
    loop {
        let chosen = seeker.choose(last.as_ref()).await;
        last = Some(chosen.server.clone());
        status.connected(&chosen.server.name());
        servers.serves(&chosen.server);
        clients.send_replace(Some(chosen.client.clone()));
        let session = Session {
            client: chosen.client.clone(),
            news: news.clone(),
            status: status.clone(),
            pace,
            heard: Arc::new(watch::Sender::new(Instant::now())),
            doubt: Arc::new(Notify::new()),
        };
        let mut watches = JoinSet::new();
        for kind in KINDS {
            watches.spawn(session.clone().follow(kind));
        }
        seeker.guard(&chosen, &session).await;
        // The watches end with their set.
    }
}

/// Looks for servers that serve.
struct Seeker<'a> {
    config: &'a KubernetesConfig,
    pace: Pace,
    status: &'a Status,
    servers: &'a Servers,
}

impl Seeker<'_> {
    /// The next server that serves, in the order of the configuration and then those that were learnt,
    /// the one that failed last of all; one that answers but is not ready only where there is no better.
    async fn choose(&self, failed: Option<&Server>) -> Chosen {
        let mut backoff = Backoff::new(Pace { most: self.pace.most.min(LOOK), ..self.pace });
        loop {
            match Access::read(self.config, &self.pace).await {
                Ok(access) => {
                    self.status.trouble("credentials", None);
                    self.servers.configure(access.servers());
                    if let Some((server, client)) = self.first(&access, failed).await {
                        return Chosen { server, client, access };
                    }
                    self.status.lost(&self.why_none());
                }
                Err(error) => {
                    let text = chain(&error);
                    self.status.lost(&text);
                    self.status.trouble("credentials", Some(text));
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn first(&self, access: &Access, failed: Option<&Server>) -> Option<(Server, Client)> {
        let mut all = self.servers.all();
        self.status.servers(all.clone());
        all.sort_by_key(|server| Some(server) == failed);
        let mut second = None;
        for server in all {
            match self.reach(access, &server).await {
                Some((client, Answer::Ready)) => return Some((server, client)),
                Some((client, Answer::NotReady(_))) => {
                    second.get_or_insert((server, client));
                }
                Some((_, Answer::Refused(_) | Answer::Hung(_))) | None => {}
            }
        }
        second
    }

    /// Asks a server, and tells how it answers. Where perhaps nobody leads to it, that is said at once.
    async fn reach(&self, access: &Access, server: &Server) -> Option<(Client, Answer)> {
        let mut reaching = pin!(access.reach(server, &self.pace));
        let reached = match timeout(self.pace.doubt, &mut reaching).await {
            Ok(reached) => reached,
            Err(_) => {
                if let Some(Advice { certain: true, text }) = self.servers.advice(server) {
                    self.status.doubt(server, format!("no answer yet: {text}"));
                }
                reaching.await
            }
        };
        match reached {
            Ok((client, answer)) => {
                let advice = || self.servers.advice(server).map(|one| format!(": {}", one.text));
                let error = match &answer {
                    Answer::Ready => None,
                    Answer::NotReady(why) => Some(why.clone()),
                    Answer::Refused(why) | Answer::Hung(why) => {
                        Some(why.clone() + &advice().unwrap_or_default())
                    }
                };
                self.status.server(server, error);
                Some((client, answer))
            }
            Err(error) => {
                self.status.server(server, Some(chain(&error)));
                None
            }
        }
    }

    /// Why no server could be had.
    fn why_none(&self) -> String {
        let all = self.servers.all();
        let advice = all.iter().find_map(|one| self.servers.advice(one));
        let none = "no API server answers";
        advice.map_or_else(|| none.to_owned(), |one| format!("{none}: {}", one.text))
    }

    /// Returns when another server is to be used, or this one anew.
    async fn guard(&self, chosen: &Chosen, session: &Session) {
        let Chosen { server, client, access } = chosen;
        let (pace, status, name) = (self.pace, self.status, server.name());
        let (mut hung, mut lost) = (false, false);
        loop {
            let quiet = pace.silence.saturating_sub(session.heard.borrow().elapsed());
            if !lost && !quiet.is_zero() {
                // A broken connection is a reason to ask at once, though not again and again.
                if timeout(quiet, session.doubt.notified()).await.is_err() {
                    continue;
                }
                sleep(pace.least).await;
            }
            let (why, pause) = match ask(client, server, &pace).await {
                Answer::Ready => {
                    status.server(server, None);
                    session.heard.send_replace(Instant::now());
                    if hung {
                        // Its connections may be dead without a sign of it.
                        return;
                    }
                    if std::mem::take(&mut lost) {
                        status.connected(&name);
                    }
                    continue;
                }
                // It serves watches for a while yet.
                Answer::NotReady(why) => (why, pace.silence),
                Answer::Refused(why) => {
                    lost = true;
                    (why, pace.least)
                }
                Answer::Hung(why) => {
                    (hung, lost) = (true, true);
                    (why, pace.least)
                }
            };
            status.server(server, Some(why.clone()));
            if self.other_serves(access, server).await {
                return;
            }
            if lost {
                status.lost(&format!("API server {name}: {why}"));
            }
            sleep(pause).await;
        }
    }

    /// Whether another server would do.
    async fn other_serves(&self, access: &Access, server: &Server) -> bool {
        for other in self.servers.all().iter().filter(|other| *other != server) {
            if let Some((_, Answer::Ready)) = self.reach(access, other).await {
                return true;
            }
        }
        false
    }
}
