//! Edits of the configuration file → control.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::control::Control;

/// Puts edits of `file` live, for ever.
pub(crate) async fn follow(file: PathBuf, control: Arc<Control>) -> io::Result<()> {
    let _ = (file, control);
    std::future::pending().await
}
