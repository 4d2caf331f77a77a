//! Manifests of static pods that run kube-proxy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Error, process::is_kube_proxy};
use crate::config::yaml_to_json;

/// Those in a directory; none where it is not there.
pub(super) fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("read", directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", directory))?.path();
        // kubelet passes over them, too.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if hidden || !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        if runs_kube_proxy(&text) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a manifest is of a Pod with a container that runs kube-proxy.
fn runs_kube_proxy(text: &str) -> bool {
    let Ok(pod) = yaml_to_json(text) else { return false };
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let words = |list: &Value| -> Vec<String> {
        let words = list.as_array().into_iter().flatten();
        words.filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    let runs_it = |one: &Value| {
        let command = [words(&one["command"]), words(&one["args"])].concat();
        // In a shell's script, too.
        let shell = command.iter().flat_map(|word| word.split_whitespace());
        let image = one["image"].as_str().unwrap_or_default();
        let image = image.rsplit('/').next().unwrap_or_default();
        is_kube_proxy(&command)
            || shell.into_iter().any(|word| is_kube_proxy(&[word]))
            || image.split([':', '@']).next() == Some("kube-proxy")
    };
    pod["kind"] == "Pod" && containers.into_iter().any(runs_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(container: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - {container}\n")
    }

    #[test]
    fn pods_are_known_by_what_they_run_and_not_by_their_name() {
        for is in [
            "{name: a, image: x, command: [/usr/local/bin/kube-proxy, --v=2]}",
            "{name: a, image: \"registry.example.org:5000/kube-proxy:v1.36.3\"}",
            "{name: a, image: x, command: [/bin/sh, -c, \"exec kube-proxy --v=2\"]}",
        ] {
            assert!(runs_kube_proxy(&pod(is)), "{is}");
        }
        for is_not in [
            "{name: kube-proxy, image: \"example.org/kube-proxy-exporter:1\"}",
            "{name: a, image: x, command: [kube-apiserver]}",
        ] {
            assert!(!runs_kube_proxy(&pod(is_not)), "{is_not}");
        }
        assert!(!runs_kube_proxy("kind: ["));
        assert!(!runs_kube_proxy("kind: Pod"));
    }
}
