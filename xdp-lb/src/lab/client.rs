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
    answer::{checksum, pattern},
    held::{Held, Response},
    socket::{connect_from, datagrams_to},
};

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
        self.space.run(|| self.ask_udp_here(server, port, length, tries))?
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
            let answer = self.ask_udp_here(server, Some(port), 16, tries);
            Outcome { port, answer: answer.map(|answer| answer.answer) }
        })
    }

    /// Downloads `bytes` bytes and compares each with what the server should have sent.
    pub fn download(&self, server: SocketAddr, bytes: u64) -> Result<Transfer, ClientError> {
        self.space.run(|| {
            let start = Instant::now();
            let mut held = self.connect(server, None)?;
            let received = held.fetch(&format!("/bytes/{bytes}"), true)?.body;
            let right = received.iter().zip(0..).take_while(|(byte, at)| **byte == pattern(*at));
            let right = right.count() as u64;
            if right != bytes || received.len() as u64 != bytes {
                let what = format!("{right} of {bytes} bytes were right");
                return Err(ClientError::Unexpected { server, what });
            }
            Ok(Transfer { bytes, took: start.elapsed() })
        })?
    }

    /// Uploads `bytes` bytes, and compares the checksum that the server has found.
    pub fn upload(&self, server: SocketAddr, bytes: u64) -> Result<Transfer, ClientError> {
        self.space.run(|| {
            let start = Instant::now();
            let mut held = self.connect(server, None)?;
            let body: Vec<u8> = (0..bytes).map(pattern).collect();
            let head =
                format!("PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
            held.send(head.as_bytes())?;
            held.send(&body)?;
            let response = held.response()?;
            let answer = held.parse(&response)?;
            if (answer.received, answer.checksum) != (bytes, checksum(0, &body)) {
                let what = format!("{} of {bytes} bytes, or with faults", answer.received);
                return Err(ClientError::Unexpected { server, what });
            }
            Ok(Transfer { bytes, took: start.elapsed() })
        })?
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

    fn ask_here(&self, server: SocketAddr, port: Option<u16>) -> Result<Answer, ClientError> {
        let mut held = self.connect(server, port)?;
        let response = held.fetch("/", true)?;
        held.parse(&response)
    }

    fn hold_here(&self, server: SocketAddr, port: Option<u16>) -> Result<Held, ClientError> {
        let mut held = self.connect(server, port)?;
        held.ask()?;
        Ok(held)
    }

    fn ask_udp_here(
        &self,
        server: SocketAddr,
        port: Option<u16>,
        length: u16,
        tries: u32,
    ) -> Result<UdpAnswer, ClientError> {
        let connect = datagrams_to(self.source, port, server, self.timeout);
        let socket = connect.map_err(|source| ClientError::Connect { server, source })?;
        let question: Vec<u8> = (0..u64::from(length)).map(pattern).collect();
        let mut buffer = [0; 1024];
        for tried in 1..=tries {
            // A message about the path's MTU fails one call, and the next try goes in fragments
            // or smaller: what counts is whether an answer comes.
            if socket.send(&question).is_err() {
                continue;
            }
            let Ok(received) = socket.recv(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(&buffer[..received]);
            let answer = Answer::from_json(&text)
                .ok_or_else(|| ClientError::Unexpected { server, what: text.into_owned() })?;
            let expected = (u64::from(length), checksum(0, &question));
            if (answer.received, answer.checksum) != expected {
                let what = format!("it received {} bytes, or with faults", answer.received);
                return Err(ClientError::Unexpected { server, what });
            }
            return Ok(UdpAnswer { answer, tries: tried });
        }
        Err(ClientError::Silent { server, tries })
    }
}
