//! What of kube-proxy's work this machine can do, and what is told of it.

use std::path::{Path, PathBuf};

use tracing::warn;
use xdp_lb_api::view::{FeatureView, ReplacementView};
use xdp_lb_plan::kubernetes::Serves;

use super::{Daemon, DaemonError};
use crate::{
    config::{Config, ReplacementMode},
    dataplane::try_hooks,
    error::chain,
    net::orphans,
    stats::columns,
};

/// Something that this machine lacks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Lack {
    /// The features that need it, by their keys
    pub(super) features: &'static str,
    /// What is missing, and what to do about it
    pub(super) why: String,
}

/// The keys of what comes in by devices.
const PACKETS: &str = "nodePort, externalIPs, loadBalancer";

/// What is tried on a machine.
pub(super) trait Machine {
    /// Whether sockets of a cgroup can be served; of its root where none is named.
    fn hooks(&self, cgroup: Option<&Path>) -> Result<PathBuf, String>;
    /// Whether UDP sockets can be ended.
    fn ends_sockets(&self) -> Result<(), String>;
}

/// This one.
pub(super) struct Here;

impl Machine for Here {
    fn hooks(&self, cgroup: Option<&Path>) -> Result<PathBuf, String> {
        try_hooks(cgroup).map_err(|error| chain(&error))
    }

    fn ends_sockets(&self) -> Result<(), String> {
        orphans::is_possible().map_err(|error| {
            format!(
                "UDP sockets cannot be ended ({error}): boot a kernel with CONFIG_INET_DIAG_DESTROY and \
                 CONFIG_INET_UDP_DIAG, or set `socketLB.terminatePodConnections: false`"
            )
        })
    }
}

/// This one, where the programs on a cgroup run: what serves is not tried again, since a passing failure
/// would end it.
pub(super) struct Serving<'a> {
    /// The cgroup that was wanted
    pub(super) wanted: Option<&'a Path>,
    /// Where they are
    pub(super) at: &'a Path,
}

impl Machine for Serving<'_> {
    fn hooks(&self, cgroup: Option<&Path>) -> Result<PathBuf, String> {
        if cgroup == self.wanted { Ok(self.at.to_owned()) } else { Here.hooks(cgroup) }
    }

    fn ends_sockets(&self) -> Result<(), String> {
        Here.ends_sockets()
    }
}

/// Leaves of what is wanted what this machine can do, and returns what it lacks; only `strict` and
/// `probe` ask.
///
/// # Errors
///
/// In mode `strict` where it lacks anything.
pub(super) fn fit(config: &mut Config, machine: &impl Machine) -> Result<Vec<Lack>, DaemonError> {
    let wanted = &mut config.replacement;
    let mut lacks = Vec::new();
    if !matches!(wanted.mode, Some(ReplacementMode::Strict | ReplacementMode::Probe))
        || !wanted.serves.sockets
    {
        return Ok(lacks);
    }
    if let Err(why) = machine.hooks(wanted.sockets.cgroup.as_deref()) {
        wanted.serves.sockets = false;
        lacks.push(Lack { features: "socketLB", why });
    }
    if wanted.sockets.end_orphans
        && let Err(why) = machine.ends_sockets()
    {
        wanted.sockets.end_orphans = false;
        lacks.push(Lack { features: "socketLB.terminatePodConnections", why });
    }
    if wanted.mode == Some(ReplacementMode::Strict) && !lacks.is_empty() {
        return Err(DaemonError::Strict(table(&lacks)));
    }
    Ok(lacks)
}

/// The same for what comes in by devices, which only attaching shows.
///
/// # Errors
///
/// The one given, or in mode `strict` a table with it; nothing in mode `probe`.
pub(super) fn fit_packets(
    config: &mut Config,
    error: DaemonError,
) -> Result<Option<Lack>, DaemonError> {
    let lack = Lack { features: PACKETS, why: chain(&error) };
    match config.replacement.mode {
        Some(ReplacementMode::Strict) => Err(DaemonError::Strict(table(&[lack]))),
        Some(ReplacementMode::Probe) => {
            let sockets = config.replacement.serves.sockets;
            config.replacement.serves = Serves { sockets, ..Serves::NOTHING };
            Ok(Some(lack))
        }
        Some(ReplacementMode::Partial | ReplacementMode::Disabled) | None => Err(error),
    }
}

/// The same at a reload: what devices lacked is lacking still, where they are the same.
pub(super) fn still(config: &mut Config, before: &Config, lacks: &[Lack]) -> Option<Lack> {
    let probing = config.replacement.mode == Some(ReplacementMode::Probe);
    let lack = lacks.iter().find(|one| one.features == PACKETS)?;
    if !probing || config.devices != before.devices {
        return None;
    }
    let sockets = config.replacement.serves.sockets;
    config.replacement.serves = Serves { sockets, ..Serves::NOTHING };
    Some(lack.clone())
}

fn table(lacks: &[Lack]) -> String {
    let mut rows = vec![["FEATURE", "WHAT IS MISSING, AND WHAT TO DO"].map(str::to_owned)];
    rows.extend(lacks.iter().map(|one| [one.features.to_owned(), one.why.clone()]));
    columns(&rows)
}

/// Says what is left to kube-proxy for want of something.
pub(super) fn tell(lacks: &[Lack]) {
    for Lack { features, why } in lacks {
        warn!("left to kube-proxy: {features}: {why}");
    }
}

impl Daemon {
    /// Why a feature is off that was wanted.
    fn lack(&self, feature: &str) -> Option<&str> {
        let lack = self.lacks.iter().find(|one| one.features.split(", ").any(|one| one == feature));
        lack.map(|one| one.why.as_str())
    }

    /// What of kube-proxy's work is done here, as `cilium status --verbose` says it.
    pub(super) fn replacement(&self) -> ReplacementView {
        let config = &self.config;
        let wanted = &config.replacement;
        let Serves { sockets, node_ports, external_ips, load_balancers } = wanted.serves;
        let cluster = config.kubernetes.is_some();
        let feature = |name: &str, key: &str, on: bool, more: String| {
            let why = match self.lack(key) {
                Some(why) => Some(why.to_owned()),
                None if on => None,
                None if !cluster => Some("no cluster is followed".to_owned()),
                None => Some(format!("`{key}` is not wanted")),
            };
            let detail = if on { Some(more).filter(|more| !more.is_empty()) } else { why };
            FeatureView { name: name.to_owned(), enabled: on, detail }
        };
        let range = &wanted.node_ports;
        let range = format!("Range: {}-{}", range.start(), range.end());
        let services = vec![
            feature("ClusterIP", "socketLB", cluster && sockets, String::new()),
            feature("NodePort", "nodePort", cluster && node_ports, range),
            feature("LoadBalancer", "loadBalancer", cluster && load_balancers, String::new()),
            feature("externalIPs", "externalIPs", cluster && external_ips, String::new()),
        ];
        let served = services.iter().filter(|one| one.enabled).count();
        let status = match wanted.mode {
            Some(mode) => capital(mode.as_str()),
            None if served == services.len() => "True".to_owned(),
            None if served == 0 => "False".to_owned(),
            None => "Partial".to_owned(),
        };
        let cgroup = self.sockets.cgroup.as_ref().map(|path| format!("cgroup {}", path.display()));
        let socket_lb = FeatureView {
            name: "Socket LB".to_owned(),
            enabled: sockets && cgroup.is_some(),
            detail: match (sockets, cgroup) {
                (true, Some(cgroup)) => Some(cgroup),
                (true, None) => self.sockets.wrong.clone(),
                (false, _) => self.lack("socketLB").map(str::to_owned),
            },
        };
        let devices = config.devices.iter().map(|device| match self.attached.get(&device.name) {
            Some(link) if link.native => format!("{} (native)", device.name),
            Some(_) => format!("{} (generic)", device.name),
            None => format!("{} (not attached)", device.name),
        });
        let acceleration = match self.attached.values().map(|link| link.native).min() {
            Some(true) => "Native",
            Some(false) => "Generic",
            None => "Disabled",
        };
        ReplacementView {
            status,
            coverage: match (socket_lb.enabled, wanted.sockets.host_only) {
                (false, _) => "None",
                (true, true) => "Hostns-only",
                (true, false) => "Full",
            }
            .to_owned(),
            socket_lb,
            devices: devices.collect(),
            mode: config.kubernetes.as_ref().map_or_else(
                || config.default_mode.as_str().to_owned(),
                |one| one.default_mode.to_string(),
            ),
            xdp_acceleration: acceleration.to_owned(),
            services,
        }
    }
}

/// A word with a capital.
fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    /// A machine that refuses what it is told to.
    #[derive(Default)]
    struct Withheld {
        hooks: Option<&'static str>,
        ends: Option<&'static str>,
    }

    impl Machine for Withheld {
        fn hooks(&self, _: Option<&Path>) -> Result<PathBuf, String> {
            self.hooks.map_or_else(|| Ok("/sys/fs/cgroup".into()), |why| Err(why.to_owned()))
        }

        fn ends_sockets(&self) -> Result<(), String> {
            self.ends.map_or(Ok(()), |why| Err(why.to_owned()))
        }
    }

    const NO_HOOKS: Withheld = Withheld { hooks: Some("no cgroup v2"), ends: Some("no destroy") };

    fn config(mode: &str) -> Config {
        parse(&format!(
            "hashKey: \"00112233445566778899aabbccddeeff\"\ndevices: [{{name: eth0}}]\n\
             kubernetes: {{kubeconfig: /etc/kubeconfig}}\n{mode}\n"
        ))
        .unwrap()
    }

    #[test]
    fn strict_stops_with_all_that_is_missing() {
        let mut strict = config("kubeProxyReplacement: strict");
        assert!(fit(&mut strict, &Withheld::default()).unwrap().is_empty());
        let error = fit(&mut strict, &NO_HOOKS).unwrap_err().to_string();
        for part in ["strict", "no cgroup v2", "no destroy", "probe"] {
            assert!(error.contains(part), "{error}");
        }
        let mut strict = config("kubeProxyReplacement: true");
        let error = DaemonError::NoDevice("eth0".to_owned());
        let error = fit_packets(&mut strict, error).unwrap_err().to_string();
        assert!(error.contains("nodePort, externalIPs, loadBalancer"), "{error}");
    }

    #[test]
    fn probe_leaves_the_rest_to_kube_proxy() {
        let mut probe = config("kubeProxyReplacement: probe");
        let all = probe.replacement.serves;
        assert_eq!(fit(&mut probe, &Withheld::default()).unwrap(), []);
        assert_eq!(probe.replacement.serves, all);
        let lacks = fit(&mut probe, &NO_HOOKS).unwrap();
        assert_eq!(lacks.len(), 2);
        assert_eq!(probe.replacement.serves, Serves { sockets: false, ..all });
        assert!(!probe.replacement.sockets.end_orphans);
        let lack = fit_packets(&mut probe, DaemonError::NoDevice("eth0".to_owned())).unwrap();
        assert!(lack.unwrap().why.contains("eth0"));
        assert_eq!(probe.replacement.serves, Serves::NOTHING);
    }

    #[test]
    fn what_is_named_is_not_tried_before() {
        for mode in [
            "socketLB: {enabled: true}",
            "kubeProxyReplacement: disabled",
            "kubeProxyReplacement: partial\nsocketLB: {enabled: true}",
        ] {
            let mut config = config(mode);
            let before = config.replacement.clone();
            assert_eq!(fit(&mut config, &NO_HOOKS).unwrap(), []);
            assert_eq!(config.replacement, before);
            let error = fit_packets(&mut config, DaemonError::NoDevice("eth0".to_owned()));
            assert!(matches!(error, Err(DaemonError::NoDevice(_))));
        }
    }
}
