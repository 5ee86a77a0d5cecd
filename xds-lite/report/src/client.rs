//! Sends a gateway's reports to one of its agents: when a state changes, and every few seconds as a sign of life.
//! Reconnects with backoff; an agent that knows no reports is asked again rarely.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use isthmus_ads::backoff::Backoff;
use isthmus_certs::Client;
use isthmus_certs::causes::with_causes;
use isthmus_grpc::budget::LogLimiter;
use isthmus_grpc::dial::dial_with_chain;
use isthmus_grpc::revocation_watch::until_distrusted;
use isthmus_model::address::Target;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::stubs::reports_client::ReportsClient;
use crate::wire::Report;

/// Longest time between two messages.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Shortest time between two messages.
const GAP: Duration = Duration::from_secs(1);
/// Pause after an agent that knows no reports.
const UNKNOWN: Duration = Duration::from_secs(300);

/// The agents to report to, and how.
#[derive(Debug)]
pub struct Reporter {
    /// The agents, in the order in which they are tried.
    pub agents: Vec<Target>,
    /// TLS, with the identities that agents must have.
    pub tls: Arc<Client>,
}

/// Why a stream ended.
enum Ended {
    /// The agent is of a version without reports.
    Unknown,
    /// The connection was lost, or not made.
    Lost(String),
    /// The agent refuses what is sent.
    Refused(String),
}

impl Reporter {
    /// Reports until dropped.
    pub async fn keep(self, mut reports: watch::Receiver<Arc<Report>>) {
        let (mut backoff, refusals) = (Backoff::default(), LogLimiter::default());
        if self.agents.is_empty() {
            return std::future::pending().await;
        }
        loop {
            for agent in &self.agents {
                let began = Instant::now();
                let pause = match self.stream(agent, &mut reports).await {
                    Ended::Unknown => {
                        tracing::debug!(%agent, "the agent takes no reports; it is of an earlier version");
                        UNKNOWN.mul_f64(0.5 + fastrand::f64())
                    }
                    Ended::Lost(why) => {
                        tracing::debug!(%agent, why, "reports interrupted");
                        backoff.next(Some(began.elapsed()), fastrand::f64())
                    }
                    Ended::Refused(why) => {
                        if refusals.allows(1) {
                            tracing::warn!(%agent, why, "the agent refuses the reports of this gateway; retrying");
                        }
                        backoff.next(None, fastrand::f64())
                    }
                };
                sleep(pause).await;
            }
        }
    }

    async fn stream(&self, agent: &Target, reports: &mut watch::Receiver<Arc<Report>>) -> Ended {
        let (channel, chain) = match dial_with_chain(agent, &self.tls, None).await {
            Ok(dialled) => dialled,
            Err(error) => return Ended::Lost(with_causes(&error)),
        };
        let mut distrusted = pin!(until_distrusted(self.tls.standing(&chain)));
        let (sender, sent) = mpsc::channel(1);
        let mut client = ReportsClient::new(channel);
        let mut answer = pin!(client.report(ReceiverStream::new(sent)));
        let mut feeding = pin!(feed(reports, sender));
        tokio::select! {
            why = &mut distrusted => Ended::Lost(format!("the agent is no longer trusted: {why}")),
            ended = &mut answer => match ended {
                Ok(_) => Ended::Lost("the agent ended the stream".to_owned()),
                Err(status) => match status.code() {
                    Code::Unimplemented => Ended::Unknown,
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted => {
                        Ended::Lost(status.message().to_owned())
                    }
                    code => Ended::Refused(format!("{code:?}: {}", status.message())),
                },
            },
            never = &mut feeding => match never {},
        }
    }
}

/// Sends the reports of one stream. The stream's end is seen in its answer.
async fn feed(
    reports: &mut watch::Receiver<Arc<Report>>,
    sender: mpsc::Sender<isthmus_proto::isthmus::v1::GatewayReport>,
) -> std::convert::Infallible {
    let mut before: Option<Arc<Report>> = None;
    loop {
        let report = Arc::clone(&reports.borrow_and_update());
        if sender.send(report.message(before.as_deref())).await.is_err() {
            return std::future::pending().await;
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        sleep(GAP).await;
        let is_urgent = |now: &Arc<Report>| now.differs_in_state(&report);
        tokio::select! {
            Ok(_) = reports.wait_for(is_urgent) => {}
            () = sleep_until(heartbeat) => {}
        }
        before = Some(report);
    }
}
