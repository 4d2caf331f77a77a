//! The daemon under test: the real command in a process of its own.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xdp_lb::{
    lab::{Namespace, Process},
    pins::Pins,
    stats::{self, Stats},
};

use crate::{PATIENCE, STARTING, Scratch, wait_until};

const NAME: &str = "xdp-lb-under-test";

/// The command. Cargo builds it with the tests and puts it beside their directory.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join(NAME);
    assert!(binary.exists(), "{} is missing: run the tests with cargo test", binary.display());
    binary
}

/// A daemon that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; none where a signal ended it
    pub code: Option<i32>,
    /// All that it printed
    pub log: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the daemon ended with {:?}:\n{}", self.code, self.log)
    }
}

/// What the daemon prints.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow(&self, from: impl std::io::Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut text = log.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        })
    }
}

/// A daemon that serves; killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    log: Log,
    reader: Option<JoinHandle<()>>,
    file: PathBuf,
    pins: Pins,
}

/// The command line `run --config FILE --pin-dir DIR`.
fn command(file: &Path, pins: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("run")
        .args([Path::new("--config"), file, Path::new("--pin-dir"), pins])
        .args([Path::new("--state-dir"), &file.with_extension("state")])
        .args([Path::new("--socket"), &socket(file)])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Where the daemon of a configuration file serves its API.
fn socket(file: &Path) -> PathBuf {
    file.with_extension("sock")
}

/// Starts a daemon named `name` in a namespace, and waits until it serves.
///
/// # Errors
///
/// Where it ends instead.
pub fn run(
    scratch: &Scratch,
    space: &Namespace,
    name: &str,
    config: &str,
    more: &[&str],
) -> Result<Daemon, Ended> {
    let file = scratch.file(&format!("{name}.yaml"));
    put(&file, config);
    let pins = scratch.pins(name);
    let mut process = space.spawn(command(&file, &pins, more)).unwrap();
    let log = Log::default();
    let reader = log.follow(process.child().unwrap().stderr.take().unwrap());
    let (process, reader) = (Some(process), Some(reader));
    let mut daemon = Daemon { process, log, reader, file, pins: Pins::new(pins) };
    let end = Instant::now() + STARTING;
    while !daemon.log().contains("the data path is up") {
        if let Some(status) = daemon.ended() {
            return Err(daemon.into_ended(status));
        }
        assert!(Instant::now() < end, "the daemon does not come up:\n{}", daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(daemon)
}

/// Runs the command until it ends, which it must do by itself.
pub fn run_here(mut command: Command) -> Ended {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::default();
    let reader = log.follow(child.stderr.take().unwrap());
    let end = Instant::now() + STARTING;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end:\n{}", log.text());
        }
        thread::sleep(Duration::from_millis(5));
    };
    reader.join().unwrap();
    Ended { code: status.code(), log: log.text() }
}

/// Writes a file as editors and config maps do: the whole at once.
fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

impl Daemon {
    /// All that it has printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until `text` stands in the log behind its first `after` bytes.
    pub fn wait_for(&mut self, after: usize, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log()[after..].contains(text) {
            if let Some(status) = self.ended() {
                panic!("the daemon ended with {status} before {text:?}:\n{}", self.log());
            }
            assert!(Instant::now() < end, "no {text:?} in the log:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().and_then(Process::id).unwrap()
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        socket(&self.file)
    }

    /// What a command answers that asks its API.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        wait_until("the API is served", || self.socket().exists());
        let mut command = Command::new(binary());
        command.args(arguments).arg("--socket").arg(self.socket()).output().unwrap()
    }

    /// What such a command prints, which must be no error.
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same as JSON.
    pub fn told_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// Replaces the configuration file and says nothing: the daemon looks at it each second.
    pub fn write(&self, config: &str) {
        put(&self.file, config);
    }

    /// Replaces the configuration file, asks to reload it, and waits until its tables are written.
    pub fn reload(&mut self, config: &str) {
        let before = self.log().len();
        self.write(config);
        self.signal(Signal::SIGHUP);
        self.wait_for(before, "configuration reloaded");
        let reloaded = before + self.log()[before..].find("configuration reloaded").unwrap();
        self.wait_for(reloaded, "tables written");
    }

    /// Replaces the configuration file, asks to reload it, and waits for what the daemon must say
    /// about a device.
    pub fn reload_devices(&mut self, config: &str, said: &str) {
        let before = self.log().len();
        self.write(config);
        self.signal(Signal::SIGHUP);
        self.wait_for(before, said);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().try_into().unwrap()), signal).unwrap();
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    fn into_ended(mut self, status: ExitStatus) -> Ended {
        self.process = None;
        self.reader.take().map(JoinHandle::join).transpose().unwrap();
        Ended { code: status.code(), log: self.log.text() }
    }

    /// Stops it as a service manager does.
    pub fn stop(mut self) -> Ended {
        let status = self.process.take().unwrap().stop(STARTING).unwrap();
        self.into_ended(status)
    }

    /// Kills it on the spot.
    pub fn kill(mut self) {
        self.process = None;
    }

    /// Its pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What the data path counted.
    pub fn stats(&self) -> Stats {
        stats::read(&self.pins).unwrap()
    }

    /// Packets that were counted for a reason.
    pub fn reason(&self, name: &str) -> u64 {
        let known = xdp_lb_abi::Reason::ALL.iter().any(|reason| reason.as_str() == name);
        assert!(known, "there is no reason {name}");
        let stats = self.stats();
        stats.reasons.iter().find(|one| one.reason == name).map_or(0, |one| one.packets)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            // The test's output is shown with its failure.
            let stats = stats::read(&self.pins).map(|stats| stats.table()).unwrap_or_default();
            eprintln!("--- {}:\n{}{stats}---", self.file.display(), self.log());
        }
    }
}
