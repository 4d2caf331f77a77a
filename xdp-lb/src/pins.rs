//! Where the data path lives while no daemon runs: a directory in the BPF file system.
//!
//! ```text
//! DIR/v5/maps/NAME                    each map
//! DIR/v5/stages/ID                    the stages of the program that is attached
//! DIR/v5/links/DEVICE:IFINDEX:MODE    the link of each device that the program is attached to
//! DIR/v5/links/DEVICE:IFINDEX:egress  the same for the program on the way out
//! DIR/v5/links/cgroup:PROGRAM         the link of each program that sockets' calls pass
//! ```
//! The version is that of the ABI, so a program never meets maps of another layout.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use xdp_lb_abi::VERSION;

use crate::{dataplane::egress::remove_filter, link};

/// The directory of stages.
const STAGES: &str = "stages";
/// The directory of links, in every version.
const LINKS: &str = "links";
/// How the names of the links on a cgroup begin.
const CGROUP: &str = "cgroup:";
/// How the names of the links on the way out end.
const EGRESS: &str = ":egress";

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
        "{path} holds the data path of another version of xdp-lb ({found}, this one is v{VERSION}), \
         which goes on as it is; to replace it, take the traffic away from this host, remove it \
         (xdp-lb clean --all-versions --pin-dir {path}), then start this one"
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
        self.version().join(LINKS).join(name.file())
    }

    /// Where the link of the program on the way out is pinned; without TCX, that program itself.
    pub fn egress(&self, device: &str, ifindex: u32) -> PathBuf {
        self.version().join(LINKS).join(format!("{}:{ifindex}{EGRESS}", escape(device)))
    }

    /// Where the link of a program on a cgroup is pinned.
    pub fn cgroup(&self, program: &str) -> PathBuf {
        self.version().join(LINKS).join(format!("{CGROUP}{program}"))
    }

    /// Whether any program is on a cgroup.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn has_cgroup(&self) -> Result<bool, PinError> {
        let files = list(&self.version().join(LINKS))?;
        Ok(files.iter().any(|file| file.starts_with(CGROUP)))
    }

    /// Where the stages of a program are pinned, by the id of their array.
    pub fn stages(&self, id: u32) -> PathBuf {
        self.version().join(STAGES).join(id.to_string())
    }

    /// Unpins the stages of all programs but one.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read, or a pin removed.
    pub fn remove_other_stages(&self, id: u32) -> Result<(), PinError> {
        let directory = self.version().join(STAGES);
        for file in list(&directory)?.into_iter().filter(|file| *file != id.to_string()) {
            self.remove(&directory.join(file))?;
        }
        Ok(())
    }

    /// The file system's path, to name in messages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is anything, of whatever version.
    ///
    /// # Errors
    ///
    /// Where that cannot be told, for want of permission.
    pub fn is_used(&self) -> Result<bool, PinError> {
        let path = &self.root;
        let failed =
            |source| PinError::Io { operation: "look into", path: path.to_owned(), source };
        path.try_exists().map_err(failed)
    }

    /// Whether an earlier run of this version left a data path.
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

    /// Versions of the ABI that are pinned and are not this one's; none where that cannot be told.
    pub(crate) fn other_versions(&self) -> Vec<String> {
        let all = list(&self.root).unwrap_or_default();
        all.into_iter()
            .filter(|one| is_version(one) && self.root.join(one) != self.version())
            .collect()
    }

    /// Refuses a directory that holds anything but this version's pins.
    ///
    /// # Errors
    ///
    /// [`PinError::Version`] or [`PinError::NotOurs`], or where it cannot be read.
    pub fn check(&self) -> Result<(), PinError> {
        for found in list(&self.root)? {
            let path = self.root.clone();
            if self.version() != path.join(&found) {
                return Err(if is_version(&found) {
                    PinError::Version { path, found }
                } else {
                    PinError::NotOurs { path, found }
                });
            }
        }
        Ok(())
    }

    /// Makes the directories.
    ///
    /// # Errors
    ///
    /// Where `root` is in no BPF file system, or holds another version's pins.
    pub fn create(&self) -> Result<(), PinError> {
        self.check_file_system()?;
        self.check()?;
        for path in [self.maps(), self.version().join(STAGES), self.version().join(LINKS)] {
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

    /// Refuses a path outside of BPF file systems.
    ///
    /// # Errors
    ///
    /// [`PinError::NoBpfFs`].
    pub(crate) fn check_file_system(&self) -> Result<(), PinError> {
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
        let files = list(&self.version().join(LINKS))?;
        Ok(files.iter().filter_map(|file| LinkName::parse(file)).collect())
    }

    /// Unpins one file; it is no error if it is not there. A link is detached first.
    ///
    /// # Errors
    ///
    /// What unlink(2) says.
    pub fn remove(&self, path: &Path) -> Result<(), PinError> {
        if path.parent().is_some_and(|parent| parent.ends_with(LINKS)) {
            // It fails where the device is gone already, or the kernel older than 5.9; then the link
            // ends with its pin.
            let _ = link::open(path).and_then(link::detach);
            let file = path.file_name().map(|file| file.to_string_lossy()).unwrap_or_default();
            if let Some((device, _)) = file.strip_suffix(EGRESS).and_then(|f| f.rsplit_once(':')) {
                remove_filter(&unescape(device));
            }
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { operation: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Unpins everything of this version: links whose last owner was the pin detach with it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn clear(&self) -> Result<(), PinError> {
        self.remove_version(&self.version())?;
        remove_directory(&self.root)
    }

    /// Unpins everything of every version, and returns what they were attached to.
    ///
    /// Versions differ in what they pin, but all keep their links in one directory and name them by
    /// their devices.
    ///
    /// # Errors
    ///
    /// What the file system says, or [`PinError::NotOurs`].
    pub fn clear_all_versions(&self) -> Result<Vec<String>, PinError> {
        let entries = list(&self.root)?;
        if let Some(found) = entries.iter().find(|entry| !is_version(entry)) {
            return Err(PinError::NotOurs { path: self.root.clone(), found: found.clone() });
        }
        let mut devices = Vec::new();
        for version in entries.iter().map(|entry| self.root.join(entry)) {
            let links = list(&version.join(LINKS))?;
            devices.extend(links.iter().filter_map(|file| Some(LinkName::parse(file)?.device)));
            if links.iter().any(|file| file.starts_with(CGROUP)) {
                devices.push("a cgroup".to_owned());
            }
            self.remove_version(&version)?;
        }
        remove_directory(&self.root)?;
        Ok(devices)
    }

    fn remove_version(&self, version: &Path) -> Result<(), PinError> {
        // Links first, so that no packet meets a part of the rest.
        self.remove_tree(&version.join(LINKS))?;
        self.remove_tree(version)
    }

    fn remove_tree(&self, directory: &Path) -> Result<(), PinError> {
        for entry in list(directory)? {
            let path = directory.join(entry);
            if path.is_dir() { self.remove_tree(&path)? } else { self.remove(&path)? }
        }
        remove_directory(directory)
    }
}

fn remove_directory(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Whether a directory's name is that of a version of the ABI.
fn is_version(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok())
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
