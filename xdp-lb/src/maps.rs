//! The data path's maps, as user space reads and writes them.

use std::{
    fmt, io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapError;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use xdp_lb_abi::{Backend, Bucket, FrontendEntry, FrontendKey, Service};
use xdp_lb_plan::{Image, Op};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The object has no such map: the binary and its object do not belong together.
    #[error("the eBPF object has no map {0}")]
    Missing(&'static str),
    /// The data path that runs has no such map: another build's.
    #[error("the running data path has no map {0}: it is another build's; restart the daemon")]
    NotPinned(&'static str),
    /// The kernel refused an operation.
    #[error("cannot {operation} map {map}")]
    Operation {
        /// The map
        map: &'static str,
        /// What was tried
        operation: &'static str,
        /// The kernel's answer
        #[source]
        source: MapError,
    },
    /// What the tables hold contradicts itself.
    #[error(
        "the tables of the running data path are unsound ({0}); it goes on as it is: remove it with \
         `xdp-lb clean`, then start again"
    )]
    Unsound(String),
    /// The map cannot be mapped into memory.
    #[error("cannot map {map} into memory: {source}")]
    Mmap {
        /// The map
        map: &'static str,
        /// The kernel's answer
        source: io::Error,
    },
}

/// An array map in this process's memory: its values are words that packets see at once.
pub struct Mapped {
    words: NonNull<AtomicU64>,
    per_entry: usize,
    entries: u32,
    bytes: NonZeroUsize,
}

// SAFETY: the memory is plain shared memory, only reached through atomic words.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Mapped {
    /// Maps an array of `entries` values of type `V`, made with `BPF_F_MMAPABLE` (Linux 5.5).
    ///
    /// # Errors
    ///
    /// What mmap(2) says.
    pub fn new<V>(fd: impl AsFd, entries: u32) -> io::Result<Self> {
        // The kernel rounds each value up to eight bytes, and the whole up to pages.
        let per_entry = size_of::<V>().div_ceil(8);
        let bytes = NonZeroUsize::new(per_entry * 8 * entries as usize)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let memory = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { words: memory.cast(), per_entry, entries, bytes })
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn word(&self, entry: u32, word: usize) -> Option<&AtomicU64> {
        if entry >= self.entries || word >= self.per_entry {
            return None;
        }
        // SAFETY: the index is inside the mapping, which lives as long as `self`; it is aligned to
        // eight bytes, and the kernel's programs access it as they would any shared memory.
        Some(unsafe { &*self.words.as_ptr().add(entry as usize * self.per_entry + word) })
    }

    /// An entry.
    pub fn read<V: FromBytes>(&self, entry: u32) -> Option<V> {
        let mut bytes = Vec::with_capacity(self.per_entry * 8);
        for word in 0..self.per_entry {
            let value = self.word(entry, word)?.load(Ordering::Acquire);
            bytes.extend_from_slice(&value.to_ne_bytes());
        }
        V::read_from_prefix(&bytes).ok().map(|(value, _)| value)
    }

    fn store(&self, entry: u32, word: usize, value: u64) {
        if let Some(target) = self.word(entry, word) {
            target.store(value, Ordering::Release);
        }
    }

    /// Writes an entry; its first word last, since that is the one that changes in place.
    fn write<V: IntoBytes + Immutable>(&self, entry: u32, value: &V) {
        for (word, chunk) in value.as_bytes().chunks(8).enumerate().rev() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.store(entry, word, u64::from_ne_bytes(bytes));
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.words.cast(), self.bytes.get()) };
    }
}

/// The arrays that the planner writes.
#[derive(Debug)]
pub struct Arrays {
    /// `FRONTENDS`
    pub frontends: Mapped,
    /// `PORT_FILTER`: has the ports of all entries of `frontends`, and maybe more
    pub ports: Mapped,
    /// `SERVICES`
    pub services: Mapped,
    /// `ARENA`
    pub arena: Mapped,
    /// `BACKENDS`
    pub backends: Mapped,
}

impl Arrays {
    /// Carries out one operation, except those on counters, which are not in these arrays.
    pub fn write(&self, op: &Op) {
        match op {
            Op::Arena { word, words } => {
                for (index, value) in (*word..).zip(words) {
                    self.arena.write(index, value);
                }
            }
            Op::Backend { id, backend, new } => {
                if *new {
                    // The id's new owner serves once all of it is there, its generation included.
                    self.backends.write(*id, &backend.with_serving(false));
                }
                if backend.hop().device() == 0 {
                    // No packet may take what belongs to the hop once the hop is gone.
                    self.backends.store(*id, 0, backend.hop().word());
                }
                self.backends.write(*id, backend);
            }
            Op::Service { index, service } => self.services.write(*index, service),
            Op::Publish { bucket, entry, value } => self.publish(*bucket, *entry, value),
            Op::ResetFrontend { .. } => {}
            Op::Grace => grace_period(),
        }
    }

    /// Makes the filter of ports hold exactly these, which are to be those of all frontends.
    pub fn keep_ports(&self, ports: impl Iterator<Item = u16>) {
        let mut filter = vec![0_u64; FrontendKey::FILTER_WORDS as usize];
        for port in ports {
            let (word, bit) = FrontendKey::filter(port);
            filter[word as usize] |= bit;
        }
        for (word, value) in (0..).zip(filter) {
            self.ports.write(word, &value);
        }
    }

    /// Port first, then the key; then the word that holds the service's index, by one store.
    fn publish(&self, bucket: u32, entry: usize, value: &FrontendEntry) {
        if let Some(key) = value.key() {
            let (word, bit) = FrontendKey::filter(key.port());
            let ports: u64 = self.ports.read(word).unwrap_or_default();
            self.ports.write(word, &(ports | bit));
        }
        let per_entry = size_of::<FrontendEntry>() / 8;
        let words = value.as_bytes().chunks_exact(8).enumerate();
        for (word, chunk) in words {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            self.frontends.store(bucket, entry * per_entry + word, u64::from_ne_bytes(bytes));
        }
    }
}

// The index must lie in an entry's last word, which is written last.
const _: () = assert!(FrontendEntry::SERVICE_OFFSET / 8 == size_of::<FrontendEntry>() / 8 - 1);
// The next hop must lie in a backend's first word.
const _: () = assert!(Backend::HOP_OFFSET == 0);

impl Image for Arrays {
    fn buckets(&self) -> u32 {
        self.frontends.entries()
    }

    fn bucket(&self, index: u32) -> Option<Bucket> {
        self.frontends.read(index)
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.services.read(index)
    }

    fn word(&self, index: u32) -> Option<u64> {
        self.arena.read(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.read(id)
    }
}

/// Returns when every packet that was on its way through the programs is out of them.
///
/// XDP programs run inside an RCU read-side critical section; `MEMBARRIER_CMD_GLOBAL` waits for all
/// of these to end (membarrier(2), Linux 4.3). Where it is not to be had, such as with `nohz_full`,
/// a tenth of a second is far longer than any packet takes.
fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes numbers only, and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::SocketAddr};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn memory<V>(entries: u32) -> Mapped {
        let file = File::from(memfd_create("maps", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(u64::from(entries) * size_of::<V>() as u64).unwrap();
        Mapped::new::<V>(file, entries).unwrap()
    }

    fn arrays() -> Arrays {
        Arrays {
            frontends: memory::<Bucket>(4),
            ports: memory::<u64>(FrontendKey::FILTER_WORDS),
            services: memory::<Service>(4),
            arena: memory::<u64>(4),
            backends: memory::<Backend>(4),
        }
    }

    fn publish(arrays: &Arrays, entry: usize, frontend: &str, service: u32) {
        let at: SocketAddr = frontend.parse().unwrap();
        let value = FrontendEntry::new(FrontendKey::new(at.ip().into(), at.port(), 6), service);
        arrays.write(&Op::Publish { bucket: 1, entry, value });
    }

    fn ports(arrays: &Arrays) -> Vec<u16> {
        let has = |port: &u16| {
            let (word, bit) = FrontendKey::filter(*port);
            let word: u64 = arrays.ports.read(word).unwrap();
            word & bit != 0
        };
        (0..=u16::MAX).filter(has).collect()
    }

    #[test]
    fn a_published_frontend_has_its_port_in_the_filter() {
        let arrays = arrays();
        publish(&arrays, 0, "192.0.2.1:80", 1);
        publish(&arrays, 1, "[2001:db8::1]:0", 1);
        publish(&arrays, 2, "192.0.2.1:65535", 2);
        publish(&arrays, 3, "192.0.2.2:81", 0);
        assert_eq!(ports(&arrays), [0, 80, 65535]);
    }

    #[test]
    fn ports_stay_in_the_filter_until_no_frontend_has_them() {
        let arrays = arrays();
        publish(&arrays, 0, "192.0.2.1:80", 1);
        publish(&arrays, 1, "192.0.2.2:80", 1);
        publish(&arrays, 2, "192.0.2.1:443", 1);
        publish(&arrays, 1, "192.0.2.2:80", 0);
        publish(&arrays, 2, "192.0.2.1:443", 0);
        assert_eq!(ports(&arrays), [80, 443]);
        arrays.keep_ports([80].into_iter());
        assert_eq!(ports(&arrays), [80]);
        arrays.keep_ports(std::iter::empty());
        assert!(ports(&arrays).is_empty());
    }
}
