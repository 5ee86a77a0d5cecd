//! Probes the addresses in other clusters' slices while their agents are unreachable (`stale: probe`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::net::TcpStream;

use isthmus_grpc::resolve;
use isthmus_health::schedule::Answer;
use isthmus_health::tcp::{Asker, probe, reach};
use isthmus_model::address::Target;

use super::locked;
use super::state::State;

/// Probes until dropped.
pub(super) async fn ask(state: Arc<Mutex<State>>) {
    probe(Asking(state)).await;
}

struct Asking(Arc<Mutex<State>>);

impl Asker for Asking {
    fn turn(&self, answers: Vec<(Target, Answer)>, most: usize) -> Vec<Target> {
        let mut state = locked(&self.0);
        let due = state.imports.turn(answers, most, Instant::now());
        state.pass_on();
        due
    }

    fn ask(&self, target: &Target) -> impl Future<Output = Answer> + Send + 'static {
        let (target, state) = (target.clone(), Arc::clone(&self.0));
        async move {
            match resolve::addresses(&target).await {
                Ok(mut addresses) => {
                    if let Target::Name { .. } = target {
                        let state = locked(&state);
                        addresses.retain(|to| state.imports.may_stand_at(&target, to.ip()));
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
