//! Finds the binaries under test: in the target directory of the running tests, or at `ISTHMUS_GATEWAY`,
//! `ISTHMUS_BENCH`, `ISTHMUS_CERTS` and `ISTHMUS_AGENT`. A missing binary is built; an outdated one is not
//! rebuilt.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The directory `target/<profile>` of the running test.
#[must_use]
pub fn profile_folder() -> PathBuf {
    let own = env::current_exe().unwrap();
    // target/<profile>/deps/<test>-<hash>
    own.parent().and_then(Path::parent).unwrap().to_owned()
}

/// The binary of the gateway.
#[must_use]
pub fn gateway() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("isthmus-gateway", "isthmus-gateway", "ISTHMUS_GATEWAY"))
}

/// The binary of the benchmark.
#[must_use]
pub fn bench() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("isthmus-bench", "isthmus-bench", "ISTHMUS_BENCH"))
}

/// The binary of `isthmus-certs`.
#[must_use]
pub fn certs() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("isthmus-certs", "isthmus-certs", "ISTHMUS_CERTS"))
}

/// The binary of the agent.
#[must_use]
pub fn agent() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("isthmus-agent", "isthmus-agent", "ISTHMUS_AGENT"))
}

fn find(package: &str, name: &str, variable: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    let path = profile_folder().join(name);
    if !path.exists() {
        build(&path, package, name);
    }
    path
}

fn build(path: &Path, package: &str, name: &str) {
    let lock = File::create(profile_folder().join("isthmus-tests-build.lock")).unwrap();
    lock.lock().unwrap();
    if path.exists() {
        return;
    }
    let folder = profile_folder();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "-p", package, "--bin", name, "--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(built.success() && path.exists(), "{name} could not be built at {}", path.display());
}

/// Copies the gateway's binary, for users without access to the source tree.
pub(crate) fn copy_to(folder: &Path) -> PathBuf {
    let copy = folder.join("isthmus-gateway");
    fs::copy(gateway(), &copy).unwrap();
    copy
}
