//! Cgroups of a lab's own, one for each node: what a daemon attaches to one serves this node's processes
//! and nobody else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::LabError;
use crate::dataplane::cgroup_root;

/// How long processes may take to be gone that were killed.
const PATIENCE: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_millis(10);

/// The directory of a lab's cgroups; nothing where there is no hierarchy.
fn directory(prefix: &str) -> Option<PathBuf> {
    Some(cgroup_root().ok()?.join(prefix))
}

/// Makes a cgroup for each of these nodes, below one that is returned.
///
/// # Errors
///
/// Where the machine has no cgroup v2 hierarchy, or does not let this process write to it.
pub fn make_cgroups(prefix: &str, nodes: &[&str]) -> Result<PathBuf, LabError> {
    let failed = || LabError::system("make cgroups for the nodes");
    let root = cgroup_root().map_err(|error| failed()(io::Error::other(error)))?;
    let all = root.join(prefix);
    let make = |path: &Path| match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    make(&all).map_err(failed())?;
    nodes.iter().try_for_each(|node| make(&all.join(node))).map_err(failed())?;
    Ok(all)
}

/// Whether a lab has cgroups.
pub fn has_cgroups(prefix: &str) -> bool {
    directory(prefix).is_some_and(|path| path.exists())
}

/// Removes a lab's cgroups, whose processes have been killed.
///
/// # Errors
///
/// Where processes are still in them.
pub fn remove_cgroups(prefix: &str) -> io::Result<()> {
    let Some(all) = directory(prefix).filter(|path| path.exists()) else { return Ok(()) };
    let end = Instant::now() + PATIENCE;
    let inner = fs::read_dir(&all)?.filter_map(Result::ok).map(|entry| entry.path());
    let nodes = inner.filter(|path| path.is_dir());
    for path in nodes.chain([all.clone()]) {
        loop {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => thread::sleep(TURN),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

/// A cgroup that this process and all that it starts are in. It leaves, and the cgroup is removed, when
/// this is dropped; what a killed process left goes with the next one.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    /// Makes it and joins it; its name is `name` and the process id.
    ///
    /// # Errors
    ///
    /// Where this machine has no cgroup v2 hierarchy, or it may not be written.
    pub fn enter(name: &str) -> io::Result<Self> {
        let root = cgroup_root().map_err(io::Error::other)?;
        for old in fs::read_dir(&root)?.flatten() {
            // One that has processes, or is in use, stays.
            if old.file_name().to_string_lossy().starts_with(name) {
                let _ = fs::remove_dir(old.path());
            }
        }
        let memberships = fs::read_to_string("/proc/self/cgroup")?;
        let own = memberships.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(own.unwrap_or_default());
        let path = root.join(format!("{name}{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path, before };
        fs::write(cgroup.path.join("cgroup.procs"), "0")?;
        Ok(cgroup)
    }

    /// Runs `work` outside: sockets that it makes are not served.
    ///
    /// # Errors
    ///
    /// Where the process cannot leave, or come back.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        fs::write(self.before.join("cgroup.procs"), "0")?;
        let result = work();
        fs::write(self.path.join("cgroup.procs"), "0")?;
        Ok(result)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}
