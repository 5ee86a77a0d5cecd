//! The part of the rules that another cluster receives: those that concern callers of its trust domains, and of these
//! what its gateways can decide by.

use isthmus_certs::TrustDomain;

use super::{Access, Rule};

impl Access {
    /// The rules that concern callers of these domains. They decide about each of these callers as all rules do;
    /// the identities of other domains stay at home.
    #[must_use]
    pub fn for_domains(&self, domains: &[TrustDomain]) -> Access {
        let project = |rules: &[Rule]| rules.iter().filter_map(|rule| rule.for_domains(domains)).collect();
        Access { unmatched: self.unmatched, allow: project(&self.allow), deny: project(&self.deny) }
    }

    /// The rules for a side that sees other addresses of callers than the owner's gateway does. It refuses nobody by
    /// an address: rules that deny sources are left out, and those that allow sources allow them all. What only
    /// reports and asks for an address would report wrongly, and is left out.
    #[must_use]
    pub fn without_sources(&self) -> Access {
        let allow = self.allow.iter().filter(|rule| rule.sources.is_empty() || !rule.dry_run);
        let deny = self.deny.iter().filter(|rule| rule.sources.is_empty());
        Access {
            unmatched: self.unmatched,
            allow: allow.map(|rule| Rule { sources: Vec::new(), ..rule.clone() }).collect(),
            deny: deny.cloned().collect(),
        }
    }

    /// The trust domains that rules name, with repetitions.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.rules().flat_map(|rule| &rule.identities).map(|pattern| pattern.trust_domain())
    }
}

impl Rule {
    fn for_domains(&self, domains: &[TrustDomain]) -> Option<Rule> {
        let known = self.identities.iter().filter(|pattern| domains.contains(pattern.trust_domain()));
        let identities: Vec<_> = known.cloned().collect();
        // Without its identities a rule would mean everybody.
        let is_of_others = identities.is_empty() && !self.identities.is_empty();
        (!is_of_others).then(|| Rule { identities, ..self.clone() })
    }
}
