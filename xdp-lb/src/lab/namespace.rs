//! A node's network namespace: run code, tools and daemons in it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};

use super::{LabError, receive};

/// Where ip(8) keeps the names of namespaces.
pub(super) const NAMES: &str = "/run/netns";

/// A network namespace that a [`super::Lab`] made. Clones are the same namespace.
///
/// Only the network is separate: files, processes and mounts are the host's, so /sys/class/net
/// still shows the host's devices.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
    /// `cgroup.procs` of the cgroup that commands join
    cgroup: Option<Arc<File>>,
}

impl Namespace {
    pub(super) fn open(name: String) -> Result<Self, LabError> {
        let path = PathBuf::from(NAMES).join(&name);
        let handle = File::open(&path)
            .map_err(LabError::system(format!("open the namespace {}", path.display())))?;
        Ok(Self { name, handle: Arc::new(handle), cgroup: None })
    }

    /// The same namespace, whose commands join a cgroup (version 2) by its directory.
    pub fn in_cgroup(&self, directory: &Path) -> Result<Self, LabError> {
        let members = File::options().write(true).open(directory.join("cgroup.procs"));
        let members = members
            .map_err(LabError::system(format!("join the cgroup {}", directory.display())))?;
        Ok(Self { cgroup: Some(Arc::new(members)), ..self.clone() })
    }

    /// Full name, as `ip netns exec NAME …` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a new thread inside the namespace. Sockets that it makes stay in the
    /// namespace when they leave the thread. A panic inside is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter().map_err(LabError::system(format!("enter {}", self.name)))?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.handle, CloneFlags::CLONE_NEWNET)?)
    }

    /// A command that will start inside the namespace, to be run by the caller.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.put_inside(&mut command);
        command
    }

    /// Like [`Namespace::spawn`], for a process that also ends when the thread that starts it does,
    /// however that ends.
    pub fn spawn_bound(&self, mut command: Command) -> Result<Process, LabError> {
        let parent = getpid();
        let bind = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // Nobody tells of a parent that was gone before.
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two
        // system calls.
        unsafe { command.pre_exec(bind) };
        self.spawn(command)
    }

    /// Starts `command` inside the namespace. It is killed when the result is dropped.
    pub fn spawn(&self, mut command: Command) -> Result<Process, LabError> {
        self.put_inside(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .map_err(|source| LabError::Start { program: program.clone(), source })?;
        Ok(Process { child: Some(child), program })
    }

    fn put_inside(&self, command: &mut Command) {
        let (handle, cgroup) = (Arc::clone(&self.handle), self.cgroup.clone());
        let enter = move || {
            if let Some(members) = &cgroup {
                // Whoever writes it.
                (&**members).write_all(b"0")?;
            }
            Ok(setns(&*handle, CloneFlags::CLONE_NEWNET)?)
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two
        // system calls on descriptors that the command keeps open.
        unsafe { command.pre_exec(enter) };
    }

    /// Lets `device` receive what an XDP program at the other end of its cable sends back, as a
    /// switch's ports do anyway.
    pub fn receive_xdp(&self, device: &str) -> Result<(), LabError> {
        receive::pass(self, &[device.to_owned()])
    }

    /// Runs one command of ip(8) inside, without the word `ip`, and returns what it printed.
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        self.tool("ip", arguments)
    }

    /// Runs any tool with arguments that are separated by white space, and returns its output.
    pub fn tool(&self, program: &str, arguments: &str) -> Result<String, LabError> {
        let mut command = self.command(program);
        command.args(arguments.split_whitespace());
        finish(command, "")
    }
}

/// Runs `command` with `input` and returns what it printed.
pub(super) fn finish(mut command: Command, input: &str) -> Result<String, LabError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let line = format!("{program} {}", words.join(" "));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| LabError::Start { program, source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that fails early stops reading; its exit status tells more than this error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output =
        child.wait_with_output().map_err(LabError::system(format!("wait for `{line}`")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let command = if input.is_empty() { line } else { format!("{line} (with {input:?})") };
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Refused { command, message })
}

/// A child process inside a namespace; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    program: String,
}

impl Process {
    /// Process id.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The child, to reach its pipes.
    pub fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// Sends it a signal.
    pub fn signal(&self, number: Signal) {
        if let Some(child) = &self.child {
            signal(child, number);
        }
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Asks it to end with SIGTERM, and kills it when it has not after `grace`.
    pub fn stop(mut self, grace: Duration) -> Result<ExitStatus, LabError> {
        let failed = |program: &str| format!("stop {program}");
        let Some(mut child) = self.child.take() else {
            return Err(LabError::system(failed(&self.program))(io::Error::from(
                io::ErrorKind::NotFound,
            )));
        };
        signal(&child, Signal::SIGTERM);
        let end = Instant::now() + grace;
        loop {
            let status = child.try_wait().map_err(LabError::system(failed(&self.program)))?;
            match status {
                Some(status) => return Ok(status),
                None if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
                None => break,
            }
        }
        signal(&child, Signal::SIGKILL);
        child.wait().map_err(LabError::system(failed(&self.program)))
    }

    /// Leaves it running; [`super::Lab::clean`] will find it by its namespace.
    pub fn keep(mut self) {
        self.child = None;
    }
}

/// Sends a signal to a child that has not been waited for, so its id is still its own.
fn signal(child: &Child, signal: Signal) {
    if let Ok(id) = i32::try_from(child.id()) {
        // It may have ended already, which is what the signal is for.
        let _ = kill(Pid::from_raw(id), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it has ended and been waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
