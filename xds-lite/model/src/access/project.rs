//! The part of the rules that another cluster receives: those that concern callers of its trust domains.

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
