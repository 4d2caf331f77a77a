//! Labs that are up, and their removal when SIGINT or SIGTERM ends the process.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::fd::{IntoRawFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use super::leftovers;

/// What is to be done after a lab's removal.
type Work = Box<dyn FnOnce() + Send>;

static LIVE: Mutex<BTreeMap<String, Vec<Work>>> = Mutex::new(BTreeMap::new());
static WATCH: OnceLock<Result<(), i32>> = OnceLock::new();
/// Where the handler tells the watching thread which signal came.
static TELL: AtomicI32 = AtomicI32::new(-1);

const ENDING: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// From now on a signal that ends the process removes the lab first.
pub(super) fn arm(prefix: &str) -> io::Result<()> {
    let watched = WATCH.get_or_init(|| watch().map_err(|e| e.raw_os_error().unwrap_or_default()));
    watched.as_ref().map_err(|errno| io::Error::from_raw_os_error(*errno))?;
    live().entry(prefix.to_owned()).or_default();
    Ok(())
}

/// Adds to what is done once the lab is gone.
pub(super) fn afterwards(prefix: &str, work: impl FnOnce() + Send + 'static) {
    live().entry(prefix.to_owned()).or_default().push(Box::new(work));
}

/// The lab is gone: does what was left for this moment. A signal waits until it is done.
pub(super) fn finish(prefix: &str) {
    let mut live = live();
    live.remove(prefix).into_iter().flatten().for_each(|work| work());
}

/// The lab is to stay.
pub(super) fn disarm(prefix: &str) {
    live().remove(prefix);
}

fn live() -> MutexGuard<'static, BTreeMap<String, Vec<Work>>> {
    // Each entry is whole whatever panicked while the map was locked.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch() -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    TELL.store(OwnedFd::from(tell).into_raw_fd(), Ordering::SeqCst);
    thread::Builder::new().name("lab-signals".into()).spawn(move || {
        let mut number = [0];
        if told.read_exact(&mut number).is_ok() {
            // Held to the end, so that nobody builds or removes a lab at the same time.
            let mut live = live();
            for (prefix, work) in std::mem::take(&mut *live) {
                // There is nobody left to tell; the next run with this prefix tries again.
                let _ = leftovers::remove(&prefix);
                work.into_iter().for_each(|work| work());
            }
            end_by(i32::from(number[0]));
        }
    })?;
    for signal in ENDING {
        take_over(signal)?;
    }
    Ok(())
}

fn take_over(signal: Signal) -> io::Result<()> {
    let action = |handler| SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: `on_signal` makes async-signal-safe calls only.
    let before = unsafe { sigaction(signal, &action(SigHandler::Handler(on_signal)))? };
    if matches!(before.handler(), SigHandler::SigIgn) {
        // Started by nohup or the like: stay deaf to it.
        // SAFETY: the disposition is the one that was there before.
        unsafe { sigaction(signal, &before)? };
    }
    Ok(())
}

extern "C" fn on_signal(number: i32) {
    let byte = [number as u8];
    // SAFETY: write(2) is async-signal-safe, the buffer is one byte long, and the descriptor is
    // the pipe's, which stays open for the life of the process.
    unsafe { libc::write(TELL.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
}

fn end_by(number: i32) {
    if let Ok(signal) = Signal::try_from(number) {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code of ours.
        if unsafe { sigaction(signal, &default) }.is_ok() {
            let _ = raise(signal);
        }
    }
    std::process::exit(128 + number);
}
