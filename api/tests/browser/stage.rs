//! A browser that looks at a server over a daemon in memory.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
    time::sleep,
};
use xdp_lb_api::server::Settings;

use crate::{
    chromium::Chromium,
    common::{Memory, Scratch, Server, until},
    world::traffic,
};

/// One browser at a time: they are large.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A browser, and a server on TCP that it looks at.
pub(crate) struct Stage {
    pub(crate) browser: Chromium,
    pub(crate) server: Server,
    pub(crate) listen: SocketAddr,
    moving: Option<JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

impl Stage {
    async fn set(more: impl FnOnce(&mut Settings, &Scratch)) -> Option<Self> {
        let alone = ALONE.lock().await;
        let mut browser = Chromium::start().await?;
        browser.size(1280, 800).await;
        browser.scheme("light").await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let server = Server::start(|settings, scratch| {
            settings.listen = Some(listen);
            more(settings, scratch);
        })
        .await;
        until(|| std::net::TcpStream::connect(listen).is_ok()).await;
        Some(Self { browser, server, listen, moving: None, _alone: alone })
    }

    pub(crate) async fn open(&mut self, view: &str) {
        self.browser.open(&format!("http://{}/{view}", self.listen)).await;
    }

    /// Lets traffic flow from now on.
    pub(crate) fn flow(&mut self) {
        let memory = self.server.memory.clone();
        self.moving = Some(tokio::spawn(async move {
            loop {
                traffic(&memory, 1);
                sleep(Duration::from_secs(1)).await;
            }
        }));
    }

    /// Nothing went wrong in the page, and its policy forbade nothing.
    pub(crate) fn ends_well(self) {
        assert_eq!(self.browser.complaints, [""; 0]);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(task) = &self.moving {
            task.abort();
        }
    }
}

pub(crate) fn memory(stage: &Stage) -> &Arc<Memory> {
    &stage.server.memory
}

/// What stands in the cells of a table's body, row by row.
pub(crate) const CELLS: &str = "[...document.querySelectorAll('main tbody tr')].map((row) => \
    [...row.cells].map((cell) => cell.innerText))";

fn multi() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs a test with a browser, where there is one.
pub(crate) fn with_page<F: Future<Output = ()>>(
    more: impl FnOnce(&mut Settings, &Scratch),
    test: impl FnOnce(Stage) -> F,
) {
    multi().block_on(async {
        if let Some(stage) = Stage::set(more).await {
            test(stage).await;
        }
    });
}
