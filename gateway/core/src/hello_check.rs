//! Sends the gateway's own ClientHello to endpoints that rejected clients' hellos or could not be reached, with a name
//! of the service, off the data path and a few at once. An endpoint that answers is no longer demoted; one that does
//! not is tried last, and ejected after repeated failures. `suspects` queues the endpoints.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use isthmus_certs::probe;
use isthmus_health::tcp::has_no_way;
use isthmus_model::sni;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clients;
use crate::connect;
use crate::connect::patience;
use crate::control::Control;
use crate::demotion::Outcome;
use crate::metrics::add;
use crate::proxy;
use crate::snapshot::{Endpoint, Service};
use crate::socket;
use crate::suspects::Suspect;
use crate::worker::Process;

/// Own hellos under way at once.
pub(crate) const AT_ONCE: u16 = 8;
/// Pause after an own hello, before its permit is released.
const PACE: Duration = Duration::from_millis(10);
/// Maximum number of endpoints watched at once.
const WATCHED: usize = 1_024;
/// Interval between own hellos to one endpoint.
const EVERY: Duration = Duration::from_secs(3);
/// Time limit for an endpoint's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Consecutive failures before the endpoint is ejected.
const FAILURES: u32 = 3;
/// Content type of a TLS alert record.
const ALERT: u8 = 21;

/// Checks queued endpoints while the gateway runs.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let Some(mut suspects) = control.process.suspects.taker() else { return Ok(()) };
    let turns = Arc::new(Semaphore::new(AT_ONCE.into()));
    let mut watches = JoinSet::new();
    loop {
        tokio::select! {
            Some(suspect) = suspects.recv() => {
                let watch = Watch { suspect, control: Arc::clone(&control), fails: false, has_ejected: false };
                if watches.len() < WATCHED {
                    watches.spawn(watch.run(Arc::clone(&turns)));
                } else {
                    control.process.metrics.checked(Outcome::Unasked);
                }
            }
            Some(_ended) = watches.join_next() => {}
        }
    }
}

/// Watches one endpoint until it answers or is removed from the tables.
struct Watch {
    suspect: Suspect,
    control: Arc<Control>,
    /// Its last own hello failed.
    fails: bool,
    has_ejected: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.set_failing(false);
        if let Some(endpoint) = self.suspect.endpoint.upgrade() {
            endpoint.demotion().end_check(socket::now());
        }
    }
}

impl Watch {
    async fn run(mut self, turns: Arc<Semaphore>) {
        loop {
            let Ok(turn) = turns.acquire().await else { return };
            let Some(hello) = self.next_hello() else { return };
            let outcome = hello.send(&self.control.process).await;
            self.note(outcome);
            sleep(PACE).await;
            drop(turn);
            if !self.fails {
                return;
            }
            sleep(EVERY).await;
        }
    }

    /// Builds the next hello; the tables may have changed since the last one.
    fn next_hello(&self) -> Option<OwnHello> {
        let tables = self.control.process.tables.load();
        let _still_wanted = tables.live.upstream.demotion?;
        let (service, endpoint) = self.suspect.find(&tables)?;
        OwnHello::for_endpoint(service, endpoint)
    }

    fn note(&mut self, outcome: Outcome) {
        let process = Arc::clone(&self.control.process);
        process.metrics.checked(outcome);
        let tables = process.tables.load();
        let Some((service, endpoint)) = self.suspect.find(&tables) else {
            self.set_failing(false);
            return;
        };
        let now = socket::now();
        let failures = endpoint.state.demotion().checked(outcome, now);
        let (service_name, address) = (service.name(), endpoint.address);
        if self.set_failing(failures > 0 && outcome != Outcome::Alerted) {
            let outcome = outcome.word();
            if self.fails {
                tracing::warn!(service = %service_name, endpoint = %address, outcome, "endpoint does not answer the gateway's own ClientHello; trying it last until it does");
            } else {
                tracing::info!(service = %service_name, endpoint = %address, outcome, "endpoint is no longer tried last");
            }
        }
        let rule = &tables.live.upstream.ejection;
        if outcome == Outcome::Answered && self.has_ejected {
            endpoint.state.readmit();
        } else if failures >= FAILURES && service.may_eject(now, rule) && endpoint.state.eject(now, rule) {
            self.has_ejected = true;
            add(&process.metrics.own_ejections, 1);
            tracing::warn!(service = %service_name, endpoint = %address, outcome = outcome.word(), failures, "endpoint ejected: no answer to the gateway's own ClientHello");
        }
    }

    /// Sets the state; true if it changed.
    fn set_failing(&mut self, fails: bool) -> bool {
        let failing = &self.control.process.suspects.failing;
        match (self.fails, fails) {
            (false, true) => failing.fetch_add(1, Relaxed),
            (true, false) => failing.fetch_sub(1, Relaxed),
            _ => return false,
        };
        self.fails = fails;
        true
    }
}

/// One hello of the gateway itself, ready to be sent.
struct OwnHello {
    to: SocketAddr,
    wire: Vec<u8>,
    patience: Duration,
}

impl OwnHello {
    /// Builds a hello; none if the service has no fixed name to send.
    fn for_endpoint(service: &Service, endpoint: &Endpoint) -> Option<OwnHello> {
        let host = service.own_name()?;
        // Another cluster's gateway knows each port by this form, and may map the bare host to another port.
        let is_bare = service.port == 0 || (service.rules.default_port && endpoint.cluster().is_none());
        let name = if is_bare { host.to_string() } else { sni::name(host.as_str(), service.port) };
        let hello = probe::hello(&name, &clients::bytes(&service.rules.alpn)).ok()?;
        let wire = if service.rules.send_proxy { [&proxy::LOCAL[..], &hello].concat() } else { hello };
        let connect = patience(endpoint, service.rules.timeouts.connect);
        Some(OwnHello { to: endpoint.address, wire, patience: connect })
    }

    async fn send(self, process: &Process) -> Outcome {
        let mut stream = match timeout(self.patience, connect::plain(self.to, process)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if socket::is_local_resource(&error) || has_no_way(&error, self.to) => {
                return Outcome::Unasked;
            }
            Ok(Err(_)) | Err(_) => return Outcome::Unreached,
        };
        timeout(ANSWER, answer(&mut stream, &self.wire)).await.unwrap_or(Outcome::Silent)
    }
}

/// Sends the hello and classifies the first answer.
async fn answer(stream: &mut TcpStream, wire: &[u8]) -> Outcome {
    let mut first = [0];
    // If the write fails, the read tells whether the endpoint closed or reset.
    let _written = stream.write_all(wire).await;
    match stream.read(&mut first).await {
        Ok(0) => Outcome::Closed,
        Ok(_) if first == [ALERT] => Outcome::Alerted,
        Ok(_) => Outcome::Answered,
        Err(_) => Outcome::Reset,
    }
}
