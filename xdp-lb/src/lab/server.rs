//! Backends: HTTP and UDP servers as threads of this process.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{
    Answer, LabError, Namespace,
    answer::{checksum, wanted_length},
    connection::Connection,
    socket::{datagrams_on, listen_on},
};

/// Pause after a failed accept, when the process has run out of files.
const PAUSE: Duration = Duration::from_millis(10);

/// What a server is called and where it listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerSpec {
    name: String,
    http: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
}

impl ServerSpec {
    /// A server that gives `name` as its own in every answer. Quotes, commas, braces and control
    /// characters become dashes, since the answers are JSON.
    pub fn named(name: &str) -> Self {
        let plain = |c: char| {
            if c.is_control() || "\"\\{},".contains(c) { '-' } else { c }
        };
        Self { name: name.chars().map(plain).collect(), http: Vec::new(), udp: Vec::new() }
    }

    /// Serve HTTP/1.1 here. Each request is answered by an [`Answer`] in JSON; `/bytes/N` streams
    /// N bytes of [`super::pattern`]; `/echo` turns the connection into an echo; a body sent by
    /// PUT or POST is counted and summed.
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http.push(address);
        self
    }

    /// Answer each datagram by an [`Answer`] in JSON, behind which [`super::pattern`] follows up to
    /// the length that a client asks for ([`super::Client::exchange_udp`]). Give the service's own address, not the
    /// unspecified one: answers leave from the address that the socket is bound to.
    pub fn udp(mut self, address: SocketAddr) -> Self {
        self.udp.push(address);
        self
    }

    /// Starts the server inside `space`; it listens when this returns.
    pub fn start(self, space: &Namespace) -> Result<Server, LabError> {
        let failed = format!("start the server {} in {}", self.name, space.name());
        let start = || {
            let (stopped, stop) = io::pipe()?;
            let served = Arc::new(Counters::default());
            let mut engine = Engine::new(&self, Some(stopped), Arc::clone(&served))?;
            let worker = thread::Builder::new()
                .name(format!("lab-{}", self.name))
                .spawn(move || engine.run())?;
            Ok(Server { stop: Some(stop), worker: Some(worker), served })
        };
        space.run(start)?.map_err(LabError::system::<io::Error>(failed))
    }

    /// Serves on the calling thread, in its namespace, until an error: for a process of its own
    /// that outlives its lab's builder.
    pub fn serve(self) -> Result<Infallible, LabError> {
        let failed = || LabError::system(format!("serve as {}", self.name));
        let mut engine = Engine::new(&self, None, Arc::default()).map_err(failed())?;
        engine.run().map_err(failed())?;
        Err(failed()(io::Error::from(io::ErrorKind::Interrupted)))
    }
}

/// A running server; dropping it ends it and resets its connections.
#[derive(Debug)]
pub struct Server {
    stop: Option<PipeWriter>,
    worker: Option<JoinHandle<io::Result<()>>>,
    served: Arc<Counters>,
}

impl Server {
    /// What it has done so far.
    pub fn served(&self) -> Served {
        Served {
            connections: self.served.connections.load(Ordering::Relaxed),
            requests: self.served.requests.load(Ordering::Relaxed),
            datagrams: self.served.datagrams.load(Ordering::Relaxed),
            refused: self.served.refused.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(worker) = self.worker.take() {
            // Its errors have been its clients' errors.
            let _ = worker.join();
        }
    }
}

/// A server's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Served {
    /// TCP connections accepted
    pub connections: u64,
    /// HTTP requests answered
    pub requests: u64,
    /// UDP datagrams answered
    pub datagrams: u64,
    /// Failed attempts to accept a connection: when this is not 0, the process has reached its
    /// limit of open files (`ulimit -Hn`), and clients wait in vain
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    datagrams: AtomicU64,
    refused: AtomicU64,
}

/// All sockets of one server, and the loop that serves them.
struct Engine {
    name: String,
    epoll: Epoll,
    sockets: HashMap<u64, Socket>,
    next: u64,
    served: Arc<Counters>,
    buffer: Vec<u8>,
}

enum Socket {
    Stop(PipeReader),
    Listener(TcpListener),
    Datagrams(UdpSocket, SocketAddr),
    Connection(TcpStream, Box<Connection>),
}

impl Engine {
    fn new(spec: &ServerSpec, stop: Option<PipeReader>, served: Arc<Counters>) -> io::Result<Self> {
        let mut engine = Self {
            name: spec.name.clone(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sockets: HashMap::new(),
            next: 0,
            served,
            buffer: vec![0; 64 << 10],
        };
        for address in &spec.http {
            engine.add(Socket::Listener(listen_on(*address)?))?;
        }
        for address in &spec.udp {
            engine.add(Socket::Datagrams(datagrams_on(*address)?, *address))?;
        }
        if let Some(stop) = stop {
            engine.add(Socket::Stop(stop))?;
        }
        Ok(engine)
    }

    fn add(&mut self, socket: Socket) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next);
        let fd = match &socket {
            Socket::Stop(pipe) => pipe.as_fd(),
            Socket::Listener(listener) => listener.as_fd(),
            Socket::Datagrams(socket, _) => socket.as_fd(),
            Socket::Connection(stream, _) => stream.as_fd(),
        };
        self.epoll.add(fd, event)?;
        self.sockets.insert(self.next, socket);
        self.next += 1;
        Ok(())
    }

    /// Serves until the other end of the stop pipe is closed.
    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            for event in &events[..count] {
                let token = event.data();
                match self.sockets.remove(&token) {
                    Some(Socket::Stop(_)) => return Ok(()),
                    Some(Socket::Listener(listener)) => {
                        self.accept(&listener)?;
                        self.sockets.insert(token, Socket::Listener(listener));
                    }
                    Some(Socket::Datagrams(socket, address)) => {
                        self.reply(&socket, address);
                        self.sockets.insert(token, Socket::Datagrams(socket, address));
                    }
                    Some(Socket::Connection(stream, connection)) => {
                        self.go_on(token, stream, connection)?;
                    }
                    None => {}
                }
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let (stream, client) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    self.served.refused.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                    return Ok(());
                }
            };
            // A client that is gone already leaves a socket without addresses.
            let Ok(server) = stream.local_addr() else { continue };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.served.connections.fetch_add(1, Ordering::Relaxed);
            let connection = Connection::new(&self.name, client, server);
            self.add(Socket::Connection(stream, Box::new(connection)))?;
        }
    }

    fn reply(&mut self, socket: &UdpSocket, server: SocketAddr) {
        // Errors here are ICMP's news about earlier answers, or that nothing is left to read.
        while let Ok((length, client)) = socket.recv_from(&mut self.buffer) {
            let answer = Answer {
                backend: self.name.clone(),
                client,
                server,
                received: length as u64,
                checksum: checksum(0, &self.buffer[..length]),
            };
            let wanted = wanted_length(&self.buffer[..length]);
            if socket.send_to(&answer.to_datagram(wanted), client).is_ok() {
                self.served.datagrams.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads and writes what is possible; keeps the connection unless it has ended.
    fn go_on(
        &mut self,
        token: u64,
        mut stream: TcpStream,
        mut connection: Box<Connection>,
    ) -> io::Result<()> {
        match stream.read(&mut self.buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => connection.receive(&self.buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(()),
        }
        self.served.requests.fetch_add(connection.take_requests(), Ordering::Relaxed);
        loop {
            let bytes = connection.output();
            if bytes.is_empty() {
                break;
            }
            match stream.write(bytes) {
                Ok(count) => connection.sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(()),
            }
        }
        if connection.finished() {
            return Ok(());
        }
        let waiting = if connection.output().is_empty() {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
        };
        self.epoll.modify(&stream, &mut EpollEvent::new(waiting, token))?;
        self.sockets.insert(token, Socket::Connection(stream, connection));
        Ok(())
    }
}
