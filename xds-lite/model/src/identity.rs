//! SPIFFE IDs as YAML files write them: one ID, a pattern, a trust domain. What they prove is elsewhere.

use isthmus_certs::{IdPattern, SpiffeId, TrustDomain};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::units::{Scalar, Wrong};

/// The SPIFFE ID of a workload, `spiffe://TRUST-DOMAIN/PATH`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$"))]
pub struct Identity(String);

/// Likewise, or `spiffe://TRUST-DOMAIN/PATH/*` for every ID under whole path segments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*(/[A-Za-z0-9._-]+|/\\*)$"))]
pub struct IdentityPattern(String);

/// A trust domain.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[a-z0-9._-]{1,255}$"))]
pub struct DomainName(String);

impl Identity {
    /// A text in the place of an ID.
    pub(crate) fn written(text: &str) -> Identity {
        Identity(text.to_owned())
    }
}

impl Scalar for Identity {
    type Value = SpiffeId;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<SpiffeId, Wrong> {
        SpiffeId::parse(&self.0).ok().filter(|id| !id.path().is_empty()).ok_or(Wrong {
            what: "is not the SPIFFE ID of a workload",
            remedy: "write spiffe://TRUST-DOMAIN/PATH, such as spiffe://east.example/ns/shop/sa/cart",
        })
    }
}

impl Scalar for IdentityPattern {
    type Value = IdPattern;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<IdPattern, Wrong> {
        let is_workload = |pattern: &IdPattern| match pattern {
            IdPattern::Exactly(id) => !id.path().is_empty(),
            IdPattern::Below(_) => true,
        };
        IdPattern::parse(&self.0).ok().filter(is_workload).ok_or(Wrong {
            what: "is not a SPIFFE ID or pattern",
            remedy: "write spiffe://TRUST-DOMAIN/PATH, or spiffe://TRUST-DOMAIN/PATH/* for every ID under whole \
                     path segments",
        })
    }
}

impl Scalar for DomainName {
    type Value = TrustDomain;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<TrustDomain, Wrong> {
        TrustDomain::new(&self.0).map_err(|_| Wrong {
            what: "is not a trust domain",
            remedy: "write the bare name, such as east.example: lower-case letters, digits, '.', '-' or '_'",
        })
    }
}
