//! Formats a service's name for logs, labels and pages. The names that clients use are in `names`.

use std::fmt;

use super::Service;

/// A service's name, `host:port`; formatted on display.
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
