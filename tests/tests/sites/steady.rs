//! A steady caller: it begins a call at each due time, whether or not the others have ended, and keeps what became of
//! each.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use isthmus_certs::{Peer, Trust, client_config};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::workload::{Greeting, files};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;

use crate::backend::site_of;
use crate::tasks::wait;

/// A call that takes longer has failed. Above `connect_total` of the gateways.
const PATIENCE: Duration = Duration::from_secs(20);
/// At most as many calls are in flight as begin in this time; beyond, the next ones wait.
const BACKLOG: Duration = Duration::from_secs(1);
/// Number of calls that say who serves now.
const LATEST: usize = 20;
/// A TLS record with a part of a handshake.
const HANDSHAKE: u8 = 22;

/// A call that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) started: Instant,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
}

/// What became of a call.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// An endpoint of this site answered.
    Served(String),
    /// It failed before an endpoint's first byte.
    Failed(String),
    /// It failed after an endpoint's first byte.
    Broken(String),
}

/// The caller of one service, until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Steady {
    on: Handle,
    shared: Arc<Shared>,
    pacing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    tls: Arc<ClientConfig>,
    gateway: SocketAddr,
    name: ServerName<'static>,
    calls: Mutex<Vec<Call>>,
    stop: AtomicBool,
    slots: Semaphore,
    all_slots: u32,
}

impl Steady {
    /// Calls a name through a gateway, with the cluster's identity `client`.
    pub(crate) fn start(
        on: &Handle,
        cluster: &Cluster,
        gateway: SocketAddr,
        host: &str,
        pace: Duration,
    ) -> Steady {
        let trust = Trust::load(&files(cluster, "client")).unwrap().current();
        let tls = client_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap();
        let all_slots = u32::try_from(BACKLOG.as_millis() / pace.as_millis()).unwrap();
        let shared = Arc::new(Shared {
            tls: Arc::new(tls),
            gateway,
            name: ServerName::try_from(host.to_owned()).unwrap(),
            calls: Mutex::default(),
            stop: AtomicBool::new(false),
            slots: Semaphore::new(all_slots as usize),
            all_slots,
        });
        let pacing = on.spawn(Arc::clone(&shared).pace(pace));
        Steady { on: on.clone(), shared, pacing: Some(pacing) }
    }

    /// The latest calls that have ended, of those that began at this time or later.
    pub(crate) fn latest(&self, time: Instant) -> Vec<Call> {
        let mut calls = self.since(time);
        calls.truncate(LATEST);
        calls
    }

    /// The calls that have ended so far, and began at this time or later; the last first.
    pub(crate) fn since(&self, time: Instant) -> Vec<Call> {
        let calls = self.shared.calls.lock().unwrap();
        // They stand in the order of their ends.
        let ended_later = calls.iter().rev().take_while(|call| call.started + call.took >= time);
        ended_later.filter(|call| call.started >= time).cloned().collect()
    }

    /// Begins no more calls, waits for the others, and returns all in the order of their beginnings.
    pub(crate) fn end(mut self) -> Vec<Call> {
        self.shared.stop.store(true, SeqCst);
        wait(&self.on, self.pacing.take().unwrap()).unwrap();
        let mut calls = std::mem::take(&mut *self.shared.calls.lock().unwrap());
        calls.sort_by_key(|call| call.started);
        calls
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}

impl Shared {
    async fn pace(self: Arc<Self>, pace: Duration) {
        let mut due = interval(pace);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !self.stop.load(SeqCst) {
            due.tick().await;
            self.slots.acquire().await.unwrap().forget();
            let own = Arc::clone(&self);
            tokio::spawn(async move {
                let call = own.call().await;
                own.calls.lock().unwrap().push(call);
                own.slots.add_permits(1);
            });
        }
        let _all_ended = self.slots.acquire_many(self.all_slots).await.unwrap();
    }

    async fn call(&self) -> Call {
        let started = Instant::now();
        let first = AtomicU8::new(0);
        let answer = match timeout(PATIENCE, self.greeting(&first)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        let outcome = match answer {
            Ok(greeting) => Outcome::Served(site_of(&greeting)),
            Err(why) if first.load(SeqCst) == HANDSHAKE => Outcome::Broken(why),
            Err(why) => Outcome::Failed(why),
        };
        Call { started, took: started.elapsed(), outcome }
    }

    async fn greeting(&self, first: &AtomicU8) -> io::Result<Greeting> {
        let stream = TcpStream::connect(self.gateway).await?;
        stream.set_nodelay(true)?;
        let stream = Noted { stream, first };
        let mut tls = TlsConnector::from(Arc::clone(&self.tls)).connect(self.name.clone(), stream).await?;
        let mut greeting = Greeting::default();
        tls.read_exact(&mut greeting).await?;
        // The call has its answer, however its end goes.
        let _closed = tls.shutdown().await;
        Ok(greeting)
    }
}

/// A stream that notes the first byte that it receives.
struct Noted<'a> {
    stream: TcpStream,
    first: &'a AtomicU8,
}

impl AsyncRead for Noted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(byte) = buf.filled().get(before) {
            let _noted_before = self.first.compare_exchange(0, *byte, SeqCst, SeqCst);
        }
        result
    }
}

impl AsyncWrite for Noted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
