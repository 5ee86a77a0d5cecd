//! Defines the audit log: one line for each decision about a caller, with both identities, the rule and the verdict.
//! `access` decides for new connections, `recheck` for live ones.

mod file;

use std::net::SocketAddr;
use std::time::SystemTime;

use isthmus_certs::SpiffeId;
use isthmus_model::access::{Decision, Verdict};
use isthmus_model::admin::{RuleName, WouldDecide};
use serde::{Serialize, Serializer};

use crate::live::Conn;
use crate::log::rfc3339;
use crate::reason::Reason;
use crate::snapshot::Service;
use crate::worker::Process;

pub(crate) use file::AuditFile;

/// Maximum dry-run rules in a line.
const MAX_DRY_RUN: usize = 8;
/// Maximum characters of a cause; a peer may have chosen some of them.
const MAX_CAUSE: usize = 512;

/// What is decided about the caller of one connection.
#[derive(Debug)]
pub(crate) struct Finding<'a> {
    pub(crate) conn: &'a Conn,
    pub(crate) service: Option<&'a Service>,
    pub(crate) caller: Option<&'a SpiffeId>,
    pub(crate) server: Option<&'a SpiffeId>,
    pub(crate) verdict: Verdict,
    /// What the rules say, where they were asked.
    pub(crate) decision: Option<&'a Decision<'a>>,
    /// The reason of a refusal.
    pub(crate) reason: Option<Reason>,
    /// The cause of a refusal, where it is no rule.
    pub(crate) cause: Option<String>,
}

impl Finding<'_> {
    /// Writes the line, if there is an audit log. Each worker has a lane of the log, and the last is for rechecks.
    pub(crate) fn record(&self, process: &Process, lane: usize) {
        let Some(log) = &process.logs.audit else { return };
        let dry_run = self.decision.iter().flat_map(|decision| &decision.dry_run);
        let line = Line {
            time: rfc3339(SystemTime::now()),
            connection: self.conn.id,
            listener: process.fixed.binds.get(self.conn.listener).map_or("", |bind| &bind.name),
            service: self.service.map(|service| service.host.to_string()),
            port: self.service.map(|service| service.port),
            source: self.conn.client(),
            caller: self.caller,
            server: self.server,
            verdict: self.verdict,
            rule: self.decision.and_then(|decision| decision.rule).map(RuleName::from),
            dry_run: dry_run.take(MAX_DRY_RUN).map(WouldDecide::from).collect(),
            reason: self.reason,
            cause: self.cause.as_deref(),
        };
        log.write(lane, &line);
    }
}

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    connection: u64,
    listener: &'a str,
    service: Option<String>,
    port: Option<u16>,
    source: SocketAddr,
    caller: Option<&'a SpiffeId>,
    server: Option<&'a SpiffeId>,
    verdict: Verdict,
    rule: Option<RuleName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dry_run: Vec<WouldDecide>,
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bounded")]
    cause: Option<&'a str>,
}

fn bounded<S: Serializer>(cause: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    let escaped = cause.unwrap_or_default().escape_debug().take(MAX_CAUSE);
    serializer.serialize_str(&escaped.collect::<String>())
}
