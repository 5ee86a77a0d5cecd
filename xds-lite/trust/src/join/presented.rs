//! Verifies a chain against a root that is sent with it: some agent holds the key, and that root vouches for
//! it. Whether to trust the root is decided elsewhere: by the token's hash on one side, by the proof of the
//! secret on the other. Pure.

use isthmus_certs::bundle::BundleError;
use isthmus_certs::facts::Facts;
use isthmus_certs::{KeyPin, Role, SpiffeId, TrustBundles, VerifyError, peer_id};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::Party;

/// Leaf, intermediates, and the roots of a roll-over.
pub(super) const MOST: usize = 8;

/// An agent, and the root that vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PresentedAgent {
    pub(super) id: SpiffeId,
    pub(super) party: Party,
    pub(super) root: CertificateDer<'static>,
}

/// The agent that a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The key of its root.
    pub(super) root: KeyPin,
    /// Its party.
    pub(super) party: Party,
}

/// Why a chain does not identify an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresentedError {
    /// There are too many certificates.
    #[error("{0} certificates were sent; a chain and its roots have at most {MOST}")]
    Many(usize),
    /// The chain comes without its root.
    #[error("no root was sent with the chain; the other side must be an Isthmus agent with a join endpoint")]
    NoRoot,
    /// The root is not the token's.
    #[error(
        "no root with the token's key {0} was sent: another server answers at this address, or the root was replaced after the token was made"
    )]
    OtherRoot(KeyPin),
    /// The root is not a valid CA certificate.
    #[error(transparent)]
    Root(#[from] BundleError),
    /// The chain does not lead to the root.
    #[error(transparent)]
    Chain(#[from] VerifyError),
    /// The identity is not an agent's.
    #[error("{0} is not an agent; an agent's identity is spiffe://TRUST-DOMAIN/isthmus/CLUSTER/agent/NAME")]
    NoAgent(SpiffeId),
    /// The agent belongs to another cluster.
    #[error("this is an agent of {found}, but {expected} was expected")]
    OtherParty {
        /// The cluster of the agent.
        found: Party,
        /// The expected cluster.
        expected: Party,
    },
}

/// Verifies a chain, leaf first, against a root sent with it: the wanted one, or any.
pub(super) fn prove(
    chain: &[CertificateDer<'_>],
    role: Role,
    wanted: Option<&Wanted>,
    now: UnixTime,
) -> Result<PresentedAgent, PresentedError> {
    if chain.len() > MOST {
        return Err(PresentedError::Many(chain.len()));
    }
    let id = peer_id(chain).map_err(VerifyError::from)?;
    let party = Party::of_agent(&id).ok_or_else(|| PresentedError::NoAgent(id.clone()))?;
    let pin = wanted.map(|wanted| wanted.root);
    let mut refused = pin.map_or(PresentedError::NoRoot, PresentedError::OtherRoot);
    for root in chain.iter().skip(1).filter(|shown| is_root(shown, pin)) {
        match verify(chain, root, &id, role, now) {
            Ok(()) => {
                expect(&party, wanted)?;
                return Ok(PresentedAgent { id, party, root: root.clone().into_owned() });
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn expect(found: &Party, wanted: Option<&Wanted>) -> Result<(), PresentedError> {
    match wanted {
        Some(wanted) if wanted.party != *found => {
            Err(PresentedError::OtherParty { found: found.clone(), expected: wanted.party.clone() })
        }
        _ => Ok(()),
    }
}

/// Verifies against this root alone.
fn verify(
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    id: &SpiffeId,
    role: Role,
    now: UnixTime,
) -> Result<(), PresentedError> {
    let mut only = TrustBundles::new();
    only.add_root(id.trust_domain().clone(), root)?;
    only.verify(chain, role, now)?;
    Ok(())
}

fn is_root(certificate: &CertificateDer<'_>, pin: Option<KeyPin>) -> bool {
    Facts::read(certificate).is_ok_and(|facts| facts.is_root() && pin.is_none_or(|pin| pin == facts.pin))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, KeyKind, TrustDomain};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority(domain: &str) -> Authority {
        Authority::generate(TrustDomain::new(domain).unwrap()).unwrap()
    }

    fn wanted(root: &Authority, cluster: &str) -> Wanted {
        let party = Party { cluster: cluster.parse().unwrap(), trust_domain: root.trust_domain().clone() };
        Wanted { root: Facts::read(root.certificate()).unwrap().pin, party }
    }

    fn chain(authority: &Authority, id: &str, roots: &[&Authority]) -> Vec<CertificateDer<'static>> {
        let identity = authority.issue(&SpiffeId::parse(id).unwrap(), &[], HOUR).unwrap();
        let roots = roots.iter().map(|root| root.certificate().clone());
        identity.chain().iter().cloned().chain(roots).collect()
    }

    const AGENT: &str = "spiffe://east.example/isthmus/east/agent/a";

    #[test]
    fn chain_with_its_root_identifies_an_agent() {
        let (east, other) = (authority("east.example"), authority("east.example"));
        let below = east.intermediate("east", KeyKind::P256, HOUR * 2).unwrap();
        for chain in [chain(&east, AGENT, &[&east]), chain(&below, AGENT, &[&other, &east])] {
            for wanted in [None, Some(&wanted(&east, "east"))] {
                let shown = prove(&chain, Role::Server, wanted, UnixTime::now()).unwrap();
                assert_eq!(shown.root, *east.certificate());
                assert_eq!((shown.id.to_string().as_str(), shown.party.cluster.as_str()), (AGENT, "east"));
            }
        }
    }

    #[test]
    fn chain_refusal_names_its_own_reason() {
        let [east, other] = [(); 2].map(|()| authority("east.example"));
        let west = authority("west.example");
        let (token, north) = (wanted(&east, "east"), wanted(&east, "north"));
        let gateway = "spiffe://east.example/isthmus/east/gateway/a";
        let long = vec![east.certificate().clone(); MOST + 1];
        for (what, chain, wanted, expected) in [
            ("nothing", vec![], None, "no certificate"),
            ("too many", long, None, "at most 8"),
            ("no root", chain(&east, AGENT, &[]), None, "no root was sent"),
            ("another's root alone", chain(&east, AGENT, &[&other]), None, "does not verify"),
            ("his own root", chain(&other, AGENT, &[&other]), Some(&token), "no root with the token's key"),
            ("his own chain, the true root", chain(&other, AGENT, &[&east]), Some(&token), "does not verify"),
            ("both roots", chain(&other, AGENT, &[&other, &east]), Some(&token), "does not verify"),
            ("another domain's root", chain(&east, AGENT, &[&west]), None, "is it the right file"),
            ("a gateway", chain(&east, gateway, &[&east]), Some(&token), "is not an agent"),
            (
                "another cluster",
                chain(&east, AGENT, &[&east]),
                Some(&north),
                "north (east.example) was expected",
            ),
        ] {
            let error = prove(&chain, Role::Server, wanted, UnixTime::now()).unwrap_err().to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
        let late = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + HOUR * 2);
        let error = prove(&chain(&east, AGENT, &[&east]), Role::Client, Some(&token), late).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
    }

    #[test]
    fn agent_identity_has_one_form() {
        let party = |path: &str| Party::of_agent(&SpiffeId::parse(&format!("spiffe://a{path}")).unwrap());
        assert_eq!(party("/isthmus/west/agent/x").unwrap().cluster.as_str(), "west");
        for other in [
            "",
            "/isthmus/west/agent",
            "/isthmus/west/agent/x/y",
            "/isthmus/west/gateway/x",
            "/x/west/agent/x",
            "/isthmus/-/agent/x",
        ] {
            assert_eq!(party(other), None, "{other}");
        }
    }
}
