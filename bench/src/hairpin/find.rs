//! The programs on the paths: the gateway, and HAProxy as the ingress.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::systems::{GATEWAY, HAPROXY, Search, version};

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
        let search = Search::new(gateway, None, None)?;
        let gateway = GATEWAY.program(&search).map_err(|why| anyhow!(why))?;
        let haproxy = HAPROXY.program(&search).map_err(|why| anyhow!(why));
        let haproxy = haproxy.context("the ingress is HAProxy, which must be installed")?;
        let versions = [version(GATEWAY, &gateway), version(HAPROXY, &haproxy)];
        Ok(Self { gateway, haproxy, versions })
    }
}
