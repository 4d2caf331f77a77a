//! What was taken out, and how far it has come: a directory that outlives any interruption.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::{Error, Family};
use crate::files;

/// Version of the journal's format.
const VERSION: u32 = 1;
const FILE: &str = "journal.json";
/// How long whoever has the directory may take to end: longer than iptables-restore(8) waits for others.
const PATIENCE: Duration = Duration::from_secs(12);
const TURN: Duration = Duration::from_millis(20);

/// How far a removal, or what takes it back, has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Manifests may be moved aside; all rules are there
    Stopping,
    /// All rules are saved; some or all are removed
    Saved,
    /// All is removed
    Removed,
    /// Some or all rules are put back
    Restoring,
    /// All rules are put back; manifests may be
    RulesBack,
}

/// What was taken out.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Journal {
    version: u32,
    /// How far it has come
    pub stage: Stage,
    /// Manifests: where they belong
    pub(super) manifests: Vec<PathBuf>,
    /// Rules that were saved
    pub(super) saved: Vec<SavedRules>,
    /// Families that have a table which keeps connections
    pub(super) keepers: Vec<Family>,
}

/// Rules of one kind and family, saved.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedRules {
    pub(super) kind: String,
    pub(super) family: Family,
    /// The file, in the same directory
    pub(super) file: String,
}

impl Journal {
    /// One that begins.
    pub(super) fn new() -> Self {
        let (manifests, saved, keepers) = Default::default();
        Self { version: VERSION, stage: Stage::Stopping, manifests, saved, keepers }
    }

    /// Reads the one of a directory, if there is one.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, or another version wrote it.
    pub fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::file("read", &path))?,
        };
        let wrong = |message: String| Error::Journal { path: path.clone(), message };
        let journal: Self =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if journal.version != VERSION {
            return Err(wrong(format!("its format has version {}", journal.version)));
        }
        Ok(Some(journal))
    }
}

/// The directory, which nobody else uses as long as this lives, or a tool that was started meanwhile: one
/// outlives a program that is killed, and still changes rules then.
#[derive(Debug)]
pub(super) struct Backup {
    directory: PathBuf,
    _lock: File,
}

impl Backup {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        Self::open_within(directory, PATIENCE)
    }

    fn open_within(directory: &Path, patience: Duration) -> Result<Self, Error> {
        let manifests = directory.join("manifests");
        // Manifests may be nobody else's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&manifests);
        made.map_err(failed("make", &manifests))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(failed("make", &path))?;
        let end = Instant::now() + patience;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(TURN),
                Err(TryLockError::WouldBlock) => return Err(Error::Busy(directory.to_owned())),
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            }
        }
        // The tools hold it, too.
        fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|errno| failed("lock", &path)(errno.into()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    pub(super) fn journal(&self) -> Result<Option<Journal>, Error> {
        Journal::read(&self.directory)
    }

    /// Writes the journal: it is on the disk when this returns.
    pub(super) fn record(&self, journal: &Journal) -> Result<(), Error> {
        let path = self.directory.join(FILE);
        let text = serde_json::to_string_pretty(journal)
            .map_err(|error| Error::Journal { path: path.clone(), message: error.to_string() })?;
        files::write(&path, &(text + "\n")).map_err(Error::file("write", &path))
    }

    /// Ends the journal: all is as it was.
    pub(super) fn close(&self) -> Result<(), Error> {
        let path = self.directory.join(FILE);
        files::remove(&path).map_err(Error::file("remove", &path))
    }

    /// Where a manifest is kept.
    pub(super) fn kept(&self, manifest: &Path) -> PathBuf {
        self.directory.join("manifests").join(manifest.file_name().unwrap_or_default())
    }

    pub(super) fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        let path = self.directory.join(file);
        files::write(&path, text).map_err(Error::file("write", &path))
    }

    pub(super) fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.directory.join(file);
        fs::read_to_string(&path).map_err(Error::file("read", &path))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Error::Permission;
        }
        Error::file(what, path)(source)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A directory of one test, removed with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("xlbkubeproxy-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_recorded_is_read_until_it_is_closed() {
        let scratch = Scratch::new("recorded");
        assert_eq!(Journal::read(&scratch.0).unwrap(), None);
        let backup = Backup::open(&scratch.0).unwrap();
        let mut journal = Journal::new();
        journal.stage = Stage::Saved;
        journal.manifests.push("/etc/kubernetes/manifests/kube-proxy.yaml".into());
        journal.keepers.push(Family::V6);
        backup.record(&journal).unwrap();
        assert_eq!(backup.journal().unwrap(), Some(journal));
        backup.close().unwrap();
        backup.close().unwrap();
        assert_eq!(backup.journal().unwrap(), None);
    }

    #[test]
    fn one_at_a_time_has_the_directory() {
        let scratch = Scratch::new("busy");
        let first = Backup::open(&scratch.0).unwrap();
        let second = Backup::open_within(&scratch.0, Duration::from_millis(50));
        assert!(matches!(second, Err(Error::Busy(_))));
        drop(first);
        assert!(Backup::open(&scratch.0).is_ok());
    }

    #[test]
    fn a_tool_that_outlives_who_started_it_still_has_the_directory() {
        let scratch = Scratch::new("tool");
        let first = Backup::open(&scratch.0).unwrap();
        let mut tool = Command::new("sleep").arg("60").spawn().unwrap();
        drop(first);
        let second = Backup::open_within(&scratch.0, Duration::from_millis(50));
        assert!(matches!(second, Err(Error::Busy(_))));
        tool.kill().unwrap();
        tool.wait().unwrap();
        assert!(Backup::open(&scratch.0).is_ok());
    }

    #[test]
    fn what_another_version_wrote_is_left_alone() {
        let scratch = Scratch::new("version");
        let backup = Backup::open(&scratch.0).unwrap();
        backup.record(&Journal::new()).unwrap();
        let text = backup.read(FILE).unwrap();
        for wrong in [text.replace("\"version\": 1", "\"version\": 2"), "{".to_owned()] {
            backup.write(FILE, &wrong).unwrap();
            let error = backup.journal().unwrap_err().to_string();
            assert!(error.contains("journal.json is not what this version"), "{error}");
        }
    }

    #[test]
    fn a_manifest_is_in_one_place_whole() {
        let scratch = Scratch::new("move");
        let backup = Backup::open(&scratch.0).unwrap();
        let manifest = scratch.0.join("kube-proxy.yaml");
        fs::write(&manifest, "kind: Pod").unwrap();
        let kept = backup.kept(&manifest);
        files::move_to(&manifest, &kept).unwrap();
        assert!(!manifest.exists());
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kind: Pod");
        // From another file system, too.
        let shared = PathBuf::from("/dev/shm").join(format!("xlb-{}", std::process::id()));
        if fs::write(&shared, "kind: Pod").is_ok() {
            files::move_to(&shared, &manifest).unwrap();
            assert!(!shared.exists());
            assert_eq!(fs::read_to_string(&manifest).unwrap(), "kind: Pod");
            let names: Vec<_> = fs::read_dir(&scratch.0).unwrap().flatten().collect();
            let hidden = names.iter().any(|one| one.file_name().to_string_lossy().starts_with('.'));
            assert!(!hidden, "nothing is left over");
        }
    }
}
