//! What the command line says of itself: completions for shells, and man pages.

use std::{fs, io, path::Path};

use clap::Command;
use clap_complete::{Shell, generate};
use clap_mangen::Man;

/// A script that completes the command in a shell.
pub(crate) fn completions(command: &Command, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut visible(command), command.get_name(), &mut script);
    script
}

/// The same command without hidden ones below it, which some shells' scripts would offer.
fn visible(command: &Command) -> Command {
    let below = command.get_subcommands().filter(|one| !one.is_hide_set()).map(visible);
    let mut shown = Command::new(command.get_name().to_owned())
        .args(command.get_arguments().cloned())
        .subcommands(below);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

/// All man pages by the names of their files: the command's own, and one for each command below it.
/// Hidden ones have none.
///
/// # Errors
///
/// Where a page cannot be written into memory.
pub(crate) fn man_pages(mut command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    command.build();
    let mut pages = Vec::new();
    add(&command, command.get_name().to_owned(), &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, name: String, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    // `help` repeats all others.
    let visible = |one: &&Command| !one.is_hide_set() && one.get_name() != "help";
    for below in command.get_subcommands().filter(visible) {
        add(below, format!("{name}-{}", below.get_name()), pages)?;
    }
    let mut page = Vec::new();
    Man::new(command.clone()).section("8").manual("xdp-lb").render(&mut page)?;
    pages.push((format!("{name}.8"), page));
    Ok(())
}

/// Writes all man pages into a directory, which is made where it is not there.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn write_man_pages(command: Command, directory: &Path) -> io::Result<usize> {
    fs::create_dir_all(directory)?;
    let pages = man_pages(command)?;
    for (name, page) in &pages {
        fs::write(directory.join(name), page)?;
    }
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;
    use crate::cli::Cli;

    /// Names of all commands, the parts joined by `-`: those to be seen, and hidden ones.
    fn names(command: &Command, name: &str, shown: &mut Vec<String>, hidden: &mut Vec<String>) {
        for below in command.get_subcommands().filter(|one| one.get_name() != "help") {
            let name = format!("{name}-{}", below.get_name());
            let list = if below.is_hide_set() { &mut *hidden } else { &mut *shown };
            list.push(name.clone());
            names(below, &name, shown, hidden);
        }
    }

    #[test]
    fn every_command_that_is_not_hidden_has_a_page_with_all_its_options() {
        let mut command = Cli::command();
        command.build();
        let (mut shown, mut hidden) = (vec!["xdp-lb".to_owned()], Vec::new());
        names(&command, "xdp-lb", &mut shown, &mut hidden);
        assert!(shown.len() > 15 && !hidden.is_empty(), "{shown:?} {hidden:?}");
        let pages = man_pages(Cli::command()).unwrap();
        let mut files: Vec<String> =
            pages.iter().map(|(file, _)| file.trim_end_matches(".8").to_owned()).collect();
        files.sort();
        shown.sort();
        assert_eq!(files, shown);
        for (file, page) in pages {
            let text = String::from_utf8(page).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{file}: {text}");
            let mut below = &command;
            let path = file.trim_end_matches(".8");
            // Names of commands have hyphens too, so they are followed through the tree.
            let mut rest = path.strip_prefix("xdp-lb").unwrap();
            while let Some(more) = rest.strip_prefix('-') {
                let fits = |one: &&Command| more.starts_with(one.get_name());
                below = below
                    .get_subcommands()
                    .filter(fits)
                    .max_by_key(|one| one.get_name().len())
                    .unwrap();
                rest = &more[below.get_name().len()..];
            }
            for option in below.get_opts().filter(|one| !one.is_hide_set()) {
                let long = option.get_long().unwrap().replace('-', "\\-");
                assert!(text.contains(&format!("\\-\\-{long}")), "{file} lacks --{long}: {text}");
            }
            for name in &hidden {
                assert!(!text.contains(&name.replace('-', "\\-")), "{file} shows {name}");
            }
        }
    }

    #[test]
    fn completions_of_every_shell_know_the_commands_and_no_hidden_one() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(&Cli::command(), *shell)).unwrap();
            for word in ["maglev", "simulate", "doctor", "drain", "pin-dir", "native-or"] {
                let there = script.contains(word);
                assert_eq!(there, word != "native-or", "{shell}: {word}");
            }
            assert!(!script.contains("demo-server"), "{shell} shows what is hidden");
        }
    }
}
