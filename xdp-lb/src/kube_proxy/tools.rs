//! The programs whose formats the rules are in.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
    thread,
};

use super::Error;

/// What a program did.
pub(super) struct Ran {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs a program; nothing where it is not installed.
pub(super) fn try_run(program: &str, words: &[&str], input: &str) -> Result<Option<Ran>, Error> {
    let failed = |source: io::Error| Error::Tool {
        command: line(program, words),
        message: source.to_string(),
    };
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        child => child.map_err(failed)?,
    };
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            // A tool that fails early stops reading; its exit status tells more.
            stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
        });
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Some(Ran {
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }))
}

/// Runs a program that must be there and succeed; what it printed comes back.
pub(super) fn run(program: &str, words: &[&str], input: &str) -> Result<String, Error> {
    match try_run(program, words, input)? {
        Some(ran) if ran.success => Ok(ran.stdout),
        Some(ran) => Err(Error::Tool {
            command: line(program, words),
            message: ran.stderr.trim().to_owned(),
        }),
        None => Err(Error::Tool {
            command: line(program, words),
            message: "the program is not installed".to_owned(),
        }),
    }
}

/// Whether a program is installed.
pub(super) fn is_here(program: &str) -> bool {
    let words = ["--version"];
    try_run(program, &words, "").is_ok_and(|ran| ran.is_some())
}

/// A command line for people.
pub(super) fn line(program: &str, words: &[&str]) -> String {
    [&[program], words].concat().join(" ")
}
