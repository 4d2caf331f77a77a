//! Clients: requests over real sockets from inside a namespace.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use super::{
    Answer, LabError, Namespace,
    answer::{ASK_FOR_BYTES, checksum, pattern_prefix, pattern_run},
    held::{Held, Response},
    socket::{connect_from, datagrams_to, path_mtu},
};

/// When a transfer is given up that goes on.
const LONGEST_TRANSFER: Duration = Duration::from_secs(120);
/// Threads that make many connections together.
const THREADS: usize = 4;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The namespace could not be used.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// No connection came about.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Whom to
        server: SocketAddr,
        /// The system's answer
        source: io::Error,
    },
    /// A connection broke, or was silent for too long.
    #[error("talking to {server}: {source}")]
    Talk {
        /// Whom with
        server: SocketAddr,
        /// The system's answer
        source: io::Error,
    },
    /// No datagram came back.
    #[error("{server} answered none of {tries} datagrams")]
    Silent {
        /// Whom to
        server: SocketAddr,
        /// Datagrams sent
        tries: u32,
    },
    /// What came back is not what a lab's server sends.
    #[error("{server} sent something unexpected: {what}")]
    Unexpected {
        /// Who
        server: SocketAddr,
        /// What
        what: String,
    },
}

/// A client in a namespace.
#[derive(Clone, Debug)]
pub struct Client {
    space: Namespace,
    timeout: Duration,
    source: Option<IpAddr>,
}

/// What became of one of many requests.
#[derive(Debug)]
pub struct Outcome {
    /// The source port that it used
    pub port: u16,
    /// The answer to it
    pub answer: Result<Answer, ClientError>,
}

/// An answer over UDP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UdpAnswer {
    /// The answer
    pub answer: Answer,
    /// Datagrams sent until it came
    pub tries: u32,
}

/// A large transfer, every byte of which was as expected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transfer {
    /// Bytes of payload
    pub bytes: u64,
    /// Time from connecting to the last byte
    pub took: Duration,
    /// The MTU of the path to the server, as far as the client's kernel has learnt it
    pub path_mtu: u32,
}

impl Client {
    /// A client in `space` that waits 5 s for each step.
    pub fn new(space: &Namespace) -> Self {
        Self { space: space.clone(), timeout: Duration::from_secs(5), source: None }
    }

    /// Waits this long to connect, and for each part of an answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends from this address of the namespace.
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// GET over a connection of its own, which the server closes.
    pub fn get(
        &self,
        server: SocketAddr,
        path: &str,
        port: Option<u16>,
    ) -> Result<Response, ClientError> {
        self.space.run(|| self.get_here(server, path, port))?
    }

    /// GET /, and the answer parsed.
    pub fn ask(&self, server: SocketAddr, port: Option<u16>) -> Result<Answer, ClientError> {
        self.space.run(|| self.ask_here(server, port))?
    }

    /// One connection after another from each of the ports (a few at a time); the outcomes are in
    /// the ports' order.
    pub fn ask_each(
        &self,
        server: SocketAddr,
        ports: RangeInclusive<u16>,
    ) -> Result<Vec<Outcome>, LabError> {
        self.each(ports, |port| Outcome { port, answer: self.ask_here(server, Some(port)) })
    }

    /// Opens a connection that stays, and has it answered once.
    pub fn hold(&self, server: SocketAddr, port: Option<u16>) -> Result<Held, ClientError> {
        self.space.run(|| self.hold_here(server, port))?
    }

    /// [`Client::hold`] from each of the ports, in their order; the first failure ends it.
    pub fn hold_each(
        &self,
        server: SocketAddr,
        ports: RangeInclusive<u16>,
    ) -> Result<Vec<Held>, ClientError> {
        self.each(ports, |port| self.hold_here(server, Some(port)))?.into_iter().collect()
    }

    /// Sends a datagram of `length` bytes, up to `tries` times with the client's timeout after
    /// each, until an answer comes from the very address and port that were asked.
    pub fn ask_udp(
        &self,
        server: SocketAddr,
        port: Option<u16>,
        length: u16,
        tries: u32,
    ) -> Result<UdpAnswer, ClientError> {
        self.exchange_udp(server, port, [length, 0], tries)
    }

    /// [`Client::ask_udp`] with datagrams of `lengths` bytes there and back, each byte of which is
    /// looked at. An answer is never shorter than its own text, some 200 bytes.
    pub fn exchange_udp(
        &self,
        server: SocketAddr,
        port: Option<u16>,
        lengths: [u16; 2],
        tries: u32,
    ) -> Result<UdpAnswer, ClientError> {
        self.space.run(|| self.exchange_here(server, port, lengths, tries))?
    }

    /// [`Client::ask_udp`] from each of the ports with a short datagram; the outcomes are in the
    /// ports' order.
    pub fn ask_udp_each(
        &self,
        server: SocketAddr,
        ports: RangeInclusive<u16>,
        tries: u32,
    ) -> Result<Vec<Outcome>, LabError> {
        self.each(ports, |port| {
            let answer = self.exchange_here(server, Some(port), [16, 0], tries);
            Outcome { port, answer: answer.map(|answer| answer.answer) }
        })
    }

    /// Downloads `bytes` bytes and compares each with what the server should have sent.
    pub fn download(&self, server: SocketAddr, bytes: u64) -> Result<Transfer, ClientError> {
        self.space.run(|| {
            let start = Instant::now();
            let mut held = self.connect(server, None)?;
            let (mut right, mut received) = (0, 0);
            held.stream(&format!("/bytes/{bytes}"), start + LONGEST_TRANSFER, |part| {
                if right == received {
                    right += pattern_prefix(right, part) as u64;
                }
                received += part.len() as u64;
            })?;
            if right != bytes || received != bytes {
                let what = format!("{right} of {bytes} bytes were right");
                return Err(ClientError::Unexpected { server, what });
            }
            Ok(Transfer { bytes, took: start.elapsed(), path_mtu: held.path_mtu()? })
        })?
    }

    /// Uploads `bytes` bytes, and compares the checksum that the server has found.
    pub fn upload(&self, server: SocketAddr, bytes: u64) -> Result<Transfer, ClientError> {
        self.space.run(|| {
            let start = Instant::now();
            let mut held = self.connect(server, None)?;
            let head =
                format!("PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
            held.send(head.as_bytes())?;
            let (mut sent, mut sum) = (0, 0);
            while sent < bytes {
                if start.elapsed() > LONGEST_TRANSFER {
                    let source = io::ErrorKind::TimedOut.into();
                    return Err(ClientError::Talk { server, source });
                }
                let part = pattern_run(sent, usize::try_from(bytes - sent).unwrap_or(usize::MAX));
                held.send(part)?;
                sum = checksum(sum, part);
                sent += part.len() as u64;
            }
            let response = held.response()?;
            let answer = held.parse(&response)?;
            if (answer.received, answer.checksum) != (bytes, sum) {
                let what = format!("{} of {bytes} bytes, or with faults", answer.received);
                return Err(ClientError::Unexpected { server, what });
            }
            Ok(Transfer { bytes, took: start.elapsed(), path_mtu: held.path_mtu()? })
        })?
    }

    /// The MTU of the path to `server`, as far as the namespace's kernel has learnt it.
    pub fn path_mtu(&self, server: SocketAddr) -> Result<u32, ClientError> {
        self.space.run(|| {
            datagrams_to(self.source, None, server, self.timeout)
                .and_then(|socket| path_mtu(&socket, server))
                .map_err(|source| ClientError::Connect { server, source })
        })?
    }

    /// Runs `work` inside the namespace.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce(&Self) -> T + Send,
    ) -> Result<T, LabError> {
        self.space.run(|| work(self))
    }

    /// Runs `work` for each port inside the namespace, on a few threads.
    fn each<T: Send>(
        &self,
        ports: RangeInclusive<u16>,
        work: impl Fn(u16) -> T + Sync,
    ) -> Result<Vec<T>, LabError> {
        let ports: Vec<u16> = ports.collect();
        let share = ports.len().div_ceil(THREADS).max(1);
        thread::scope(|scope| {
            let workers: Vec<_> = ports
                .chunks(share)
                .map(|ports| {
                    let work = &work;
                    scope.spawn(move || {
                        self.space.run(|| ports.iter().map(|port| work(*port)).collect::<Vec<T>>())
                    })
                })
                .collect();
            let mut results = Vec::with_capacity(ports.len());
            for worker in workers {
                let part = worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
                results.extend(part?);
            }
            Ok(results)
        })
    }

    fn connect(&self, server: SocketAddr, port: Option<u16>) -> Result<Held, ClientError> {
        let stream = connect_from(self.source, port, server, self.timeout);
        stream
            .and_then(|stream| Held::new(stream, server))
            .map_err(|source| ClientError::Connect { server, source })
    }

    fn get_here(
        &self,
        server: SocketAddr,
        path: &str,
        port: Option<u16>,
    ) -> Result<Response, ClientError> {
        self.connect(server, port)?.fetch(path, true)
    }

    /// [`Client::ask`] on a thread that is in the namespace.
    pub(super) fn ask_here(
        &self,
        server: SocketAddr,
        port: Option<u16>,
    ) -> Result<Answer, ClientError> {
        let mut held = self.connect(server, port)?;
        let response = held.fetch("/", true)?;
        held.parse(&response)
    }

    fn hold_here(&self, server: SocketAddr, port: Option<u16>) -> Result<Held, ClientError> {
        let mut held = self.connect(server, port)?;
        held.ask()?;
        Ok(held)
    }

    fn exchange_here(
        &self,
        server: SocketAddr,
        port: Option<u16>,
        [length, wanted]: [u16; 2],
        tries: u32,
    ) -> Result<UdpAnswer, ClientError> {
        let connect = datagrams_to(self.source, port, server, self.timeout);
        let socket = connect.map_err(|source| ClientError::Connect { server, source })?;
        let question = question(length, wanted);
        let mut buffer = vec![0; 1 << 16];
        for tried in 1..=tries {
            // A message about the path's MTU fails one call, and the next try goes in fragments
            // or smaller: what counts is whether an answer comes.
            if socket.send(&question).is_err() {
                continue;
            }
            let Ok(received) = socket.recv(&mut buffer) else { continue };
            let (answer, padding) = Answer::from_datagram(&buffer[..received])
                .map_err(|text| ClientError::Unexpected { server, what: text })?;
            let expected = (question.len() as u64, checksum(0, &question));
            if (answer.received, answer.checksum) != expected {
                let what = format!("it received {} bytes, or with faults", answer.received);
                return Err(ClientError::Unexpected { server, what });
            }
            let right = pattern_prefix(0, padding);
            if received < usize::from(wanted) || right != padding.len() {
                let what = format!("{received} of {wanted} bytes, {right} of them right");
                return Err(ClientError::Unexpected { server, what });
            }
            return Ok(UdpAnswer { answer, tries: tried });
        }
        Err(ClientError::Silent { server, tries })
    }
}

/// A datagram of `length` bytes, or as many as it takes to ask for `wanted` bytes.
fn question(length: u16, wanted: u16) -> Vec<u8> {
    let mut question = Vec::new();
    if wanted > 0 {
        question.extend(format!("{ASK_FOR_BYTES}{wanted}\n").bytes());
    }
    let left = usize::from(length).saturating_sub(question.len());
    question.extend(pattern_run(0, left));
    question
}
