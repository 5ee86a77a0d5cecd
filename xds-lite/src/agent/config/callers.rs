//! Resolves `callers:` of an agent's file. The trust domain is compared with the certificate's at start.

use isthmus_certs::TrustDomain;
use isthmus_model::at::{At, Spot};
use isthmus_model::binding::{Caller, Callers};
use isthmus_model::problem::{Place, Report};

use super::raw;

pub(super) fn callers(
    report: &mut Report,
    raw: Option<&[At<raw::Caller>]>,
    domain: Option<&TrustDomain>,
) -> Callers {
    let place = Place::Root.key("callers");
    let mut list = Vec::new();
    for (index, one) in raw.unwrap_or_default().iter().enumerate() {
        let (place, raw) = (place.item(index), &one.value);
        if raw.sources.as_ref().is_none_or(Vec::is_empty) {
            report.add(one.spot, format_args!("{place} has no sources"), "add 'sources: [CIDR, …]'");
        }
        let sources = report.values(raw.sources.as_ref(), place.key("sources"));
        let Some(identity) = report.required(raw.identity.as_ref(), one, place, "identity") else { continue };
        if let Some(own) = domain.filter(|own| *own != identity.trust_domain()) {
            let what = format_args!("{place}: {identity} is of another trust domain than {own}");
            report.add(one.spot, what, "write an identity of the agent's own trust domain");
        }
        list.push(Caller { sources, identity });
    }
    Callers::new(list).unwrap_or_else(|error| {
        let spot = raw.and_then(|raw| raw.first()).map_or(Spot::START, |first| first.spot);
        let remedy = "give each range one identity; the longest prefix decides between ranges";
        report.add(spot, format_args!("{place}: {error}"), remedy);
        Callers::default()
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;

    fn problems(callers: &str) -> String {
        let text = format!(
            "cluster: east\ntrust: {{ certificate: a, key: b, bundles: c, domain: east.example }}\n\
             registry: {{ files: r }}\ncallers:\n{callers}"
        );
        parse(&text, Path::new("agent.yaml")).map_or_else(|problems| problems.to_string(), |_| String::new())
    }

    #[test]
    fn callers_with_one_range_and_two_identities_or_of_another_domain_are_refused() {
        let of = |source: &str, domain: &str, name: &str| {
            format!("- {{ sources: [{source}], identity: spiffe://{domain}.example/ns/a/sa/{name} }}\n")
        };
        assert_eq!(problems(&(of("10.0.0.0/8", "east", "a") + &of("10.1.0.0/16", "east", "b"))), "");
        for (callers, expected) in [
            (of("10.0.0.0/8", "east", "a") + &of("10.0.0.0/8", "east", "b"), "10.0.0.0/8 has two identities"),
            (of("10.0.0.0/8", "west", "a"), "is of another trust domain than east.example"),
            ("- { sources: [10.0.0.0/8] }".to_owned(), "callers[0] has no identity"),
            ("- { identity: spiffe://east.example/a }".to_owned(), "callers[0] has no sources"),
            (of("10.0.0.0/40", "east", "a"), "callers[0].sources[0]"),
        ] {
            let problems = problems(&callers);
            assert!(problems.contains(expected), "{callers}: {problems}");
        }
    }
}
