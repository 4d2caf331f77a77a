//! A steady stream of numbered datagrams, each of which must arrive once, at one backend, and be
//! answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use xdp_lb::lab::Namespace;

use crate::PATIENCE;

/// Time between two datagrams of a flow.
const PACE: Duration = Duration::from_millis(2);
/// Datagrams that may be unanswered: a veth device keeps 256 frames for who does not run just now.
const MOST_UNANSWERED: u64 = 128;
/// How long the last ones may be on their way.
const LAST: Duration = Duration::from_secs(2);
/// Bytes that may wait in a receiver's socket.
const BUFFER: usize = 16 << 20;

/// A stream that runs.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    flows: Vec<(SocketAddr, u16)>,
    sender: JoinHandle<u64>,
    receivers: Vec<JoinHandle<Vec<Datagram>>>,
}

/// A datagram that arrived: where, and its flow and number.
type Datagram = (String, u32, u64);

/// What became of a stream.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Frontend and client's port of each flow
    pub flows: Vec<(SocketAddr, u16)>,
    /// Datagrams that were sent in each flow
    pub sent: u64,
    /// Answers that came back from the very frontends, in all flows
    pub answered: u64,
    /// How often each datagram arrived, by flow and number, and where
    pub arrived: BTreeMap<(u32, u64), Vec<String>>,
}

impl Stream {
    /// Sends from so many ports of the client to each frontend, one datagram a flow every 2 ms; the
    /// receivers, each with its name and where it listens, send them back.
    pub fn start(
        client: &Namespace,
        receivers: &[(String, &Namespace, SocketAddr)],
        frontends: &[SocketAddr],
        ports: u16,
    ) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let receiver = |(name, space, address): &(String, &Namespace, SocketAddr)| {
            let socket = space.run(|| UdpSocket::bind(address).unwrap()).unwrap();
            setsockopt(&socket, RcvBufForce, &BUFFER).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let (name, done) = (name.clone(), done.clone());
            thread::spawn(move || receive(&name, &socket, &done))
        };
        let receivers = receivers.iter().map(receiver).collect();
        // Every flow has a port of its own.
        let flows: Vec<(SocketAddr, u16)> =
            frontends.iter().flat_map(|one| (0..ports).map(move |_| *one)).zip(20_000..).collect();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sockets: Vec<UdpSocket> = client.run(|| sockets(&flows)).unwrap();
        let sender = thread::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || send(&sockets, &stop, &sent)
        });
        Self { stop, sent, done, flows, sender, receivers }
    }

    /// Datagrams sent so far in each flow.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more datagrams have been sent in each flow.
    pub fn go_on_for(&self, count: u64) {
        let (end, goal) = (Instant::now() + PATIENCE, self.sent() + count);
        while self.sent() < goal {
            assert!(Instant::now() < end, "the stream does not go on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it, and waits for what is on its way.
    pub fn stop(self) -> Arrivals {
        self.stop.store(true, Ordering::Relaxed);
        let answered = self.sender.join().unwrap();
        let sent = self.sent.load(Ordering::Relaxed);
        self.done.store(true, Ordering::Relaxed);
        let mut arrived: BTreeMap<(u32, u64), Vec<String>> = BTreeMap::new();
        for (node, flow, number) in self.receivers.into_iter().flat_map(|one| one.join().unwrap()) {
            arrived.entry((flow, number)).or_default().push(node);
        }
        Arrivals { flows: self.flows, sent, answered, arrived }
    }
}

impl Arrivals {
    /// Datagrams that were sent in all flows.
    pub fn total(&self) -> u64 {
        self.sent * self.flows.len() as u64
    }

    /// How many arrived at each node.
    pub fn by_node(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in self.arrived.values().flatten() {
            *counts.entry(node.clone()).or_default() += 1;
        }
        counts
    }

    /// Where the first datagram of a flow arrived.
    pub fn first(&self, frontend: SocketAddr, port: u16) -> String {
        let flow = self.flows.iter().position(|flow| *flow == (frontend, port)).unwrap();
        self.arrived[&(flow as u32, 0)][0].clone()
    }

    /// Panics unless every datagram arrived once, and those of a flow where `owner` says, and was
    /// answered.
    pub fn assert_all_arrived_at(&self, owner: impl Fn(SocketAddr, u16) -> String) {
        let lost = self.flows.iter().zip(0..).flat_map(|(_, flow)| {
            let missing = move |number: &u64| !self.arrived.contains_key(&(flow, *number));
            (0..self.sent).filter(missing).map(move |number| (flow, number))
        });
        let lost: Vec<(u32, u64)> = lost.collect();
        assert!(
            lost.is_empty(),
            "{} of {} lost: {:?}",
            lost.len(),
            self.total(),
            &lost[..lost.len().min(20)]
        );
        for ((frontend, port), flow) in self.flows.iter().zip(0..) {
            let mut nodes = BTreeSet::new();
            for number in 0..self.sent {
                let at = &self.arrived[&(flow, number)];
                assert_eq!(at.len(), 1, "{frontend} from {port}, {number}: arrived at {at:?}");
                nodes.extend(at.iter().cloned());
            }
            assert_eq!(nodes, BTreeSet::from([owner(*frontend, *port)]), "{frontend} from {port}");
        }
        assert_eq!(self.answered, self.total(), "answers");
    }
}

fn sockets(flows: &[(SocketAddr, u16)]) -> Vec<UdpSocket> {
    let open = |&(frontend, port): &(SocketAddr, u16)| {
        let any: IpAddr = match frontend {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, port)).unwrap();
        socket.connect(frontend).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    flows.iter().map(open).collect()
}

/// Sends until it is to stop, and then waits for answers; returns how many there were. It makes up for no
/// delay, and while answers are missing it waits for them for a while.
fn send(sockets: &[UdpSocket], stop: &AtomicBool, sent: &AtomicU64) -> u64 {
    let mut next = Instant::now();
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        for (socket, flow) in sockets.iter().zip(0_u32..) {
            let datagram = [&flow.to_be_bytes()[..], &number.to_be_bytes()].concat();
            // Nobody may refuse it: an ICMP error would show here.
            socket.send(&datagram).unwrap();
            answered += answers(socket, flow);
        }
        sent.store(number + 1, Ordering::Relaxed);
        next = (next + PACE).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let (all, end) = ((number + 1) * sockets.len() as u64, Instant::now() + LAST);
        while answered + MOST_UNANSWERED < all && Instant::now() < end {
            answered += all_answers(sockets);
            thread::sleep(PACE / 4);
        }
    }
    let (all, end) = (sent.load(Ordering::Relaxed) * sockets.len() as u64, Instant::now() + LAST);
    while answered < all && Instant::now() < end {
        thread::sleep(PACE);
        answered += all_answers(sockets);
    }
    answered
}

fn all_answers(sockets: &[UdpSocket]) -> u64 {
    sockets.iter().zip(0..).map(|(socket, flow)| answers(socket, flow)).sum()
}

/// Answers that wait at a socket, which hears its frontend alone.
fn answers(socket: &UdpSocket, flow: u32) -> u64 {
    let (mut buffer, mut count) = ([0; 64], 0);
    while let Ok(length) = socket.recv(&mut buffer) {
        assert_eq!((length, &buffer[..4]), (12, &flow.to_be_bytes()[..]), "another flow's answer");
        count += 1;
    }
    count
}

fn receive(node: &str, socket: &UdpSocket, done: &AtomicBool) -> Vec<Datagram> {
    let mut all = Vec::new();
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((12, client)) => {
                let flow = u32::from_be_bytes(*buffer.first_chunk().unwrap());
                let number = u64::from_be_bytes(*buffer[4..].first_chunk().unwrap());
                all.push((node.to_owned(), flow, number));
                socket.send_to(&buffer[..12], client).unwrap();
            }
            Ok((length, _)) => panic!("{node}: a datagram of {length} bytes"),
            Err(_) if done.load(Ordering::Relaxed) => return all,
            Err(_) => {}
        }
    }
}
