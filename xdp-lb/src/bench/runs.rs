//! Benchmarks that the API asks for: one at a time, each in a process of its own, so that neither its
//! memory nor its end is the daemon's.

use std::{
    collections::VecDeque,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use xdp_lb_api::{
    Answer, ApiError, Benchmarks,
    benchmark::{BenchmarkRequest, BenchmarkScale, BenchmarkState, BenchmarkView, Report},
    rfc3339,
};

use super::{Error, is_known};

/// How many runs are kept.
const KEPT: usize = 16;
/// Longest time that one may take.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// What the process of a run tells, a line each.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Word {
    /// How much is done, from 0 to 1
    Progress(f64),
    /// What it found
    Report(Box<Report>),
    /// Why it found nothing
    Failed(String),
}

/// The runs of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Runs(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    started: u64,
    runs: VecDeque<Run>,
}

#[derive(Debug)]
struct Run {
    view: BenchmarkView,
    /// Ends it
    end: watch::Sender<bool>,
}

impl Runs {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nobody who holds it panics; if so, the table is as whole as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut BenchmarkView)) {
        if let Some(run) = self.table().runs.iter_mut().find(|run| run.view.id == id) {
            change(&mut run.view);
        }
    }

    /// Follows a run to its end.
    async fn follow(self, id: String, mut child: Child, mut end: watch::Receiver<bool>) {
        let told = async {
            let stdout = child.stdout.take()?;
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Word::Progress(done)) => self.update(&id, |view| view.progress = done),
                    Ok(last) => return Some(last),
                    Err(_) => return None,
                }
            }
            None
        };
        let last = tokio::select! {
            last = timeout(LONGEST, told) => last.map_err(|_| BenchmarkState::Failed),
            _ = end.wait_for(|end| *end) => Err(BenchmarkState::Cancelled),
        };
        // It is over, or has to be.
        let _ = child.kill().await;
        self.update(&id, |view| {
            view.ended = Some(rfc3339(SystemTime::now()));
            let failed = |text: String| (BenchmarkState::Failed, Some(text), None);
            (view.state, view.message, view.report) = match last {
                Ok(Some(Word::Report(report))) => (BenchmarkState::Done, None, Some(*report)),
                Ok(Some(Word::Failed(why))) => failed(why),
                Ok(Some(Word::Progress(_)) | None) => failed("its process was ended".to_owned()),
                Err(BenchmarkState::Cancelled) => (BenchmarkState::Cancelled, None, None),
                Err(_) => {
                    failed(format!("it was not done within {} minutes", LONGEST.as_secs() / 60))
                }
            };
            if view.state == BenchmarkState::Done {
                view.progress = 1.0;
            }
        });
    }
}

impl Benchmarks for Runs {
    fn start(&self, request: BenchmarkRequest) -> Answer<'_, BenchmarkView> {
        Box::pin(async move {
            if !is_known(&request) {
                return Err(ApiError::Parameter(Error::Filter(request.filter).to_string()));
            }
            let mut table = self.table();
            let running = table.runs.iter().find(|run| run.view.state == BenchmarkState::Running);
            if let Some(run) = running {
                return Err(ApiError::Busy(run.view.id.clone()));
            }
            let child = process(&request).map_err(|error| {
                ApiError::Unavailable(format!("the benchmark's process does not start: {error}"))
            })?;
            table.started += 1;
            let view = BenchmarkView {
                id: table.started.to_string(),
                state: BenchmarkState::Running,
                request,
                started: rfc3339(SystemTime::now()),
                ended: None,
                progress: 0.0,
                message: None,
                report: None,
            };
            let (end, asked) = watch::channel(false);
            table.runs.push_back(Run { view: view.clone(), end });
            if table.runs.len() > KEPT {
                table.runs.pop_front();
            }
            tokio::spawn(self.clone().follow(view.id.clone(), child, asked));
            Ok(view)
        })
    }

    fn list(&self) -> Vec<BenchmarkView> {
        let table = self.table();
        let without = |run: &Run| BenchmarkView { report: None, ..run.view.clone() };
        table.runs.iter().map(without).collect()
    }

    fn get(&self, id: &str) -> Option<BenchmarkView> {
        self.table().runs.iter().find(|run| run.view.id == id).map(|run| run.view.clone())
    }

    fn cancel<'a>(
        &'a self,
        id: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Option<BenchmarkView>> + Send + 'a>> {
        Box::pin(async move {
            let end = self.table().runs.iter().find(|run| run.view.id == id)?.end.clone();
            end.send_replace(true);
            // The follower drops its end once all is over.
            end.closed().await;
            self.get(id)
        })
    }
}

/// This program, as it measures and tells.
fn process(request: &BenchmarkRequest) -> std::io::Result<Child> {
    let scale = match request.scale {
        BenchmarkScale::Quick => "quick",
        BenchmarkScale::Full => "full",
    };
    // The file may have been replaced since; this is what runs.
    Command::new("/proc/self/exe")
        .args(["bench-run", "--scale", scale, "--filter", &request.filter])
        // It ends when this end closes, however the daemon ends.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}
