//! Finds the gateway and HAProxy, and what they say of themselves. Installs nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Names HAProxy's program.
const VARIABLE: &str = "ISTHMUS_HAPROXY";

/// What is started.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) gateway: PathBuf,
    pub(super) haproxy: PathBuf,
    /// What both say of themselves.
    pub(super) versions: [String; 2],
}

impl Programs {
    /// Without a path, the gateway is the one beside this program.
    pub(super) fn find(gateway: Option<&Path>) -> anyhow::Result<Self> {
        let gateway = match gateway {
            Some(path) => path.to_owned(),
            None => env::current_exe().context("where this program is")?.with_file_name("isthmus-gateway"),
        };
        let remedy = "build it with `cargo build --release`, or name it with --gateway";
        ensure!(gateway.is_file(), "no gateway at {}; {remedy}", gateway.display());
        let haproxy = haproxy()?;
        let versions = [version(&gateway, "--version"), version(&haproxy, "-v")];
        Ok(Self { gateway, haproxy, versions })
    }
}

fn haproxy() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
        ensure!(path.is_file(), "{VARIABLE} names no program: {}", path.display());
        return Ok(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // Distributions keep proxies where only root's PATH looks.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join("haproxy")).find(|file| file.is_file());
    found.with_context(|| {
        format!("the ingress is HAProxy, and there is no program haproxy in PATH; install it, or name it with {VARIABLE}")
    })
}

/// The first line of the answer.
fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown version").to_owned()
}
