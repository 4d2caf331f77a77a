//! Builds the eBPF objects into `OUT_DIR`, from where the crate includes them.
//!
//! eBPF is a target without a prebuilt `core`, so this needs a toolchain with the standard
//! library's source and a bpf-linker; [`toolchain`] finds them.
//!
//! What aya's own build helper cannot do, and this can: build without rustup, or with a stable
//! compiler beside which the source lies.

mod toolchain;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use toolchain::{Missing, Tools};

const PACKAGE: &str = "xdp-lb-ebpf";

/// The objects: the package's binaries, what each is called here, and the features that it is built
/// with.
const OBJECTS: [(&str, &str, &str); 4] = [
    (PACKAGE, "xdp-lb.o", ""),
    (PACKAGE, "trace.o", "trace"),
    (PACKAGE, "monitor.o", "monitor"),
    ("xdp-lb-bench-ebpf", "bench.o", ""),
];

/// What the object is made of, besides what cargo itself watches; relative to the workspace.
const SOURCES: [&str; 6] =
    ["Cargo.lock", "Cargo.toml", "ebpf/Cargo.toml", "ebpf/src", "ebpf/abi", "ebpf/datapath"];

/// Variables for the outer build that would change the inner one: its compiler, the wrappers that
/// clippy and editors put around it, and what a user says about the release profile of the daemon.
const NOT_INHERITED: [&str; 5] =
    ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "CARGO_INCREMENTAL"];
const PROFILE_PREFIX: &str = "CARGO_PROFILE_RELEASE_";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("cargo did not set {0} for the build script")]
    NoVariable(&'static str),
    #[error("xdp-lb has no eBPF target for {0}-endian machines")]
    Endian(String),
    #[error("cannot run {program}: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the eBPF program does not build: {0}")]
    Compile(String),
    #[error("cannot copy {from} to {to}: {source}")]
    Copy { from: PathBuf, to: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        // Many lines, as the compiler laid them out: cargo shows stderr of a script that fails.
        Err(Error::Compile(messages)) => {
            eprintln!("{messages}the eBPF program does not build (the messages are above)");
            ExitCode::FAILURE
        }
        // One line: cargo shows it alone, and ends the build by itself.
        Err(error) => {
            say(&format!("error={error}"));
            ExitCode::SUCCESS
        }
    }
}

fn build() -> Result<(), Error> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    for source in SOURCES {
        say(&format!("rerun-if-changed={}", workspace.join(source).display()));
    }
    say(&format!("rerun-if-env-changed={}", toolchain::CHOICE));

    let tools = toolchain::find()?;
    // A newer compiler or linker makes another object.
    say(&format!("rerun-if-changed={}", tools.rustc.display()));
    say(&format!("rerun-if-changed={}", tools.linker.display()));

    let target = target()?;
    let target_dir = out.join("ebpf-target");
    let built = target_dir.join(&target).join("release");
    for (binary, object, features) in OBJECTS {
        compile(&tools, &workspace, &target_dir, (&target, binary, features))?;
        let (from, to) = (built.join(binary), out.join(object));
        fs::copy(&from, &to).map_err(|source| Error::Copy { from, to, source })?;
    }
    Ok(())
}

/// The eBPF target with the byte order of the machine that will run it.
fn target() -> Result<String, Error> {
    match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => Ok("bpfel-unknown-none".to_owned()),
        "big" => Ok("bpfeb-unknown-none".to_owned()),
        other => Err(Error::Endian(other.to_owned())),
    }
}

fn compile(
    tools: &Tools,
    workspace: &Path,
    target_dir: &Path,
    (target, binary, features): (&str, &str, &str),
) -> Result<(), Error> {
    let mut cargo = Command::new(&tools.cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if NOT_INHERITED.contains(&text.as_ref()) || text.starts_with(PROFILE_PREFIX) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .current_dir(workspace)
        .env("RUSTC", &tools.rustc)
        // -Z build-std on a compiler that is not a nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&tools.linker)?)
        // --quiet: what is left on stderr is what the compiler has to say about the program.
        // --locked: the outer build has resolved; this one must not edit the user's lock file.
        .args(["build", "--quiet", "--locked", "--release", "-Zbuild-std=core"])
        .args(["--package", PACKAGE, "--bin", binary, "--target", target])
        .args(["--features", features])
        // The outer cargo holds the lock of its own target directory.
        .arg("--target-dir")
        .arg(target_dir);

    let output =
        cargo.output().map_err(|source| Error::Spawn { program: tools.cargo.clone(), source })?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Error::Compile(messages.into_owned()));
    }
    for line in messages.lines() {
        say(&format!("warning={line}"));
    }
    Ok(())
}

fn rustflags(linker: &Path) -> Result<String, Error> {
    // aya names all RISC-V register layouts after the 64-bit one.
    let mut arch = variable("CARGO_CFG_TARGET_ARCH")?;
    if arch.starts_with("riscv64") {
        "riscv64".clone_into(&mut arch);
    }
    Ok([
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit jumps and arithmetic: every kernel with multi-buffer XDP has them (Linux 5.18).
        "-Ctarget-cpu=v3".to_owned(),
        // Packet bytes and map values are read in words, wherever they lie; without this the
        // compiler reads them byte by byte.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ]
    .join("\x1f"))
}

fn variable(name: &'static str) -> Result<String, Error> {
    env::var(name).map_err(|_| Error::NoVariable(name))
}

#[expect(clippy::print_stdout, reason = "cargo reads the build script's instructions there")]
fn say(instruction: &str) {
    println!("cargo::{instruction}");
}
