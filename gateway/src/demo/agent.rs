//! Runs an agent of the demo on its own file, in its own thread and runtime, so that it can stop as a process does
//! and start again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use isthmus_agent::agent::config::{Settings, load};
use isthmus_agent::agent::{self, join_config};
use isthmus_agent::cli::ask::{Question, Where, ask};
use isthmus_certs::Trust;
use isthmus_model::admin::agent::{Explanation, Status};
use isthmus_trust::join::{Context, Party, Token, create, store};
use serde::de::DeserializeOwned;
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

use super::Broken;

/// Lifetime of the join token.
pub(super) const LIFETIME: Duration = Duration::from_mins(15);

/// A reserved port: bound while this lives and never listened on, so that connections are refused while the agent
/// is stopped.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    pub(super) fn new() -> Result<Reserved, Broken> {
        let reserve = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            // The agent that listens there sets it, too.
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok::<_, io::Error>(Reserved { address, _socket: socket })
        };
        reserve().map_err(Broken::cannot("reserve a port"))
    }
}

/// An agent, running or stopped.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) settings: Settings,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// The agent stops when this is dropped.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), agent::Error>>,
}

impl Agent {
    /// Starts an agent with its configuration file.
    pub(super) async fn start(file: &Path) -> Result<Agent, Broken> {
        let settings = load(file).map_err(Broken::cannot("load agent.yaml"))?;
        let mut agent = Agent { settings, running: None };
        agent.run().await?;
        Ok(agent)
    }

    /// Starts it again with its state on disk.
    pub(super) async fn run(&mut self) -> Result<(), Broken> {
        let settings = self.settings.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Broken::cannot("start a runtime"))?;
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let work = async move {
            let agent = agent::Agent::bind(settings).await?;
            let _waits = ready.send(());
            tokio::select! {
                ended = agent.run() => ended,
                _ = stopped => Ok(()),
            }
        };
        // Its tasks end with the runtime, which ends with the thread.
        let thread = std::thread::Builder::new()
            .name(format!("agent-{}", self.settings.cluster))
            .spawn(move || runtime.block_on(work))
            .map_err(Broken::cannot("start a thread"))?;
        self.running = Some(Running { stop, thread });
        if is_ready.await.is_err() {
            self.stop().await?;
        }
        Ok(())
    }

    /// Stops it as if the process were killed, together with its connections.
    pub(super) async fn stop(&mut self) -> Result<(), Broken> {
        let Some(running) = self.running.take() else { return Ok(()) };
        // It may be checking an endpoint, which must keep running meanwhile.
        let ended = tokio::task::spawn_blocking(|| running.end()).await;
        ended.map_err(Broken::cannot("end an agent"))?
    }

    /// Returns the answer of `isthmus-agent status`.
    pub(super) async fn status(&self) -> Result<Status, Broken> {
        self.ask(Question::Status { at: self.admin() }).await
    }

    /// Returns the answer of `isthmus-agent explain`.
    pub(super) async fn explain(&self, host: String) -> Result<Explanation, Broken> {
        self.ask(Question::Explain { host, identity: None, from: None, at: self.admin() }).await
    }

    fn admin(&self) -> Where {
        Where { admin: self.settings.admin.to_string(), json: true }
    }

    async fn ask<T: DeserializeOwned>(&self, question: Question) -> Result<T, Broken> {
        let answer = tokio::task::spawn_blocking(move || ask(&question)).await;
        let answer = answer.map_err(Broken::cannot("ask an agent"))?;
        answer.map_err(Broken::cannot("ask an agent"))?.page().map_err(Broken::cannot("ask an agent"))
    }

    /// Returns the context of `isthmus-agent token` and `join`.
    pub(super) fn context(&self) -> Result<Context, Broken> {
        let trust = Trust::load(&self.settings.trust).map_err(Broken::cannot("load an agent's identity"))?;
        let store = Arc::new(store(self.state()?));
        join_config::context(&self.settings, trust, store).map_err(Broken::cannot("prepare a join"))
    }

    /// Returns its state directory.
    pub(super) fn state(&self) -> Result<&Path, Broken> {
        join_config::state(&self.settings).map_err(Broken::cannot("find the state directory"))
    }

    /// Creates a join token for another cluster.
    pub(super) fn token(&self, guest: Party) -> Result<Token, Broken> {
        let place =
            join_config::meeting_place(&self.settings).map_err(Broken::cannot("say where to join"))?;
        create(&self.context()?, place, guest, LIFETIME).map_err(Broken::cannot("make a token"))
    }

    /// Returns its cluster and trust domain.
    pub(super) fn party(&self) -> Result<Party, Broken> {
        let trust = Trust::load(&self.settings.trust).map_err(Broken::cannot("load an agent's identity"))?;
        let trust_domain = trust.current().identity.id().trust_domain().clone();
        Ok(Party { cluster: self.settings.cluster.clone(), trust_domain })
    }
}

impl Running {
    fn end(self) -> Result<(), Broken> {
        drop(self.stop);
        let ended = self.thread.join().map_err(|_| Broken::cannot("end an agent")("its thread panicked"))?;
        ended.map_err(Broken::cannot("run an agent"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // `stop` reports the outcome; here it does not matter any more.
        let _outcome = self.running.take().map(Running::end);
    }
}
