//! Files that are whole or not there.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Writes a file: the one before, or this one, is there at any time. After a power failure it may be
/// neither, which is for what can be found out again.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

/// The same for what must last: it is on the disk when this returns.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = beside(path);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path)
}

/// Moves a file, over file systems too: it is in one place or the other, or in both, never in none.
pub(crate) fn move_to(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let new = beside(to);
            // With its permissions.
            fs::copy(from, &new)?;
            File::open(&new)?.sync_all()?;
            fs::rename(&new, to)?;
            sync_directory(to)?;
            fs::remove_file(from)?;
        }
        result => result?,
    }
    sync_directory(to)?;
    sync_directory(from)
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_directory(path),
    }
}

/// A hidden file: kubelet takes every other in its directory for a manifest.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn sync_directory(of: &Path) -> io::Result<()> {
    let directory = of.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
