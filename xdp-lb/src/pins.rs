//! Where the data path lives while no daemon runs: a directory in the BPF file system.
//!
//! ```text
//! DIR/v1/maps/NAME                    each map
//! DIR/v1/links/DEVICE:IFINDEX:MODE    the link of each device that the program is attached to
//! ```
//! The version is that of the ABI, so a program never meets maps of another layout.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use xdp_lb_abi::VERSION;

/// The pin directory of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Why the pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not a BPF file system.
    #[error("{0} is not in a BPF file system: mount one (mount -t bpf bpf /sys/fs/bpf)")]
    NoBpfFs(PathBuf),
    /// The file system refused an operation.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried
        operation: &'static str,
        /// On what
        path: PathBuf,
        /// The kernel's answer
        source: io::Error,
    },
    /// Another daemon has the pin directory.
    #[error("another xdp-lb runs with the pin directory {0}; stop it, or choose another --pin-dir")]
    Running(PathBuf),
    /// The directory is somebody else's.
    #[error("{path} has something else in it ({found}); give xdp-lb a directory of its own")]
    NotOurs {
        /// The directory
        path: PathBuf,
        /// What was found in it
        found: String,
    },
    /// The pins are of another version of the ABI.
    #[error(
        "{path} holds the data path of another version of xdp-lb ({found}, this one is v{VERSION}): \
         it goes on as it is; remove it with the version that made it (xdp-lb clean), then start again"
    )]
    Version {
        /// The directory
        path: PathBuf,
        /// What was found in it
        found: String,
    },
}

/// A pinned link's name, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkName {
    /// Device name at the time of attaching
    pub device: String,
    /// Interface index
    pub ifindex: u32,
    /// Whether the program runs in the driver
    pub native: bool,
}

impl LinkName {
    fn file(&self) -> String {
        let mode = if self.native { "native" } else { "generic" };
        format!("{}:{}:{mode}", escape(&self.device), self.ifindex)
    }

    fn parse(file: &str) -> Option<Self> {
        let (rest, mode) = file.rsplit_once(':')?;
        let (device, ifindex) = rest.rsplit_once(':')?;
        let native = match mode {
            "native" => true,
            "generic" => false,
            _ => return None,
        };
        Some(Self { device: unescape(device), ifindex: ifindex.parse().ok()?, native })
    }
}

/// The BPF file system takes no name with a dot (kernel/bpf/inode.c, `bpf_lookup`), and VLAN devices
/// have one.
fn escape(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

fn unescape(device: &str) -> String {
    device.replace("%2e", ".").replace("%25", "%")
}

impl Pins {
    /// The pins under `root`, a directory that need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{VERSION}"))
    }

    /// The directory of maps.
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a link is pinned.
    pub fn link(&self, name: &LinkName) -> PathBuf {
        self.version().join("links").join(name.file())
    }

    /// The file system's path, to name in messages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether an earlier run left a data path.
    ///
    /// # Errors
    ///
    /// Where that cannot be told, for want of permission.
    pub fn exists(&self) -> Result<bool, PinError> {
        let path = self.maps();
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(PinError::Io { operation: "look into", path, source }),
        }
    }

    /// Makes the directories.
    ///
    /// # Errors
    ///
    /// Where `root` is in no BPF file system, or holds another version's pins.
    pub fn create(&self) -> Result<(), PinError> {
        self.check_file_system()?;
        for entry in list(&self.root)? {
            if self.version() == self.root.join(&entry) {
                continue;
            }
            let path = self.root.clone();
            let version = entry.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok());
            return Err(if version {
                PinError::Version { path, found: entry }
            } else {
                PinError::NotOurs { path, found: entry }
            });
        }
        for path in [self.maps(), self.version().join("links")] {
            fs::create_dir_all(&path).map_err(|source| PinError::Io {
                operation: "create",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Makes the root directory and locks it, so that one daemon at a time writes.
    ///
    /// # Errors
    ///
    /// [`PinError::Running`] where another process has the lock.
    pub fn lock(&self) -> Result<Flock<fs::File>, PinError> {
        self.check_file_system()?;
        let error =
            |operation| move |source| PinError::Io { operation, path: self.root.clone(), source };
        fs::create_dir_all(&self.root).map_err(error("create"))?;
        let directory = fs::File::open(&self.root).map_err(error("open"))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == Errno::EWOULDBLOCK {
                PinError::Running(self.root.clone())
            } else {
                error("lock")(errno.into())
            }
        })
    }

    fn check_file_system(&self) -> Result<(), PinError> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        match nix::sys::statfs::statfs(existing) {
            Ok(status) if status.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC => Ok(()),
            Ok(_) | Err(_) => {
                let parent = self.root.parent().unwrap_or(&self.root).to_owned();
                Err(PinError::NoBpfFs(parent))
            }
        }
    }

    /// The links that are pinned.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn links(&self) -> Result<Vec<LinkName>, PinError> {
        let files = list(&self.version().join("links"))?;
        Ok(files.iter().filter_map(|file| LinkName::parse(file)).collect())
    }

    /// Unpins one file; it is no error if it is not there. A link is detached first.
    ///
    /// # Errors
    ///
    /// What unlink(2) says.
    pub fn remove(&self, path: &Path) -> Result<(), PinError> {
        if path.parent() == Some(&self.version().join("links")) {
            // It fails where the device is gone already, or the kernel older than 5.9; then the link
            // ends with its pin.
            let _ = detach(path);
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { operation: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Unpins everything: links whose last owner was the pin detach with it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn clear(&self) -> Result<(), PinError> {
        for directory in ["links", "maps"] {
            let directory = self.version().join(directory);
            for file in list(&directory)? {
                self.remove(&directory.join(file))?;
            }
        }
        for directory in
            [self.version().join("links"), self.maps(), self.version(), self.root.clone()]
        {
            match fs::remove_dir(&directory) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(PinError::Io { operation: "remove", path: directory, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Detaches a pinned link at once. Without this the kernel does so some time after the last user of
/// the link is gone, and until then its device takes no other program.
fn detach(path: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // union bpf_attr, as far as each command reads it: path, descriptor and flags; descriptor.
    let mut get = [path.as_ptr() as u64, 0];
    // SAFETY: the pointer and the length are those of one live array, and the path in it is live.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut get, size_of_val(&get)) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut which = [link.as_raw_fd(), 0];
    let length = size_of_val(&which);
    // SAFETY: the pointer and the length are those of one live array.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw mut which, length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Names in a directory, in order; none where it does not exist.
fn list(directory: &Path) -> Result<Vec<String>, PinError> {
    let error = |source| PinError::Io { operation: "read", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(error)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_links_name_survives_the_way_there_and_back() {
        for device in ["eth0", "eth0.100", "a%2eb", "wan-1"] {
            let name = LinkName { device: device.into(), ifindex: 7, native: true };
            assert!(!name.file().contains('.'));
            assert_eq!(LinkName::parse(&name.file()), Some(name));
        }
        assert_eq!(LinkName::parse("eth0:x:native"), None);
        assert_eq!(LinkName::parse("eth0:7:offload"), None);
    }

    #[test]
    fn a_directory_elsewhere_is_refused() {
        let pins = Pins::new(std::env::temp_dir().join("xdp-lb-pins"));
        assert!(matches!(pins.create(), Err(PinError::NoBpfFs(_))));
    }
}
