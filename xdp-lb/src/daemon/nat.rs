//! Sweeps the flows of mode `snat` every few seconds, on a thread of its own: nothing of it waits for
//! the rest of the daemon.

use std::time::Duration;

use tokio::{sync::watch, task::AbortHandle, time::sleep};
use tracing::{debug, warn};

use crate::{
    clock,
    dataplane::{NatFlows, Swept},
    error::chain,
    maps::TableError,
    pins::Pins,
};

/// Time between two sweeps: short beside every idle time.
const PAUSE: Duration = Duration::from_secs(10);

/// The sweep; it ends with this.
pub struct NatSweep {
    task: AbortHandle,
    found: watch::Receiver<Swept>,
}

impl NatSweep {
    /// Starts sweeping. Needs a tokio runtime.
    pub fn start(pins: Pins) -> Self {
        let (sender, found) = watch::channel(Swept::default());
        let task = tokio::spawn(async move {
            let mut failed = false;
            loop {
                sleep(PAUSE).await;
                let pins = pins.clone();
                let swept = tokio::task::spawn_blocking(move || sweep(&pins)).await;
                match swept {
                    Ok(Ok(swept)) => {
                        failed = false;
                        tell(&sender.send_replace(swept), &swept);
                    }
                    Ok(Err(error)) => {
                        // Once: it is tried again and again.
                        if !std::mem::replace(&mut failed, true) {
                            warn!("the flows of mode snat cannot be swept: {}", chain(&error));
                        }
                    }
                    Err(error) => warn!("the flows of mode snat cannot be swept: {error}"),
                }
            }
        });
        Self { task: task.abort_handle(), found }
    }

    /// Whether there may be flows: no sweep has found that there are none.
    pub fn may_have_flows(&self) -> bool {
        let Swept { kept, capacity, .. } = *self.found.borrow();
        kept > 0 || capacity == 0
    }
}

impl Drop for NatSweep {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn sweep(pins: &Pins) -> Result<Swept, TableError> {
    let now = u64::try_from(clock::now().as_nanos()).unwrap_or(u64::MAX);
    NatFlows::open(pins)?.sweep(now)
}

fn tell(before: &Swept, swept: &Swept) {
    if swept.ended > 0 {
        debug!(ended = swept.ended, left = swept.kept, "flows of mode snat are swept");
    }
    let is_full = |swept: &Swept| swept.capacity > 0 && swept.kept >= swept.capacity;
    if is_full(swept) && !is_full(before) {
        warn!("the table of snat's flows is full, new ones are refused; raise limits.natFlows");
    }
}
