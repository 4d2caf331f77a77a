//! Sockets of this host: the programs on their cgroup, and the end of those whose backend is gone.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::AbortHandle, time::sleep};
use tracing::{error, info, warn};
use xdp_lb_abi::{FrontendKey, Scope, SocketFrontend, SocketKey};
use xdp_lb_api::view::EventKind;
use xdp_lb_plan::{Planner, model::Protocol};

use super::{Daemon, DaemonError};
use crate::{
    config::Replacement,
    dataplane::{SocketError, SocketRecords},
    error::chain,
    maps::TableError,
    net::orphans::{self, Ended},
    pins::Pins,
    topology,
};

/// Changes that come together are looked at together.
const BATCH: Duration = Duration::from_millis(200);

/// Which backends the frontends of UDP lead to.
type Leads = HashMap<FrontendKey, HashSet<(IpAddr, u16)>>;

/// What the daemon knows of the programs on the cgroup.
pub(super) struct Sockets {
    /// The configuration that they were attached by, or that could not be had
    by: Option<Replacement>,
    /// Where they are
    pub(super) cgroup: Option<PathBuf>,
    /// Why they are not
    pub(super) wrong: Option<String>,
    /// Cookie of the host's network namespace
    netns: u64,
    leads: watch::Sender<Arc<Leads>>,
    /// Sockets that were ended, since the start
    pub(super) ended: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Sockets {
    /// Nothing is attached yet.
    pub(super) fn new(pins: Pins) -> Self {
        let (leads, mut changes) = watch::channel(Arc::<Leads>::default());
        let newest = changes.clone();
        let ended = Arc::<AtomicU64>::default();
        let count = ended.clone();
        let task = tokio::spawn(async move {
            let mut told = false;
            while changes.changed().await.is_ok() {
                sleep(BATCH).await;
                changes.mark_unchanged();
                let (newest, pins) = (newest.clone(), pins.clone());
                let work = tokio::task::spawn_blocking(move || end_orphans(&pins, &newest));
                match work.await {
                    Ok(Ok(ended)) => {
                        count.fetch_add(ended.sockets as u64, Ordering::Relaxed);
                        if ended.unreached > 0 && !std::mem::replace(&mut told, true) {
                            warn!(
                                namespaces = ended.unreached,
                                "cannot be entered: UDP sockets there whose backend is gone stay; it takes \
                                 CAP_SYS_ADMIN and CAP_SYS_PTRACE"
                            );
                        }
                    }
                    Ok(Err(error)) => warn!("UDP sockets without a backend stay: {error}"),
                    Err(error) => warn!("UDP sockets without a backend stay: {error}"),
                }
            }
        });
        Self {
            by: None,
            cgroup: None,
            wrong: None,
            netns: netns_cookie().unwrap_or(0),
            leads,
            ended,
            task: task.abort_handle(),
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The cookie of this process's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: pointer and length are those of one live number.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Ends UDP sockets that are connected to a backend which their frontend leads to no more.
///
/// The tables may lead sockets to new backends before `leads` names them, and while the records are
/// read: what looks like an orphan is one if it still does some moments later.
fn end_orphans(pins: &Pins, leads: &watch::Receiver<Arc<Leads>>) -> Result<Ended, OrphanError> {
    let mut records = SocketRecords::open(pins)?;
    let now = leads.borrow().clone();
    let mut orphans =
        records.orphans(Protocol::Udp.number(), |frontend, key| leads_to(&now, frontend, key))?;
    if orphans.is_empty() {
        return Ok(Ended::default());
    }
    std::thread::sleep(BATCH);
    let now = leads.borrow().clone();
    let still =
        records.orphans(Protocol::Udp.number(), |frontend, key| leads_to(&now, frontend, key))?;
    orphans.retain(|key| still.contains(key));
    let ended = orphans::end(&orphans)?;
    orphans.iter().for_each(|key| records.forget(key));
    if ended.sockets > 0 {
        info!(sockets = ended.sockets, "UDP sockets were ended: their backend is gone");
    }
    Ok(ended)
}

/// Whether a frontend leads to the backend that a socket has.
fn leads_to(leads: &Leads, frontend: &SocketFrontend, key: &SocketKey) -> bool {
    let backend = (key.backend().to_ip(), key.port());
    let address = frontend.address();
    let local = address.is_loopback() || address.is_unspecified();
    let address = if local { address.unspecified() } else { address };
    let name = FrontendKey::new(address, frontend.port(), key.protocol());
    let found = leads.get(&name.with_scope(Scope::Sockets)).or_else(|| leads.get(&name));
    found.is_some_and(|backends| backends.contains(&backend))
}

#[derive(Debug, thiserror::Error)]
enum OrphanError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{0}; does the kernel have CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG?")]
    End(#[from] io::Error),
}

/// What health checks find down is gone as well: a connected socket would ask it for ever.
fn leads(planner: &Planner) -> Leads {
    let silent: HashSet<u32> =
        planner.backends().filter(|(_, _, one)| !one.serving()).map(|(id, ..)| id).collect();
    let udp = planner.frontends().filter(|one| one.key.protocol() == Protocol::Udp.number());
    udp.map(|one| {
        let ids = one.ids.iter().chain(one.draining);
        let backends = ids.filter(|id| !silent.contains(id));
        let backends = backends.filter_map(|id| planner.backend(*id));
        let backends = backends.map(|key| (key.identity.address, key.identity.port));
        (one.key, backends.collect())
    })
    .collect()
}

impl Daemon {
    /// Writes what the programs on the cgroup go by.
    pub(super) fn configure_sockets(&mut self) -> Result<(), TableError> {
        if !self.config.replacement.serves.sockets {
            return Ok(());
        }
        let settings = topology::socket_settings(&self.config, self.sockets.netns);
        self.dataplane.configure_sockets(settings)
    }

    /// Has UDP sockets ended whose backend went with the last change.
    pub(super) fn look_for_orphans(&self) {
        let wanted = &self.config.replacement;
        if wanted.serves.sockets && wanted.sockets.end_orphans {
            let leads = Arc::new(leads(&self.planner));
            // The first look, after a restart, is at what happened meanwhile.
            self.sockets.leads.send_if_modified(|before| {
                let changed = *before != leads;
                *before = leads;
                changed
            });
        }
    }

    /// Attaches the programs to the cgroup that is wanted, or detaches them.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or the pins cannot be changed.
    pub(super) fn attach_sockets(&mut self) -> Result<(), DaemonError> {
        let wanted = &self.config.replacement;
        self.sockets.by = Some(wanted.clone());
        if !wanted.serves.sockets {
            self.sockets.wrong = None;
            if self.dataplane.detach_sockets()? {
                info!("sockets are not served any more");
                self.desk.journal.push(EventKind::Detached, "sockets are not served any more");
            }
            self.sockets.cgroup = None;
            return Ok(());
        }
        let cgroup = wanted.sockets.cgroup.clone();
        if self.sockets.netns == 0 {
            let why = SocketError::NoCookie;
            self.sockets.wrong = Some(why.to_string());
            return Err(why.into());
        }
        match self.dataplane.attach_sockets(cgroup.as_deref()) {
            Ok((new, path)) => {
                if new > 0 || self.sockets.cgroup.as_ref() != Some(&path) {
                    let text = format!("sockets of cgroup {} are served", path.display());
                    info!("{text}");
                    self.desk.journal.push(EventKind::Attached, text);
                }
                (self.sockets.cgroup, self.sockets.wrong) = (Some(path), None);
                Ok(())
            }
            Err(error) => {
                self.sockets.cgroup = None;
                self.sockets.wrong = Some(error.to_string());
                Err(error.into())
            }
        }
    }

    /// Takes what a new configuration says of them. Most changes of services do not concern them, and a
    /// link's update goes through all cgroups below.
    pub(super) fn follow_sockets(&mut self) {
        if self.sockets.by.as_ref() != Some(&self.config.replacement) {
            self.keep_sockets();
        }
    }

    /// As [`Self::attach_sockets`], where the daemon goes on without: it is told once, and tried again.
    pub(super) fn keep_sockets(&mut self) {
        let before = self.sockets.wrong.clone();
        if let Err(why) = self.attach_sockets()
            && before != self.sockets.wrong
        {
            let text = format!("sockets cannot be served: {}", chain(&why));
            error!("{text}");
            self.desk.journal.push(EventKind::Failed, text);
        }
    }
}
