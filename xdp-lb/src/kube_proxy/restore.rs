//! Puts back what was taken out.

use std::{fs, path::Path};

use super::{
    Error, Found, Stage,
    found::{Content, Ipvs},
    iptables::{Save, Table},
    ipvs,
    journal::{Backup, SavedRules},
    keeper, nftables, owner,
    remove::{LABEL, RESTORE},
    tools,
};
use crate::files;

/// Puts rules and manifests back as they were; what was done comes back, a line each.
///
/// # Errors
///
/// Where nothing was taken out, or a tool refuses. It can be run again.
pub fn restore(backup: &Path, manifests: &Path) -> Result<Vec<String>, Error> {
    if !backup.exists() {
        return Err(Error::NothingToRestore(backup.to_owned()));
    }
    let backup = Backup::open(backup)?;
    let found = Found::look(manifests)?;
    found.readable()?;
    let Some(mut journal) = backup.journal()? else {
        return Err(Error::NothingToRestore(backup.directory().to_owned()));
    };
    let mut said = Vec::new();
    if found.runs() && journal.stage != Stage::Stopping {
        said.push("kube-proxy runs: it keeps its rules itself, and none was put back".to_owned());
    } else if matches!(journal.stage, Stage::Saved | Stage::Removed | Stage::Restoring) {
        journal.stage = Stage::Restoring;
        backup.record(&journal)?;
        let mut all: Vec<&SavedRules> = journal.saved.iter().collect();
        // Its sets first: rules of iptables look into them.
        all.sort_by_key(|one| one.kind != "IPVS");
        for saved in all {
            put_back(&found, saved, &backup.read(&saved.file)?)?;
            said.push(format!("rules of {} ({}) are back", saved.kind, saved.family));
        }
        journal.stage = Stage::RulesBack;
        backup.record(&journal)?;
    }
    for family in &journal.keepers {
        keeper::remove(*family)?;
    }
    for manifest in &journal.manifests {
        let kept = backup.kept(manifest);
        // Without it, an earlier run has moved it.
        let Ok(text) = fs::read(&kept) else { continue };
        match fs::read(manifest) {
            Ok(there) if there == text => {
                files::remove(&kept).map_err(Error::file("remove", &kept))?;
            }
            Ok(_) => return Err(Error::ManifestInTheWay { there: manifest.clone(), kept }),
            Err(_) => files::move_to(&kept, manifest).map_err(Error::file("move", &kept))?,
        }
        said.push(format!("{} is back: kubelet starts kube-proxy", manifest.display()));
    }
    backup.close()?;
    if journal.manifests.is_empty() && !found.runs() {
        said.push(format!(
            "start kube-proxy as you stopped it; where it is a DaemonSet: kubectl label node {} {LABEL}-",
            super::process::host_name()
        ));
    }
    Ok(said)
}

/// Puts back rules of one kind and family, whatever of them is there.
fn put_back(found: &Found, saved: &SavedRules, text: &str) -> Result<(), Error> {
    let now = found.rules.iter().find(|one| one.kind == saved.kind && one.family == saved.family);
    match saved.kind.as_str() {
        "nftables" => {
            let table = format!("{} {}", saved.family.nft(), nftables::TABLE);
            let text = format!("add table {table}\ndelete table {table}\n{text}");
            tools::run("nft", &["-f", "-"], &text).map(drop)
        }
        "IPVS" => Ipvs::put_back(text),
        _ => {
            let wrong = |message| Error::Format { command: saved.file.clone(), message };
            let before = Save::parse(text).map_err(wrong)?;
            let nothing = Save::default();
            let (now, program) = match now.map(|one| &one.content) {
                Some(Content::Iptables(one)) => (&one.save, one.restore.clone()),
                _ => {
                    // Nothing is there that would name the program.
                    let variant = saved.kind.trim_start_matches("iptables");
                    (&nothing, format!("{}{variant}-restore", saved.family.iptables()))
                }
            };
            let empty = Table::default();
            let tables = owner::own(&before);
            let text: String = tables
                .iter()
                .map(|(name, own)| own.restoration(name, now.tables.get(name).unwrap_or(&empty)))
                .collect();
            tools::run(&program, &RESTORE, &text).map(drop)
        }
    }
}

impl Ipvs {
    /// Sets, the device with its addresses, and virtual servers, in parts of one file.
    pub(super) fn text(&self) -> String {
        let addresses: String = self.device.iter().map(|ip| format!("{ip}\n")).collect();
        format!("{}---\n{addresses}---\n{}", self.sets, ipvs::restoration(&self.own))
    }

    fn put_back(text: &str) -> Result<(), Error> {
        let mut parts = text.split("---\n");
        let mut part = || parts.next().unwrap_or_default();
        let (sets, addresses, servers) = (part(), part(), part());
        if !sets.is_empty() {
            tools::run("ipset", &["restore", "-exist"], sets)?;
        }
        // It may be there from an earlier run.
        tools::try_run("ip", &["link", "add", ipvs::DEVICE, "type", "dummy"], "")?;
        let addresses = addresses.lines().filter_map(|ip| ip.parse().ok());
        tools::run("ip", &["-batch", "-"], &ipvs::batch("replace", addresses))?;
        // Once more does no harm but an error for each that is there.
        for line in servers.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let Some(ran) = tools::try_run("ipvsadm", &words, "")? else {
                let (what, tool) = ("IPVS".to_owned(), "ipvsadm".to_owned());
                return Err(Error::NoTool { what, tool });
            };
            if !ran.success && !ran.stderr.to_lowercase().contains("exists") {
                let command = tools::line("ipvsadm", &words);
                return Err(Error::Tool { command, message: ran.stderr });
            }
        }
        Ok(())
    }
}
