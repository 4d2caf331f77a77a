//! Finds a compiler and a linker that can make an eBPF object together.
//!
//! A toolchain is a directory with `bin/rustc`, `bin/cargo` and, for `-Z build-std`, the standard
//! library's source; that is what rustup installs and links, and what `/usr` is on a distribution.
//! bpf-linker reads the compiler's bitcode, so its LLVM must not be older than the compiler's.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the toolchain to use: a directory, or a toolchain of rustup.
pub(crate) const CHOICE: &str = "XDP_LB_BPF_TOOLCHAIN";

const STD_SOURCE: &str = "lib/rustlib/src/rust/library/core";

/// One line each: it is all that the user sees.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    #[error("bpf-linker, which links eBPF programs, is not installed: run `make setup`")]
    Linker,
    #[error(
        "no Rust toolchain here has the standard library's source, which eBPF programs are built \
         with: run `make setup`, or `rustup toolchain install nightly --component rust-src`"
    )]
    Source,
    #[error(
        "bpf-linker at {linker} has LLVM {linker_llvm}, older than the LLVM {rustc_llvm} of the \
         toolchain in {root}: run `make setup`"
    )]
    NewerLinker { linker: PathBuf, linker_llvm: u32, rustc_llvm: u32, root: PathBuf },
    #[error("{CHOICE}={0} is neither a directory nor a toolchain of rustup: correct or unset it")]
    Choice(String),
    #[error(
        "{CHOICE} names the toolchain in {0}, which lacks rustc, cargo or the standard library's \
         source (rust-src): add them there, or unset the variable and run `make setup`"
    )]
    ChoiceIncomplete(PathBuf),
}

/// The programs that make the object; absolute paths.
pub(crate) struct Tools {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) linker: PathBuf,
}

/// Takes the toolchain that the user named, else the first of those here that is complete and
/// fits the linker.
pub(crate) fn find() -> Result<Tools, Missing> {
    let chosen = env::var(CHOICE).ok().filter(|name| !name.is_empty());
    let roots = match chosen {
        Some(name) => vec![named(&name)?],
        None => installed().into_iter().filter(|root| complete(root)).collect(),
    };
    let linker = linker().ok_or(Missing::Linker)?;
    let linker_llvm = linker_llvm(&linker);

    let mut missing = Missing::Source;
    for root in roots {
        let rustc = root.join("bin/rustc");
        // A version that cannot be told is not held against either: the link shows it.
        if let (Some(linker_llvm), Some(rustc_llvm)) = (linker_llvm, rustc_llvm(&rustc))
            && linker_llvm < rustc_llvm
        {
            missing =
                Missing::NewerLinker { linker: linker.clone(), linker_llvm, rustc_llvm, root };
            continue;
        }
        return Ok(Tools { rustc, cargo: root.join("bin/cargo"), linker });
    }
    Err(missing)
}

fn complete(root: &Path) -> bool {
    ["bin/rustc", "bin/cargo", STD_SOURCE].iter().all(|part| root.join(part).exists())
}

fn named(name: &str) -> Result<PathBuf, Missing> {
    let root = if Path::new(name).is_dir() {
        PathBuf::from(name)
    } else {
        let rustc = output(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]));
        rustc
            .as_deref()
            .and_then(|rustc| Path::new(rustc.trim_end()).ancestors().nth(2))
            .ok_or_else(|| Missing::Choice(name.to_owned()))?
            .to_owned()
    };
    if complete(&root) { Ok(root) } else { Err(Missing::ChoiceIncomplete(root)) }
}

/// The toolchains here: the one that runs this build, then rustup's, nightlies first since they
/// need no permission for `-Z`, then the distribution's.
fn installed() -> Vec<PathBuf> {
    let current = env::var_os("RUSTC")
        .and_then(|rustc| output(Command::new(rustc).args(["--print", "sysroot"])))
        .map(|root| PathBuf::from(root.trim_end()));
    let mut rustup = rustup_toolchains();
    rustup.sort_by_key(|root| {
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned());
        (!name.as_deref().is_some_and(|name| name.starts_with("nightly")), name)
    });
    current.into_iter().chain(rustup).chain([PathBuf::from("/usr")]).collect()
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    home.and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// bpf-linker on the PATH, or where `cargo install` puts it, which root's PATH often lacks.
fn linker() -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|dir| dir.join("bpf-linker"))
        .find(|program| program.is_file())
}

/// bpf-linker hands these arguments to its LLVM, which then tells its own version.
fn linker_llvm(linker: &Path) -> Option<u32> {
    let mut command = Command::new(linker);
    command.args(["--llvm-args=--version", "--output=/dev/null", "/dev/null"]);
    major(&output(&mut command)?, "LLVM version ")
}

fn rustc_llvm(rustc: &Path) -> Option<u32> {
    major(&output(Command::new(rustc).arg("-vV"))?, "LLVM version: ")
}

fn major(text: &str, label: &str) -> Option<u32> {
    let (_, version) = text.split_once(label)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}
