//! Receives a peer's bundles and deny-lists, stores valid ones, and asks again for one that may be accepted later.

use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::TrustDomain;
use isthmus_certs::printable::excerpt;
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::UnixTime;

use isthmus_ads::client::{Refused, Resource, Update};
use isthmus_ads::subscribe::Retry;
use isthmus_grpc::dial::Chain;
use isthmus_proto::type_url::TRUST_BUNDLE;
use isthmus_trust::bundles::{BundleUpdate, Keeper, Refusal, Remedy};

use super::config::Peer;

/// First and longest pause before a bundle is requested again that failed for a reason on this side.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);
/// Longest refusal in characters: it may repeat what the peer has sent.
const LONGEST_WHY: usize = 512;

/// The bundles of one peer's trust domain.
pub(super) struct PeerBundle {
    keeper: Arc<Keeper>,
    domain: TrustDomain,
    /// The peer's certificate chain on this stream.
    chain: Chain,
    waiting: Option<Waiting>,
    pause: Duration,
}

/// A bundle to be requested again.
struct Waiting {
    until: Instant,
    /// On a new stream.
    anew: bool,
    why: String,
}

impl PeerBundle {
    /// None where the peer is of the own trust domain: no peer may change that.
    pub(super) fn new(keeper: Arc<Keeper>, peer: &Peer) -> Option<PeerBundle> {
        let domain = peer.domain.clone();
        let pause = Duration::ZERO;
        (keeper.own() != domain).then(|| PeerBundle {
            keeper,
            domain,
            chain: Chain::new(),
            waiting: None,
            pause,
        })
    }

    /// A new stream, on which the peer sends everything again that was not accepted.
    pub(super) fn begin(&mut self, chain: Chain) {
        self.chain = chain;
        self.waiting = None;
    }

    /// Applies an update; `tell` receives the outcome.
    pub(super) fn apply(
        &mut self,
        update: &Update,
        mut tell: impl FnMut(Result<BundleUpdate, String>),
    ) -> Vec<Refused> {
        let refused = update.resources.iter().filter_map(|resource| {
            let outcome = self.accept(resource);
            tell(outcome.clone().map_err(|refused| format!("{:?}: {}", refused.name, refused.why)));
            outcome.err()
        });
        refused.collect()
    }

    fn accept(&mut self, resource: &Resource) -> Result<BundleUpdate, Refused> {
        let Resource { name, bytes, version: _ } = resource;
        let taken = self.keeper.accept(&self.domain, &self.chain, name, bytes, UnixTime::now());
        self.waiting = None;
        match taken {
            Ok(kept) => {
                self.pause = Duration::ZERO;
                if kept.is_news {
                    tracing::info!(domain = %self.domain, sequence = kept.sequence, "accepted a bundle or deny-list");
                }
                Ok(kept)
            }
            Err(refusal) => {
                let why = refusal_text(&refusal);
                tracing::warn!(domain = %self.domain, name = ?name, why, "a bundle was refused");
                self.wait(refusal.remedy(), &why);
                Err(Refused { name: name.clone(), why })
            }
        }
    }

    fn wait(&mut self, remedy: Remedy, why: &str) {
        let pause = match remedy {
            Remedy::None => return,
            Remedy::Here => self.pause.max(SOONEST),
            // At once the first time: the stream may be older than the certificate.
            Remedy::NewCertificate => self.pause,
        };
        let anew = remedy == Remedy::NewCertificate;
        self.waiting = Some(Waiting { until: Instant::now() + pause, anew, why: why.to_owned() });
        self.pause = (pause * 2).clamp(SOONEST, LATEST);
    }

    /// Completes when a bundle is to be requested again.
    pub(super) async fn retry(&mut self) -> Retry {
        let Some(until) = self.waiting.as_ref().map(|waiting| waiting.until) else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(until).await;
        match self.waiting.take() {
            Some(Waiting { anew: true, why, .. }) => {
                Retry::Stream(format!("reconnecting to see its current certificate: {why}"))
            }
            _ => Retry::Names(TRUST_BUNDLE, vec![self.domain.to_string()]),
        }
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    excerpt(&refusal.to_string(), LONGEST_WHY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_text_is_escaped_and_bounded() {
        let text = refusal_text(&Refusal::Unused(format!("a\u{1b}[2J\n{}", "x".repeat(1 << 20))));
        assert!(text.contains(r"\u{1b}[2J\nx") && text.len() < 2 * LONGEST_WHY, "{}", text.len());
    }
}
