//! Admin, metrics and health over HTTP.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use crate::control::Control;

pub(crate) async fn serve_admin(_: TcpListener, _: Arc<Control>) -> io::Result<()> {
    std::future::pending().await
}
pub(crate) async fn serve_metrics(_: TcpListener, _: Arc<Control>) -> io::Result<()> {
    std::future::pending().await
}
pub(crate) async fn serve_health(_: TcpListener, _: Arc<Control>) -> io::Result<()> {
    std::future::pending().await
}
