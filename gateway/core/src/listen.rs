//! Accepts connections: each worker has its own socket on every listener's address. Limits are checked after accept: a
//! permit awaited before it would stall this socket's share of the queue.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

use crate::conn::serve;
use crate::drain::Phase;
use crate::metrics::add;
use crate::socket;
use crate::worker::Worker;

/// An accepted connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    client: std::net::TcpStream,
    listener: usize,
    peer: SocketAddr,
}

/// The channel through which a worker receives connections that another one accepted.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) worker: Arc<Worker>,
    pub(crate) door: UnboundedSender<Accepted>,
}

/// Reuse-port sockets distribute connections by hash, so a few long ones land unevenly. A worker with more than this
/// many connections above another's hands new ones over.
const UNEVEN: usize = 8;
/// Minimum and maximum pause when descriptors have run out.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// Accepts until the phase ends it; then accepts what is still queued and closes the socket, because the kernel resets
/// connections that wait at a closed socket.
pub(crate) async fn accept(
    listener: std::net::TcpListener,
    index: usize,
    lanes: Arc<[Lane]>,
    worker: Arc<Worker>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut pause = PAUSES.0;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| !phase.accepts()) => break,
        };
        match accepted {
            Ok((client, peer)) => {
                pause = PAUSES.0;
                hand_over(client, index, peer, &lanes, &worker);
            }
            Err(error) if socket::is_local_resource(&error) => {
                add(&worker.counters.accept_pauses, 1);
                if worker.process.may_warn() {
                    tracing::warn!(%error, "cannot accept; raise the descriptor limit or lower limits.connections");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            // This client disconnected or its network failed; accepting goes on with the next one.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
    let listener = listener.into_std()?;
    while let Ok((client, peer)) = listener.accept() {
        client.set_nonblocking(true)?;
        begin(Accepted { client, listener: index, peer }, &worker);
    }
    Ok(())
}

/// Serves connections that other workers hand over.
pub(crate) async fn take_over(mut door: UnboundedReceiver<Accepted>, worker: Arc<Worker>) -> io::Result<()> {
    while let Some(accepted) = door.recv().await {
        begin(accepted, &worker);
    }
    Ok(())
}

fn hand_over(client: TcpStream, listener: usize, peer: SocketAddr, lanes: &[Lane], worker: &Arc<Worker>) {
    let ours = worker.live.len();
    match lanes.iter().find(|lane| lane.worker.live.len() + UNEVEN < ours) {
        None => {
            tokio::spawn(serve(client, listener, socket::canonical(peer), Arc::clone(worker)));
        }
        Some(lane) => {
            let Ok(client) = client.into_std() else { return };
            if let Err(nobody) = lane.door.send(Accepted { client, listener, peer }) {
                begin(nobody.0, worker);
            }
        }
    }
}

fn begin(Accepted { client, listener, peer }: Accepted, worker: &Arc<Worker>) {
    match TcpStream::from_std(client) {
        Ok(client) => {
            tokio::spawn(serve(client, listener, socket::canonical(peer), Arc::clone(worker)));
        }
        Err(error) => tracing::debug!(%error, "cannot register the accepted socket"),
    }
}
