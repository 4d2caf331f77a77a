//! Where the programs of a control plane are.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Directory below cargo's target directory into which `xdp-lb/kubernetes/build` puts them.
const BUILT: &str = "kubernetes";
/// Directory of the programs, as the tools of Kubernetes' own tests name it.
const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// Why there is no control plane.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no Kubernetes control plane is here: {} not found in {}; {}", missing.join(", "), looked(directories), remedy(*named))]
pub struct NoAssets {
    missing: Vec<&'static str>,
    directories: Vec<PathBuf>,
    named: bool,
}

fn looked(directories: &[PathBuf]) -> String {
    let names: Vec<_> = directories.iter().map(|one| one.display().to_string()).collect();
    if names.is_empty() { "any target directory".to_owned() } else { names.join(", ") }
}

fn remedy(named: bool) -> &'static str {
    if named {
        "KUBEBUILDER_ASSETS names a directory with all of them (setup-envtest has no \
         kube-controller-manager: add it)"
    } else {
        "`make kubernetes` builds them with Go 1.26 in about nine minutes, or set \
         KUBEBUILDER_ASSETS to a directory that has them"
    }
}

/// The programs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assets {
    pub(super) etcd: PathBuf,
    pub(super) api_server: PathBuf,
    pub(super) controller_manager: PathBuf,
    pub(super) kubectl: PathBuf,
}

impl Assets {
    /// Finds them: where `KUBEBUILDER_ASSETS` says, otherwise in `kubernetes` of the target
    /// directory that this program was built into.
    ///
    /// # Errors
    ///
    /// Where one is missing; says how to get it.
    pub fn find() -> Result<Self, NoAssets> {
        let program = env::current_exe().unwrap_or_default();
        Self::find_for(env::var_os(VARIABLE), &program)
    }

    fn find_for(variable: Option<OsString>, program: &Path) -> Result<Self, NoAssets> {
        let named = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
        let directories: Vec<PathBuf> = match &named {
            Some(directory) => vec![directory.clone()],
            None => {
                let all = program.ancestors().skip(1).map(|above| above.join(BUILT));
                // The sources have a directory of that name, too.
                all.filter(|one| one.is_dir() && !one.join("go.mod").exists()).collect()
            }
        };
        let mut missing = Vec::new();
        let mut find = |name: &'static str| {
            let found = directories.iter().map(|one| one.join(name)).find(|path| path.is_file());
            found.unwrap_or_else(|| {
                missing.push(name);
                PathBuf::new()
            })
        };
        let assets = Self {
            etcd: find("etcd"),
            api_server: find("kube-apiserver"),
            controller_manager: find("kube-controller-manager"),
            kubectl: find("kubectl"),
        };
        if missing.is_empty() {
            Ok(assets)
        } else {
            Err(NoAssets { missing, directories, named: named.is_some() })
        }
    }

    /// The command line client.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ALL: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

    fn directory(name: &str, programs: &[&str]) -> PathBuf {
        let at = env::temp_dir().join(format!("xdp-lb-assets-{}-{name}", std::process::id()));
        fs::create_dir_all(at.join(BUILT)).unwrap();
        for program in programs {
            fs::write(at.join(BUILT).join(program), "").unwrap();
        }
        at
    }

    #[test]
    fn programs_are_found_above_the_own_one_or_where_the_variable_says() {
        let target = directory("whole", &ALL);
        let program = target.join("debug/deps/a-test");
        let found = Assets::find_for(None, &program).unwrap();
        assert_eq!(found.kubectl, target.join("kubernetes/kubectl"));
        // An empty variable is none.
        assert_eq!(Assets::find_for(Some("".into()), &program), Ok(found.clone()));
        let named = Some(target.join(BUILT).into());
        assert_eq!(Assets::find_for(named, Path::new("/usr/bin/xdp-lb")), Ok(found));
        fs::remove_dir_all(target).unwrap();
    }

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        let target = directory("part", &["etcd", "kube-apiserver", "kubectl"]);
        let error = Assets::find_for(None, &target.join("debug/xdp-lb")).unwrap_err().to_string();
        assert!(error.contains("here: kube-controller-manager not found"), "{error}");
        assert!(error.contains("`make kubernetes` builds them"), "{error}");
        let named = Some(target.join(BUILT).into());
        let error = Assets::find_for(named, Path::new("/usr/bin/xdp-lb")).unwrap_err().to_string();
        assert!(error.contains("setup-envtest has no"), "{error}");
        fs::remove_dir_all(target).unwrap();
    }
}
