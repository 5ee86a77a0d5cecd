//! Where the gateway's binary is: beside the running tests, or where `ISTHMUS_GATEWAY` says. It is built
//! if it is not there; whoever changes the gateway builds it before testing.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `target/<profile>` of the running test.
#[must_use]
pub fn profile_folder() -> PathBuf {
    let own = env::current_exe().unwrap();
    // target/<profile>/deps/<test>-<hash>
    own.parent().and_then(Path::parent).unwrap().to_owned()
}

/// The gateway's binary.
#[must_use]
pub fn gateway() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = env::var_os("ISTHMUS_GATEWAY") {
            return path.into();
        }
        let path = profile_folder().join("isthmus-gateway");
        if !path.exists() {
            build(&path);
        }
        path
    })
}

fn build(path: &Path) {
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
        .args(["build", "--quiet", "-p", "isthmus-gateway", "--bin", "isthmus-gateway", "--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo builds the gateway");
    assert!(built.success() && path.exists(), "the gateway could not be built at {}", path.display());
}

/// A copy that users without access to the source tree can run.
pub(crate) fn copy_to(folder: &Path) -> PathBuf {
    let copy = folder.join("isthmus-gateway");
    fs::copy(gateway(), &copy).unwrap();
    copy
}
