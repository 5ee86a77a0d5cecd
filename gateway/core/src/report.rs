//! Composes what the gateway reports to its agent, apart from the data path: the matrix, and the own cluster's endpoints
//! that it found unhealthy. Sending is `isthmus_report::client`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_certs::Trust;
use isthmus_report::client::Reporter;
use isthmus_report::{Report, Unhealthy};
use tokio::time::sleep;

use crate::config::settings::Target;
use crate::control::Control;
use crate::health;
use crate::learn::tls_to_agents;

/// Shortest time between two compositions: many endpoints may change at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Reports to the agents until dropped.
///
/// # Errors
/// TLS cannot be configured from the trust.
pub(crate) async fn keep(agents: Vec<Target>, trust: Trust, control: Arc<Control>) -> io::Result<()> {
    let tls = tls_to_agents(trust, &control.process.fixed.node.cluster)?;
    let reporter = Reporter { agents, tls: Arc::new(tls) };
    // The first report is whole.
    compose(&control);
    tokio::select! {
        () = reporter.keep(control.report.subscribe()) => Ok(()),
        () = keep_composing(&control) => Ok(()),
    }
}

async fn keep_composing(control: &Control) {
    let (mut rows, mut health) = (control.matrix.rows.subscribe(), control.process.health.changes());
    loop {
        tokio::select! {
            Ok(()) = rows.changed() => {}
            Ok(()) = health.changed() => {}
            else => return,
        }
        compose(control);
        sleep(PAUSE).await;
    }
}

fn compose(control: &Control) {
    // Of other clusters' endpoints their own gateways report.
    let own = control.process.health.unhealthy().into_iter().filter(|one| one.cluster.is_none());
    let matrix = control.matrix.rows();
    let report = Report {
        unhealthy: own.map(unhealthy).collect(),
        left_out: 0,
        matrix: matrix.rows.clone(),
        cut_off_since: matrix.cut_off_since,
    };
    control.report.send_if_modified(|known| {
        let is_news = **known != report;
        if is_news {
            *known = Arc::new(report);
        }
        is_news
    });
}

fn unhealthy(one: health::Unhealthy) -> Unhealthy {
    let since = one.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Unhealthy {
        host: one.host,
        port: one.port,
        address: one.endpoint,
        since: since.as_secs(),
        why: one.why.to_string(),
    }
}
