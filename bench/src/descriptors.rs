//! Raises the limit of open files for this program and its children.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit; returns it.
pub(crate) fn raise_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
