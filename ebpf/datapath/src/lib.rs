//! The packet path: read, decide, rewrite.
//!
//! The same code runs in the kernel and in tests on the host. It reaches packets through [`Frame`]
//! and everything else through [`Tables`], and contains no unsafe code. Each packet goes through
//! three steps, each in its own module:
//!
//! 1. [`parse`] reads the headers once into [`parse::Facts`];
//! 2. [`decide`] finds the frontend and picks the backend;
//! 3. [`forward`], [`icmp`] and [`terminate`] check all lengths, then write.
//!
//! A packet that is handed to the kernel's stack is never half changed.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod checksum;
pub mod decide;
pub mod forward;
mod frame;
mod header;
pub mod icmp;
mod link;
pub mod parse;
mod tables;
pub mod terminate;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use frame::{Frame, MAX_OFFSET, NoRoom, Truncated};
pub use tables::Tables;
use xdp_lb_abi::{Disposition, Reason};

use crate::parse::{Facts, Kind};

/// What to do with the frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Hand it to the kernel's stack.
    Pass,
    /// Drop it.
    Drop,
    /// Send it out of the device that it came from.
    Transmit,
    /// Send it out of this device of `DEVICES`.
    Redirect(u16),
}

/// Handles one frame: counts what becomes of it, and returns that.
#[inline(always)]
pub fn handle<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let reason = match process(frame, tables) {
        Ok(verdict) => return verdict,
        Err(reason) => reason,
    };
    tables.count_reason(reason, frame.linear_length());
    match reason.disposition() {
        Disposition::Pass | Disposition::Deliver => Verdict::Pass,
        Disposition::Drop => Verdict::Drop,
        Disposition::Answer => Verdict::Transmit,
    }
}

/// Forwards the frame, or says why it is not simply forwarded.
#[inline(always)]
fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Verdict, Reason> {
    let facts = parse::parse(frame)?;
    match facts.kind.0 {
        Kind::Flow => balance(frame, tables, &facts),
        Kind::Echo => Err(icmp::echo(frame, tables, &facts)),
        Kind::Tunnel => Err(terminate::terminate(frame, tables, &facts)),
    }
}

#[inline(always)]
fn balance<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
) -> Result<Verdict, Reason> {
    let choice = decide::decide(facts, tables)?;
    let verdict = forward::forward(frame, tables, facts, &choice)?;
    tables.count_frontend(choice.stats, facts.length);
    tables.count_backend(choice.id, facts.length);
    Ok(verdict)
}
