//! Checks live connections again after changes of rules for callers, of callers' addresses, of what the gateway may present,
//! and of trust, and ends those that would be refused by now. A certificate's expiry ends none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::Trust;
use isthmus_certs::trust::Trusted;
use isthmus_model::access::{Caller, Decision, Verdict};
use rustls::pki_types::UnixTime;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::access;
use crate::audit::Finding;
use crate::control::Control;
use crate::live::{Admission, Conn, Target};
use crate::originate;
use crate::reason::Reason;
use crate::snapshot::Snapshot;

/// How often changes are looked for: numbers are compared. Trust has several owners, each with files of its own.
const PACE: Duration = Duration::from_millis(250);

/// The changes that matter, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changes {
    access: u64,
    trust: u64,
    /// Of the trusts by which handshakes are judged, which read the same files at other moments.
    ends: u64,
}

/// Checks live connections after each change, while the gateway runs.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = changes(&control);
    let mut again = false;
    loop {
        pace.tick().await;
        let now = changes(&control);
        let is_news = now != known;
        // Twice: a connection may have been judged by the former state at the moment of the change.
        if is_news || again {
            let control = Arc::clone(&control);
            spawn_blocking(move || check_all(&control)).await.map_err(io::Error::other)?;
        }
        (known, again) = (now, is_news);
    }
}

fn changes(control: &Control) -> Changes {
    let tables = control.process.tables.load();
    Changes {
        access: tables.access_changes,
        trust: control.process.trust.get().map_or(0, |trust| trust.current().epoch),
        ends: tables.ends.trust_changes(),
    }
}

fn check_all(control: &Control) {
    let process = &control.process;
    let tables = process.tables.load_full();
    let trust = process.trust.get().map(Trust::current);
    let now = UnixTime::now();
    let mut ended = 0_usize;
    for conn in control.workers.iter().flat_map(|worker| worker.live.all()) {
        let (admission, target) = (conn.admission(), conn.target());
        let check = Check { conn: &conn, admission: &admission, target: target.as_ref(), tables: &tables };
        let Some(denial) = check.run(trust.as_deref(), now) else { continue };
        if conn.end(denial.reason) {
            ended += 1;
            let finding = Finding {
                conn: &conn,
                service: target.as_ref().map(|target| &*target.service),
                caller: admission.caller.as_ref(),
                server: admission.server.as_ref(),
                verdict: Verdict::Denied,
                decision: denial.decision.as_ref(),
                reason: Some(denial.reason),
                cause: denial.cause,
            };
            finding.record(process, control.workers.len());
        }
    }
    if ended > 0 {
        tracing::info!(connections = ended, "ended live connections that are not allowed any more");
    }
}

/// Why a live connection is not allowed any more.
struct Denial<'a> {
    reason: Reason,
    decision: Option<Decision<'a>>,
    cause: Option<String>,
}

impl Denial<'_> {
    fn of_identity(cause: String) -> Denial<'static> {
        Denial { reason: Reason::IdentityDenied, decision: None, cause: Some(cause) }
    }
}

/// A live connection, and the tables of now.
struct Check<'a> {
    conn: &'a Conn,
    admission: &'a Admission,
    target: Option<&'a Target>,
    tables: &'a Snapshot,
}

impl<'a> Check<'a> {
    fn run(&self, trust: Option<&Trusted>, now: UnixTime) -> Option<Denial<'a>> {
        self.address()
            .or_else(|| self.presented())
            .or_else(|| self.rules())
            .or_else(|| self.chains(trust?, now))
    }

    /// Whether the address has another identity by now.
    fn address(&self) -> Option<Denial<'a>> {
        let (caller, source) = (self.admission.caller.as_ref(), self.conn.client().ip());
        if !self.admission.by_address {
            return None;
        }
        match originate::identity(self.tables, self.conn.listener, source) {
            now if now == caller => None,
            Some(now) => Some(Denial::of_identity(format!("{source} is given to {now} by now"))),
            None => Some(Denial::of_identity(format!("{source} has no identity any more"))),
        }
    }

    /// Whether the agent has taken back the identity that the gateway presents.
    fn presented(&self) -> Option<Denial<'a>> {
        let own = self.admission.presented.as_ref()?;
        let is_taken_back = self.tables.ends.issued.is_taken_back(own);
        is_taken_back.then(|| Denial::of_identity(format!("this gateway may not present {own} any more")))
    }

    /// Whether rules refuse the caller by now: those of the service, or of the endpoint's cluster. A service or endpoint
    /// that is gone refuses nobody.
    fn rules(&self) -> Option<Denial<'a>> {
        let Target { service, endpoint, .. } = self.target?;
        let service = self.tables.service(&service.host, service.port)?;
        let caller = Caller {
            identity: self.admission.caller.as_ref(),
            source: self.conn.client().ip(),
            port: service.port,
        };
        let of_endpoint = || {
            let endpoint = service.endpoints.iter().find(|known| known.address == *endpoint)?;
            endpoint.decide(&caller)
        };
        let is_denied = |decision: &Decision<'_>| decision.verdict == Verdict::Denied;
        let own = service.access().map(|access| access.decide(&caller)).filter(is_denied);
        let decision = own.or_else(|| of_endpoint().filter(is_denied))?;
        Some(Denial { reason: access::refusal(&caller), decision: Some(decision), cause: None })
    }

    /// Whether client or server is not trusted any more.
    fn chains(&self, trust: &Trusted, now: UnixTime) -> Option<Denial<'a>> {
        let mut chains = self.admission.chains.iter().flatten();
        let why = chains.find_map(|chain| chain.check(trust, now).err())?;
        Some(Denial::of_identity(why.to_string()))
    }
}
