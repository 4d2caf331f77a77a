//! The kube-proxy that runs here.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use crate::config::yaml_to_json;

/// Where kube-proxy tells its mode, unless `--metrics-bind-address` says otherwise.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// How long it may take for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// A kube-proxy that runs in this network namespace.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Process id
    pub id: i32,
    /// Its words
    pub command: Vec<String>,
    /// Who started it
    pub runs_as: RunsAs,
}

/// Who started a process, as its cgroup tells.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RunsAs {
    /// kubelet, from a manifest
    StaticPod,
    /// kubelet, for a Pod of the API server: a DaemonSet's
    DaemonSet,
    /// A unit of systemd
    Unit(String),
    /// Somebody else
    Program,
}

/// How a mode is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ModeFrom {
    /// `/proxyMode` of its metrics port
    Port,
    /// Its command line
    Flag,
    /// The file that `--config` names
    File,
    /// The rules that are there
    Rules,
}

impl ModeFrom {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Port => "it says so on port 10249",
            Self::Flag => "by its command line",
            Self::File => "by its configuration file",
            Self::Rules => "by its rules",
        }
    }
}

/// All that run in this network namespace.
pub(super) fn find() -> Vec<Process> {
    let here = namespace(Path::new("/proc/self"));
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    let found = all.filter_map(|one| {
        let one = one.ok()?;
        let command = one.cmdline().ok()?;
        let directory = PathBuf::from(format!("/proc/{}", one.pid));
        let is_it = is_kube_proxy(&command) && namespace(&directory) == here;
        let runs_as = || runs_as(&fs::read_to_string(directory.join("cgroup")).unwrap_or_default());
        is_it.then(|| Process { id: one.pid, runs_as: runs_as(), command })
    });
    found.collect()
}

fn namespace(process: &Path) -> Option<OsString> {
    Some(fs::read_link(process.join("ns/net")).ok()?.into_os_string())
}

/// Whether a command line is kube-proxy's; a program of many names counts by its second word.
pub(super) fn is_kube_proxy<S: AsRef<str>>(command: &[S]) -> bool {
    let mut words = command.iter().map(|word| word.as_ref());
    let program = words.next().unwrap_or_default();
    match program.rsplit('/').next().unwrap_or_default() {
        "kube-proxy" => true,
        "hyperkube" => words.next().is_some_and(|word| matches!(word, "kube-proxy" | "proxy")),
        _ => false,
    }
}

/// Who started a process, by /proc/PID/cgroup (cgroups(7)).
///
/// The identifiers of Pods from the API server are UUIDs; those of static pods are a hash of the manifest,
/// without hyphens.
fn runs_as(cgroups: &str) -> RunsAs {
    // Those of cgroup v1 are the same, or less precise.
    let paths: Vec<&str> = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    for part in paths.iter().flat_map(|path| path.split('/')) {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        // `kubepods-burstable-podUID.slice` of systemd, `podUID` otherwise.
        let name = part.rsplit('-').next().unwrap_or(part);
        let whole = part.strip_prefix("pod").or_else(|| name.strip_prefix("pod"));
        let Some(uid) = whole else { continue };
        let digits = uid.chars().filter(char::is_ascii_hexdigit).count();
        if digits == 32 && uid.len() == 32 {
            return RunsAs::StaticPod;
        }
        if digits == 32 {
            return RunsAs::DaemonSet;
        }
    }
    let units = paths.iter().filter_map(|path| path.rsplit('/').next());
    match units.into_iter().find(|name| name.ends_with(".service")) {
        Some(unit) if unit.contains("kube-proxy") => RunsAs::Unit(unit.to_owned()),
        _ => RunsAs::Program,
    }
}

impl Process {
    /// Its mode by its command line and the file that this names.
    pub(super) fn mode(&self) -> Option<(String, ModeFrom)> {
        if let Some(mode) = self.flag("--proxy-mode") {
            return Some((mode.to_owned(), ModeFrom::Flag));
        }
        // As the process itself sees the file.
        let file = format!("/proc/{}/root/{}", self.id, self.flag("--config")?);
        let text = fs::read_to_string(file).ok()?;
        let mode = yaml_to_json(&text).ok()?["mode"].as_str()?.to_owned();
        (!mode.is_empty()).then_some((mode, ModeFrom::File))
    }

    /// Name of its node.
    pub(super) fn node(&self) -> String {
        self.flag("--hostname-override").map_or_else(host_name, str::to_owned)
    }

    fn flag(&self, name: &str) -> Option<&str> {
        let at = self.command.iter().position(|word| {
            word == name || word.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
        })?;
        match self.command[at].split_once('=') {
            Some((_, value)) => Some(value),
            None => self.command.get(at + 1).map(String::as_str),
        }
    }
}

/// What kubelet calls this host, unless it was told otherwise.
pub(super) fn host_name() -> String {
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase());
    name.unwrap_or_else(|_| "NODE".to_owned())
}

/// What answers on kube-proxy's port, if anything does: its mode.
pub(super) fn mode_by_port() -> Option<String> {
    let answer = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&METRICS, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.take(4096).read_to_string(&mut text)?;
        Ok(text)
    };
    let answer = answer().ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mode = body.trim();
    let known = ["iptables", "ipvs", "nftables", "kernelspace", "userspace"];
    (head.split(' ').nth(1) == Some("200") && known.contains(&mode)).then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_known_by_their_program_alone() {
        for is in [
            "/usr/local/bin/kube-proxy --config=/x",
            "kube-proxy",
            "/hyperkube kube-proxy --v=2",
            "hyperkube proxy",
        ] {
            assert!(is_kube_proxy(&is.split(' ').collect::<Vec<_>>()), "{is}");
        }
        for is_not in [
            "xdp-lb kube-proxy remove",
            "vi kube-proxy",
            "/hyperkube kubelet",
            "/usr/bin/kube-proxy-exporter",
            "",
        ] {
            assert!(!is_kube_proxy(&is_not.split(' ').collect::<Vec<_>>()), "{is_not}");
        }
    }

    #[test]
    fn cgroups_tell_who_started_a_process() {
        let uuid = "0e5a4f1c-7b52-4a3e-9a30-6b1d2f8f0c11";
        let systemd = uuid.replace('-', "_");
        let of_hash = "kubepods-besteffort-pod9ed24c4c1ab1f0ef0d2e6bb2b2e9a7f1.slice";
        for (cgroups, wanted) in [
            (format!("0::/kubepods/besteffort/pod{uuid}/abcd"), RunsAs::DaemonSet),
            (
                format!("0::/kubepods.slice/kubepods-besteffort-pod{systemd}.slice/cri-x.scope"),
                RunsAs::DaemonSet,
            ),
            (format!("0::/kubepods.slice/{of_hash}/cri-x.scope"), RunsAs::StaticPod),
            (
                "1:name=systemd:/kubepods/pod9ed24c4c1ab1f0ef0d2e6bb2b2e9a7f1/x\n0::/".to_owned(),
                RunsAs::StaticPod,
            ),
            (
                "0::/system.slice/kube-proxy.service".to_owned(),
                RunsAs::Unit("kube-proxy.service".to_owned()),
            ),
            ("0::/system.slice/ssh.service".to_owned(), RunsAs::Program),
            ("0::/".to_owned(), RunsAs::Program),
        ] {
            assert_eq!(runs_as(&cgroups), wanted, "{cgroups}");
        }
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let process = |words: &str| Process {
            id: -1,
            command: words.split(' ').map(str::to_owned).collect(),
            runs_as: RunsAs::Program,
        };
        for words in ["kube-proxy --proxy-mode ipvs", "kube-proxy --v=2 --proxy-mode=ipvs"] {
            assert_eq!(process(words).mode(), Some(("ipvs".to_owned(), ModeFrom::Flag)));
        }
        assert_eq!(process("kube-proxy --proxy-modes x").mode(), None);
    }
}
