//! Frames as a device in a namespace sends and receives them.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};

use super::{LabError, Namespace};

/// Frames that may wait in the kernel while the thread is not running, in bytes of memory.
const BUFFER: usize = 256 << 20;
/// How often the thread looks whether it is to stop.
const TURN: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
/// Longest frame: 64 KiB of IP and room for tags.
const LONGEST: usize = 65_536 + 64;

/// One frame, complete from its destination MAC address on, VLAN tags included.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Captured {
    /// When it passed
    pub at: SystemTime,
    /// Sent by the device; otherwise received
    pub sent: bool,
    /// Its bytes, without the Ethernet check sequence
    pub bytes: Vec<u8>,
}

/// A capture that runs until it is stopped or dropped.
///
/// What a native XDP program drops, sends back or redirects passes no capture on its own device:
/// look at the device at the other end of the link.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<io::Result<u32>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    frames: Mutex<Vec<Captured>>,
    grown: Condvar,
}

impl Shared {
    fn frames(&self) -> MutexGuard<'_, Vec<Captured>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    /// Starts to record on `device`; frames that pass after the return are recorded.
    pub fn start(space: &Namespace, device: &str) -> Result<Self, LabError> {
        let failed = || format!("capture on {device} in {}", space.name());
        let socket = space.run(|| open(device))?.map_err(LabError::system(failed()))?;
        let shared = Arc::new(Shared::default());
        let worker = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("lab-capture".into())
                .spawn(move || record(&socket, &shared))
                .map_err(LabError::system(failed()))?
        };
        Ok(Self { shared, worker: Some(worker) })
    }

    /// The frames so far.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.shared.frames().iter().map(|frame| frame.bytes.clone()).collect()
    }

    /// Waits until a frame has passed that `wanted` accepts, and returns the first such one; none
    /// after `limit`.
    pub fn wait_for(
        &self,
        limit: Duration,
        wanted: impl Fn(&Captured) -> bool,
    ) -> Option<Captured> {
        let end = Instant::now() + limit;
        let mut frames = self.shared.frames();
        let mut seen = 0;
        loop {
            if let Some(found) = frames[seen..].iter().find(|frame| wanted(frame)) {
                return Some(found.clone());
            }
            seen = frames.len();
            let left = end.checked_duration_since(Instant::now())?;
            let waited = self.shared.grown.wait_timeout(frames, left);
            frames = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops and returns what passed, the frames included that the kernel has not handed over yet.
    pub fn stop(mut self) -> Result<Recording, LabError> {
        let dropped = self.end().unwrap_or(Ok(0)).map_err(LabError::system("end a capture"))?;
        Ok(Recording { frames: mem::take(&mut *self.shared.frames()), dropped })
    }

    fn end(&mut self) -> Option<io::Result<u32>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let worker = self.worker.take()?;
        Some(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// What a capture has recorded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recording {
    /// The frames in the order in which they passed
    pub frames: Vec<Captured>,
    /// Frames that passed but found no room in the buffer: when this is not 0, absence of a frame
    /// proves nothing
    pub dropped: u32,
}

impl Recording {
    /// Frames that the device sent.
    pub fn sent(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().filter(|frame| frame.sent).map(|frame| frame.bytes.as_slice())
    }

    /// Frames that it received.
    pub fn received(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().filter(|frame| !frame.sent).map(|frame| frame.bytes.as_slice())
    }

    /// Writes the frames as a file for tcpdump and Wireshark (pcap, nanoseconds).
    pub fn write_pcap(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&self.pcap())?;
        file.flush()
    }

    fn pcap(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
        // Magic of the form with nanoseconds, version 2.4, time zone, accuracy, longest frame,
        // Ethernet.
        for value in [0xa1b2_3c4d, 0x0004_0002, 0, 0, LONGEST as u32, 1] {
            word(&mut file, value);
        }
        for frame in &self.frames {
            let at = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let length = frame.bytes.len() as u32;
            for value in [at.as_secs() as u32, at.subsec_nanos(), length, length] {
                word(&mut file, value);
            }
            file.extend(&frame.bytes);
        }
        file
    }
}

fn open(device: &str) -> io::Result<OwnedFd> {
    // Protocol 0 hears nothing until the socket is bound to the device.
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1_i32)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &TURN)?;
    let index = if_nametoindex(device)?;
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of_val(&address) as u32;
    // SAFETY: the pointer and the length are those of one live `sockaddr_ll`.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer and the length are those of one live `T`, plain data for the kernel.
    let done = unsafe {
        libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as u32)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Records until told to stop and nothing is left; returns how many frames the kernel dropped.
fn record(socket: &OwnedFd, shared: &Shared) -> io::Result<u32> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let stopping = shared.stop.load(Ordering::SeqCst);
        match receive(socket, &mut buffer, stopping) {
            Ok(frame) => {
                shared.frames().push(frame);
                shared.grown.notify_all();
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) if stopping => return dropped(socket),
                // ENETDOWN: the device goes down, and perhaps up again.
                Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => {}
                Some(_) | None => return Err(error),
            },
        }
    }
}

/// Room for the control messages, aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; 256]);

fn receive(socket: &OwnedFd, buffer: &mut [u8], drain: bool) -> io::Result<Captured> {
    let mut control = Control([0; 256]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are valid for both structures.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = if drain { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: every pointer in `message` is to a live buffer of the length beside it.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut bytes = buffer[..length.min(buffer.len())].to_vec();
    let mut at = SystemTime::now();
    // SAFETY: the kernel has filled `message` and `control`, which is still live.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` give null or a whole header inside `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: the header is one of `message`; its data follows it.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: the kernel writes one `tpacket_auxdata` in a message of this type.
                let aux: libc::tpacket_auxdata =
                    unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                put_tag_back(&mut bytes, &aux);
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: the kernel writes one `timespec` in a message of this type.
                let time: libc::timespec =
                    unsafe { data.cast::<libc::timespec>().read_unaligned() };
                at = UNIX_EPOCH + Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            }
            _ => {}
        }
        // SAFETY: as for `CMSG_FIRSTHDR`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(Captured { at, sent: from.sll_pkttype == libc::PACKET_OUTGOING, bytes })
}

/// The kernel takes the outer VLAN tag out of a received frame and hands it over beside it.
fn put_tag_back(bytes: &mut Vec<u8>, aux: &libc::tpacket_auxdata) {
    if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 || bytes.len() < 12 {
        return;
    }
    let protocol = if aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        aux.tp_vlan_tpid
    } else {
        0x8100
    };
    let [a, b] = protocol.to_be_bytes();
    let [c, d] = aux.tp_vlan_tci.to_be_bytes();
    bytes.splice(12..12, [a, b, c, d]);
}

fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&statistics) as u32;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut statistics).cast());
    // SAFETY: the pointer and the length are those of one live `tpacket_stats`.
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pcap_file_has_one_record_per_frame() {
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        let frame = Captured { at, sent: true, bytes: vec![7; 60] };
        let file = Recording { frames: vec![frame.clone(), frame], dropped: 0 }.pcap();
        assert_eq!(file.len(), 24 + 2 * (16 + 60));
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(file[20..24], [1, 0, 0, 0]);
        assert_eq!(file[24..28], 1_700_000_000_u32.to_le_bytes());
        assert_eq!(file[28..40], [5, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
    }

    #[test]
    fn a_tag_goes_back_behind_the_addresses() {
        // SAFETY: all-zero bytes are a valid `tpacket_auxdata`.
        let mut aux: libc::tpacket_auxdata = unsafe { mem::zeroed() };
        let frame: Vec<u8> = (0..16).collect();
        let mut bytes = frame.clone();
        put_tag_back(&mut bytes, &aux);
        assert_eq!(bytes, frame);
        aux.tp_status = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        aux.tp_vlan_tpid = 0x88a8;
        aux.tp_vlan_tci = 0x2064;
        put_tag_back(&mut bytes, &aux);
        assert_eq!(bytes[12..], [0x88, 0xa8, 0x20, 0x64, 12, 13, 14, 15]);
    }
}
