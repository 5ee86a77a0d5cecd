//! Finds the programs on the paths: the gateway, and HAProxy as the ingress.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::systems::{GATEWAY, HAPROXY, Search, version};

/// The binaries to start.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) gateway: PathBuf,
    pub(super) haproxy: PathBuf,
    /// Versions of the gateway and of HAProxy.
    pub(super) versions: [String; 2],
}

impl Programs {
    /// Without a path the gateway is searched in the directory of this binary.
    pub(super) fn find(gateway: Option<&Path>) -> anyhow::Result<Self> {
        let search = Search::new(gateway, None, None)?;
        let gateway = GATEWAY.program(&search).map_err(|why| anyhow!(why))?;
        let haproxy = HAPROXY.program(&search).map_err(|why| anyhow!(why));
        let haproxy = haproxy.context("cannot find HAProxy, which is the ingress; install it")?;
        let versions = [version(GATEWAY, &gateway), version(HAPROXY, &haproxy)];
        Ok(Self { gateway, haproxy, versions })
    }
}
