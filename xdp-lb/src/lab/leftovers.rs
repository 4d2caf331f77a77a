//! Removing a lab, whoever built it: its processes, then its namespaces.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};

use super::{LabError, namespace::NAMES};

/// How long processes may take to end after SIGTERM, and again after SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// What stands between a lab's prefix and its nodes' names. No prefix contains it, so no lab's
/// names begin like another's.
pub(super) const SEPARATOR: char = '-';

/// Refuses what cannot be a prefix.
pub(super) fn check_prefix(prefix: &str) -> Result<(), LabError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if (1..=20).contains(&prefix.len()) && prefix.chars().all(plain) {
        Ok(())
    } else {
        Err(LabError::BadPrefix(prefix.to_owned()))
    }
}

/// The right to build or remove the labs of one prefix; the kernel ends it with the process.
#[derive(Debug)]
pub(super) struct Claim {
    _name: UnixListener,
}

impl Claim {
    pub(super) fn take(prefix: &str) -> Result<Self, LabError> {
        let failed = || LabError::system(format!("claim the lab {prefix}"));
        let name = format!("xdp-lb-lab/{prefix}");
        let address = SocketAddr::from_abstract_name(name).map_err(failed())?;
        // A child between fork and exec holds a copy of its parent's claim for a moment.
        let end = Instant::now() + Duration::from_millis(500);
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _name: listener }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(failed()(error));
                }
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
                Err(_) => return Err(LabError::InUse(prefix.to_owned())),
            }
        }
    }
}

/// Ends the processes in the namespaces of `prefix` and removes the namespaces' names; the kernel
/// removes each namespace with its devices when its last user is gone.
pub(super) fn remove(prefix: &str) -> Result<(), LabError> {
    loop {
        let names = names(prefix).map_err(LabError::system(format!("list {NAMES}")))?;
        if names.is_empty() {
            return Ok(());
        }
        // A process of the lab may have made one more before it ended.
        remove_all(&names)?;
    }
}

/// Ends the processes in one namespace, and removes its name.
pub(super) fn remove_one(name: &str) -> Result<(), LabError> {
    remove_all(&[PathBuf::from(NAMES).join(name)])
}

fn remove_all(names: &[PathBuf]) -> Result<(), LabError> {
    end_processes(names);
    for path in names {
        let failed = || format!("remove the namespace {}", path.display());
        match umount2(path, MntFlags::MNT_DETACH) {
            // Not mounted: its maker was killed between creating the name and the namespace.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(LabError::system(failed())(error)),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LabError::system(failed())(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn names(prefix: &str) -> io::Result<Vec<PathBuf>> {
    let start = format!("{prefix}{SEPARATOR}");
    let entries = match fs::read_dir(NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            names.push(entry.path());
        }
    }
    Ok(names)
}

fn end_processes(names: &[PathBuf]) {
    let spaces: BTreeSet<Identity> = names.iter().filter_map(|path| identity(path)).collect();
    // The host's own namespace has a name here only if someone bound it to one of ours.
    let own = identity(Path::new("/proc/self/ns/net"));
    let spaces: BTreeSet<Identity> = spaces.into_iter().filter(|id| Some(*id) != own).collect();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let end = Instant::now() + GRACE;
        let mut asked = BTreeSet::new();
        loop {
            let living = processes(&spaces);
            if living.is_empty() {
                return;
            }
            for id in living {
                if asked.insert(id) {
                    // It may have ended since it was listed.
                    let _ = kill(id, signal);
                }
            }
            if Instant::now() > end {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Device and inode of a namespace's file, which tell namespaces apart.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Processes whose main thread is in one of `spaces`. This process's own threads may be there too:
/// its main thread is not, and it is left out in any case.
fn processes(spaces: &BTreeSet<Identity>) -> Vec<Pid> {
    if spaces.is_empty() {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|id| {
            identity(Path::new(&format!("/proc/{id}/ns/net")))
                .is_some_and(|space| spaces.contains(&space))
        })
        .map(Pid::from_raw)
        .filter(|id| *id != getpid())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_cannot_reach_into_another_lab() {
        for good in ["x", "xlb2", "abcdefghijklmnopqrst"] {
            assert!(check_prefix(good).is_ok(), "{good}");
        }
        for bad in ["", "x-y", "X", "a/b", "..", "abcdefghijklmnopqrstu", "ä"] {
            assert!(matches!(check_prefix(bad), Err(LabError::BadPrefix(_))), "{bad}");
        }
    }

    #[test]
    fn a_claim_lasts_until_it_is_dropped() {
        let prefix = format!("claim{}", getpid());
        let claim = Claim::take(&prefix).unwrap();
        assert!(matches!(Claim::take(&prefix), Err(LabError::InUse(_))));
        drop(claim);
        Claim::take(&prefix).unwrap();
    }
}
