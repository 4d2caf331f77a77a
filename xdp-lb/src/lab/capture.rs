//! Frames as a device in a namespace sends and receives them.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, UNIX_EPOCH},
};

use super::{
    LabError, Namespace,
    raw::{Captured, LONGEST, dropped, open, receive},
};

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
}
