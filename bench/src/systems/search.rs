//! Finds binaries: by environment variable, in a Python virtual environment (several peers are published as
//! wheels), then in PATH. Installs nothing.

use std::env;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Depth of the search below `site-packages`.
const DEPTH: usize = 3;

/// Where to search.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(super) gateway: PathBuf,
    pub(super) baseline: Option<PathBuf>,
    peers_dir: PathBuf,
}

impl Search {
    /// By default the gateway is in the directory of this binary, and the peers are where `tests/run`
    /// installs them.
    pub(crate) fn new(
        gateway: Option<&Path>,
        baseline: Option<&Path>,
        peers_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let beside = env::current_exe()
            .context("cannot determine the path of this binary")?
            .with_file_name("isthmus-gateway");
        Ok(Self {
            gateway: gateway.map_or(beside, Path::to_owned),
            baseline: baseline.map(Path::to_owned),
            peers_dir: peers_dir.unwrap_or(Path::new("target/peers")).to_owned(),
        })
    }

    /// The path of a binary, or an error with the places searched.
    pub(crate) fn find(&self, name: &str, variable: &str) -> Result<PathBuf, String> {
        if let Some(path) = env::var_os(variable).map(PathBuf::from) {
            let found = is_program(&path);
            return if found {
                Ok(path)
            } else {
                Err(format!("{variable}: no such binary: {}", path.display()))
            };
        }
        in_environment(&self.peers_dir, name)
            .or_else(|| in_path(name))
            .ok_or_else(|| format!("{name} is not in --peers-dir or PATH; install it or set {variable}"))
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Distributions install proxies in directories of root's PATH only.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn in_environment(directory: &Path, name: &str) -> Option<PathBuf> {
    let script = directory.join("bin").join(name);
    if is_program(&script) {
        return Some(script);
    }
    let versions = fs::read_dir(directory.join("lib")).ok()?;
    versions.flatten().find_map(|version| below(&version.path().join("site-packages"), name, DEPTH))
}

fn below(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let file = folder.join(name);
    if is_program(&file) {
        return Some(file);
    }
    let deeper = depth.checked_sub(1)?;
    let entries = fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .find_map(|entry| below(&entry.path(), name, deeper))
}

/// Whether the file is an ELF binary: wheels also install scripts of the same name, whose interpreter would
/// be measured.
fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok() && &magic == b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_finds_nested_program_and_ignores_its_wrapper_script() {
        let environment = tempfile::tempdir().unwrap();
        let inside = environment.path().join("lib/python3.1/site-packages/peer/_bin");
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(environment.path().join("bin")).unwrap();
        fs::write(environment.path().join("bin/peer"), "#!/bin/python\n").unwrap();
        fs::write(inside.join("peer"), b"\x7fELF...").unwrap();
        let search = Search::new(None, None, Some(environment.path())).unwrap();
        assert_eq!(search.find("peer", "ISTHMUS_NO_SUCH_VARIABLE").unwrap(), inside.join("peer"));
        let missing = search.find("no-such-peer", "ISTHMUS_NO_SUCH_VARIABLE").unwrap_err();
        assert!(missing.contains("no-such-peer") && missing.contains("ISTHMUS_NO_SUCH_VARIABLE"));
    }
}
