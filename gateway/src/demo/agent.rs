//! An agent of the demo: the product's own, on its own file, in a thread and a runtime of its own, so that it can
//! end as a process would and come back. Not what is written in its file.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use isthmus_agent::agent::config::{Settings, load};
use isthmus_agent::agent::{self, join_config};
use isthmus_agent::cli::ask::{Question, Where, ask};
use isthmus_certs::Trust;
use isthmus_trust::join::{Context, Party, Token, create};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

use super::Broken;

/// How long a token can be used.
pub(super) const LIFETIME: Duration = Duration::from_mins(15);

/// A port of this machine that nobody else gets: bound for as long as this lives, and never listened on, so that
/// who comes is refused while the agent is away.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    pub(super) fn new() -> Result<Reserved, Broken> {
        let reserve = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            // Whoever listens there sets it, too.
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok::<_, io::Error>(Reserved { address, _socket: socket })
        };
        reserve().map_err(Broken::cannot("reserve a port"))
    }
}

/// An agent that runs, or did.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) settings: Settings,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// It ends when this is dropped.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), agent::Error>>,
}

impl Agent {
    /// Starts it on its file.
    pub(super) async fn start(file: &Path) -> Result<Agent, Broken> {
        let settings = load(file).map_err(Broken::cannot("load agent.yaml"))?;
        let mut agent = Agent { settings, running: None };
        agent.run().await?;
        Ok(agent)
    }

    /// Starts it again, with what it has on disk.
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
        // What it has spawned ends with the runtime, which ends with the thread.
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

    /// Ends it as a killed process ends: its connections with it.
    pub(super) async fn stop(&mut self) -> Result<(), Broken> {
        let Some(running) = self.running.take() else { return Ok(()) };
        // It may be looking at an endpoint, which must not stand still meanwhile.
        let ended = tokio::task::spawn_blocking(|| running.end()).await;
        ended.map_err(Broken::cannot("end an agent"))?
    }

    /// What `isthmus-agent status` shows.
    pub(super) async fn status(&self) -> Result<Value, Broken> {
        self.ask(Question::Status { at: self.admin() }).await
    }

    /// What `isthmus-agent explain` shows.
    pub(super) async fn explain(&self, host: String) -> Result<Value, Broken> {
        self.ask(Question::Explain { host, at: self.admin() }).await
    }

    fn admin(&self) -> Where {
        Where { admin: self.settings.admin.to_string() }
    }

    async fn ask(&self, question: Question) -> Result<Value, Broken> {
        let answer = tokio::task::spawn_blocking(move || ask(&question)).await;
        let answer = answer.map_err(Broken::cannot("ask an agent"))?;
        answer.map_err(Broken::cannot("ask an agent"))
    }

    /// What `isthmus-agent token` and `join` work with.
    pub(super) fn context(&self) -> Result<Context, Broken> {
        let trust = Trust::load(&self.settings.trust).map_err(Broken::cannot("load an agent's identity"))?;
        join_config::context(&self.settings, trust).map_err(Broken::cannot("prepare a join"))
    }

    /// Makes a token for one other cluster.
    pub(super) fn token(&self, guest: Party) -> Result<Token, Broken> {
        let place =
            join_config::meeting_place(&self.settings).map_err(Broken::cannot("say where to join"))?;
        create(&self.context()?, place, guest, LIFETIME).map_err(Broken::cannot("make a token"))
    }

    /// Who it is, to others.
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
        // Whoever wants to know how it ended has stopped it before.
        let _outcome = self.running.take().map(Running::end);
    }
}
