//! Probes the addresses in other clusters' slices while their agents are unreachable (`stale: probe`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;

use isthmus_grpc::resolve;
use isthmus_health::schedule::Answer;
use isthmus_health::tcp::{Asker, reach, run_probes};
use isthmus_model::address::Target;

use super::peers::Peers;

/// Probes until dropped.
pub(super) async fn ask(peers: Arc<Peers>) {
    run_probes(Asking(peers)).await;
}

struct Asking(Arc<Peers>);

impl Asker for Asking {
    fn poll(&self, answers: Vec<(Target, Answer)>, most: usize) -> Vec<Target> {
        self.0.advance_probes(answers, most, Instant::now())
    }

    fn ask(&self, target: &Target) -> impl Future<Output = Answer> + Send + 'static {
        let (target, peers) = (target.clone(), Arc::clone(&self.0));
        async move {
            match resolve::addresses(&target).await {
                Ok(mut addresses) => {
                    if let Target::Name { .. } = target {
                        addresses.retain(|to| peers.may_stand_at(&target, to.ip()));
                    }
                    reach(&addresses, connect).await
                }
                // A name that does not resolve says nothing about the endpoint.
                Err(_) => Answer::Unasked,
            }
        }
    }
}

async fn connect(to: SocketAddr) -> io::Result<()> {
    TcpStream::connect(to).await.map(drop)
}
