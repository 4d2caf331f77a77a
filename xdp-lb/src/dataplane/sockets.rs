//! The programs that sockets' calls pass: attached to a cgroup by links that are pinned, so that sockets
//! are served while the daemon is away.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray},
    programs::{
        CgroupAttachMode, Program, ProgramError, ProgramFd,
        links::{FdLink, LinkError},
    },
};
use xdp_lb_abi::{SocketFrontend, SocketKey, SocketReason, SocketSettings, names};

use super::{Dataplane, DataplaneError, open, operation};
use crate::{error::chain, link, maps::TableError, object::OBJECT, pins::Pins};

/// Why calls of sockets cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is no such hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup), or name \
         its place in `socketLB.cgroupRoot`"
    )]
    NoHierarchy,
    /// There is one, but not its root.
    #[error(
        "only a part of the cgroup v2 hierarchy is mounted, as in a container: mount the host's \
         (hostPath: /sys/fs/cgroup), and name its place in `socketLB.cgroupRoot`"
    )]
    NoRoot,
    /// It is something else.
    #[error(
        "{0} is no directory of a cgroup v2 hierarchy: name one in `socketLB.cgroupRoot` (findmnt -t \
         cgroup2 lists them), or leave the key out"
    )]
    NoCgroup(PathBuf),
    /// It cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The directory
        path: PathBuf,
        /// The kernel's answer
        source: io::Error,
    },
    /// The host's sockets cannot be told from those of pods.
    #[error("the kernel does not tell a network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14)")]
    NoCookie,
    /// The kernel refused a program at the start.
    #[error("{0}")]
    Load(String),
    /// The kernel refuses a program or its link.
    #[error("{program}: {}", explain(.source))]
    Program {
        /// The program
        program: &'static str,
        /// The kernel's answer
        #[source]
        source: ProgramError,
    },
    /// The link cannot be used or pinned.
    #[error("{program}: the link cannot be pinned: {why}")]
    Link {
        /// The program
        program: &'static str,
        /// The reason
        why: String,
    },
    /// Everything else.
    #[error(transparent)]
    Dataplane(#[from] Box<DataplaneError>),
}

/// The kernel's answer, and what to do about it.
fn explain(error: &ProgramError) -> String {
    let errno = if let ProgramError::SyscallError(error) = error {
        error.io_error.raw_os_error()
    } else if let ProgramError::LoadError { io_error, .. } = error {
        io_error.raw_os_error()
    } else {
        None
    };
    match errno {
        Some(libc::EINVAL) => "the kernel does not know this hook: boot one that is built with \
             CONFIG_CGROUP_BPF, 6.1 or newer"
            .to_owned(),
        Some(libc::EPERM) => "not permitted: run with CAP_BPF and CAP_NET_ADMIN; where that is so, \
             somebody else's program on this cgroup, or above it, allows none beside it (bpftool cgroup \
             tree)"
            .to_owned(),
        _ => chain(error),
    }
}

/// The root of the cgroup v2 hierarchy, as this process sees it. On hybrid machines it is not where the
/// older controllers are.
///
/// # Errors
///
/// Where none is mounted, or only a part of it.
pub fn cgroup_root() -> Result<PathBuf, SocketError> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let mounts = mounts.map_err(|error| SocketError::Open {
        path: "/proc/self/mountinfo".into(),
        source: io::Error::other(error),
    })?;
    let mounted = mounts.into_iter().filter(|one| one.fs_type == "cgroup2");
    let mut mounted = mounted.map(|one| one.mount_point).peekable();
    mounted.peek().ok_or(SocketError::NoHierarchy)?;
    mounted.find(|path| is_root(path)).ok_or(SocketError::NoRoot)
}

/// Whether a directory is the root of the hierarchy itself: in a container, what is mounted may be the
/// container's own cgroup, whatever it is called there.
fn is_root(path: &Path) -> bool {
    /// Of the root directory of every kernfs (fs/kernfs/dir.c, `kernfs_create_root`)
    const ROOT: u64 = 1;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ROOT)
}

/// The cgroup whose sockets are served, opened.
fn cgroup(wanted: Option<&Path>) -> Result<(File, PathBuf), SocketError> {
    let path = wanted.map_or_else(cgroup_root, |path| Ok(path.to_owned()))?;
    let file =
        File::open(&path).map_err(|source| SocketError::Open { path: path.clone(), source })?;
    match nix::sys::statfs::fstatfs(&file) {
        Ok(status) if status.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC => {
            Ok((file, path))
        }
        Ok(_) | Err(_) => Err(SocketError::NoCgroup(path)),
    }
}

/// A program of the object, loaded.
fn load<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, SocketError> {
    let missing = || Box::new(DataplaneError::NoProgram(name));
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    let loaded = if let Program::CgroupSockAddr(program) = program {
        program.load()
    } else if let Program::CgroupSock(program) = program {
        program.load()
    } else {
        return Err(missing().into());
    };
    match loaded {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(source) => Err(SocketError::Program { program: name, source }),
    }
}

fn descriptor(program: &Program) -> Result<&ProgramFd, ProgramError> {
    if let Program::CgroupSockAddr(program) = program {
        program.fd()
    } else if let Program::CgroupSock(program) = program {
        program.fd()
    } else {
        Err(ProgramError::UnexpectedProgramType)
    }
}

/// Attaches a program that is loaded; the link ends with what is returned.
fn attach(program: &mut Program, cgroup: &File) -> Result<FdLink, ProgramError> {
    // A link lets other programs be beside it in any case (cgroup_bpf_link_attach).
    let mode = CgroupAttachMode::Single;
    let link: Result<FdLink, LinkError> = if let Program::CgroupSockAddr(program) = program {
        let id = program.attach(cgroup, mode)?;
        program.take_link(id)?.try_into()
    } else if let Program::CgroupSock(program) = program {
        let id = program.attach(cgroup, mode)?;
        program.take_link(id)?.try_into()
    } else {
        return Err(ProgramError::UnexpectedProgramType);
    };
    link.map_err(|_| ProgramError::NotAttached)
}

/// Loads all of them, while the object's maps are still open; why not, where the kernel refuses one.
pub(super) fn load_all(ebpf: &mut Ebpf) -> Option<String> {
    let refused = names::SOCKET_PROGRAMS.into_iter().find_map(|name| load(ebpf, name).err());
    refused.map(|error| error.to_string())
}

/// Whether this kernel and cgroup take each of the programs: tried, and undone at once. Returns the
/// cgroup.
///
/// # Errors
///
/// The first that is refused.
pub fn try_hooks(wanted: Option<&Path>) -> Result<PathBuf, SocketError> {
    let (file, path) = cgroup(wanted)?;
    let mut ebpf =
        EbpfLoader::new().load(OBJECT).map_err(|error| Box::new(DataplaneError::Load(error)))?;
    for name in names::SOCKET_PROGRAMS {
        let program = load(&mut ebpf, name)?;
        // Its tables are empty, so that it changes no call in the meantime.
        let link = attach(program, &file);
        drop(link.map_err(|source| SocketError::Program { program: name, source })?);
    }
    Ok(path)
}

impl Dataplane {
    /// Attaches the programs to a cgroup, or replaces those that an earlier run attached there; how many
    /// were missing, and where.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses one.
    pub fn attach_sockets(
        &mut self,
        wanted: Option<&Path>,
    ) -> Result<(usize, PathBuf), SocketError> {
        if let Some(why) = &self.no_sockets {
            return Err(SocketError::Load(why.clone()));
        }
        let (file, path) = cgroup(wanted)?;
        let id = file.metadata().map_or(0, |metadata| metadata.ino());
        let mut new = 0;
        // Those that only answer come first: no call is led before what follows it is.
        for name in names::SOCKET_PROGRAMS.into_iter().rev() {
            let pin = self.pins.cgroup(name);
            let program = load(&mut self.ebpf, name)?;
            let failed = |source| SocketError::Program { program: name, source };
            if let Ok(link) = link::open(&pin)
                && link::cgroup(link.as_fd()).is_ok_and(|of| of == id)
                && link::update(link.as_fd(), descriptor(program).map_err(failed)?).is_ok()
            {
                continue;
            }
            // Of another cgroup, or one that is gone.
            let unusable = |why: String| SocketError::Link { program: name, why };
            self.pins.remove(&pin).map_err(|error| unusable(error.to_string()))?;
            let link = attach(program, &file).map_err(failed)?;
            link.pin(&pin).map_err(|error| unusable(chain(&error)))?;
            new += 1;
        }
        Ok((new, path))
    }

    /// Detaches them; whether there was any. Sockets that were led to a backend stay with it.
    ///
    /// # Errors
    ///
    /// Where a pin cannot be removed.
    pub fn detach_sockets(&self) -> Result<bool, crate::pins::PinError> {
        let had = self.pins.has_cgroup()?;
        for name in names::SOCKET_PROGRAMS {
            self.pins.remove(&self.pins.cgroup(name))?;
        }
        Ok(had)
    }

    /// Whether all of them are attached still.
    pub fn has_sockets(&self) -> bool {
        let attached = |name| {
            let id = link::open(&self.pins.cgroup(name)).and_then(link::cgroup);
            id.is_ok_and(|id| id != 0)
        };
        names::SOCKET_PROGRAMS.into_iter().all(attached)
    }

    /// Writes what holds for sockets.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn configure_sockets(&mut self, settings: SocketSettings) -> Result<(), TableError> {
        let error = |what| move |source| operation(names::SOCKET_SETTINGS, what, source);
        if self.socket_settings.get(&0, 0).map_err(error("read"))? == settings {
            return Ok(());
        }
        self.socket_settings.set(0, settings, 0).map_err(error("write"))
    }
}

/// The counters of sockets' calls, of a data path that is pinned.
pub struct SocketCounters(PerCpuArray<MapData, u64>);

impl SocketCounters {
    /// Opens them, without touching them.
    ///
    /// # Errors
    ///
    /// Where they are not there, or may not be opened.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self(open(pins, names::SOCKET_STATS, aya::maps::Map::PerCpuArray)?))
    }

    /// How often this became of a call.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn get(&self, reason: SocketReason) -> Result<u64, TableError> {
        let values = self.0.get(&(reason as u32), 0);
        let values = values.map_err(|source| operation(names::SOCKET_STATS, "read", source))?;
        Ok(values.iter().sum())
    }
}

/// The records of sockets that were led to a backend.
pub struct SocketRecords(HashMap<MapData, SocketKey, SocketFrontend>);

impl SocketRecords {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// Where they are not there, or may not be opened.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self(open(pins, names::SOCKETS, aya::maps::Map::LruHashMap)?))
    }

    /// Those of a protocol whose frontend leads to their backend no more.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the map.
    pub fn orphans(
        &self,
        protocol: u8,
        leads: impl Fn(&SocketFrontend, &SocketKey) -> bool,
    ) -> Result<BTreeSet<SocketKey>, TableError> {
        let mut found = BTreeSet::new();
        for key in self.0.keys() {
            let key = key.map_err(|source| operation(names::SOCKETS, "read", source))?;
            if key.protocol() != protocol {
                continue;
            }
            match self.0.get(&key, 0) {
                Ok(frontend) if !leads(&frontend, &key) => drop(found.insert(key)),
                // It went in the meantime.
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(operation(names::SOCKETS, "read", source)),
            }
        }
        Ok(found)
    }

    /// Forgets one.
    pub fn forget(&mut self, key: &SocketKey) {
        // That it is gone is what was wanted.
        let _ = self.0.remove(key);
    }
}
