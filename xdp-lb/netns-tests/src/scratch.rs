//! Files and pins of one test, removed whatever becomes of it.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const BPF_FS: &str = "/sys/fs/bpf";

/// A directory for files and one for pins.
///
/// A guard process removes both when this is dropped or the test's process has ended, however it
/// ended: pins outlive processes.
#[derive(Debug)]
pub struct Scratch {
    files: PathBuf,
    pins: PathBuf,
    guard: Child,
}

impl Scratch {
    /// Makes the directories; what a killed run left under the same name is removed first.
    pub fn new(name: &str) -> Self {
        let is_bpf = statfs(BPF_FS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpf {
            let mount = ["-t", "bpf", "bpf", BPF_FS];
            assert!(Command::new("mount").args(mount).status().unwrap().success());
        }
        let files = std::env::temp_dir().join(name);
        let pins = Path::new(BPF_FS).join(name);
        for directory in [&files, &pins] {
            if directory.exists() {
                fs::remove_dir_all(directory).unwrap();
            }
        }
        // Also for what is run as another user.
        fs::create_dir(&files).unwrap();
        let guard = Command::new("sh")
            .args(["-c", "cat >/dev/null; rm -rf -- \"$@\"", "guard"])
            .args([&pins, &files])
            // Not killed by the terminal's Ctrl-C.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { files, pins, guard }
    }

    /// A path for a file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// A pin directory, which does not exist yet.
    pub fn pins(&self, name: &str) -> PathBuf {
        self.pins.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It cannot fail to end: its input has.
        let _ = self.guard.wait();
    }
}
