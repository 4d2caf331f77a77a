//! Why kube-proxy's work cannot be looked at, taken over or put back.

use std::{io, path::PathBuf};

/// Why kube-proxy's work cannot be looked at, taken over or put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rules and other people's processes are shown to root alone.
    #[error("this needs root: rules of the kernel are neither shown nor changed otherwise")]
    Permission,
    /// A tool says no.
    #[error("`{command}` failed: {message}")]
    Tool {
        /// The command line
        command: String,
        /// What it wrote to standard error
        message: String,
    },
    /// A tool is not there, and the kernel has what it would show.
    #[error(
        "the kernel has {what}, but no program here shows them: install {tool}, then run this again"
    )]
    NoTool {
        /// What the kernel has
        what: String,
        /// The program
        tool: String,
    },
    /// A tool says what nobody here understands.
    #[error("cannot read what `{command}` printed: {message}")]
    Format {
        /// The command line
        command: String,
        /// What is wrong
        message: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was to be done
        what: &'static str,
        /// The file
        path: PathBuf,
        /// The kernel's answer
        source: io::Error,
    },
    /// The journal is not what this program wrote.
    #[error(
        "{} is not what this version of xdp-lb wrote ({message}): use the version that wrote it, or look at \
         the files beside it and move them away", path.display()
    )]
    Journal {
        /// The file
        path: PathBuf,
        /// What is wrong
        message: String,
    },
    /// Somebody else is at it.
    #[error("another `xdp-lb kube-proxy` works with {}: wait until it has ended", .0.display())]
    Busy(PathBuf),
    /// xdp-lb does not serve all that kube-proxy serves.
    #[error(
        "xdp-lb does not serve all that kube-proxy serves: {0} differences, which `xdp-lb kube-proxy \
         takeover` lists. Nothing was changed; --force goes on nevertheless"
    )]
    Differences(usize),
    /// It goes on running.
    #[error(
        "kube-proxy still runs ({who}) after {seconds} s, and none of its rules was removed: {advice}. Then run \
         this again; `xdp-lb kube-proxy restore` takes back what was done"
    )]
    StillRuns {
        /// The processes
        who: String,
        /// How long it was waited for
        seconds: u64,
        /// What ends it
        advice: String,
    },
    /// Established connections would break.
    #[error(
        "the program nft is missing: without it, connections that kube-proxy has translated would break with \
         its last rule. Install nftables, then run this again"
    )]
    NoKeeper,
    /// There is nothing to put back.
    #[error("nothing to restore: {} has no journal of `xdp-lb kube-proxy remove`", .0.display())]
    NothingToRestore(PathBuf),
    /// Another file has come in the manifest's place.
    #[error(
        "{} is there again, and is not the one that was removed ({}): move one of them away, then run this \
         again", there.display(), kept.display()
    )]
    ManifestInTheWay {
        /// Where it belongs
        there: PathBuf,
        /// Where it is kept
        kept: PathBuf,
    },
}

impl Error {
    /// For `map_err` where a file is used.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
