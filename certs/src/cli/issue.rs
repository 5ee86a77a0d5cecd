//! `intermediate` and `issue`: make intermediates and leaves.

use std::path::absolute;

use anyhow::{Context as _, bail};
use isthmus_certs::facts::Facts;
use isthmus_certs::home::{Home, LeafRecord};
use isthmus_certs::pem;
use isthmus_certs::{Csr, Leaf, SpiffeId};
use serde_json::json;

use super::options::{IntermediateOptions, IssueOptions};
use super::say::{Answer, time};

pub(super) fn intermediate(options: &IntermediateOptions) -> anyhow::Result<Answer> {
    let mut home = options.at.open()?;
    let is_new = home.add_cluster(&options.cluster)?;
    let folder = home.cluster_folder(&options.cluster);
    let facts = Facts::read(home.intermediate(&options.cluster)?.certificate())?;
    let verb = if is_new { "made" } else { "already there:" };
    let mut text =
        format!("{verb} the intermediate of cluster {} in {}\n", options.cluster, folder.display());
    text += &format!("valid until {}, pin {}\n", time(facts.not_after), facts.pin);
    let others: Vec<_> =
        home.state().clusters.iter().filter(|other| **other != options.cluster).cloned().collect();
    if !others.is_empty() {
        text += &format!(
            "note: {} and {} are one security domain: each can sign every identity of {}",
            options.cluster,
            others.join(", "),
            home.state().trust_domain
        );
    }
    Ok(Answer::new(
        text,
        json!({ "cluster": options.cluster, "new": is_new, "dir": folder, "pin": facts.pin,
            "not_after": time(facts.not_after), "shares_root_with": others }),
    ))
}

pub(super) fn issue(options: &IssueOptions) -> anyhow::Result<Answer> {
    let mut home = options.at.open()?;
    let cluster = match &options.cluster {
        Some(cluster) => Some(cluster.clone()),
        None => home.only_cluster()?,
    };
    let leaf = Leaf {
        id: options.spiffe.clone(),
        dns: options.dns.clone(),
        ips: options.ip.clone(),
        lifetime: options.ttl,
    };
    match &options.csr {
        Some(_) => certify(options, &mut home, &leaf, cluster.as_deref()),
        None => keep(options, &mut home, leaf, cluster),
    }
}

fn keep(
    options: &IssueOptions,
    home: &mut Home,
    leaf: Leaf,
    cluster: Option<String>,
) -> anyhow::Result<Answer> {
    let name = options.name.clone().unwrap_or_else(|| name_of(&leaf.id));
    if let Some(other) = home.state().leaves.get(&name).filter(|other| other.leaf.id != leaf.id) {
        bail!("{name} is already the leaf of {}; choose another --name", other.leaf.id);
    }
    let folder =
        options.out.as_ref().map(absolute).transpose().context("cannot resolve the path of --out")?;
    let kept = LeafRecord { leaf, key: options.key, cluster, folder };
    let folder = home.folder_of(&name, &kept);
    home.keep(&name, kept)?;
    let text = format!(
        "issued {} in {} (tls.crt, tls.key, ca.crt)\n`isthmus-certs rotate` renews it",
        options.spiffe,
        folder.display()
    );
    Ok(Answer::new(text, json!({ "name": name, "id": options.spiffe, "dir": folder })))
}

fn certify(
    options: &IssueOptions,
    home: &mut Home,
    leaf: &Leaf,
    cluster: Option<&str>,
) -> anyhow::Result<Answer> {
    let path = options.csr.as_deref().unwrap_or_else(|| std::path::Path::new("-"));
    let request = super::read(path)?;
    let csr = Csr::parse(&request).with_context(|| path.display().to_string())?;
    let chain = home.certify(&csr, leaf, cluster)?;
    let Some(out) = &options.out else {
        let json = json!({ "id": leaf.id, "chain": chain });
        return Ok(Answer::new(chain, json));
    };
    pem::write(out, &chain)?;
    let text = format!("signed {} in {}", leaf.id, out.display());
    Ok(Answer::new(text, json!({ "id": leaf.id, "file": out })))
}

/// The default name of a leaf: `bookinfo-reviews` for `/ns/bookinfo/sa/reviews`, else the joined path segments.
fn name_of(id: &SpiffeId) -> String {
    let segments: Vec<_> = id.path().split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        ["ns", namespace, "sa", account] => format!("{namespace}-{account}"),
        [] => "leaf".to_owned(),
        all => all.join("-"),
    }
}
