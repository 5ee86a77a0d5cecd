//! A service's name as logs, labels and pages show it. Not the names that lead to it: those are `names`.

use std::fmt;

use super::Service;

/// A service's name, `host:port`; made when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(pub(super) &'a Service);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.host, self.0.port)
    }
}

impl serde::Serialize for Name<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
