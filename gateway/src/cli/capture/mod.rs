//! Runs `capture`: prints the rules of the file's `capture:`, loads them into the kernel, or removes them. `rules` writes
//! them; the programs `nft` and `ip` do the rest.

mod rules;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};
use isthmus_core::config;
use isthmus_core::config::settings::Settings;
use isthmus_model::Problems;

use self::rules::{Rules, TABLE, removal};
use super::{CaptureCommand, CaptureOptions, say};

/// Runs one of the commands.
pub(crate) fn capture(command: &CaptureCommand) -> anyhow::Result<()> {
    match command {
        CaptureCommand::Print(CaptureOptions { config }) => print(&load_settings(config)?, config),
        CaptureCommand::Apply(CaptureOptions { config }) => apply(&load_settings(config)?, config),
        CaptureCommand::Remove(CaptureOptions { config }) => remove(config),
    }
}

/// Its warnings are told by `check`.
fn load_settings(file: &Path) -> Result<Settings, Problems> {
    config::load_argument(file).map(|(settings, _warnings)| settings)
}

fn rules_of<'a>(settings: &'a Settings, file: &Path) -> anyhow::Result<Rules<'a>> {
    Rules::new(settings).with_context(|| {
        format!(
            "{} has no `capture:`; add `capture: {{ ranges: [CIDR, …] }}` with the virtual addresses",
            file.display()
        )
    })
}

fn print(settings: &Settings, file: &Path) -> anyhow::Result<()> {
    let rules = rules_of(settings, file)?;
    let mut text = String::new();
    if rules.has_tproxy() {
        text += "# `isthmus-gateway capture apply` also runs these commands:\n";
        for command in rules.routing().1 {
            text += &format!("#   ip {command}\n");
        }
    }
    text += &rules.script();
    say(text.trim_end())
}

fn apply(settings: &Settings, file: &Path) -> anyhow::Result<()> {
    let rules = rules_of(settings, file)?;
    if rules.has_tproxy() {
        let (removing, adding) = rules.routing();
        unroute(&removing)?;
        for command in &adding {
            let output = ip(command)?;
            if !output.status.success() {
                bail!("ip {command}: {}{}", errors(&output), privilege());
            }
        }
    }
    load(&rules.script())?;
    say(&format!("the table `{TABLE}` is loaded; `isthmus-gateway capture remove` removes it"))
}

/// Removes the table whatever the file says, and the routes that it names.
fn remove(file: &Path) -> anyhow::Result<()> {
    load(&removal())?;
    let settings = load_settings(file)
        .with_context(|| format!("the table `{TABLE}` is removed, but routes for tproxy may be left"))?;
    if let Some(rules) = Rules::new(&settings) {
        unroute(&rules.routing().0)?;
    }
    say(&format!("the table `{TABLE}` is removed"))
}

/// Runs commands that fail if there is nothing to remove.
fn unroute(commands: &[String]) -> anyhow::Result<()> {
    commands.iter().try_for_each(|command| ip(command).map(|_| ()))
}

fn load(script: &str) -> anyhow::Result<()> {
    let output = run("nft", &["-f", "-"], script).map_err(|error| missing(&error, "nft", "nftables"))?;
    if !output.status.success() {
        bail!("nft refused the rules: {}{}", errors(&output), privilege());
    }
    Ok(())
}

fn ip(command: &str) -> anyhow::Result<Output> {
    let words: Vec<_> = command.split(' ').collect();
    run("ip", &words, "").map_err(|error| missing(&error, "ip", "iproute2"))
}

fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error.
        let _ended = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn missing(error: &io::Error, program: &str, package: &str) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "{program} is not installed: install the package {package}; `isthmus-gateway capture print` shows what it would do"
        ),
        _ => anyhow::anyhow!("cannot run {program}: {error}"),
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn privilege() -> &'static str {
    if rustix::process::geteuid().is_root() { "" } else { "; run it as root, or with CAP_NET_ADMIN" }
}
