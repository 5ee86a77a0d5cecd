//! Accepts connections: each worker has its own socket on every listener's address, and its part of the sockets that
//! bindings call for. Limits are checked after accept: a permit awaited before it would stall this socket's share of the
//! queue.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::binding_sockets::BindingSocket;
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

/// How long to wait before sockets that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Completes when connections are no longer accepted.
pub(crate) async fn until_leaving(mut phase: watch::Receiver<Phase>) {
    let _over = phase.wait_for(|phase| !phase.accepts()).await;
}

/// Accepts until `end`; then accepts what is still queued and closes the socket, because the kernel resets connections
/// that wait at a closed socket.
pub(crate) async fn accept(
    listener: std::net::TcpListener,
    index: usize,
    lanes: Arc<[Lane]>,
    worker: Arc<Worker>,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut end = std::pin::pin!(end);
    let listener = TcpListener::from_std(listener)?;
    let mut pause = PAUSES.0;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = &mut end => break,
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

/// A socket that is open, until its sender is dropped.
struct Opened {
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<io::Result<()>>,
}

/// Opens and closes this worker's part of the sockets that bindings call for, until the phase ends it.
pub(crate) async fn follow_binding_sockets(
    lanes: Arc<[Lane]>,
    worker: Arc<Worker>,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let mut open: HashMap<BindingSocket, Opened> = HashMap::new();
    let sockets = &worker.process.binding_sockets;
    let mut wanted = sockets.wanted();
    let mut leaving = std::pin::pin!(until_leaving(phase.clone()));
    loop {
        let all = Arc::clone(&wanted.borrow_and_update());
        for (one, Opened { stop, accepting }) in open.extract_if(|one, _| !all.contains(one)) {
            drop(stop);
            // Its address may be asked for again at once.
            accepting.await.map_err(io::Error::other)??;
            sockets.closed(one);
        }
        let is_own = |one: &&BindingSocket| one.belongs_to(worker.index, lanes.len());
        let missing: Vec<_> = all.iter().filter(is_own).filter(|one| !open.contains_key(one)).collect();
        for one in &missing {
            let Some(bind) = worker.process.fixed.binds.get(one.listener) else { continue };
            match socket::listen(bind, one.address, &worker.process.fixed.tcp) {
                Ok(listener) => {
                    let (stop, stopped) = oneshot::channel();
                    let phase = phase.clone();
                    let end = async move {
                        tokio::select! {
                            _ = stopped => {}
                            () = until_leaving(phase) => {}
                        }
                    };
                    let accepting =
                        accept(listener, one.listener, Arc::clone(&lanes), Arc::clone(&worker), end);
                    open.insert(**one, Opened { stop, accepting: tokio::spawn(accepting) });
                    sockets.opened(**one);
                }
                Err(error) => sockets.refused(**one, &bind.name, &error),
            }
        }
        let are_missing = missing.iter().any(|one| !open.contains_key(one));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(RETRY), if are_missing => {}
            () = &mut leaving => break,
        }
    }
    for (_, Opened { accepting, .. }) in open.drain() {
        accepting.await.map_err(io::Error::other)??;
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
