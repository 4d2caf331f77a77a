//! What was set through the API, kept in a file over restarts.
//!
//! A change is written to another file, which replaces the old one in one step when it is safely on
//! the disk; the one before stays beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the file's format.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// What was set through the API.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiState {
    /// Services by name, with the keys of the configuration file
    pub services: BTreeMap<String, Value>,
    /// Names of drained backends, by service
    pub drained: BTreeMap<String, BTreeSet<String>>,
    /// Those of them that are removed once their last flow is gone
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removing: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize, Serialize)]
struct Document<S> {
    version: u32,
    state: S,
}

/// What was set through the API is there, and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "what was set through the API cannot be used: {}: {why}. Mend the file, or put a copy back; to start \
     without what it held, move it away", file.display()
)]
pub struct StateError {
    /// The file
    pub file: PathBuf,
    why: Broken,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is larger than {MAX_FILE} bytes")]
    Large,
    #[error("it is not what the API wrote: {0}")]
    Format(#[from] serde_json::Error),
    #[error(
        "it is of version {0}, and this program knows version {VERSION}: start the xdp-lb that wrote it"
    )]
    Version(u32),
}

/// The directory of the file.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// A store in this directory, which is made with the first write.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What was kept, and what the user must be told about it.
    ///
    /// A broken file is renamed, so that it can be looked at, where what was kept before it can be used
    /// instead.
    ///
    /// # Errors
    ///
    /// Where something was kept, and none of it can be used, or another version kept it: services would
    /// be lost that run. Nothing is changed then.
    pub fn load(&self) -> Result<(ApiState, Vec<String>), StateError> {
        let (now, before) = (self.file("json"), self.file("previous.json"));
        let why = match read(&now) {
            Ok(Some(state)) => return Ok((state, Vec::new())),
            Ok(None) => None,
            Err(why @ Broken::Version(_)) => return Err(StateError { file: now, why }),
            Err(why) => Some(why),
        };
        let (state, why) = match (read(&before), why) {
            (Ok(Some(state)), None) => return Ok((state, vec![instead(&before)])),
            (Ok(None), None) => return Ok((ApiState::default(), Vec::new())),
            (Err(why), None) => return Err(StateError { file: before, why }),
            (Ok(None) | Err(_), Some(why)) => return Err(StateError { file: now, why }),
            (Ok(Some(state)), Some(why)) => (state, why),
        };
        let aside = self.aside(&now);
        let kept = match fs::rename(&now, &aside) {
            Ok(()) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it cannot be renamed: {error}"),
        };
        let said = format!("{} is not used: {why}; {kept}", now.display());
        Ok((state, vec![said, instead(&before)]))
    }

    /// Writes a state; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// Where the file system refuses; what was kept before is still there then.
    pub fn save(&self, state: &ApiState) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let (now, new) = (self.file("json"), self.file("new.json"));
        let text = serde_json::to_vec(&Document { version: VERSION, state })?;
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        match fs::rename(&now, self.file("previous.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&new, &now)?;
        File::open(&self.directory)?.sync_all()
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.directory.join(format!("api.{ending}"))
    }

    /// A name that is free, for a broken file.
    fn aside(&self, file: &Path) -> PathBuf {
        let name = |n: u32| file.with_extension(format!("broken-{n}"));
        (1..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0))
    }
}

fn instead(file: &Path) -> String {
    format!("the API's state is that of {}", file.display())
}

fn read(file: &Path) -> Result<Option<ApiState>, Broken> {
    let length = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?.len(),
    };
    if length > MAX_FILE {
        return Err(Broken::Large);
    }
    let text = fs::read(file)?;
    // The version first: another one's state may look otherwise.
    let document: Document<Value> = serde_json::from_slice(&text)?;
    if document.version != VERSION {
        return Err(Broken::Version(document.version));
    }
    Ok(Some(serde_json::from_value(document.state)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A directory of one test, removed with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xlbstate-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn store(&self) -> Store {
            Store::new(self.0.clone())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn state(name: &str) -> ApiState {
        let drained = [(name.to_owned(), ["10.0.0.1".to_owned()].into())];
        ApiState {
            services: [(name.to_owned(), json!({"mode": "l2"}))].into(),
            drained: drained.into(),
            removing: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let scratch = Scratch::new("saved");
        let store = Store::new(scratch.0.join("made"));
        assert_eq!(store.load().unwrap(), (ApiState::default(), vec![]));
        for name in ["a", "b"] {
            store.save(&state(name)).unwrap();
            assert_eq!(store.load().unwrap(), (state(name), vec![]));
        }
    }

    #[test]
    fn a_broken_file_is_kept_aside_and_the_one_before_counts() {
        let scratch = Scratch::new("broken");
        let store = scratch.store();
        for broken in ["", "{", "{\"version\":1,\"state\":{\"x\":1}}"] {
            store.save(&state("a")).unwrap();
            store.save(&state("b")).unwrap();
            fs::write(store.file("json"), broken).unwrap();
            let (loaded, said) = store.load().unwrap();
            assert_eq!(loaded, state("a"), "with {broken:?}");
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[0].contains("api.json is not used: it "), "{said:?}");
        }
        let kept = fs::read_dir(&scratch.0).unwrap();
        let kept =
            kept.filter(|one| one.as_ref().unwrap().path().to_string_lossy().contains("broken-"));
        assert_eq!(kept.count(), 3, "each is there to be looked at");
    }

    #[test]
    fn what_nobody_can_read_is_never_taken_for_nothing() {
        let scratch = Scratch::new("lost");
        let store = scratch.store();
        for (now, before) in [
            (Some("{"), None),
            (Some("{"), Some("[")),
            (None, Some("{")),
            // A newer one's: what is older would undo what it acknowledged.
            (Some("{\"version\":2,\"state\":7}"), Some("{\"version\":1,\"state\":{}}")),
        ] {
            for (ending, text) in [("json", now), ("previous.json", before)] {
                let _ = fs::remove_file(store.file(ending));
                if let Some(text) = text {
                    fs::write(store.file(ending), text).unwrap();
                }
            }
            for _ in 0..2 {
                let error = store.load().unwrap_err().to_string();
                assert!(error.contains("move it away"), "{error}");
            }
            assert_eq!(store.file("json").exists(), now.is_some(), "nothing is changed");
        }
    }

    #[test]
    fn a_crash_between_the_two_renames_loses_nothing_that_was_acknowledged() {
        let scratch = Scratch::new("crash");
        let store = scratch.store();
        store.save(&state("a")).unwrap();
        fs::rename(store.file("json"), store.file("previous.json")).unwrap();
        assert_eq!(store.load().unwrap().0, state("a"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        let scratch = Scratch::new("file");
        fs::write(scratch.0.join("x"), "").unwrap();
        assert!(Store::new(scratch.0.join("x")).save(&state("a")).is_err());
    }
}
