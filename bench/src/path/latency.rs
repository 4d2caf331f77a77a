//! Real TCP connections, one after the other: how long each takes to open, and a request to be
//! answered.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::net::TcpSocket;
use xdp_lb::{
    bench::Sample,
    lab::{Lab, Namespace},
};
use xdp_lb_api::benchmark::PathCase;

use super::{Error, PORT, PROBER};

/// How long a connection may take, and a request: a lost SYN shows as such. One that takes longer counts
/// as so long.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Connections of a measurement that may time out: more are no measurement.
const MOST_LOST: u32 = 5;
const REQUEST: [u8; 64] = [0x2e; 64];

/// Microseconds.
pub(super) struct Latency {
    pub(super) connect: Sample,
    pub(super) request: Sample,
}

impl Latency {
    /// The part of a case that this is.
    pub(super) fn case(&self) -> PathCase {
        let Self { connect, request } = self;
        PathCase {
            connect_p50_us: Some(connect.quantile(0.5)),
            connect_p99_us: Some(connect.quantile(0.99)),
            connect_p999_us: Some(connect.quantile(0.999)),
            request_p50_us: Some(request.quantile(0.5)),
            request_p99_us: Some(request.quantile(0.99)),
            request_p999_us: Some(request.quantile(0.999)),
            ..PathCase::default()
        }
    }
}

/// Answers each request by the same bytes, until it is dropped.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    wake: SocketAddr,
    space: Namespace,
}

/// Starts the server on all addresses.
pub(super) fn serve(lab: &Lab) -> Result<Server, Error> {
    let space = lab.ns("server")?.clone();
    let listener = space.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    let stop = Arc::<AtomicBool>::default();
    let over = Arc::clone(&stop);
    let worker = thread::Builder::new().name("bench-server".into()).spawn(move || {
        for stream in listener.incoming() {
            if over.load(Ordering::SeqCst) {
                return;
            }
            // A client that gives up is no server's fault, and keeps no other one waiting.
            thread::spawn(|| {
                let _ = stream.and_then(answer);
            });
        }
    })?;
    let wake = SocketAddr::from(([127, 0, 0, 1], PORT));
    Ok(Server { stop, worker: Some(worker), wake, space })
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut bytes = REQUEST;
    while stream.read_exact(&mut bytes).is_ok() {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.space.run(|| TcpStream::connect_timeout(&self.wake, TIMEOUT));
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Whether a connection to the frontend opens in time, of those in the thread's namespace.
///
/// From an address of its own: conntrack remembers for two minutes that one which found no rules yet
/// is not translated, and the next one from its port would not be, either.
pub(super) fn opens(frontend: SocketAddr, within: Duration) -> Result<bool, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((PROBER, 0).into())?;
        let opened = tokio::time::timeout(within, socket.connect(frontend)).await;
        Ok(matches!(opened, Ok(Ok(_))))
    })
}

/// Nanoseconds of a `connect` call of a UDP socket, which sends nothing: the median of so many.
pub(super) fn calls(from: &Namespace, to: SocketAddr, times: u32) -> Result<f64, Error> {
    from.run(|| {
        let mut sample = Sample::default();
        for _ in 0..times {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            let began = Instant::now();
            socket.connect(to)?;
            sample.push(began.elapsed().as_nanos() as f64);
        }
        Ok(sample.median())
    })?
}

/// Opens so many connections from a namespace, with a request each.
pub(super) fn measure(
    from: &Namespace,
    to: SocketAddr,
    connections: u32,
) -> Result<Latency, Error> {
    from.run(|| {
        let mut latency = Latency { connect: Sample::default(), request: Sample::default() };
        let mut lost = 0;
        for _ in 0..connections {
            let began = Instant::now();
            let opened = TcpStream::connect_timeout(&to, TIMEOUT);
            latency.connect.push(began.elapsed().as_secs_f64() * 1e6);
            let mut stream = match opened {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && lost < MOST_LOST => {
                    lost += 1;
                    continue;
                }
                other => other?,
            };
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut bytes = REQUEST;
            let began = Instant::now();
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            latency.request.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(latency)
    })?
}
