//! `bundle`: prints, makes, adds and removes trust bundles.

use std::path::Path;

use anyhow::Context as _;
use isthmus_certs::facts::Facts;
use isthmus_certs::home::Home;
use isthmus_certs::{Bundle, TrustDomain, cross, pem, spiffe_bundle};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::chains::escaped;
use super::options::{Audience, BundleChange, BundleOptions};
use super::read;
use super::say::{Answer, left, table, time};

pub(super) fn bundle(options: &BundleOptions) -> anyhow::Result<Answer> {
    match &options.change {
        None => print(options),
        Some(BundleChange::Add { file, trust_domain, at }) => {
            let bundle = load(file, trust_domain)?;
            at.open()?.federate(trust_domain, &bundle)?;
            let text = format!(
                "trusts {} root(s) of {trust_domain}, sequence {}",
                bundle.roots().len(),
                bundle.sequence
            );
            Ok(Answer::new(text, described(trust_domain, &bundle)?))
        }
        Some(BundleChange::Remove { trust_domain, at }) => {
            at.open()?.defederate(trust_domain)?;
            let text = format!("no longer trusts {trust_domain}");
            Ok(Answer::new(text, json!({ "removed": trust_domain })))
        }
        Some(BundleChange::Make { files, trust_domain, sequence, out }) => {
            let roots: anyhow::Result<Vec<_>> = files.iter().map(|file| roots(file, trust_domain)).collect();
            let bundle = Bundle::new(trust_domain, *sequence, roots?.iter().flatten())?;
            write_out(spiffe_bundle::write(&bundle)?, out.as_deref(), "the bundle")
        }
    }
}

fn roots(file: &Path, domain: &TrustDomain) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let roots = pem::certificates(read(file)?).with_context(|| escaped(file))?;
    Bundle::new(domain, 0, &roots).with_context(|| escaped(file))?;
    Ok(roots)
}

fn load(file: &Path, domain: &TrustDomain) -> anyhow::Result<Bundle> {
    let text = read(file)?;
    // A byte order mark or white space may come first.
    let first = text.iter().find(|byte| byte.is_ascii() && !byte.is_ascii_whitespace());
    let bundle = if first == Some(&b'{') {
        spiffe_bundle::read(domain, &text).map_err(anyhow::Error::from)
    } else {
        pem::certificates(&text).map_err(Into::into).and_then(|roots| Ok(Bundle::new(domain, 0, &roots)?))
    };
    bundle.with_context(|| escaped(file))
}

fn print(options: &BundleOptions) -> anyhow::Result<Answer> {
    let home = options.at.open()?;
    let own = home.state().trust_domain.clone();
    let domain = options.trust_domain.as_ref().unwrap_or(&own);
    let out = options.out.as_deref();
    match options.audience {
        Audience::People => for_people(&home, options.trust_domain.as_ref()),
        Audience::Pem => write_out(pem::encode(home.bundle(domain)?.roots()), out, "the roots"),
        Audience::Spiffe => write_out(spiffe_bundle::write(&home.bundle(domain)?)?, out, "the bundle"),
        Audience::Openssl => for_openssl(&home, options),
    }
}

fn for_people(home: &Home, only: Option<&TrustDomain>) -> anyhow::Result<Answer> {
    let mut table = table(&["trust domain", "sequence", "expires", "", "root"]);
    let mut bundles = Vec::new();
    for domain in home.domains()?.into_iter().filter(|domain| only.is_none_or(|only| only == domain)) {
        let bundle = home.bundle(&domain)?;
        for root in bundle.roots() {
            let facts = Facts::read(root)?;
            let short = facts.fingerprint.get(..16).unwrap_or_default().to_owned();
            let ends = (time(facts.not_after), left(facts.not_after));
            table.add_row([domain.to_string(), bundle.sequence.to_string(), ends.0, ends.1, short]);
        }
        bundles.push(described(&domain, &bundle)?);
    }
    Ok(Answer::new(table.to_string(), json!({ "bundles": bundles })))
}

fn described(domain: &TrustDomain, bundle: &Bundle) -> anyhow::Result<Value> {
    let roots: Result<Vec<_>, _> = bundle.roots().iter().map(Facts::read).collect();
    Ok(json!({ "trust_domain": domain, "sequence": bundle.sequence, "roots": roots? }))
}

/// The head of the file says what it protects and what it does not: its users see nothing else.
fn for_openssl(home: &Home, options: &BundleOptions) -> anyhow::Result<Answer> {
    let own = &home.state().trust_domain;
    let mut bundles = Vec::new();
    for domain in home.domains()? {
        if domain == *own || options.trust_domain.as_ref().is_none_or(|only| *only == domain) {
            let bundle = home.bundle(&domain)?;
            bundles.push((domain, bundle));
        }
    }
    let mut text = format!(
        "# Trusted roots for programs without a bundle per trust domain. Made by isthmus-certs.\n\
         # The roots of {own} may vouch for anything. Every other root is cross-signed by an anchor that exists\n\
         # in this file only, and may vouch for URI names (SPIFFE IDs) of its own domain only, if the program\n\
         # checks name constraints, as OpenSSL does. Not protected: other kinds of names. A program that checks\n\
         # DNS names, or accepts every chain to this file, trusts each domain in it for all names.\n"
    );
    for (domain, root) in cross::file(own, bundles.iter().map(|(domain, bundle)| (domain, bundle)))? {
        text += &format!("# {domain}\n{}", pem::encode(&[root]));
    }
    write_out(text, options.out.as_deref(), "the file for OpenSSL")
}

fn write_out(text: String, out: Option<&Path>, what: &str) -> anyhow::Result<Answer> {
    match out {
        None => {
            let json = serde_json::from_str(&text).unwrap_or_else(|_| json!({ "pem": text }));
            Ok(Answer::new(text, json))
        }
        Some(out) => {
            pem::write(out, &text)?;
            Ok(Answer::new(format!("wrote {what} to {}", out.display()), json!({ "file": out })))
        }
    }
}
