//! Requests without end, from several clients at once, each over a connection of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Client, ClientError, LabError};

/// A request that got no answer.
#[derive(Debug)]
pub struct Failure {
    /// Whom the client asked
    pub server: SocketAddr,
    /// When it began to
    pub asked: Instant,
    /// What became of it
    pub cause: ClientError,
}

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Record {
    /// How many were answered, by whom the client asked and who answered
    pub served: BTreeMap<(SocketAddr, String), u64>,
    /// Those that were not, in the order in which that was found out
    pub failures: Vec<Failure>,
    /// Longest time from a request's begin to its answer
    pub slowest: Duration,
}

impl Record {
    /// How many were answered.
    pub fn total(&self) -> u64 {
        self.served.values().sum()
    }

    /// How many were answered for those who asked `server`.
    pub fn total_of(&self, server: SocketAddr) -> u64 {
        self.served.iter().filter(|((asked, _), _)| *asked == server).map(|(_, count)| count).sum()
    }
}

/// Clients that ask all the time; dropping it ends them.
#[derive(Debug)]
pub struct Traffic {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<(), LabError>>>,
}

impl Traffic {
    /// So many clients like this one, each of which asks one of the servers after the other, with a
    /// pause in between.
    pub fn start(client: &Client, servers: &[SocketAddr], clients: usize, pause: Duration) -> Self {
        let (record, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let worker = |index: usize| {
            let (client, servers) = (client.clone(), servers.to_vec());
            let (record, stop) = (Arc::clone(&record), Arc::clone(&stop));
            let work = move |client: &Client| {
                let turns = servers.iter().cycle().skip(index % servers.len().max(1));
                for server in turns.take_while(|_| !stop.load(Ordering::Relaxed)) {
                    ask(client, *server, &record);
                    thread::sleep(pause);
                }
            };
            thread::spawn(move || client.inside(work))
        };
        let workers = (0..clients).map(worker).collect();
        Self { record, stop, workers }
    }

    /// How many requests were answered so far, and how many were not.
    pub fn so_far(&self) -> (u64, usize) {
        let record = locked(&self.record);
        (record.total(), record.failures.len())
    }

    /// Ends it once every request that is under way has ended.
    pub fn finish(mut self) -> Result<Record, LabError> {
        self.end()?;
        Ok(std::mem::take(&mut *locked(&self.record)))
    }

    fn end(&mut self) -> Result<(), LabError> {
        self.stop.store(true, Ordering::Relaxed);
        // All of them end, whatever became of the first.
        let ended: Vec<_> = self.workers.drain(..).map(JoinHandle::join).collect();
        ended.into_iter().try_for_each(|one| one.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Nobody asks any more how it went.
        let _ = self.end();
    }
}

fn ask(client: &Client, server: SocketAddr, record: &Mutex<Record>) {
    let asked = Instant::now();
    let answer = client.ask_here(server, None);
    let took = asked.elapsed();
    let mut record = locked(record);
    record.slowest = record.slowest.max(took);
    match answer {
        Ok(answer) => *record.served.entry((server, answer.backend)).or_default() += 1,
        Err(cause) => record.failures.push(Failure { server, asked, cause }),
    }
}

fn locked(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    // Whole after every statement, whatever panicked.
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
