//! How many descriptors this program, and what it starts, may have.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as is allowed; gives it.
pub(crate) fn raise_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
