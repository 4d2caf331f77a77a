//! Many connections at once that talk all the time, from one thread.
//!
//! Each one asks who serves it, then has data of its own echoed at a steady pace and looks at every
//! byte. Every second one stays for the whole time; the others are closed after a while and made
//! anew, so that there are always some that are young. What ends otherwise is a [`Loss`].

mod talk;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    mem,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use self::talk::{Heard, Talk};
use super::{LabError, Namespace, socket::connect_at_once};

/// How often it is looked whose turn it is.
const TURN: Duration = Duration::from_millis(10);
/// Connections that are begun, and exchanges, in one turn: no queue on their way is too short then.
const CONNECTS: usize = 50;
const QUESTIONS: usize = 150;
/// Each connection has a port of its own for as long as there are new ones: a server that knows it
/// from before, and never heard of its end, would not reset it.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 50_000;
/// How long a connection that was lost stays away.
const AWAY: Duration = Duration::from_millis(500);

/// How many connections, to whom, and at which pace.
#[derive(Clone, Debug)]
pub struct CrowdSpec {
    servers: Vec<SocketAddr>,
    size: usize,
    pause: Duration,
    patience: Duration,
    lasting: bool,
}

impl CrowdSpec {
    /// So many connections, shared evenly among servers of [`super::ServerSpec::http`]. Each pauses
    /// for a second between two exchanges, and is lost when an answer takes ten.
    pub fn new(servers: &[SocketAddr], size: usize) -> Self {
        let (pause, patience) = (Duration::from_secs(1), Duration::from_secs(10));
        Self { servers: servers.to_vec(), size, pause, patience, lasting: false }
    }

    /// Sets the pause between two exchanges of a connection.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Has no connection closed and made anew.
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// Starts the thread inside `space`; it opens the connections by and by.
    pub fn start(self, space: &Namespace) -> Result<Crowd, LabError> {
        let failed = format!("start a crowd of clients in {}", space.name());
        let start = || {
            let shared = Arc::new(Shared::default());
            let mut engine = Engine::new(self, Arc::clone(&shared))?;
            let worker =
                thread::Builder::new().name("lab-crowd".into()).spawn(move || engine.run())?;
            Ok(Crowd { shared, worker: Some(worker) })
        };
        space.run(start)?.map_err(LabError::system::<io::Error>(failed))
    }
}

/// What a crowd has done so far.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Connections begun
    pub made: u64,
    /// Connections that their client closed, after all that was said was right
    pub closed: u64,
    /// Exchanges, each byte of which was right
    pub exchanges: u64,
    /// Connections that are up, by server and name of the backend
    pub living: BTreeMap<(SocketAddr, String), usize>,
    /// Of these, at the end, those that have been up all the time: they were among the first
    pub lasting: usize,
    /// Longest time from a question to the end of its answer
    pub slowest: Duration,
}

/// A connection that ended without its client's doing.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Whom the client asked
    pub server: SocketAddr,
    /// Who served; nothing where it had not said so yet
    pub backend: Option<String>,
    /// When all was well for the last time
    pub good: Instant,
    /// When it was found out
    pub lost: Instant,
    /// What was found
    pub how: String,
}

#[derive(Debug, Default)]
struct Shared {
    figures: Mutex<Figures>,
    losses: Mutex<Vec<Loss>>,
    finish: AtomicBool,
    stop: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement, whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections that talk; dropping it ends them.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl Crowd {
    /// What it has done so far.
    pub fn figures(&self) -> Figures {
        locked(&self.shared.figures).clone()
    }

    /// Connections that are up and have said who serves them.
    pub fn living(&self) -> usize {
        locked(&self.shared.figures).living.values().sum()
    }

    /// All that was lost so far, in order.
    pub fn losses(&self) -> Vec<Loss> {
        locked(&self.shared.losses).clone()
    }

    /// Has every connection that is up make one more exchange, begun after this call, and ends; the
    /// figures count those as living that made it.
    pub fn finish(mut self) -> Result<(Figures, Vec<Loss>), LabError> {
        self.shared.finish.store(true, Ordering::Relaxed);
        let worker = self.worker.take();
        let ended = worker.map_or(Ok(()), |worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        ended.map_err(LabError::system("go on with a crowd of clients"))?;
        Ok((self.figures(), self.losses()))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // Nobody asks any more how it went.
            let _ = worker.join();
        }
    }
}

/// A place in the crowd.
#[derive(Debug)]
enum Place {
    /// To be connected at this time
    Away(Instant),
    /// Not connected yet
    Begun(TcpStream, Talk),
    /// Connected; once no exchange is under way, the next is due at this time
    Up(TcpStream, Talk, Instant),
    /// Nothing more will happen here
    Done,
}

struct Engine {
    spec: CrowdSpec,
    epoll: Epoll,
    places: Vec<Place>,
    shared: Arc<Shared>,
    /// When the last exchanges were asked for
    finishing: Option<Instant>,
    buffer: Vec<u8>,
}

impl Engine {
    fn new(spec: CrowdSpec, shared: Arc<Shared>) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            places: (0..spec.size).map(|_| Place::Away(now)).collect(),
            spec,
            shared,
            finishing: None,
            buffer: vec![0; 16 << 10],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); 1024];
        let timeout = EpollTimeout::try_from(TURN).map_err(io::Error::other)?;
        let mut next = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            for event in &events[..count] {
                self.hear(event.data() as usize);
            }
            let now = Instant::now();
            if now < next {
                continue;
            }
            next = now + TURN;
            if self.finishing.is_none() && self.shared.finish.load(Ordering::Relaxed) {
                self.finishing = Some(now);
            }
            self.do_what_is_due(now)?;
            if self.places.iter().all(|place| matches!(place, Place::Done)) {
                break;
            }
        }
        Ok(())
    }

    /// Something came about for a connection.
    fn hear(&mut self, index: usize) {
        let now = Instant::now();
        self.places[index] = match mem::replace(&mut self.places[index], Place::Done) {
            Place::Begun(stream, talk) => match stream.take_error() {
                Ok(None) => self.greet(index, stream, talk, now),
                Ok(Some(error)) | Err(error) => self.lose(index, &talk, now, &error.to_string()),
            },
            Place::Up(stream, talk, due) => self.read(index, stream, talk, due, now),
            other @ (Place::Away(_) | Place::Done) => other,
        };
    }

    fn do_what_is_due(&mut self, now: Instant) -> io::Result<()> {
        let (mut connects, mut questions) = (CONNECTS, QUESTIONS);
        let patience = self.spec.patience;
        let late = |talk: &Talk| talk.asked.is_some_and(|since| now - since > patience);
        for index in 0..self.places.len() {
            self.places[index] = match mem::replace(&mut self.places[index], Place::Done) {
                Place::Away(_) if self.finishing.is_some() => Place::Done,
                Place::Away(due) if due <= now && connects > 0 => {
                    connects -= 1;
                    self.connect(index, now)?
                }
                Place::Begun(_, talk) if late(&talk) => {
                    self.lose(index, &talk, now, "no connection came about")
                }
                Place::Up(_, talk, _) if late(&talk) => {
                    self.lose(index, &talk, now, "no answer came")
                }
                Place::Up(stream, talk, due)
                    if talk.asked.is_none()
                        && questions > 0
                        && (due <= now || self.finishing.is_some()) =>
                {
                    questions -= 1;
                    self.go_on(index, stream, talk, now)
                }
                other @ (Place::Away(_) | Place::Begun(..) | Place::Up(..) | Place::Done) => other,
            };
        }
        Ok(())
    }

    fn server(&self, index: usize) -> SocketAddr {
        self.spec.servers[index % self.spec.servers.len()]
    }

    fn connect(&self, index: usize, now: Instant) -> io::Result<Place> {
        let id = {
            let mut figures = locked(&self.shared.figures);
            figures.made += 1;
            figures.made
        };
        let talk = Talk::new(id, now);
        let port = FIRST_PORT + (id % u64::from(PORTS)) as u16;
        match connect_at_once(port, self.server(index)) {
            Ok(stream) => {
                self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, index as u64))?;
                Ok(Place::Begun(stream, talk))
            }
            Err(error) => Ok(self.lose(index, &talk, now, &error.to_string())),
        }
    }

    /// The first exchange of a connection that came about.
    fn greet(&self, index: usize, stream: TcpStream, talk: Talk, now: Instant) -> Place {
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        match self.epoll.modify(&stream, &mut event) {
            Ok(()) => self.ask(index, stream, talk, now),
            Err(error) => self.lose(index, &talk, now, &error.to_string()),
        }
    }

    /// The next exchange of a connection that is at rest, or its end.
    fn go_on(&self, index: usize, stream: TcpStream, talk: Talk, now: Instant) -> Place {
        match self.finishing {
            Some(since) if talk.began >= since => {
                let first = talk.id <= self.spec.size as u64;
                locked(&self.shared.figures).lasting += usize::from(first);
                Place::Done
            }
            Some(_) => self.ask(index, stream, talk, now),
            None if !self.spec.lasting && talk.exchanges > life(index) => {
                let mut figures = locked(&self.shared.figures);
                figures.closed += 1;
                self.leave(index, &talk, &mut figures);
                Place::Away(now)
            }
            None => self.ask(index, stream, talk, now),
        }
    }

    fn ask(&self, index: usize, mut stream: TcpStream, mut talk: Talk, now: Instant) -> Place {
        let question = talk.ask(now);
        // Nothing else is on its way, so that all of it finds room.
        match stream.write(&question) {
            Ok(length) if length == question.len() => Place::Up(stream, talk, now),
            Ok(_) => self.lose(index, &talk, now, "a question found no room"),
            Err(error) => self.lose(index, &talk, now, &error.to_string()),
        }
    }

    fn read(
        &mut self,
        index: usize,
        mut stream: TcpStream,
        mut talk: Talk,
        due: Instant,
        now: Instant,
    ) -> Place {
        let greeting = talk.backend.is_none();
        let length = match stream.read(&mut self.buffer) {
            Ok(0) => return self.lose(index, &talk, now, "the server closed it"),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Place::Up(stream, talk, due);
            }
            Err(error) => return self.lose(index, &talk, now, &error.to_string()),
        };
        match talk.hear(&self.buffer[..length], now) {
            Heard::Part => Place::Up(stream, talk, due),
            Heard::Wrong => self.lose(index, &talk, now, "what came back was not what was sent"),
            Heard::All => {
                let mut figures = locked(&self.shared.figures);
                figures.exchanges += 1;
                figures.slowest = figures.slowest.max(now - talk.began);
                if greeting && let Some(backend) = &talk.backend {
                    let key = (self.server(index), backend.clone());
                    *figures.living.entry(key).or_default() += 1;
                }
                Place::Up(stream, talk, now + self.spec.pause)
            }
        }
    }

    /// Notes that a connection has ended by itself; its place is taken again after a while.
    fn lose(&self, index: usize, talk: &Talk, now: Instant, how: &str) -> Place {
        self.leave(index, talk, &mut locked(&self.shared.figures));
        locked(&self.shared.losses).push(Loss {
            server: self.server(index),
            backend: talk.backend.clone(),
            good: talk.good,
            lost: now,
            how: how.to_owned(),
        });
        Place::Away(now + AWAY)
    }

    /// A connection is up no more.
    fn leave(&self, index: usize, talk: &Talk, figures: &mut Figures) {
        if let Some(backend) = &talk.backend
            && let Some(count) = figures.living.get_mut(&(self.server(index), backend.clone()))
        {
            *count -= 1;
        }
    }
}

/// How many exchanges the connections of a place make: every second place, counted over all servers
/// alike, keeps its connection.
fn life(index: usize) -> u64 {
    // A multiplicative hash, so that places of one server differ.
    let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    if mixed.is_multiple_of(2) { u64::MAX } else { 5 + mixed % 16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_each_servers_connections_stay() {
        for servers in 1..=6 {
            let places = (0..6_000).filter(|index| index % servers == 0);
            let stay = places.clone().filter(|index| life(*index) == u64::MAX).count();
            let share = stay as f64 / places.count() as f64;
            assert!((0.45..0.55).contains(&share), "{share} of {servers}");
        }
        assert!((0..1000).map(life).all(|life| life == u64::MAX || (5..=20).contains(&life)));
    }
}
